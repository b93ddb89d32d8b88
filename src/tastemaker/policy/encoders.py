"""CLIP text encoders that are trained: which layers of theirs get an adapter, and what those are called.

The names are those of diffusers' LoRA files: `text_encoder.text_model.encoder.layers.0.self_attn.q_proj`. Of a
`CLIPTextModel` newer releases of transformers have no `text_model` any more; here it is always there, so that
checkpoints and files are the same whatever is installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from tastemaker.policy.adapter import OWNER, LoRA, attach

PARTS = ("text_encoder", "text_encoder_2")  # those that are CLIPs in some family
MODEL = "text_model."
TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
KINDS = ("CLIPTextModel", "CLIPTextModelWithProjection")


class Encoder(NamedTuple):
    """A text encoder that is trained."""

    part: str
    """Its name in the pipeline: `text_encoder`, `text_encoder_2`."""
    network: Any
    unread: int = 0
    """So many of its last layers have no influence, and so no adapter."""

    def attach(self, lora: LoRA, start: Mapping[str, Tensor], seed: int) -> dict[str, nn.Parameter]:
        """Adapters into its attention, and into what else `start` and `lora.targets` name of it; as `adapter.attach`.

        What they say of layers that have no influence is left out.
        """
        mine = f"{self.part}."
        known = {one: tensor for one, tensor in start.items() if one.startswith(mine) and not self._idle(one)}
        prefix = mine if hasattr(self.network, "text_model") else mine + MODEL
        layers = [one.split(".lora_")[0].removeprefix(prefix) for one in known]
        there = {name for name, _ in self.network.named_modules()}
        if strange := [one for one in layers if one not in there]:
            raise ValueError(
                f"--lora {lora.file}: it tunes the layer {strange[0]!r} of the {self.part}, which has no such "
                "layer here. Use the model it was made for."
            )
        more = [one.removeprefix(prefix) for one in lora.targets if one.startswith(mine) and not self._idle(one)]
        if strange := [one for one in more if one not in there]:
            raise ValueError(f"lora.targets: there is no layer {strange[0]!r} in the {self.part}.")
        targets = tuple(dict.fromkeys((*self._attention(), *layers, *more)))
        return attach(self.network, replace(lora, targets=targets), known, seed, prefix)

    def _attention(self) -> list[str]:
        """The linear layers of its attention, by its own names."""
        inside = [name for name, _ in self.network.named_modules() if name.endswith(tuple(f".{t}" for t in TARGETS))]
        return [name for name in inside if not self._idle(name)]

    def _idle(self, name: str) -> bool:
        """Whether it belongs to a layer without influence."""
        return is_idle(name, self.network.config.num_hidden_layers, self.unread)


def is_idle(name: str, layers: int, unread: int) -> bool:
    """Whether it belongs to one of the last, `unread`, of so many layers."""
    _, found, rest = name.partition("encoder.layers.")
    return bool(found) and int(rest.partition(".")[0]) in range(layers - unread, layers)


def check(model: str, part: str, network: Any) -> None:
    """Errors: ValueError for an encoder whose layers are not known here."""
    if (kind := type(network).__name__) not in KINDS:
        raise ValueError(
            f"--lora.text_encoders: the {part} of --model {model} is a {kind}; what is trained are encoders of the "
            f"kinds {' and '.join(KINDS)}. Leave it out."
        )


def of_denoiser(lora: LoRA) -> LoRA:
    """The same without the layers of text encoders that `targets` may name in full."""
    own = tuple(one for one in lora.targets if not is_encoders(one))
    return lora if own == lora.targets else replace(lora, targets=own)


def is_encoders(name: str) -> bool:
    """Whether a layer or tensor of that name belongs to a text encoder."""
    return OWNER.match(name) is not None


def check_targets(lora: LoRA, encoders: Sequence[Encoder]) -> None:
    """Errors: ValueError for a target in a text encoder that is not trained."""
    mine = tuple(f"{one.part}." for one in encoders)
    if left := [one for one in lora.targets if is_encoders(one) and not one.startswith(mine)]:
        trained = ", ".join(one.part for one in encoders)
        raise ValueError(f"lora.targets: {left[0]!r} is no layer of the text encoders that are trained ({trained}).")


def tunes_encoders(names: Iterable[str]) -> bool:
    """Whether there is a layer of a text encoder among them."""
    return any(map(is_encoders, names))

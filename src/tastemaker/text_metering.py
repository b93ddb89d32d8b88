"""What text encoders that are trained keep in memory: measured as `metering` does, one text at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tastemaker.dropping import dropping
from tastemaker.metering import Cost, measure, text_weights
from tastemaker.policy.adapter import LoRA, droppers
from tastemaker.policy.encoders import KINDS, PARTS, Encoder, is_idle
from tastemaker.policy.load import half, quiet


class Readers(NamedTuple):
    """The encoders of a model that are trained; bytes."""

    frozen: int = 0
    """Their weights that are not trained."""
    trained: tuple[int, ...] = ()
    """Numbers of each tensor that is."""
    saved: int = 0
    """Activations of one text that wait for backward, the copies of weights among them."""
    peak: int = 0
    """The most that one text takes at a time, those included."""
    rest: int = 0
    """The same without them."""

    def working(self, checkpointing: bool) -> int:
        """What comes and goes while one text is read, or with `checkpointing` read again."""
        return self.peak if checkpointing else self.rest


def readers(model: Mapping[str, str], lora: LoRA | None, precision: str, kernel: str) -> Readers:
    """model: part -> its config. None where no text encoder is trained."""
    if lora is None or not lora.text_encoders:
        return Readers()
    parts = trained(model)
    if not parts:  # what is said of that when the model is loaded
        return Readers()
    costs = [_reading(model[part], lora, precision, part, unread, kernel) for part, unread in parts.items()]
    tensors = [_trained(model[part], lora, precision, part, unread) for part, unread in parts.items()]
    size = 2 if half(precision) else 4
    saved = sum(cost.saved + cost.copies for cost in costs)
    rest = max(cost.peak - cost.saved - cost.copies for cost in costs)
    return Readers(
        frozen=size * sum(text_weights(model[part]) for part in parts),
        trained=tuple(p.numel() for found in tensors for p in found),
        saved=saved,
        peak=saved + rest,
        rest=rest,
    )


def trained(model: Mapping[str, str]) -> dict[str, int]:
    """The parts that `lora.text_encoders` trains, and how many of the last layers of each have no influence.

    Of two CLIPs the one without a projection is read before its last layer, as in Stable Diffusion XL.
    """
    kinds = {part: (json.loads(model[part]).get("architectures") or KINDS)[0] for part in PARTS if part in model}
    clips = [part for part, kind in kinds.items() if kind in KINDS]
    return {part: int(len(clips) > 1 and kinds[part] == KINDS[0]) for part in clips}


@lru_cache(maxsize=8)
def _encoder(config: str, lora: LoRA, precision: str, part: str, unread: int) -> Any:
    """The layers that have influence: half precision where they are frozen, fp32 where they are trained."""
    import transformers

    values = json.loads(config)
    kind = getattr(transformers, (values.get("architectures") or KINDS)[0])
    whole = kind.config_class.from_dict(values).num_hidden_layers
    values["num_hidden_layers"] = whole - unread
    lora = replace(lora, targets=tuple(one for one in lora.targets if not is_idle(one, whole, unread)))
    with torch.device("meta"), quiet():
        made = kind(kind.config_class.from_dict(values)).to(half(precision) or torch.float32)
    made.requires_grad_(False).eval()
    for parameter in Encoder(part, made).attach(lora, {}, 0).values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return made


def _trained(config: str, lora: LoRA, precision: str, part: str, unread: int) -> list[Tensor]:
    network = _encoder(config, lora, precision, part, unread)
    return [p for p in network.parameters() if p.requires_grad]


@lru_cache(maxsize=32)
def _reading(config: str, lora: LoRA, precision: str, part: str, unread: int, kernel: str) -> Cost:
    """One text, forward and backward."""
    network = _encoder(config, lora, precision, part, unread)
    ids = torch.zeros(1, network.config.max_position_embeddings, dtype=torch.long, device="meta")

    def call() -> Tensor:
        found = network(ids, output_hidden_states=True)
        summary: Tensor | None = getattr(found, "text_embeds", None)
        last: Tensor = found.hidden_states[-1] if unread else found.last_hidden_state
        return last if summary is None else summary

    with dropping(droppers(network), torch.device("meta"), 0):
        return measure(network, call, half=half(precision), kernel=kernel)

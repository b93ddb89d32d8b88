"""Reading and naming LoRA files: every spelling diffusers knows comes in, one spelling goes out."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from tastemaker.policy.hub import reason, refusals
from tastemaker.policy.load import quiet
from tastemaker.policy.single_file import read_header

PEFT = "base_model.model."  # what peft itself puts before the names of a network's layers
DIFFUSERS, PEFTS = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"  # what they call their files
OTHERS = ("text_encoder", "text_model", "unet.", "transformer.")  # beginnings of names that say whose layer it is

# For diffusers, which reads in it how kohya's files count the blocks of SDXL through. (Those of SD 1 and 2 do not.)
SDXL = SimpleNamespace(layers_per_block=2)

# How the names of a component's own layers begin.
ROOTS = {
    "unet": ("down_blocks.", "mid_block.", "up_blocks.", "conv_in.", "conv_out.", "time_embedding."),
    "transformer": (
        *("transformer_blocks.", "single_transformer_blocks.", "pos_embed.", "x_embedder."),
        *("time_text_embed.", "context_embedder.", "norm_out.", "proj_"),
    ),
}

# What a file that is no LoRA is known by: the first pattern that a key of it matches.
STRANGERS = (
    (r"^model\.diffusion_model\.", "a whole model: give it as --model"),
    (r"dora_scale", "a DoRA in kohya's spelling, from which diffusers takes the scales away"),
    (r"\.hada_|\.lokr_", "a LoHa or LoKr, which is another product of matrices than a LoRA"),
)


def read(file: str, pipeline: Any, component: str) -> dict[str, Tensor]:
    """`<layer>.lora_A.weight` and `<layer>.lora_B.weight` of one component, fp32, the file's scale baked into B.

    Of a DoRA `<layer>.lora_magnitude_vector.weight` too.
    pipeline: the diffusers pipeline class whose files these are; component: "unet" or "transformer".
    Reads safetensors only. Keys of another component (a tuned text encoder) are left out with a warning.
    """
    from diffusers.utils import convert_unet_state_dict_to_peft

    path = _place(Path(file).expanduser(), file)
    _refuse_strangers(path, file)
    state, alphas, settings = _state(str(path) if path.exists() else file, file, pipeline, component)
    bare = not any(key.startswith(OTHERS) for key in state)  # saved from a network alone, by diffusers or by peft
    if bare and any(key.removeprefix(PEFT).startswith(ROOTS[component]) for key in state):
        state = {f"{component}.{key.removeprefix(PEFT)}": value for key, value in state.items()}
    own = {key.removeprefix(f"{component}."): value for key, value in state.items() if key.startswith(f"{component}.")}
    if not own:
        raise ValueError(f"--lora {file}: it tunes no layer of the {component}, which is what is trained here.")
    if len(own) < len(state):
        warnings.warn(
            f"--lora {file}: {len(state) - len(own)} of its {len(state)} tensors do not belong to the {component}; "
            "they are left out, so pictures may differ from what other programs show with this file.",
            stacklevel=2,
        )
    named = {key.removeprefix(f"{component}.").removesuffix(".alpha"): a for key, a in alphas.items()}
    by_layer = {key.split(".lora_")[0]: a for key, a in convert_unet_state_dict_to_peft(named).items()}
    by_layer |= {key.removesuffix(".alpha"): float(value) for key, value in own.items() if key.endswith(".alpha")}
    own = {key: value for key, value in own.items() if not key.endswith(".alpha")}
    if not any(".lora_A." in key for key in own):
        own = convert_unet_state_dict_to_peft(own)
    own = {f"{key}.weight" if key.endswith(".lora_magnitude_vector") else key: value for key, value in own.items()}
    told = settings or _peft_settings(path)
    scales = _Scales(by_layer, {key.removeprefix(f"{component}."): value for key, value in told.items()})
    return {key: tensor.float() * (scales.of(key, tensor) if ".lora_B." in key else 1.0) for key, tensor in own.items()}


def _place(path: Path, file: str) -> Path:
    """The file that a local folder holds, a run's too; another path as it is. Errors: ValueError if none is meant."""
    if (path / "lora" / DIFFUSERS).is_file():
        return path / "lora" / DIFFUSERS
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    for name in (DIFFUSERS, PEFTS):
        if path / name in found:
            return path / name
    if len(found) > 1:
        names = ", ".join(one.name for one in found[:3])
        raise ValueError(
            f"--lora {file}: the folder holds {len(found)} .safetensors files ({names}): name one of them."
        )
    return found[0] if found else path


def _state(
    place: str, file: str, pipeline: Any, component: str
) -> tuple[dict[str, Tensor], dict[str, float], dict[str, Any]]:
    """Tensors, kohya's alphas and diffusers' settings, as far as the file has them; place: a path, or a hub id."""
    from safetensors import SafetensorError

    unreadable: tuple[type[BaseException], ...] = (*refusals(), SafetensorError)
    counted = {"unet_config": SDXL} if component == "unet" else {}
    try:
        with quiet():
            found = pipeline.lora_state_dict(place, use_safetensors=True, return_lora_metadata=True, **counted)
    except unreadable as error:
        raise ValueError(
            f"--lora {file}: no LoRA file in safetensors format could be read there ({reason(error)}). Give the "
            ".safetensors file or the folder that holds it."
        ) from error
    state, *alphas, settings = found  # kohya's alphas are read by the families of the time when they were written
    return state, (alphas[0] if alphas else {}) or {}, settings or {}


def _refuse_strangers(path: Path, file: str) -> None:
    """Errors: ValueError if the keys of a local file say that it is something else, or it is not whole."""
    if path.suffix != ".safetensors" or not path.is_file():
        return  # what is wrong with these is said by the one who reads them
    header = read_header(path, f"--lora {file}")
    for pattern, what in STRANGERS:
        if any(re.search(pattern, key) for key in header.shapes):
            raise ValueError(f"--lora {file} is {what}. Needed: a LoRA, a pair of low-rank matrices a layer.")


def _peft_settings(path: Path) -> dict[str, Any]:
    """What peft writes beside its own file, and of which a file of another name in the folder knows nothing."""
    config = path.with_name("adapter_config.json")
    if path.name != PEFTS or not config.is_file():
        return {}
    found: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    return found


class _Scales:
    """alpha / rank of each layer, from kohya's alphas or diffusers' metadata; 1 where a file says nothing."""

    def __init__(self, alphas: Mapping[str, float], settings: Mapping[str, Any]) -> None:
        self._alphas, self._settings = alphas, settings

    def of(self, key: str, b: Tensor) -> float:
        """b: [out, rank, ...], the layer's B."""
        from peft.utils.other import get_pattern_key

        layer, rank = key.split(".lora_B.")[0], b.shape[1]
        if layer in self._alphas:
            return float(self._alphas[layer]) / rank
        if "lora_alpha" not in self._settings:
            return 1.0
        patterns = self._settings.get("alpha_pattern") or {}
        alpha = patterns.get(get_pattern_key(patterns.keys(), layer), self._settings["lora_alpha"])
        return float(alpha) / (math.sqrt(rank) if self._settings.get("use_rslora") else rank)


def named_for_file(adapter: Mapping[str, Tensor], component: str) -> dict[str, Tensor]:
    """The names of diffusers' own files of that component; those of a transformer are what ComfyUI reads too.

    A UNet's `<layer>.lora.down.weight` (A) and `.lora.up.weight` (B), a transformer's `<layer>.lora_A.weight` and
    `.lora_B.weight`, with the component in front; a DoRA's lengths have peft's name in both.
    """
    a, b = (".lora.down.", ".lora.up.") if component == "unet" else (".lora_A.", ".lora_B.")
    return {
        f"{component}." + name.replace(".lora_A.", a).replace(".lora_B.", b): tensor for name, tensor in adapter.items()
    }

"""Reading and naming LoRA files: every spelling diffusers knows comes in, one spelling goes out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tastemaker.policy.load import quiet, refusals


def read(file: str, pipeline: Any, component: str) -> dict[str, Tensor]:
    """`<layer>.lora_A.weight` and `<layer>.lora_B.weight` of one component, fp32, the file's scale baked into B.

    pipeline: the diffusers pipeline class whose files these are; component: "unet" or "transformer".
    Reads safetensors only. Keys of another component (a tuned text encoder) are left out with a warning.
    """
    from diffusers.utils import convert_unet_state_dict_to_peft
    from safetensors import SafetensorError

    unreadable: tuple[type[BaseException], ...] = (*refusals(), SafetensorError)
    try:
        with quiet():
            found = pipeline.lora_state_dict(file, use_safetensors=True, return_lora_metadata=True)
    except unreadable as error:
        raise ValueError(
            f"--lora {file}: no LoRA file in safetensors format could be read there "
            f"({str(error).strip().splitlines()[0]}). Give the .safetensors file or the folder that holds it."
        ) from error
    state, alphas, settings = found
    own = {key.removeprefix(f"{component}."): value for key, value in state.items() if key.startswith(f"{component}.")}
    if not own:
        raise ValueError(f"--lora {file}: it tunes no layer of the {component}, which is what is trained here.")
    if len(own) < len(state):
        warnings.warn(
            f"--lora {file}: {len(state) - len(own)} of its {len(state)} tensors do not belong to the {component}; "
            "they are left out, so pictures may differ from what other programs show with this file.",
            stacklevel=2,
        )
    if not any(".lora_A." in key for key in own):
        own = convert_unet_state_dict_to_peft(own)
    named_alphas = {key.removeprefix(f"{component}.").removesuffix(".alpha"): a for key, a in (alphas or {}).items()}
    by_layer = {key.split(".lora_")[0]: a for key, a in convert_unet_state_dict_to_peft(named_alphas).items()}
    scales = _Scales(by_layer, {key.removeprefix(f"{component}."): value for key, value in (settings or {}).items()})
    return {key: tensor.float() * (scales.of(key, tensor) if ".lora_B." in key else 1.0) for key, tensor in own.items()}


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
    """`<component>.<layer>.lora.down.weight` (A) and `.lora.up.weight` (B): diffusers and ComfyUI read it."""
    return {
        f"{component}." + name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."): tensor
        for name, tensor in adapter.items()
    }

"""Reading and naming LoRA files: every spelling diffusers knows comes in, one spelling goes out."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from tastemaker.policy.encoders import MODEL, is_encoders
from tastemaker.policy.hub import reason, refusals
from tastemaker.policy.load import quiet
from tastemaker.policy.single_file import read_header

PEFT = "base_model.model."  # what peft itself puts before the names of a network's layers
DIFFUSERS, PEFTS = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"  # what they call their files
BESIDE = (MODEL, "text_projection")  # what lies in a text encoder itself
T5 = "encoder.block."  # which is never trained, has layers of these names
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


def read(file: str, pipeline: Any, component: str, encoders: Sequence[str] = ()) -> dict[str, Tensor]:
    """`<layer>.lora_A.weight` and `<layer>.lora_B.weight` of one component, fp32, the file's scale baked into B.

    Of a DoRA `<layer>.lora_magnitude_vector.weight` too. Those of the text encoders among `encoders` are called
    `text_encoder.text_model.<layer>`, as in `policy.encoders`.
    pipeline: the diffusers pipeline class whose files these are; component: "unet" or "transformer".
    Reads safetensors only. Keys of another part (a text encoder that is not asked for) are left out with a warning.
    """
    path = _place(Path(file).expanduser(), file)
    _refuse_strangers(path, file)
    state, alphas, settings = _state(str(path) if path.exists() else file, file, pipeline, component)
    bare = not any(key.startswith(OTHERS) for key in state)  # saved from a network alone, by diffusers or by peft
    if bare and any(key.removeprefix(PEFT).startswith(ROOTS[component]) for key in state):
        state = {f"{component}.{key.removeprefix(PEFT)}": value for key, value in state.items()}
    if not any(key.startswith(f"{component}.") for key in state):
        raise ValueError(f"--lora {file}: it tunes no layer of the {component}. Needed: a LoRA that does.")
    encoders = [part for part in encoders if not any(key.startswith(f"{part}.{T5}") for key in state)]
    _warn_of_rest(state, file, component, encoders)
    told, peft = settings, {} if settings else _peft_settings(path)
    own = _part(state, alphas, told or peft, component)
    for part in encoders:
        found = _part(state, alphas, told, part)
        own |= {f"{part}.{'' if key.startswith(BESIDE) else MODEL}{key}": tensor for key, tensor in found.items()}
    return own


def _warn_of_rest(state: Mapping[str, Tensor], file: str, component: str, encoders: Sequence[str]) -> None:
    """Says of tensors that are left out."""
    parts = (component, *encoders)
    read = tuple(f"{part}." for part in parts)
    rest = [key for key in state if not key.startswith(read)]
    if not rest:
        return
    tuned = not encoders and any(map(is_encoders, rest))
    hint = " --lora.text_encoders takes in what it tunes of CLIP text encoders." if tuned else ""
    warnings.warn(
        f"--lora {file}: {len(rest)} of its {len(state)} tensors do not belong to the {' or the '.join(parts)}; "
        f"they are left out, so pictures may differ from what other programs show with this file.{hint}",
        stacklevel=3,
    )


def _part(
    state: Mapping[str, Tensor], alphas: Mapping[str, float], told: Mapping[str, Any], part: str
) -> dict[str, Tensor]:
    """The tensors of one part by its own names, the scale inside B. told: diffusers' settings, or peft's bare ones."""
    start = f"{part}."
    is_reader = is_encoders(start)
    convert = _encoders_names if is_reader else _denoisers_names
    own = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
    # What does not say whose it is comes from a file of the denoiser alone.
    mine = {key: a for key, a in alphas.items() if key.startswith(start) or not (is_reader or is_encoders(key))}
    named = {key.removeprefix(start).removesuffix(".alpha"): a for key, a in mine.items()}
    by_layer = {key.split(".lora_")[0]: a for key, a in convert(named).items()}
    by_layer |= {key.removesuffix(".alpha"): float(value) for key, value in own.items() if key.endswith(".alpha")}
    own = {key: value for key, value in own.items() if not key.endswith(".alpha")}
    if not any(".lora_A." in key for key in own):
        own = convert(own)
    own = {f"{key}.weight" if key.endswith(".lora_magnitude_vector") else key: value for key, value in own.items()}
    scales = _Scales(by_layer, {key.removeprefix(start): value for key, value in told.items()})
    return {key: tensor.float() * (scales.of(key, tensor) if ".lora_B." in key else 1.0) for key, tensor in own.items()}


def _denoisers_names(state: Mapping[str, Any]) -> dict[str, Any]:
    from diffusers.utils import convert_unet_state_dict_to_peft

    found: dict[str, Any] = convert_unet_state_dict_to_peft(state)
    return found


def _encoders_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Of both spellings that diffusers has had."""
    from diffusers.utils.state_dict_utils import StateDictType, convert_state_dict_to_peft

    found: dict[str, Any] = convert_state_dict_to_peft(state, StateDictType.DIFFUSERS_OLD)
    found = convert_state_dict_to_peft(found, StateDictType.DIFFUSERS)
    return found


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
    `.lora_B.weight`, with the component in front; a DoRA's lengths have peft's name in both. Beside a UNet a text
    encoder's are `<layer>.lora_linear_layer.down.weight` and `.lora_linear_layer.up.weight`.
    """
    own = {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."}
    encoders = {".lora_A.": ".lora_linear_layer.down.", ".lora_B.": ".lora_linear_layer.up."}
    found = {}
    for name, tensor in adapter.items():
        file_name = name if is_encoders(name) else f"{component}.{name}"
        for part, other in (encoders if is_encoders(name) else own).items() if component == "unet" else ():
            file_name = file_name.replace(part, other)
        found[file_name] = tensor
    return found

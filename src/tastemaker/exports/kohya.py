"""LoRA files in the spelling of kohya's sd-scripts, which ComfyUI, A1111, Forge and diffusers read too.

`lora_unet_<layer>` with `_` for every dot, then `.lora_down.weight` (A), `.lora_up.weight` (B) and `.alpha`, which is
the rank: the factor is inside B. kohya trains Stable Diffusion 1 and 2 on diffusers' UNet, whose names these are, and
SDXL on its authors' UNet, which counts its blocks through: `down_blocks.1.attentions.0` is `input_blocks_4_1` there.
Text encoders are `lora_te_`, and in SDXL `lora_te1_` and `lora_te2_`.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from tastemaker.evaluation.mixing import Adapter, is_dora, layers
from tastemaker.policy.encoders import PARTS, is_encoders

DEEP = ".transformer_blocks.1."  # of all UNets read here, SDXL's alone has more than one in a place
SECOND = "text_encoder_2."  # of the families with a UNet SDXL alone has one
ROUND = 3  # numbers that a block of SDXL takes: two layers and a sampler on the way down, three layers on the way up
LAYER = re.compile(r"(down|mid|up)_block(?:s\.(\d+))?\.(\w+)\.(\d+)\.(.+)")
WAYS = {"down": ("input_blocks", 1), "up": ("output_blocks", 0)}  # and the number of their first layer
PLACES = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 2}  # within a layer
INNER = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def named(adapter: Adapter, component: str) -> dict[str, Tensor]:
    """The tensors of the file. Errors: ValueError for a transformer's LoRA, and for a DoRA."""
    if component != "unet":
        raise ValueError(
            f"kohya's names are those of UNets, and this LoRA tunes a {component}: ComfyUI reads it as it is. Give "
            "--format diffusers, or copy the file."
        )
    if is_dora(adapter):
        raise ValueError(
            "a DoRA has no file in kohya's spelling that shows the same pictures: ComfyUI divides by the length of the "
            "base's rows in place of the tuned ones', and diffusers leaves the lengths out. diffusers reads the run's "
            "own file."
        )
    found = list(layers(adapter))
    deep = any(DEEP in layer or layer.startswith(SECOND) for layer, _, _ in found)
    tensors: dict[str, Tensor] = {}
    for layer, a, b in found:
        stem = _encoders_stem(layer, deep) if is_encoders(layer) else _unets_stem(layer, deep)
        tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = a, b
        tensors[f"{stem}.alpha"] = torch.tensor(float(len(a)))
    return tensors


def _unets_stem(layer: str, deep: bool) -> str:
    return "lora_unet_" + (counted(layer) if deep else layer).replace(".", "_")


def _encoders_stem(layer: str, deep: bool) -> str:
    part, _, rest = layer.partition(".")
    number = ("2" if layer.startswith(SECOND) else "1") if deep else ""
    assert part in PARTS
    return f"lora_te{number}_" + rest.replace(".", "_")


def counted(layer: str) -> str:
    """What a layer of SDXL is called in its authors' UNet."""
    parts = LAYER.fullmatch(layer)
    if parts is None:
        return OUTER.get(layer, layer)
    way, block, kind, number, rest = parts.groups()
    inner = INNER.get(rest, rest) if kind == "resnets" else "op" if kind == "downsamplers" else rest
    if way == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}.{inner}"
    name, first = WAYS[way]
    after = ROUND - 1 if kind.endswith("samplers") else int(number)
    return f"{name}.{first + ROUND * int(block) + after}.{PLACES[kind]}.{inner}"

"""open_clip's names of a CLIP's weights, turned into transformers' names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_MARK = "visual.conv1.weight"
_WHOLE = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
}
_TURNED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}  # x P, not P x
_NORMS = {
    "ln_final": "text_model.final_layer_norm",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
}
_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")


def is_open_clip(names: Iterable[str]) -> bool:
    """Whether weights are named as open_clip names those of a vision transformer."""
    return _MARK in names


def translated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under transformers' names; what has no counterpart there is left out."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        block = _BLOCK.fullmatch(name)
        stem, _, kind = name.rpartition(".")
        if name in _WHOLE:
            found[_WHOLE[name]] = value
        elif name in _TURNED:
            found[_TURNED[name]] = value.T.contiguous()
        elif stem in _NORMS:
            found[f"{_NORMS[stem]}.{kind}"] = value
        elif block is not None:
            found |= _block(block, value)
    return found


def _block(name: re.Match[str], value: Tensor) -> dict[str, Tensor]:
    """A block's weight or bias; open_clip has queries, keys and values in one."""
    visual, number, part, kind = name.groups()
    home = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}"
    if part == "attn.in_proj":
        thirds = zip("qkv", torch.chunk(value, 3), strict=True)
        return {f"{home}.self_attn.{letter}_proj.{kind}": third.contiguous() for letter, third in thirds}
    return {f"{home}.{_PARTS[part]}.{kind}": value} if part in _PARTS else {}

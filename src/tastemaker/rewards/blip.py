"""BLIP as ImageReward has it: a text encoder that looks at the picture, and a head that makes one number of that.

    V = ViT(picture)   [B,1+patches,W]            h = BERT(text; cross-attention to V)   [B,tokens,D]
    r = A5(A4(A3(A2(A1 h[CLS])))),   affine maps D -> 1024 -> 128 -> 64 -> 16 -> 1 with nothing between them

Li et al. 2022, arXiv:2201.12086 (BLIP); Xu et al. 2023, arXiv:2304.05977 (the head). The parts are transformers' own;
`translated` gives the published file's names in theirs. Of the file the two projections of BLIP's contrastive loss are
not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

HEAD = (1024, 128, 64, 16, 1)
_HEAD_WIDTH = 64  # numbers an attention head has, in every BLIP
_PLACES = (0, 2, 4, 6, 7)  # of the head's layers in the file, among layers of dropout

# A name of the file -> ours, in turn.
_NAMES = (
    (r"^blip\.text_encoder\.", "text."),
    (r"^blip\.visual_encoder\.", "eye."),
    (r"^eye\.cls_token$", "eye.embeddings.class_embedding"),
    (r"^eye\.pos_embed$", "eye.embeddings.position_embedding"),
    (r"^eye\.patch_embed\.proj\.", "eye.embeddings.patch_embedding."),
    (r"^eye\.norm\.", "eye.post_layernorm."),
    (r"^eye\.blocks\.(\d+)\.norm(\d)\.", r"eye.encoder.layers.\1.layer_norm\2."),
    (r"^eye\.blocks\.(\d+)\.attn\.proj\.", r"eye.encoder.layers.\1.self_attn.projection."),
    (r"^eye\.blocks\.(\d+)\.attn\.", r"eye.encoder.layers.\1.self_attn."),
    (r"^eye\.blocks\.", "eye.encoder.layers."),
    *((rf"^mlp\.layers\.{place}\.", f"head.{layer}.") for layer, place in enumerate(_PLACES)),
)
# What there must be to read the sizes from; ours.
_PATCHES, _POSITIONS = "eye.embeddings.patch_embedding.weight", "eye.embeddings.position_embedding"
_WORDS, _PLACED = "text.embeddings.word_embeddings.weight", "text.embeddings.position_embeddings.weight"
_WIDE = ("eye.encoder.layers.0.mlp.fc1.weight", "text.encoder.layer.0.intermediate.dense.weight")


class Sizes(NamedTuple):
    """The lengths that make one BLIP another; the defaults are the published one's."""

    image: int = 224  # side of the picture
    patch: int = 16
    vision: int = 1024  # width of the ViT
    vision_inner: int = 4096
    vision_layers: int = 24
    text: int = 768  # width of the BERT
    text_inner: int = 3072
    text_layers: int = 12
    words: int = 30524
    positions: int = 512


def translated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a published file by our names; what has none keeps its own."""
    return {_renamed(name): value for name, value in state.items()}


def _renamed(name: str) -> str:
    for old, new in _NAMES:
        name = re.sub(old, new, name)
    return name


def sizes(state: Mapping[str, Tensor]) -> Sizes:
    """What a file's tensors, by our names, say of its network. Errors: ValueError naming one that is not there."""
    for name in (_PATCHES, _POSITIONS, _WORDS, _PLACED, *_WIDE):
        if name not in state:
            raise ValueError(f"it holds nothing for {name}: it is not ImageReward's")
    patches, words = state[_PATCHES], state[_WORDS]
    return Sizes(
        image=patches.shape[-1] * round((state[_POSITIONS].shape[1] - 1) ** 0.5),
        patch=patches.shape[-1],
        vision=patches.shape[0],
        vision_inner=len(state[_WIDE[0]]),
        vision_layers=_count(state, "eye.encoder.layers."),
        text=words.shape[1],
        text_inner=len(state[_WIDE[1]]),
        text_layers=_count(state, "text.encoder.layer."),
        words=len(words),
        positions=len(state[_PLACED]),
    )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].partition(".")[0] for name in state if name.startswith(prefix)})


class Network(nn.Module):
    """Pictures [B,3,S,S], normalised, and tokens [B,T] with their mask to raw scores r [B]; nothing mixes rows."""

    def __init__(self, sizes: Sizes) -> None:
        from transformers import BlipTextModel, BlipVisionModel

        super().__init__()
        self.sizes = sizes
        self.eye: Any = BlipVisionModel(_vision(sizes))
        self.text: Any = BlipTextModel(_text(sizes), add_pooling_layer=False)
        widths = (sizes.text, *HEAD)
        self.head = nn.Sequential(*(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)))

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        seen = self.eye(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids=tokens, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state[:, 0]
        return self.head(read.to(self.head[0].weight.dtype))[:, 0]


def _vision(sizes: Sizes) -> Any:
    from transformers import BlipVisionConfig

    return BlipVisionConfig(
        hidden_size=sizes.vision,
        intermediate_size=sizes.vision_inner,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision // _HEAD_WIDTH,
        image_size=sizes.image,
        patch_size=sizes.patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )


def _text(sizes: Sizes) -> Any:
    from transformers import BlipTextConfig

    return BlipTextConfig(
        vocab_size=sizes.words,
        hidden_size=sizes.text,
        encoder_hidden_size=sizes.vision,
        intermediate_size=sizes.text_inner,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text // _HEAD_WIDTH,
        max_position_embeddings=sizes.positions,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        is_decoder=True,  # gives the layers their cross-attention; no mask is causal unless the call says so too
        use_cache=False,
        bos_token_id=None,  # nothing is generated
        sep_token_id=None,
    )

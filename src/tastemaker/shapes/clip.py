"""The CLIP of the built-in world, in transformers' own classes, with a head for taste; their training's loss.

`--reward clip_score --reward.model shapes` reads it as any other CLIP: `tastemaker.rewards.clip`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from tastemaker.rewards.preprocess import prepare
from tastemaker.shapes.drawing import SIZE
from tastemaker.shapes.models import TEXT_LENGTH

WIDTH = 64  # numbers of a vector
MIDDLE, SPREAD = 5.5, 10.0  # of a rating: what the head adds to and multiplies, so that it begins with small weights
_SHARPEST = 50.0  # of what cosines are multiplied by in the loss


def network(words: CLIPTokenizer) -> CLIPModel:
    """Four layers of width 128 over 64 patches of 8x8 pixels, two layers of width 64 over at most eight tokens."""
    text = {
        "vocab_size": len(words),
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": TEXT_LENGTH,
        "hidden_act": "gelu",
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 8,
        "hidden_act": "gelu",
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def vectors(clip: CLIPModel, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors [B,64] and [C,64] of length 1 of pictures [B,3,64,64] in [0,1] and of texts [C,8]."""
    seen = clip.get_image_features(pixel_values=prepare(images, SIZE)).pooler_output
    read = clip.get_text_features(input_ids=tokens).pooler_output
    return F.normalize(seen.float(), dim=-1), F.normalize(read.float(), dim=-1)


def contrast(seen: Tensor, read: Tensor, captions: Tensor, scale: Tensor) -> Tensor:
    """Mean of two cross-entropies over exp(scale) times the cosines of pictures [B,D] and all captions [C,D].

    A picture is to find its own among all captions, a twentieth spread over the others, so that no cosine has to grow
    for ever. A caption is to find its pictures in the batch: all of those that show it, to equal parts.
    captions [B]: which of the C each picture shows.
    """
    logits = scale.exp().clamp(max=_SHARPEST) * (seen @ read.T)
    same = (captions[:, None] == captions).float()
    of_pictures = F.cross_entropy(logits, captions, label_smoothing=0.05)
    of_captions = F.cross_entropy(logits.T[captions], same / same.sum(1, keepdim=True))
    return (of_pictures + of_captions) / 2


def rating(head: nn.Linear, seen: Tensor) -> Tensor:
    """What the head, while it learns, says of vectors [B,64]: about 1 to 10."""
    return MIDDLE + SPREAD * head(seen)[:, 0]


def folded(head: nn.Linear) -> dict[str, Tensor]:
    """The same as one affine map, in the names that `aesthetic` reads: weight [1,64], bias [1]."""
    with torch.no_grad():
        return {"weight": SPREAD * head.weight, "bias": MIDDLE + SPREAD * head.bias}

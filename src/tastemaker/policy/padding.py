"""Many equal tokens as one: the zeros that stand for an absent T5 encoder.

Without its third text encoder diffusers gives the SD3 transformer 256 tokens of zeros. All of them are equal, and stay
equal through every block, so one token whose attention weight counts 256 times gives the same picture: with

    exp(q k + log n) = n exp(q k)

the softmax over n equal keys is that over one key with log n added to its score: exact in fp32, while bf16 rounds log
256 so that the token counts 252 times. On `shapes-flow` the context is then
9 tokens instead of 264; for SD3 at 512x512 it is 78 beside 1,024 of the picture instead of 333.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from torch import Tensor

PADDING = 256  # tokens of zeros: the default `max_sequence_length` of diffusers' pipeline


class WeighedPadding(JointAttnProcessor2_0):  # type: ignore[misc]
    """diffusers' joint attention, with the last token of the context counted `padding` times.

    Called without `padding` it is diffusers' own, so a pipeline around the network works as always.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        padding: int = 1,
        **kwargs: Any,
    ) -> Any:
        if padding == 1 or encoder_hidden_states is None:  # the second attention of SD3.5-medium reads no text
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        picture = _projected(attn, hidden_states, "to_{}", "norm_{}")
        text = _projected(attn, encoder_hidden_states, "add_{}_proj", "norm_added_{}")
        query, key, value = (torch.cat(pair, dim=2) for pair in zip(picture, text, strict=True))
        extra = query.new_zeros(key.shape[2])
        extra[-1] = math.log(padding)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=extra.view(1, 1, 1, -1))
        mixed = mixed.transpose(1, 2).flatten(2)
        seen, read = mixed.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], dim=1)
        if not attn.context_pre_only:
            read = attn.to_add_out(read)
        return attn.to_out[1](attn.to_out[0](seen)), read


def _projected(attn: Attention, states: Tensor, project: str, norm: str) -> list[Tensor]:
    """Query, key and value [B, heads, tokens, width] of one stream."""
    made = [getattr(attn, project.format(name))(states) for name in "qkv"]
    made = [part.unflatten(2, (attn.heads, -1)).transpose(1, 2) for part in made]
    for place, name in enumerate("qk"):
        normed = getattr(attn, norm.format(name))
        made[place] = made[place] if normed is None else normed(made[place])
    return made

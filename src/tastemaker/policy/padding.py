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
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from torch import Tensor

from tastemaker.policy.attention import attend, projected


class WeighedPadding(JointAttnProcessor2_0):  # type: ignore[misc]
    """diffusers' joint attention, with the last token of the context counted `padding` times.

    Called without `padding` it is diffusers' own, so a pipeline around the network works as always; unless a kernel was
    chosen, which diffusers' own does not ask for.
    """

    _attention_backend: AttentionBackendName | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        padding: int = 1,
        **kwargs: Any,
    ) -> Any:
        backend = self._attention_backend
        if backend is None and (padding == 1 or encoder_hidden_states is None):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        parts = projected(attn, hidden_states, "to_{}", "norm_{}")
        if encoder_hidden_states is None:  # the second attention of SD3.5-medium reads no text
            mixed = attend(parts, None, backend).transpose(1, 2).flatten(2)
            return attn.to_out[1](attn.to_out[0](mixed))
        text = projected(attn, encoder_hidden_states, "add_{}_proj", "norm_added_{}")
        parts = [torch.cat(pair, dim=2) for pair in zip(parts, text, strict=True)]
        mixed = attend(parts, _weights(parts[1], padding), backend).transpose(1, 2).flatten(2)
        seen, read = mixed.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], dim=1)
        if not attn.context_pre_only:
            read = attn.to_add_out(read)
        return attn.to_out[1](attn.to_out[0](seen)), read


def _weights(key: Tensor, padding: int) -> Tensor | None:
    """What is added to the scores of keys [B, heads, tokens, width] so that the last counts `padding` times."""
    if padding == 1:
        return None
    extra = key.new_zeros(key.shape[2])
    extra[-1] = math.log(padding)
    return extra.view(1, 1, 1, -1)

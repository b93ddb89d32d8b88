"""Which kernel attention is computed by, in networks that do not ask diffusers for one themselves.

diffusers' `set_attention_backend` reaches the processors that dispatch. Those of UNets and of Stable Diffusion 3 call
torch's own attention whatever it says, so here they get processors that dispatch, with the same layers around.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor


def attend(rows: Sequence[Tensor], mask: Tensor | None, backend: AttentionBackendName | None) -> Tensor:
    """softmax(q k / sqrt(width) + mask) v of rows q, k, v [B, heads, tokens, width]; None leaves torch the choice."""
    query, key, value = rows if backend is None else (part.transpose(1, 2) for part in rows)
    if backend is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    mixed: Tensor = dispatch_attention_fn(query, key, value, attn_mask=mask, backend=backend)
    return mixed.transpose(1, 2)


def projected(attn: Attention, states: Tensor, project: str, norm: str) -> list[Tensor]:
    """Query, key and value [B, heads, tokens, width] of one stream of tokens."""
    made = [getattr(attn, project.format(name))(states) for name in "qkv"]
    return normed(attn, made, norm)


def normed(attn: Attention, made: list[Tensor], norm: str) -> list[Tensor]:
    """The same split into heads, query and key by their norms where the network has some."""
    made = [part.unflatten(2, (attn.heads, -1)).transpose(1, 2) for part in made]
    for place, name in enumerate("qk"):
        layer = getattr(attn, norm.format(name))
        made[place] = made[place] if layer is None else layer(made[place])
    return made


class Crossing(AttnProcessor2_0):  # type: ignore[misc]
    """Attention of a UNet's blocks, to itself or to a text, by the kernel that was chosen."""

    _attention_backend: AttentionBackendName | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if attention_mask is not None or _is_special(attn):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs)
        texts = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        rows = [attn.to_q(hidden_states), attn.to_k(texts), attn.to_v(texts)]
        mixed = attend(normed(attn, rows, "norm_{}"), None, self._attention_backend)
        out: Tensor = attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2)))
        return out


def _is_special(attn: Attention) -> bool:
    """Whether there is more around the attention than its four layers: then diffusers' own computes it."""
    norms = (attn.spatial_norm, attn.group_norm, attn.norm_cross)
    return any(norms) or attn.residual_connection or attn.rescale_output_factor != 1

"""One token that counts 256 times is 256 equal tokens."""

from __future__ import annotations

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from tastemaker.policy.families import PADDING
from tastemaker.policy.padding import WeighedPadding


def transformer(**settings: object) -> SD3Transformer2DModel:
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 3}
    sizes |= {"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 12, "pos_embed_max_size": 8}
    sizes |= {"caption_projection_dim": 16, "pooled_projection_dim": 6}
    return SD3Transformer2DModel(**sizes, **settings).double()


@pytest.mark.parametrize("settings", [{}, {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}], ids=["SD3", "SD3.5"])
def test_weighed_padding_is_the_pipelines_zeros(settings: dict[str, object]) -> None:
    network = transformer(**settings)
    x, text, pooled = (torch.randn(2, *shape, dtype=torch.float64) for shape in ((4, 8, 8), (5, 12), (6,)))
    zeros = torch.zeros(2, PADDING, 12, dtype=torch.float64)

    def call(context: Tensor, **attention: int) -> tuple[Tensor, list[Tensor]]:
        t = torch.tensor([100.0, 800.0], dtype=torch.float64)
        out = network(x, torch.cat([text, context], 1), pooled, t, joint_attention_kwargs=attention, return_dict=False)
        return out[0], list(torch.autograd.grad(out[0].square().sum(), list(network.parameters()), allow_unused=True))

    wanted, slopes = call(zeros)
    network.set_attn_processor(WeighedPadding())
    for got, found in (call(zeros), call(zeros[:, :1], padding=PADDING)):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
        for a, b in zip(found, slopes, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert (call(zeros[:, :1])[0] - wanted).abs().max() > 1e-2

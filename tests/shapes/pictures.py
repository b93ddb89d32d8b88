"""Pictures of the world that several tests read: as drawn, and after the autoencoder."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from tastemaker.shapes import assets, captions
from tastemaker.shapes.material import drawn


@cache
def autoencoder() -> Any:
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(assets.folder() / "vae", torch_dtype=torch.float32)
    return vae.eval().requires_grad_(False)


@cache
def fresh(count: int) -> tuple[Tensor, list[str]]:
    """Pictures `[N,3,64,64]` that no training drew, and their captions."""
    pixels, scenes = drawn(count, 12, progress=False)
    return pixels.permute(0, 3, 1, 2).float() / 255, [captions.caption(scene) for scene in scenes]


def round_trip(images: Tensor) -> Tensor:
    """The pictures as the autoencoder gives them back."""
    vae = autoencoder()
    with torch.no_grad():
        back = torch.cat([vae.decode(vae.encode(x * 2 - 1).latent_dist.mode()).sample for x in images.split(50)])
    return (back / 2 + 0.5).clamp(0, 1)

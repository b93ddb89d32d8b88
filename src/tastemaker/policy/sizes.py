"""Sides of latents and pictures: what a VAE makes of one another, and which ones a model can draw."""

from __future__ import annotations

from typing import Any

from tastemaker.policy.facts import own_sides
from tastemaker.policy.load import Request


def vae_factor(vae: Any) -> int:
    """Pixels of a picture's side to one of its latent's."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def sized(request: Request, network: Any, vae: Any, *, multiple: int, most: int | None = None) -> tuple[int, int, int]:
    """(C, h, w) of a latent of the size that was asked for.

    multiple: of a latent's side, by what the network divides it; most: the longest side it has positions for.
    Errors: ValueError that names the flag and the nearest sides.
    """
    factor = vae_factor(vae)
    sides, found = own_sides(network.config), []
    size, step = request.size, multiple * factor
    for flag, asked, side in zip(("height", "width"), (size.height, size.width), sides, strict=True):
        pixels = asked or size.resolution or side * factor
        limit = most * factor if most else None
        if pixels < step or pixels % step or (limit and pixels > limit):
            key = f"--{flag}" if asked else "--resolution"
            low = max(pixels // step, 1) * step
            near = [low, low + step] if not limit or low + step <= limit else [min(low, limit)]
            raise ValueError(
                f"{key} {pixels} does not fit --model {request.files.model}: its sides are multiples of {step} pixels"
                f"{f', {limit} at most' if limit else ''}. Nearest: {' or '.join(map(str, near))}. "
                "(--resolution sets both --height and --width.)"
            )
        found.append(pixels // factor)
    return vae.config.latent_channels, found[0], found[1]

"""Rewards that need nothing but the pixels, all with a gradient: brightness and smoothness."""

from collections.abc import Sequence

from torch import Tensor

LUMA = (0.299, 0.587, 0.114)


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Mean luma [B] of pictures [B,3,H,W] in [0,1]: 0 for black, 1 for white.

    mean over pixels of 0.299 R + 0.587 G + 0.114 B
    """
    pixels = images.float() if images.itemsize < 4 else images
    return pixels.mean((2, 3)) @ pixels.new_tensor(LUMA)


def smoothness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Minus the mean difference [B] of neighbouring pixels of pictures [B,3,H,W] in [0,1].

    - mean |x[i,j+1] - x[i,j]| - mean |x[i+1,j] - x[i,j]|, over pixels and colours: 0 for one even colour
    """
    pixels = images.float() if images.itemsize < 4 else images
    return -pixels.diff(dim=3).abs().mean((1, 2, 3)) - pixels.diff(dim=2).abs().mean((1, 2, 3))

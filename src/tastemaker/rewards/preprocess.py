"""From pictures to what an image encoder sees: resized, cropped, normalised, in torch and differentiable.

The shorter side is resized to the encoder's size and the middle of the longer one is cut out; what lies at the ends of
the longer side is not seen. A resize is two products with matrices, x' = A x B^T, whose rows hold the filter's weights:
any dtype, any device, the same bits at every call.

    torch     bicubic (a = -0.5), widened when a picture shrinks (antialiased), clamped to [0,1]; differentiable
    uint8     what PIL makes of the picture's 256 levels, to the bit: ddpo-pytorch's and TRL's; no gradient
    bilinear  two neighbours a side, whatever the factor, as torchvision 0.15's `Resize` of tensors: AlignProp's
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

MODES = ("torch", "uint8", "bilinear")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_BITS = 22  # after the point, of PIL's weights for pictures of 8 bits


def check(mode: str) -> None:
    """Errors: ValueError for a `preprocess` that is none of `MODES`."""
    if mode not in MODES:
        raise ValueError(f"preprocess is {mode!r}; it is one of {', '.join(MODES)}.")


def prepare(
    images: Tensor,
    size: int,
    mode: str = "torch",
    *,
    mean: tuple[float, ...] = CLIP_MEAN,
    std: tuple[float, ...] = CLIP_STD,
) -> Tensor:
    """Pictures [B,3,H,W] in [0,1] as [B,3,size,size] for an encoder, fp32 (fp64 stays); mean and std of the colours."""
    check(mode)
    pixels = images.float() if images.itemsize < 4 else images
    if mode == "uint8":
        pixels = (levels(pixels, size) / 255).to(pixels)
    else:
        pixels = resized(pixels, size, antialias=mode == "torch")
    shift, scale = (pixels.new_tensor(row)[:, None, None] for row in (mean, std))
    return (pixels - shift) / scale


def resized(pixels: Tensor, size: int, *, antialias: bool = True) -> Tensor:
    """[B,3,size,size] of [B,3,H,W]: bicubic and clamped to [0,1], or bilinear."""
    height, width = _sides(pixels, size)
    kind = "bicubic" if antialias else "bilinear"
    down, across = (
        matrix(side, new, kind, part).to(pixels)
        for side, new, part in ((pixels.shape[-2], height, size), (pixels.shape[-1], width, size))
    )
    found = down @ (pixels @ across.T)
    return found.clamp(0, 1) if antialias else found


def levels(pixels: Tensor, size: int) -> Tensor:
    """The levels 0 to 255 [B,3,size,size], fp64, that PIL's bicubic makes of a picture's own; on the CPU."""
    found = (255 * pixels.detach()).round().clamp(0, 255).cpu().double()
    height, width = _sides(pixels, size)
    if found.shape[-1] != width:
        found = _level(found @ _fixed(found.shape[-1], width).T)  # along the rows first, rounded before the columns
    if found.shape[-2] != height:
        found = _level(_fixed(found.shape[-2], height) @ found)
    top, left = (height - size) // 2, (width - size) // 2
    return found[..., top : top + size, left : left + size]


def _sides(pixels: Tensor, size: int) -> tuple[int, int]:
    """Height and width once the shorter is `size`."""
    height, width = pixels.shape[-2:]
    return (size, int(size * width / height)) if height <= width else (int(size * height / width), size)


def _level(sums: Tensor) -> Tensor:
    """PIL's rounding of a sum of levels times whole-numbered weights, which fp64 holds exactly."""
    return torch.floor((sums + (1 << (_BITS - 1))) / (1 << _BITS)).clamp(0, 255)


def _fixed(side: int, new: int) -> Tensor:
    weights = matrix(side, new, "bicubic") * (1 << _BITS)
    return torch.trunc(weights + torch.where(weights < 0, -0.5, 0.5))


@lru_cache(maxsize=64)
def matrix(side: int, new: int, kind: str, part: int | None = None) -> Tensor:
    """Weights [new, side] of the pixels in each new one, fp64; of the `part` rows in the middle alone.

    Every row sums to 1; at the edge the pixels that are not there get no weight.
    """
    step = side / new
    wide = max(step, 1.0) if kind == "bicubic" else 1.0
    reach = {"bicubic": 2.0, "bilinear": 1.0}[kind] * wide
    rows = torch.zeros(new, side, dtype=torch.float64)
    for place in range(new):
        centre = (place + 0.5) * step
        if kind == "bilinear":  # at the edge the last pixel stands for those beyond
            centre = min(max(centre, 0.5), side - 0.5)
        first, last = max(0, int(centre - reach + 0.5)), min(side, int(centre + reach + 0.5))
        away = [x - centre + 0.5 for x in range(first, last)]
        weights = [_cubic(x * (1 / wide)) if kind == "bicubic" else 1 - abs(x) for x in away]
        total = sum(weights)
        rows[place, first:last] = torch.tensor([weight / total for weight in weights], dtype=torch.float64)
    start = 0 if part is None else (new - part) // 2
    return rows[start : start + (new if part is None else part)]


def _cubic(x: float) -> float:
    """Keys' kernel with a = -1/2."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return -0.5 * (((x - 5) * x + 8) * x - 4) if x < 2 else 0.0

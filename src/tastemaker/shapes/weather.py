"""What befalls a picture without changing what it shows; the judge is trained to look past it."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def weathered(images: Tensor, g: torch.Generator) -> Tensor:
    """Pictures [B,3,64,64] in [0,1], each moved, mirrored, blurred, tinted, compressed and noised by its own measure.

    Every fourth is a JPEG file, about half are blurred and about half noisy; all end as 8-bit levels.
    """
    x = _tinted(_blurred(_moved(images, g), g), g)
    x[::4] = _compressed(x[::4], g)
    noise = torch.randn(x.shape, generator=g) * 0.06 * _some(len(x), g)
    return ((x + noise).clamp(0, 1) * 255).round() / 255


def _uniform(count: int, g: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=g)


def _some(count: int, g: torch.Generator) -> Tensor:
    """Strengths [B,1,1,1]: of about half of the rows 0, of the others anything up to 1."""
    return (_uniform(count, g) * (_uniform(count, g) < 0.5))[:, None, None, None]


def _moved(x: Tensor, g: torch.Generator) -> Tensor:
    """Up to 2 pixels to any side, 6 % larger or smaller, every other one mirrored."""
    count = len(x)
    mirror = torch.where(_uniform(count, g) < 0.5, -1.0, 1.0)
    scale = _uniform(count, g, 0.94, 1.06)
    grid = torch.zeros(count, 2, 3)
    grid[:, 0, 0], grid[:, 1, 1] = scale * mirror, scale
    grid[:, :, 2] = (torch.rand(count, 2, generator=g) - 0.5) / 8
    places = F.affine_grid(grid, list(x.shape), align_corners=False)
    return F.grid_sample(x, places, padding_mode="border", align_corners=False)


def _blurred(x: Tensor, g: torch.Generator) -> Tensor:
    """By a Gaussian of at most one pixel."""
    sigma = 0.05 + 0.95 * _some(len(x), g).flatten()
    weight = torch.exp(-(torch.arange(-2, 3.0) ** 2) / (2 * sigma[:, None] ** 2))
    weight = weight / weight.sum(1, keepdim=True)
    kernels = (weight[:, :, None] * weight[:, None, :])[:, None]
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate").transpose(0, 1)
    return F.conv2d(padded, kernels, groups=len(x)).transpose(0, 1)


def _tinted(x: Tensor, g: torch.Generator) -> Tensor:
    """Contrast to within 8 %, each channel's level to within 0.05."""
    contrast = _uniform(len(x), g, 0.92, 1.08)[:, None, None, None]
    level = 0.5 + (torch.rand(len(x), 3, 1, 1, generator=g) - 0.5) / 10
    return ((x - 0.5) * contrast + level).clamp(0, 1)


def _compressed(x: Tensor, g: torch.Generator) -> Tensor:
    """As JPEG files of quality 40 to 94."""
    made = []
    qualities = torch.randint(40, 95, (len(x),), generator=g).tolist()
    for pixels, quality in zip((x.permute(0, 2, 3, 1) * 255).round().byte().numpy(), qualities, strict=True):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        made.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 255

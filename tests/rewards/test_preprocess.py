"""What an encoder sees, against PIL's, torch's and transformers' own ways of resizing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tastemaker.rewards import preprocess
from tastemaker.rewards.preprocess import CLIP_MEAN, CLIP_STD, matrix, prepare

SIZES = [(64, 64), (512, 512), (96, 40), (37, 53), (224, 224), (300, 224), (225, 231), (13, 7)]


def pictures(height: int, width: int, count: int = 2) -> Tensor:
    """Noise with black and white in it, so that a cubic filter overshoots."""
    noise = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height + width))
    return (2 * noise - 0.5).clamp(0, 1)


def plain(pixels: Tensor) -> Tensor:
    """Back to [0,1]."""
    return pixels * pixels.new_tensor(CLIP_STD)[:, None, None] + pixels.new_tensor(CLIP_MEAN)[:, None, None]


def by_pil(picture: Tensor, size: int) -> Tensor:
    """One picture [3,H,W] in levels, resized as ddpo-pytorch and TRL do it."""
    array = (255 * picture).round().byte().permute(1, 2, 0).numpy()
    height, width = array.shape[:2]
    short = min(height, width)
    sides = tuple(size if side == short else int(size * side / short) for side in (width, height))
    found = Image.fromarray(array).resize(sides, Image.Resampling.BICUBIC)
    left, top = (sides[0] - size) // 2, (sides[1] - size) // 2
    return torch.from_numpy(np.array(found.crop((left, top, left + size, top + size)))).permute(2, 0, 1)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_uint8_is_pils_bicubic_to_the_bit(height: int, width: int) -> None:
    for picture in pictures(height, width):
        assert torch.equal(preprocess.levels(picture[None], 56)[0], by_pil(picture, 56).double())


@pytest.mark.parametrize(("height", "width"), [(64, 64), (80, 61), (33, 40)])
def test_uint8_is_the_processor_of_transformers(height: int, width: int) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size = 28
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    images = pictures(height, width)
    arrays = [Image.fromarray((255 * one).round().byte().permute(1, 2, 0).numpy()) for one in images]
    theirs = processor(images=arrays, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(prepare(images, size, "uint8"), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_torch_is_the_antialiased_bicubic_of_torch(height: int, width: int) -> None:
    images, size = pictures(height, width).double(), 56
    short = min(height, width)
    sides = [size if side == short else int(size * side / short) for side in (height, width)]
    theirs = F.interpolate(images, sides, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = ((side - size) // 2 for side in sides)
    ours = plain(prepare(images, size))
    torch.testing.assert_close(ours, theirs[..., top : top + size, left : left + size], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_bilinear_is_that_of_torch_without_antialiasing(height: int, width: int) -> None:
    images, size = pictures(height, width).double(), 56
    short = min(height, width)
    sides = [size if side == short else int(size * side / short) for side in (height, width)]
    theirs = F.interpolate(images, sides, mode="bilinear")
    top, left = ((side - size) // 2 for side in sides)
    ours = plain(prepare(images, size, "bilinear"))
    torch.testing.assert_close(ours, theirs[..., top : top + size, left : left + size], atol=1e-6, rtol=0)


def test_a_picture_of_the_right_size_is_only_normalised() -> None:
    images = pictures(56, 56)
    shift, scale = (torch.tensor(row)[:, None, None] for row in (CLIP_MEAN, CLIP_STD))
    for mode in ("torch", "bilinear"):
        torch.testing.assert_close(prepare(images, 56, mode), (images - shift) / scale, atol=1e-6, rtol=0)
    torch.testing.assert_close(plain(prepare(images, 56, "uint8")), (255 * images).round() / 255, atol=1e-6, rtol=0)


def test_modes_see_nearly_the_same_of_a_smooth_picture() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 3, 128), torch.linspace(0, 2, 128), indexing="ij")
    images = (0.5 + 0.3 * torch.stack([y.sin(), x.cos(), (x * y).sin()]))[None]
    seen = [plain(prepare(images, 56, mode)) for mode in preprocess.MODES]
    assert float((seen[0] - seen[1]).abs().max()) < 1.5 / 255 and float((seen[0] - seen[2]).abs().max()) < 2 / 255


def test_only_the_middle_of_a_long_picture_is_seen() -> None:
    images = torch.zeros(1, 3, 32, 96)
    images[..., :20] = 1
    for mode in preprocess.MODES:
        assert float(plain(prepare(images, 32, mode)).abs().max()) < 1e-6


def test_rows_sum_to_one() -> None:
    for kind in ("bicubic", "bilinear"):
        for side, new in ((64, 224), (512, 224), (7, 7), (300, 56)):
            torch.testing.assert_close(matrix(side, new, kind).sum(1), torch.ones(new, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["torch", "bilinear"])
def test_the_gradient_is_the_slope(mode: str) -> None:
    images = (0.8 * pictures(20, 31).double() + 0.1).requires_grad_()
    weights = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (slope,) = torch.autograd.grad((prepare(images, 12, mode) * weights).sum(), images)
    way = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        ends = [(prepare(images + sign * 1e-6 * way, 12, mode) * weights).sum() for sign in (1, -1)]
    assert float((ends[0] - ends[1]) / 2e-6) == pytest.approx(float((slope * way).sum()), rel=1e-5)


def test_uint8_has_no_gradient_and_a_wrong_mode_is_named() -> None:
    assert not prepare(pictures(20, 20).requires_grad_(), 12, "uint8").requires_grad
    with pytest.raises(ValueError, match=r"^preprocess is 'pil'; it is one of torch, uint8, bilinear\.$"):
        prepare(pictures(20, 20), 12, "pil")


def test_halves_are_read_as_fp32() -> None:
    images = pictures(40, 40).half()
    for mode in preprocess.MODES:
        found = prepare(images, 24, mode)
        assert found.dtype is torch.float32 and torch.equal(found, prepare(images.float(), 24, mode))

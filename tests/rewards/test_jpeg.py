import io

import numpy as np
import pytest
import torch
from PIL import Image

from tastemaker import rewards
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards.reward import check


def pictures(n: int, size: int = 32) -> torch.Tensor:
    """Pictures of different smoothness, with values a little outside [0,1]."""
    noise = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))
    return torch.stack([torch.nn.functional.avg_pool2d(x, 2 * k + 1, 1, k) for k, x in enumerate(noise)]) + 0.5


@pytest.mark.parametrize("n", [1, 2, 9])
def test_the_number_is_that_of_plain_pil(n: int) -> None:
    images = pictures(n)
    expected = []
    for image in images:
        levels = np.clip(np.round(image.numpy() * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(levels).save(file := io.BytesIO(), format="JPEG", quality=95)
        expected.append(len(file.getvalue()) / 1000)
    small, large = rewards.named("jpeg_compressibility"), rewards.named("jpeg_incompressibility")
    names = ["a cat"] * n
    assert torch.equal(large(images, names).value, torch.tensor(expected))
    assert torch.equal(small(images, names).value, -torch.tensor(expected))
    assert n == 1 or len(set(expected)) > 1


def test_other_layouts_and_dtypes_give_the_same_number() -> None:
    levels = torch.randint(0, 256, (3, 3, 16, 24), generator=torch.Generator().manual_seed(0)) / 255
    judge = rewards.named("jpeg_incompressibility")
    expected = judge(levels, ["a"] * 3).value
    for images in (levels.double(), levels.half(), levels.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(judge(images, ["a"] * 3).value, expected)
    half = pictures(4).clamp(0, 1).bfloat16()
    assert torch.equal(judge(half, ["a"] * 4).value, judge(half.float(), ["a"] * 4).value)
    assert judge(levels.requires_grad_(), ["a"] * 3).value.requires_grad is False


def test_a_picture_of_nan_has_no_score() -> None:
    images = pictures(3)
    images[1, 0, 0, 0] = torch.nan
    value = rewards.named("jpeg_compressibility")(images, ["a"] * 3).value
    assert value.isnan().tolist() == [False, True, False]


def test_keeps_the_contract() -> None:
    for name in ("jpeg_compressibility", "jpeg_incompressibility"):
        check(rewards.named(name), pictures(5).clamp(0, 1), Prompts.of(["a"] * 5))

"""The estimate of a JPEG file's size beside the files that PIL writes, and what its gradient is good for."""

from __future__ import annotations

import io
import math

import pytest
import torch
from PIL import Image
from torch import Tensor

from tastemaker.evaluation.evaluate import Trial, draw_pictures, trial_prompts
from tastemaker.policy.load import load
from tastemaker.policy.policy import Policy
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.prompts import Prompts
from tastemaker.prompts.sources import source
from tastemaker.rewards import jpeg, jpeg_proxy, named
from tastemaker.rewards.reward import check
from tastemaker.shapes.material import drawn


def pictures_of(count: int, seed: int) -> Tensor:
    """Drawn pictures [N,3,64,64] in [0,1]."""
    return drawn(count, seed, progress=False)[0].permute(0, 3, 1, 2).float() / 255


def real(images: Tensor) -> Tensor:
    return jpeg.incompressibility(images, [""] * len(images))


def estimated(images: Tensor) -> Tensor:
    return -jpeg_proxy.compressibility(images, [""] * len(images))


def alike(images: Tensor) -> tuple[float, float]:
    """Pearson's correlation with the real sizes, and the mean error in kB."""
    sizes, guesses = real(images).double(), estimated(images).double()
    return float(torch.corrcoef(torch.stack([sizes, guesses]))[0, 1]), float((sizes - guesses).abs().mean())


def within(images: Tensor, groups: tuple[int, ...]) -> tuple[list[float], float]:
    """The correlation inside of every group, and that of all distances from the group's mean."""
    rows = torch.stack([real(images).double(), estimated(images).double()])
    parts = [rows[:, [row for row, one in enumerate(groups) if one == group]] for group in dict.fromkeys(groups)]
    pooled = torch.cat([part - part.mean(1, keepdim=True) for part in parts], 1)
    return [float(torch.corrcoef(part)[0, 1]) for part in parts], float(torch.corrcoef(pooled)[0, 1])


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Drawn ones, others than those of the fit."""
    return pictures_of(160, 11)


@pytest.fixture(scope="module")
def shapes() -> Policy:
    return load("shapes", lora=None)


def sampled(policy: Policy, prompts: int, images: int) -> tuple[Tensor, tuple[int, ...]]:
    """Samples of the base model as evaluations draw them, and their prompts."""
    asked = trial_prompts(source("shapes_heldout"), prompts, images, 0)
    trial = Trial(asked, 20, 3.0, DDIM(eta=0.0), 0, 32)
    parts = [draw_pictures(policy, trial, Key(0, "evaluation"), part) for part in asked.split(32)]
    return torch.cat(parts), asked.groups


# ---- the same numbers


def test_the_tables_are_pils() -> None:
    Image.new("RGB", (16, 16)).save(file := io.BytesIO(), format="JPEG", quality=jpeg.QUALITY)
    tables = Image.open(file).quantization  # type: ignore[attr-defined]
    assert (tuple(tables[0]), tuple(tables[1])) == (jpeg_proxy.LUMA, jpeg_proxy.CHROMA)
    start_of_scan = file.getvalue().index(b"\xff\xda")
    assert start_of_scan + 2 + int.from_bytes(file.getvalue()[start_of_scan + 2 : start_of_scan + 4]) == 623
    assert jpeg_proxy.HEADER == 623


def test_coefficients_are_those_of_the_dct_over_the_steps() -> None:
    """A picture of one basis function, one half period down and two across, has one coefficient."""
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    wave = 80 * torch.cos((2 * y + 1) * math.pi / 16) * torch.cos((2 * x + 1) * 2 * math.pi / 16)
    planes = torch.stack([torch.zeros(8, 16), torch.cat([torch.ones(8, 8), wave], 1)])[None]
    q = jpeg_proxy._blocks(planes, jpeg_proxy.LUMA)
    assert q.shape == (1, 2, 1, 2, 64) and not q[0, 0].any()
    assert q[0, 1, 0, 0, 0] == pytest.approx(8 / jpeg_proxy.LUMA[0])
    assert q[0, 1, 0, 1, 8 + 2] == pytest.approx(80 * 16 / 4 / jpeg_proxy.LUMA[8 + 2])
    assert float(q.abs().sum()) == pytest.approx(float(q[0, 1, 0, 0, 0] + q[0, 1, 0, 1, 10]), rel=1e-4)


def test_bits_of_a_number_are_its_category() -> None:
    numbers = torch.tensor([0.0, 0.25, 1.0, 2.0, 4.0, 64.0, -64.0, 2000.0])
    bits = jpeg_proxy._bits(numbers[:, None])
    assert bits.tolist() == pytest.approx([0, 0.022, 1.022, 2.001, 3, 7, 7, math.log2(4000)], abs=1e-3)
    assert float(jpeg_proxy._bits(numbers[None])) == pytest.approx(float(bits.sum()))


def test_dc_counts_by_its_steps() -> None:
    dc = torch.tensor([[4.0, 4.0, 8.0], [36.0, 36.0, 36.0]])[None, None]
    assert float(jpeg_proxy._steps(dc)) == pytest.approx(3 + 6, abs=1e-3)


def test_drawn_pictures(pictures: Tensor) -> None:
    correlation, error = alike(pictures)
    assert correlation > 0.998 and error < 0.05


def test_copies_of_the_autoencoder(pictures: Tensor, shapes: Policy) -> None:
    with torch.no_grad():
        copies = shapes.decode(shapes.encode_images(pictures[:24]))
    correlation, error = alike(copies)
    assert correlation > 0.996 and error < 0.06


def test_samples_of_one_prompt(shapes: Policy) -> None:
    images, groups = sampled(shapes, 1, 10)
    assert within(images, groups)[1] > 0.98 and alike(images)[1] < 0.08


@pytest.mark.slow
def test_many_samples_of_eight_prompts(shapes: Policy) -> None:
    images, groups = sampled(shapes, 8, 16)
    each, pooled = within(images, groups)
    assert min(each) > 0.99 and pooled > 0.998 and alike(images)[1] < 0.05


@pytest.mark.slow
def test_the_prices_are_the_fit(shapes: Policy) -> None:
    images = pictures_of(600, 1)
    with torch.no_grad():
        copies = torch.cat([shapes.decode(shapes.encode_images(part)) for part in images[:300].split(50)])
    both = torch.cat([images, copies])
    bits = 8000 * real(both).double() - 8 * jpeg_proxy.HEADER
    fit = torch.linalg.lstsq(jpeg_proxy.counts(both).double(), bits[:, None]).solution[:, 0]
    torch.testing.assert_close(fit, torch.tensor(jpeg_proxy.BITS, dtype=torch.float64), atol=0.006, rtol=1e-3)


@pytest.mark.parametrize("height, width", [(8, 8), (16, 8), (8, 16), (20, 13), (33, 47), (56, 64)])
def test_sides_that_are_no_whole_blocks(pictures: Tensor, height: int, width: int) -> None:
    correlation, error = alike(pictures[:, :, :height, :width])
    assert correlation > 0.99 and error < 0.05


def test_a_larger_picture() -> None:
    """Of 256 pixels and rough, unlike all that the prices were fitted to."""
    noise = torch.randn(6, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    blurs = [torch.nn.functional.avg_pool2d(x, 2 * k + 1, 1, k) for k, x in enumerate(noise)]
    images = torch.stack([(0.5 + (0.1 + 0.1 * k) * x).clamp(0, 1) for k, x in enumerate(blurs)])
    sizes, guesses = real(images), estimated(images)
    assert float(((guesses - sizes) / sizes).abs().max()) < 0.12
    assert sizes.argsort().tolist() == guesses.argsort().tolist()


def test_other_dtypes_and_values_outside_give_the_same_number(pictures: Tensor) -> None:
    images = pictures[:4].half()
    expected = estimated(images.float())
    assert torch.equal(estimated(images), expected) and estimated(images).dtype is torch.float32
    torch.testing.assert_close(estimated(images.double()), expected.double(), rtol=1e-5, atol=0)
    assert torch.equal(estimated(2 * images - 0.5), estimated((2 * images - 0.5).clamp(0, 1)))


def test_a_picture_of_nan_has_no_score(pictures: Tensor) -> None:
    images = pictures[:3].clone()
    images[1, 0, 5, 5] = torch.nan
    assert estimated(images).isnan().tolist() == [False, True, False]


def test_keeps_the_contract(pictures: Tensor) -> None:
    check(named("jpeg_proxy"), pictures[:5], Prompts.of(["a"] * 5))


# ---- its gradient


def test_the_gradient_is_the_slope(pictures: Tensor) -> None:
    images = (0.9 * pictures[:2, :, 20:37, 10:20].double() + 0.05).requires_grad_()
    (slope,) = torch.autograd.grad(estimated(images).sum(), images)
    way = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        ends = [estimated(images + sign * 1e-7 * way).sum() for sign in (1, -1)]
    assert float((ends[0] - ends[1]) / 2e-7) == pytest.approx(float((slope * way).sum()), rel=1e-5)


def climbed(policy: Policy | None, x: Tensor, length: float, steps: int) -> Tensor:
    """The pictures after steps along the gradient, in pixels or in a policy's latents."""
    for _ in range(steps):
        x = x.detach().requires_grad_()
        score = named("jpeg_proxy")(policy.decode(x) if policy else x, ["a"] * len(x)).value
        (slope,) = torch.autograd.grad(score.sum(), x)
        x = x + length * torch.nn.functional.normalize(slope.flatten(1)).view_as(x)
        x = x if policy else x.clamp(0, 1)
    with torch.no_grad():
        return policy.decode(x) if policy else x.detach()


def test_a_few_steps_in_pixels_make_the_file_smaller(pictures: Tensor) -> None:
    before = real(pictures[:24])
    images = climbed(None, pictures[:24], 0.25, 10)
    after = real(images)
    assert (after < before).all() and float((after / before).mean()) < 0.94
    assert float((images - pictures[:24]).abs().mean()) < 0.015  # four levels of 255: they are still the same pictures


def test_a_few_steps_in_latents_make_the_file_smaller(pictures: Tensor, shapes: Policy) -> None:
    x0 = shapes.encode_images(pictures[:6])
    with torch.no_grad():
        before = real(shapes.decode(x0))
    images = climbed(shapes, x0, 0.05 * float(x0.flatten(1).norm(dim=1).mean()), 6)
    after = real(images)
    assert (after < before).all() and float((after / before).mean()) < 0.94
    assert float((estimated(images) - after).abs().mean()) < 0.08  # the estimate is not fooled on the way

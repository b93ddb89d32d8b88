"""The judge reads what was drawn, its score is what its page says, and its gradient leads somewhere everywhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from house.syntax import ROOT
from shapes.pictures import autoencoder, fresh, round_trip
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import named
from tastemaker.rewards.reward import check
from tastemaker.shapes import assets
from tastemaker.shapes.captions import read
from tastemaker.shapes.drawing import SIZE
from tastemaker.shapes.gates import from_sheet
from tastemaker.shapes.judge import ANSWERS, Judge, places

JUDGE = Judge()


@torch.no_grad()
def seen(images: Tensor) -> Tensor:
    """The judge's answers, as places in its tables `[B,3]`."""
    return torch.stack([logits.argmax(1) for logits in JUDGE.read(images).values()], 1)


def right(images: Tensor, prompts: list[str]) -> list[float]:
    """Shares of pictures read as their captions say: count, colour, shape, in per cent."""
    wanted = torch.tensor([places(scene) for scene in map(read, prompts) if scene])
    return (100 * (seen(images) == wanted).float().mean(0)).tolist()


def test_pictures_that_it_never_saw_are_read_as_drawn() -> None:
    assert min(right(*fresh(400))) >= 99


def test_after_the_autoencoder_they_are_still_read() -> None:
    images, prompts = fresh(400)
    assert min(right(round_trip(images[:60]), prompts[:60])) >= 98


def test_samples_of_the_base_are_read_as_a_person_reads_them() -> None:
    labels = json.loads((ROOT / "docs" / "oracle" / "labels.json").read_text())
    found = seen(from_sheet(ROOT / "docs" / "oracle" / "sheet.png", len(labels)))
    for part, (name, values) in enumerate(ANSWERS.items()):
        texts = [str(value) for value in values]
        pairs = [(int(found[k, part]), label.split()[part]) for k, label in enumerate(labels)]
        hits = [texts[place] == word for place, word in pairs if word in texts]
        assert len(hits) > 150 and sum(hits) >= 0.95 * len(hits), name


def test_its_file_is_small_and_half_precision() -> None:
    assert assets.judge().stat().st_size <= 2_000_000
    assert {weight.dtype for weight in load_file(assets.judge()).values()} == {torch.float16}


# ---- the score


def test_the_score_is_the_mean_log_probability_of_what_the_caption_says() -> None:
    images, prompts = (some[:5] for some in fresh(400))
    prompts = prompts[1:] + prompts[:1]  # another picture's
    rows = [places(scene) for scene in map(read, prompts) if scene]
    logs = {
        part: torch.stack([logits[b].log_softmax(0)[row[k]] for b, row in enumerate(rows)])
        for k, (part, logits) in enumerate(JUDGE.read(images).items())
    }
    found = JUDGE(images, prompts)
    torch.testing.assert_close(found.value, (logs["count"] + logs["colour"] + logs["shape"]) / 3)
    assert found.value.max() < 0 and found.notes == (None,) * 5
    for part, log in logs.items():
        torch.testing.assert_close(found.parts[part], log.exp())
        torch.testing.assert_close(Judge(of=part)(images, prompts).value, log)
    torch.testing.assert_close(Judge(of="shape, count")(images, prompts).value, (logs["shape"] + logs["count"]) / 2)


def test_the_right_caption_scores_above_every_other_one() -> None:
    images, prompts = fresh(400)
    for caption in ("a red circle", "four green squares", "two purple hearts"):
        others = [text for text in prompts if text != caption]
        own, other = JUDGE(images, prompts).value, JUDGE(images[: len(others)], [caption] * len(others)).value
        assert own.quantile(0.01) > other.quantile(0.5)
    assert (own > -0.7).float().mean() > 0.95


def test_a_prompt_of_another_world_has_no_score_and_no_gradient() -> None:
    images = fresh(400)[0][:2].clone().requires_grad_()
    found = JUDGE(images, ["a photo of a cat", "a red star"])
    assert found.value.isnan().tolist() == [True, False] and found.parts["count"].isnan().tolist() == [True, False]
    assert found.notes == ("not a caption of Shapes: a photo of a cat", None)
    found.value[1].backward()
    assert images.grad is not None and images.grad.isfinite().all()
    assert images.grad.abs().amax((1, 2, 3)).gt(0).tolist() == [False, True]


@pytest.mark.parametrize("of", ["", "counts", "count,,shape", "count,count", "colour,background"])
def test_parts_that_it_does_not_read_are_refused(of: str) -> None:
    with pytest.raises(ValueError, match="^of is .*it is one or several of count, colour, shape"):
        Judge(of=of)


def test_it_keeps_the_contract_of_rewards() -> None:
    images, prompts = fresh(400)
    check(JUDGE, images[:4], Prompts.of(prompts[:4]))
    reward = named(Judge)
    assert (reward.name, reward.device) == ("shapes_judge", torch.device("cpu"))
    assert reward(images[:3], prompts[:3]).value.shape == (3,)
    assert reward(images[:0], []).value.shape == (0,)
    half = reward(images[:3].half(), prompts[:3]).value
    assert half.dtype is torch.float32
    torch.testing.assert_close(half, reward(images[:3], prompts[:3]).value, atol=0.05, rtol=0)


def test_the_size_of_the_picture_does_not_matter() -> None:
    images, prompts = (some[:30] for some in fresh(400))
    large = nn.functional.interpolate(images, (200, 200), mode="bicubic").clamp(0, 1)
    assert min(right(large, prompts)) >= 96


def test_its_dropout_is_off_until_it_is_switched_on() -> None:
    judge = Judge()
    images, prompts = (some[:4] for some in fresh(400))
    layers = [layer for layer in judge.network.modules() if isinstance(layer, nn.Dropout)]
    quiet = judge(images, prompts).value
    assert layers and torch.equal(quiet, judge(images, prompts).value)
    for layer in layers:
        layer.train()
    assert not torch.equal(quiet, judge(images, prompts).value)
    assert torch.equal(quiet, JUDGE(images, prompts).value)  # another object has a network of its own


# ---- its gradient

STRANGE = {
    "black": torch.zeros(2, 3, SIZE, SIZE),
    "white": torch.ones(2, 3, SIZE, SIZE),
    "grey": torch.full((2, 3, SIZE, SIZE), 0.5),
    "noise": torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)),
    "1x1": torch.rand(2, 3, 1, 1, generator=torch.Generator().manual_seed(1)),
    "not square": torch.rand(2, 3, 100, 40, generator=torch.Generator().manual_seed(2)),
}


@pytest.mark.parametrize("name", STRANGE)
def test_the_gradient_is_finite_and_not_zero_everywhere(name: str) -> None:
    images = STRANGE[name].clone().requires_grad_()
    value = JUDGE(images, ["a red circle", "four green squares"]).value
    value.sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and value.isfinite().all()
    assert images.grad.abs().amax((1, 2, 3)).min() > 0


def test_nothing_of_the_network_learns() -> None:
    images = STRANGE["noise"].clone().requires_grad_()
    JUDGE(images, ["a red circle"] * 2).value.sum().backward()
    assert all(not p.requires_grad and p.grad is None for p in JUDGE.network.parameters())


def test_latents_climb_from_a_drawn_picture_to_another_caption() -> None:
    """What algorithms do that differentiate the reward through the decoder."""
    vae: Any = autoencoder()
    images, wrong = fresh(400)[0][:4], ["a blue heart", "three red stars", "two pink circles", "four cyan squares"]
    z = vae.encode(images * 2 - 1).latent_dist.mode().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.06)
    scores = []
    for _ in range(7):
        value = JUDGE((vae.decode(z).sample / 2 + 0.5).clamp(0, 1), wrong).value
        scores.append(value.detach())
        optimizer.zero_grad()
        (-value.sum()).backward()
        assert z.grad is not None and z.grad.isfinite().all()
        optimizer.step()
    assert (scores[-1] > scores[0] + 0.3).all(), (scores[0], scores[-1])

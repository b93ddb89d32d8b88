"""The oracle reads what was drawn, also after an autoencoder, JPEG and a blur, and never raises."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from house.syntax import ROOT
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards.reward import check
from tastemaker.shapes import assets, oracle
from tastemaker.shapes.captions import heldout, read
from tastemaker.shapes.drawing import BACKGROUNDS, COLOURS, SHAPES, SIZE, Scene, draw
from tastemaker.shapes.gates import agreement, from_sheet, labelled_gate, roughened
from tastemaker.shapes.material import drawn

PICTURES = 400


@cache
def world() -> tuple[Tensor, list[Scene]]:
    pixels, scenes = drawn(PICTURES, 11, progress=False)
    return pixels.permute(0, 3, 1, 2).float() / 255, scenes


def wrong(images: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Pictures in a hundred that are not read as drawn; being unsure is wrong."""
    found = agreement(images, scenes)
    return {key: round(100 - found[key], 2) for key in ("count", "colour", "shape", "background")}


def test_drawn_pictures_are_read_as_drawn() -> None:
    assert max(wrong(*world()).values()) <= 0.5


def test_confidence_is_a_share_and_high_where_it_is_right() -> None:
    images, scenes = world()
    readings = oracle.read(images[:100])
    answers = [answer for r in readings for answer in (r.colour, r.shape, r.background)]
    assert all(0 <= answer.confidence <= 1 for answer in answers)
    assert np.mean([r.shape.confidence for r in readings]) > 0.4


@torch.no_grad()
def test_after_the_autoencoder_jpeg_and_blur_they_are_still_read() -> None:
    from diffusers import AutoencoderKL

    images, scenes = world()
    vae: Any = AutoencoderKL.from_pretrained(assets.folder() / "vae", torch_dtype=torch.float32).eval()
    some = images[:150]
    back = torch.cat([vae.decode(vae.encode(x * 2 - 1).latent_dist.mode()).sample for x in some.split(16)])
    assert max(wrong(roughened((back / 2 + 0.5).clamp(0, 1)), scenes[:150]).values()) <= 2.0


def test_samples_of_the_base_are_read_as_a_person_reads_them() -> None:
    """200 samples, labelled by eye; the oracle's "unsure" counts as disagreement."""
    labels = json.loads((ROOT / "docs" / "oracle" / "labels.json").read_text())
    found = labelled_gate(from_sheet(ROOT / "docs" / "oracle" / "sheet.png", len(labels)), labels)
    assert min(found[name] for name in ("count", "colour", "shape")) >= 95 and found["unsure"] <= 5, found


STRANGE = {
    "noise": torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)),
    "black": torch.zeros(2, 3, SIZE, SIZE),
    "white": torch.ones(2, 3, SIZE, SIZE),
    "one colour": torch.tensor([1.0, 0.1, 0.1])[None, :, None, None].expand(1, 3, SIZE, SIZE),
    "nan": torch.full((1, 3, SIZE, SIZE), torch.nan),
    "half nan": torch.where(torch.arange(SIZE) < 30, torch.nan, 0.7).expand(1, 3, SIZE, SIZE),
    "infinite": torch.full((1, 3, SIZE, SIZE), -torch.inf),
    "far out of range": 1e6 * torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)),
    "1x1": torch.rand(2, 3, 1, 1, generator=torch.Generator().manual_seed(2)),
    "512x512": torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(3)),
    "512x512 of one colour": torch.tensor([0.1, 0.1, 1.0])[None, :, None, None].expand(1, 3, 512, 512),
    "not square": torch.rand(1, 3, 40, 100, generator=torch.Generator().manual_seed(4)),
    "half precision": torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5)).half(),
    "one red pixel": torch.zeros(1, 3, SIZE, SIZE).index_put(
        tuple(torch.tensor([k]) for k in (0, 0, 5, 5)), torch.ones(1)
    ),
    "a thin line": torch.zeros(1, 3, SIZE, SIZE).index_fill(2, torch.tensor([9]), 1.0)
    * torch.tensor([1.0, 0, 0]).view(3, 1, 1),
    "none": torch.zeros(0, 3, SIZE, SIZE),
}


@pytest.mark.parametrize("name", STRANGE)
def test_nothing_raises(name: str) -> None:
    images = STRANGE[name]
    before = images.clone()
    readings = oracle.read(images)
    assert len(readings) == len(images) and torch.equal(images.nan_to_num(), before.nan_to_num())
    for found in readings:
        assert found.count >= 0 and found.colour.value in (*COLOURS, oracle.UNSURE)
        assert found.shape.value in (*SHAPES, oracle.UNSURE) and found.background.value in (*BACKGROUNDS, oracle.UNSURE)
        assert all(0 <= a.confidence <= 1 for a in (found.colour, found.shape, found.background))
    scores = oracle.alignment(images, ["a red circle"] * len(images)).value
    assert scores.shape == (len(images),) and ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("name", ["black", "white", "nan", "infinite"])
def test_an_empty_picture_holds_nothing(name: str) -> None:
    for found in oracle.read(STRANGE[name]):
        assert found.count == 0 and found.colour.value == found.shape.value == oracle.UNSURE
        assert found.background.value == "plain"


def test_size_of_the_picture_does_not_matter() -> None:
    images, scenes = world()
    large = torch.nn.functional.interpolate(images[:30], (512, 512), mode="bicubic").clamp(0, 1)
    assert max(wrong(large, scenes[:30]).values()) == 0


def pictures(*scenes: tuple[int, str, str]) -> Tensor:
    made = [draw(Scene(*scene, "plain"), random.Random(k)) for k, scene in enumerate(scenes)]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize(
    ("text", "score", "parts"),
    [
        ("two red stars", 1.0, (1, 1, 1)),
        ("three red stars", 0.75, (0, 1, 1)),  # one beside it: half of the count's share
        ("a red star", 0.75, (0, 1, 1)),
        ("four red stars", 0.5, (0, 1, 1)),
        ("two blue stars", 0.75, (1, 0, 1)),
        ("two red hearts", 0.75, (1, 1, 0)),
        ("four blue hearts", 0.0, (0, 0, 0)),
    ],
)
def test_alignment_is_half_for_the_count_and_a_quarter_each_for_colour_and_shape(
    text: str, score: float, parts: tuple[int, int, int]
) -> None:
    found = oracle.alignment(pictures((2, "red", "star")), [text])
    assert found.value.tolist() == [score]
    assert {name: value.tolist() for name, value in found.parts.items()} == {
        name: [part] for name, part in zip(("count", "colour", "shape"), parts, strict=True)
    }


def test_alignment_of_held_out_captions_is_one_on_its_own_picture() -> None:
    asked = [(text, read(text)) for text in heldout()]
    scores = oracle.alignment(pictures(*(scene for _, scene in asked if scene)), [text for text, _ in asked]).value
    assert len(scores) == 40 and scores.tolist() == [1.0] * 40


def test_alignment_has_no_opinion_on_other_prompts_or_empty_pictures() -> None:
    images = torch.cat([pictures((1, "red", "star")), torch.zeros(1, 3, SIZE, SIZE)])
    found = oracle.alignment(images, ["a photo of a cat", "a red star"])
    for numbers in (found.value, *found.parts.values()):
        assert numbers.isnan().tolist() == [True, False] and numbers[1] == 0


def test_alignment_keeps_the_contract_of_rewards() -> None:
    scenes = [(1, "red", "star"), (2, "blue", "heart"), (3, "green", "circle"), (4, "pink", "square")]
    check(
        oracle.alignment,
        pictures(*scenes),
        Prompts.of(["a red star", "a blue heart", "a red star", "two stars"][:3] + ["a pink square"]),
    )

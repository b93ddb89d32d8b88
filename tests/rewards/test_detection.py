"""The reward `counting`: a scripted detector for what it makes of boxes, tiny real ones for how it asks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny_detectors
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import detection, named
from tastemaker.rewards.composition import Found
from tastemaker.rewards.detectors import GroundingDino, Owl, load
from tastemaker.rewards.preprocess import CLIP_MEAN, CLIP_STD
from tastemaker.rewards.reward import check, score

TWO_CATS = {"include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}]}
RED_CAT = {"include": [{"class": "cat", "color": "red"}]}
LEFT = {"include": [{"class": "cat"}, {"class": "dog", "position": ["left of", 0]}]}
QUESTIONS = {"questions": ["How many dogs are there in this image?", "What animal is in this image?"]}


@dataclass
class Scripted:
    """Sees as many cats in a picture as its first pixel says, in tenths, side by side, all of them red; no dogs."""

    network: nn.Module = field(default_factory=lambda: nn.Linear(1, 1))
    calls: list[int] = field(default_factory=list)

    def __call__(self, images: Tensor, texts: Sequence[Sequence[str]]) -> list[Found]:
        self.calls.append(len(images))
        return [self.look(round(10 * float(one[0, 0, 0])), row) for one, row in zip(images, texts, strict=True)]

    def look(self, cats: int, texts: Sequence[str]) -> Found:
        left = 20.0 * torch.arange(cats)
        boxes = torch.stack([left, left * 0, left + 10, left * 0 + 10], 1)
        return Found(
            boxes, torch.tensor([0.8 if text in ("cat", "red cat") else 0.1 for text in texts]).repeat(cats, 1)
        )


def pictures(*cats: int) -> Tensor:
    return torch.tensor(cats)[:, None, None, None].expand(-1, 3, 8, 8) / 10


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    eye = Scripted()
    monkeypatch.setattr(detection, "load", lambda *_, **__: eye)
    monkeypatch.setattr(detection.weights, "find", lambda *_, **__: Path())
    return eye


# ---- what it makes of boxes


def test_graded_and_strict_scores_and_their_parts(scripted: Scripted) -> None:
    prompts = Prompts.of(["p"] * 5, [TWO_CATS, TWO_CATS, RED_CAT, LEFT, {**QUESTIONS, "answers": ["one", "dog"]}])
    found = named("counting")(pictures(2, 3, 1, 1, 4), prompts)
    torch.testing.assert_close(found.value, torch.tensor([1, 0.5, 1, 1 / 3, 0]))  # LEFT: the cat, no dog, no place
    assert found.parts["strict"].tolist() == [1, 0, 1, 0, 0]
    torch.testing.assert_close(found.parts["count"], torch.tensor([1, 0.5, 1, 0.5, 0]))
    nan = torch.nan
    torch.testing.assert_close(found.parts["colour"], torch.tensor([nan, nan, 1, nan, nan]), equal_nan=True)
    torch.testing.assert_close(found.parts["position"], torch.tensor([nan, nan, nan, 0, nan]), equal_nan=True)
    strict = named({"name": "counting", "score": "strict"})(pictures(2, 3, 1, 1, 4), prompts)
    assert torch.equal(strict.value, found.parts["strict"])
    assert torch.equal(strict.parts["graded"], found.value)


def test_a_prompt_that_asks_nothing_has_no_score(scripted: Scripted) -> None:
    found = named("counting")(pictures(2, 2, 2), Prompts.of(["a", "b", "c"], [None, TWO_CATS, {"include": 3}]))
    assert found.value.isnan().tolist() == [True, False, True]
    assert found.notes[1] is None and "no metadata that says what is to be seen" in str(found.notes[0])
    assert scripted.calls == [1]
    broken = named("counting")(pictures(2) * torch.nan, Prompts.of(["a"], [TWO_CATS]))
    assert broken.value.isnan().all() and "not finite" in str(broken.notes[0])
    assert named("counting")(pictures(2), ["two cats"]).value.isnan().all() and scripted.calls == [1]


def test_many_pictures_are_looked_at_a_few_at_a_time(scripted: Scripted) -> None:
    found = named("counting")(pictures(*range(1, 11)), Prompts.of(["p"] * 10, [TWO_CATS] * 10))
    assert scripted.calls == [8, 2]
    torch.testing.assert_close(found.value, torch.tensor([0.5, 1, 0.5, 0, 0, 0, 0, 0, 0, 0]))


def test_settings_are_checked_before_anything_is_loaded() -> None:
    for key, value in {"score": "mean", "threshold": "1.5", "overlap": "-1", "dtype": "half"}.items():
        with pytest.raises(ValueError, match=rf"^--reward\.{key} is '?{value}"):
            named({"name": "counting", key: value}, key="--reward")


# ---- how it asks real ones


@pytest.fixture(scope="module", params=["owl", "grounding_dino"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make: Callable[[Path], Path] = getattr(tiny_detectors, request.param)
    return make(tmp_path_factory.mktemp(request.param))


def drawn(count: int, height: int = 24, width: int = 40) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_the_contract(folder: Path) -> None:
    reward = named({"name": "counting", "model": str(folder), "threshold": 0.2, "overlap": 0.6})
    asked = [TWO_CATS, RED_CAT, LEFT, {"include": [{"class": "cat", "count": 4}, {"class": "dog", "count": 3}]}]
    prompts, images = Prompts.of(["p"] * 4, asked), drawn(4)
    check(reward, images, prompts)
    found = score(reward, images, prompts)
    assert found.notes == (None,) * 4 and found.value.dtype is torch.float32
    assert ((found.value >= 0) & (found.value <= 1)).all()
    assert torch.equal(score(reward, images, prompts).value, found.value)
    assert not reward(images.requires_grad_(), prompts).value.requires_grad


def test_a_picture_is_seen_alone_as_among_others(folder: Path) -> None:
    """Whatever is asked of the others: the same to fp64's last bits; fp32 kernels of some CPUs part with the rows."""
    texts = [["cat"], ["dog", "red dog", "blue dog"], ["cat", "dog"]]
    for dtype, near, pixels in ((torch.float64, 1e-7, 5e-6), (torch.float32, 1e-4, 5e-3)):
        detector = load(folder, dtype=dtype, reward="counting")
        with torch.no_grad():
            together = detector(drawn(3), texts)
            for k, row in enumerate(texts):
                (alone,) = detector(drawn(3)[k : k + 1], [row])
                assert alone.scores.shape == (len(alone.boxes), len(row)) and alone.boxes.shape[1] == 4
                torch.testing.assert_close(together[k].scores, alone.scores, atol=near, rtol=0)
                torch.testing.assert_close(together[k].boxes, alone.boxes, atol=pixels, rtol=0)
                assert len(set(alone.scores[:, 0].tolist())) > 3 and not alone.scores.isnan().any()


def test_bfloat16(folder: Path) -> None:
    exact, coarse = (load(folder, dtype=dtype, reward="counting") for dtype in (torch.float32, torch.bfloat16))
    assert coarse.network.dtype is torch.bfloat16
    with torch.no_grad():
        (a,), (b,) = exact(drawn(1), [["cat"]]), coarse(drawn(1), [["cat"]])
    if isinstance(exact, Owl):  # the other one chooses its boxes by their scores: rounding gives others
        torch.testing.assert_close(a.scores, b.scores, atol=0.05, rtol=0)
    assert b.scores.dtype is torch.float32 and b.scores.isfinite().all()


def test_another_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    for place, said in ((tmp_path, "is clip; needed is"), (tmp_path / "none", "is no folder with a config.json")):
        with pytest.raises(ValueError, match=rf"^reward `counting`: model .* {said}"):
            load(place, dtype=torch.float32, reward="counting")


# ---- against transformers' own way from pictures and texts to boxes


def test_owl_sees_what_transformers_processors_give(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    detector: Any = load(tiny_detectors.owl(tmp_path), dtype=torch.float32, reward="counting")
    assert isinstance(detector, Owl)
    images = drawn(1, 12, 20)  # wider than high: black below makes it square
    square = torch.cat([images, torch.zeros(1, 3, 8, 20)], 2)
    large = nn.functional.interpolate(square, (32, 32), mode="bilinear", align_corners=False)
    shift, spread = (torch.tensor(row)[:, None, None] for row in (CLIP_MEAN, CLIP_STD))
    words = CLIPTokenizer.from_pretrained(str(tmp_path))
    ids = words(["a photo of a cat", "a photo of an ox"], padding="max_length", max_length=16, return_tensors="pt")
    assert ids.input_ids[0, -1] == 0
    with torch.no_grad():
        said = detector.network(pixel_values=(large - shift) / spread, **ids)
        (found,) = detector(images, [["cat", "ox"]])
    torch.testing.assert_close(found.scores, said.logits[0].sigmoid(), atol=1e-6, rtol=1e-5)
    middle, size = said.pred_boxes[0].split(2, 1)
    torch.testing.assert_close(
        found.boxes, torch.cat([middle - size / 2, middle + size / 2], 1) * 20, atol=1e-4, rtol=0
    )


def test_grounding_dino_reads_phrases_as_transformers_does(tmp_path: Path) -> None:
    from transformers import BertTokenizer
    from transformers.models.grounding_dino.modeling_grounding_dino import build_label_maps

    detector: Any = load(tiny_detectors.grounding_dino(tmp_path), dtype=torch.float32, reward="counting")
    assert isinstance(detector, GroundingDino) and detector.edges == tiny_detectors.EDGES
    texts = ["cat", "Red cat", "dog"]
    ids, spans = detector._sentence(texts)
    assert ids == BertTokenizer.from_pretrained(str(tmp_path))("cat. red cat. dog.").input_ids
    maps = build_label_maps(torch.zeros(1, 1, 128), torch.tensor([ids]))[0]
    assert [row.nonzero().flatten().tolist() for row in maps] == [list(range(s.start, s.stop)) for s in spans]
    with pytest.raises(ValueError, match="40 texts are more than Grounding DINO reads at once"):
        detector._sentence(["cat"] * 40)
    assert detector._pixels(drawn(1, 24, 40)).shape[-2:] == (58, 96)  # 64 would make the longer side 107
    assert detector._pixels(drawn(1, 40, 40)).shape[-2:] == (64, 64)

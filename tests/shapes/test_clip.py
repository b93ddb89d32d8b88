"""The CLIP of the built-in world: small, whole, in everybody's layout; it finds captions, and scores as it should."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import runs
from house.syntax import ROOT
from shapes.pictures import fresh, round_trip
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import named
from tastemaker.rewards.aesthetic import _FILES, Aesthetic
from tastemaker.rewards.clip import ClipScore
from tastemaker.rewards.preference import PickScore
from tastemaker.rewards.reward import check
from tastemaker.shapes import assets, captions, clip, export, material, pretrain
from tastemaker.shapes.drawing import Scene
from tastemaker.shapes.gates import clip_gate, from_sheet
from tastemaker.shapes.taste import taste
from tastemaker.training.lines import read_lines

NAMES = ("clip_score", "aesthetic", "pickscore")


@cache
def made(name: str) -> Any:
    return named({"name": name, "model": "shapes"})


@torch.no_grad()
def score(name: str, images: Tensor, prompts: list[str]) -> Tensor:
    value: Tensor = made(name)(images, prompts).value
    return value


@torch.no_grad()
def nearest(images: Tensor) -> list[str]:
    """The caption, of all, whose vector is nearest to each picture's."""
    network, known = ClipScore(model="shapes"), captions.everything()
    return [known[k] for k in (network.see(images) @ network.read(known).T).argmax(1).tolist()]


# ---- its files


def test_it_is_small_in_half_precision_and_as_released() -> None:
    home = assets.clip()
    files = {path.relative_to(home).as_posix(): path for path in home.rglob("*") if path.is_file()}
    assert set(files) == {*json.loads((home / assets.SUMS).read_text()), assets.SUMS}
    assert sum(path.stat().st_size for path in files.values()) <= 4_000_000
    for name in ("model.safetensors", assets.TASTE):
        assert {value.dtype for value in load_file(files[name]).values()} == {torch.float16}
    assert _FILES[0] == assets.TASTE
    assert (home / "tokenizer.json").read_bytes() == (assets.folder() / "tokenizer" / "tokenizer.json").read_bytes()


def test_one_other_byte_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(assets.clip(), tmp_path / "clip")
    monkeypatch.setattr(assets, "__file__", str(tmp_path / "__init__.py"))
    assert assets.clip.__wrapped__() == tmp_path / "clip"
    file = tmp_path / "clip" / assets.TASTE
    file.write_bytes(file.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(ValueError, match="the built-in CLIP is damaged: .*aesthetic.safetensors is not as released"):
        assets.clip.__wrapped__()


def test_any_program_with_transformers_reads_it() -> None:
    from transformers import CLIPModel, CLIPTokenizer

    model: Any = CLIPModel.from_pretrained(assets.clip(), dtype=torch.float32)
    words = CLIPTokenizer.from_pretrained(assets.clip())
    images, prompts = (some[:5] for some in fresh(400))
    ids = words(prompts, padding="max_length", return_tensors="pt").input_ids
    mean, std = (torch.tensor(row)[:, None, None] for row in _statistics())
    with torch.no_grad():
        found = model(input_ids=ids, pixel_values=(images - mean) / std).logits_per_image.diagonal()
    torch.testing.assert_close(score("pickscore", images, prompts), found, atol=1e-4, rtol=1e-4)


def _statistics() -> tuple[tuple[float, ...], tuple[float, ...]]:
    from tastemaker.rewards.preprocess import CLIP_MEAN, CLIP_STD

    return CLIP_MEAN, CLIP_STD


# ---- what it passes


def test_it_finds_the_captions_of_pictures_that_it_never_saw() -> None:
    images, prompts = (some[:120] for some in fresh(400))
    found = clip_gate(images, prompts[1:] + prompts[:1])
    assert min(found[key] for key in ("nearest of 160 captions", "held out, nearest of 160")) >= 97, found
    assert found["held out, nearest of 40"] >= 99 and found["unsure"] == 0, found
    assert found["correlation with shapes_alignment"] > 0.35 and found["correlation with shapes_taste"] > 0.9, found


def test_after_the_autoencoder_it_still_finds_them() -> None:
    images, prompts = (some[:30] for some in fresh(400))
    assert sum(a == b for a, b in zip(nearest(round_trip(images)), prompts, strict=True)) >= 27


def test_on_samples_of_the_base_it_agrees_with_a_person() -> None:
    """Captions from the labels that were given by eye, where all three words were."""
    labels = json.loads((ROOT / "docs" / "oracle" / "labels.json").read_text())
    images = from_sheet(ROOT / "docs" / "oracle" / "sheet.png", len(labels))
    rows = [(k, label.split()) for k, label in enumerate(labels) if "?" not in label]
    own = [captions.caption(Scene(int(count), colour, shape, "")) for _, (count, colour, shape) in rows]
    found = nearest(images[[k for k, _ in rows]])
    assert len(own) > 150 and sum(a == b for a, b in zip(found, own, strict=True)) >= 0.95 * len(own)
    both = torch.stack([score("aesthetic", images, labels), taste(images).value])
    assert torch.corrcoef(both)[0, 1] > 0.9


# ---- what the rewards are


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_contract_of_rewards(name: str) -> None:
    images, prompts = (some[:4] for some in fresh(400))
    check(made(name), images, Prompts.of(prompts))
    whole = score(name, images, prompts)
    apart = torch.cat([score(name, images[k : k + 1], prompts[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(whole, apart, atol=1e-5, rtol=1e-5)
    assert whole.dtype is torch.float32 and torch.equal(whole, score(name, images, prompts))


@pytest.mark.parametrize("name", NAMES)
def test_its_gradient_is_that_of_finite_differences(name: str) -> None:
    images, prompts = (some[:2] for some in fresh(400))
    x = (0.1 + 0.8 * images).requires_grad_()
    made(name)(x, prompts).value.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().amax((1, 2, 3)).min() > 0
    way = x.grad / x.grad.norm()
    with torch.no_grad():
        ends = [made(name)(x + step * way, prompts).value.double().sum() for step in (0.05, -0.05)]
    assert float((ends[0] - ends[1]) / 0.1) == pytest.approx(float(x.grad.norm()), rel=0.05)


def test_the_right_caption_scores_above_one_with_another_word() -> None:
    images, prompts = (some[:100] for some in fresh(400))
    known = set(captions.everything())
    own = score("clip_score", images, prompts)
    for colour in ("red", "purple"):
        others = [" ".join([text.split()[0].replace("an", "a"), colour, *text.split()[2:]]) for text in prompts]
        rows = [k for k, text in enumerate(others) if text in known and text != prompts[k]]
        assert (own - score("clip_score", images, others))[rows].gt(0).float().mean() >= 0.97


def test_pickscore_on_it_is_the_cosine_at_its_own_scale() -> None:
    images, prompts = (some[:6] for some in fresh(400))
    scale = float(PickScore(model="shapes").network.logit_scale.exp())
    assert 5 < scale <= 100
    torch.testing.assert_close(score("pickscore", images, prompts), scale * score("clip_score", images, prompts))


def test_the_aesthetic_head_beside_it_is_taken_unless_another_is_asked_for(tmp_path: Path) -> None:
    images, prompts = (some[:50] for some in fresh(400))
    reward = Aesthetic(model="shapes")
    a, b = reward.affine
    assert len(a) == clip.WIDTH
    value = score("aesthetic", images, prompts)
    torch.testing.assert_close(value, score("aesthetic", images, prompts[1:] + prompts[:1]))  # reads no prompt
    torch.testing.assert_close(value, (reward.see(images) @ a.float() + b.float()).detach())
    assert (value - taste(images).value).abs().mean() < 0.6
    torch.save({"weight": torch.ones(1, 8), "bias": torch.zeros(1)}, tmp_path / "head.pt")
    with pytest.raises(ValueError, match="reads vectors of 8 numbers, those of shapes have 64"):
        _ = Aesthetic(model="shapes", head=str(tmp_path / "head.pt")).network


# ---- its training


def test_equal_captions_are_all_right_and_the_loss_is_the_mean_of_both_ways() -> None:
    g = torch.Generator().manual_seed(0)
    seen, read = (F.normalize(torch.randn(rows, 8, generator=g), dim=1) for rows in (4, 5))
    shown = torch.tensor([2, 0, 2, 4])
    logits = 3.0 * seen @ read.T
    pictures = F.cross_entropy(logits, shown, label_smoothing=0.05)
    columns = logits.log_softmax(0)
    of = [columns[k, text] for k, text in enumerate((2, 0, 2, 4))]
    of[0] = of[2] = (of[0] + of[2]) / 2
    torch.testing.assert_close(
        clip.contrast(seen, read, shown, torch.tensor(3.0).log()), (pictures - torch.stack(of).mean()) / 2
    )


def test_the_head_that_is_written_is_the_one_that_learned() -> None:
    torch.manual_seed(0)
    head, seen = nn.Linear(clip.WIDTH, 1), F.normalize(torch.randn(3, clip.WIDTH), dim=1)
    state = clip.folded(head)
    torch.testing.assert_close(seen @ state["weight"][0] + state["bias"], clip.rating(head, seen).detach())


def trained(folder: Path, steps: int) -> dict[str, Tensor]:
    pretrain.main(["clip", "--folder", str(folder), "--steps", str(steps), "--batch", "2", "--pictures", "4"])
    state: dict[str, Tensor] = torch.load(folder / "clip.pt", weights_only=True)["modules"]
    return state


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on_to_the_same_bits_and_is_exported(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", 2)
    trained(tmp_path / "stopped", 1)
    torch.rand(3)
    again = trained(tmp_path / "stopped", 2)
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    export.main(["clip", "--folder", str(tmp_path / "whole"), "--assets", str(tmp_path)])
    home = tmp_path / "clip"
    for name, total in json.loads((home / assets.SUMS).read_text()).items():
        assert hashlib.sha256((home / name).read_bytes()).hexdigest() == total
    assert {path.name for path in home.iterdir()} == {path.name for path in assets.clip().iterdir()}
    images, prompts = (some[:2] for some in fresh(400))
    for name in NAMES:
        assert named({"name": name, "model": str(home), **_head(name, home)})(images, prompts).value.isfinite().all()


def _head(name: str, home: Path) -> dict[str, str]:
    return {"head": str(home)} if name == "aesthetic" else {}


def test_captions_are_those_of_the_scenes() -> None:
    pixels, scenes = material.drawn(6, 5, progress=False)
    rows = torch.tensor([pretrain.judge.places((scene.count, scene.colour, scene.shape)) for scene in scenes])
    places = pretrain._captions(rows).tolist()
    assert [captions.everything()[k] for k in places] == [captions.caption(scene) for scene in scenes]


# ---- commands

FEW = ("--evaluation.count", "2", "--evaluation.images_per_prompt", "1", "--evaluation.steps", "2", "--device", "cpu")


@pytest.mark.parametrize(("algorithm", "name"), [("ddpo", "clip_score"), ("draft", "aesthetic")])
def test_the_bare_commands_run(algorithm: str, name: str, tmp_path: Path) -> None:
    small = ("--algorithm.images", "4", "--algorithm.steps", "2", "--algorithm.updates", "1", "--iterations", "2")
    words = ("train", algorithm, "--model", "shapes", "--reward", name, "--reward.model", "shapes", *small, *FEW)
    ran = runs.call(*words, "--output_dir", str(tmp_path / "run"))
    assert ran.code == 0 and (tmp_path / "run" / runs.LORA).is_file(), ran.err
    for row in read_lines(tmp_path / "run" / "metrics.jsonl"):
        assert row["reward"]["failed"] == 0 and row["updates"][0]["skipped"] == 0
    before = read_lines(tmp_path / "run" / "evaluations.jsonl")[0]["reward"]
    assert {name, "shapes_alignment"} <= before.keys()


@pytest.mark.parametrize("name", NAMES)
def test_explain_says_that_it_is_there(name: str) -> None:
    said = runs.call("explain", name).out
    assert "With --reward.model shapes: a CLIP that comes with the package" in said

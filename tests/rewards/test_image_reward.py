"""ImageReward: against the original package's scores, from its file's layout, with its gradient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures.make_image_reward import FILE, PROMPTS, SIDE, SIZES, VOCABULARY, pictures, weights
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import blip, named
from tastemaker.rewards.image_reward import ImageReward
from tastemaker.rewards.reward import NamedReward, check

PUBLISHED_BYTES = 1_786_880_927  # of ImageReward.pt, as others state it
RECORD: dict[str, Any] = json.loads(FILE.read_text())
LEFT_ASIDE = {f"blip.{part}_proj.{kind}" for part in ("vision", "text") for kind in ("weight", "bias")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one in the published file's layout, with the vocabulary beside it."""
    place = tmp_path_factory.mktemp("image_reward")
    torch.save(weights(RECORD["small"]["names"]), place / "ImageReward.pt")
    (place / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return place


@pytest.fixture(scope="module")
def judge(folder: Path) -> NamedReward:
    return named({"name": "image_reward", "model": str(folder), "preprocess": "uint8"})


def settings(folder: Path, **others: str) -> NamedReward:
    return named({"name": "image_reward", "model": str(folder), **others})


# ---- against the package


def test_tokens_are_the_packages(folder: Path) -> None:
    read = ImageReward(model=str(folder)).words(list(PROMPTS), truncation=True, max_length=35).input_ids
    assert read == RECORD["small"]["tokens"]
    assert len(VOCABULARY) + 1 in read[2] and len(read[2]) == 35  # [ENC], which BLIP adds; a text that is cut


@pytest.mark.parametrize("row", range(len(SIZES)))
def test_scores_are_the_packages(judge: NamedReward, row: int) -> None:
    found = judge(pictures(SIZES[row]), PROMPTS).value
    torch.testing.assert_close(found, torch.tensor(RECORD["small"]["scores"][row]), atol=1e-5, rtol=0)


def test_our_own_resize_is_near_it(folder: Path) -> None:
    for size, scores in zip(SIZES, RECORD["small"]["scores"], strict=True):
        found = settings(folder)(pictures(size), PROMPTS).value
        torch.testing.assert_close(found, torch.tensor(scores), atol=5e-3, rtol=0)
        linear = settings(folder, preprocess="bilinear")(pictures(size), PROMPTS).value
        assert torch.equal(linear, found) == (size == (SIDE, SIDE))  # where nothing is resized


@pytest.mark.slow
def test_scores_at_the_published_size_are_the_packages(tmp_path: Path) -> None:
    torch.save(weights(RECORD["published"]["names"]), tmp_path / "ImageReward.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    judge = settings(tmp_path, preprocess="uint8")
    for size, scores in zip(SIZES, RECORD["published"]["scores"], strict=True):
        with torch.no_grad():
            found = judge(pictures(size), PROMPTS).value
        torch.testing.assert_close(found, torch.tensor(scores), atol=1e-5, rtol=0)


# ---- from its file


def test_the_published_file_fills_the_published_network() -> None:
    """Every name and shape of the package's network at its full size, without its numbers."""
    names = RECORD["published"]["names"]
    with torch.device("meta"):
        state = blip.translated({name: torch.empty(shape) for name, shape in names.items()})
        network = blip.Network(blip.sizes(state))
    own = network.state_dict()
    assert blip.sizes(state) == blip.Sizes()
    assert {name: value.shape for name, value in own.items()} == {name: state[name].shape for name in own}
    unused = {name for name in names if blip.translated({name: torch.empty(0)}).keys().isdisjoint(own)}
    assert unused == LEFT_ASIDE | {"blip.text_encoder.embeddings.position_ids"}
    numbers = sum(value.numel() for value in state.values())
    assert 0 < PUBLISHED_BYTES - 4 * numbers < 400_000  # what is over is the file's index


def test_a_single_file_and_safetensors_are_read_too(folder: Path, judge: NamedReward, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(weights(RECORD["small"]["names"]), tmp_path / "any.safetensors")
    (tmp_path / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    images = pictures(SIZES[0])
    want = judge(images, PROMPTS).value
    for model in (folder / "ImageReward.pt", tmp_path, tmp_path / "any.safetensors"):
        assert torch.equal(
            named({"name": "image_reward", "model": str(model), "preprocess": "uint8"})(images, PROMPTS).value, want
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mlp.layers.4.weight": None}, r"holds no head\.2\.weight: it is not of this network"),
        ({"mlp.layers.4.bias": torch.zeros(3)}, r"head\.2\.bias in .* is \[3\], needed is \[64\]"),
        ({"blip.visual_encoder.pos_embed": None}, r"nothing for eye\.embeddings\.position_embedding: it is not Imag"),
    ],
)
def test_another_file_is_refused_by_name(folder: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    state = {k: v for k, v in {**weights(RECORD["small"]["names"]), **change}.items() if v is not None}
    torch.save(state, tmp_path / "ImageReward.pt")
    (tmp_path / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    with pytest.raises(ValueError, match=rf"^reward `image_reward`: .*{said}"):
        _ = ImageReward(model=str(tmp_path)).network


def test_settings_are_checked_before_anything_is_loaded() -> None:
    for key, value in {"dtype": "float16", "preprocess": "pil", "device": "gpu"}.items():
        with pytest.raises(ValueError, match=rf"^--reward\.{key} is '{value}'; it is"):
            named({"name": "image_reward", key: value}, key="--reward")


# ---- the contract


def test_the_contract(judge: NamedReward, folder: Path) -> None:
    images = torch.cat([pictures((64, 96)), pictures((64, 96), 5)[3:]])
    prompts = Prompts.of(["a cat", "two dogs", "the moon", "a fox", "a painting of a cat"])
    for one in (judge, settings(folder)):
        check(one, images, prompts)
        value = one(images, prompts).value
        assert value.shape == (5,) and value.dtype is torch.float32 and len(set(value.tolist())) == 5
        assert torch.equal(one(images, prompts).value, value)
        for row in range(5):
            alone = one(images[row : row + 1], prompts.take([row])).value
            torch.testing.assert_close(alone, value[row : row + 1], atol=1e-5, rtol=0)


def test_the_gradient_is_that_of_finite_differences(folder: Path) -> None:
    reward = ImageReward(model=str(folder))
    reward.network.double()
    images = pictures((72, 64), 2)[:2].double().requires_grad_()
    along = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).double()

    def total(x: Tensor) -> Tensor:
        return reward(x, PROMPTS[:2]).sum()

    (slope,) = torch.autograd.grad(total(images), images)
    step = 1e-5
    with torch.no_grad():
        found = (total(images + step * along) - total(images - step * along)) / (2 * step)
    assert slope.flatten(1).any(1).all()
    torch.testing.assert_close((slope * along).sum(), found, atol=1e-9, rtol=1e-4)


def test_bfloat16_is_near_and_the_network_is_found(folder: Path, judge: NamedReward) -> None:
    coarse = settings(folder, dtype="bfloat16", device="cpu")
    found = coarse(pictures(SIZES[0]).bfloat16(), PROMPTS).value
    torch.testing.assert_close(found, torch.tensor(RECORD["small"]["scores"][0]), atol=3e-2, rtol=0)
    assert found.dtype is torch.float32 and coarse.network.eye.dtype is torch.bfloat16
    assert judge.device == torch.device("cpu") and not any(p.requires_grad for p in judge.network.parameters())

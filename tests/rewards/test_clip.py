"""Rewards that look through a CLIP: the numbers of their original packages, files in every layout, the contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import hub_cache
import tiny_clip
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import DIFFERENTIABLE, named
from tastemaker.rewards.aesthetic import Aesthetic, folded
from tastemaker.rewards.clip import HUGE, LARGE, ClipScore
from tastemaker.rewards.clip_names import translated
from tastemaker.rewards.facts import AESTHETIC_HEAD, CLIP_LARGE, FACTS, HPS, PICKSCORE, TOKENIZER
from tastemaker.rewards.preference import HPSv2, PickScore
from tastemaker.rewards.reward import check
from tiny_clip import PROMPTS, SIZE, pictures

FIXTURES = Path(__file__).parents[1] / "fixtures"
SCORES = json.loads((FIXTURES / "clip_scores.json").read_text())
NAMES = json.loads((FIXTURES / "clip_names.json").read_text())
NETWORKS = ("aesthetic", "clip_score", "pickscore", "hpsv2")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network, and an empty cache of the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.write(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with open_clip's names, as a checkpoint of HPS v2."""
    home = tmp_path_factory.mktemp("foreign") / "hps"
    held = tiny_clip.state(SCORES["hpsv2"]["names"])
    return tiny_clip.write(home, {"state_dict": held, "epoch": 1}, "HPS_v2_compressed.pt")  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("head") / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(tiny_clip.state(tiny_clip.HEAD), file)
    return file


@pytest.fixture
def made(folder: Path, foreign: Path, head: Path) -> Callable[..., Any]:
    """A reward of the table on tiny weights, with settings."""

    def make(name: str, **settings: Any) -> Any:
        own = {"aesthetic": {"model": str(folder), "head": str(head)}, "hpsv2": {"model": str(foreign)}}
        return named({"name": name, **own.get(name, {"model": str(folder)}), **settings})

    return make


def scores(reward: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        value: Tensor = reward(images, list(PROMPTS[: len(images)])).value
    return value


def sizes(rows: dict[str, list[float]]) -> list[Any]:
    return [pytest.param(*map(int, key.split("x")), value, id=key) for key, value in rows.items()]


# ---- the numbers of the original packages


@pytest.mark.parametrize(("height", "width", "expected"), sizes(SCORES["open_clip"]["uint8"]))
def test_scores_of_open_clip(height: int, width: int, expected: list[float], tmp_path: Path) -> None:
    home = tiny_clip.write(tmp_path / "a", tiny_clip.state(SCORES["open_clip"]["names"]), "open_clip_model.safetensors")
    reward = named({"name": "clip_score", "model": str(home), "preprocess": "uint8"})
    torch.testing.assert_close(scores(reward, pictures(height, width)), torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("height", "width", "expected"), sizes(SCORES["hpsv2"]["torch"]))
def test_scores_of_hpsv2(height: int, width: int, expected: list[float], made: Callable[..., Any]) -> None:
    """Its transform does not clamp; none of these pictures overshoots."""
    torch.testing.assert_close(
        scores(made("hpsv2"), pictures(height, width)), torch.tensor(expected), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(("height", "width", "expected"), sizes(SCORES["transformers"]["uint8"]))
def test_scores_of_pickscores_model_card(
    height: int, width: int, expected: list[float], made: Callable[..., Any]
) -> None:
    found = scores(made("pickscore", preprocess="uint8"), pictures(height, width))
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4 * 100, rtol=0)  # of the cosine
    cosines = scores(made("clip_score", preprocess="uint8"), pictures(height, width))
    torch.testing.assert_close(cosines, torch.tensor(expected) / 100, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("height", "width", "expected"), sizes(SCORES["transformers"]["rating"]))
def test_ratings_of_the_aesthetic_predictor(
    height: int, width: int, expected: list[float], made: Callable[..., Any]
) -> None:
    found = scores(made("aesthetic", preprocess="uint8"), pictures(height, width))
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)


def full(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network at full size, from the list."""
    return {
        key.replace("*", str(number), 1): tuple(shape)
        for key, (shape, count) in NAMES[name].items()
        for number in range(count)
    }


@pytest.mark.parametrize(("config", "name"), [(LARGE, "ViT-L-14"), (HUGE, "ViT-H-14")])
def test_names_and_shapes_at_full_size(config: dict[str, Any], name: str) -> None:
    ours = tiny_clip.shapes(config)
    assert ours == full(f"transformers {name}")
    theirs = {key: torch.empty(shape, device="meta") for key, shape in full(f"open_clip {name}").items()}
    assert {key: tuple(value.shape) for key, value in translated(theirs).items()} == ours


def test_the_tiny_networks_have_the_names_of_the_large() -> None:
    ours = tiny_clip.shapes()
    assert {key: tuple(shape) for key, shape in SCORES["transformers"]["names"].items()} == ours
    for package in ("open_clip", "hpsv2"):
        assert {
            key: tuple(value.shape) for key, value in translated(tiny_clip.state(SCORES[package]["names"])).items()
        } == ours


# ---- the contract, of each


@pytest.mark.parametrize("name", NETWORKS)
def test_one_number_a_picture_whatever_the_batch(name: str, made: Callable[..., Any]) -> None:
    reward, images = made(name), pictures(40, 48)
    value = scores(reward, images)
    assert value.shape == (4,) and value.dtype is torch.float32 and value.isfinite().all()
    assert torch.equal(value, scores(made(name), images))  # a second reward, the same bits
    parts = [reward(images[row : row + 1], [PROMPTS[row]]).value for row in range(4)]
    assert float((torch.cat(parts) - value).abs().max()) <= 1e-5 * max(1.0, float(value.abs().max()))
    back = reward(images.flip(0), list(PROMPTS)[::-1]).value.flip(0)
    assert float((back - value).abs().max()) <= 1e-5 * max(1.0, float(value.abs().max()))
    check(reward, images, Prompts.of(list(PROMPTS)))
    assert scores(reward, images.half()).dtype is torch.float32
    limit = {"aesthetic": 10.0, "pickscore": 100.001}.get(name, 1.00001)
    assert float(value.abs().max()) <= limit


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", ["torch", "bilinear"])
def test_the_gradient_is_the_slope(name: str, mode: str, made: Callable[..., Any]) -> None:
    reward = made(name, preprocess=mode)
    assert name in DIFFERENTIABLE
    reward.network.double()
    images = (0.8 * pictures(40, 33, 2).double() + 0.1).requires_grad_()
    (slope,) = torch.autograd.grad(reward(images, list(PROMPTS[:2])).value.sum(), images)
    assert slope.flatten(1).abs().sum(1).min() > 0
    way = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        ends = [reward(images + sign * 1e-5 * way, list(PROMPTS[:2])).value.sum() for sign in (1, -1)]
    assert float((ends[0] - ends[1]) / 2e-5) == pytest.approx(float((slope * way).sum()), rel=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_uint8_has_no_gradient_and_bfloat16_is_near(name: str, made: Callable[..., Any]) -> None:
    images = pictures(40, 40)
    assert not made(name, preprocess="uint8")(images.clone().requires_grad_(), list(PROMPTS)).value.requires_grad
    coarse = made(name, dtype="bfloat16")
    assert coarse.network.dtype is torch.bfloat16
    size = 100.0 if name == "pickscore" else 1.0
    assert float((scores(coarse, images) - scores(made(name), images)).abs().max()) < 0.03 * size


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_frozen_and_stays_where_the_pictures_are(name: str, made: Callable[..., Any]) -> None:
    reward = made(name)
    assert not reward.network.training and not any(one.requires_grad for one in reward.network.parameters())
    assert reward.device == torch.device("cpu") == made(name, device="cpu").device


# ---- texts


def test_a_text_goes_through_the_network_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward, asked = ClipScore(model=str(folder)), []
    monkeypatch.setattr(ClipScore, "_encoded", lambda self, texts: asked.append(texts) or torch.eye(24)[: len(texts)])
    reward.read(["a", "b", "a"])
    assert torch.equal(reward.read(["c", "a"]), torch.eye(24)[[0, 0]]) and asked == [["a", "b"], ["c"]]
    monkeypatch.setattr("tastemaker.rewards.clip._REMEMBERED", 4)
    reward.read(["d", "e"])
    assert asked[-1] == ["d", "e"] and set(reward._known) == {"d", "e"}


def test_case_does_not_matter_and_long_texts_are_cut(folder: Path) -> None:
    reward = ClipScore(model=str(folder))
    low, high, long, longer = reward.read(["a Red", "A red", "x" * 40, "x" * 50])
    torch.testing.assert_close(low, high)
    torch.testing.assert_close(long, longer)
    assert float(low @ low) == pytest.approx(1)


# ---- where the weights are


def test_the_published_files_in_the_cache_of_the_hub(
    folder: Path, head: Path, alone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As `hf download` leaves them: the commits are those of the cache here, the tokenizer comes from OpenAI's."""
    for published, source, only in (
        (PICKSCORE, folder, "*el.safetensors"),
        (PICKSCORE, folder, "config.json"),
        (TOKENIZER, folder, "token*"),
    ):
        hub_cache.publish(alone, published.name, source, only=only)
    monkeypatch.setattr(PickScore, "published", PICKSCORE._replace(revision=None))
    monkeypatch.setattr("tastemaker.rewards.clip.TOKENIZER", TOKENIZER._replace(revision=None))
    found = scores(named("pickscore"), pictures(SIZE, SIZE))
    torch.testing.assert_close(found, scores(named({"name": "pickscore", "model": str(folder)}), pictures(SIZE, SIZE)))
    trl = tmp_path / "trl"
    trl.mkdir()
    (trl / "aesthetic-model.pth").write_bytes(head.read_bytes())
    hub_cache.publish(alone, AESTHETIC_HEAD.name, trl, revision=str(AESTHETIC_HEAD.revision))
    rated = scores(named({"name": "aesthetic", "model": str(folder)}), pictures(SIZE, SIZE))
    torch.testing.assert_close(
        rated, scores(named({"name": "aesthetic", "model": str(folder), "head": str(head)}), pictures(SIZE, SIZE))
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_missing_weights_are_told_of_with_their_size_and_commit(name: str) -> None:
    reward = named(name)
    with pytest.raises(ValueError, match=rf"^reward `{name}` needs ") as caught:
        _ = reward.network
    first = AESTHETIC_HEAD if name == "aesthetic" else {"clip_score": CLIP_LARGE}.get(name, TOKENIZER)
    first = {"pickscore": PICKSCORE, "hpsv2": HPS["v2.0"]}.get(name, first)
    assert f"{first.name} ({first.megabytes} MB)" in str(caught.value)
    assert not first.revision or f"--revision {first.revision}`" in str(caught.value)


def test_a_missing_tokenizer_is_told_of_before_the_weights_are_read(folder: Path, tmp_path: Path) -> None:
    home = tiny_clip.write(tmp_path / "bare")
    for file in home.glob("token*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"or put its tokenizer\.json beside the weights of `model`\.$"):
        _ = named({"name": "clip_score", "model": str(home)}).network


def test_a_single_file_goes_by_the_config_beside_it(folder: Path) -> None:
    file = {"name": "clip_score", "model": str(folder / "model.safetensors")}
    whole = {"name": "clip_score", "model": str(folder)}
    assert torch.equal(scores(named(file), pictures(SIZE, SIZE)), scores(named(whole), pictures(SIZE, SIZE)))


@pytest.mark.parametrize("beside", ["", '{"model_type": "unet"}'])
def test_a_file_alone_is_of_the_published_network(beside: str, folder: Path, tmp_path: Path) -> None:
    """So the tiny one is refused by its shapes."""
    for file in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    if beside:
        (tmp_path / "config.json").write_text(beside)
    for name in ("clip_score", "pickscore", "hpsv2"):
        with pytest.raises(ValueError, match=r"is \[.*\], needed is \["):
            _ = named({"name": name, "model": str(tmp_path / "model.safetensors")}).network


def test_versions_of_hps() -> None:
    assert HPSv2().published.weights == ("HPS_v2_compressed.pt",)
    assert HPSv2(version="v2.1").published.weights == ("HPS_v2.1_compressed.pt",)
    assert {published.name for published in HPS.values()} == {HPSv2().model}


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("dtype", "float16", "'float16'; it is one of float32, bfloat16."),
        ("preprocess", "pil", "'pil'; it is one of torch, uint8, bilinear."),
        ("device", "nowhere", "'nowhere'; it is auto, cpu,"),
        ("version", "v3", "'v3'; it is one of v2.0, v2.1."),
    ],
)
def test_a_wrong_setting_is_named_as_it_was_typed(setting: str, value: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^--reward\.{setting} is {said}"):
        named({"name": "hpsv2", setting: value}, key="--reward")


# ---- the aesthetic predictor's layers


class Head(nn.Module):
    """As LAION publishes it."""

    def __init__(self) -> None:
        super().__init__()
        one, two, three = nn.Linear(768, 1024), nn.Linear(1024, 128), nn.Linear(128, 64)
        drop = nn.Dropout(0.2)
        self.layers = nn.Sequential(one, drop, two, drop, three, nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1))


@pytest.mark.parametrize("prefix", ["", "mlp.", "model.scorer."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_five_layers_are_one_affine_map(prefix: str, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Head().eval()
    held = {prefix + name: value for name, value in net.state_dict().items()}
    file = tmp_path / f"head{suffix}"
    torch.save(held, file) if suffix == ".pth" else save_file(held, file)
    a, b = Aesthetic(head=str(file)).affine
    x = nn.functional.normalize(torch.randn(50, 768), dim=-1)
    assert a.shape == (768,) and b.shape == ()
    torch.testing.assert_close(x.double() @ a + b, net.double().layers(x.double())[:, 0], atol=1e-12, rtol=1e-10)


def test_one_layer_is_itself_and_others_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = nn.Linear(768, 1)
    a, b = folded(one.state_dict(), file=tmp_path)
    assert torch.equal(a.float(), one.weight[0]) and torch.equal(b.float(), one.bias[0])
    relu = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 1)).state_dict()
    for held in (relu, {}, {"layers.0.weight": torch.ones(1, 4)}, nn.Linear(3, 2).state_dict()):
        with pytest.raises(ValueError, match=r"^head .* not the aesthetic predictor's layers"):
            folded(held, file=tmp_path)


def test_a_head_of_another_width_is_refused(folder: Path, tmp_path: Path) -> None:
    torch.save(nn.Linear(7, 1).state_dict(), tmp_path / "head.pt")
    with pytest.raises(ValueError, match=r"reads vectors of 7 numbers, those of .* have 24"):
        _ = named({"name": "aesthetic", "model": str(folder), "head": str(tmp_path / "head.pt")}).network


def test_facts_are_of_rewards_that_are_there_and_say_where_the_weights_are() -> None:
    for name in NETWORKS:
        facts = FACTS[name]
        assert facts.networks and facts.licence and "arXiv:" in facts.cite
        assert all(one.megabytes > 0 for one in facts.networks)

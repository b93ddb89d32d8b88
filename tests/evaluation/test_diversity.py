"""Diversity: the mean over pairs without forming pairs, under each metric, and which metric is taken."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tastemaker.evaluation import lpips
from tastemaker.evaluation.diversity import (
    Embedding,
    Metric,
    Perceptual,
    Pixels,
    compare,
    measure,
    metric_for,
    over_prompts,
)
from tastemaker.rewards.reward import NamedReward, adapt

SIZE = 36


class Judge:
    """A reward with an embedding: mean colours of the picture's quarters."""

    name = "judge"

    def __call__(self, images: Tensor, prompts: object) -> Tensor:
        return images.mean((1, 2, 3))

    def embed(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) - 0.4


def network() -> lpips.LPIPS:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = lpips.LPIPS()
    for w in net.heads:
        w.data.abs_()
    return net


def metrics() -> list[Metric]:
    return [Perceptual(network()), Embedding(adapt(Judge())), Pixels()]


@pytest.fixture(params=[0, 1, 2], ids=["lpips", "embedding", "pixels"])
def metric(request: pytest.FixtureRequest) -> Metric:
    return metrics()[request.param]


def drawn(n: int, seed: int = 0) -> list[Tensor]:
    """Pictures of some structure."""
    draws = torch.Generator().manual_seed(seed)
    small = torch.rand(n, 3, 5, 5, generator=draws)
    return list((torch.nn.functional.interpolate(small, SIZE) * 255).to(torch.uint8))


def constant(level: int) -> Tensor:
    return torch.full((3, SIZE, SIZE), level, dtype=torch.uint8)


@torch.no_grad()
def pair(metric: Metric, a: Tensor, b: Tensor) -> float:
    """The distance of two pictures by the metric's own definition."""
    x, y = (picture[None].float() / 255 for picture in (a, b))
    if isinstance(metric, Perceptual):
        return float(metric.network(x, y))
    if isinstance(metric, Embedding):
        return 1 - float(torch.cosine_similarity(Judge().embed(x), Judge().embed(y)))
    return float(((x - y) ** 2).mean())


def test_it_is_the_mean_over_all_pairs(metric: Metric) -> None:
    pictures = drawn(7)
    want = [pair(metric, a, b) for a, b in combinations(pictures, 2)]
    assert max(want) > 1.2 * min(want) > 0
    for batch in (1, 3, 7, 100):
        assert measure(metric, pictures, [0] * 7, batch=batch) == {0: pytest.approx(sum(want) / 21, rel=2e-5)}


def test_two_pictures_are_one_pair_and_either_is_first(metric: Metric) -> None:
    a, b = drawn(2)
    there, back = (measure(metric, pictures, "xx")["x"] for pictures in ([a, b], [b, a]))
    assert there == back == pytest.approx(pair(metric, a, b), rel=2e-5)


def test_the_same_picture_again_and_again_is_0(metric: Metric) -> None:
    assert measure(metric, drawn(1) * 5, [0] * 5, batch=5) == {0: pytest.approx(0, abs=1e-12)}


def test_the_order_of_the_pictures_does_not_matter(metric: Metric) -> None:
    pictures, groups = drawn(9), [4, 4, 4, 4, "b", "b", "b", 7, 7]
    whole = measure(metric, pictures, groups)
    order = [8, 3, 5, 0, 7, 1, 6, 2, 4]
    mixed = measure(metric, [pictures[k] for k in order], [groups[k] for k in order], batch=2)
    assert list(whole) == [4, "b", 7] and list(mixed) == [7, 4, "b"]
    assert {group: whole[group] for group in mixed} == pytest.approx(mixed, rel=2e-5)
    alone = measure(metric, pictures[4:7], [0] * 3)[0]
    assert whole["b"] == pytest.approx(alone, rel=2e-5)


def test_an_outlier_first_costs_no_digits(metric: Metric) -> None:
    """Differences are taken from the first picture, which here lies far from 40 that are nearly one."""
    base = drawn(1)[0].clamp(20, 200)
    pictures = [constant(255), *[base + step for step in range(8)] * 5]
    with torch.no_grad():
        vectors = metric(torch.stack(pictures).float() / 255).double()
    want = float(torch.pdist(vectors).square().mean())
    assert measure(metric, pictures, [0] * 41)[0] == pytest.approx(want, rel=1e-5)


def test_one_picture_has_no_diversity_and_is_not_looked_at() -> None:
    seen = []

    class Counting(Pixels):
        def __call__(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return super().__call__(images)

    found = measure(Counting(), [constant(0), *drawn(2), constant(3)], ["a", "b", "b", "c"])
    assert list(found) == ["a", "b", "c"] and math.isnan(found["a"]) and math.isnan(found["c"])
    assert found["b"] > 0 and seen == [2]
    assert measure(Counting(), [], []) == {} and seen == [2]


def test_pixels_in_closed_form() -> None:
    """Constant pictures a, b: (a - b)^2; of 0, 51, 255 of 255: (0.2^2 + 0.8^2 + 1) / 3."""
    assert measure(Pixels(), [constant(0), constant(255)], [0, 0]) == {0: pytest.approx(1)}
    levels = [constant(level) for level in (0, 51, 255)]
    assert measure(Pixels(), levels, [0] * 3) == {0: pytest.approx((0.04 + 0.64 + 1) / 3)}
    halves = torch.cat([constant(0)[:, :18], constant(255)[:, :18]], 1)
    assert measure(Pixels(), [constant(0), halves], [0, 0]) == {0: pytest.approx(0.5)}
    floats = [level.float() / 255 for level in levels]
    assert measure(Pixels(), floats, [0] * 3) == {0: pytest.approx(0.56)}


def test_an_embeddings_length_does_not_matter() -> None:
    """Opposite directions are 2 apart, a right angle 1, whatever the lengths."""
    rows = {0: (1.0, 0.0), 1: (0.0, 30.0), 2: (-5.0, 0.0), 3: (2.0, 0.0)}

    class Table(Judge):
        def embed(self, images: Tensor) -> Tensor:
            return torch.tensor([rows[round(float(image[0, 0, 0]) * 255)] for image in images])

    table = Embedding(adapt(Table()))
    assert measure(table, [constant(0), constant(1)], [0, 0]) == {0: pytest.approx(1)}
    assert measure(table, [constant(0), constant(2)], [0, 0]) == {0: pytest.approx(2)}
    assert measure(table, [constant(0), constant(3)], [0, 0]) == {0: pytest.approx(0, abs=1e-7)}


@pytest.mark.parametrize(
    ("answer", "said"), [(torch.zeros(3, 2, 1), r"\[3, 2, 1\]"), (torch.zeros(2, 4), r"\[2, 4\]"), (None, "NoneType")]
)
def test_an_embedding_of_another_form_is_told(answer: object, said: str) -> None:
    class Wrong(Judge):
        def embed(self, images: Tensor) -> object:
            return answer

    with pytest.raises(ValueError, match=rf"`embed` of reward `judge` gave {said}, needed is \[3, D\]"):
        measure(Embedding(adapt(Wrong())), drawn(3), [0] * 3)


def test_an_embedding_without_a_number_is_a_hole_not_a_0() -> None:
    class Broken(Judge):
        def embed(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 2), torch.nan)

    assert math.isnan(measure(Embedding(adapt(Broken())), drawn(2), [0, 0])[0])


def test_no_graph_is_kept() -> None:
    net = network()
    kept = []

    class Watching(Perceptual):
        def __call__(self, images: Tensor) -> Tensor:
            kept.append(super().__call__(images))
            return kept[-1]

    measure(Watching(net), drawn(3), [0] * 3)
    assert kept and not any(vectors.requires_grad for vectors in kept)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_progress_counts_pictures_and_counts_must_agree() -> None:
    class Told:
        def __init__(self) -> None:
            self.lines: list[object] = []

        def begin(self, what: str, total: int) -> None:
            self.lines.append((what, total))

        def advance(self, count: int, note: str = "") -> None:
            self.lines.append(count)

    told = Told()
    measure(Pixels(), drawn(5), [0, 0, 1, 1, 2], batch=3, progress=told)
    assert told.lines == [("diversity", 4), 3, 1]
    with pytest.raises(ValueError, match="3 pictures of 2 groups"):
        measure(Pixels(), drawn(3), [0, 0])


# ---- which metric


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty torch hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


def blind(images: Tensor, prompts: object) -> Tensor:
    return images.mean((1, 2, 3))


REWARDS: list[NamedReward] = [adapt(blind), adapt(Judge()), adapt(Judge(), "second")]


def test_without_weights_an_embedding_else_pixels_and_it_is_said(offline: Path) -> None:
    why = "not by LPIPS: its weights are not here (--lpips_weights download fetches them, 233 MB)."
    found = metric_for("auto", REWARDS, size=64)
    assert (found.name, found.note) == ("cosine in judge", f"diversity is measured as cosine in judge, {why}")
    found = metric_for("auto", REWARDS[:1])
    assert (found.name, found.note) == (
        "pixels (mean squared)",
        f"diversity is measured as pixels (mean squared), {why}",
    )
    assert measure(found, drawn(2), [0, 0])[0] > 0


def test_weights_that_are_named_must_be_there(offline: Path) -> None:
    with pytest.raises(ValueError, match="--lpips_weights: there is no file or folder .*nowhere"):
        metric_for(str(offline / "nowhere"), REWARDS)


def test_weights_at_hand_are_taken(offline: Path) -> None:
    file = offline / "all.pth"
    torch.save(network().state_dict(), file)
    named = metric_for(str(file), REWARDS, size=SIZE)
    assert (named.name, named.note) == ("LPIPS (AlexNet)", "")
    want = measure(Perceptual(network()), drawn(3), [0] * 3)
    assert measure(named, drawn(3), [0] * 3) == want
    hub = offline / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    for source, kept in zip(lpips.SOURCES, ("features", "lin"), strict=True):
        torch.save({k: v for k, v in network().state_dict().items() if k.startswith(kept)}, hub / source.name)
    auto = metric_for(rewards=REWARDS)
    assert (auto.name, auto.note) == ("LPIPS (AlexNet)", "") and measure(auto, drawn(3), [0] * 3) == want


def test_off_asks_for_no_weights_and_needs_no_excuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips, "published", lambda *_: pytest.fail("weights were asked for"))
    assert metric_for("off", REWARDS, size=16) == Embedding(REWARDS[1])
    assert metric_for("off", size=64) == Pixels()


def test_pictures_too_small_for_lpips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lpips, "published", lambda *_: pytest.fail("weights were asked for"))
    found = metric_for("auto", size=30)
    assert found.name == "pixels (mean squared)"
    assert found.note.endswith("not by LPIPS: pictures of 30 pixels are too small for LPIPS, which needs 31.")
    with pytest.raises(ValueError, match="--lpips_weights: pictures of 30 pixels .* Take `--lpips_weights off`"):
        metric_for(str(tmp_path), size=30)


# ---- over prompts


def test_prompts_are_what_is_averaged_and_resampled() -> None:
    base = {0: 0.5, 1: 0.3, 2: math.nan, 3: 0.4}
    assert over_prompts(base).mean == pytest.approx(0.4)
    assert 0.3 <= over_prompts(base).low < 0.4 < over_prompts(base).high <= 0.5
    # every prompt loses the same, so there is nothing to doubt, however much prompts differ
    tuned = {group: value - 0.1 for group, value in base.items()}
    found = compare("pixels", base, tuned, seed=3)
    assert found.metric == "pixels"
    assert found.change == pytest.approx((-0.1, -0.1, -0.1)) and found.change.clear_of_zero
    assert (found.base.mean, found.tuned.mean) == pytest.approx((0.4, 0.3))
    assert found.base == over_prompts(base, key=(3, "diversity"))


def test_the_change_is_over_prompts_that_both_have() -> None:
    found = compare("pixels", {"a": 1.0, "b": 3.0, "gone": 9.0}, {"b": 2.0, "a": 0.5, "c": 5.0})
    assert found.change.mean == pytest.approx(-0.75)
    one = compare("pixels", {"a": 1.0}, {"a": 2.0}).change
    assert one.mean == 1 and math.isnan(one.low)
    assert math.isnan(compare("pixels", {}, {}).change.mean)

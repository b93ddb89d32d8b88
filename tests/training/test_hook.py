"""What `on_samples` is given: the pictures as they were scored, on rank 0, after every iteration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tastemaker.algorithms.ddpo import DDPO
from tastemaker.iteration import Iteration
from tastemaker.policy.policy import Policy
from tastemaker.prompts.prompts import Prompts, PromptSource
from tastemaker.reports.trackers import Trackers
from tastemaker.rewards.reward import Scores
from tastemaker.training.hook import OnSamples, batches
from tastemaker.training.lines import read_lines
from tastemaker.training.record import Record
from tastemaker.training.trainer import Training
from toy import Toy
from toy_runs import closeness, iteration_of, run_of, same

SMALL = DDPO(images=12, per_prompt=2, updates=2, steps=4, guidance=2.0, iterations=2, learning_rate=0.01, clip=0.2)


class Judge:
    """Remembers what it scored; every third picture has no score, and the others' score has a part."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Prompts]] = []

    def __call__(self, images: Tensor, prompts: Prompts) -> Scores:
        self.seen.append((images.clone(), prompts))
        value = closeness(images, prompts).clone()
        value[[b % 3 == 0 for b in prompts.ids]] = torch.nan
        return Scores(value, {"half": value / 2})


class Told:
    """A tracker's run, as far as it is told of iterations."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, Any], list[float], list[dict[str, Any]]]] = []
        self.raw = [object()]

    def iteration(self, row: dict[str, Any], rewards: list[float], samples: list[dict[str, Any]]) -> None:
        self.rows.append((row, rewards, samples))


class Described(PromptSource):
    """Prompts with metadata."""

    def draw(self, random: Any, count: int) -> Prompts:
        return Prompts.of([("cat", "dog", "cow")[k % 3] for k in range(count)], [{"number": k} for k in range(count)])


def run(folder: Path, policy: Toy, on_samples: OnSamples | None, **settings: Any) -> Training:
    made = run_of(folder, SMALL, policy, sampling=5, reward=settings.pop("reward", closeness))
    made.record = Record(folder, iterations=2, on_samples=on_samples, **{"samples": 0, **settings})
    made.source = Described()
    return made


def test_it_is_given_what_the_reward_saw_cut_as_sampled(tmp_path: Path) -> None:
    judge, told = Judge(), []

    def on_samples(found: list[Any], step: int, trackers: list[Any]) -> None:
        told.append((found, step, trackers))

    assert run(tmp_path, Toy(), on_samples, reward=judge).train()
    assert [step for _, step, _ in told] == [0, 1] and [trackers for _, _, trackers in told] == [[], []]
    assert sum(int(rewards.isnan().sum()) for found, *_ in told for _, _, _, rewards, _ in found) == 8
    for found, step, _ in told:
        calls = judge.seen[3 * step : 3 * step + 3]
        assert [len(images) for images, *_ in found] == [5, 5, 2]
        for (images, prompts, metadata, rewards, info), (seen, asked) in zip(found, calls, strict=True):
            assert torch.equal(images, seen) and images.device.type == "cpu" and not images.requires_grad
            assert prompts == asked.texts and metadata == asked.metadata and isinstance(metadata[0], dict)
            value = Judge()(seen, asked).value
            assert torch.equal(rewards.nan_to_num(9), value.float().nan_to_num(9))
            assert list(info) == ["half"] and torch.equal(info["half"].nan_to_num(9), (value / 2).float().nan_to_num(9))


def test_it_cannot_change_the_run(tmp_path: Path) -> None:
    plain, watched = Toy(), Toy()

    def meddles(found: list[Any], step: int, trackers: list[Any]) -> None:
        for images, _, _, rewards, _ in found:
            images.zero_()
            rewards.zero_()
        torch.manual_seed(step)

    assert run(tmp_path / "plain", plain, None).train() and run(tmp_path / "watched", watched, meddles).train()
    assert same(plain.state(), watched.state())


def test_its_exception_is_the_users(tmp_path: Path) -> None:
    def on_samples(found: list[Any], step: int, trackers: list[Any]) -> None:
        raise KeyError("a mistake of the user's")

    with pytest.raises(KeyError, match="mistake of the user's") as caught:
        run(tmp_path, Toy(), on_samples).train()
    assert caught.traceback[-1].name == "on_samples"


def test_without_it_no_picture_is_decoded_and_another_rank_calls_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, decode = [], Toy.decode
    monkeypatch.setattr(Toy, "decode", lambda self, x0: decoded.append(len(x0)) or decode(self, x0))

    def fails(found: list[Any], step: int, trackers: list[Any]) -> None:
        raise AssertionError("only rank 0 calls it")

    assert run(tmp_path / "a", Toy(), None).train()
    assert run(tmp_path / "b", Toy(), fails, write=False).train()
    assert decoded == [5, 5, 2] * 4  # the sampling of two iterations of two runs


def test_an_iteration_without_a_rollout_has_no_pictures() -> None:
    it: Iteration = iteration_of(SMALL, Toy())
    policy: Policy = it.policy
    assert batches(it, policy, {}) == []


def test_trackers_are_told_of_every_iteration_and_handed_on(tmp_path: Path) -> None:
    told, handed = Told(), []

    def on_samples(found: list[Any], step: int, trackers: list[Any]) -> None:
        handed.append((len(told.rows), trackers))

    class Coloured(Toy):
        def decode(self, x0: Tensor) -> Tensor:
            return super().decode(x0).sigmoid().reshape(-1, 1, 2, 2).repeat(1, 3, 1, 1)

    judge = Judge()

    def grey(images: Tensor, prompts: Prompts) -> Scores:
        return judge(images.mean(1).reshape(-1, 4, 1, 1), prompts)

    assert run(tmp_path, Coloured(), on_samples, reward=grey, trackers=told, samples=4).train()
    rows, kept = read_lines(tmp_path / "metrics.jsonl"), read_lines(tmp_path / "samples.jsonl")
    assert handed == [(1, told.raw), (2, told.raw)]
    for k, (row, rewards, samples) in enumerate(told.rows):
        assert row["iteration"] == k and row["reward"]["mean"] == rows[k]["reward"]["mean"]
        finite = [value for value in rewards if value == value]
        assert len(rewards) == 12 and sum(finite) / len(finite) == pytest.approx(row["reward"]["mean"])
        wanted = [one["file"] for one in kept if one["iteration"] == k]
        assert [one["file"] for one in samples] == wanted and len(wanted) == 4
        assert all((tmp_path / file).is_file() for file in wanted)


def test_a_record_without_trackers_has_none(tmp_path: Path) -> None:
    found = Record(tmp_path, iterations=1).trackers
    assert isinstance(found, Trackers) and found.raw == []

"""The learning runs: a control knows nothing, a line belongs to its settings, what is there is not made again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import learn
import pytest
import torch
from controls import CHECKED, Permuted, Signed
from learn import Job, fill, jobs_of, summary
from rows import CLIP, ROWS, Row
from torch import Tensor

from tastemaker import config
from tastemaker.rewards.reward import adapt
from tastemaker.shapes import assets

ROW = Row("mine", "short", "ddpo", "jpeg_compressibility", {"images": 8, "iterations": 2})


def place(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0, 0, 0]


def pictures(count: int) -> Tensor:
    return torch.arange(float(count))[:, None, None, None].expand(-1, 3, 8, 8)


def test_permuted_rewards_are_the_same_numbers_of_other_pictures() -> None:
    one, same, other = (Permuted(adapt(place), seed) for seed in (0, 0, 1))
    assert one.name == "permuted_place"
    calls = [one(pictures(16), ["a"] * 16) for _ in range(3)]
    for value in calls:
        assert sorted(value.tolist()) == list(range(16)) and value.tolist() != list(range(16))
    assert len({tuple(value.tolist()) for value in calls}) == 3
    assert [same(pictures(16), ["a"] * 16).tolist() for _ in calls] == [value.tolist() for value in calls]
    assert other(pictures(16), ["a"] * 16).tolist() != calls[0].tolist()


def test_the_contract_check_sees_the_reward_as_it_is_and_counts_no_call() -> None:
    checked, plain = (Permuted(adapt(place), 0) for _ in range(2))
    assert checked(pictures(CHECKED), ["a"] * CHECKED).tolist() == list(range(CHECKED))
    assert checked(pictures(16), ["a"] * 16).tolist() == plain(pictures(16), ["a"] * 16).tolist()


def test_signed_rewards_are_the_same_numbers_with_half_of_the_gradients_turned_around() -> None:
    grads = []
    for seed in (0, 0, 1):
        reward = Signed(adapt(place), seed)
        calls = []
        for _ in range(3):
            images = pictures(16).clone().requires_grad_()
            value = reward(images, ["a"] * 16)
            assert value.tolist() == list(range(16))
            (grad,) = torch.autograd.grad(value.sum(), images)
            assert {*grad[:, 0, 0, 0].tolist()} == {-1.0, 1.0} and grad.abs().sum() == 16 and grad.sum() == 0
            calls.append(tuple(grad[:, 0, 0, 0].tolist()))
        assert len({*calls}) == 3
        grads.append(calls)
    assert grads[0] == grads[1] != grads[2]


def digest(row: Row, **overrides: Any) -> str:
    (job,) = jobs_of([replace(row, seeds=1, control=False)], None, "shapes", overrides)
    return job.digest


def _other_clip(home: Path) -> Path:
    (home / assets.SUMS).write_text("{}")
    return home


def test_a_digest_belongs_to_all_that_decides_what_a_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [
        replace(ROW, target="reinforce"),
        replace(ROW, reward="jpeg_incompressibility"),
        replace(ROW, fields={"images": 8, "iterations": 3}),
        replace(ROW, evaluation={**ROW.evaluation, "steps": 10}),
    ]
    found = [digest(ROW), *map(digest, others), digest(ROW, iterations=5)]
    assert len(set(found)) == len(found) and digest(ROW) == found[0]
    looking = replace(ROW, reward=f"clip_score{{{CLIP}}}")
    before = digest(looking)
    with monkeypatch.context() as other:
        other.setattr(assets, "clip", lambda: _other_clip(tmp_path))
        assert digest(looking) != before and digest(ROW) == found[0]  # a CLIP belongs to the rows that look through it
    assert digest(replace(ROW, seconds=1.0, seeds=7, group="long", name="yours")) == found[0]  # names, limits, counts
    brings = config.model_defaults

    def changed(where: Path, *, part: str, own: dict[str, Any]) -> dict[str, Any]:
        algorithms = brings(where)["algorithms"]
        return brings(where) | {"algorithms": {**algorithms, part: {**algorithms[part], **own}}}

    for part, own, same in (
        ("reinforce", {"images": 2}, True),  # of another algorithm
        ("ddpo", dict.fromkeys(ROW.fields, 2), True),  # what the row says itself
        ("ddpo", {"clip": 0.5}, False),
    ):
        monkeypatch.setattr(
            config, "model_defaults", lambda where, of=(part, own): changed(where, part=of[0], own=of[1])
        )
        assert (digest(ROW) == found[0]) is same, part


def test_a_control_comes_right_after_its_run() -> None:
    jobs = list(jobs_of([ROW], None, "shapes", {}))
    assert [(job.seed, job.control) for job in jobs] == [(k, c) for k in range(3) for c in (False, True)]
    assert len({job.digest for job in jobs}) == 1 and len({job.key for job in jobs}) == 6
    assert [job.seed for job in jobs_of([replace(ROW, control=False)], [4, 5], "shapes", {})] == [4, 5]
    assert len({row.name for row in ROWS}) == len(ROWS)


def made(job: Job) -> dict[str, Any]:
    row, seed, control, digest = job.key
    change = {"sd": 1.0, "low": 0.5}
    return {"row": row, "seed": seed, "control": control, "digest": digest, "change": change, "seconds": 2.0}


def test_runs_that_are_there_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, path = list(jobs_of([ROW], None, "shapes", {})), tmp_path / "all" / "learn.jsonl"
    began: list[tuple[int, bool]] = []
    dying = {(1, True)}

    def alone(job: Job, folder: Path, threads: int) -> dict[str, Any]:
        began.append((job.seed, job.control))
        if began[-1] in dying:
            raise RuntimeError("it died")
        return made(job)

    def again(some: Sequence[Job] = jobs) -> tuple[int, list[tuple[int, bool]]]:
        began.clear()
        return fill(some, path, at_once=1, threads=1, keep=tmp_path / "kept"), list(began)

    monkeypatch.setattr(learn, "alone", alone)
    assert again() == (1, [(job.seed, job.control) for job in jobs])
    assert len(learn.read(path)) == 5  # the one that died is no line, and cost no other its own
    dying.clear()
    assert again() == (0, [(1, True)]) and len(learn.read(path)) == 6
    assert again() == (0, [])
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:-1]) + whole[-1][:20])  # stopped in the middle of a line
    assert len(learn.read(path)) == 5 and again() == (0, [(1, True)])
    others = list(jobs_of([ROW], [0], "shapes", {"iterations": 9}))
    assert again(others) == (0, [(0, False), (0, True)])  # other settings are other runs


def lines(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_runs_line_has_the_numbers_that_the_run_wrote(tmp_path: Path) -> None:
    judged = []
    for iteration, sd in ((0, 0.0), (1, 0.25), (2, 0.75)):
        change = {"mean": sd / 2, "low": sd / 4, "high": sd, "deviations": sd}
        parts = {
            f"shapes_alignment.{name}": {"mean": 1 - sd / k} for k, name in enumerate(("colour", "shape", "count"), 1)
        }
        scores = {"jpeg_compressibility": {"mean": -3 + sd}, "shapes_alignment": {"mean": 0.5}, **parts}
        own = {"iteration": iteration, "reward": scores, "change": {"jpeg_compressibility": change}, "pictures": 8}
        judged.append(own | {"diversity": {"mean": 0.1 + sd, "metric": "pixels"}})
    spent = [
        {
            "iteration": k,
            "queries": 8,
            "network_calls": {"rows_forward": 100 + k, "rows_backward": 50 + k},
            "seconds": {"total": 1.5},
            "reward": {"mean": -2.0 - k},
            "updates": [{"mismatch": 0.1 * k}, {}],
        }
        for k in range(2)
    ]
    lines(tmp_path / "evaluations.jsonl", judged)
    lines(tmp_path / "metrics.jsonl", spent)
    (job,) = jobs_of([replace(ROW, seeds=1, control=False)], None, "shapes", {})
    found = summary(job, tmp_path)
    assert found["change"] == {"sd": 0.75, "mean": 0.375, "low": 0.1875, "high": 0.75}
    assert (found["iterations"], found["queries"], found["seconds"], found["mismatch"]) == (2, 16, 3.0, 0.1)
    assert (found["rows_forward"], found["rows_backward"]) == (201, 101) and found["reward"] == [-3, -2.25]
    assert found["training"] == [-2.0, -3.0] and found["digest"] == job.digest
    assert [one["sd"] for one in found["curve"]] == [0.0, 0.25, 0.75]
    assert [one["rows_forward"] for one in found["curve"]] == [0, 100, 201]
    assert found["curve"][2]["oracle_colour"] == 0.25 and found["curve"][2]["diversity"] == 0.85

"""Alarms as a user meets them: on by default, switched off, stopping a run, refused settings, oracles left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import runs
from tastemaker.evaluation.alarms import Rules
from tastemaker.preparation import read_by_alarms
from tastemaker.rewards import named
from tastemaker.rewards.reward import adapt
from tastemaker.settings import RunSettings


def test_every_row_has_the_watch_and_no_alarm_is_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.train(runs.words(folder, "--alarms.strips", "5"))
    for row in runs.metrics(folder):
        assert row["watch"]["pictures"] == 4 and row["watch"]["drift"] is not None
    first, second = (row["watch"] for row in runs.metrics(folder))
    assert 0 < first["drift"] < second["drift"] and 0 < first["kl"] < second["kl"]  # of the weights that it ended with
    assert 0 < first["diversity"] != first["diversity_base"] > 0 and "diversity" not in second
    assert runs.rows(folder, "metrics")[0]["seconds"]["watch"] > 0
    assert runs.settings(folder)["alarms"]["pictures"] == 32 and runs.settings(folder)["stop_on"] == []


def test_a_check_says_what_an_evaluation_of_the_same_weights_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same prompts, noise, guidance and steps; of the weights that the iteration ended with."""
    monkeypatch.setattr(Rules, "asks", lambda *_: True)
    flags = ("--evaluation.guidance", "3", "--evaluation.every", "1", "--held_out_rewards", runs.reward("redness"))
    runs.train(runs.words(tmp_path, *flags))
    for row, judged in zip(runs.rows(tmp_path, "metrics"), runs.rows(tmp_path, "evaluations")[1:], strict=True):
        watch, change = row["watch"], judged["change"]
        assert row["iteration"] + 1 == judged["iteration"] and watch["checked"] == judged["pictures"] == 4
        assert watch["checked_trained"] == pytest.approx(change["brightness"]["deviations"], rel=1e-4)
        assert watch["checked.redness"] == pytest.approx(change["redness"]["deviations"], rel=1e-4)
        assert watch["checked_error.redness"] > 0


def test_without_alarms_nothing_is_watched_and_no_bit_differs(tmp_path: Path) -> None:
    folder, _ = runs.finished()
    runs.train(runs.words(tmp_path, "--no-alarms"))
    assert runs.weights(tmp_path) == runs.weights(folder) and runs.settings(tmp_path)["alarms"] is None
    without = [{key: value for key, value in row.items() if key != "watch"} for row in runs.metrics(folder)]
    assert runs.metrics(tmp_path) == without


def test_an_alarm_stops_the_run_says_why_and_leaves_weights(tmp_path: Path) -> None:
    held_out = ("--held_out_rewards", runs.reward("redness"))
    argv = runs.words(tmp_path, *held_out, "--iterations", "4", "--stop_on", "drift", "--alarms.drift", "1e-12")
    ran = runs.call(*argv)
    assert ran.code == 0 and ran.err.startswith("ALARM drift: the prediction is ") and ran.err.count("\n") == 1
    assert "stopped by an alarm, drift: the prediction is" in ran.out
    assert (tmp_path / runs.LORA).is_file() and len(runs.rows(tmp_path, "metrics")) == 2
    (alarm,) = runs.rows(tmp_path, "alarms")
    assert set(alarm) == {"iteration", "alarm", "message", "value", "threshold", "stopped"} and alarm["stopped"]
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["by"] == "held_out.redness" and (tmp_path / best["checkpoint"] / "MANIFEST.json").is_file()
    ran = runs.call(*argv, "--resume_from_checkpoint", "latest")
    assert (ran.code, ran.err) == (0, "") and len(runs.rows(tmp_path, "metrics")) == 4
    assert runs.rows(tmp_path, "alarms") == [alarm]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--stop_on partin", "--stop_on is 'partin'; it is one or several of parting, diversity, drift"),
        ("--stop_on any --no-alarms", "--stop_on is 'any', but alarms are off"),
        ("--stop_on drift --alarms.drift none", "--stop_on is 'drift', but that alarm is off"),
        ("--alarms.pictures 0", "--alarms.pictures is 0; it is 1 or more"),
        ("--alarms.drft 1", "--alarms.drft is not a setting of alarms.  Did you mean `--alarms.drift`"),
        ("--best_metric clip", "--best_metric is 'clip'; it is one of reward, redness."),
        (
            "--best_metric redness --no-alarms",
            "--best_metric is 'redness'; it is one of reward. Held-out rewards are mea",
        ),
        (
            "--best_metric reward --best_checkpoints 0",
            "--best_metric is 'reward', but best_checkpoints is 0: leave one",
        ),
        ("--best_metric reward --alarms.best redness", "--best_metric is 'reward', which alarms.best says too: leave"),
        ("--best_metric=", "--best_metric is ''; it is one of reward, redness."),
        ("--best_checkpoints -1", "--best_checkpoints is -1; it is 0 or more."),
        ("--alarms.best clip", "--alarms.best is 'clip'; it is one of --held_out_rewards that is no oracle: redness"),
    ],
)
def test_wrong_settings_are_named_as_typed(flags: str, said: str, tmp_path: Path) -> None:
    held_out = ("--held_out_rewards", runs.reward("redness"))
    ran = runs.call(*runs.words(tmp_path / "run", *held_out, *flags.split()))
    assert ran.code == 2 and ran.err.startswith(f"tastemaker: {said}") and not (tmp_path / "run").exists()


def test_a_part_that_the_reward_does_not_give_is_refused_with_those_it_does(tmp_path: Path) -> None:
    argv = runs.words(tmp_path / "run", "--reward", runs.reward("redness"), "--best_metric", "yellow")
    ran = runs.call(*argv)
    assert ran.code == 2 and "--best_metric is 'yellow'; it is one of reward, green, blue.\n" in ran.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "by"), [("--best_metric reward --no-alarms", "reward"), ("--best_metric blue", "parts.blue")]
)
def test_the_best_ones_by_the_reward_or_a_part_of_it(flags: str, by: str, tmp_path: Path) -> None:
    few = "--algorithm.images 2 --algorithm.updates 1 --iterations 4 --checkpointing_steps 0 --best_checkpoints 2"
    argv = runs.words(tmp_path, "--reward", runs.reward("redness"), *few.split(), *flags.split())
    ran = runs.train(argv)
    found = json.loads((tmp_path / "best.json").read_text())
    assert ran.code == 0 and found["by"] == by and len(found["kept"]) == 2
    values = [row["value"] for row in found["kept"]]
    assert values == sorted(values, reverse=True) and values[0] == found["value"]
    for row in found["kept"]:
        assert 1 <= row["iteration"] <= 3 and (tmp_path / row["checkpoint"] / "MANIFEST.json").is_file()
    best = runs.train([*argv, "--resume_from_checkpoint", str(tmp_path / found["kept"][1]["checkpoint"])])
    gone = max(row["iteration"] for row in found["kept"])
    back = found["kept"][1]["iteration"]
    assert ("removed from" in best.out) == (gone > back)  # it is made again, or another is better
    assert "iteration 4/4" in best.out and json.loads((tmp_path / "best.json").read_text())["by"] == by


def test_none_is_kept_where_none_is_asked_for(tmp_path: Path) -> None:
    runs.train(runs.small(tmp_path, "--held_out_rewards", runs.reward("redness"), "--best_checkpoints", "0"))
    assert not (tmp_path / "checkpoints" / "best").exists()


def test_a_run_that_clips_no_ratio_cannot_stop_on_it(tmp_path: Path) -> None:
    argv = runs.words(tmp_path / "run", "--algorithm.updates", "1", "--stop_on", "ratio")
    ran = runs.call("train", "reinforce", *argv[2:])
    assert ran.code == 2 and "--stop_on is 'ratio', but reinforce clips no ratio" in ran.err
    assert not (tmp_path / "run").exists()


def quiet(images: Any, prompts: Any) -> Any:
    return images.mean((1, 2, 3))


def test_what_calls_itself_an_oracle_is_read_by_no_alarm() -> None:
    shapes = named("shapes_alignment")
    mixed = adapt(named("brightness:1,shapes_alignment:0.1"), "mixed")
    assert shapes.oracle and mixed.oracle and not named("shapes_judge").oracle and not adapt(quiet).oracle
    run = RunSettings(model="shapes")
    assert read_by_alarms(run, [shapes, named("shapes_judge"), mixed, adapt(quiet)]) == ["shapes_judge", "quiet"]


def test_the_built_in_world_has_a_reward_that_alarms_may_read() -> None:
    found = json.loads((Path(runs.tiny.__file__).parents[1] / "src/tastemaker/shapes/tastemaker.json").read_text())
    held_out = [named(name) for name in found["defaults"]["held_out_rewards"]]
    assert read_by_alarms(RunSettings(model="shapes"), held_out) == ["shapes_judge"]

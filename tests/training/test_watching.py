"""The watch over runs on the toy policy: it changes no bit, is resumed exactly, stops runs, and keeps the best."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tastemaker.algorithms.ddpo import DDPO
from tastemaker.evaluation.alarms import ONE_SIDED, Alarms, Rules
from tastemaker.evaluation.checking import Check
from tastemaker.evaluation.evaluate import Trial, trial_prompts
from tastemaker.evaluation.watch import Watch
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.sources import source
from tastemaker.rewards.reward import adapt
from tastemaker.training.best import Best
from tastemaker.training.checkpoint import Checkpoints, Cursor
from tastemaker.training.lines import read_lines
from tastemaker.training.merit import Merit
from tastemaker.training.trainer import Training
from tastemaker.training.watching import Watching
from tastemaker.world import World
from toy import Toy
from toy_runs import SEED, TEXTS, closeness, metrics, same
from trajectories.ranks import Case, Halting
from trajectories.test_resume import COPIED, LAST, MATCHED, PLAIN, SMALL, WINDOWS


def small(images: Tensor, prompts: Any) -> Tensor:
    """Held out: near 0, where the trained reward leads away from."""
    return -images.abs().flatten(1).mean(1)


def truth(images: Tensor, prompts: Any) -> Tensor:
    raise AssertionError("an oracle was asked")


truth.oracle = True  # type: ignore[attr-defined]
BY = "held_out.small"
QUIET = {"drift": None, "diversity": None, "artifact": None, "saturation": None, "ratio": None, "parting": None}


def watched(
    run: Training,
    folder: Path,
    *,
    stop_on: tuple[str, ...] = (),
    keep: int = 1,
    by: str = BY,
    held_out: Any = small,
    **settings: Any,
) -> Training:
    """The run with a watch over it, as the composition root gives it one."""
    alarms, algorithm = Alarms(**{"pictures": 6, "checks": 6, **settings}), run.algorithm
    strips, fixed = (
        Trial(trial_prompts(source(TEXTS), count, each, SEED), 4, 1.0, DDIM(eta=0.0), SEED, 8)
        for count, each in ((2, 2), (96, 1))
    )
    judge = adapt(held_out, "small")
    check = Check(fixed, run.reward.reward, [judge])
    watch = Watch(alarms, algorithm.training_sampler, [judge, adapt(truth)], strips, check)
    run.record.watching = Watching(folder, watch, partial(Rules, alarms, ["small"]), stop_on=stop_on)
    run.best = Best(folder, run.world, Merit(by, alarms.window), keep)
    run.reward.seen = watch.see
    return run


def made(case: Case, folder: Path, policy: Toy | None = None, **more: Any) -> tuple[Training, Toy]:
    policy = policy or case.policy()
    settings = {name: more.pop(name) for name in ("save", "world") if name in more}
    return watched(case.run(folder, policy, **settings), folder, **more), policy


CASES = {"plain": PLAIN, "windows": WINDOWS, "draft": LAST, "copied": COPIED, "matched": MATCHED}


@pytest.mark.parametrize("name", CASES)
def test_it_changes_no_bit(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    bare, looked = case.policy(), case.policy()
    assert case.run(tmp_path / "bare", bare).train()
    assert made(case, tmp_path / "watched", looked)[0].train()
    assert same(bare.state(), looked.state())
    assert metrics(tmp_path / "bare") == metrics(tmp_path / "watched", "watch")
    for row in metrics(tmp_path / "watched"):
        watch = row["watch"]
        assert watch["pictures"] == 6 and watch["periodicity"] is None  # no grid in pictures of one pixel
        assert {"drift", "diversity", "spread", "saturation", "held_out.small", "held_out_sd.small"} <= watch.keys()
        assert ("kl" in watch) == (name in ("plain", "windows"))
    assert not (tmp_path / "bare" / "alarms.jsonl").exists() and "watch" not in metrics(tmp_path / "bare")[0]


STOPS = {
    "in a rollout": (PLAIN, "drawing", 13 + 5),
    "in a later update": (PLAIN, "learning", 14 + 10),
    "in a second update of pictures that are seen while they are learned from": (LAST, "learning", 4 + 2 + 2),
    "matched": (MATCHED, "learning", 4 + 3),
}


@pytest.mark.parametrize("place", STOPS)
def test_a_stopped_run_goes_on_to_the_same_numbers(place: str, tmp_path: Path) -> None:
    case, kind, number = STOPS[place]
    straight, policy = made(case, tmp_path / "straight", save=1)
    assert straight.train()
    world = World()
    # the base is asked for the watch too, but never in the calls that are counted before the first iteration has ended
    policy_ = case.policy(Halting, world=world, place=kind, number=number)
    assert not made(case, tmp_path / "stopped", policy_, world=world, save=1)[0].train()
    run, again = made(case, tmp_path / "stopped", save=1)
    assert run.train(run.checkpoints.latest())
    assert same(policy.state(), again.state())
    assert metrics(tmp_path / "straight", "network_calls") == metrics(tmp_path / "stopped", "network_calls")


def test_an_alarm_stops_the_run_once_and_it_can_go_on(tmp_path: Path) -> None:
    straight, policy = made(PLAIN, tmp_path / "straight", **QUIET)
    assert straight.train() and not (tmp_path / "straight" / "alarms.jsonl").exists()
    run, _ = made(PLAIN, tmp_path / "a", stop_on=("drift",), **QUIET | {"drift": 1e-9})
    assert not run.train() and run.stopped.startswith("drift: the prediction is ")
    (line,) = read_lines(tmp_path / "a" / "alarms.jsonl")
    assert line["iteration"] == 1 and line["alarm"] == "drift" and line["stopped"] is True
    assert line["value"] > line["threshold"] == 1e-9 and line["message"] in run.stopped
    run, again = made(PLAIN, tmp_path / "a", stop_on=("drift",), **QUIET | {"drift": 1e-9})
    start = run.checkpoints.latest()
    assert start is not None and start.cursor == Cursor(2, 0) and run.train(start) and not run.stopped
    assert same(policy.state(), again.state())
    assert metrics(tmp_path / "straight") == metrics(tmp_path / "a")
    assert read_lines(tmp_path / "a" / "alarms.jsonl") == [line]


def test_a_fall_is_looked_into_on_fixed_pictures_and_a_run_that_goes_on_does_the_same(tmp_path: Path) -> None:
    case = Case(DDPO(clip=0.2, learning_rate=0.03, **SMALL | {"iterations": 7}))
    only = QUIET | {"parting": 0.1, "held_out": lambda images, prompts: -closeness(images, prompts)}
    straight, policy = made(case, tmp_path / "straight", save=1, **only)
    assert straight.train()
    rows = metrics(tmp_path / "straight")
    checked = [row["iteration"] for row in rows if "checked" in row["watch"]]
    assert checked and 0 not in checked and len(checked) < 6
    rules = Rules(Alarms(checks=6, **QUIET | {"parting": 0.1}), ["small"])
    for row in rows:
        bare = {name: value for name, value in row["watch"].items() if not name.startswith("checked")}
        assert rules.asks({**row, "watch": bare}) == (row["iteration"] in checked)
        rules.see(row)
    (alarm, *_) = read_lines(tmp_path / "straight" / "alarms.jsonl")
    first = rows[alarm["iteration"]]["watch"]
    assert alarm["alarm"] == "parting" and first["checked"] == 96 and first["checked_trained"] > 0
    assert alarm["value"] == -first["checked.small"] - ONE_SIDED * first["checked_error.small"] > 0.1

    stopped, _ = made(case, tmp_path / "stopped", save=1, stop_on=("parting",), **only)
    assert not stopped.train() and stopped.stopped == f"parting: {alarm['message']}"
    again, after = made(case, tmp_path / "stopped", save=1, stop_on=("parting",), **only)
    assert again.train(again.checkpoints.latest())
    assert same(policy.state(), after.state()) and metrics(tmp_path / "stopped") == rows


def test_alarms_behind_the_cursor_are_forgotten(tmp_path: Path) -> None:
    run, _ = made(PLAIN, tmp_path, save=1, **QUIET | {"drift": 1e-9})
    assert run.train()
    file = tmp_path / "alarms.jsonl"
    before = file.read_text()
    file.write_text(before + before.splitlines()[1].replace('"iteration": 1', '"iteration": 2') + "\n")
    run, _ = made(PLAIN, tmp_path, save=1, **QUIET | {"drift": 1e-9})
    assert run.train(Checkpoints.open(tmp_path / "checkpoints" / "checkpoint-1"))
    assert file.read_text() == before


@pytest.mark.parametrize("save", [0, 1], ids=["in memory", "written"])
def test_the_best_checkpoint_is_that_of_the_weights_whose_pictures_are_best(save: int, tmp_path: Path) -> None:
    run, _ = made(PLAIN, tmp_path, save=save, window=1)
    states: dict[int, dict[str, Tensor]] = {}
    offer = run.best.offer  # type: ignore[union-attr]

    def noted(cursor: Cursor, *rest: Any) -> None:
        states[cursor.iteration] = {name: tensor.clone() for name, tensor in run.policy.state().items()}
        offer(cursor, *rest)

    run.best.offer = noted  # type: ignore[union-attr, method-assign]
    assert run.train()
    found = json.loads((tmp_path / "best.json").read_text())
    worth = {row["iteration"]: row["watch"]["held_out.small"] for row in metrics(tmp_path)}
    assert found["by"] == "held_out.small" and found["value"] == worth[found["iteration"]]
    margin = 0.1 * metrics(tmp_path)[0]["watch"]["held_out_sd.small"]
    assert found["value"] >= max(worth[k] for k in (1, 2)) - margin and found["iteration"] in (1, 2)
    best = tmp_path / found["checkpoint"]
    assert best == tmp_path / "checkpoints" / "best" / f"checkpoint-{found['iteration']}"
    assert [path.name for path in best.parent.iterdir()] == [best.name]
    opened = Checkpoints.open(best)
    assert opened.cursor == Cursor(found["iteration"], 0)
    mine = {name.removeprefix("policy/"): t for name, t in opened.tensors.items() if name.startswith("policy/")}
    assert same(mine, states[found["iteration"]])
    if save:
        ordinary = tmp_path / "checkpoints" / best.name / "state.safetensors"
        assert os.path.samefile(ordinary, best / "state.safetensors")  # no second copy


def test_the_best_one_outlives_the_limit_and_not_a_restart_before_it(tmp_path: Path) -> None:
    run, _ = made(PLAIN, tmp_path, save=1)
    run.best.settle = partial(settled_once, run.best, run.best.settle)  # type: ignore[union-attr, method-assign]
    metrics_file = tmp_path / "metrics.jsonl"
    run.checkpoints.limit = 2
    assert run.train()
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"checkpoint-2", "checkpoint-3", "best"}
    assert Checkpoints.open(tmp_path / "checkpoints" / "best" / "checkpoint-1").cursor == Cursor(1, 0)
    kept = read_json(tmp_path / "best.json")["kept"]
    latest = run.checkpoints.latest()
    assert latest is not None and latest.data["best"] == kept
    of_old = latest._replace(data={key: value for key, value in latest.data.items() if key != "best"})
    for start in (latest, of_old):  # of an earlier version, which wrote no list
        Best(tmp_path, World(), Merit(BY)).rewind(start, metrics_file)
        assert read_json(tmp_path / "best.json")["kept"] == kept
    before = of_old._replace(cursor=Cursor(0, 3))
    Best(tmp_path, World(), Merit(BY)).rewind(before, metrics_file)
    assert not (tmp_path / "best.json").exists() and not list((tmp_path / "checkpoints" / "best").iterdir())


def settled_once(best: Best, settle: Any, row: Any) -> None:
    """Only the first one counts."""
    settle(row if not (best.folder / "best.json").exists() else row | {"watch": {BY: -99.0}})


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())


@pytest.mark.parametrize(("by", "save"), [("reward", 0), ("parts.half", 2), (BY, 1)])
def test_so_many_of_the_best_are_kept_best_first(by: str, save: int, tmp_path: Path) -> None:
    case = Case(DDPO(clip=0.2, learning_rate=0.02, **SMALL | {"iterations": 6}), lost=(3,))
    run, _ = made(case, tmp_path, save=save, window=1, keep=2, by=by)
    run.best.merit.window = 1  # type: ignore[union-attr]
    assert run.train()
    rows = metrics(tmp_path)
    found = {"reward": lambda row: row["reward"]["mean"], BY: lambda row: row["watch"][BY]}
    read = found.get(by, lambda row: row["reward"]["parts"]["half"])
    margin = 0.1 * {"reward": rows[0]["reward"]["std"], BY: rows[0]["watch"]["held_out_sd.small"]}.get(by, 0.0)
    wanted: list[tuple[float, int]] = []
    for row in rows[1:]:
        if len(wanted) < 2 or read(row) > wanted[-1][0] + margin:
            wanted = sorted([*wanted, (read(row), row["iteration"])], reverse=True)[:2]
    told = read_json(tmp_path / "best.json")
    assert [(row["value"], row["iteration"]) for row in told["kept"]] == wanted
    assert {key: told[key] for key in told if key != "kept"} == told["kept"][0] and told["by"] == by
    names = {path.name for path in (tmp_path / "checkpoints" / "best").iterdir()}
    assert names == {f"checkpoint-{iteration}" for _, iteration in wanted}
    assert all(Checkpoints.open(tmp_path / row["checkpoint"]).cursor == (row["iteration"], 0) for row in told["kept"])


def test_a_run_that_goes_back_has_the_best_of_that_time(tmp_path: Path) -> None:
    """Also where a better one came after the checkpoint and would have taken its place."""
    run, _ = made(PLAIN, tmp_path, save=2, window=1)
    worth = iter((-5.0, -4.0, -3.0))

    def settle(row: Any, settled: Any = run.best.settle) -> None:  # type: ignore[union-attr]
        settled(row | {"watch": {BY: next(worth)}})
        if row["iteration"] == 2:
            raise KeyboardInterrupt  # as killed, before the checkpoint that would know of it

    run.best.settle = settle  # type: ignore[union-attr, method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert read_json(tmp_path / "best.json")["iteration"] == 2
    again, _ = made(PLAIN, tmp_path, save=2, window=1)
    start = again.checkpoints.latest()
    assert start is not None and start.cursor == (2, 0)
    again.best.rewind(start, tmp_path / "metrics.jsonl")  # type: ignore[union-attr]
    assert [row["iteration"] for row in read_json(tmp_path / "best.json")["kept"]] == [1]
    assert [path.name for path in (tmp_path / "checkpoints" / "best").iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize(("call", "updates"), [(1, 0), (10, 2)])
def test_of_a_run_stopped_inside_an_iteration_its_beginning_may_be_the_best(
    call: int, updates: int, tmp_path: Path
) -> None:
    straight, _ = made(PLAIN, tmp_path / "straight", window=1, keep=3, by="reward")
    assert straight.train()
    world = World()
    policy = PLAIN.policy(Halting, world=world, place="learning", number=14 + call)
    assert not made(PLAIN, tmp_path / "a", policy, world=world, window=1, keep=3, by="reward")[0].train()
    run, _ = made(PLAIN, tmp_path / "a", window=1, keep=3, by="reward")
    start = run.checkpoints.latest()
    assert start is not None and start.cursor == (1, updates) and start.per_rank and run.train(start)
    assert (tmp_path / "a" / "best.json").read_text() == (tmp_path / "straight" / "best.json").read_text()
    assert [row["iteration"] for row in read_json(tmp_path / "a" / "best.json")["kept"]].count(1) == 1
    own, other = (Checkpoints.open(tmp_path / of / "checkpoints/best/checkpoint-1") for of in ("a", "straight"))
    assert same(own.tensors, other.tensors) and own.data == other.data


def test_pictures_of_a_stopped_iteration_are_in_its_checkpoint_and_nothing_else_is(tmp_path: Path) -> None:
    world = World()
    policy = PLAIN.policy(Halting, world=world, place="learning", number=5)
    assert not made(PLAIN, tmp_path, policy, world=world)[0].train()
    found = Checkpoints(tmp_path / "checkpoints").latest()
    assert found is not None
    kept = found.per_rank[0]["kept"]
    assert kept["watch.pictures"].dtype == torch.uint8 and len(kept["watch.ids"]) == 6
    assert list(map(int, kept["watch.ids"])) == sorted(map(int, kept["watch.ids"]))

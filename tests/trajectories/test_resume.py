"""A run that is asked to stop, anywhere, and is then resumed, is the run that was never stopped: the same bits."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import tiny
from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.algorithms.awm import AWM
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.diffusion_dpo import DiffusionDPO
from tastemaker.algorithms.diffusion_nft import DiffusionNFT
from tastemaker.algorithms.draft import DRaFT
from tastemaker.algorithms.flow_grpo import FlowGRPO
from tastemaker.algorithms.grad_copy import GradCopy
from tastemaker.algorithms.ram import RAM
from tastemaker.algorithms.rwr import RWR
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load
from tastemaker.process.samplers import DDIM, Window
from tastemaker.prompts.prompts import Prompts
from tastemaker.training.checkpoint import Checkpoint, Checkpoints
from tastemaker.training.trainer import Training
from tastemaker.world import World
from thinning import thinned
from toy_runs import metrics, run_of, same
from trajectories.ranks import Case, Halting

FRESH = {"images": 8, "per_prompt": 2, "updates": 2, "steps": 4, "guidance": 2.0, "iterations": 3}
SMALL = FRESH | {"inner_epochs": 2}
PLAIN = Case(DDPO(clip=0.2, learning_rate=0.02, **SMALL), lost=(3,))
# With everything that lasts: each prompt's history, and old log-probs taken again because drawing disagrees.
RENEWED = Case(DDPO(clip=0.02, learning_rate=0.02, prompt_history=6, prompt_minimum=2, **SMALL), layout=1e-3, lost=(3,))
# A window for each group, and a base that is asked.
WINDOWS = Case(FlowGRPO(clip=0.2, sampler=Window(DDIM(), 2, each="group"), learning_rate=0.02, **SMALL), lost=(3,))
# What everyone's scores are worth beside each other is computed again from those that were kept.
SUMMED = WINDOWS._replace(standardise="group")
# Those that draw anew for every update.
LAST = Case(DRaFT(k=2, kl=0.3, learning_rate=0.02, **FRESH), lost=(3,))
TRUNCATED = Case(AlignProp(**FRESH | {"learning_rate": 0.02}), lost=(3,))
COPIED = Case(GradCopy(chosen=2, **FRESH | {"learning_rate": 0.02}), lost=(3,))
# Those that noise finished pictures again; the first two have old weights, and MIRRORED counts its iterations.
AGAIN = FRESH | {"learning_rate": 0.02, "levels": 2}
MIRRORED = Case(DiffusionNFT(kl=0.3, ramp=0.2, **AGAIN), lost=(3,))
MATCHED = Case(AWM(clip=0.2, kl=0.3, **AGAIN), lost=(3,))
TILTED = Case(RAM(**AGAIN), lost=(3,))
PREFERRED = Case(DiffusionDPO(beta=5.0, **AGAIN | {"levels": 3}), lost=(3,))
WEIGHED = Case(RWR(inner_epochs=2, **AGAIN), lost=(3,))


class Place(NamedTuple):
    """The number of the call, over the whole run, in which the stop is asked for, and the checkpoint it leads to.

    An iteration of RENEWED draws in 12 calls, takes log-probs again in 6, the first after 1 that finds out whether it
    must, and learns in 14: 4 updates of 3 or 4. PLAIN has no such 6, and WINDOWS has updates of 1 or 2. One of LAST
    draws in 4 for each of its 2 updates, which learn in 2 and ask the base in 2 more; one of COPIED draws in 8 for
    each, which learn in 2.

    MIRRORED and MATCHED draw in 12, and each of their 2 updates learns in 2 calls and asks base and old in 4 more;
    TILTED the base alone, in 2, and WEIGHED, which has 4 updates, nobody. PREFERRED has a pair less in one of its 2
    updates: they learn in 4 and 2 calls, of two graphs each, and ask the base in as many.
    """

    case: Case
    kind: str
    number: int
    checkpoint: str


PLACES = {
    "before the first pictures": Place(RENEWED, "evaluate", 1, "checkpoint-0"),
    "in the first rollout": Place(RENEWED, "drawing", 5, "checkpoint-0"),
    "in the call that measures the mismatch": Place(RENEWED, "drawing", 13, "checkpoint-0"),
    "in the first update of all": Place(RENEWED, "learning", 1, "checkpoint-0"),
    "in a later rollout": Place(RENEWED, "drawing", 19 + 5, "checkpoint-1"),
    "in the last call of a rollout": Place(RENEWED, "drawing", 19 + 12, "checkpoint-1"),
    "while log-probs are taken again": Place(RENEWED, "drawing", 19 + 12 + 3, "checkpoint-1"),
    "in the first update": Place(RENEWED, "learning", 14 + 2, "checkpoint-1"),
    "in the second epoch": Place(RENEWED, "learning", 14 + 8, "checkpoint-1-2"),
    "in the last call of the last update": Place(RENEWED, "learning", 14 + 14, "checkpoint-1-3"),
    "between updates": Place(RENEWED, "update", 4 + 1, "checkpoint-1-1"),
    "after the last update": Place(RENEWED, "update", 4 + 4, "checkpoint-2"),
    "after the last update of all": Place(RENEWED, "update", 12, "checkpoint-3"),
    "without renewal, in a rollout": Place(PLAIN, "drawing", 13 + 5, "checkpoint-1"),
    "without renewal, in an update": Place(PLAIN, "learning", 14 + 10, "checkpoint-1-2"),
    "without renewal, between updates": Place(PLAIN, "update", 4 + 3, "checkpoint-1-3"),
    "with windows, in a rollout": Place(WINDOWS, "drawing", 4, "checkpoint-0"),
    "with windows, in an update": Place(WINDOWS, "learning", 6 + 4, "checkpoint-1-2"),
    "with windows, between updates": Place(WINDOWS, "update", 4 + 1, "checkpoint-1-1"),
    "with a standardised sum, in a rollout": Place(SUMMED, "drawing", 4, "checkpoint-0"),
    "with a standardised sum, between updates": Place(SUMMED, "update", 4 + 1, "checkpoint-1-1"),
    "in the first prefix of all": Place(LAST, "drawing", 1, "checkpoint-0"),
    "in a first prefix": Place(LAST, "drawing", 12 + 2, "checkpoint-1"),
    "while the base is asked": Place(LAST, "drawing", 12 + 4 + 1, "checkpoint-1"),
    "in a first update": Place(LAST, "learning", 4 + 1, "checkpoint-1"),
    "after a first update": Place(LAST, "update", 2 + 1, "checkpoint-1-1"),
    "in a second prefix": Place(LAST, "drawing", 12 + 6 + 3, "checkpoint-1-1"),
    "in a second update": Place(LAST, "learning", 4 + 2 + 2, "checkpoint-1-1"),
    "after a second update": Place(LAST, "update", 2 + 2, "checkpoint-2"),
    "truncated, after a first update": Place(TRUNCATED, "update", 2 + 1, "checkpoint-1-1"),
    "truncated, in an update": Place(TRUNCATED, "learning", 10, "checkpoint-1"),
    "copied, in the first drawing": Place(COPIED, "drawing", 16 + 3, "checkpoint-1"),
    "copied, in the second drawing": Place(COPIED, "drawing", 16 + 8 + 3, "checkpoint-1-1"),
    "copied, in a second update": Place(COPIED, "learning", 4 + 2 + 2, "checkpoint-1-1"),
    "mirrored, in a rollout of the old weights": Place(MIRRORED, "drawing", 20 + 5, "checkpoint-1"),
    "mirrored, while old weights are asked": Place(MIRRORED, "drawing", 20 + 12 + 5, "checkpoint-1-1"),
    "mirrored, before old weights follow": Place(MIRRORED, "update", 2 + 2, "checkpoint-2"),
    "matched, in a rollout": Place(MATCHED, "drawing", 20 + 5, "checkpoint-1"),
    "matched, in a second update": Place(MATCHED, "learning", 4 + 3, "checkpoint-1-1"),
    "tilted, while the base is asked": Place(TILTED, "drawing", 16 + 12 + 3, "checkpoint-1-1"),
    "preferred, in a rollout": Place(PREFERRED, "drawing", 18 + 5, "checkpoint-1"),
    "preferred, in the last call of a second update": Place(PREFERRED, "learning", 6 + 6, "checkpoint-1-1"),
    "weighed, in the second epoch": Place(WEIGHED, "learning", 8 + 5, "checkpoint-1-2"),
    "weighed, between updates": Place(WEIGHED, "update", 4 + 1, "checkpoint-1-1"),
}


def halting(case: Case, folder: Path, kind: str, number: int) -> Training:
    """A run that is asked to stop there."""
    world, seen = World(), [0]

    def counted(event: str, then: Callable[..., None] = lambda *args: None) -> Callable[..., None]:
        def told(*args: Any) -> None:
            then(*args)
            seen[0] += event == kind
            if seen[0] == number:
                seen[0] += 1
                world.request_stop()

        return told

    def evaluate(index: int) -> None:
        counted("evaluate")(index)
        world.poll()

    policy = case.policy(Halting, world=world, place=kind, number=number)
    run = case.run(folder, policy, world=world, evaluate=evaluate, save=1)
    run.record.update = counted("update", run.record.update)
    return run


def resumed(case: Case, folder: Path) -> str:
    """Goes on from the latest checkpoint to the end; its name."""
    run = case.run(folder, case.policy(), save=1)
    start = run.checkpoints.latest()
    assert start is not None and run.train(start)
    return start.path.name


def last(folder: Path) -> Checkpoint:
    found = Checkpoints(folder / "checkpoints").latest()
    assert found is not None and found.cursor == (3, 0)
    return found


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Path]:
    """The folders of the runs that were never stopped."""
    folders = {case: tmp_path_factory.mktemp("straight") for case in {place.case for place in PLACES.values()}}
    for case, folder in folders.items():
        assert case.run(folder, case.policy(), save=1).train()
    return folders


def check_equal(one: Path, other: Path, *without: str) -> None:
    """Weights, averages, moments, counts, the algorithm's memory and the metrics, all to the last bit."""
    a, b = last(one), last(other)
    assert same(a.tensors, b.tensors) and a.data == b.data
    assert metrics(one, *without) == metrics(other, *without)


# All algorithms are killed, too (tests/faults/test_kills.py).
@pytest.mark.parametrize("name", thinned(PLACES, every=3, first=1))
def test_a_stopped_run_goes_on_to_the_same_bits(name: str, straight: dict[Case, Path], tmp_path: Path) -> None:
    case, kind, number, checkpoint = PLACES[name]
    assert not halting(case, tmp_path, kind, number).train()
    assert resumed(case, tmp_path) == checkpoint
    # Between the rollout and the first update, calls that were made for nothing are counted too.
    without = (
        ["network_calls"]
        if name in ("in the call that measures the mismatch", "while log-probs are taken again")
        else []
    )
    check_equal(tmp_path, straight[case], *without)


def test_what_is_compared_is_all_there(straight: dict[Case, Path]) -> None:
    found = last(straight[RENEWED])
    assert found.data["state"]["renew"] is True and set(found.data["state"]["history"]) <= {"cat", "dog", "cow"}
    assert max(map(len, found.data["state"]["history"].values())) == 6
    assert {name.split("/")[1] for name in found.tensors if name.startswith("policy/")} == {"current", "ema"}
    assert not last(straight[PLAIN]).data["state"]["renew"]
    found = last(straight[MIRRORED])
    assert found.data["state"]["done"] == 3
    sets = [
        {name: t for name, t in found.tensors.items() if f"policy/{which}/" in name} for which in ("old", "current")
    ]
    moved = [torch.cat([t.flatten() for t in tensors.values()]) for tensors in sets]
    assert (moved[0] - moved[1]).norm() > 1e-3  # it keeps some of what was before
    rows = metrics(straight[RENEWED])
    assert [row["iteration"] for row in rows] == [0, 1, 2] and all(len(row["updates"]) == 4 for row in rows)
    assert [row["queries"] for row in rows] == [8] * 3
    assert [row["updates"][0]["mismatch"] for row in rows] == [0.0] * 3
    assert rows[1]["network_calls"] == {"rows_forward": 2 * (12 * 3 + 6 * 5 + 14 * 5), "rows_backward": 2 * 14 * 5}


@pytest.mark.parametrize("case", [LAST, COPIED], ids=["draft", "copied"])
def test_an_update_that_was_made_is_passed_over_without_a_call(
    case: Case, straight: dict[Case, Path], tmp_path: Path
) -> None:
    """Its pictures are not drawn again, either: they are needed for nothing but the record, which has them."""
    assert not halting(case, tmp_path, "update", 2 + 1).train()
    policy = case.policy()
    run = case.run(tmp_path, policy, save=1)
    assert run.train(run.checkpoints.latest())
    calls = [row["network_calls"] for row in metrics(straight[case])]
    rows = {"rows_forward": policy.rows.forward, "rows_backward": policy.rows.backward}
    assert calls[1] == calls[2] and rows == {name: 1.5 * count for name, count in calls[1].items()}
    assert run.reward.queries == 1.5 * metrics(straight[case])[1]["queries"]


def test_a_run_can_be_stopped_again_and_again(straight: dict[Case, Path], tmp_path: Path) -> None:
    """Also before a resumed iteration has passed over the updates that were made."""
    names, at_once = [], ("at once", 0)
    places = (("learning", 14 + 8), at_once, ("update", 1), ("learning", 1), ("learning", 5), ("learning", 3), at_once)
    for kind, number in places:
        run = halting(RENEWED, tmp_path, kind, number)
        start = run.checkpoints.latest()
        names.append(start.path.name.removeprefix("checkpoint-") if start else "")
        if kind == "at once":
            run.world.request_stop()
        assert not run.train(start)
    assert names == ["", "1-2", "1-2", "1-3", "1-3", "2", "2"]
    assert resumed(RENEWED, tmp_path) == "checkpoint-2"
    check_equal(tmp_path, straight[RENEWED])


def test_a_stop_before_the_replay_is_over_is_saved_where_the_run_stands(tmp_path: Path) -> None:
    """Under an earlier cursor, such as that of the iteration's beginning, these weights would be wrong."""

    def seals() -> dict[str, bytes]:
        return {path.parent.name: path.read_bytes() for path in tmp_path.glob("checkpoints/*/MANIFEST.json")}

    assert not halting(PLAIN, tmp_path, "learning", 14 + 10).train()
    before = seals()
    assert before.keys() == {"checkpoint-1", "checkpoint-1-2"}
    run = PLAIN.run(tmp_path, PLAIN.policy())
    run.world.request_stop()
    assert not run.train(run.checkpoints.latest())
    after = seals()
    assert after.keys() == before.keys() and after["checkpoint-1"] == before["checkpoint-1"]


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        (DDPO, LoRA(rank=2)),
        (partial(DiffusionNFT, levels=2), LoRA(rank=2, dora=True, rslora=True, dropout=0.3)),  # has old weights
    ],
    ids=["ddpo", "diffusion_nft-dora-dropout"],
)
def test_the_same_run_twice_is_the_same_bits_and_so_is_a_resumed_one_on_a_real_network(
    kind: Callable[..., Any], lora: LoRA, tmp_path: Path
) -> None:
    def redness(images: Tensor, prompts: Prompts) -> Tensor:
        return images[:, 0].mean((1, 2))

    folder = str(tiny.save(tmp_path / "model"))
    algorithm = kind(images=4, per_prompt=2, updates=2, steps=3, guidance=2.0, iterations=2, learning_rate=1e-2)
    sets = (*algorithm.sets, "ema")
    states = []
    for name in ("once", "twice", "stopped"):
        policy = load(folder, lora=lora, sets=sets)
        run = run_of(tmp_path / name, algorithm, policy, reward=redness, micro=4, ema=0.9)
        if name == "stopped":
            run.record.update = lambda *args, run=run, keep=run.record.update: keep(*args) or run.world.request_stop()
            assert not run.train()
            policy = load(folder, lora=lora, sets=sets)
            run = run_of(tmp_path / name, algorithm, policy, reward=redness, micro=4, ema=0.9)
            start = run.checkpoints.latest()
            assert start is not None and start.cursor == (0, 1) and run.train(start)
        else:
            assert run.train()
        states.append({key: tensor.clone() for key, tensor in policy.state().items()})
        assert metrics(tmp_path / name) == metrics(tmp_path / "once")
    assert same(states[0], states[1]) and same(states[0], states[2])
    assert {key.split("/")[0] for key in states[0]} == {"current", *sets} - {"base"}
    assert max(float(tensor.abs().max()) for key, tensor in states[0].items() if "lora_B" in key) > 1e-3
    moved = [not torch.equal(states[0][f"ema{key[7:]}"], states[0][key]) for key in states[0] if key[:7] == "current"]
    assert all(moved)  # also DoRA's lengths


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_toy_run_twice_is_the_same_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    found = []
    for name in ("once", "twice"):
        policy = PLAIN.policy(dtype=dtype)
        assert PLAIN.run(tmp_path / name, policy).train()
        found.append(policy.state())
    assert same(*found)
    assert metrics(tmp_path / "once") == metrics(tmp_path / "twice")

"""The floor's rows are those that an iteration needs; the peak of memory is that of what was made since."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from floor import TIMED, Alternation, Counted, Needed
from harness import CHAIN, Rows, algorithm_of, reward_for
from memory_chain import Peak
from memory_gpu import cases

from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.draft import DRaFT
from tastemaker.algorithms.drtune import DRTune
from tastemaker.algorithms.grad_copy import GradCopy
from tastemaker.algorithms.refl import ReFL
from tastemaker.process.truncation import PerStep
from toy import Toy
from toy_runs import run_of

OWN: dict[str, Any] = {"images": 6, "updates": 2, "steps": 5, "guidance": 2.0, "iterations": 2, "learning_rate": 1e-4}


@pytest.mark.parametrize(
    "algorithm",
    [
        AlignProp(**OWN),
        AlignProp(**OWN, truncation=PerStep()),
        DRaFT(**OWN, k=3),
        ReFL(**OWN),
        DRTune(**OWN, active=2, early=3),
        GradCopy(**OWN),
        GradCopy(**OWN, chosen=2),
    ],
    ids=lambda algorithm: type(algorithm).__name__,
)
def test_an_iteration_needs_the_rows_that_it_takes_in_calls_of_one(algorithm: Any, tmp_path: Path) -> None:
    counted, policy = Counted(algorithm), Toy()
    taken: list[tuple[int, int]] = []
    run = run_of(tmp_path, counted, policy, micro=1)  # type: ignore[arg-type]
    tell = run.record.tell

    def after(it: Any, own: Any) -> None:
        taken.append((policy.rows.forward - policy.rows.backward, policy.rows.backward))
        tell(it, own)

    run.record.tell = after  # type: ignore[method-assign]
    run.train()
    sums = [(sum(n.forward for n in counted.needed[:k]), sum(n.both for n in counted.needed[:k])) for k in (1, 2)]
    assert sums == taken and all(needed.forward and needed.both for needed in counted.needed)
    many = isinstance(algorithm, AlignProp | DRaFT)  # ReFL has one call with a graph, the others cut their inputs
    assert all(0 < needed.through < needed.both if many else needed.through == 0 for needed in counted.needed)
    if isinstance(algorithm, DRaFT):
        assert counted.needed[0].through * 3 == counted.needed[0].both * 2


def test_a_floor_is_the_rows_needed_times_what_they_cost_before_and_after() -> None:
    between = Alternation(pairs=1, profiled=False)
    network: Any = None
    half = Rows(network, 16, TIMED // 2, True)
    between.rows = Rows(network, 16, TIMED, False), half, replace(half, through=True)
    between.network = [(1.0, 2.0, 4.0), (3.0, 4.0, 6.0), (9.0, 9.0, 9.0)]
    between.counted = Counted(DRaFT())
    between.counted.needed = [Needed(TIMED // 4, TIMED, TIMED // 2)]
    assert between.alone(0) == (0.5, 3.0 + 5.0) and between.floor(0) == 8.5


def test_names_of_algorithms() -> None:
    assert algorithm_of(CHAIN, {"steps": 7}) == DRaFT(steps=7, k=7) and algorithm_of("refl", {}) == ReFL()
    assert reward_for(DDPO()) == "jpeg_compressibility" and reward_for(DRaFT()) == "brightness"
    assert [str(case) for case in cases(["ddpo", "draft"])] == [
        "ddpo, bf16",
        "ddpo, bf16, gradient checkpointing",
        "ddpo, fp16",
        "ddpo, fp16, gradient checkpointing",
        "draft, bf16",
        "draft, bf16, gradient checkpointing",
    ]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_a_peak_is_what_was_there_at_most_above_the_beginning() -> None:
    before = torch.ones(32 * 2**20)  # 128 MiB that go before it begins
    del before
    peak = Peak("cpu")
    peak(0)
    made = torch.ones(16 * 2**20)
    del made
    peak(1)
    assert 0.95 < peak.bytes / 2**26 < 1.3 and len(peak.seconds) == 1

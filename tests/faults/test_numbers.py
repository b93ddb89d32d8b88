"""Numbers that go wrong while a run learns: equal rewards, spikes, overflow (reference matrix D.4: 21, 24, 26, 27)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.flow_grpo import FlowGRPO
from tastemaker.iteration import Loss
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load
from tastemaker.training.optimizer import Optimizer
from tastemaker.training.trainer import PATIENCE
from toy import Toy
from toy_runs import metrics, optimizer_of, run_of, same

SETTINGS: dict[str, Any] = {"images": 12, "per_prompt": 2, "updates": 2, "steps": 4, "guidance": 2.0, "iterations": 3}
SMALL = DDPO(clip=0.2, learning_rate=0.01, **SETTINGS)


def copied(policy: Toy) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state().items()}


# ---- 21: nothing to learn from


@pytest.mark.parametrize("algorithm", [SMALL, FlowGRPO(clip=0.2, kl=0.0, learning_rate=0.01, **SETTINGS)])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e30])
def test_equal_rewards_teach_nothing_and_are_told_of(
    algorithm: Any, value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without weight decay not a bit of the weights changes: every gradient is zero, none is infinite."""
    policy = Toy(flow=isinstance(algorithm, FlowGRPO))
    before = copied(policy)
    run = run_of(tmp_path, algorithm, policy, reward=lambda images, prompts: torch.full((len(images),), value))
    run.optimizer = no_decay(policy)
    assert run.train()
    assert same(before, policy.state())
    rows = [update for row in metrics(tmp_path) for update in row["updates"]]
    assert len(rows) == 6 and all(row["items"] == 0 or row["grad_norm"] == 0 for row in rows)
    assert capsys.readouterr().out.count("all scores are equal: nothing to learn from") == 3


def no_decay(policy: Toy) -> Optimizer:
    return optimizer_of(DDPO(learning_rate=0.01, weight_decay=0.0, **SETTINGS), policy)


# ---- 24: what is not finite comes from the reward's gradient, too


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_that_is_not_finite_reaches_a_weight(bad: float, tmp_path: Path) -> None:
    """One item's loss in one update of six is spoiled."""
    policy, calls = Toy(), [0]

    class Bad(DDPO):
        def loss(self, *given: Any) -> Loss:
            value, stats = super().loss(*given)
            calls[0] += 1
            return Loss(
                torch.where(torch.arange(len(value)) == 1, value * bad, value) if calls[0] == 8 else value, stats
            )

    run = run_of(tmp_path, Bad(clip=0.2, learning_rate=0.01, **SETTINGS), policy)
    assert run.train()
    assert run.optimizer.skipped == 1 and all(tensor.isfinite().all() for tensor in policy.state().values())
    rows = [update for row in metrics(tmp_path) for update in row["updates"]]
    assert [row["skipped"] for row in rows] == [0, 0, 1, 0, 0, 0] and rows[2]["grad_norm"] is None
    assert PATIENCE == 5


# ---- 26: a gradient that is far too long


def test_a_spike_is_cut_to_the_norm_that_is_allowed_and_noted(tmp_path: Path) -> None:
    """One update's loss is ten thousand times too large: its length is written down, the step is as any other."""
    lengths: list[float] = []

    class Spiked(DDPO):
        def loss(self, *given: Any) -> Loss:
            value, stats = super().loss(*given)
            return Loss(value * (1e4 if len(lengths) == 3 else 1.0), stats)

    policy = Toy()
    run = run_of(tmp_path, Spiked(clip=0.2, learning_rate=0.01, **SETTINGS), policy, max_grad_norm=1.0)
    keep = run.record.update

    def noted(made: int, stats: Any, seconds: float) -> None:
        slopes = [p.grad for p in policy.parameters() if p.grad is not None]
        lengths.append(float(torch.cat([slope.flatten() for slope in slopes]).norm()))
        keep(made, stats, seconds)

    run.record.update = noted  # type: ignore[method-assign]
    assert run.train()
    rows = [update for row in metrics(tmp_path) for update in row["updates"]]
    assert rows[3]["grad_norm"] > 1e3 > 10 * max(row["grad_norm"] for k, row in enumerate(rows) if k != 3)
    assert len(lengths) == 6 and max(lengths) < 1 + 1e-4 and lengths[3] == pytest.approx(1, rel=1e-4)


# ---- 27: half precision


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("lora", [LoRA(rank=2), None], ids=["lora", "whole"])
def test_what_is_trained_is_fp32_whatever_the_network_computes_in(
    precision: str, lora: LoRA | None, tmp_path: Path
) -> None:
    policy = load(str(tiny.save(tmp_path)), lora=lora, mixed_precision=precision, sets=("base", "old", "ema"))
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in policy.state().values()} == {torch.float32}


def test_an_overflow_of_the_scaled_loss_costs_a_step_and_halves_the_scale(tmp_path: Path) -> None:
    """fp16's largest number is 65504: the first steps of a loss that is scaled by 65536 may well be too long."""
    policy = Toy(dtype=torch.float32)
    run = run_of(tmp_path, SMALL, policy)
    optimizer = Optimizer(policy.named_parameters(), run.optimizer.settings, total_updates=6, scaler=True)
    run.optimizer = optimizer
    for parameter in policy.parameters():
        parameter.register_hook(lambda slope: torch.where(slope.abs() > 20_000, math.inf, slope))
    before = optimizer.state()[1]["scaler"]["scale"]
    assert run.train()
    overflows = [update["skipped"] for row in metrics(tmp_path) for update in row["updates"]]
    assert 1 <= sum(overflows) < 6 and overflows[-1] == 0
    assert optimizer.state()[1]["scaler"]["scale"] == before / 2 ** sum(overflows)
    assert all(tensor.isfinite().all() for tensor in policy.state().values())

"""What no paper discusses: iterations, micro-batches, devices, retries, interruptions."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tastemaker import shards
from tastemaker.algorithms.algorithm import Algorithm
from tastemaker.iteration import Iteration, Later, Loss, Progress, State, Update, deal
from tastemaker.plan import Plan
from tastemaker.policy.policy import Policy
from tastemaker.process.noise import Key
from tastemaker.prompts.prompts import PromptSource
from tastemaker.rewards.recorded import Recorded
from tastemaker.training.best import Best, Content
from tastemaker.training.checkpoint import Checkpoint, Checkpoints, Cursor
from tastemaker.training.footing import footing, inexact
from tastemaker.training.optimizer import Optimizer
from tastemaker.training.record import Record, names_anywhere
from tastemaker.training.redealing import redealt
from tastemaker.world import Stop, World

PATIENCE = 5  # optimizer steps in a row without a finite gradient before the run gives up
MAXIMA = frozenset({"log_ratio"})  # statistics of which the largest is reported, not the mean


@dataclass
class Training:
    """One training run with everything it is made of."""

    algorithm: Algorithm
    policy: Policy
    reward: Recorded
    source: PromptSource
    optimizer: Optimizer
    plan: Plan
    world: World
    record: Record
    checkpoints: Checkpoints
    evaluate: Callable[[int], None]  # judges the policy as it is, before this iteration, and writes it down
    seed: int
    negative: str = ""
    max_failed: float = 0.5
    best: Best | None = None
    stopped: str = ""  # the alarm that stopped the run
    switches: Mapping[str, Any] | None = None  # settings that change last digits

    def train(self, start: Checkpoint | None = None) -> bool:
        """All iterations from `start` on. False where a stop was asked for, or an alarm stops (`stopped`); the
        checkpoint is written then."""
        cursor, state, kept = self._begin(start)
        for index in range(cursor.iteration, self.plan.iterations):
            it = self._iteration(index, state, kept)
            made = 0
            try:
                if self.plan.evaluates(index) and not cursor.updates:
                    self.evaluate(index)
                    self.record.begin(index, self.reward, self.policy)  # what judging cost is not the iteration's
                for update in self.world.lockstep(self.algorithm.iteration(it)):
                    if made == 0:
                        self.record.learns()
                        if not self.algorithm.differentiates:  # else nothing is scored yet
                            self._check_failures(it, Cursor(index, 0), state)
                    if made >= cursor.updates:  # else made before the interruption: passing over costs nothing
                        self._step(it, update, made)
                        self._check_finite(it, Cursor(index, made + 1), state)
                    made += 1
            except Stop:
                self._stop(it, Cursor(index, max(made, cursor.updates)), state)
                return False
            with self.world.uninterrupted():
                why = self.record.finish(it, self.policy)
                state, kept, cursor = it.state, {}, Cursor(index + 1, 0)
                if self.algorithm.differentiates:
                    self._check_failures(it, cursor, state)
                self._keep(cursor, state, why)
            self.record.tell(it, self.policy)  # what the user's function may raise loses nothing that was learned
            if why and cursor.iteration < self.plan.iterations:
                self.stopped = why
                return False
        try:
            self.evaluate(self.plan.iterations)
        except Stop:
            return False  # the last checkpoint stands at the end: resuming only evaluates
        return True

    def _begin(self, start: Checkpoint | None) -> tuple[Cursor, State, dict[str, Tensor]]:
        if start is None:
            self.record.rewind(0)
            if self.best is not None:
                self.best.rewind(None, self.record.metrics.path)
            return Cursor(0, 0), self.algorithm.begin(), {}
        parts: dict[str, dict[str, Tensor]] = {"policy": {}, "optimizer": {}}
        for name, tensor in start.tensors.items():
            part, key = name.split("/", 1)
            parts[part][key] = tensor
        self.policy.load_state(parts["policy"])
        self.optimizer.load_state(parts["optimizer"], start.data["optimizer"])
        self.checkpoints.forget_after(start.cursor)
        self.record.rewind(start.cursor.iteration)
        if self.best is not None:
            self.best.rewind(start, self.record.metrics.path)
        why = inexact(start.data.get("footing"), self.plan, self.policy.device, self.switches)
        if why and self.world.rank == 0:
            print(why, file=sys.stderr, flush=True)
        kept: dict[str, Tensor] = {}
        if start.per_rank:  # inside an iteration
            same = len(start.per_rank) == self.world.size
            own = start.per_rank[self.world.rank] if same else redealt(start.per_rank, self.plan, self.world.rank)
            self.record.carry(own["record"])
            kept = dict(own["kept"])
        self._let_go(start)
        return start.cursor, start.data["state"], kept

    def _let_go(self, start: Checkpoint) -> None:
        """Empties what was loaded, which whoever called still holds: with a whole network it is gigabytes."""
        waits = self.best is not None and start.per_rank and not start.cursor.updates  # then `best` may hold them
        if not (waits and Content(start.tensors, start.data).small):
            start.tensors.clear()
        for one in start.per_rank:
            one.clear()

    def _iteration(self, index: int, state: State, kept: dict[str, Tensor]) -> Iteration:
        key = Key(self.seed, index)
        self.record.begin(index, self.reward, self.policy)
        prompts, everyone = deal(self.source, key, self.plan, self.world)
        it = Iteration(
            key=key,
            policy=self.policy,
            reward=self.reward,
            prompts=prompts,
            everyone=everyone,
            plan=self.plan,
            world=self.world,
            state=deepcopy(state),
            kept=kept,
            progress=self.record.progress,
            negative=self.negative,
        )
        if self.record.watching is not None:
            self.record.watching.watcher.begin(it)
        return it

    def _inside(self, it: Iteration) -> dict[str, Tensor]:
        """What a checkpoint inside the iteration keeps."""
        watching = self.record.watching
        return it.kept | (watching.watcher.held() if watching is not None and it.kept else {})

    def _keep(self, cursor: Cursor, state: State, stops: str) -> None:
        """The checkpoint between two iterations, where one is due; and the best one so far."""
        due = self.plan.saves(cursor.iteration - 1) or bool(stops)
        if self.best is not None:
            self.best.settle(self.record.row)
        path = self._save(cursor, state, {}) if due or cursor.iteration == self.plan.iterations else None
        if self.best is not None:
            self.best.offer(cursor, path, lambda: self._content(state))

    def _step(self, it: Iteration, update: Update, made: int) -> None:
        if isinstance(update.batch, Later):
            start = time.perf_counter()
            update = update._replace(batch=update.batch.make())
            self.record.drew(time.perf_counter() - start)
        start = time.perf_counter()
        stats = descend(it, self.optimizer, update, self.record.progress)
        self.record.update(made, stats, time.perf_counter() - start)

    def _check_finite(self, it: Iteration, cursor: Cursor, state: State) -> None:
        """Too many steps in a row that were left out end the run, with a checkpoint of the last good weights."""
        if self.optimizer.consecutive_skips >= PATIENCE:
            self._stop(it, cursor, state)
            raise ValueError(
                f"no finite gradient in {PATIENCE} updates in a row (iteration {it.key.iteration}). The weights are "
                "those of the last good update, and a checkpoint of them was written. Lower --learning_rate or "
                "--max_grad_norm and --resume_from_checkpoint latest, or begin again with --mixed_precision bf16 or no."
            )

    def _stop(self, it: Iteration, cursor: Cursor, state: State) -> None:
        """The checkpoint inside an iteration."""
        if self.best is not None:
            self.best.hold(cursor)
        self._save(cursor, state, self._inside(it))

    def _check_failures(self, it: Iteration, cursor: Cursor, state: State) -> None:
        """Too many failed scores end the run, with a checkpoint at `cursor`."""
        own = it.kept.get("rollout.reward", torch.zeros(0))
        asked, failed = self.world.sum(len(own)), self.world.sum(int((~own.isfinite()).sum()))
        if failed > self.max_failed * asked:
            self._save(cursor, state, {})
            raise ValueError(
                f"{failed} of {asked} scores of iteration {it.key.iteration} failed, more than max_failed="
                f"{self.max_failed} allows; a failed score is never counted as 0. {self.record.why_failed(it)} A "
                "checkpoint was written: mend the reward, then --resume_from_checkpoint latest."
            )

    def _content(self, state: State) -> Content:
        tensors = {f"policy/{name}": value for name, value in self.policy.state().items()}
        moments, numbers = self.optimizer.state()
        tensors |= {f"optimizer/{name}": value for name, value in moments.items()}
        data = {"state": state, "optimizer": numbers, "footing": footing(self.plan, self.policy.device, self.switches)}
        return Content(tensors, data if self.best is None else data | {"best": self.best.rows})

    def _save(self, cursor: Cursor, state: State, kept: dict[str, Tensor]) -> Path:
        tensors, data = self._content(state)
        inside = {"kept": kept, "record": self.record.carried()}
        with self.world.uninterrupted():
            # Before the first update some devices may have their pictures and others not: then all draw them again.
            whole = cursor.updates > 0 or self.world.sum(int(bool(kept))) == self.world.size
            return self.checkpoints.save(cursor, tensors, data, per_rank=inside if whole else None)


def descend(it: Iteration, optimizer: Optimizer, update: Update, progress: Progress) -> dict[str, float]:
    """One optimizer step on the mean of the loss over all devices' items, in network calls of equal rows.

    Items whose score failed, NaN in the statistic `reward`, are left out of the mean; if all did there is no step.
    """
    total = it.world.sum(len(update.batch))
    if total == 0:
        return {"items": 0.0, "skipped": 1.0}
    progress.begin("learning", len(update.batch))
    for rows in it.plan.halvings():
        optimizer.zero_grad()
        try:
            stats = _backward(it, optimizer, update, rows, total, progress)
            break
        except torch.OutOfMemoryError as error:
            if it.world.sharded:  # the others are in the middle of the same call
                raise ValueError(shards.NO_MEMORY) from error
            if rows > 1:
                what = f"out of memory with {rows} items a call: trying {rows // 2}."
                warnings.warn(what, RuntimeWarning, stacklevel=2)
    else:
        raise ValueError("out of memory with one item a call: use --gradient_checkpointing or a lower --resolution.")
    it.world.add_gradients(it.policy.parameters())
    failed = it.world.sum(int(stats["reward"].isnan().sum()) if "reward" in stats else 0)
    if failed == total:
        optimizer.zero_grad()
        return {"items": 0.0, "skipped": 1.0}
    if failed:
        for parameter in it.policy.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(total / (total - failed))
    return {"items": float(total)} | _over_ranks(it.world, stats) | optimizer.step()


def _backward(
    it: Iteration, optimizer: Optimizer, update: Update, rows: int, total: int, progress: Progress
) -> dict[str, Tensor]:
    """Gradients of sum(loss) / total over this device's items; the statistics `[items]` by name."""
    stats: dict[str, list[Tensor]] = {}
    for call, (part, own) in enumerate(cut(update.batch, rows)):
        number = it.key.generator("adapter dropout", optimizer.updates, it.world.rank, call).initial_seed()
        with it.policy.dropping(number):  # over backward too, which may compute layers a second time
            loss: Loss = update.loss(part)
            if loss.value.shape != (rows,):
                found = list(loss.value.shape)
                raise ValueError(f"a loss of {rows} items must be [{rows}], one number each; found {found}.")
            ok = ~loss.stats["reward"][:own].isnan() if "reward" in loss.stats else torch.ones(own, dtype=torch.bool)
            scored = ok.to(loss.value.device)
            optimizer.backward(it.world.joined(torch.where(scored, loss.value[:own], 0.0).sum() / total))
        stats.setdefault("loss", []).append(loss.value.detach()[:own][scored])
        for name, value in loss.stats.items():
            stats.setdefault(name, []).append(value[:own])
        progress.advance(own)
        it.world.poll()
    return {name: torch.cat(parts) for name, parts in stats.items()}


def cut(batch: Any, rows: int) -> Iterator[tuple[Any, int]]:
    """Parts of equal `rows`, each with the number of its own items: the last is filled up with repeats.

    Every network call has the same rows, so that no kernel changes and nothing is compiled again.
    """
    for start in range(0, len(batch), rows):
        yield batch.take(torch.arange(start, start + rows).clamp(max=len(batch) - 1)), min(rows, len(batch) - start)


def _over_ranks(world: World, stats: dict[str, Tensor]) -> dict[str, float]:
    """Mean over all devices' items, or the largest, by name."""
    found: dict[str, float] = {}
    for name in names_anywhere(world, stats):
        own = stats.get(name, torch.zeros(0)).cpu().double()  # MPS has no fp64
        own = own[~own.isnan()] if name == "reward" else own  # a failed score is never counted as 0
        row = torch.stack([own.sum(), torch.tensor(float(len(own))), own.amax() if len(own) else torch.tensor(0.0)])
        sums = world.everyone(row[None].double(), ids=[world.rank])
        if count := float(sums[:, 1].sum()):
            found[name] = float(sums[:, 2].max() if name in MAXIMA else sums[:, 0].sum() / count)
    return found

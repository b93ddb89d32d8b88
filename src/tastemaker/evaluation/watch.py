"""The watch: what alarms look at, measured on the pictures that training draws and scores anyway.

Pictures are seen as they go by on their way to the reward, so none is decoded again; a keyed choice of them is kept, in
8 bits. What is extra: the base's prediction at a small share of the steps, and pictures of fixed prompts from fixed
noise: a few strips where no prompt has two pictures, and checks where the reward may be gamed (`checking.py`).
Nothing here draws from a random stream or touches weights.

What there is to see, by the way an algorithm learns: policy gradients and the forward process draw and score whole
chains, all of it is seen. Reward gradients score pictures while they learn; those of a later update of the iteration
are drawn by weights that have moved already, and ReFL's are one-step guesses from a noisy state, not finished pictures.
Pairs that are given (diffusion_dpo) are not drawn at all: of these runs only the strips are seen.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tastemaker.evaluation import marks
from tastemaker.evaluation.alarms import Alarms
from tastemaker.evaluation.checking import Check
from tastemaker.evaluation.diversity import Pixels, measure
from tastemaker.evaluation.drift import drift
from tastemaker.evaluation.evaluate import Trial, judge
from tastemaker.iteration import Iteration, Progress
from tastemaker.process.samplers import Sampler
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards.reward import NamedReward, score

IDS, PICTURES = "watch.ids", "watch.pictures"  # in `Iteration.kept` of a checkpoint inside an iteration


class Watch:
    """Looks at one run, iteration by iteration.

    sampler: the algorithm's. held_out: the rewards that are recorded. strips: what is drawn where no prompt has two
    pictures. checked: the fixed pictures of checks, and who scores them.
    """

    def __init__(
        self, settings: Alarms, sampler: Sampler, held_out: Sequence[NamedReward], strips: Trial, checked: Check
    ) -> None:
        self.settings, self.sampler, self.strips, self.checked = settings, sampler, strips, checked
        self.held_out = [one for one in held_out if settings.oracles or not one.oracle]
        self._wanted: frozenset[int] = frozenset()
        self._seen: dict[int, Tensor] = {}
        self._base: Tensor | None = None  # diversity of the base's strips, by prompt
        self._told: set[str] = set()  # held-out rewards that gave no score, and were told of

    def begin(self, it: Iteration) -> None:
        """A new iteration, or the rest of one: what a checkpoint kept of its pictures is taken back."""
        groups = it.key.permutation(it.plan.groups, "watched")[: max(1, self.settings.pictures // it.plan.per_prompt)]
        each = it.plan.per_prompt
        self._wanted = frozenset(group * each + k for group in groups for k in range(each))
        ids, pictures = it.kept.pop(IDS, torch.zeros(0)), it.kept.pop(PICTURES, torch.zeros(0))
        self._seen = dict(zip(map(int, ids.tolist()), pictures, strict=True))

    def see(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Pictures [B,3,H,W] in [0,1] are about to be scored; may come from another thread."""
        if not isinstance(prompts, Prompts):
            return
        rows = [row for row, b in enumerate(prompts.ids) if b in self._wanted]
        if rows:
            bytes_ = (images[rows].detach().float().nan_to_num() * 255).round().clamp(0, 255).to(torch.uint8).cpu()
            self._seen.update(zip([prompts.ids[row] for row in rows], bytes_, strict=True))

    def held(self) -> dict[str, Tensor]:
        """The pictures seen so far, for a checkpoint inside the iteration."""
        if not self._seen:
            return {}
        ids = sorted(self._seen)
        return {IDS: torch.tensor(ids), PICTURES: torch.stack([self._seen[b] for b in ids])}

    @torch.no_grad()
    def look(self, it: Iteration) -> dict[str, float | None]:
        """All numbers of the iteration that ends, the same on every device: a collective."""
        ids = [b for b in it.prompts.ids if b in self._seen]
        found: dict[str, float] = {}
        if it.world.sum(len(ids)):
            found |= self._pictures(it, ids)
        found |= drift(it, self.sampler, self.settings.transitions)
        found |= self._strips(it)
        self._seen = {}
        return _finite(found)

    @torch.no_grad()
    def check(self, it: Iteration, progress: Progress) -> dict[str, float | None]:
        """What has changed on the fixed pictures, the same on every device: a collective."""
        found = _finite(self.checked.changes(it.policy, it.world, progress))
        for name in ("checked_trained", *(f"checked.{reward.name}" for reward in self.checked.held_out)):
            if found[name] is None and name not in self._told and it.world.rank == 0:
                self._told.add(name)
                print(f"the check of the fixed pictures has no number for {name}", file=sys.stderr, flush=True)
        return found

    def _pictures(self, it: Iteration, ids: list[int]) -> dict[str, float]:
        shape = it.policy.latent_shape
        raw = torch.stack([self._seen[b] for b in ids]) if ids else torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
        rows = [it.prompts.ids.index(b) for b in ids]
        calls = [slice(k, k + it.plan.sampling_batch) for k in range(0, len(ids), it.plan.sampling_batch)]

        def everyone(values: Tensor) -> Tensor:
            return it.world.everyone(values.cpu(), ids=ids)

        def each(measured: Callable[[Tensor, slice], Tensor]) -> Tensor:
            """By calls that fit the machine."""
            found = [measured(raw[call].to(it.policy.device).float() / 255, call).cpu() for call in calls]
            return everyone(torch.cat(found) if found else torch.zeros(0))

        squares = each(lambda images, _: marks.comb(images, shape))
        small = each(lambda images, _: _small(images))
        full = each(lambda images, _: marks.saturation(images))
        found = {"pictures": float(len(full)), "saturation": float(full.mean())}
        found |= {"periodicity": marks.periodicity(squares), "spread": marks.spread(small)}
        if it.plan.per_prompt > 1:
            found["diversity"] = self._within(it, [raw[k] for k in range(len(ids))], rows)
        for reward in self.held_out:
            values = each(partial(self._scored, it, reward, rows))
            values = values[values.isfinite()].double()
            found[f"held_out.{reward.name}"] = float(values.mean()) if len(values) else math.nan
            found[f"held_out_sd.{reward.name}"] = float(values.std(correction=0)) if len(values) else math.nan
        return found

    def _scored(self, it: Iteration, reward: NamedReward, rows: list[int], images: Tensor, call: slice) -> Tensor:
        """A held-out reward's scores; one that gives none is told of, once."""
        found = score(reward, images, it.prompts.take(rows[call]))
        if not found.value.isfinite().any() and reward.name not in self._told:
            self._told.add(reward.name)
            why = next(
                (note.strip().splitlines()[-1] for note in found.notes if note and note.strip()), "it was not finite"
            )
            print(f"the watch has no score from held-out {reward.name}: {why}", file=sys.stderr, flush=True)
        return found.value.float()

    def _within(self, it: Iteration, pictures: list[Tensor], rows: list[int]) -> float:
        """Mean over prompts of their pictures' distance."""
        groups = [it.prompts.groups[row] for row in rows]
        found = measure(Pixels(), pictures, groups)
        own = torch.tensor(list(found.values()), dtype=torch.float64)
        values = it.world.everyone(own, ids=list(found))
        return float(values.nanmean()) if len(values) else math.nan

    def _strips(self, it: Iteration) -> dict[str, float]:
        """Diversity within the prompts of the strips, that of the base's, and the standard error of their ratio."""
        every = self.settings.strips
        if it.plan.per_prompt > 1 or every == 0 or int(it.key.iteration) % every:
            return {}
        if self._base is None:
            with it.policy.using("base"):
                self._base = self._drawn(it)
        now, base = self._drawn(it), self._base
        found = {"diversity": float(now.mean()), "diversity_base": float(base.mean())}
        return found | {"diversity_error": marks.ratio_error(now, base)}

    def _drawn(self, it: Iteration) -> Tensor:
        """[prompts], in their order."""
        found: Any = judge(it.policy, [], self.strips, metric=Pixels(), world=it.world).diversity
        return torch.tensor([found[group] for group in sorted(found)], dtype=torch.float64)


def _finite(found: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _small(images: Tensor) -> Tensor:
    """Pictures of at most 64 x 64 pixels: enough for how far they lie apart."""
    factor = max(1, max(images.shape[-2:]) // 64)
    return torch.nn.functional.avg_pool2d(images, factor) if factor > 1 else images

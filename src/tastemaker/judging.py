"""Models side by side on fixed prompts and noise: what `tastemaker evaluate` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tastemaker import config
from tastemaker.comparison import Row, Table, row_of, with_seeds
from tastemaker.evaluation.diversity import Metric, metric_for
from tastemaker.evaluation.evaluate import Trial, Verdict, judge
from tastemaker.evaluation.guidance import rule
from tastemaker.evaluation.mixing import numbers
from tastemaker.planning import judged_by, judged_prompts, trial_of
from tastemaker.policy.policy import Policy, decode
from tastemaker.prompts.prompts import PromptSource
from tastemaker.prompts.sources import source
from tastemaker.rewards import TABLE as REWARDS
from tastemaker.rewards import named
from tastemaker.rewards.combine import apart
from tastemaker.rewards.reward import NamedReward, load_networks
from tastemaker.rewards.terms import split
from tastemaker.settings import RunSettings
from tastemaker.shelf import Shelf
from tastemaker.subjects import Part, Subject, of_words, policy_of, renamed
from tastemaker.training.record import Bars

BATCH = 32  # pictures a call


class Bench(NamedTuple):
    """What is the same for every model."""

    trial: Trial
    prompts: str  # the name of the trial's prompts
    sampler: str
    judges: Sequence[NamedReward]
    settings: RunSettings


@dataclass
class Judging:
    """Judges models one after another; never are two loaded at once."""

    bench: Bench
    flags: Mapping[str, Any]
    shelf: Shelf
    metric: Metric | None = None
    made: dict[tuple[Any, ...], Verdict] = field(default_factory=dict)  # by what draws

    def all(self, subjects: Sequence[Subject]) -> Iterator[tuple[Subject, Subject, Verdict]]:
        """(subject, its base, verdict), every base before the models that were tuned from it."""
        bars, done = Bars(), dict[tuple[Any, ...], Subject]()
        for subject in subjects:
            if (base := done.get(subject.model)) is None:
                base = subject.base if subject.is_tuned else subject
                done[subject.model] = base
                yield base, base, self._verdict(base, bars)
            if subject.is_tuned:
                yield subject, base, self._verdict(subject, bars)
        bars.end()

    def _verdict(self, subject: Subject, bars: Bars) -> Verdict:
        verdict = self.shelf.find(subject, self.bench)
        if verdict is None:
            verdict = self.made.get(subject.drawing) or self._judged(subject, bars)
            self.shelf.keep(subject, self.bench, verdict, self.metric.name if self.metric else self.shelf.metric)
        self.made[subject.drawing] = verdict
        return verdict

    def _judged(self, subject: Subject, bars: Bars) -> Verdict:
        load_networks(self.bench.judges)
        policy = policy_of(subject, self.flags)
        if self.metric is None and len(set(self.bench.trial.prompts.groups)) < len(self.bench.trial.prompts):
            self.metric = self._metric(policy)
        print(f"judging {subject.name}", flush=True)
        verdict = judge(policy, self.bench.judges, self.bench.trial, metric=self.metric, progress=bars)
        bars.end()
        return verdict

    def _metric(self, policy: Policy) -> Metric:
        with torch.no_grad():
            picture = decode(policy, torch.zeros(1, *policy.latent_shape, device=policy.device))
        size, weights = min(picture.shape[-2:]), self.bench.settings.lpips_weights
        found = metric_for(weights, self.bench.judges, size=size, device=policy.device, progress=Bars())
        if self.shelf.metric and found.name != self.shelf.metric:
            raise ValueError(
                f"what is in --output measured diversity as {self.shelf.metric}, now it would be {found.name}, and the "
                "two cannot be compared: name another --output, or the same weights with --lpips_weights."
            )
        if found.note:
            print(found.note)
        return found


def compared(
    words: Sequence[str],
    flags: Mapping[str, Any],
    *,
    judges: Sequence[NamedReward] = (),
    prompts: PromptSource | None = None,
    output: Path | None = None,
) -> Table:
    """What the words and flags of `tastemaker evaluate` ask for, with Python's own judges and prompts for names.

    output: a folder that keeps verdicts and pictures, from which what is there already is taken.
    """
    named_ = of_words(words, flags)
    subjects = variants(named_, flags)
    bench = _bench(named_[0], flags, judges, prompts)
    for one in subjects:
        asked = {"--evaluation.guidance": bench.trial.guidance}, {"--negative_prompt": bench.trial.negative}
        one.check_guidance(*asked)
    shelf = Shelf(output)
    judging = Judging(bench, flags, shelf)
    found: list[tuple[Subject, Row]] = []
    verdicts: dict[str, Verdict] = {}
    for subject, base, verdict in judging.all(subjects):
        verdicts[subject.name] = verdict
        found.append((subject, row_of(subject, base, verdict, verdicts[base.name], bench.trial)))
    trial = bench.trial
    table = Table(
        bench.prompts,
        len(trial.prompts),
        len(set(trial.prompts.groups)),
        bench.sampler,
        trial.steps,
        trial.guidance,
        trial.seed,
        shelf.metric or (judging.metric.name if judging.metric else ""),
        [row for _, row in found],
        with_seeds(found),
    )
    shelf.show(table, bench, verdicts)
    return table


def variants(subjects: Sequence[Subject], flags: Mapping[str, Any]) -> list[Subject]:
    """What --mix and --anneal make of the tuned subjects, in the place of them; without these flags the same.

    Errors: ValueError for weights and rules that are none, and for subjects that they cannot work on.
    """
    weights = numbers(str(flags["mix"]), "--mix") if "mix" in flags else []
    rules = [rule(text) for text in str(flags["anneal"]).split(",")] if "anneal" in flags else []
    if not weights and not rules:
        return list(subjects)
    tuned = [one for one in subjects if one.is_tuned]
    asked = " and ".join(f"--{flag}" for flag in ("mix", "anneal") if flag in flags)
    if not tuned:
        raise ValueError(f"{asked} without a tuned model: name a run's folder, or a LoRA file beside --model.")
    for one in tuned:
        one.need_lora(asked)
    if weights and len(tuned) > 2:
        raise ValueError(f"--mix goes from the base to one LoRA or from one to another; found {len(tuned)} of them.")
    if weights and tuned[0].model != tuned[-1].model:
        raise ValueError(f"--mix: {tuned[0].name} and {tuned[1].name} were not tuned from the same base and size.")
    found = [one for one in subjects if not one.is_tuned]
    found += [_between(tuned, weight) for weight in weights]
    return renamed(found + [replace(one, name=f"{one.name}, {by}", anneal=by) for one in tuned for by in rules])


def _between(tuned: Sequence[Subject], weight: float) -> Subject:
    """base + weight (tuned - base), or of two (1 - weight) the first + weight the second."""
    weights = [weight] if len(tuned) == 1 else [1 - weight, weight]
    parts = tuple(Part(one.name, one.need_lora("--mix"), w) for one, w in zip(tuned, weights, strict=True))
    name = " + ".join(f"{part.weight:g} {part.name}" for part in parts)
    return replace(tuned[0], name=name, lora=None, mix=parts)


def _bench(first: Subject, flags: Mapping[str, Any], judges: Sequence[NamedReward], own: PromptSource | None) -> Bench:
    """By the first subject's settings, with the flags over them."""
    resolved = _resolved(first, flags)
    run = resolved.run
    judges = judges or apart([named(spec, key="--rewards") for spec in _rewards(flags, run)])
    if own is None or "prompts" in flags.get("evaluation", {}):
        if judged_by(run) is None:
            raise ValueError(
                f"{first.name} names no prompts to be judged by but those it was trained on: give others with "
                "--evaluation.prompts, a set or a file, or write `--evaluation.prompts train` if you mean those."
            )
        own = judged_prompts(run, source(run.prompts, key="the run's prompts"), key="--evaluation.prompts")
    trial, name, sampler = trial_of(run, resolved.algorithm, own, BATCH)
    return Bench(replace(trial, batch=min(BATCH, len(trial.prompts))), name, sampler, judges, run)


def _rewards(flags: Mapping[str, Any], run: RunSettings) -> list[Any]:
    if "rewards" in flags:
        return list(split(str(flags["rewards"])))
    return [run.reward, *(name for name in run.held_out_rewards if name != run.reward)]


def _resolved(subject: Subject, flags: Mapping[str, Any]) -> config.Resolved:
    """The run's own settings, or the model's, with the flags over them."""
    over = {key: flags[key] for key in ("seed", "device", "mixed_precision", "lpips_weights") if key in flags}
    asked = flags.get("evaluation", {})
    if not isinstance(asked, Mapping):
        raise ValueError(f"--evaluation is a group of settings, --evaluation.KEY; found {asked!r}.")
    if subject.file:
        return config.resolve(str(subject.file), {**over, "evaluation": asked}, {})
    values = {key: value for key, value in subject.tree.items() if key not in config.SHARED}
    values["evaluation"] = {**(values.get("evaluation") or {}), **asked}
    values["prompts"] = values.get("prompts") or values["evaluation"].get("prompts")
    if not values["prompts"]:
        raise ValueError("there are no prompts to judge by: give --evaluation.prompts, a set or a text file.")
    return config.resolve(next(iter(config.algorithms())), {"reward": next(iter(REWARDS)), **values, **over}, {})

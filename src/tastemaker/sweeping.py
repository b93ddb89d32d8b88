"""A recipe over values and seeds: runs that are missing are made, and all are shown side by side."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tastemaker import config, folder, planning
from tastemaker.comparison import plain
from tastemaker.evaluation.statistics import Interval, over_seeds
from tastemaker.layers import Switch, put
from tastemaker.outcome import Run
from tastemaker.run import launch

EVALUATIONS = 6  # of a run, where the user named no number: points of its curves
PARTS = ("lora",)  # that a sweep has `on`, with its defaults or the flags' settings, and `off`
OWN = ("output_dir", "seed", "overwrite", "resume_from_checkpoint", "dry_run", "push_to_hub", "hub_model_id")


class Stopped(Exception):
    """A run was asked to stop, and so was the sweep."""


class Variant(NamedTuple):
    """One combination of values."""

    name: str  # kl=0.1
    values: dict[str, str]  # dotted path -> text, as on a command line


@dataclass(frozen=True)
class Point:
    """An evaluation of a run, with what had been spent until then."""

    iteration: int
    queries: int
    rows: int  # network rows, forward ones and those that went backward too
    seconds: float
    reward: float
    change: float  # from the base
    deviations: float | None  # the same in units of the base's standard deviation over pictures
    diversity: float | None
    scores: dict[str, float]  # by every judge


@dataclass(frozen=True)
class Made:
    """One run of a sweep."""

    variant: str
    seed: int
    folder: str  # in the sweep's
    broke: str  # why it ended early; empty where it did not
    curve: list[Point]


def variants(over: str) -> list[Variant]:
    """`algorithm.kl=0,.1,1`; for all combinations `algorithm.kl=0,1;lora.rank=4,16`; for one and then the other
    `algorithm.kl=0,1|algorithm.k=5`.

    Errors: ValueError that says how it is written.
    """
    combined = [found for part in over.split("|") for found in itertools.product(*_columns(part))]
    paths = {path for one in combined for path, _ in one}
    short = len({path.rpartition(".")[2] for path in paths}) == len(paths)
    named = {", ".join(f"{p.rpartition('.')[2] if short else p}={value}" for p, value in one): one for one in combined}
    return [Variant(name, dict(one)) for name, one in named.items()]


def _columns(over: str) -> list[list[tuple[str, str]]]:
    """Settings that are combined, each with all its values."""
    columns: list[list[tuple[str, str]]] = []
    for part in filter(None, (text.strip() for text in over.split(";"))):
        path, sign, values = part.partition("=")
        found = [value.strip() for value in values.split(",") if value.strip()]
        if not sign or not path.strip() or not found:
            raise ValueError(f"--over {part!r}: write --over SETTING=VALUE,VALUE, such as algorithm.clip=1e-5,1e-4.")
        if path.strip().partition(".")[0] in OWN:
            raise ValueError(f"--over {path.strip()}: a sweep has its own; it runs over settings of the training.")
        columns.append([(path.strip().replace("-", "_"), value) for value in dict.fromkeys(found)])
    if not columns:
        raise ValueError("--over is missing: write --over SETTING=VALUE,VALUE, such as algorithm.clip=1e-5,1e-4.")
    return columns


class Sweep:
    """The runs of a target over variants and seeds, in `folder/VARIANT/seed-K`."""

    def __init__(self, target: str, flags: Mapping[str, Any], over: str, seeds: int, place: Path) -> None:
        self.target, self.flags, self.folder = target, flags, place
        self.variants, self.seeds = variants(over), range(seeds)
        for variant in self.variants:  # a wrong value is found before the first run
            self._resolved(variant, 0)

    def make(self) -> list[Made]:
        """Every run, where it is not there yet: one that was stopped goes on. Raises Stopped where one is asked to."""
        made = []
        for k, (variant, seed) in enumerate(itertools.product(self.variants, self.seeds), 1):
            count = len(self.variants) * len(self.seeds)
            print(f"\nrun {k} of {count}: {variant.name}, seed {seed}", flush=True)
            made.append(self._one(variant, seed))
        return made

    def _one(self, variant: Variant, seed: int) -> Made:
        home = self._home(variant, seed)
        resolved, broke = self._resolved(variant, seed), ""
        if self._is_there(resolved, home):
            print(f"  {home} is there")
        else:
            try:
                if not launch(self.target, self._flags(variant, seed), spelling="flag").done:
                    raise Stopped(f"stopped with {variant.name}, seed {seed}; the same command goes on with it")
            except ValueError as error:
                if not (home / folder.CONFIG).is_file():  # it never began: the same is wrong with the others
                    raise
                broke = str(error)
                print(f"  broke: {broke}")
        return Made(variant.name, seed, home.relative_to(self.folder).as_posix(), broke, list(_curve(Run.open(home))))

    def _is_there(self, resolved: config.Resolved, home: Path) -> bool:
        """Whether the run has ended. Errors: ValueError where another one was made in its folder."""
        if not (home / folder.CONFIG).is_file():
            return False
        planning.refuse_change(resolved, home / folder.CONFIG, "--")
        run = Run.open(home)
        for name in ("learning_rate", "weight_decay"):  # which a run that goes on may change, and a sweep may not
            before, now = run.settings["algorithm"][name], getattr(resolved.algorithm, name)
            if before != now:
                raise ValueError(f"--{name} is {now}, but {home} was made with {before}: name another --output_dir.")
        return run.done and run.evaluations()[-1]["iteration"] >= resolved.algorithm.iterations

    def _home(self, variant: Variant, seed: int) -> Path:
        return self.folder / re.sub(r"[^\w.=+-]+", "-", variant.name) / f"seed-{seed}"

    def _flags(self, variant: Variant, seed: int) -> dict[str, Any]:
        tree = deepcopy(dict(self.flags))
        for path, value in variant.values.items():
            if path in PARTS and value in ("on", "off"):
                own = tree.get(path)
                tree[path] = Switch.OFF if value == "off" else own if isinstance(own, dict) else {}
            else:
                put(tree, path, value)
        home = self._home(variant, seed)
        tree |= {"seed": str(seed), "output_dir": str(home)}
        if (home / folder.CONFIG).is_file():
            tree["resume_from_checkpoint"] = "latest"
        said = self._resolve(tree)
        if said.origin["evaluation.every"] == "default":  # nobody said how often
            every = max(1, round(said.algorithm.iterations / EVALUATIONS))
            tree["evaluation"] = {**tree.get("evaluation", {}), "every": str(every)}
        return tree

    def _resolved(self, variant: Variant, seed: int) -> config.Resolved:
        return self._resolve(self._flags(variant, seed))

    def _resolve(self, tree: dict[str, Any]) -> config.Resolved:
        model = config.asked(self.target, tree).get("model")
        return config.resolve(self.target, tree, config.brought(model), spelling="flag")


def _curve(run: Run) -> Iterator[Point]:
    metrics = run.metrics()
    for row in run.evaluations():
        before = [one for one in metrics if one["iteration"] < row["iteration"]]
        calls = [one["network_calls"] for one in before]
        name, found = next(iter(row["reward"].items()))
        yield Point(
            row["iteration"],
            sum(one["queries"] for one in before),
            sum(call["rows_forward"] + call["rows_backward"] for call in calls),
            sum(one["seconds"]["total"] for one in before),
            _number(found["mean"]),
            _number(row["change"][name]["mean"]),
            row["change"][name]["deviations"],
            row.get("diversity", {}).get("mean"),
            {judge: _number(score["mean"]) for judge, score in row["reward"].items()},
        )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


@dataclass(frozen=True)
class Summary:
    """A variant over its seeds, at the last evaluation of every run that did not break."""

    variant: str
    seeds: int
    broke: int
    change: Interval  # of the reward, mean over seeds with its t interval
    deviations: Interval
    diversity: Interval
    scores: dict[str, Interval]
    queries: int
    rows: int
    seconds: float  # the mean


def summaries(made: Sequence[Made]) -> list[Summary]:
    """A row a variant, in their order."""
    found = []
    for name in dict.fromkeys(one.variant for one in made):
        own = [one for one in made if one.variant == name]
        ends = [one.curve[-1] for one in own if one.curve and not one.broke]

        def over(values: Sequence[float | None]) -> Interval:
            return over_seeds([_number(value) for value in values])

        judges = dict.fromkeys(judge for end in ends for judge in end.scores)
        found.append(
            Summary(
                name,
                len(own),
                sum(bool(one.broke) for one in own),
                over([end.change for end in ends]),
                over([end.deviations for end in ends]),
                over([end.diversity for end in ends]),
                {judge: over([end.scores.get(judge) for end in ends]) for judge in judges},
                max((end.queries for end in ends), default=0),
                max((end.rows for end in ends), default=0),
                sum(end.seconds for end in ends) / max(len(ends), 1),
            )
        )
    return found


def as_json(target: str, made: Sequence[Made]) -> str:
    """Every run with its curve, and every variant over its seeds."""
    found = {"target": target, "variants": [asdict(one) for one in summaries(made)], "runs": [asdict(m) for m in made]}
    return json.dumps(plain(found), indent=1, ensure_ascii=False) + "\n"

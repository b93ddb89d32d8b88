"""A run's model and settings under the checks: what `tastemaker doctor --model ... --algorithm ...` does."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tastemaker import config, fitting
from tastemaker.build import attribute
from tastemaker.checks import TABLE
from tastemaker.checks.case import Case
from tastemaker.checks.finding import Finding, Verdict, idle
from tastemaker.preparation import Wanted, make, read
from tastemaker.rewards.reward import load_networks
from tastemaker.training.record import Bars
from tastemaker.world import World

# Where neither the user, a recipe nor the model says one: what every model can draw, and what has a gradient.
INSTEAD = {"reward": "brightness", "prompts": "animals"}
COLOURS = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.WRONG: "bold red", Verdict.NOT_APPLICABLE: "dim"}


def examine(flags: Mapping[str, Any]) -> int:
    """Builds what a run of these settings would train with, looks at it, and prints what was found.

    Nothing is written. 1 where a check says that something is wrong, else 0. Errors: ValueError that names the flag.
    """
    wanted, missing = wanted_of(flags)
    case = case_of(wanted)
    console = Console(highlight=False)
    _introduce(console, wanted, case, missing)
    found = {}
    for k, (name, place) in enumerate(TABLE.items(), 1):
        console.print(f"{k:>3}/{len(TABLE)}  {name} ", end="")
        began = time.perf_counter()
        found[name] = answer(attribute(place), case)
        console.print(f"[dim]{time.perf_counter() - began:.1f} s[/dim]")
    _show(console, found)
    return int(any(one.verdict is Verdict.WRONG for one in found.values()))


def wanted_of(flags: Mapping[str, Any]) -> tuple[Wanted, Mapping[str, str]]:
    """The settings of that run, and what of them nobody said."""
    target, rest = _target(flags)
    asked = config.asked(target, rest)
    said = config.brought(asked.get("model")).get("defaults", {})
    missing = {key: value for key, value in INSTEAD.items() if key not in {**said, **asked}}
    return read(target, {**rest, **missing}, spelling="flag"), missing


def _target(flags: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What `--algorithm` names, an algorithm or a recipe, and the other flags."""
    rest = dict(flags)
    named = rest.pop("algorithm", None)
    settings = dict(named) if isinstance(named, Mapping) else {"name": named}
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(
            "--algorithm is missing: tastemaker doctor looks at a model with the settings of a run. Give --algorithm "
            f"NAME, one of {', '.join(config.algorithms())}, or a recipe; or no flags, for versions and devices alone."
        )
    try:
        config.find(name)
    except ValueError as error:
        raise ValueError(f"--algorithm: {error}") from error
    return name, {**rest, **({"algorithm": settings} if settings else {})}


def case_of(wanted: Wanted) -> Case:
    """The model, its optimizer and the plan, as a run has them."""
    resolved = wanted.resolved
    load_networks([wanted.reward])
    with wanted.naming():
        fitted, limit, _ = fitting.within(resolved, wanted.device)
    policy, plan, optimizer = make(wanted, replace(fitted, fsdp=False), limit, World())
    with _silence():
        return Case(
            resolved.name,
            resolved.algorithm,
            fitted,
            policy,
            optimizer,
            plan,
            wanted.reward,
            wanted.prompts,
            Bars(),
        )


def _introduce(console: Console, wanted: Wanted, case: Case, missing: Mapping[str, str]) -> None:
    """What is looked at."""
    run, plan = case.run, case.plan
    what = "LoRA" if run.lora is not None else "whole network"
    console.print(
        f"[bold]{run.model}[/bold] with [bold]{case.name}[/bold] on {wanted.device}: {what}, {case.precision}, "
        f"{plan.steps} steps, guidance {plan.guidance:g}, {plan.sampling_batch} pictures and {plan.micro_batch} items "
        f"a call, reward {wanted.reward.name}"
    )
    for key, value in missing.items():
        console.print(f"[dim]--{key} is not given: {value}, good enough to look at the model with[/dim]")


@contextmanager
def _silence() -> Iterator[None]:
    """No warnings of prompts that are cut off, of which a check tells."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*are longer than the .* tokens", UserWarning)
        yield


def answer(check: Callable[[Case], Finding], case: Case) -> Finding:
    """A check's answer; one that cannot be made says why."""
    try:
        with _silence():
            return check(case)
    except Exception as error:  # what any network, reward or device may raise: the others are still looked at
        if torch.OutOfMemoryError in (type(error), type(error.__cause__)):
            return idle(
                "the device's memory is too small for this check; those that compute in fp32 need more than training."
            )
        if sys.flags.dev_mode:  # python -X dev -m tastemaker ...: where it was raised
            raise
        text = (str(error).strip() or "no message").splitlines()[0]
        return Finding(Verdict.WRONG, "stopped", "", f"the check was stopped by {type(error).__name__}: {text}")
    finally:
        if isinstance(case.progress, Bars):
            case.progress.end()


def _show(console: Console, found: Mapping[str, Finding]) -> None:
    """The table, then what to do."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("", "check", "measured", "wanted"):
        table.add_column(title, overflow="fold", no_wrap=title == "")
    for name, one in found.items():
        colour = COLOURS[one.verdict]
        table.add_row(Text(one.verdict, colour), name, Text(one.measured), Text(one.bound, "dim"))
    console.print("")
    console.print(table)
    for verdict in (Verdict.WRONG, Verdict.WARNING):
        for name, one in found.items():
            if one.verdict is verdict:
                console.print(Text.assemble("\n", (verdict, COLOURS[verdict]), f"  {name}"))
                console.print(Padding(Text(one.advice), (0, 0, 0, 2)))
    reasons: dict[str, list[str]] = {}
    for name, one in found.items():
        if one.verdict is Verdict.NOT_APPLICABLE:
            reasons.setdefault(one.advice, []).append(name)
    for why, names in reasons.items():
        console.print(Text(f"\nnot applicable  {', '.join(names)}\n", "dim"), end="")
        console.print(Padding(Text(why, "dim"), (0, 0, 0, 2)))
    counts = {verdict: sum(one.verdict is verdict for one in found.values()) for verdict in Verdict}
    wrong, warned = counts[Verdict.WRONG], counts[Verdict.WARNING]
    told = f"{wrong} of {len(found)} checks found something wrong" if wrong else "Nothing is wrong"
    console.print(f"\n{told}{f'; warnings: {warned}' if warned else ''}.")

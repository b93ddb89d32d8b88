"""From resolved settings to a plan and a trial: what the user left open is solved for, what would have no effect is
refused, and every value says where it comes from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from tastemaker.algorithms.algorithm import Algorithm
from tastemaker.config import Resolved
from tastemaker.evaluation.evaluate import Trial, trial_prompts
from tastemaker.plan import Plan
from tastemaker.policy.families import Guiding
from tastemaker.process.samplers import DDIM, Sampler
from tastemaker.process.schedule import Schedule
from tastemaker.prompts.prompts import PromptSource
from tastemaker.prompts.sources import HELD_OUT, source
from tastemaker.reports import secrets
from tastemaker.rewards.terms import as_text
from tastemaker.settings import RunSettings

# Of a run that goes on; evaluations too, for pictures before and after are compared.
FIXED = (
    *("algorithm", "model", "revision", "variant", "reward", "prompts", "negative_prompt", "seed", "lora", "ema"),
    *("resolution", "height", "width", "mixed_precision", "quantise", "vae_tiling"),
)
JUDGED = ("evaluation", "lpips_weights")
TRAIN = "train"  # --evaluation.prompts train: those of the training
CALL_ROWS = 64  # items of one network call where nothing else limits them
GRAPHS = 320  # network calls of single items whose graphs are held at once, likewise


def solve(algorithm: Algorithm, run: RunSettings, schedule: Schedule, devices: int, limit: int | None = None) -> Plan:
    """The plan of a run on so many devices; `limit` is what memory allows of items a call.

    micro_batch, if open: of all sizes up to the limit, the one that wastes the fewest rows on repeats.
    sampling_batch, if open, is the same: drawing and learning in calls of equal rows give equal log-probabilities.
    Where the reward is differentiated nothing is compared, so drawing, which holds no graph, takes larger calls, unless
    memory or a stated micro_batch limits them.
    """
    items, calls = algorithm.items(schedule), algorithm.calls(schedule)
    share, drawn = -(-algorithm.images // (algorithm.updates * devices)), -(-algorithm.images // devices)
    most = min(limit or CALL_ROWS, drawn, max(1, GRAPHS // calls.depth))
    rounds = {math.ceil(share * items * calls.taken): 3 * algorithm.updates}
    wide = algorithm.differentiates and not (limit or run.plan.micro_batch)
    micro = run.plan.micro_batch or _fewest_repeats(rounds if wide else rounds | {drawn: algorithm.steps}, most)
    return Plan(
        iterations=algorithm.iterations,
        images=algorithm.images,
        per_prompt=algorithm.per_prompt,
        updates=algorithm.updates,
        inner_epochs=algorithm.epochs,
        steps=algorithm.steps,
        guidance=algorithm.guidance,
        items=items,
        micro_batch=micro,
        sampling_batch=run.plan.sampling_batch or (max(micro, min(CALL_ROWS, share)) if wide else micro),
        devices=devices,
        learning_guidance=algorithm.learning_guidance,
        drawn=calls.drawn,
        learned=calls.learned,
        queries=calls.queries,
        evaluate_every=run.evaluation.every,
        save_every=run.checkpointing_steps,
    )


def _fewest_repeats(counts: Mapping[int, int], limit: int) -> int:
    """The size of calls, from half the limit to all of it, that costs the least; of equals the largest.

    counts: how many rows a round of calls has to cover -> what a row of it costs. The last call of a round is filled
    up with repeats, and a forward and backward pass costs about three forward ones.
    """

    def cost(size: int) -> tuple[int, int]:
        return sum(-(-count // size) * size * each for count, each in counts.items()), -size

    return min(range(max(1, limit // 2), limit + 1), key=cost)


def judged_by(run: RunSettings) -> Any:
    """The prompts of evaluations as the user names them; none where there are but the training prompts, TRAIN."""
    asked = run.evaluation.prompts
    name = run.prompts.get("name") if isinstance(run.prompts, Mapping) else run.prompts
    return asked if asked is not None else HELD_OUT.get(name) if isinstance(name, str) else None


def judged_prompts(run: RunSettings, prompts: PromptSource, *, key: str) -> PromptSource:
    """The prompts of evaluations: the training prompts where they are asked for, and where there are no others."""
    asked = judged_by(run)
    return prompts if asked is None or asked == TRAIN else source(asked, key=key)


def trial_of(run: RunSettings, algorithm: Any, judged: PromptSource, batch: int) -> tuple[Trial, str, str]:
    """How models are judged, the name of its prompts, and that of its sampler."""
    asked = run.evaluation
    sampler: Sampler = DDIM(eta=0.0)
    if asked.sampler == "train":
        sampler = algorithm.training_sampler
    elif not isinstance(asked.sampler, str):
        sampler = asked.sampler
    prompts = trial_prompts(judged, asked.count, asked.images_per_prompt, run.seed)
    trial = Trial(
        prompts,
        algorithm.steps if asked.steps is None else asked.steps,
        algorithm.guidance if asked.guidance is None else asked.guidance,
        sampler,
        run.seed,
        min(batch, len(prompts)),
        run.negative_prompt,
    )
    own = judged_by(run) is None or judged_by(run) == TRAIN
    name = getattr(judged, "name", "prompts") + (" (the training prompts)" if own else "")
    return trial, name, asked.sampler if isinstance(asked.sampler, str) else repr(sampler)


def refuse_guidance(resolved: Resolved, guiding: Guiding, dashes: str) -> None:
    """Refuses guidance, and a negative prompt, that the model has no use for."""
    run = resolved.run
    asked = {f"{dashes}algorithm.guidance": resolved.algorithm.guidance}
    if run.evaluation.guidance is not None:
        asked[f"{dashes}evaluation.guidance"] = run.evaluation.guidance
    guiding.check(str(run.model), asked, {f"{dashes}negative_prompt": run.negative_prompt})


def refuse_idle(resolved: Resolved, home: Path | None, dashes: str) -> None:
    """Refuses settings that would be accepted and do nothing."""
    run, guidance = resolved.run, resolved.algorithm.guidance
    judged = guidance if run.evaluation.guidance is None else run.evaluation.guidance
    if run.negative_prompt and max(guidance, judged) <= 1:
        raise ValueError(
            f"{dashes}negative_prompt has no effect at guidance={guidance}, which is none: set "
            f"{dashes}algorithm.guidance above 1, or leave it out."
        )
    if run.revision is not None and home is not None:
        raise ValueError(
            f"{dashes}revision {run.revision} has no effect on a model that lies in a folder ({run.model}): leave it "
            "out, or name a hub id."
        )


def refuse_change(resolved: Resolved, config_file: Path, dashes: str) -> None:
    """A run that goes on stays the run it was: what its pictures and its learning depend on may not change.

    Its length, learning rate, how often it is judged, and all that only the machine is concerned with, may.
    """
    if not config_file.is_file():
        return
    before = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    for path, value in leaves(resolved.tree):
        part, _, setting = path.partition(".")
        if part not in (*FIXED, *JUDGED) or setting in ("learning_rate", "iterations", "weight_decay", "every"):
            continue
        *above, last = path.split(".")
        found: Any = before
        for key in above:
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping) and last not in found and resolved.origin.get(path, "default") == "default":
            continue  # a setting that is younger than that run, at what it was before there was a choice
        found = found.get(last) if isinstance(found, Mapping) else None
        if found != value:
            home, (now, then) = config_file.parent, (secrets.cleaned({last: one})[last] for one in (value, found))
            raise ValueError(
                f"{dashes}{path} is {_short(now)}, but the run in {home} was made with {_short(then)}: go on with "
                f"that, or begin another run in another {dashes}output_dir."
            )


def show(
    plan: Plan,
    tree: Mapping[str, Any],
    origin: Mapping[str, str],
    memory: Sequence[tuple[str, str, str]],
    notes: Sequence[str],
) -> None:
    """Prints settings with their origins, the arithmetic, and what it needs of memory."""
    console = Console(highlight=False, soft_wrap=True)
    settings = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for path, value in leaves(secrets.cleaned(tree)):  # terminals are logged
        by = origin.get(path, "")
        if path.startswith("algorithm.") or by not in ("default", ""):
            settings.add_row(path, _short(value), f"[dim]{by}[/dim]")
    console.print("[bold]Settings[/bold] (all of them: config.yaml)")
    console.print(settings)
    console.print("\n[bold]Plan[/bold]")
    console.print(_rows(plan.table()))
    console.print("\n[bold]Memory of the device[/bold] (estimated)")
    console.print(_rows(memory))
    for note in notes:
        console.print(note)


def announce(needs: Sequence[tuple[str, str, str]]) -> None:
    """Prints what is about to be fetched, and what that is for, where anything is."""
    if not needs:
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print("[bold]Before the model is loaded[/bold] (estimated)")
    console.print(_rows(needs))


def _rows(found: Sequence[tuple[str, str, str]]) -> Table:
    """Rows (what, amount, why) in columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for what, amount, reason in found:
        table.add_row(what, amount, f"[dim]{reason}[/dim]")
    return table


def leaves(tree: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything in a tree that has no parts."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def _short(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], Mapping) and "weight" in value[0]:
        value = as_text(value)  # a sum of rewards
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."

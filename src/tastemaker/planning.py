"""From resolved settings to a plan: what the user left open is solved for, and every value says where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from tastemaker.algorithms.algorithm import Algorithm
from tastemaker.plan import Plan
from tastemaker.process.schedule import Schedule
from tastemaker.settings import RunSettings

CALL_ROWS = 64  # items of one network call where nothing else limits them


def solve(algorithm: Algorithm, run: RunSettings, schedule: Schedule, devices: int, limit: int | None = None) -> Plan:
    """The plan of a run on so many devices; `limit` is what memory allows of items a call.

    micro_batch, if open: of all sizes up to the limit, the one that fills the fewest rows with repeats.
    sampling_batch, if open, is the same: drawing and learning in calls of equal rows give equal log-probabilities.
    """
    items = algorithm.items(schedule)
    share, drawn = -(-algorithm.images // (algorithm.updates * devices)), -(-algorithm.images // devices)
    micro = run.plan.micro_batch or _fewest_repeats(share * items, min(limit or CALL_ROWS, drawn))
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
        sampling_batch=run.plan.sampling_batch or micro,
        devices=devices,
        learning_guidance=algorithm.learning_guidance,
        evaluate_every=run.evaluation.every,
        save_every=run.checkpointing_steps,
    )


def _fewest_repeats(items: int, limit: int) -> int:
    """The size of calls, at most `limit`, that covers `items` with the fewest rows; of equals the largest."""
    sizes = range(max(1, min(limit, items) // 2), min(limit, items) + 1)
    return min(sizes, key=lambda size: (-(-items // size) * size, -size))


def show(plan: Plan, tree: Mapping[str, Any], origin: Mapping[str, str], notes: list[str]) -> None:
    """Prints settings with their origins, then the arithmetic."""
    console = Console(highlight=False, soft_wrap=True)
    settings = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for path, value in _leaves(tree):
        by = origin.get(path, "")
        if path.startswith("algorithm.") or by not in ("default", ""):
            settings.add_row(path, _short(value), f"[dim]{by}[/dim]")
    console.print("[bold]Settings[/bold] (all of them: config.yaml)")
    console.print(settings)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for quantity, number, reason in plan.table():
        table.add_row(quantity, number, f"[dim]{reason}[/dim]")
    console.print("\n[bold]Plan[/bold]")
    console.print(table)
    for note in notes:
        console.print(note)


def _leaves(tree: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."

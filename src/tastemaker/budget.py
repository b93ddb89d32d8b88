"""The settings that fit into so much memory: as many items a call as there is room for, and what makes more room."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

from tastemaker.memory import Memory, Setup, estimate, size, tiles


class Fit(NamedTuple):
    """What `fit` chose, what that needs, and both in words."""

    setup: Setup
    memory: Memory
    words: str


class TooLittle(ValueError):
    """Not even one item a call fits; `least` is what that would need."""

    def __init__(self, budget: int, least: Memory) -> None:
        super().__init__(
            f"--fit {size(budget)} is not enough: at least {size(least.needed)} are needed, "
            f"{size(least.during('always'))} of them always. Train a LoRA with --mixed_precision, lower --resolution, "
            "or use --use_8bit_adam."
        )
        self.least = least


def fit(budget: int, setup: Setup, *, most: int, fixed: Collection[str] = (), cuda: bool = True) -> Fit:
    """The largest micro_batch up to `most` that needs no more than `budget` bytes.

    Without gradient checkpointing if any fits so, and with VAE slicing only where that makes the room; tiles, which
    change the pictures a little, only where nothing fits without. fixed: what of micro_batch and the switches the user
    chose, and stays. Errors: TooLittle if nothing fits.
    """

    def options(name: str, choices: tuple[Any, ...]) -> tuple[Any, ...]:
        return (getattr(setup, name),) if name in fixed else choices

    least: Memory | None = None
    tiling = options("vae_tiling", (False, True) if tiles(setup) else (False,))
    for tiled, checkpointing in product(tiling, options("gradient_checkpointing", (False, True))):
        sliced = options("vae_slicing", (True,))[0]
        tried = replace(setup, gradient_checkpointing=checkpointing, vae_slicing=sliced, vae_tiling=tiled)

        def needed(count: int, tried: Setup = tried) -> int:
            return estimate(replace(tried, micro_batch=count), cuda=cuda, otherwise=False).needed

        low, high = (setup.micro_batch,) * 2 if "micro_batch" in fixed else (1, most)
        if not (count := _largest(needed, budget, low, high)):
            found = estimate(replace(tried, micro_batch=low), cuda=cuda, otherwise=False)
            least = found if least is None else min(least, found, key=lambda one: one.needed)
            continue
        chosen = replace(tried, micro_batch=count)
        for slicing in options("vae_slicing", (False, True)):
            chosen = replace(chosen, vae_slicing=slicing)
            if (memory := estimate(chosen, cuda=cuda, otherwise=False)).needed <= budget:
                return Fit(chosen, memory, _words(budget, chosen, memory))
    assert least is not None
    raise TooLittle(budget, least)


def _words(budget: int, setup: Setup, memory: Memory) -> str:
    switches = {"gradient checkpointing": setup.gradient_checkpointing, "VAE slicing": setup.vae_slicing}
    switches |= {"VAE tiling": True} if setup.vae_tiling else {}
    said = ", ".join(f"{what} {'on' if on else 'off'}" for what, on in switches.items())
    return (
        f"to fit {size(budget)}: up to {setup.micro_batch} items a call, {said}; about {size(memory.needed)} are needed"
    )


def _largest(needed: Callable[[int], int], budget: int, low: int, high: int) -> int:
    """The largest count with needed(count) <= budget, 0 if there is none.

    `needed` grows nearly linearly: the next count to try is where the line through the last two meets the budget.
    """
    if (at_low := needed(low)) > budget:
        return 0
    if low == high or (at_high := needed(high)) <= budget:
        return high
    while high - low > 1:
        middle = low + (budget - at_low) * (high - low) // (at_high - at_low)
        middle = min(max(middle, low + 1), high - 1)
        if (at_middle := needed(middle)) <= budget:
            low, at_low = middle, at_middle
        else:
            high, at_high = middle, at_middle
    return low

"""Randomness as a function of what it is for: (seed, iteration, purpose, step, sample), never of what was drawn before.

So batch sizes, device counts and restarts do not change a single draw, and there is no stream to save.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor


class Key(NamedTuple):
    """Everything random in one iteration (a number) or in an evaluation ("evaluation") of a run with this seed."""

    seed: int
    iteration: int | str

    def generator(self, *purpose: object) -> torch.Generator:
        """A fresh CPU generator for this purpose: words, whole numbers, or tuples of them.

        Its seed is blake2b(repr((seed, iteration, *purpose))), 8 bytes. torch's CPU generator looks at 32 of those
        bits, so among a million draws of a run about a hundred pairs coincide, at unrelated places.
        """
        return torch.Generator("cpu").manual_seed(self._number(purpose))

    def noise(self, purpose: str, i: int, ids: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise [B, *shape], fp32 on the CPU: row b depends on (purpose, i, ids[b]) alone.

        About 40 us for a row of 4x64x64. Move it with `.to(device, non_blocking=True)`: no accelerator is waited for.
        """
        noise = torch.empty(len(ids), *shape, dtype=torch.float32, device="cpu")
        for row, sample in zip(noise, ids, strict=True):
            row.normal_(generator=self.generator(purpose, i, sample))
        return noise

    def permutation(self, n: int, *purpose: object) -> list[int]:
        """A random order of 0 ... n - 1."""
        order: list[int] = torch.randperm(n, generator=self.generator(*purpose), device="cpu").tolist()
        return order

    def random(self, *purpose: object) -> Random:
        """Python's generator for this purpose, for choices and shuffles without tensors."""
        return Random(self._number(purpose))

    def _number(self, purpose: tuple[object, ...]) -> int:
        text = repr(_plain((self.seed, self.iteration, *purpose)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _plain(value: object) -> object:
    """value with every whole number a Python int: repr of numpy's and torch's would differ, and so would the draw."""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return tuple(_plain(part) for part in value)
    try:
        return int(operator.index(value))  # type: ignore[arg-type]  # what has no index raises the TypeError below
    except TypeError as error:
        raise TypeError(f"a purpose is made of words, whole numbers and tuples, not of {value!r}.") from error

"""`Prompts`: the texts of one draw, with the identities that travel with them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload


@dataclass(frozen=True)
class Prompts(Sequence[str]):
    """Rows of (text, id, group, metadata), taken together; as a sequence it is its texts.

    An id names one picture within an iteration, whichever device draws it; a group names the pictures of one prompt.
    Neither is a text: the same text may stand in two rows. A tokenizer that insists on a list wants `list(prompts)`.
    """

    texts: tuple[str, ...]
    ids: tuple[int, ...]
    groups: tuple[int, ...]
    metadata: tuple[Any, ...]

    def __post_init__(self) -> None:
        rows = {len(self.texts), len(self.ids), len(self.groups), len(self.metadata)}
        if len(rows) > 1:
            raise ValueError(
                f"{len(self.texts)} texts, {len(self.ids)} ids, {len(self.groups)} groups and {len(self.metadata)} "
                "metadata do not make rows: give one of each per prompt."
            )

    @classmethod
    def of(cls, texts: Sequence[str], metadata: Sequence[Any] | None = None) -> Prompts:
        """Rows numbered from 0, each a group of its own; without `metadata` every row's is None."""
        if isinstance(texts, str):
            raise ValueError(f"prompts are a list of texts, found the one text {texts!r}: write [{texts!r}].")
        rows = tuple(range(len(texts)))
        return cls(tuple(texts), rows, rows, (None,) * len(rows) if metadata is None else tuple(metadata))

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Prompts: ...
    def __getitem__(self, row: int | slice) -> str | Prompts:
        return self.take(range(len(self))[row]) if isinstance(row, slice) else self.texts[row]

    def take(self, rows: Sequence[int]) -> Prompts:
        """These rows in this order; ids, groups and metadata stay with their texts."""
        rows = [int(row) for row in rows]
        return Prompts(
            tuple(self.texts[row] for row in rows),
            tuple(self.ids[row] for row in rows),
            tuple(self.groups[row] for row in rows),
            tuple(self.metadata[row] for row in rows),
        )

    def repeat(self, k: int) -> Prompts:
        """Every row k times, neighbours, as one group; row id becomes ids k id, ..., k id + k - 1."""
        if k < 1:
            raise ValueError(f"a prompt cannot be repeated {k} times: give 1 or more.")
        rows = self.take([row for row in range(len(self)) for _ in range(k)])
        ids = tuple(k * name + copy for name in self.ids for copy in range(k))
        return Prompts(rows.texts, ids, rows.groups, rows.metadata)

    def split(self, n: int) -> list[Prompts]:
        """Parts of n neighbouring rows each; the last may be shorter."""
        if n < 1:
            raise ValueError(f"prompts cannot be split into parts of {n}: give 1 or more.")
        return [self[first : first + n] for first in range(0, len(self), n)]


class PromptSource(Protocol):
    """Where prompts come from. A draw depends on `rng` alone, so every device draws the same list."""

    def draw(self, rng: random.Random, count: int) -> Prompts:
        """`count` prompts, ids 0 .. count - 1, every row a group of its own."""
        ...

"""Prompts: a table of the distinct texts as encoders read them, the cache that fills it, or the texts themselves."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

Encoded = Mapping[str, Tensor]
"""What the text encoders make of one text: name -> [...], whatever the family's network wants."""


@dataclass(frozen=True)
class Conditioning:
    """The prompts of B rows; opaque to everything outside `policy/`.

    index: [B] int64 on the CPU, each row's place among the distinct texts
    """

    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: Sequence[int] | Tensor) -> Self:
        """The given rows, in the given order; what is known of the texts is shared, not copied."""
        chosen = rows.cpu() if isinstance(rows, Tensor) else torch.tensor(list(rows), dtype=torch.long)
        return replace(self, index=self.index[chosen])


@dataclass(frozen=True)
class Table(Conditioning):
    """The prompts as the network reads them.

    table: name -> [D, ...], one entry for each of D distinct texts
    negative: name -> [1, ...], what guidance moves away from
    """

    table: Encoded
    negative: Encoded

    def positive_rows(self, name: str) -> Tensor:
        """[B, ...] the prompts' own encoding, on the table's device."""
        table = self.table[name]
        return table[self.index.to(table.device)]

    def negative_rows(self, name: str) -> Tensor:
        """[B, ...] the negative prompt's encoding, once for every row (a view)."""
        entry = self.negative[name]
        return entry.expand(len(self), *entry.shape[1:])


@dataclass(frozen=True)
class Words(Conditioning):
    """The prompts as they are written, for encoders that are trained: each call of the network reads them anew.

    texts: the D distinct ones
    negative: the text that guidance moves away from
    fixed: what encoders that are not trained make of the same, where there are any
    """

    texts: tuple[str, ...]
    negative: str
    fixed: Table


class TextCache:
    """Encoded texts in host memory, bounded in bytes; the least recently used leave first.

    `encode` gets the texts that are missing and returns their encodings, on the CPU, in the same order.
    """

    def __init__(self, encode: Callable[[list[str]], list[Encoded]], limit: int = 2**30) -> None:
        self._encode = encode
        self._limit = limit
        self._entries: OrderedDict[str, Encoded] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def conditioning(self, prompts: Sequence[str], negative: str, device: torch.device) -> Table:
        """The table on `device`, every distinct text encoded at most once; no prompts make an empty table."""
        texts = list(dict.fromkeys(prompts))
        place = {text: row for row, text in enumerate(texts)}
        found = self.entries([negative, *texts])
        stacked = {name: torch.stack([entry[name] for entry in found]).to(device) for name in found[0]}
        return Table(
            index=torch.tensor([place[text] for text in prompts], dtype=torch.long),
            table={name: tensor[1:] for name, tensor in stacked.items()},
            negative={name: tensor[:1] for name, tensor in stacked.items()},
        )

    def entries(self, texts: list[str]) -> list[Encoded]:
        """The encoding of each, on the CPU."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._entries]
        # Held beside the cache: one call may ask for more texts than the bound lets it keep.
        fresh = dict(zip(missing, self._encode(missing), strict=True)) if missing else {}
        found = [fresh[text] if text in fresh else self._entries[text] for text in texts]
        for text, entry in zip(texts, found, strict=True):
            self._keep(text, entry)
        return found

    def _keep(self, text: str, entry: Encoded) -> None:
        if text in self._entries:
            self._entries.move_to_end(text)
            return
        self._entries[text] = entry
        self._bytes += _size(entry)
        while self._bytes > self._limit:
            self._bytes -= _size(self._entries.popitem(last=False)[1])


def _size(entry: Encoded) -> int:
    return sum(tensor.nbytes for tensor in entry.values())

"""What processes kept of an unfinished iteration, dealt anew where another number of them goes on with it.

Updates are cut by picture and do not depend on the number of devices, so the iteration goes on where it stood: every
device takes over what any of the former ones had of the pictures that are its own now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tastemaker.plan import Plan

WATCHED = "watch."  # rows of the pictures in `watch.ids`; of all other names, of all of a device's pictures


def redealt(per_rank: Sequence[Mapping[str, Any]], plan: Plan, rank: int) -> dict[str, Any]:
    """What `Checkpoint.per_rank` holds for each former device, for this one of `plan.devices`: `kept` and `record`."""
    shares = [_share(plan, former, len(per_rank)) for former in range(len(per_rank))]
    kept = [one["kept"] for one in per_rank]
    own = _share(plan, rank, plan.devices)
    names = dict.fromkeys(name for one in kept for name in one)
    found = {name: _rows(name, kept, shares, own) for name in names}
    return {"kept": found, "record": _record([one["record"] for one in per_rank], first=rank == 0)}


def _share(plan: Plan, rank: int, devices: int) -> list[int]:
    """The ids that `iteration.deal` gives a device."""
    return [group * plan.per_prompt + k for group in range(rank, plan.groups, devices) for k in range(plan.per_prompt)]


def _rows(
    name: str, kept: Sequence[Mapping[str, Tensor]], shares: Sequence[Sequence[int]], own: Sequence[int]
) -> Tensor:
    """The own pictures' rows of a tensor; NaN where its device kept nothing by this name. One number is everybody's."""
    tables = [(one, share, one[name]) for one, share in zip(kept, shares, strict=True) if name in one]
    first = next((table for _, _, table in tables if len(table.shape) == 0 or len(table)), tables[0][2])
    if not first.dim():
        return first
    watched = name.startswith(WATCHED)
    rows: dict[int, Tensor] = {}
    for one, share, table in tables:
        ids: Iterable[int] = one[f"{WATCHED}ids"].tolist() if watched else share
        rows |= dict(zip(map(int, ids), table, strict=True))
    nothing = torch.full(first.shape[1:], torch.nan).to(first.dtype)
    found = [rows.get(b, nothing) for b in own if b in rows or not watched]
    return torch.stack(found) if found else first[:0]


def _record(records: Sequence[Mapping[str, Any]], *, first: bool) -> dict[str, Any]:
    """What was counted so far is added up on one device; of seconds the longest, on each."""
    names = dict.fromkeys(name for one in records for name in one["counters"])
    values = {name: [float(one["counters"].get(name, 0)) for one in records] for name in names}
    counters = {name: max(each) if name.startswith("s_") else sum(each) * first for name, each in values.items()}
    return {**records[0], "counters": counters}

"""Tensors of which every process holds a part, as FSDP2 cuts them: along their first axis, in the ranks' order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 2**27  # bytes of a tensor that are added up at once
NOTE = "tastemaker_bits"  # the attribute of a sharded tensor
NO_MEMORY = (
    "out of memory with --fsdp, under which no process can take smaller calls than the others: lower "
    "--plan.micro_batch or --plan.sampling_batch, use --gradient_checkpointing, or start more processes."
)


def is_sharded(tensor: Tensor) -> bool:
    """Whether other processes hold parts of it (a DTensor; its module takes half a second to import)."""
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """This process's part, the same memory; a tensor that is whole is itself. Its rows may be none."""
    sharded: Any = tensor
    part: Tensor = sharded._local_tensor if is_sharded(tensor) else tensor
    return part.detach()


def cut(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut as `like` is; the whole where that is whole. Nothing is sent."""
    if not is_sharded(like):
        return whole
    sharded: Any = like
    rows = -(-len(whole) // sharded.device_mesh.size())  # of all parts but the last ones
    start = min(sharded.device_mesh.get_local_rank() * rows, len(whole))
    return whole[start : start + len(local(like))]


@torch.no_grad()
def copied(whole: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of a whole tensor where and cut as `like` is."""
    made = torch.empty_like(like, dtype=dtype)
    local(made).copy_(cut(whole, like))
    return made.detach()


def whole(tensor: Tensor) -> Tensor:
    """All of it, on its own device: where others hold parts, a collective of all of them; what is whole is itself."""
    sharded: Any = tensor.detach()
    made: Tensor = sharded.full_tensor() if is_sharded(tensor) else tensor
    return made


@torch.no_grad()
def bits(tensor: Tensor) -> int:
    """The sum of a tensor's bits, eight bytes a number, where it lies; it wraps around, and that exactly.

    Of a sharded tensor, of which nobody has the whole: what was noted of it before it was cut.
    """
    if is_sharded(tensor):
        return int(getattr(tensor, NOTE, 0))
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    total = 0
    for part in torch.split(flat, CHUNK) if len(flat) else ():
        whole = len(part) // 8 * 8
        numbers = part[:whole] if part.storage_offset() % 8 == 0 else part[:whole].clone()
        total += int(numbers.view(torch.int64).sum()) + int(part[whole:].sum(dtype=torch.int64))
    return total


def note(sharded: Tensor, found: int) -> None:
    """Notes what `bits` found of the whole tensor."""
    setattr(sharded, NOTE, found)

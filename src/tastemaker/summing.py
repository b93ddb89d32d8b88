"""Sums of tensors over the ranks: many small ones travel together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET = 2**25  # elements that are moved at once: 128 MiB of fp32 beside the tensors themselves


def add(tensors: Iterable[Tensor], control: dist.ProcessGroup | None) -> None:
    """Sums over the ranks, in place: on CUDA by the default group, which is NCCL's, everything else over `control`."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        if flat.device.type == "cuda":
            dist.all_reduce(flat)
        else:
            flat = flat.cpu()
            dist.all_reduce(flat, group=control)
        start = 0
        for tensor in bucket:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, together as long as they are of one dtype and device and up to BUCKET elements."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        bucket = kinds.setdefault((tensor.dtype, tensor.device), [])
        if bucket and sum(other.numel() for other in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = kinds[tensor.dtype, tensor.device] = []
        bucket.append(tensor)
    yield from kinds.values()

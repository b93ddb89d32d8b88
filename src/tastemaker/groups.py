"""Process groups: how they are begun, and ended before the interpreter is.

The threads of a gloo group hold the tensors of its last message and free them when they please. One that does so while
the interpreter ends asks for a lock that nobody gives any more, and the process aborts; so all groups end before.
"""

from __future__ import annotations

import atexit
import importlib
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def begin(device: str, timeout: timedelta) -> tuple[dist.ProcessGroup, Any]:
    """A group of all ranks to send messages over, and the store that all of them reach.

    The default group is begun where nobody has: with CUDA its tensors go over NCCL, all else over gloo.
    """
    cuda = device.startswith("cuda") and dist.is_nccl_available()
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        importlib.import_module("torch.distributed.nn")  # imported later, its defaults would keep the group alive
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timeout)
        atexit.register(_end_all)
    return dist.new_group(backend="gloo", timeout=timeout), dist.distributed_c10d._get_default_store()


def end(group: dist.ProcessGroup) -> None:
    """Ends one group, unless all were ended."""
    if dist.is_initialized():
        dist.destroy_process_group(group)


def _end_all() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()

"""Which device a process computes on."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

SHARED = ("cuda", "xpu")  # kinds of which a machine may have several, one for each process
CHOSEN = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


def pick(name: str) -> str:
    """`auto` is the first of cuda, mps, xpu that is there, else cpu; another kind must be there.

    Of several processes on a machine (LOCAL_RANK, from torchrun or `accelerate launch`) each gets a GPU of its own, by
    its number, so that threads and libraries with another current device do not stray. Errors: ValueError naming the
    flag.
    """
    there = available()
    if name == "auto":
        name = next(kind for kind, found in there.items() if found)
    if name not in there:
        raise ValueError(
            f"--device is {name!r}, it must be one of auto, {', '.join(there)}. Of several GPUs, CUDA_VISIBLE_DEVICES "
            "chooses."
        )
    if not there[name]:
        found = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise ValueError(f"--device {name} is not there; found: {found}.{_why_not(name)}")
    return f"{name}:{local_index(name)}" if name in SHARED and "LOCAL_RANK" in os.environ else name


def available() -> Mapping[str, bool]:
    """Kind of device -> whether there is one, in the order in which `auto` looks for them."""
    xpu = getattr(torch, "xpu", None)  # builds of torch without Intel's GPUs may lack it
    return {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": xpu is not None and xpu.is_available(),
        "cpu": True,
    }


def local_index(kind: str) -> int:
    """The number of this process's GPU: its LOCAL_RANK; 0 where it was given but one, for then that is its own.

    Errors: ValueError if there are more processes than GPUs.
    """
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    count = torch.cuda.device_count() if kind == "cuda" else torch.xpu.device_count()
    if count == 1 and any(os.environ.get(name) for name in CHOSEN):
        return 0
    if rank >= count:
        raise ValueError(
            f"--device {kind}: process {rank} of this machine has no GPU of its own, for {count} "
            f"{'is' if count == 1 else 'are'} there. Start as many processes as there are GPUs, or give --device cpu."
        )
    return rank


def _why_not(name: str) -> str:
    """What is likely to be the matter with a kind that is asked for and not there."""
    if name == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        return f" This torch ({torch.__version__}) was built for CPUs only: install one for your GPU (pytorch.org)."
    if name == "cuda":
        return " This torch was built for GPUs, but no driver answers: see `nvidia-smi`, and CUDA_VISIBLE_DEVICES."
    if name == "mps" and not torch.backends.mps.is_built():
        return " It is for Apple's own processors, and this torch was built for another machine."
    return ""

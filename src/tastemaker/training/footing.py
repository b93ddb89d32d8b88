"""What the last digits of a run depend on, and nothing else of it: a checkpoint says where it was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tastemaker.plan import Plan

SWITCHES = (  # settings of a run by which kernels, or the order in which numbers are added up, are others
    *("fsdp", "attention_backend", "compile", "gradient_checkpointing", "vae_slicing", "vae_tiling", "cpu_offload"),
    "use_8bit_adam",
)
TYPED = {"micro_batch": "plan.micro_batch", "sampling_batch": "plan.sampling_batch"}  # what settings are called


def switches(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a run's settings, with what `--fit` chose."""
    return {name: settings[name] for name in SWITCHES}


def footing(plan: Plan, device: torch.device, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What has to be the same for the same bits; the random numbers and the order of an iteration are not of it.

    more: the run's `switches`.
    """
    found: dict[str, Any] = {"processes": plan.devices, "micro_batch": plan.micro_batch}
    found |= {"sampling_batch": plan.sampling_batch, "device": device.type, "torch": str(torch.__version__)}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
    if device.type == "cpu":
        found["threads"] = torch.get_num_threads()
    return found | dict(more or {})


def inexact(
    before: Mapping[str, Any] | None, plan: Plan, device: torch.device, more: Mapping[str, Any] | None = None
) -> str:
    """Why a run that goes on from there does not make the same bits; empty where it does, or nobody can know."""
    now = footing(plan, device, more)
    changed = [name for name in now if name in (before or {}) and now[name] != (before or {})[name]]
    if not changed:
        return ""
    what = ", ".join(f"{TYPED.get(name, name)} {now[name]} (was {(before or {})[name]})" for name in changed)
    uneven = "processes" in changed and plan.dealt % plan.devices
    dealing = f" {plan.devices} processes do not divide {plan.dealt} groups: shares are unequal, updates are the same."
    return f"the run goes on with {what}: the same results up to rounding, not bit for bit.{dealing if uneven else ''}"

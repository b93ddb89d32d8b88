"""What the last digits of a run depend on, and nothing else of it: a checkpoint says where it was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tastemaker.plan import Plan


def footing(plan: Plan, device: torch.device) -> dict[str, Any]:
    """What has to be the same for the same bits; the random numbers and the order of an iteration are not of it."""
    found: dict[str, Any] = {"processes": plan.devices, "micro_batch": plan.micro_batch}
    found |= {"sampling_batch": plan.sampling_batch, "device": device.type, "torch": str(torch.__version__)}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
    if device.type == "cpu":
        found["threads"] = torch.get_num_threads()
    return found


def inexact(before: Mapping[str, Any] | None, plan: Plan, device: torch.device) -> str:
    """Why a run that goes on from there does not make the same bits; empty where it does, or nobody can know."""
    now = footing(plan, device)
    changed = [name for name in now if name in (before or {}) and now[name] != (before or {})[name]]
    if not changed:
        return ""
    what = ", ".join(f"{name} {now[name]} (was {(before or {})[name]})" for name in changed)
    uneven = "processes" in changed and plan.dealt % plan.devices
    more = f" {plan.devices} processes do not divide {plan.dealt} groups: shares are unequal, updates are the same."
    return f"the run goes on with {what}: the same results up to rounding, not bit for bit.{more if uneven else ''}"

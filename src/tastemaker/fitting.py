"""What the device's memory allows: `--fit`, the rows of a call on a GPU, and the estimate that the plan shows."""

from __future__ import annotations

from dataclasses import replace

import torch

from tastemaker import memory
from tastemaker.config import Resolved
from tastemaker.plan import Plan
from tastemaker.planning import CALL_ROWS
from tastemaker.settings import RunSettings

FREE = 0.9  # share of a GPU's free memory that is planned with where no --fit is given


def within(resolved: Resolved, device: torch.device) -> tuple[RunSettings, int | None, list[str]]:
    """The settings with what `--fit` chose, the most items of a call, and both in words.

    Without `--fit` a CUDA device's free memory limits the items of a call, and nothing else is changed.
    """
    run, cuda = resolved.run, device.type == "cuda"
    budget = run.fit_bytes
    stated = {path for path in resolved.origin if resolved.origin[path] != "default"}
    fixed: set[str] = {name for name in ("gradient_checkpointing", "vae_slicing") if name in stated}
    if run.plan.micro_batch is not None:
        fixed.add("micro_batch")
    if budget is None:
        if not cuda or run.plan.micro_batch is not None:
            return run, None, []
        budget, fixed = int(FREE * torch.cuda.mem_get_info(device)[0]), {"gradient_checkpointing", "vae_slicing"}
    most = min(CALL_ROWS, resolved.algorithm.images * resolved.algorithm.steps)
    found = memory.fit(budget, _setup(resolved, run, run.plan.micro_batch or 1), most=most, fixed=fixed, cuda=cuda)
    switches = found.setup.gradient_checkpointing, found.setup.vae_slicing
    chosen = replace(run, gradient_checkpointing=switches[0], vae_slicing=switches[1])
    return chosen, found.setup.micro_batch, [found.words] if run.fit_bytes is not None else []


def table(resolved: Resolved, run: RunSettings, plan: Plan, device: torch.device) -> list[tuple[str, str, str]]:
    """Rows (what, amount, when and why) for the terminal; on a CPU, where nothing runs out soon, only their sum."""
    cuda = device.type == "cuda"
    setup = replace(_setup(resolved, run, plan.micro_batch), sampling_batch=plan.sampling_batch)
    rows = memory.estimate(setup, cuda=cuda).table()
    return rows if cuda or run.fit is not None or run.dry_run else rows[-1:]


def _setup(resolved: Resolved, run: RunSettings, micro_batch: int) -> memory.Setup:
    assert run.model is not None
    sets = resolved.algorithm.sets
    return memory.Setup(
        model=run.model,
        lora=run.lora,
        revision=run.revision,
        mixed_precision=run.mixed_precision,
        height=run.height or run.resolution,
        width=run.width or run.resolution,
        guided=2 if resolved.algorithm.guidance > 1 else 1,
        micro_batch=micro_batch,
        gradient_checkpointing=run.gradient_checkpointing,
        vae_slicing=run.vae_slicing,
        use_8bit_adam=run.use_8bit_adam,
        sets=(*sets, "ema") if run.ema is not None else sets,
    )

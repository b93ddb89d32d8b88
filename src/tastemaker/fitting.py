"""What the device's memory allows: `--fit`, the rows of a call on a GPU, and the estimate that the plan shows."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch

from tastemaker import budget, memory
from tastemaker.config import Resolved
from tastemaker.layers import put
from tastemaker.plan import Plan
from tastemaker.planning import CALL_ROWS
from tastemaker.policy.load import TILE
from tastemaker.settings import RunSettings

FREE = 0.9  # share of a GPU's free memory that is planned with where no --fit is given
SWITCHES = ("gradient_checkpointing", "vae_slicing", "vae_tiling")


def within(resolved: Resolved, device: torch.device, processes: int = 1) -> tuple[RunSettings, int | None, list[str]]:
    """The settings with what `--fit` chose, the most items of a call, and both in words.

    Without `--fit` a CUDA device's free memory limits the items of a call, and nothing else is changed.
    """
    run, cuda = resolved.run, device.type == "cuda"
    _refuse_idle(resolved, device)
    if run.fit_bytes is None and (not cuda or run.plan.micro_batch is not None):
        return run, None, []
    most = min(CALL_ROWS, resolved.algorithm.images * resolved.algorithm.steps)
    setup = _setup(resolved, run, run.plan.micro_batch or 1, processes)
    if run.fit_bytes is None:
        return run, _free(setup, most, device), []
    found = budget.fit(run.fit_bytes, setup, most=most, fixed=_stated(resolved), cuda=cuda)
    switches = {name: getattr(found.setup, name) for name in SWITCHES}
    return replace(run, **switches), found.setup.micro_batch, [found.words]


def _refuse_idle(resolved: Resolved, device: torch.device) -> None:
    """Refuses switches that would save nothing. Errors: ValueError that says why."""
    run, differentiates = resolved.run, resolved.algorithm.differentiates
    if run.cpu_offload and device.type == "cpu":
        raise ValueError("--cpu_offload has no effect on a CPU, where everything lies already: leave it out.")
    if run.cpu_offload and differentiates:
        raise ValueError(
            "--cpu_offload has no effect where the reward is differentiated: the VAE is at work in every training "
            "call. Leave it out."
        )
    if not run.vae_tiling:
        return
    if not memory.tiles(_setup(resolved, run, 1)):
        raise ValueError(
            f"--vae_tiling has no effect on these pictures: a tile has {TILE} pixels on a side, or as many as the VAE "
            "was trained with. Leave it out, or raise --resolution."
        )
    chosen = run.fit is None or "gradient_checkpointing" in _stated(resolved)
    if differentiates and chosen and not run.gradient_checkpointing:
        raise ValueError(
            "--vae_tiling needs --gradient_checkpointing where the reward is differentiated: tiles overlap, so the "
            "activations of all of them take more memory than those of the whole picture. Give both, or neither."
        )


def _free(setup: memory.Setup, most: int, device: torch.device) -> int:
    """The most items of a call that a CUDA device has memory for as it is now."""
    free = torch.cuda.mem_get_info(device)[0]
    try:
        return budget.fit(int(FREE * free), setup, most=most, fixed=SWITCHES).setup.micro_batch
    except budget.TooLittle as error:
        switches = SWITCHES if memory.tiles(setup) else SWITCHES[:2]
        off = " and ".join(f"--{name}" for name in switches if not getattr(setup, name))
        ways = f"use {off}, or --fit with an amount, which chooses them" if off else "lower --resolution"
        raise ValueError(
            f"{memory.size(free)} of the memory of {device} are free, too little for one item a call, which needs "
            f"{memory.size(error.least.needed)} within {FREE:.0%} of it: stop what else computes there, or {ways}."
        ) from error


def decided(resolved: Resolved, run: RunSettings, plan: Plan) -> Resolved:
    """The settings with what `--fit` chose in the place of what was left open; `run` are those of `within`."""
    if run.fit is None:
        return resolved
    found = {"plan.micro_batch": plan.micro_batch, **{name: getattr(run, name) for name in SWITCHES}}
    tree, origin = deepcopy(resolved.tree), dict(resolved.origin)
    for path, value in found.items():
        if path.rpartition(".")[2] not in _stated(resolved):
            put(tree, path, value)
            origin[path] = "fit"
    return replace(resolved, tree=tree, origin=origin)


def _stated(resolved: Resolved) -> set[str]:
    """What of the settings that `--fit` chooses was chosen already."""
    found = {name for name in SWITCHES if resolved.origin[name] not in ("default", "model")}
    return found if resolved.run.plan.micro_batch is None else found | {"micro_batch"}


def table(resolved: Resolved, run: RunSettings, plan: Plan, device: torch.device) -> list[tuple[str, str, str]]:
    """Rows (what, amount, when and why) for the terminal; on a CPU, where nothing runs out soon, only their sum."""
    cuda = device.type == "cuda"
    setup = replace(_setup(resolved, run, plan.micro_batch, plan.devices), sampling_batch=plan.sampling_batch)
    whole = cuda or run.fit is not None or run.dry_run
    rows = memory.estimate(setup, cuda=cuda, otherwise=whole).table()
    return rows if whole else rows[-1:]


def least(resolved: Resolved, run: RunSettings, device: torch.device, processes: int = 1) -> memory.Memory:
    """What one item a call needs, where nobody asked for more."""
    setup = replace(_setup(resolved, run, 1, processes), sampling_batch=1)
    return memory.estimate(setup, cuda=device.type == "cuda", otherwise=False)


def _setup(resolved: Resolved, run: RunSettings, micro_batch: int, processes: int = 1) -> memory.Setup:
    assert run.model is not None
    sets, algorithm = resolved.algorithm.sets, resolved.algorithm
    return memory.Setup(
        model=run.model,
        lora=run.lora,
        revision=run.revision,
        mixed_precision=run.mixed_precision,
        height=run.height or run.resolution,
        width=run.width or run.resolution,
        kernel="math" if run.attention_backend == "_native_math" else "efficient",
        guided=max(algorithm.guidance, run.evaluation.guidance or 0.0) > 1,
        learning_guided=algorithm.learning_guidance > 1,
        micro_batch=micro_batch,
        sampling_batch=run.plan.sampling_batch,
        gradient_checkpointing=run.gradient_checkpointing,
        vae_slicing=run.vae_slicing,
        vae_tiling=run.vae_tiling,
        cpu_offload=run.cpu_offload,
        quantise=run.quantise,
        use_8bit_adam=run.use_8bit_adam,
        depth=algorithm.calls(range(algorithm.steps)).depth,
        differentiates=algorithm.differentiates,
        sets=(*sets, "ema") if run.ema is not None else sets,
        processes=processes if run.fsdp else 1,
    )

"""What a run needs of the network, of the disk and of its device: told before anything large is fetched; and that
the disk has room for one checkpoint, before the run's folder is made."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from huggingface_hub import constants

from tastemaker import fitting
from tastemaker.config import Resolved
from tastemaker.memory import Memory, size
from tastemaker.policy.downloads import Download, downloads
from tastemaker.policy.load import find
from tastemaker.policy.policy import Policy
from tastemaker.settings import RunSettings

DENOISERS = ("unet/", "transformer/")
KEPT = ("trained weights", "weight sets", "optimizer")  # of the estimate, what a checkpoint holds


def needs(
    resolved: Resolved, run: RunSettings, device: torch.device, output: Path, processes: int = 1
) -> list[tuple[str, str, str]]:
    """Rows (what, amount, why) of a run whose model the hub has; none of a model that is here anyway.

    `run` are the settings with what `--fit` chose. Errors: ValueError naming --model, as loading raises.
    """
    assert run.model is not None
    found = downloads(find(run.model, run.revision, run.variant))
    if not found:
        return []
    least = fitting.least(resolved, run, device, processes)
    fetched, left = sum(one.size for one in found if not one.here), _left(run, resolved.algorithm.iterations, least)
    if run.lora is None:  # a whole pipeline is saved
        left += sum(one.size for one in found if not one.name.startswith(DENOISERS))
    return [
        ("download", size(fetched), f"{_files(found)}; {_free(Path(constants.HF_HUB_CACHE))}"),
        ("disk", size(left), f"checkpoints and weights; {_free(output)}"),
        ("memory", size(least.needed), "at least, with one item a call; the plan has it for all of them"),
    ]


def _files(found: list[Download]) -> str:
    here = sum(one.here for one in found)
    return f"{len(found) - here} files" + (f"; {here} are in the cache" if here else "")


def _left(run: RunSettings, iterations: int, memory: Memory) -> int:
    """Bytes of checkpoints and of what is exported."""
    trained, kept = memory.of("trained weights"), sum(memory.of(what) for what in KEPT)
    return (checkpoints(run, iterations) * kept + trained) * memory.processes  # what each has is a part of it


def checkpoints(run: RunSettings, iterations: int) -> int:
    """How many lie in the folder at most, the best ones too, and one more while it is written."""
    made = 1 if not run.checkpointing_steps else -(-iterations // run.checkpointing_steps)
    limit, by = run.checkpoints_total_limit, run.best_metric or (run.alarms is not None and run.held_out_rewards)
    # Those of the list, those of the newest ordinary checkpoint's list, and one that comes; the last draws no pictures.
    best = min(2 * run.best_checkpoints + 1, iterations - 1) if by and run.best_checkpoints else 0
    return (made if limit is None else min(made, limit + 1)) + best


def check_room(output: Path, policy: Policy, *, moments: int, key: str) -> None:
    """Refuses a disk without room for one checkpoint; `moments` is the optimizer's bytes a trained number.

    Errors: ValueError naming the key. A disk that does not say how large it is passes.
    """
    weights = sum(tensor.nbytes for tensor in policy.state().values())
    needed = weights + moments * sum(parameter.numel() for parameter in policy.parameters())
    place = _there(output)
    disk = shutil.disk_usage(place)
    if disk.total and disk.free < needed:
        raise ValueError(
            f"{key} {output}: {size(disk.free)} are free in {place}, and one checkpoint takes {size(needed)}. Make "
            "room, or name a folder on another disk."
        )


def _there(folder: Path) -> Path:
    """The folder, or what of its path is there."""
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())


def _free(folder: Path) -> str:
    place = _there(folder)
    return f"{size(shutil.disk_usage(place).free)} are free in {place}"

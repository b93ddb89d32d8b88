"""That all processes of a run were asked for the same thing: compared before the first iteration.

Processes that draw by different seeds, prompts or settings would add up gradients of different runs, and nothing that
they exchange later would show it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from tastemaker import __version__, fingerprint, planning
from tastemaker.policy.policy import Exportable
from tastemaker.process.noise import Key
from tastemaker.prompts.prompts import PromptSource
from tastemaker.reports import secrets
from tastemaker.world import World

# What may differ: who writes and tells, and what only one machine is concerned with.
OWN = (
    *("output_dir", "overwrite", "dry_run", "device", "report_to", "push_to_hub", "hub_model_id", "save_samples"),
    *("fit", "plan", "gradient_checkpointing", "vae_slicing", "vae_tiling", "attention_backend", "compile"),
    *("cpu_offload", "lpips_weights"),
)
DRAWN = 16  # prompts that stand for all


def check(world: World, settings: Mapping[str, Any], prompts: PromptSource, policy: Exportable | None = None) -> None:
    """A collective. Errors: ValueError on every rank where one has other settings, prompts, code or weights than rank
    0: files and weights are compared by what is in them, not by what they are called."""
    if world.size == 1:
        return
    clean = planning.leaves(secrets.cleaned(settings))  # what differs is shown
    mine = {path: str(value) for path, value in clean if path.partition(".")[0] not in OWN}
    drawn = prompts.draw(Key(int(settings["seed"]), "check").random("prompts"), DRAWN)
    mine |= {"prompts that are drawn": str(drawn.texts), "torch": torch.__version__, "tastemaker": __version__}
    mine |= {"the prompts' sha256": fingerprint.of_prompts(prompts), "the package's sha256": fingerprint.of_package()}
    mine |= {f"the sha256 of {name}": found for name, found in fingerprint.of_files(settings).items()}
    if policy is not None:
        mine |= {f"the checksum of the {name}": found for name, found in fingerprint.of_weights(policy).items()}
    first = json.loads(world.broadcast_text(json.dumps(mine)))
    other = [name for name in {**first, **mine} if mine.get(name) != first.get(name)]
    found = world.sum(bool(other))
    if found:
        name = other[0] if other else ""
        here = f"{name} is {mine.get(name, 'absent'):.80} on rank {world.rank} and {first.get(name, 'absent'):.80} on 0"
        raise ValueError(
            f"{found} of {world.size} processes were asked for another run than rank 0: "
            f"{here if other else 'they say what differs'}. Start all with the same command, files and versions."
        )

"""What is refused before any work: rewards without a gradient, and what would do nothing or cannot be reached."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch

from tastemaker import config, folder, planning
from tastemaker.build import attribute
from tastemaker.exports import hub
from tastemaker.reports import trackers
from tastemaker.rewards import gradient
from tastemaker.rewards.reward import NamedReward
from tastemaker.settings import RunSettings
from tastemaker.world import World


def refuse_reward(resolved: config.Resolved, dashes: str) -> None:
    """A reward that is known to have no gradient, where the algorithm needs one."""
    if resolved.algorithm.differentiates:
        key = spelled("reward", resolved, dashes)
        gradient.refuse(resolved.run.reward, algorithm=name_of(resolved), others=undemanding(), key=key)


def refuse_sharding(run: RunSettings, world: World, device: torch.device, dashes: str) -> None:
    """Weights cut over processes where there is one, or on a kind of device that it was not made for. A collective."""
    if world.size > 1 and world.sum(int(run.fsdp)) not in (0, world.size):
        raise ValueError(f"{dashes}fsdp was given to some of the {world.size} processes: start all with one command.")
    if not run.fsdp:
        return
    if world.size == 1:
        raise ValueError(
            f"{dashes}fsdp cuts the weights over several processes, and this is one alone: start it with torchrun or "
            "accelerate launch, as `torchrun --nproc-per-node 2 -m tastemaker train ...`, or leave it out."
        )
    if device.type not in ("cuda", "cpu"):
        raise ValueError(f"{dashes}fsdp was not tried on {device.type}: leave it out, or give {dashes}device cuda.")


def refuse_comparison(resolved: config.Resolved, reward: NamedReward, dashes: str) -> None:
    """A sum that weighs pictures against each other, where the algorithm or its groups have no place for that."""
    if reward.comparison is None:
        return
    key, algorithm = spelled("reward", resolved, dashes), resolved.algorithm
    if algorithm.differentiates:
        by = name_of(resolved)
        gradient.refuse_comparison(reward.comparison, algorithm=by, others=undemanding(), key=key)
    if reward.comparison.standardise == "group" and algorithm.per_prompt < 2:
        raise ValueError(
            f"{key}.standardise is `group`, the pictures of one prompt, but per_prompt is 1, and a picture alone has "
            f"nothing to be compared with: raise {dashes}algorithm.per_prompt, or write `iteration`."
        )


def name_of(resolved: config.Resolved) -> str:
    """The algorithm's name in the table, where it has one."""
    return str(resolved.tree["algorithm"]["name"])


def undemanding() -> list[str]:
    """The algorithms that take any reward."""
    return [name for name, entry in config.algorithms().items() if not attribute(entry).differentiates]


def refuse(resolved: config.Resolved, output: Path, dashes: str) -> None:
    """What would do nothing, cannot be reached, or would make another run of the one that goes on."""
    run = resolved.run
    trackers.need(run.report_to, key=f"{dashes}report_to")
    if run.hub_model_id is not None:
        hub.check_name(run.hub_model_id, f"{dashes}hub_model_id")
        if not run.push_to_hub:
            raise ValueError(f"{dashes}hub_model_id has no effect without {dashes}push_to_hub: give both, or none.")
    if run.lpips_weights not in ("auto", "off") and run.evaluation.images_per_prompt == 1:
        raise ValueError(
            f"{dashes}lpips_weights has no effect on the one picture a prompt that evaluations draw: raise "
            f"{dashes}evaluation.images_per_prompt, or leave it out."
        )
    if "ratio" in run.stop_on and "clip" not in {field.name for field in fields(resolved.algorithm)}:
        raise ValueError(f"{dashes}stop_on is 'ratio', but {name_of(resolved)} clips no ratio: leave it out.")
    if run.lora is not None and run.lora.dropout and "clip" in {field.name for field in fields(resolved.algorithm)}:
        raise ValueError(
            f"{dashes}lora.dropout does not go with {name_of(resolved)}: the ratio of new to old probabilities that it "
            "learns from would be that of two random networks. Leave it out, or take another algorithm."
        )
    if run.resume_from_checkpoint is not None:
        planning.refuse_change(resolved, output / folder.CONFIG, dashes)


def spelled(name: str, resolved: config.Resolved, dashes: str) -> str:
    """A setting as errors name it: with its recipe where that says it, as a flag or argument otherwise."""
    places = (name, f"{name}.name", f"{name}.sum")  # with settings, and a sum of several
    origin = next((resolved.origin[place] for place in places if place in resolved.origin), "")
    return f"{origin}: {name}" if origin.startswith("recipe ") else f"{dashes}{name}"

"""From TRL's settings to ours: the batch arithmetic per device, the folders, and all that `fates.py` calls `made`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tastemaker.algorithms import TABLE as ALGORITHMS
from tastemaker.build import Where, attribute, build
from tastemaker.compat import fates
from tastemaker.compat.configs import AlignPropConfig, DDPOConfig
from tastemaker.folder import CONFIG
from tastemaker.layers import Mark, put

Config = DDPOConfig | AlignPropConfig

# Config -> name of its algorithm
NAMES: dict[type[Config], str] = {DDPOConfig: "ddpo", AlignPropConfig: "alignprop"}
PRECISIONS = {"no": "no", "none": "no", "fp16": "fp16", "bf16": "bf16"}
PROJECT = ("project_dir", "total_limit", "logging_dir", "automatic_checkpoint_naming", "iteration")


def devices_here() -> int:
    """Processes of this run, as torchrun and `accelerate launch` count them in the environment."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def say(notices: list[str]) -> None:
    """What was accepted and changes nothing, once, by the first process."""
    if notices and int(os.environ.get("RANK", "0")) == 0:
        print("\n".join(f"tastemaker.compat: {one}" for one in notices), flush=True)


def settings(config: Config, *, devices: int | None = None) -> dict[str, Any]:
    """`train`'s keywords for a config; model, reward and prompts are not in it.

    devices: how many the config's batch sizes, which are per device, were chosen for; none is this run's processes.
    Prints what was accepted and changes nothing. Errors: ValueError naming the setting as TRL does.
    """
    return whole(config, plain(config, devices=devices))


def plain(config: Config, *, devices: int | None = None) -> dict[str, Any]:
    """The same with the algorithm's settings as a dict: what there is before the algorithm itself."""
    tree: dict[str, Any] = {"algorithm": {"per_prompt": 1}, "lr_scheduler": "constant", "lr_warmup_steps": 0}
    for name, (kind, ours, _) in fates.CONFIGS[type(config)].items():
        if kind == "same":
            put(tree, ours, getattr(config, name))
    notices = fates.notice(config)
    for path, value in _made(config, devices or devices_here(), notices):
        put(tree, path, value)
    say(notices)
    return tree


def whole(config: Config, tree: Mapping[str, Any], theirs: Mapping[str, str] | None = None) -> dict[str, Any]:
    """`plain` with the algorithm made of its settings, and every range looked at before anything is loaded.

    theirs: TRL's names, or our paths, as another program spells them, for errors.
    """
    name, run = NAMES[type(config)], {key: value for key, value in tree.items() if key != "algorithm"}
    marks = _marks(fates.CONFIGS[type(config)], theirs or {})
    algorithm = build(attribute(ALGORITHMS[name]), tree["algorithm"], Where("algorithm", name, marks))
    _check_run(run, marks)
    return {"algorithm": algorithm, **run}


def _marks(own: Mapping[str, fates.Fate], theirs: Mapping[str, str]) -> dict[str, Mark]:
    """Our settings' paths as their users spell them, for errors."""
    paths = {path: theirs.get(name, name) for name, fate in own.items() for path in fate.ours.split(", ") if path}
    return {path: Mark("compat", spelled) for path, spelled in (paths | dict(theirs)).items()}


def _check_run(tree: Mapping[str, Any], marks: Mapping[str, Mark]) -> None:
    """Ranges, before anything is loaded."""
    from tastemaker.settings import RunSettings

    known = {field.name for field in fields(RunSettings)}
    assert tree.keys() <= known, tree.keys() - known
    build(RunSettings, tree, Where(marks=marks))


def _made(config: Config, devices: int, notices: list[str]) -> Iterator[tuple[str, Any]]:
    if isinstance(config, DDPOConfig):
        yield from _ddpo(config, devices)
    else:
        yield from _alignprop(config, devices)
    yield from _negative(config, notices)
    yield from _places(config, notices)
    yield from _machine(config)


def _ddpo(config: DDPOConfig, devices: int) -> Iterator[tuple[str, Any]]:
    if config.sample_eta == 0:
        raise ValueError("sample_eta is 0: a chain without noise has no probability to learn from. Give up to 1.")
    drawn = _product(config, ("sample_batch_size", "sample_num_batches_per_epoch"), devices)
    behind = _product(config, ("train_batch_size", "train_gradient_accumulation_steps"), devices)
    if drawn % behind:
        raise ValueError(
            f"{drawn} pictures an epoch (sample_batch_size {config.sample_batch_size} x sample_num_batches_per_epoch "
            f"{config.sample_num_batches_per_epoch} x devices {devices}) do not make whole updates of {behind} "
            f"(train_batch_size {config.train_batch_size} x train_gradient_accumulation_steps "
            f"{config.train_gradient_accumulation_steps} x devices {devices}): make the first a multiple of the second."
        )
    yield "algorithm.images", drawn
    yield "algorithm.updates", drawn // behind
    yield "algorithm.sampler", {"name": "ddim", "eta": config.sample_eta}
    yield "plan.micro_batch", config.train_batch_size
    yield "plan.sampling_batch", config.sample_batch_size
    if config.sample_guidance_scale > 1:
        yield "algorithm.guidance_in_loss", config.train_cfg
    buffer, least = config.per_prompt_stat_tracking_buffer_size, config.per_prompt_stat_tracking_min_count
    remembers = config.per_prompt_stat_tracking and least <= buffer
    yield "algorithm.prompt_history", buffer if remembers else 0
    if remembers:
        yield "algorithm.prompt_minimum", max(1, least)  # its own rewards are there first, so 0 is 1


def _alignprop(config: AlignPropConfig, devices: int) -> Iterator[tuple[str, Any]]:
    yield "algorithm.images", _product(config, ("train_batch_size", "train_gradient_accumulation_steps"), devices)
    yield "algorithm.updates", 1
    yield "algorithm.loss_form", "negative"  # TRL's 10 - r but for a constant
    yield "algorithm.coefficient", 1.0
    drawn = config.truncated_rand_backprop_minmax if config.truncated_backprop_rand else None
    names = ("truncated_rand_backprop_minmax", "truncated_backprop_timestep")
    found = truncation(config.sample_num_steps, drawn, config.truncated_backprop_timestep, names=names)
    yield "algorithm.truncation", found
    yield "algorithm.sampler", {"name": "ddim", "eta": config.sample_eta}
    yield "gradient_checkpointing", True  # always on in TRL
    yield "plan.micro_batch", config.train_batch_size


def truncation(
    steps: int, drawn: tuple[int, int] | None, first: int, *, names: tuple[str, str], kind: str = "per_step"
) -> dict[str, Any]:
    """Our truncation where step i has a gradient once a number is not above it: `first`, or one drawn from `drawn`.

    names: theirs of `drawn` and `first`, for errors. kind: ours of how it is drawn.
    """
    steps = max(steps, 1)  # fewer are refused by their own name
    if drawn is None:
        if first >= steps:
            raise ValueError(
                f"{names[1]} is {first}, but the steps are 0 to {steps - 1}: none would have a gradient. Give "
                f"{steps - 1} for the last step alone."
            )
        return {"name": "fixed", "k": steps - max(first, 0)}
    low, high = drawn
    if not 0 <= low <= high <= steps or low == steps:
        raise ValueError(
            f"{names[0]} is ({low}, {high}), but the chain has {steps} steps: give (LOW, HIGH) with LOW not above "
            f"HIGH, LOW from 0 to {steps - 1} and HIGH up to {steps}."
        )
    return {"name": kind, "low": low / steps, "high": high / steps}


def _product(config: Config, names: tuple[str, ...], devices: int) -> int:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1.")
    first, second = (int(getattr(config, name)) for name in names)
    return first * second * devices


def _negative(config: Config, notices: list[str]) -> Iterator[tuple[str, Any]]:
    if config.negative_prompts and config.sample_guidance_scale > 1:
        yield "negative_prompt", config.negative_prompts
    elif config.negative_prompts:
        notices.append(f"negative_prompts has no effect at sample_guidance_scale {config.sample_guidance_scale}.")


def _machine(config: Config) -> Iterator[tuple[str, Any]]:
    names = [config.log_with] if isinstance(config.log_with, str) else config.log_with or ()
    yield "report_to", tuple(str(getattr(name, "value", name)) for name in names)  # accelerate's LoggerType, too
    if config.mixed_precision is not None:  # None is the choice of `accelerate config`
        if config.mixed_precision not in PRECISIONS:
            raise ValueError(f"mixed_precision is {config.mixed_precision!r}; it is no, fp16 or bf16.")
        yield "mixed_precision", PRECISIONS[config.mixed_precision]
    for key, value in config.accelerator_kwargs.items():
        if key != "cpu":
            raise ValueError(f"accelerator_kwargs: {key} has no counterpart here, nothing would read it: take it out.")
        if value:
            yield "device", "cpu"


# ---- folders


def _places(config: Config, notices: list[str]) -> Iterator[tuple[str, Any]]:
    project = config.project_kwargs
    for key in project:
        if key not in PROJECT:
            raise ValueError(f"project_kwargs: {key} is none of {', '.join(PROJECT)}.")
    if project.get("logging_dir"):
        notices.append("project_kwargs: logging_dir has no effect: trackers write into the run's folder.")
    kept = project.get("total_limit") or config.num_checkpoint_limit
    yield "checkpoints_total_limit", max(2, kept)  # one is whole while the next is written
    if config.resume_from:
        home, checkpoint = _resumed(Path(config.resume_from).expanduser())
        yield "output_dir", str(home)
        yield "resume_from_checkpoint", checkpoint
        return
    parent = project.get("project_dir") or (config.logdir if config.logdir != "logs" or config.run_name else None)
    if parent:
        stem = config.run_name or type(config).__name__.removesuffix("Config").lower()
        yield "output_dir", str(_next(Path(parent).expanduser(), stem))


def _next(parent: Path, stem: str) -> Path:
    """PARENT/STEM-K with the first K above all that are there: TRL's scripts name one folder for every run."""
    stem = re.sub(r"[^\w.-]+", "-", stem).strip("-")
    return parent / f"{stem}-{1 + max((number for number, _ in _runs(parent, re.escape(stem))), default=0)}"


def _runs(parent: Path, stem: str = ".+") -> list[tuple[int, Path]]:
    """Folders STEM-K, STEM a pattern, by K."""
    inside = list(parent.iterdir()) if parent.is_dir() else []
    found = [(re.fullmatch(rf"(?:{stem})-(\d+)", path.name), path) for path in inside]
    return [(int(match[1]), path) for match, path in found if match]


def _resumed(path: Path) -> tuple[Path, str]:
    """(the run's folder, `latest` or a checkpoint) of what `resume_from` names."""
    if (path / CONFIG).is_file():
        return path, "latest"
    if (path.parent / CONFIG).is_file() and path.name == "checkpoints":
        return path.parent, "latest"
    if (path.parent.parent / CONFIG).is_file() and path.is_dir():
        return path.parent.parent, str(path)
    runs = [one for _, one in _runs(path) if (one / CONFIG).is_file()]
    if runs:
        return max(runs, key=lambda one: (one / CONFIG).stat().st_mtime), "latest"
    if path.is_dir() and ("checkpoint_" in path.name or any(path.glob("**/checkpoint_*"))):
        raise ValueError(
            f"resume_from {path} holds checkpoints of accelerate, whose pickles are not read here. To start from their "
            "LoRA, give the folder with pytorch_lora_weights.safetensors as `trainer.settings['lora'] = {'file': ...}`."
        )
    raise ValueError(f"resume_from {path}: there is no run of Tastemaker (a folder with {CONFIG}).")

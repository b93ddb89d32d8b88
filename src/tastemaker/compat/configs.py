"""TRL's two configs of pictures, name by name and default by default: TRL 0.22.2; the last release with them is 0.23.1.

What a field becomes here is in `fates.py`. They are no frozen dataclasses because TRL's scripts assign to them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


def _script() -> str:
    return Path(sys.argv[0]).stem


@dataclass
class DDPOConfig:
    """The settings of `DDPOTrainer`; also a dataclass for transformers' HfArgumentParser."""

    exp_name: str = field(default_factory=_script)
    run_name: str = ""
    seed: int = 0
    log_with: str | None = field(default=None, metadata={"choices": ["wandb", "tensorboard", "trackio"]})
    tracker_kwargs: dict[str, Any] = field(default_factory=dict)
    accelerator_kwargs: dict[str, Any] = field(default_factory=dict)
    project_kwargs: dict[str, Any] = field(default_factory=dict)
    tracker_project_name: str = "trl"
    logdir: str = "logs"
    num_epochs: int = 100
    save_freq: int = 1
    num_checkpoint_limit: int = 5
    mixed_precision: str = "fp16"
    allow_tf32: bool = True
    resume_from: str = ""
    sample_num_steps: int = 50
    sample_eta: float = 1.0
    sample_guidance_scale: float = 5.0
    sample_batch_size: int = 1
    sample_num_batches_per_epoch: int = 2
    train_batch_size: int = 1
    train_use_8bit_adam: bool = False
    train_learning_rate: float = 3e-4
    train_adam_beta1: float = 0.9
    train_adam_beta2: float = 0.999
    train_adam_weight_decay: float = 1e-4
    train_adam_epsilon: float = 1e-8
    train_gradient_accumulation_steps: int = 1
    train_max_grad_norm: float = 1.0
    train_num_inner_epochs: int = 1
    train_cfg: bool = True
    train_adv_clip_max: float = 5.0
    train_clip_range: float = 1e-4
    train_timestep_fraction: float = 1.0
    per_prompt_stat_tracking: bool = False
    per_prompt_stat_tracking_buffer_size: int = 16
    per_prompt_stat_tracking_min_count: int = 16
    async_reward_computation: bool = False
    max_workers: int = 2
    negative_prompts: str = ""
    push_to_hub: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Every setting; those inside a dict as `project_kwargs/total_limit`."""
        return dict(_flat(vars(self)))

    @property
    def output_dir(self) -> str | None:
        """Where TRL's own example script saves to, though TRL's config has no such field: the project's folder."""
        return self.project_kwargs.get("project_dir")


@dataclass
class AlignPropConfig:
    """The settings of `AlignPropTrainer`; also a dataclass for transformers' HfArgumentParser."""

    exp_name: str = field(default_factory=_script)
    run_name: str = ""
    seed: int = 0
    log_with: str | None = field(default=None, metadata={"choices": ["wandb", "tensorboard", "trackio"]})
    log_image_freq: int = 1
    tracker_kwargs: dict[str, Any] = field(default_factory=dict)
    accelerator_kwargs: dict[str, Any] = field(default_factory=dict)
    project_kwargs: dict[str, Any] = field(default_factory=dict)
    tracker_project_name: str = "trl"
    logdir: str = "logs"
    num_epochs: int = 100
    save_freq: int = 1
    num_checkpoint_limit: int = 5
    mixed_precision: str = field(default="fp16", metadata={"choices": ["fp16", "bf16", "none"]})
    allow_tf32: bool = True
    resume_from: str = ""
    sample_num_steps: int = 50
    sample_eta: float = 1.0
    sample_guidance_scale: float = 5.0
    train_batch_size: int = 1
    train_use_8bit_adam: bool = False
    train_learning_rate: float = 1e-3
    train_adam_beta1: float = 0.9
    train_adam_beta2: float = 0.999
    train_adam_weight_decay: float = 1e-4
    train_adam_epsilon: float = 1e-8
    train_gradient_accumulation_steps: int = 1
    train_max_grad_norm: float = 1.0
    negative_prompts: str | None = None
    truncated_backprop_rand: bool = True
    truncated_backprop_timestep: int = 49
    truncated_rand_backprop_minmax: tuple[int, int] = (0, 50)
    push_to_hub: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Every setting; those inside a dict as `project_kwargs/total_limit`."""
        return dict(_flat(vars(self)))

    @property
    def output_dir(self) -> str | None:
        """As `DDPOConfig.output_dir`."""
        return self.project_kwargs.get("project_dir")


def defaults(config: type[DDPOConfig] | type[AlignPropConfig]) -> dict[str, Any]:
    """Every field's default, in the class's order."""
    made = config()
    return {one.name: getattr(made, one.name) for one in fields(config)}


def _flat(tree: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{at}{key}/")
        else:
            yield at + key, value

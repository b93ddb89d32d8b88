"""What becomes of every setting of TRL's configs: the table that `translation.py` works by and the guide shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from tastemaker.compat.configs import AlignPropConfig, DDPOConfig, defaults


class Fate(NamedTuple):
    """`same`: the value of our setting; `made`: ours are computed from it; `idle`: accepted, changes nothing."""

    kind: Literal["same", "made", "idle"]
    ours: str = ""  # our settings, with commas; empty where there is none
    note: str = ""  # what differs, and why


SHARED: dict[str, Fate] = {
    "exp_name": Fate("idle", "", "TRL never read it"),
    "run_name": Fate("made", "output_dir", "TRL never read it; here the run's folder begins with it"),
    "seed": Fate("same", "seed", "the noise is ours: the same seed draws other pictures than TRL"),
    "log_with": Fate("made", "report_to", "also a list of names"),
    "tracker_kwargs": Fate("idle", "", "wandb takes `WANDB_NAME`, `WANDB_ENTITY`, ... from the environment"),
    "accelerator_kwargs": Fate("made", "device", "`cpu=True` alone; other keys are refused, nothing here reads them"),
    "project_kwargs": Fate(
        "made",
        "output_dir, checkpoints_total_limit",
        "`project_dir` is the folder in which runs get folders of their own, `total_limit` the checkpoints kept; "
        "`logging_dir`, `automatic_checkpoint_naming`, `iteration` have no effect",
    ),
    "tracker_project_name": Fate("idle", "", "wandb takes `WANDB_PROJECT` from the environment"),
    "logdir": Fate("made", "output_dir", "TRL never read it; here the folder of runs where there is no `project_dir`"),
    "num_epochs": Fate("same", "algorithm.iterations", ""),
    "save_freq": Fate("same", "checkpointing_steps", "the last epoch is always saved; TRL's default crashed there"),
    "num_checkpoint_limit": Fate(
        "made",
        "checkpoints_total_limit",
        "TRL never read it; here it holds where there is no `total_limit`, at least 2",
    ),
    "mixed_precision": Fate("made", "mixed_precision", "what is trained stays fp32, without LoRA too; `none` is `no`"),
    "allow_tf32": Fate("made", "", "torch's own switch, while `train` runs; `settings` alone cannot say it"),
    "resume_from": Fate(
        "made",
        "resume_from_checkpoint, output_dir",
        "a run's folder, its `checkpoints`, one of them, or the folder of runs; goes on to the same bits, at the right "
        "epoch. TRL's own checkpoints hold pickles and are refused",
    ),
    "sample_num_steps": Fate("same", "algorithm.steps", ""),
    "sample_eta": Fate("made", "algorithm.sampler.eta", "above 0; TRL took the logarithm of 0"),
    "sample_guidance_scale": Fate("same", "algorithm.guidance", "at 1 or below it is none, in the loss too"),
    "train_use_8bit_adam": Fate("same", "use_8bit_adam", ""),
    "train_learning_rate": Fate("same", "algorithm.learning_rate", "constant, no warm-up, whatever the model suggests"),
    "train_adam_beta1": Fate("same", "adam_beta1", ""),
    "train_adam_beta2": Fate("same", "adam_beta2", ""),
    "train_adam_weight_decay": Fate("same", "algorithm.weight_decay", ""),
    "train_adam_epsilon": Fate("same", "adam_epsilon", ""),
    "train_max_grad_norm": Fate("same", "max_grad_norm", "of the gradient over all devices; TRL's were never summed"),
    "push_to_hub": Fate("idle", "", "read by TRL's example script, which then calls `trainer.push_to_hub()`"),
}

DDPO: dict[str, Fate] = {
    **SHARED,
    "sample_batch_size": Fate("made", "algorithm.images, plan.sampling_batch", "a device; a call has as many pictures"),
    "sample_num_batches_per_epoch": Fate("made", "algorithm.images", "images = both x devices"),
    "train_batch_size": Fate("made", "algorithm.updates, plan.micro_batch", "a device; need not divide the other one"),
    "train_gradient_accumulation_steps": Fate(
        "made", "algorithm.updates", "updates = images / (train_batch_size x this x devices)"
    ),
    "train_num_inner_epochs": Fate("same", "algorithm.inner_epochs", ""),
    "train_cfg": Fate(
        "made",
        "algorithm.guidance_in_loss",
        "`False`: old log-probabilities are taken without guidance too; TRL divided by those with it",
    ),
    "train_adv_clip_max": Fate("same", "algorithm.advantage_limit", ""),
    "train_clip_range": Fate("same", "algorithm.clip", "log-probabilities are means over the latent, as TRL's"),
    "train_timestep_fraction": Fate("same", "algorithm.timestep_fraction", "of the random steps of each picture"),
    "per_prompt_stat_tracking": Fate("made", "algorithm.prompt_history", "part of every checkpoint; TRL lost it"),
    "per_prompt_stat_tracking_buffer_size": Fate(
        "made", "algorithm.prompt_history", "by whole texts; TRL joined prompts that begin with the same 77 tokens"
    ),
    "per_prompt_stat_tracking_min_count": Fate(
        "made", "algorithm.prompt_minimum", "above the buffer's size no prompt ever had enough: that is no tracking"
    ),
    "async_reward_computation": Fate("idle", "", "rewards are always scored beside the sampling; TRL's crashed"),
    "max_workers": Fate("idle", "", "one thread scores, so your function need not be safe for several"),
    "negative_prompts": Fate("made", "negative_prompt", "one text, commas included; without guidance no effect"),
}

ALIGNPROP: dict[str, Fate] = {
    **SHARED,
    "sample_eta": Fate("made", "algorithm.sampler.eta", ""),
    "sample_guidance_scale": Fate("same", "algorithm.guidance", "at 1 or below it is none"),
    "log_image_freq": Fate("made", "", "every so many updates the hook is called"),
    "train_batch_size": Fate("made", "algorithm.images, plan.micro_batch", "a device"),
    "train_gradient_accumulation_steps": Fate(
        "made", "algorithm.images", "images of the one update = train_batch_size x this x devices"
    ),
    "negative_prompts": Fate("made", "negative_prompt", "one text, commas included; without guidance no effect"),
    "truncated_backprop_rand": Fate(
        "made",
        "algorithm.truncation",
        "`True` is `per_step`, a coin for every step as TRL's, but a picture's own; the last step has a gradient where "
        "no other has",
    ),
    "truncated_backprop_timestep": Fate(
        "made", "algorithm.truncation.k", "`False` above: `fixed`, so many steps at the end as are left from this one"
    ),
    "truncated_rand_backprop_minmax": Fate(
        "made",
        "algorithm.truncation.low, algorithm.truncation.high",
        "as shares of the chain, so a step beyond its end is refused",
    ),
}

CONFIGS: dict[type[DDPOConfig] | type[AlignPropConfig], dict[str, Fate]] = {
    DDPOConfig: DDPO,
    AlignPropConfig: ALIGNPROP,
}


def notice(config: DDPOConfig | AlignPropConfig) -> list[str]:
    """A line for every setting that was given another value than the default and changes nothing."""
    usual = defaults(type(config))
    idle = {name: fate for name, fate in CONFIGS[type(config)].items() if fate.kind == "idle" and name != "exp_name"}
    return [
        f"{name} has no effect: {fate.note}." for name, fate in idle.items() if getattr(config, name) != usual[name]
    ]


def table(fates: Mapping[str, Fate], usual: Mapping[str, Any]) -> str:
    """The guide's table, in the order of the defaults; `exp_name`'s default is whatever the script is called."""
    rows = ["| name | default | here | what differs |", "|---|---|---|---|"]
    for name, default in usual.items():
        kind, ours, note = fates[name]
        here = ", ".join(f"`{path}`" for path in ours.split(", ")) if ours else ""
        here = here or {"idle": "no effect", "made": "the trainer's"}[kind]
        said = "the script's name" if name == "exp_name" else f"`{default!r}`"
        rows.append(f"| `{name}` | {said} | {here} | {note} |")
    return "\n".join(rows)

"""The settings of mihirp1998/AlignProp (config/align_prop.py, branch main) as keywords of `train`.

The algorithm itself is not built yet: `plain` has what does not depend on what it will call its own settings, and
`settings` says that it is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tastemaker.compat import translation
from tastemaker.compat.configs import AlignPropConfig
from tastemaker.compat.ddpo_pytorch import flatten, named, unknown

LATER = "to come"  # it is named with the algorithm

# Its keys and defaults -> (default, TRL's name or ours, what differs). `set_config_batch` writes the two totals.
BASE: dict[str, tuple[Any, str, str]] = {
    "run_name": ("", "run_name", "there the run's name in wandb"),
    "seed": (42, "seed", "training is never seeded again; there every evaluation did, so steps drew the same noise"),
    "logdir": ("logs", "logdir", ""),
    "num_epochs": (100, "num_epochs", "an epoch is as many updates as total_batch_size goes into its samples"),
    "save_freq": (4, "save_freq", "in epochs"),
    "num_checkpoint_limit": (10, "num_checkpoint_limit", ""),
    "mixed_precision": ("fp16", "mixed_precision", ""),
    "allow_tf32": (True, "allow_tf32", ""),
    "resume_from": ("", "resume_from", ""),
    "steps": (50, "sample_num_steps", ""),
    "sd_guidance_scale": (7.5, "sample_guidance_scale", ""),
    "train.use_8bit_adam": (False, "train_use_8bit_adam", "there without effect"),
    "train.learning_rate": (3e-4, "train_learning_rate", ""),
    "train.adam_beta1": (0.9, "train_adam_beta1", ""),
    "train.adam_beta2": (0.999, "train_adam_beta2", ""),
    "train.adam_weight_decay": (1e-4, "train_adam_weight_decay", ""),
    "train.adam_epsilon": (1e-8, "train_adam_epsilon", ""),
}
OWN: dict[str, tuple[Any, str, str]] = {
    "train.total_samples_per_epoch": (256, "algorithm.iterations", "over all devices"),
    "train.total_batch_size": (128, "algorithm.images", "over all devices; one update, then new pictures"),
    "train.batch_size_per_gpu_available": (1, "plan.micro_batch", ""),
    "train.max_grad_norm": (1.0, "max_grad_norm", "divided by loss_coeff x grad_scale, which only matter beside it"),
    "train.loss_coeff": (1.0, "max_grad_norm", "the size of a loss does not matter to AdamW, but to the clipping"),
    "grad_scale": (1, "max_grad_norm", "as loss_coeff"),
    "aesthetic_target": (10, "", "no effect while scores stay below it, as they do"),
    "truncated_backprop": (False, LATER, "without it all of the chain has a gradient"),
    "truncated_backprop_rand": (False, LATER, "the first step with a gradient is drawn, there anew at every step"),
    "truncated_backprop_minmax": ((35, 45), LATER, "it is drawn between these"),
    "trunc_backprop_timestep": (100, LATER, "the first step with a gradient, where it is not drawn"),
    "grad_checkpoint": (True, "gradient_checkpointing", ""),
    "pretrained.model": ("runwayml/stable-diffusion-v1-5", "model", ""),
    "pretrained.revision": ("main", "revision", ""),
    "prompt_fn": ("simple_animals", "prompts", ""),
    "eval_prompt_fn": ("", "evaluation.prompts", ""),
    "reward_fn": ("aesthetic", "reward", ""),
}
# Accepted without effect: what `set_config_batch` derives, and pictures, which every run here keeps anyway.
IDLE = {
    *("train.num_gpus", "train.samples_per_epoch_per_gpu", "train.batch_size_per_gpu", "train.data_loader_iterations"),
    *("train.gradient_accumulation_steps", "debug", "visualize_train", "visualize_eval", "vis_freq", "max_vis_images"),
    *("same_evaluation", "per_prompt_stat_tracking"),
}
# Its evaluation and its mixing of LoRA files are other commands here.
ELSEWHERE = {
    "only_eval": "it is a config for judging a model: `tastemaker evaluate` does that",
    "soup_inference": "mixing LoRA files is not built yet",
    "resume_from_2": "mixing LoRA files is not built yet",
    "mixing_coef_1": "mixing LoRA files is not built yet",
}
PARTS = {"train", "pretrained"}
REWARDS = {"aesthetic": "aesthetic", "hps": "hpsv2"}
PROMPTS = {"simple_animals": "animals", "eval_simple_animals": "animals_heldout"}


def settings(config: Mapping[str, Any], *, reward: Any = None, prompts: Any = None) -> dict[str, Any]:
    """`train`'s keywords for a config, a dict or an ml_collections ConfigDict; what it leaves out is as in `general()`.

    reward, prompts: in the place of `reward_fn` and `prompt_fn`. Errors: ValueError naming the key; and, until it is
    built, that the algorithm is missing.
    """
    return translation.whole(AlignPropConfig(), plain(config, reward=reward, prompts=prompts))


def plain(config: Mapping[str, Any], *, reward: Any = None, prompts: Any = None) -> dict[str, Any]:
    """The same with the algorithm's settings as a dict, without those whose names are to come."""
    flat = _known(config)
    trl = {name: flat.get(key, default) for key, (default, name, _) in BASE.items()}
    own = {key: flat.get(key, default) for key, (default, _, _) in OWN.items()}
    drawn, behind = own["train.total_samples_per_epoch"], own["train.total_batch_size"]
    if drawn % behind:
        raise ValueError(f"train.total_samples_per_epoch {drawn} does not make whole train.total_batch_size {behind}.")
    tree = translation.plain(AlignPropConfig(**trl, sample_eta=0.0), devices=1)
    tree["algorithm"] |= {
        "images": behind,
        "iterations": trl["num_epochs"] * (drawn // behind),
    }
    return tree | {
        "checkpointing_steps": trl["save_freq"] * (drawn // behind),
        "gradient_checkpointing": own["grad_checkpoint"],
        # AdamW gives the same step for any multiple of a loss, but a shorter gradient is clipped later.
        "max_grad_norm": own["train.max_grad_norm"] / (own["train.loss_coeff"] * own["grad_scale"]),
        "plan": {"micro_batch": own["train.batch_size_per_gpu_available"]},
        **named(own | {"use_lora": True}, reward, prompts, REWARDS, PROMPTS),
        **_evaluation(own["eval_prompt_fn"]),
    }


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    flat = dict(flatten(config, PARTS))
    for key, value in flat.items():
        if key in ELSEWHERE and value:
            raise ValueError(f"{key} is {value!r}: {ELSEWHERE[key]}.")
        if key not in {*BASE, *OWN, *IDLE, *ELSEWHERE}:
            raise unknown(key, "AlignProp", [*BASE, *OWN])
    return flat


def _evaluation(prompts: str) -> dict[str, Any]:
    if prompts and prompts not in PROMPTS:
        translation.say([f"eval_prompt_fn {prompts!r} has no counterpart here: judged by the training prompts."])
    return {"evaluation": {"prompts": PROMPTS[prompts]}} if prompts in PROMPTS else {}

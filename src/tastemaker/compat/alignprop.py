"""The settings of mihirp1998/AlignProp (config/align_prop.py, branch main) as keywords of `train`.

    import tastemaker as tm
    from tastemaker.compat import alignprop

    tm.train(**alignprop.settings(config))

What its loop shares with TRL's is first called as TRL calls it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from tastemaker.compat import translation
from tastemaker.compat.configs import AlignPropConfig
from tastemaker.compat.ddpo_pytorch import flatten, named, unknown

# Its keys and defaults -> (default, TRL's name or ours, what differs). `set_config_batch` writes the two totals.
BASE: dict[str, tuple[Any, str, str]] = {
    "run_name": ("", "run_name", "there the run's name in wandb"),
    "seed": (42, "seed", "training is never seeded again; there every evaluation did, so steps drew the same noise"),
    "logdir": ("logs", "logdir", ""),
    "num_epochs": (100, "num_epochs", ""),
    "save_freq": (4, "save_freq", ""),
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
    "train.max_grad_norm": (1.0, "train_max_grad_norm", ""),
}
OWN: dict[str, tuple[Any, str, str]] = {
    "train.total_samples_per_epoch": (256, "algorithm.images", "over all devices"),
    "train.total_batch_size": (128, "algorithm.updates", "over all devices; updates = samples / this"),
    "train.batch_size_per_gpu_available": (1, "plan.micro_batch", ""),
    "train.loss_coeff": (1.0, "algorithm.coefficient", ""),
    "grad_scale": (1, "algorithm.scale", "of the aesthetic loss alone"),
    "aesthetic_target": (10, "algorithm.target", "the loss is the distance to it; `None`: minus the reward"),
    "truncated_backprop": (False, "algorithm.truncation", "`False`: all of the chain has a gradient"),
    "truncated_backprop_rand": (
        False,
        "algorithm.truncation",
        "`True`: `per_step`, a coin for every step, as there; `settings(config, truncation='uniform')` is the paper's",
    ),
    "truncated_backprop_minmax": ((35, 45), "algorithm.truncation.low", "and `.high`, as shares of the chain"),
    "trunc_backprop_timestep": (100, "algorithm.truncation.k", "`fixed`: so many steps as are left from this one"),
    "grad_checkpoint": (True, "gradient_checkpointing", ""),
    "pretrained.model": ("runwayml/stable-diffusion-v1-5", "model", ""),
    "pretrained.revision": ("main", "revision", ""),
    "prompt_fn": ("simple_animals", "prompts", ""),
    "eval_prompt_fn": ("", "evaluation.prompts", ""),
    "reward_fn": ("aesthetic", "reward", "and the loss: that of `hps` is 1 - reward"),
}
# Accepted without effect: what `set_config_batch` derives, and pictures, which every run here keeps anyway.
IDLE = {
    *("train.num_gpus", "train.samples_per_epoch_per_gpu", "train.batch_size_per_gpu", "train.data_loader_iterations"),
    *("train.gradient_accumulation_steps", "debug", "visualize_train", "visualize_eval", "vis_freq", "max_vis_images"),
    *("same_evaluation", "per_prompt_stat_tracking"),
}
# Its evaluation and its mixing of LoRA files are other commands here.
ELSEWHERE = ("only_eval", "soup_inference", "resume_from_2", "mixing_coef_1")
BASES = ("same", "stablediffusion")  # what stands for the base model in the place of a second file
PARTS = {"train", "pretrained"}
REWARDS = {"aesthetic": "aesthetic", "hps": "hpsv2"}
PROMPTS = {"simple_animals": "animals", "eval_simple_animals": "animals_heldout"}


def settings(
    config: Mapping[str, Any],
    *,
    reward: Any = None,
    prompts: Any = None,
    truncation: Literal["per_step", "uniform"] = "per_step",
) -> dict[str, Any]:
    """`train`'s keywords for a config, a dict or an ml_collections ConfigDict; what it leaves out is as in `general()`.

    reward, prompts: in the place of `reward_fn` and `prompt_fn`; the loss is still that of `reward_fn`.
    truncation: how `truncated_backprop_rand` draws, as the code or as the paper. Errors: ValueError naming the key.
    """
    flat = _known(config)
    trl = {name: flat.get(key, default) for key, (default, name, _) in BASE.items()}
    own = {key: flat.get(key, default) for key, (default, _, _) in OWN.items()}
    drawn, behind = own["train.total_samples_per_epoch"], own["train.total_batch_size"]
    if behind < 1 or drawn % behind:
        raise ValueError(f"train.total_samples_per_epoch {drawn} does not make whole train.total_batch_size {behind}.")
    whole = AlignPropConfig(**trl, sample_eta=0.0, truncated_backprop_rand=False, truncated_backprop_timestep=0)
    tree = translation.plain(whole, devices=1)
    tree["algorithm"] |= {
        "images": drawn,
        "updates": drawn // behind,
        "truncation": _truncation(trl["sample_num_steps"], own, truncation),
        **_loss(own),
    }
    tree |= {
        "gradient_checkpointing": own["grad_checkpoint"],
        "plan": {"micro_batch": own["train.batch_size_per_gpu_available"]},
        **named(own | {"use_lora": True}, reward, prompts, REWARDS, PROMPTS),
        **_evaluation(own["eval_prompt_fn"]),
    }
    return translation.whole(whole, tree, {name: key for key, (_, name, _) in (BASE | OWN).items()})


def _truncation(steps: int, own: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A coin for every step, one draw a picture, a fixed step; without `truncated_backprop` nothing is cut off."""
    cut = own["truncated_backprop"]
    drawn = own["truncated_backprop_minmax"] if cut and own["truncated_backprop_rand"] else None
    names = ("truncated_backprop_minmax", "trunc_backprop_timestep")
    return translation.truncation(steps, drawn, own["trunc_backprop_timestep"] if cut else 0, names=names, kind=kind)


def _loss(own: Mapping[str, Any]) -> dict[str, Any]:
    """|r - target| scale of `aesthetic`, 1 - r of `hps`, -r scale of others or without a target; all times a number."""
    size, scale, target = own["train.loss_coeff"], own["grad_scale"], own["aesthetic_target"]
    if own["reward_fn"] == "hps":
        return {"loss_form": "one_minus", "coefficient": size}
    if own["reward_fn"] == "aesthetic" and target is not None:
        return {"loss_form": "target", "target": target, "scale": scale, "coefficient": size}
    return {"loss_form": "negative", "coefficient": size * scale}


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    flat = dict(flatten(config, PARTS))
    for key in flat:
        if key not in {*BASE, *OWN, *IDLE, *ELSEWHERE}:
            raise unknown(key, "AlignProp", [*BASE, *OWN])
    mixes = [key for key in ELSEWHERE[1:] if flat.get(key)]
    if mixes:
        raise ValueError(f"{mixes[0]} is {flat[mixes[0]]!r}: mixing is a command here: {_mix(flat)}")
    if flat.get("only_eval"):
        raise ValueError("only_eval is True: it is a config for judging a model: `tastemaker evaluate` does that.")
    return flat


def _mix(flat: Mapping[str, Any]) -> str:
    """Their soup as our command; `same` in the place of the second file is the base model."""
    first, second = flat.get("resume_from") or "FIRST", flat.get("resume_from_2") or "SECOND"
    share = flat.get("mixing_coef_1", 0.0)
    files = f"{first} {'base' if second in BASES else second}"
    return f"`tastemaker mix {files} --weights {share:g} {1 - share:g} --output mixed`, then `tastemaker evaluate`."


def _evaluation(prompts: str) -> dict[str, Any]:
    if prompts and prompts not in PROMPTS:
        translation.say([f"eval_prompt_fn {prompts!r} has no counterpart here: judged by the training prompts."])
    return {"evaluation": {"prompts": PROMPTS[prompts]}} if prompts in PROMPTS else {}

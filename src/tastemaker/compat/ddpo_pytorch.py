"""The settings of kvablack/ddpo-pytorch (config/base.py, config/dgx.py at 1958463) as keywords of `train`.

    import tastemaker as tm
    from tastemaker.compat import ddpo_pytorch

    tm.train(**ddpo_pytorch.settings({"sample": {"batch_size": 8, ...}, "reward_fn": "jpeg_compressibility", ...}))

Its loop is the one that TRL took over, so all that stands in a config is first called as TRL calls it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tastemaker.build import suggest
from tastemaker.compat import translation
from tastemaker.compat.configs import DDPOConfig

# Its keys and defaults, those of nested dicts with a dot -> (default, TRL's name).
BASE: dict[str, tuple[Any, str]] = {
    "run_name": ("", "run_name"),
    "seed": (42, "seed"),
    "logdir": ("logs", "logdir"),
    "num_epochs": (100, "num_epochs"),
    "save_freq": (20, "save_freq"),
    "num_checkpoint_limit": (5, "num_checkpoint_limit"),
    "mixed_precision": ("fp16", "mixed_precision"),
    "allow_tf32": (True, "allow_tf32"),
    "resume_from": ("", "resume_from"),
    "sample.num_steps": (50, "sample_num_steps"),
    "sample.eta": (1.0, "sample_eta"),
    "sample.guidance_scale": (5.0, "sample_guidance_scale"),
    "sample.batch_size": (1, "sample_batch_size"),
    "sample.num_batches_per_epoch": (2, "sample_num_batches_per_epoch"),
    "train.batch_size": (1, "train_batch_size"),
    "train.use_8bit_adam": (False, "train_use_8bit_adam"),
    "train.learning_rate": (3e-4, "train_learning_rate"),
    "train.adam_beta1": (0.9, "train_adam_beta1"),
    "train.adam_beta2": (0.999, "train_adam_beta2"),
    "train.adam_weight_decay": (1e-4, "train_adam_weight_decay"),
    "train.adam_epsilon": (1e-8, "train_adam_epsilon"),
    "train.gradient_accumulation_steps": (1, "train_gradient_accumulation_steps"),
    "train.max_grad_norm": (1.0, "train_max_grad_norm"),
    "train.num_inner_epochs": (1, "train_num_inner_epochs"),
    "train.cfg": (True, "train_cfg"),
    "train.adv_clip_max": (5, "train_adv_clip_max"),
    "train.clip_range": (1e-4, "train_clip_range"),
    "train.timestep_fraction": (1.0, "train_timestep_fraction"),
    "per_prompt_stat_tracking.buffer_size": (16, "per_prompt_stat_tracking_buffer_size"),
    "per_prompt_stat_tracking.min_count": (16, "per_prompt_stat_tracking_min_count"),
}
# What TRL has no name for -> (default, ours, what differs).
OWN: dict[str, tuple[Any, str, str]] = {
    "use_lora": (True, "lora", "without LoRA the network is trained in fp32, as theirs"),
    "pretrained.model": ("runwayml/stable-diffusion-v1-5", "model", "the copy that is on the hub today is found"),
    "pretrained.revision": ("main", "revision", ""),
    "prompt_fn": ("imagenet_animals", "prompts", "sets go through all their prompts before one comes again"),
    "prompt_fn_kwargs": ({}, "prompts", "`nouns_file`, `activities_file`, `low`, `high`, `path`"),
    "reward_fn": ("jpeg_compressibility", "reward", ""),
}
PARTS = {key.partition(".")[0] for key in (*BASE, *OWN) if "." in key}
REWARDS: dict[str, Any] = {  # its factories -> ours
    "jpeg_compressibility": "jpeg_compressibility",
    "jpeg_incompressibility": "jpeg_incompressibility",
    "aesthetic_score": "aesthetic",
    "llava_bertscore": "vlm",
    "llava_strict_satisfaction": {"name": "vlm", "mode": "questions"},
}
PROMPTS = {  # its functions -> our sets
    "simple_animals": "animals",
    "imagenet_all": "imagenet",
    "imagenet_animals": "imagenet_animals",
    "imagenet_dogs": "imagenet_dogs",
    "nouns_activities": "nouns_activities",
    "counting": "counting",
}
FILES = {  # word lists in its package -> ours; another name is a path
    "simple_animals.txt": "animals",
    "activities.txt": "activities",
    "everyday_objects.txt": "objects",
    "uncommon_animals.txt": "uncommon_animals",
}
ARGUMENTS = {"nouns_file": "nouns", "activities_file": "activities", "low": "low", "high": "high"}


def settings(
    config: Mapping[str, Any], *, devices: int | None = None, reward: Any = None, prompts: Any = None
) -> dict[str, Any]:
    """`train`'s keywords for a config, a dict or an ml_collections ConfigDict; what it leaves out is as in base.py.

    devices: how many the config was written for, because its batch sizes are per device (8 for those of dgx.py); the
    pictures, updates and batches of an epoch are theirs together, on however many this run has. None is this run's.
    reward, prompts: in the place of `reward_fn` and `prompt_fn`. Errors: ValueError naming the key.
    """
    flat = dict(flatten(config, PARTS))
    for key in flat:
        if key not in BASE and key not in OWN and key != "per_prompt_stat_tracking":
            raise unknown(key, "ddpo-pytorch", [*BASE, *OWN])
    tracked = flat.pop("per_prompt_stat_tracking", True) is not None
    values = {trl: flat.get(key, default) for key, (default, trl) in BASE.items()}
    made = translation.settings(DDPOConfig(**values, per_prompt_stat_tracking=tracked), devices=devices)
    own = {key: flat.get(key, default) for key, (default, _, _) in OWN.items()}
    return made | named(own, reward, prompts, REWARDS, PROMPTS)


def flatten(config: Mapping[str, Any], parts: set[str]) -> Iterator[tuple[str, Any]]:
    """(key, value) of a config; keys of its `parts`, which are dicts again, with a dot. A part of None stays so."""
    for key, value in config.items():
        if key in parts and value is not None:
            if not hasattr(value, "items"):
                raise ValueError(f"{key} is {value!r}; it is a dict of settings.")
            yield from ((f"{key}.{inner}", found) for inner, found in value.items())
        else:
            yield key, value


def unknown(key: str, whose: str, names: Iterable[str]) -> ValueError:
    """The error for a key that is none of theirs."""
    near = suggest(key, names)
    return ValueError(f"{key} is not a setting of {whose}.{f'  Did you mean `{near}`?' if near else ''}")


def named(
    own: Mapping[str, Any], reward: Any, prompts: Any, rewards: Mapping[str, Any], sets: Mapping[str, str]
) -> dict[str, Any]:
    """Model, LoRA, reward and prompts by the tables of names; what was given in their place stays."""
    revision = own["pretrained.revision"]
    if reward is None:
        reward = _looked_up("reward_fn", own["reward_fn"], rewards, "reward")
    if prompts is None:
        prompts = _prompts(own["prompt_fn"], own.get("prompt_fn_kwargs", {}), sets)
    return {
        "model": own["pretrained.model"],
        **({} if revision in ("main", None) else {"revision": revision}),
        **({} if own["use_lora"] else {"lora": None}),
        "reward": reward,
        "prompts": prompts,
    }


def _looked_up(key: str, name: str, table: Mapping[str, Any], argument: str) -> Any:
    if name not in table:
        raise ValueError(f"{key} {name!r} has no counterpart here ({', '.join(table)} have): give `{argument}=` yours.")
    return table[name]


def _prompts(name: str, arguments: Mapping[str, Any], sets: Mapping[str, str]) -> Any:
    """The set, with its settings where they are not those that it has anyway."""
    if name == "from_file" and set(arguments) == {"path"}:
        return str(arguments["path"])
    ours = _looked_up("prompt_fn", name, sets, "prompts")
    found: dict[str, Any] = {}
    for key, value in arguments.items():
        if key not in ARGUMENTS:
            raise ValueError(f"prompt_fn_kwargs: {key} is none of {', '.join(ARGUMENTS)}: give `prompts=` yours.")
        found[ARGUMENTS[key]] = FILES.get(Path(value).name, value) if key.endswith("_file") else value
    usual = {"nouns": "animals", "activities": "activities"}
    found = {key: value for key, value in found.items() if usual.get(key) != value}
    return {"name": ours, **found} if found else ours

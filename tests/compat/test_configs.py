"""TRL's names, types and defaults, one to one."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

import pytest
from transformers import HfArgumentParser

import tastemaker.compat
from tastemaker.compat.configs import AlignPropConfig, DDPOConfig, defaults

# What TRL 0.22.2 has, in its order; `exp_name` is what the script is called.
BOTH: dict[str, tuple[Any, Any]] = {
    "exp_name": (str, None),
    "run_name": (str, ""),
    "seed": (int, 0),
    "log_with": (str | None, None),
    "tracker_kwargs": (dict, {}),
    "accelerator_kwargs": (dict, {}),
    "project_kwargs": (dict, {}),
    "tracker_project_name": (str, "trl"),
    "logdir": (str, "logs"),
    "num_epochs": (int, 100),
    "save_freq": (int, 1),
    "num_checkpoint_limit": (int, 5),
    "mixed_precision": (str, "fp16"),
    "allow_tf32": (bool, True),
    "resume_from": (str, ""),
    "sample_num_steps": (int, 50),
    "sample_eta": (float, 1.0),
    "sample_guidance_scale": (float, 5.0),
    "train_batch_size": (int, 1),
    "train_use_8bit_adam": (bool, False),
    "train_learning_rate": (float, 3e-4),
    "train_adam_beta1": (float, 0.9),
    "train_adam_beta2": (float, 0.999),
    "train_adam_weight_decay": (float, 1e-4),
    "train_adam_epsilon": (float, 1e-8),
    "train_gradient_accumulation_steps": (int, 1),
    "train_max_grad_norm": (float, 1.0),
    "negative_prompts": (str, ""),
    "push_to_hub": (bool, False),
}
DDPO = BOTH | {
    "sample_batch_size": (int, 1),
    "sample_num_batches_per_epoch": (int, 2),
    "train_num_inner_epochs": (int, 1),
    "train_cfg": (bool, True),
    "train_adv_clip_max": (float, 5.0),
    "train_clip_range": (float, 1e-4),
    "train_timestep_fraction": (float, 1.0),
    "per_prompt_stat_tracking": (bool, False),
    "per_prompt_stat_tracking_buffer_size": (int, 16),
    "per_prompt_stat_tracking_min_count": (int, 16),
    "async_reward_computation": (bool, False),
    "max_workers": (int, 2),
}
ALIGNPROP = BOTH | {
    "log_image_freq": (int, 1),
    "train_learning_rate": (float, 1e-3),
    "negative_prompts": (str | None, None),
    "truncated_backprop_rand": (bool, True),
    "truncated_backprop_timestep": (int, 49),
    "truncated_rand_backprop_minmax": (tuple[int, int], (0, 50)),
}


@pytest.mark.parametrize(("config", "theirs"), [(DDPOConfig, DDPO), (AlignPropConfig, ALIGNPROP)])
def test_names_types_and_defaults_are_trls(config: Any, theirs: dict[str, tuple[Any, Any]]) -> None:
    hints = get_type_hints(config)
    plain = {name: dict if hint == dict[str, Any] else hint for name, hint in hints.items()}
    assert {name: (plain[name], value) for name, value in defaults(config).items() if name != "exp_name"} == {
        name: found for name, found in theirs.items() if name != "exp_name"
    }
    assert {field.name for field in fields(config)} == set(theirs) and hints["exp_name"] is str


def test_the_script_names_the_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["some/where/my_ddpo.py"])
    assert DDPOConfig().exp_name == AlignPropConfig().exp_name == "my_ddpo"


def test_a_script_reads_its_command_line_into_it() -> None:
    """As TRL's example: HfArgumentParser of transformers."""
    words = "--num_epochs 200 --train_gradient_accumulation_steps 1 --sample_batch_size 6 --train_batch_size 3"
    words += " --per_prompt_stat_tracking True --train_learning_rate 1e-5 --mixed_precision no --log_with tensorboard"
    (config,) = HfArgumentParser(DDPOConfig).parse_args_into_dataclasses(words.split())
    assert (config.num_epochs, config.train_batch_size, config.train_learning_rate) == (200, 3, 1e-5)
    assert config.per_prompt_stat_tracking is True and config.train_cfg is True and config.project_kwargs == {}
    (other,) = HfArgumentParser(AlignPropConfig).parse_args_into_dataclasses(["--mixed_precision", "none"])
    assert other.mixed_precision == "none" and other.truncated_rand_backprop_minmax == (0, 50)


def test_it_is_shown_flat_and_says_where_to_save() -> None:
    config = DDPOConfig(project_kwargs={"project_dir": "save", "total_limit": 5}, seed=3)
    flat = config.to_dict()
    assert flat["project_kwargs/total_limit"] == 5 and flat["seed"] == 3 and "tracker_kwargs" not in flat
    assert config.output_dir == "save" and DDPOConfig().output_dir is None


@pytest.mark.parametrize("name", tastemaker.compat.__all__)
def test_a_public_name_resolves(name: str) -> None:
    assert getattr(tastemaker.compat, name) is not None and name in dir(tastemaker.compat)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'PPOTrainer'"):
        _ = tastemaker.compat.PPOTrainer

"""AlignProp's configs, up to the algorithm that is still missing."""

from __future__ import annotations

from typing import Any

import pytest

from tastemaker.compat.alignprop import plain, settings

TOTALS = {"total_samples_per_epoch": 256, "total_batch_size": 128, "batch_size_per_gpu_available": 4}
DERIVED = {"num_gpus": 4, "samples_per_epoch_per_gpu": 64, "batch_size_per_gpu": 32, "data_loader_iterations": 16}
AESTHETIC: dict[str, Any] = {
    "num_epochs": 7,
    "save_freq": 1,
    "num_checkpoint_limit": 14,
    "max_vis_images": 4,
    "prompt_fn": "simple_animals",
    "eval_prompt_fn": "eval_simple_animals",
    "reward_fn": "aesthetic",
    "truncated_backprop": True,
    "truncated_backprop_rand": True,
    "truncated_backprop_minmax": (0, 50),
    "trunc_backprop_timestep": 40,
    "train": {
        "max_grad_norm": 5.0,
        "loss_coeff": 0.01,
        "learning_rate": 1e-3,
        "adam_weight_decay": 0.1,
        "gradient_accumulation_steps": 8,
        **TOTALS,
        **DERIVED,
    },
}


def test_the_published_config_has_the_published_numbers() -> None:
    made = plain(AESTHETIC)
    algorithm = made.pop("algorithm")
    assert algorithm == {
        "images": 128,
        "per_prompt": 1,
        "updates": 1,
        "iterations": 14,  # two updates an epoch
        "steps": 50,
        "guidance": 7.5,
        "sampler": {"name": "ddim", "eta": 0.0},
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
    }
    assert (made["model"], made["reward"], made["prompts"]) == (
        "runwayml/stable-diffusion-v1-5",
        "aesthetic",
        "animals",
    )
    assert made["evaluation"] == {"prompts": "animals_heldout"} and made["gradient_checkpointing"] is True
    assert made["max_grad_norm"] == pytest.approx(5.0 / 0.01) and made["plan"] == {"micro_batch": 4}
    assert (made["checkpointing_steps"], made["checkpoints_total_limit"], made["seed"]) == (2, 14, 42)


def test_where_the_gradient_begins_is_for_the_algorithm_to_name() -> None:
    fixed = AESTHETIC | {"truncated_backprop_rand": False, "trunc_backprop_timestep": 49}
    assert plain(fixed) == plain(AESTHETIC)


def test_until_the_algorithm_is_built_it_says_so() -> None:
    with pytest.raises(ValueError, match="waits for the algorithm `alignprop`, which is not built yet"):
        settings(AESTHETIC)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"only_eval": True}, "only_eval is True: it is a config for judging a model"),
        ({"soup_inference": True}, "soup_inference is True: mixing LoRA files is not built yet"),
        ({"stepz": 3}, "stepz is not a setting of AlignProp.  Did you mean `steps`?"),
        ({"prompt_fn": "hps_v2_all"}, "prompt_fn 'hps_v2_all' has no counterpart here"),
        ({"train": {"total_samples_per_epoch": 100}}, "train.total_samples_per_epoch 100 does not make whole"),
    ],
)
def test_what_has_no_counterpart_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        plain(values)
    assert str(caught.value).startswith(said)


def test_prompts_to_judge_by_that_are_not_here_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    made = plain({"prompt_fn": "hps_v2_all", "eval_prompt_fn": "eval_hps_v2_all"}, prompts="hps_v2_all.txt")
    assert made["prompts"] == "hps_v2_all.txt" and "evaluation" not in made
    assert "judged by the training prompts" in capsys.readouterr().out

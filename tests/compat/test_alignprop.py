"""AlignProp's published configs, as dicts, have the published arithmetic and are our recipes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tastemaker import config
from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.build import plain
from tastemaker.compat.alignprop import settings
from tastemaker.process.samplers import DDIM
from tastemaker.process.truncation import Fixed, PerStep, Uniform

TOTALS = {"total_samples_per_epoch": 256, "total_batch_size": 128, "batch_size_per_gpu_available": 4}
DERIVED = {"num_gpus": 4, "samples_per_epoch_per_gpu": 64, "batch_size_per_gpu": 32, "data_loader_iterations": 16}
BOTH: dict[str, Any] = {
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
AESTHETIC: dict[str, Any] = BOTH | {
    "num_epochs": 7,
    "save_freq": 1,
    "num_checkpoint_limit": 14,
    "max_vis_images": 4,
    "prompt_fn": "simple_animals",
    "eval_prompt_fn": "eval_simple_animals",
    "reward_fn": "aesthetic",
}
HPS: dict[str, Any] = BOTH | {
    "num_epochs": 200,
    "prompt_fn": "hps_v2_all",
    "eval_prompt_fn": "eval_hps_v2_all",
    "reward_fn": "hps",
    "per_prompt_stat_tracking": {"buffer_size": 32, "min_count": 16},
}
K1 = {"truncated_backprop_rand": False, "trunc_backprop_timestep": 49}
PUBLISHED: dict[str, dict[str, Any]] = {
    "alignprop_aesthetic": AESTHETIC,
    "alignprop_aesthetic_k1": AESTHETIC | K1,
    "alignprop_hps": HPS,
    "alignprop_hps_k1": HPS | K1,
}
FILE = "hps_v2_all.txt"


def of(values: dict[str, Any], **more: Any) -> AlignProp:
    made = settings(values, **more)["algorithm"]
    assert isinstance(made, AlignProp)
    return made


def test_the_published_config_has_the_published_numbers() -> None:
    made = settings(AESTHETIC)
    assert made.pop("algorithm") == AlignProp(
        images=256,
        updates=2,  # of 128
        iterations=7,
        steps=50,
        guidance=7.5,
        sampler=DDIM(eta=0.0),
        learning_rate=1e-3,
        weight_decay=0.1,
        truncation=PerStep(0.0, 1.0),
        loss_form="target",
        target=10.0,
        coefficient=0.01,
    )
    assert (made["model"], made["reward"], made["prompts"]) == (
        "runwayml/stable-diffusion-v1-5",
        "aesthetic",
        "animals",
    )
    assert made["evaluation"] == {"prompts": "animals_heldout"} and made["gradient_checkpointing"] is True
    assert (made["max_grad_norm"], made["plan"], made["mixed_precision"]) == (5.0, {"micro_batch": 4}, "fp16")
    assert (made["checkpointing_steps"], made["checkpoints_total_limit"], made["seed"]) == (1, 14, 42)


@pytest.mark.parametrize("name", PUBLISHED)
def test_our_recipe_of_a_published_config_is_the_same_algorithm(name: str) -> None:
    """With the paper's draw of K, which the recipes have; of the run what the config speaks of."""
    made = settings(PUBLISHED[name], prompts=FILE if "hps" in name else None, truncation="uniform")
    ours = config.resolve(name, {}, {})
    assert ours.algorithm == made["algorithm"]
    assert (ours.run.mixed_precision, ours.run.max_grad_norm) == (made["mixed_precision"], made["max_grad_norm"])
    assert (ours.run.reward, ours.run.prompts) == (made["reward"], made["prompts"])
    assert ours.run.checkpointing_steps == made["checkpointing_steps"]
    assert ours.run.lora is not None and ours.run.lora.rank == 4 and "lora" not in made


# ---- the loss


def their_loss(r: torch.Tensor, values: dict[str, Any]) -> torch.Tensor:
    """[B], written out from what their code computes of rewards [B]."""
    if values.get("reward_fn", "aesthetic") == "hps":
        return (1 - r) * values["train"]["loss_coeff"]
    target = values.get("aesthetic_target", 10)
    found = -r if target is None else (r - target).abs()
    return found * values.get("grad_scale", 1) * values["train"]["loss_coeff"]


@pytest.mark.parametrize(
    "values",
    [
        {"train": {"loss_coeff": 0.01}},
        {"train": {"loss_coeff": 0.5}, "aesthetic_target": 6, "grad_scale": 3},
        {"train": {"loss_coeff": 0.5}, "aesthetic_target": None, "grad_scale": 3},
        {"train": {"loss_coeff": 0.25}, "reward_fn": "hps", "grad_scale": 3},
    ],
)
def test_the_loss_is_theirs(values: dict[str, Any]) -> None:
    r = torch.linspace(4, 12, 9, dtype=torch.float64)
    torch.testing.assert_close(of(values).of(r), their_loss(r, values), rtol=0, atol=1e-12)


# ---- where the gradient begins


@pytest.mark.parametrize(
    ("values", "more", "wanted"),
    [
        ({}, {}, Fixed(50)),  # their default: nothing is cut off
        ({"truncated_backprop_rand": True}, {}, Fixed(50)),  # without truncated_backprop it means nothing
        (BOTH, {}, PerStep(0.0, 1.0)),
        (BOTH, {"truncation": "uniform"}, Uniform(0.0, 1.0)),
        (BOTH | {"truncated_backprop_minmax": (35, 45)}, {}, PerStep(0.7, 0.9)),
        (BOTH | K1, {}, Fixed(1)),
        (BOTH | K1, {"truncation": "uniform"}, Fixed(1)),
        (BOTH | {"truncated_backprop_rand": False}, {}, Fixed(10)),
    ],
)
def test_their_truncation(values: dict[str, Any], more: dict[str, Any], wanted: Any) -> None:
    assert of(values, **more).truncation == wanted


@pytest.mark.parametrize("steps", [3, 20, 47, 50])
def test_steps_survive_becoming_shares(steps: int) -> None:
    """A range in steps is a range of shares here; both ends come back as the steps they were."""
    for low in range(steps):
        minmax = {"truncated_backprop_minmax": (low, steps - 1), "steps": steps}
        drawn = of(BOTH | minmax | {"truncated_backprop_rand": True}).truncation
        assert isinstance(drawn, PerStep)
        assert (round(drawn.low * steps), round(drawn.high * steps)) == (low, steps - 1)


# ---- what is refused, and told of


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"only_eval": True}, "only_eval is True: it is a config for judging a model"),
        (
            {
                "only_eval": True,
                "soup_inference": True,
                "resume_from": "a",
                "resume_from_2": "b",
                "mixing_coef_1": 0.25,
            },
            "soup_inference is True: mixing is a command here: `tastemaker mix a b --weights 0.25 0.75 --output mixed`",
        ),
        (
            {"resume_from_2": "same", "mixing_coef_1": 0.5},
            "resume_from_2 is 'same': mixing is a command here: `tastemaker mix FIRST base --weights 0.5 0.5",
        ),
        ({"stepz": 3}, "stepz is not a setting of AlignProp.  Did you mean `steps`?"),
        ({"prompt_fn": "hps_v2_all"}, "prompt_fn 'hps_v2_all' has no counterpart here"),
        ({"reward_fn": "mine"}, "reward_fn 'mine' has no counterpart here"),
        ({"train": {"total_samples_per_epoch": 100}}, "train.total_samples_per_epoch 100 does not make whole"),
        ({"train": {"total_batch_size": 0}}, "train.total_samples_per_epoch 256 does not make whole"),
        ({"train": {"learning_rate": -1}}, "train.learning_rate is -1.0; it must be positive."),
        ({"train": {"loss_coeff": 0}}, "train.loss_coeff is 0.0; it must be positive."),
        ({"train": {"max_grad_norm": 0}}, "train.max_grad_norm is 0.0; it is positive, or none."),
        ({"grad_scale": -1}, "grad_scale is -1.0; it must be positive."),
        ({"steps": 0}, "steps is 0; it must be at least 1."),
        (
            {"truncated_backprop": True},  # their own default
            "trunc_backprop_timestep is 100, but the steps are 0 to 49: none would have a gradient.",
        ),
        (BOTH | {"steps": 20}, "truncated_backprop_minmax is (0, 50), but the chain has 20 steps"),
    ],
)
def test_what_has_no_counterpart_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        settings(values)
    assert str(caught.value).startswith(said)


def test_prompts_to_judge_by_that_are_not_here_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    made = settings(HPS, prompts=FILE)
    assert made["prompts"] == FILE and "evaluation" not in made and made["reward"] == "hpsv2"
    assert "judged by the training prompts" in capsys.readouterr().out


def test_a_reward_of_ones_own_is_climbed_as_it_is() -> None:
    def mine(images: Any, prompts: Any) -> Any: ...

    made = settings({"reward_fn": "mine"}, reward=mine)
    assert made["reward"] is mine and made["algorithm"].loss_form == "negative"
    assert plain(made["algorithm"])["coefficient"] == 1.0

"""From TRL's numbers to ours: what an epoch is, what is remembered, where things go, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.compat.configs import AlignPropConfig, DDPOConfig
from tastemaker.compat.translation import settings
from tastemaker.process.samplers import DDIM
from tastemaker.process.truncation import Fixed, PerStep


def algorithm(devices: int | None = None, **values: Any) -> DDPO:
    made = settings(DDPOConfig(**values), devices=devices)["algorithm"]
    assert isinstance(made, DDPO)
    return made


def test_the_defaults_are_trls() -> None:
    made = settings(DDPOConfig())
    assert made.pop("algorithm") == DDPO(images=2, updates=2, prompt_history=0)
    assert made == {
        "seed": 0,
        "checkpointing_steps": 1,
        "checkpoints_total_limit": 5,
        "use_8bit_adam": False,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "mixed_precision": "fp16",
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "report_to": (),
        "plan": {"micro_batch": 1, "sampling_batch": 1},
    }


def test_every_number_arrives() -> None:
    made = algorithm(
        num_epochs=7,
        sample_num_steps=20,
        sample_eta=0.3,
        sample_guidance_scale=3.5,
        train_learning_rate=1e-3,
        train_adam_weight_decay=0.2,
        train_num_inner_epochs=3,
        train_cfg=False,
        train_adv_clip_max=9,
        train_clip_range=0.1,
        train_timestep_fraction=0.5,
    )
    assert made == DDPO(
        images=2,
        updates=2,
        iterations=7,
        steps=20,
        sampler=DDIM(0.3),
        guidance=3.5,
        learning_rate=1e-3,
        weight_decay=0.2,
        inner_epochs=3,
        guidance_in_loss=False,
        advantage_limit=9,
        clip=0.1,
        timestep_fraction=0.5,
    )
    # a model's own suggestions give way to all of them, defaults too
    assert made.given >= {"images", "per_prompt", "updates", "prompt_history", "clip", "sampler", "iterations"}


@pytest.mark.parametrize(
    ("devices", "sizes", "images", "updates"),
    [(1, (6, 4, 3, 1), 24, 8), (8, (8, 4, 4, 2), 256, 4), (2, (4, 1, 1, 4), 8, 1), (1, (3, 2, 2, 1), 6, 3)],
)
def test_images_and_updates_are_products(
    devices: int, sizes: tuple[int, int, int, int], images: int, updates: int
) -> None:
    names = ("sample_batch_size", "sample_num_batches_per_epoch", "train_batch_size")
    values = dict(zip((*names, "train_gradient_accumulation_steps"), sizes, strict=True))
    made = settings(DDPOConfig(**values), devices=devices)
    assert (made["algorithm"].images, made["algorithm"].updates) == (images, updates)
    assert made["plan"] == {"micro_batch": sizes[2], "sampling_batch": sizes[0]}


def test_devices_are_this_runs_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert algorithm().images == 8 and algorithm().updates == 2
    assert algorithm(devices=1).images == 2


@pytest.mark.parametrize(
    ("tracked", "size", "least", "history", "minimum"),
    [(False, 32, 16, 0, 16), (True, 32, 16, 32, 16), (True, 8, 8, 8, 8), (True, 8, 0, 8, 1), (True, 8, 9, 0, 16)],
)
def test_what_is_remembered_of_prompts(tracked: bool, size: int, least: int, history: int, minimum: int) -> None:
    """A memory that is smaller than what it needs never has enough: in TRL that is the whole epoch's mean, too."""
    made = algorithm(
        per_prompt_stat_tracking=tracked,
        per_prompt_stat_tracking_buffer_size=size,
        per_prompt_stat_tracking_min_count=least,
    )
    assert (made.prompt_history, made.prompt_minimum) == (history, minimum)


def test_without_guidance_there_is_none_in_the_loss_and_no_negative_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    for scale in (1.0, 0.5):
        made = settings(DDPOConfig(sample_guidance_scale=scale, negative_prompts="blurry, dark"))
        assert "negative_prompt" not in made and made["algorithm"].learning_guidance == scale
        assert "negative_prompts has no effect" in capsys.readouterr().out
    assert settings(DDPOConfig(negative_prompts="blurry, dark"))["negative_prompt"] == "blurry, dark"


def test_machine_and_trackers() -> None:
    made = settings(DDPOConfig(log_with="wandb", mixed_precision="none", accelerator_kwargs={"cpu": True}))
    assert (made["report_to"], made["mixed_precision"], made["device"]) == (("wandb",), "no", "cpu")
    config = DDPOConfig(accelerator_kwargs={"cpu": False})
    config.mixed_precision, config.log_with = None, ["wandb", "tensorboard"]  # type: ignore[assignment]
    made = settings(config)  # accelerate's choice, its device, more than one tracker
    assert "mixed_precision" not in made and "device" not in made and made["report_to"] == ("wandb", "tensorboard")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"train_batch_size": 3},
            "2 pictures an epoch (sample_batch_size 1 x sample_num_batches_per_epoch 2 x devices",
        ),
        ({"sample_batch_size": 0}, "sample_batch_size is 0; it must be at least 1."),
        ({"train_gradient_accumulation_steps": -1}, "train_gradient_accumulation_steps is -1; it must be at least 1."),
        ({"sample_eta": 0.0}, "sample_eta is 0: a chain without noise has no probability to learn from"),
        ({"sample_eta": 1.5}, "sample_eta of ddim is 1.5; it lies between 0"),
        ({"train_clip_range": -1}, "train_clip_range is -1.0; it must be positive."),
        ({"num_epochs": 0}, "num_epochs is 0; it must be at least 1."),
        ({"train_num_inner_epochs": 0}, "train_num_inner_epochs is 0; it must be at least 1."),
        ({"train_max_grad_norm": -1.0}, "train_max_grad_norm is -1.0; it is positive, or none."),
        ({"save_freq": -1}, "save_freq is -1; it is 0 or more."),
        ({"seed": "x"}, "seed needs a whole number; found 'x'."),
        ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'; it is no, fp16 or bf16."),
        ({"accelerator_kwargs": {"dynamo_backend": "x"}}, "accelerator_kwargs: dynamo_backend has no counterpart here"),
        ({"project_kwargs": {"projectdir": "x"}}, "project_kwargs: projectdir is none of project_dir, total_limit"),
    ],
)
def test_errors_name_the_setting_as_trl_does(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        settings(DDPOConfig(**values))
    assert str(caught.value).startswith(said)


# ---- the other config


def aligned(devices: int | None = None, **values: Any) -> AlignProp:
    made = settings(AlignPropConfig(**values), devices=devices)["algorithm"]
    assert isinstance(made, AlignProp)
    return made


def test_the_other_configs_defaults_are_trls() -> None:
    made = settings(AlignPropConfig())
    assert made.pop("algorithm") == AlignProp(
        images=1,
        updates=1,
        steps=50,
        guidance=5.0,
        iterations=100,
        learning_rate=1e-3,
        weight_decay=1e-4,
        truncation=PerStep(0.0, 1.0),
        loss_form="negative",
        coefficient=1.0,
        sampler=DDIM(1.0),
    )
    usual = settings(DDPOConfig())
    own = {"gradient_checkpointing": True, "plan": {"micro_batch": 1}}
    assert made == {key: value for key, value in usual.items() if key != "algorithm"} | own
    # a model's own suggestions give way to all of them, defaults too
    said = {"images", "per_prompt", "updates", "steps", "guidance", "iterations", "learning_rate", "weight_decay"}
    assert aligned().given >= said | {"truncation", "loss_form", "coefficient", "sampler"}


def test_images_of_the_one_update_are_a_product() -> None:
    made = aligned(4, train_batch_size=4, train_gradient_accumulation_steps=8)
    assert (made.images, made.updates) == (128, 1)


@pytest.mark.parametrize(
    ("values", "truncation"),
    [
        ({}, PerStep(0.0, 1.0)),
        ({"sample_num_steps": 100}, PerStep(0.0, 0.5)),
        ({"truncated_rand_backprop_minmax": (10, 40)}, PerStep(0.2, 0.8)),
        ({"truncated_rand_backprop_minmax": [10, 10]}, PerStep(0.2, 0.2)),  # as a command line gives it
        ({"truncated_backprop_rand": False}, Fixed(1)),
        ({"truncated_backprop_rand": False, "truncated_backprop_timestep": 0}, Fixed(50)),
        ({"truncated_backprop_rand": False, "truncated_backprop_timestep": -3}, Fixed(50)),
        ({"truncated_backprop_rand": False, "truncated_backprop_timestep": 15, "sample_num_steps": 20}, Fixed(5)),
    ],
)
def test_where_trls_gradient_begins(values: dict[str, Any], truncation: Any) -> None:
    assert aligned(**values).truncation == truncation


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sample_num_steps": 20}, "truncated_rand_backprop_minmax is (0, 50), but the chain has 20 steps: give (LOW,"),
        (
            {"truncated_rand_backprop_minmax": (30, 20)},
            "truncated_rand_backprop_minmax is (30, 20), but the chain has 50",
        ),
        (
            {"truncated_rand_backprop_minmax": (50, 50)},
            "truncated_rand_backprop_minmax is (50, 50), but the chain has 50",
        ),
        (
            {"truncated_backprop_rand": False, "sample_num_steps": 20},
            "truncated_backprop_timestep is 49, but the steps are 0 to 19: none would have a gradient. Give 19 for",
        ),
        ({"train_batch_size": 0}, "train_batch_size is 0; it must be at least 1."),
        ({"sample_eta": 1.5}, "sample_eta of ddim is 1.5; it lies between 0"),
        ({"train_learning_rate": -1}, "train_learning_rate is -1.0; it must be positive."),
    ],
)
def test_errors_of_the_other_config_name_the_setting_as_trl_does(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        settings(AlignPropConfig(**values))
    assert str(caught.value).startswith(said)


# ---- folders


def made_run(folder: Path, *checkpoints: str) -> Path:
    for name in checkpoints:
        (folder / "checkpoints" / name).mkdir(parents=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 0}))
    return folder


@pytest.mark.parametrize(
    ("values", "folder"),
    [
        ({}, None),
        ({"logdir": "out"}, "out/ddpo-1"),
        ({"run_name": "my run"}, "logs/my-run-1"),
        ({"run_name": "a", "logdir": "out"}, "out/a-1"),
        ({"logdir": "out", "project_kwargs": {"project_dir": "save"}}, "save/ddpo-1"),
    ],
)
def test_where_a_run_goes(values: dict[str, Any], folder: str | None) -> None:
    assert settings(DDPOConfig(**values)).get("output_dir") == folder


def test_a_script_that_runs_again_gets_another_folder(tmp_path: Path) -> None:
    config = DDPOConfig(project_kwargs={"project_dir": str(tmp_path), "total_limit": 1})
    for k in (1, 2, 3):
        made = settings(config)
        assert made["output_dir"] == str(tmp_path / f"ddpo-{k}") and made["checkpoints_total_limit"] == 2
        (tmp_path / f"ddpo-{k}").mkdir()


def test_a_run_is_resumed_by_its_folder_its_checkpoints_one_of_them_or_the_folder_of_runs(tmp_path: Path) -> None:
    made_run(tmp_path / "ddpo-1", "checkpoint-1")
    home = made_run(tmp_path / "ddpo-2", "checkpoint-1", "checkpoint-2")
    (home / "config.yaml").touch()
    one = home / "checkpoints" / "checkpoint-1"
    for asked in (home, home / "checkpoints", tmp_path, one):
        made = settings(DDPOConfig(resume_from=str(asked), project_kwargs={"project_dir": "elsewhere"}))
        found = str(one) if asked is one else "latest"
        assert (made["output_dir"], made["resume_from_checkpoint"]) == (str(home), found), asked


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "checkpoint_3").mkdir(parents=True)
    for asked in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "checkpoint_3"):
        with pytest.raises(ValueError, match="holds checkpoints of accelerate, whose pickles are not read here"):
            settings(DDPOConfig(resume_from=str(asked)))
    with pytest.raises(ValueError, match="nowhere: there is no run of Tastemaker"):
        settings(DDPOConfig(resume_from=str(tmp_path / "nowhere")))

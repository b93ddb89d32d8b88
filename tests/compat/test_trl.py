"""Scripts of TRL's shape on the built-in model: what they get back is what TRL's trainer gave them."""

from __future__ import annotations

import functools
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import runs
import tastemaker.run
from tastemaker import fitting
from tastemaker.compat import AlignPropConfig, AlignPropTrainer, DDPOConfig, DDPOTrainer, trl
from tastemaker.compat import DefaultDDPOStableDiffusionPipeline as Pipeline
from tastemaker.compat.callbacks import NoTracker
from tastemaker.exports import hub
from tastemaker.outcome import Run
from tastemaker.policy.load import quiet

CAPTIONS = ("a red circle", "two blue squares")
SMALL = DDPOConfig(
    num_epochs=2,
    mixed_precision="no",
    sample_num_steps=4,
    sample_batch_size=2,
    sample_num_batches_per_epoch=2,
    train_batch_size=1,
    train_gradient_accumulation_steps=2,
    train_learning_rate=1e-2,
    per_prompt_stat_tracking=True,
    per_prompt_stat_tracking_buffer_size=4,
    per_prompt_stat_tracking_min_count=2,
    accelerator_kwargs={"cpu": True},
)


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """No estimate of memory, which takes as long as such a small run."""
    monkeypatch.setattr(fitting, "table", lambda *about: [])


def prompt_fn() -> tuple[str, dict[str, Any]]:
    k = random.randrange(2)
    return np.random.choice([CAPTIONS[k]]), {"dark": k}


def brightness(
    images: Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Bright circles and dark squares; the metadata says which."""
    assert isinstance(prompts, tuple) and [CAPTIONS[m["dark"]] for m in metadata] == list(prompts)
    assert images.shape[1:] == (3, 64, 64) and 0 <= images.min() and images.max() <= 1
    level = images.mean((1, 2, 3)).numpy()
    return level * np.array([1 - 2 * m["dark"] for m in metadata]), {"level": level, "judge": "arithmetic"}


def dim(images: Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]) -> tuple[Tensor, dict[str, Any]]:
    return -images.mean((1, 2, 3)), {}


class Script:
    """A script as those of TRL's documentation, and what its hook saw."""

    def __init__(self, folder: Path) -> None:
        self.seen: list[tuple[list[list[Any]], int, Any]] = []
        config = replace(SMALL)
        config.project_kwargs = {"project_dir": str(folder), "total_limit": 3, "automatic_checkpoint_naming": True}
        self.pipeline = Pipeline("shapes", pretrained_model_revision="main", use_lora=True)
        self.pipeline.set_progress_bar_config(disable=True)
        self.trainer = DDPOTrainer(config, brightness, prompt_fn, self.pipeline, image_samples_hook=self.hook)
        self.trainer.train()

    def hook(self, image_data: list[list[Any]], global_step: int, tracker: Any) -> None:
        images, prompts, _, rewards, _ = image_data[-1]
        shown = {f"{prompts[k]:.25} | {rewards[k].item():.2f}": image.unsqueeze(0) for k, image in enumerate(images)}
        tracker.log_images(shown, step=global_step)
        self.seen.append((image_data, global_step, tracker))

    @property
    def run(self) -> Run:
        assert self.trainer.run is not None
        return self.trainer.run


@functools.cache
def script() -> Script:
    return Script(runs.home() / "trl")


def pictures(pipeline: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        list(CAPTIONS),
        num_inference_steps=3,
        guidance_scale=2.0,
        eta=0.0,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    )
    found: np.ndarray = drawn.images
    return found


# ---- a script


def test_a_script_trains_by_the_configs_numbers() -> None:
    run = script().run
    assert run.done and run.folder == runs.home() / "trl" / "ddpo-1"
    settings, rows = run.settings, run.metrics()
    algorithm = settings["algorithm"]
    assert (algorithm["images"], algorithm["updates"], algorithm["steps"], algorithm["iterations"]) == (4, 2, 4, 2)
    assert (algorithm["guidance"], algorithm["clip"], algorithm["learning_rate"]) == (5.0, 1e-4, 1e-2)
    assert (algorithm["prompt_history"], algorithm["prompt_minimum"]) == (4, 2)
    assert settings["lr_warmup_steps"] == 0 and settings["held_out_rewards"] == []  # the model suggests others
    assert settings["lora"]["rank"] == 4 and settings["reward"] == f"{__name__}:brightness"
    assert [len(row["updates"]) for row in rows] == [2, 2] and [row["images"] for row in rows] == [4, 4]
    assert all(update["grad_norm"] > 0 and update["items"] == 8 for row in rows for update in row["updates"])
    assert [path.name for path in sorted((run.folder / "checkpoints").iterdir())] == ["checkpoint-1", "checkpoint-2"]
    assert run.evaluations()[-1]["iteration"] == 2


def test_the_hook_gets_a_list_a_sampling_batch_the_optimizer_steps_and_a_tracker() -> None:
    (first, at_first, tracker), (_, at_second, _) = script().seen
    assert (at_first, at_second) == (0, 2) and isinstance(tracker, NoTracker)
    for images, prompts, metadata, rewards, info in first:
        assert images.shape == (2, 3, 64, 64) and isinstance(prompts, tuple) and isinstance(metadata, tuple)
        again, more = brightness(images, prompts, metadata)
        assert rewards.tolist() == pytest.approx(again.tolist(), abs=1e-6)
        assert set(info) == {"level"} and info["level"].tolist() == pytest.approx(more["level"].tolist(), abs=1e-6)
    everyone = [value for _, _, _, rewards, _ in first for value in rewards.tolist()]
    assert len(first) == 2 and np.mean(everyone) == pytest.approx(script().run.metrics()[0]["reward"]["mean"])


def test_what_is_saved_is_read_by_diffusers_and_trained_on(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    script().trainer.save_pretrained(saved)
    with quiet():
        plain = StableDiffusionPipeline.from_pretrained(saved)
    base = pictures(plain)
    plain.load_lora_weights(saved)
    tuned = pictures(plain)
    assert np.abs(tuned - base).max() > 1e-3
    assert np.abs(pictures(script().pipeline) - tuned).max() < 1e-5  # the trained pipeline itself
    again = Pipeline(str(saved), use_lora=False)  # a LoRA beside the model counts, as in TRL
    assert np.abs(pictures(again) - tuned).max() < 1e-5
    more = trl.settings(SMALL, dim, prompt_fn, Pipeline(str(saved), use_lora=False))
    assert more["lora"] == {"file": str(saved / "pytorch_lora_weights.safetensors")} and more["model"] == str(saved)


def test_a_second_call_goes_on_and_a_trainer_of_its_folder_too(tmp_path: Path) -> None:
    model, config = runs.model(), replace(SMALL, num_epochs=1, sample_num_batches_per_epoch=1, sample_num_steps=2)
    config.project_kwargs = {"project_dir": str(tmp_path)}
    trainer = DDPOTrainer(config, dim, prompt_fn, Pipeline(model))
    trainer.train()
    trainer.train(epochs=2)
    assert trainer.run is not None and [row["iteration"] for row in trainer.run.metrics()] == [0, 1, 2]
    resumed = DDPOTrainer(replace(config, resume_from=str(tmp_path), num_epochs=4), dim, prompt_fn, Pipeline(model))
    resumed.train()
    assert resumed.run is not None and resumed.run.folder == trainer.run.folder == tmp_path / "ddpo-1"
    assert [row["iteration"] for row in resumed.run.metrics()] == [0, 1, 2, 3]


def test_without_lora_the_whole_network_is_trained_and_saved(tmp_path: Path) -> None:
    config = replace(SMALL, num_epochs=1, sample_num_batches_per_epoch=1, sample_num_steps=2, logdir=str(tmp_path))
    trainer = DDPOTrainer(config, dim, prompt_fn, Pipeline(runs.model(), use_lora=False))
    assert trainer.settings["lora"] is None and trainer.settings["algorithm"].learning_rate == 1e-2
    trainer.train()
    trainer.save_model()
    assert trainer.run is not None and trainer.run.folder == tmp_path / "ddpo-1"
    with quiet():
        saved = StableDiffusionPipeline.from_pretrained(trainer.run.folder / "pretrained")
        base = StableDiffusionPipeline.from_pretrained(runs.model())
    assert np.abs(pictures(saved) - pictures(base)).max() > 1e-3


def test_the_hook_gets_accelerates_own_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of those that are alive; which names there are is `report_to`'s."""
    seen: list[Any] = []
    trainer = DDPOTrainer(SMALL, dim, prompt_fn, Pipeline("shapes"), lambda data, step, tracker: seen.append(tracker))
    told: dict[str, Any] = {}
    monkeypatch.setattr(tastemaker.run, "train", lambda **settings: told.update(settings) or Run(tmp_path, False, None))
    trainer.train(epochs=7)
    first = object()
    told["on_samples"]([], 3, [first, object()])
    told["on_samples"]([], 3, [])
    assert seen[0] is first and isinstance(seen[1], NoTracker)
    assert told["iterations"] == 7 and told["model"] == "shapes" and told["reward"].__name__ == "dim"
    names = trl.settings(replace(SMALL, log_with="tensorboard"), dim, prompt_fn, Pipeline("shapes"))["report_to"]
    assert names == ("tensorboard",)


def test_a_push_sends_the_runs_folder_with_a_token_for_this_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[Path, str | None, bool | None, str | None]] = []

    def push(folder: Path, repo: str | None, *, private: bool | None) -> hub.Pushed:
        sent.append((folder, repo, private, os.environ.get("HF_TOKEN")))
        return hub.Pushed("https://hub/me/mine", "on the hub")

    monkeypatch.setattr(hub, "push", push)
    monkeypatch.setenv("HF_TOKEN", "before")
    trainer, folder = script().trainer, script().run.folder
    assert trainer.push_to_hub("me/mine", private=True, token="for this call").url == "https://hub/me/mine"
    trainer.push_to_hub()
    monkeypatch.setenv("RANK", "1")
    assert trainer.push_to_hub() is None
    assert sent == [(folder, "me/mine", True, "for this call"), (folder, None, None, "before")]
    assert os.environ["HF_TOKEN"] == "before"


# ---- refusals


def test_what_would_silently_do_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Mine replaces `calculate_loss` of TRL's training loop"):
        type("Mine", (DDPOTrainer,), {"calculate_loss": lambda self: 0})
    trainer = DDPOTrainer(replace(SMALL), dim, prompt_fn, Pipeline("shapes"))
    with pytest.raises(AttributeError, match="`?accelerator.*belongs to TRL's training loop"):
        _ = trainer.accelerator
    for act in (lambda: trainer.save_pretrained(tmp_path), trainer.push_to_hub):
        with pytest.raises(ValueError, match="call trainer.train\\(\\) first"):
            act()
    trainer.config.num_epochs = 3
    with pytest.raises(ValueError, match="the config was changed after the trainer was made"):
        trainer.train()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (({}, dim, prompt_fn, Pipeline("shapes")), "config is a dict; it is a DDPOConfig."),
        ((SMALL, dim, prompt_fn, "shapes"), "sd_pipeline is a str; it is a DefaultDDPOStableDiffusionPipeline"),
        ((SMALL, None, prompt_fn, Pipeline("shapes")), "reward_function is a NoneType; it is a function"),
    ],
)
def test_other_parts_are_refused(parts: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        DDPOTrainer(*parts)
    assert str(caught.value).startswith(said)


def test_a_pipeline_that_was_opened_before_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = Pipeline(runs.model())
    assert pipeline.unet is pipeline.sd_pipeline.unet
    DDPOTrainer(SMALL, dim, prompt_fn, pipeline)
    assert "the model is loaded anew by its name" in capsys.readouterr().out


# ---- the other trainer


def bright(images: Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]) -> tuple[Tensor, dict[str, Any]]:
    assert isinstance(prompts, tuple) and [CAPTIONS[m["dark"]] for m in metadata] == list(prompts)
    return images.mean((1, 2, 3)), {}


ALIGNED = AlignPropConfig(
    num_epochs=2,
    mixed_precision="no",
    log_image_freq=2,
    sample_num_steps=3,
    train_batch_size=2,
    train_gradient_accumulation_steps=2,
    train_learning_rate=1e-2,
    truncated_rand_backprop_minmax=(0, 3),
    accelerator_kwargs={"cpu": True},
)


def test_a_script_with_the_other_trainer_trains(tmp_path: Path) -> None:
    seen: list[tuple[dict[str, Any], int, Any]] = []
    config = replace(ALIGNED, project_kwargs={"project_dir": str(tmp_path)})
    pipeline = Pipeline(runs.model())
    trainer = AlignPropTrainer(config, bright, prompt_fn, pipeline, lambda *told: seen.append(told))
    trainer.train()
    assert trainer.run is not None and trainer.run.folder == tmp_path / "alignprop-1"
    settings, rows = trainer.run.settings, trainer.run.metrics()
    assert settings["algorithm"]["truncation"] == {"name": "per_step", "low": 0.0, "high": 1.0}
    assert [len(row["updates"]) for row in rows] == [1, 1] and [row["images"] for row in rows] == [4, 4]
    assert all(row["updates"][0]["grad_norm"] > 0 for row in rows)
    assert rows[0]["updates"][0]["loss"] == pytest.approx(-rows[0]["reward"]["mean"], abs=1e-6)  # TRL's, less 10
    ((data, step, tracker),) = seen  # of two epochs every second one
    assert step == 2 and isinstance(tracker, NoTracker)
    assert set(data) == {"images", "prompts", "prompt_metadata", "rewards"} and data["images"].shape == (2, 3, 16, 16)
    again, _ = bright(data["images"], data["prompts"], data["prompt_metadata"])
    assert data["rewards"].tolist() == pytest.approx(again.tolist(), abs=1e-6)
    trainer.save_model()
    assert (trainer.run.folder / "pretrained" / "pytorch_lora_weights.safetensors").is_file()
    assert np.abs(pictures(pipeline) - pictures(Pipeline(runs.model()))).max() > 1e-5


def test_the_other_trainer_takes_its_own_config_alone() -> None:
    assert AlignPropTrainer(ALIGNED, bright, prompt_fn, Pipeline("shapes")).settings["algorithm"].images == 4
    with pytest.raises(ValueError, match=r"config is a DDPOConfig; it is a AlignPropConfig\."):
        AlignPropTrainer(SMALL, bright, prompt_fn, Pipeline("shapes"))

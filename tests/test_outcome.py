"""What `tm.train` returns, and what is found again in a run's folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import runs
import tastemaker as tm
from tastemaker.rewards.reward import NamedReward


def pictures(pipeline: StableDiffusionPipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"}
    found: np.ndarray = pipeline(["squirrel", "crab"], generator=generator, **settings).images
    return found


def test_a_folder_is_a_run_again() -> None:
    folder, _ = runs.finished()
    run = tm.Run.open(str(folder))
    assert run.done and run.folder == folder and run.weights == folder / runs.LORA
    assert run.metrics() == runs.rows(folder, "metrics") and len(run.metrics()) == 2
    assert run.evaluations() == runs.rows(folder, "evaluations") and run.settings == runs.settings(folder)


def test_judging_anew_gives_the_runs_own_numbers() -> None:
    run = tm.Run.open(runs.finished()[0])
    found = run.evaluate(evaluation={"prompts": "train"}, device="cpu")["brightness"]
    own = run.evaluations()[-1]["change"]["brightness"]
    assert found.change == pytest.approx(own["mean"], rel=1e-4) and own["mean"] != 0
    fewer = run.evaluate([runs.reward("redness")], evaluation={"count": 2, "prompts": "train"}, device="cpu")
    assert set(fewer) == {"redness", "redness.green", "redness.blue"} and fewer["redness"].mean != found.mean


def test_mixed_and_annealed_models_lie_between() -> None:
    run = tm.Run.open(runs.finished()[0])
    asked = {"prompts": "train", "count": 4}
    tuned = run.evaluate(evaluation=asked, device="cpu")["brightness"]
    assert run.evaluate(evaluation=asked, mix=1, device="cpu")["brightness"].mean == tuned.mean
    assert run.evaluate(evaluation=asked, mix=0, device="cpu")["brightness"].change == 0
    assert run.evaluate(evaluation=asked, anneal="tuned", device="cpu")["brightness"].mean == tuned.mean
    assert run.evaluate(evaluation=asked, anneal="linear", device="cpu")["brightness"].change not in (0, tuned.change)
    with pytest.raises(ValueError, match="mix and anneal are judged one at a time"):
        run.evaluate(mix=0.5, anneal="linear")


def test_the_pipeline_is_plain_diffusers_with_the_tuned_weights() -> None:
    run = tm.Run.open(runs.finished()[0])
    pipeline = run.pipeline("cpu")
    assert type(pipeline) is StableDiffusionPipeline
    tuned = pictures(pipeline)
    pipeline.unload_lora_weights()
    base = pictures(pipeline)
    assert np.abs(tuned - base).max() > 1e-3
    assert np.array_equal(base, pictures(StableDiffusionPipeline.from_pretrained(runs.model())))


def test_a_run_of_objects_is_judged_by_its_objects(tmp_path: Path) -> None:
    def blue(images: torch.Tensor, prompts: tm.Prompts) -> torch.Tensor:
        return images[:, 2].mean((1, 2))

    run = tm.train(
        algorithm=tm.DDPO(images=2, updates=1, steps=2, guidance=1.0, iterations=1, learning_rate=1e-2),
        model=runs.model(),
        reward=blue,
        prompts=["a cat", "a dog"],
        evaluation={"count": 2},
        lora=None,
        output_dir=str(tmp_path / "run"),
        device="cpu",
    )
    assert run.done and run.weights == tmp_path / "run" / "pipeline"
    assert all(isinstance(judge, NamedReward) for judge in run.rewards)
    own = run.evaluations()[-1]["change"]["blue"]["mean"]
    assert run.evaluate(device="cpu")["blue"].change == pytest.approx(own, rel=1e-4) and own != 0
    assert np.abs(pictures(run.pipeline("cpu")) - pictures(StableDiffusionPipeline.from_pretrained(runs.model()))).max()
    with pytest.raises(ValueError, match="rewards=") as error:  # a folder knows no function of another program
        tm.Run.open(run.folder).evaluate()
    assert "blue" in str(error.value)


def test_what_is_no_run_or_has_not_ended_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.yaml"):
        tm.Run.open(tmp_path)
    (tmp_path / "config.yaml").write_text("model: shapes\n")
    run = tm.Run.open(tmp_path)
    assert not run.done
    for ask in (run.evaluate, run.pipeline):
        with pytest.raises(ValueError, match="has not ended"):
            ask()


def test_a_run_that_went_on_and_was_stopped_has_not_ended(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.train(runs.small(folder))
    assert tm.Run.open(folder).done
    more = ("--iterations", "3", "--resume_from_checkpoint", "latest")
    with runs.tripping("SIGTERM", 4, tmp_path / "calls"):
        assert runs.call(*runs.small(folder, *more, "--reward", runs.reward("brightness"))).code == 0
    assert (folder / runs.LORA).exists() and not tm.Run.open(folder).done
    with pytest.raises(ValueError, match="has not ended"):
        tm.Run.open(folder).pipeline()


def test_every_set_of_prompts_has_a_function() -> None:
    assert tm.prompts.animals() == "animals" and tm.prompts.counting(high=3) == {"name": "counting", "high": 3}
    with pytest.raises(ValueError, match="Did you mean `high`"):
        tm.prompts.counting(hgih=3)
    with pytest.raises(AttributeError, match="minerals"):
        _ = tm.prompts.minerals

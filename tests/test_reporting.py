"""A run's trackers, its hook and its push, from the command line to what arrives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import runs
import tastemaker as tm
from fake_hub import TOKEN, Hub, running
from tastemaker.reports import backends


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder / "trackers" / "tensorboard"))
    found.Reload()
    return found


def test_a_run_its_resume_and_its_judgement_reach_tensorboard(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.train(runs.small(folder, "--report_to", "tensorboard"))
    runs.train(
        runs.small(folder, "--report_to", "tensorboard", "--iterations", "2", "--resume_from_checkpoint", "latest")
    )
    words = ("--report_to", "tensorboard", "--device", "cpu", "--evaluation.prompts", "train")
    told = runs.call("evaluate", str(folder), *words)
    assert told.code == 0, told.err
    found = events(folder)
    means = {event.step: event.value for event in found.Scalars("reward/mean")}
    assert means == {row["iteration"]: pytest.approx(row["reward"]["mean"]) for row in runs.rows(folder, "metrics")}
    assert len(means) == 2 and found.Histograms("reward/histogram") and found.Images("samples")
    last = runs.rows(folder, "evaluations")[-1]["change"]["brightness"]["mean"]
    assert found.Scalars("evaluation/brightness/change")[-1].value == pytest.approx(last, rel=1e-5)
    assert found.Scalars("evaluate/brightness/change")[-1].value == pytest.approx(last, rel=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--report_to", "tensorbord"),
            "--report_to tensorbord: there is no such tracker.  Did you mean `tensorboard`?",
        ),
        (("--hub_model_id", "a/b/c"), "--hub_model_id"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_is_written(words: tuple[str, str], said: str, tmp_path: Path) -> None:
    ran = runs.call(*runs.small(tmp_path / "run", *words))
    assert ran.code == 2 and ran.err.startswith(f"tastemaker: {said}") and not (tmp_path / "run").exists()


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_tracker_that_does_not_start_changes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise OSError("no network")

    old, mine, link = tmp_path / "old", tmp_path / "mine", tmp_path / "link"
    runs.train(runs.small(old, "--report_to", "tensorboard"))
    before = contents(old)
    mine.mkdir()
    link.symlink_to(mine)
    monkeypatch.setattr(backends, "begin", fail)
    asked = ("--report_to", "tensorboard")
    for folder, more in ((tmp_path / "new", ()), (mine, ()), (link, ()), (old, ("--overwrite",))):
        ran = runs.call(*runs.small(folder, *asked, *more))
        assert ran.code == 2 and ran.err == "tastemaker: --report_to tensorboard did not start: OSError: no network\n"
    assert not (tmp_path / "new").exists() and contents(mine) == {} and link.is_symlink()
    assert contents(old) == before


def test_an_overwritten_run_leaves_nothing_to_the_trackers_of_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.train(runs.small(folder, "--report_to", "tensorboard", "--iterations", "2"))
    runs.train(runs.small(folder, "--report_to", "tensorboard", "--overwrite"))
    assert [event.step for event in events(folder).Scalars("reward/mean")] == [0]
    assert not (folder / ".trackers.old").exists() and len(runs.rows(folder, "metrics")) == 1


def test_a_tracker_that_is_lost_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(backends, "send", fail)
    with pytest.warns(RuntimeWarning, match="tracker tensorboard was lost .OSError: no network"):
        ran = runs.call(*runs.small(tmp_path / "run", "--report_to", "tensorboard"))
    assert ran.code == 0 and runs.weights(tmp_path / "run")


def test_the_hook_sees_the_pictures_that_were_scored(tmp_path: Path) -> None:
    seen: list[tuple[list[Any], int, list[Any]]] = []

    def green(images: torch.Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]) -> Any:
        return images[:, 1].mean((1, 2)), {"red": images[:, 0].mean((1, 2))}

    tm.train(
        algorithm=tm.DDPO(images=3, updates=1, steps=2, guidance=1.0, iterations=2, learning_rate=1e-2),
        model=runs.model(),
        reward=green,
        prompts=[("a cat", {"of": 1}), ("a dog", {"of": 2}), ("a cow", {"of": 3})],
        evaluation={"count": 1},
        plan={"sampling_batch": 2},
        output_dir=str(tmp_path / "run"),
        device="cpu",
        on_samples=lambda *told: seen.append(told),
    )
    assert [step for _, step, _ in seen] == [0, 1] and all(found == [] for _, _, found in seen)
    for batches, step, _ in seen:
        assert [len(batch[0]) for batch in batches] == [2, 1]
        for images, prompts, metadata, rewards, info in batches:
            torch.testing.assert_close(rewards, images[:, 1].mean((1, 2)))
            torch.testing.assert_close(info["red"], images[:, 0].mean((1, 2)))
            numbers = {"a cat": 1, "a dog": 2, "a cow": 3}
            assert [one["of"] for one in metadata] == [numbers[text] for text in prompts]
        mean = torch.cat([batch[3] for batch in batches]).mean()
        assert runs.rows(tmp_path / "run", "metrics")[step]["reward"]["mean"] == pytest.approx(float(mean), rel=1e-6)


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running(monkeypatch) as there:
        yield there


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_run_is_pushed_when_it_has_ended(far: Hub, tmp_path: Path) -> None:
    ran = runs.call(*runs.small(tmp_path / "run", "--push_to_hub", "--hub_model_id", "me/warm"))
    assert ran.code == 0 and "me/warm" in ran.out, ran.err
    assert len(far.commits) == 1 and "pytorch_lora_weights.safetensors" in far.commits[0]
    assert not any(name.startswith("trackers") for name in far.commits[0])
    assert TOKEN not in ran.out + ran.err


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_refused_push_leaves_the_run_whole_and_says_how_later(far: Hub, tmp_path: Path) -> None:
    far.refuse["commit"] = 403
    ran = runs.call(*runs.small(tmp_path / "run", "--push_to_hub", "--hub_model_id", "me/warm"))
    assert ran.code == 0 and f"tastemaker push {tmp_path / 'run'} --hub_model_id me/warm" in ran.err
    assert runs.weights(tmp_path / "run") and TOKEN not in ran.out + ran.err
    said = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert said == []


def test_what_the_hook_raises_comes_after_the_checkpoint(tmp_path: Path) -> None:
    def hook(*_: Any) -> None:
        raise KeyError("mine")

    settings: dict[str, Any] = {
        "algorithm": tm.DDPO(images=2, updates=1, steps=2, guidance=1.0, iterations=1, learning_rate=1e-2),
        "model": runs.model(),
        "reward": runs.reward("brightness"),
        "prompts": ["a cat", "a dog"],
        "evaluation": {"count": 1},
        "output_dir": str(tmp_path / "run"),
        "device": "cpu",
    }
    with pytest.raises(KeyError, match="mine"):
        tm.train(**settings, on_samples=hook)
    run = tm.train(**settings, resume_from_checkpoint="latest")
    assert run.done and len(run.metrics()) == 1
    with pytest.raises(ValueError, match="on_samples is 'print'; it is a function"):
        tm.train(**settings, on_samples="print")


def test_a_run_goes_on_only_with_the_evaluations_it_began_with(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.train(runs.small(folder))
    for words, said in (
        (("--evaluation.count", "2"), "--evaluation.count is 2, but the run in"),
        (("--evaluation.steps", "3"), "--evaluation.steps is 3, but the run in"),
    ):
        ran = runs.call(*runs.small(folder, "--iterations", "2", "--resume_from_checkpoint", "latest", *words))
        assert ran.code == 2 and said in ran.err
    more = ("--iterations", "2", "--resume_from_checkpoint", "latest", "--evaluation.every", "1")
    runs.train(runs.small(folder, *more))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--hub_model_id", "me/warm"), "--hub_model_id has no effect without --push_to_hub"),
        (("--lpips_weights", "download"), "--lpips_weights has no effect on the one picture a prompt"),
    ],
)
def test_what_would_do_nothing_is_refused(words: tuple[str, str], said: str, tmp_path: Path) -> None:
    ran = runs.call(*runs.small(tmp_path / "run", *words))
    assert ran.code == 2 and ran.err.startswith(f"tastemaker: {said}") and not (tmp_path / "run").exists()

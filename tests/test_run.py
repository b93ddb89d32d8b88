"""A whole run over a tiny model: what it prints, what it leaves, and that every switch does what it says."""

from __future__ import annotations

import json
import math
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import runs
import tastemaker
from tastemaker import preparation
from tastemaker.policy.load import load
from tastemaker.training.checkpoint import Checkpoints

# ---- the run folder


def test_a_run_leaves_its_folder_and_nothing_else() -> None:
    folder, _ = runs.finished()
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.yaml",
        "metrics.jsonl",
        "evaluations.jsonl",
        "samples.jsonl",
        "samples",
        "checkpoints",
        "lora",
        "before_after.png",
        "curve.svg",
        "report.html",
        "starts.jsonl",
        ".lock",
    }
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"checkpoint-1", "checkpoint-2"}


def test_the_configuration_is_whole_and_says_where_it_comes_from() -> None:
    folder, _ = runs.finished()
    found, origins = runs.settings(folder), runs.origins(folder)
    assert found["algorithm"]["name"] == "ddpo" and found["algorithm"]["sampler"] == {"name": "ddim", "eta": 1.0}
    assert found["model"] == runs.model() and found["lora"]["rank"] == 4 and found["seed"] == 0
    assert origins["images: 4"] == "flag" and origins["clip: 0.0001"] == "paper" and origins["seed: 0"] == "default"
    assert "origin" not in found and set(origins.values()) <= {
        "flag",
        "paper",
        "default",
        "every setting, and where it comes from",
        "",
    }
    assert not {"overwrite", "resume_from_checkpoint", "dry_run"} & found.keys()  # so that, as a recipe, it harms none


def test_metrics_have_a_schema_and_one_row_an_iteration() -> None:
    folder, _ = runs.finished()
    head, *lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert head == {"schema": 1, "kind": "metrics"} and [row["iteration"] for row in lines] == [0, 1]
    for row in lines:
        assert {"seconds", "queries", "network_calls", "images", "reward", "updates", "memory"} <= set(row)
        assert row["memory"]["process_peak_bytes"] > 2**26
        assert set(row["seconds"]) >= {"sampling", "reward", "learning", "other"}
        assert all(seconds >= 0 for seconds in row["seconds"].values())
        assert row["queries"] == row["images"] == 4 and set(row["network_calls"]) == {"rows_forward", "rows_backward"}
        assert set(row["reward"]) == {"mean", "std", "min", "max", "histogram", "failed", "parts"}
        assert row["reward"]["min"] < row["reward"]["mean"] < row["reward"]["max"] and row["reward"]["failed"] == 0
        assert len(row["updates"]) == 2
        for update in row["updates"]:
            assert {"loss", "clip_fraction", "grad_norm", "learning_rate"} <= set(update)
            assert update["items"] == 2 * 3 and update["skipped"] == 0 and update["learning_rate"] == 1e-2
            assert update["grad_norm"] > 0 and math.isfinite(update["loss"])
        assert "mismatch" in row["updates"][0] and "mismatch" not in row["updates"][1]
    before = runs.rows(folder, "evaluations")[0]["reward"]["brightness"]["mean"]
    assert lines[0]["held_out"] == {"brightness": pytest.approx(before, rel=1e-12)} and lines[1]["held_out"] == {}


def test_network_rows_are_those_of_the_plan() -> None:
    """4 pictures x 3 steps x 2 rows to draw them; as many to learn, in calls of 3 items; once 3 items to compare."""
    folder, ran = runs.finished()
    first, second = (row["network_calls"] for row in runs.metrics(folder))
    assert second == {"rows_forward": 24 + 24, "rows_backward": 24}
    assert first == {"rows_forward": 24 + 24 + 6, "rows_backward": 24}
    assert "rows forward to sample  24 " in ran.out and "rows to learn           24 " in ran.out


def test_evaluations_are_paired_and_hold_every_value() -> None:
    folder, _ = runs.finished()
    head, *lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert head == {"schema": 1, "kind": "evaluations"} and [row["iteration"] for row in lines] == [0, 2]
    before, after = lines
    for row in lines:
        assert row["prompts"] == f"{runs.home() / 'prompts.txt'} (the training prompts)"
        assert (row["sampler"], row["steps"], row["guidance"], row["pictures"]) == ("deterministic", 3, 2.0, 4)
        values, found = row["values"]["brightness"], row["reward"]["brightness"]
        assert len(values) == 4 and math.isclose(found["mean"], sum(values) / 4, rel_tol=1e-6)
        assert found["low"] < found["mean"] < found["high"]
    change = after["change"]["brightness"]
    assert before["change"]["brightness"]["mean"] == 0 != change["mean"]
    assert math.isclose(change["mean"], after["reward"]["brightness"]["mean"] - before["reward"]["brightness"]["mean"])
    assert change["low"] <= change["mean"] <= change["high"] and 0 <= change["wins"] <= 1


def test_samples_are_pictures_with_their_scores() -> None:
    folder, _ = runs.finished()
    lines = runs.rows(folder, "samples")
    kept = [row for row in lines if row["kind"] == "training"]
    assert sorted((row["iteration"], row["id"]) for row in kept) == [(i, b) for i in (0, 1) for b in range(4)]
    for row in lines:
        assert row["prompt"] in runs.PROMPTS
        with Image.open(folder / row["file"]) as picture:
            assert picture.size == (16, 16) and picture.format == "WEBP"
    for row in kept:  # the file is the picture that was scored, but for rounding to 8 bits
        with Image.open(folder / row["file"]) as picture:
            mean = sum(picture.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))) / 3 / 255
        assert math.isclose(mean, row["reward"], abs_tol=0.01)
    for iteration in ("0", "2"):
        shown = {path.name for path in (folder / "samples" / iteration).glob("evaluation-*.webp")}
        assert shown == {f"evaluation-{b}.webp" for b in range(4)}
    judged = [(row["iteration"], row["id"]) for row in lines if row["kind"] == "evaluation"]
    assert judged == [(iteration, b) for iteration in (0, 2) for b in range(4)]


def test_samples_have_their_parts_and_iterations_what_was_held_out(tmp_path: Path) -> None:
    runs.train(
        runs.small(tmp_path, "--reward", runs.reward("redness"), "--held_out_rewards", runs.reward("brightness"))
    )
    first, second, *others = runs.rows(tmp_path, "samples")
    before, after = (row["values"] for row in runs.rows(tmp_path, "evaluations"))
    assert first["kind"] == "evaluation" and first["reward"] == before["redness"][0]
    names = ("redness.green", "redness.blue", "brightness")
    assert first["parts"] == {name: before[name][0] for name in names}
    assert [row["kind"] for row in others] == ["training", "evaluation"]
    assert others[1]["reward"] == after["redness"][0] and others[1]["iteration"] == 1
    mean = runs.metrics(tmp_path)[0]["reward"]["parts"]
    for name in ("green", "blue"):
        found = [row["parts"][name] for row in (second, others[0])]
        assert sum(found) / 2 == pytest.approx(mean[name], rel=1e-6)
    (held_out,) = (row["held_out"] for row in runs.metrics(tmp_path))
    assert held_out == {name: pytest.approx(before[name][0]) for name in ("redness", "brightness")}


def test_before_and_after_and_the_curve_can_be_opened() -> None:
    folder, ran = runs.finished()
    with Image.open(folder / "before_after.png") as sheet:
        assert sheet.width > 4 * 16 and sheet.height > 2 * 16
    root = ElementTree.parse(folder / "curve.svg").getroot()
    assert root.tag.endswith("svg") and "brightness" in "".join(root.itertext())
    for name in ("before_after.png", "curve.svg", str(runs.LORA)):
        assert f"  {folder / name}\n" in ran.out


def test_what_is_printed() -> None:
    folder, ran = runs.finished()
    assert f"{folder} on cpu" in ran.out
    lines = ran.out.splitlines()
    assert sum(line.startswith("iteration 1/2  reward ") for line in lines) == 1
    assert sum(line.startswith("iteration 2/2  reward ") for line in lines) == 1
    (words,) = [line.split() for line in lines if line.startswith("algorithm.clip ")]
    assert words == ["algorithm.clip", "0.0001", "paper"]
    (said,) = [line for line in lines if line.startswith("  brightness  ")]
    before, after = runs.rows(folder, "evaluations")
    ends = [f"{row['reward']['brightness']['mean']:.4g}" for row in (before, after)]
    assert f"  brightness  {ends[0]} -> {ends[1]}   " in said and "of pairs won" in said
    assert "4 pictures of " in ran.out and "95 % intervals" in ran.out


def test_the_lora_file_draws_the_last_evaluation() -> None:
    """Loaded again, the file gives the pictures that were judged at the end; without it, those at the beginning."""
    from tastemaker.evaluation.evaluate import Trial, draw_pictures, trial_prompts
    from tastemaker.policy.adapter import LoRA
    from tastemaker.process.noise import Key
    from tastemaker.process.samplers import DDIM
    from tastemaker.prompts.sources import source

    folder, _ = runs.finished()
    policy = load(runs.model(), lora=LoRA(file=str(folder / runs.LORA)))
    trial = Trial(trial_prompts(source(str(runs.home() / "prompts.txt")), 4, 1, 0), 3, 2.0, DDIM(0.0), 0)
    before, after = (torch.tensor(row["values"]["brightness"]) for row in runs.rows(folder, "evaluations"))
    tuned = draw_pictures(policy, trial, Key(0, "evaluation"), trial.prompts).mean((1, 2, 3))
    with policy.using("base"):
        base = draw_pictures(policy, trial, Key(0, "evaluation"), trial.prompts).mean((1, 2, 3))
    torch.testing.assert_close(base, before, atol=1e-5, rtol=0)
    torch.testing.assert_close(tuned, after, atol=1e-5, rtol=0)
    assert (before - after).abs().max() > 1e-4  # else nothing was compared


# ---- folders


def test_the_same_command_goes_to_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [word for word in runs.small(Path("x")) if word not in ("--output_dir", "x")]
    for k in (1, 2):
        runs.train(argv)
        assert {path.name for path in (tmp_path / "runs").iterdir()} == {
            f"ddpo-tiny-model-brightness-{n}" for n in range(1, k + 1)
        }
    first, second = (tmp_path / "runs" / f"ddpo-tiny-model-brightness-{k}" for k in (1, 2))
    assert runs.weights(first) == runs.weights(second)
    assert "iteration 1/1" not in runs.train([*argv, "--resume_from_checkpoint", "latest"]).out  # the last one, ended


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    ran = runs.train(runs.words(tmp_path / "run", "--dry-run"))
    assert list(tmp_path.iterdir()) == []
    _, whole = runs.finished()
    plan = ran.out[ran.out.index("\nPlan\n") : ran.out.index("\nMemory of the device")]
    assert plan in whole.out and ran.out.endswith(f"{tmp_path}/run on cpu\ndry run: nothing was started\n")
    for quantity in ("images an iteration", "updates an iteration", "reward queries in all", "network rows in all"):
        assert quantity in plan


def test_a_limit_of_memory_chooses_the_calls_and_says_so(tmp_path: Path) -> None:
    argv = runs.words(tmp_path / "run", "--dry-run", "--gradient_checkpointing", "--algorithm.images", "64")
    for flag in ("--plan.micro_batch", "--plan.sampling_batch"):
        place = argv.index(flag)
        del argv[place : place + 2]
    calls = []
    for amount, said in (("3MB", "to fit 2.9 MiB: up to "), ("1GB", "to fit 0.93 GiB: up to ")):
        out = runs.train([*argv, "--fit", amount]).out
        assert said in out and "gradient checkpointing on" in out
        (line,) = [line for line in out.splitlines() if line.startswith("items a training call ")]
        calls.append(int(line.split()[4]))
    assert 1 <= calls[0] < calls[1] <= 64


def test_a_run_that_was_fitted_goes_on_and_its_configuration_is_a_recipe(tmp_path: Path) -> None:
    output, again = tmp_path / "run", tmp_path / "again"
    argv = runs.small(output, "--plan.micro_batch", "none", "--fit", "1GB")
    lines = [line.split() for line in runs.train(argv).out.splitlines()]
    said = [words[0] for words in lines if words[-1:] == ["fit"]]
    assert said == ["gradient_checkpointing", "vae_slicing", "vae_tiling", "plan.micro_batch"]
    stated = {text.partition(":")[0]: note for text, note in runs.origins(output).items()}
    assert [stated[name] for name in ("micro_batch", "gradient_checkpointing", "vae_slicing")] == ["fit"] * 3
    found = runs.settings(output)
    assert found["plan"]["micro_batch"] >= 1 and found["gradient_checkpointing"] is found["vae_slicing"] is False
    runs.train([*argv, "--resume_from_checkpoint", "latest"])
    assert runs.settings(output) == found
    ran = runs.train(["train", str(output / "config.yaml"), "--output_dir", str(again), "--iterations", "2"])
    assert "iteration 2/2" in ran.out
    changed = runs.settings(again)
    assert changed.pop("output_dir") == str(again) and changed["algorithm"].pop("iterations") == 2
    del found["output_dir"], found["algorithm"]["iterations"]
    assert changed == found


def test_overwriting_leaves_nothing_of_the_old_run(tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(runs.finished()[0], output)
    runs.train(runs.small(output, "--overwrite"))
    assert [row["iteration"] for row in runs.metrics(output)] == [0]
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["checkpoint-1"]
    assert sorted(path.name for path in (output / "samples").iterdir()) == ["0", "1"]


# ---- Python


def test_from_python_with_objects(tmp_path: Path) -> None:
    def darkness(
        images: Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(prompts, tuple) and all(text in ("a cat", "a dog") for text in prompts)
        mean = images.mean((1, 2, 3))
        return -mean, {"half": mean / 2}

    done = tastemaker.train(
        model=runs.model(),
        reward=darkness,
        prompts=["a cat", "a dog"],
        algorithm=tastemaker.DDPO(images=4, updates=2, steps=2, iterations=1, guidance=1.0),
        output_dir=str(tmp_path / "run"),
        evaluation={"count": 2, "every": 1},
        device="cpu",
        seed=3,
    )
    assert done.done and done.folder == tmp_path / "run" and done.weights == tmp_path / "run" / runs.LORA
    (row,) = runs.metrics(done.folder)
    assert math.isclose(row["reward"]["parts"]["half"], -row["reward"]["mean"] / 2, rel_tol=1e-5)
    assert set(runs.rows(done.folder, "evaluations")[0]["values"]) == {"darkness", "darkness.half"}
    found, origins = runs.settings(done.folder), runs.origins(done.folder)
    assert found["prompts"] == ["a cat", "a dog"] and found["reward"].endswith("darkness") and found["seed"] == 3
    assert origins["images: 4"] == origins["seed: 3"] == "argument" and origins["clip: 0.0001"] == "paper"


# ---- switches


def adapter(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / runs.LORA)


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_course_of_the_learning_rate_resolution_and_samples(tmp_path: Path) -> None:
    output = tmp_path / "run"
    flags = "--lr_scheduler linear --lr_warmup_steps 2 --save_samples 2 --resolution 8 --evaluation.every 1"
    runs.train(runs.words(output, *flags.split(), "--iterations", "3", "--checkpoints_total_limit", "2"))
    rates = [update["learning_rate"] for row in runs.metrics(output) for update in row["updates"]]
    assert rates == pytest.approx([0.5e-2, 1e-2, 1e-2, 0.75e-2, 0.5e-2, 0.25e-2])
    lines = runs.rows(output, "samples")
    for iteration in range(3):
        shown = [row["reward"] for row in lines if row["iteration"] == iteration and row["kind"] == "training"]
        reward = runs.metrics(output)[iteration]["reward"]
        assert shown == pytest.approx([reward["max"], reward["min"]])  # the best and the worst
    with Image.open(output / lines[0]["file"]) as picture:
        assert picture.size == (8, 8)
    assert [row["iteration"] for row in runs.rows(output, "evaluations")] == [0, 1, 2, 3]
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-3"]


def test_all_samples_or_none(tmp_path: Path) -> None:
    for asked, count in (("all", 2), ("0", 0)):
        output = tmp_path / asked
        runs.train(runs.small(output, "--save_samples", asked))
        pictures = [path for path in (output / "samples" / "0").iterdir() if not path.name.startswith("evaluation")]
        assert len(pictures) == count


def test_without_lora_the_whole_network_is_trained_slowly_and_exported(tmp_path: Path) -> None:
    output = tmp_path / "run"
    argv = runs.small(output, "--no-lora", "--save_samples", "0")
    place = argv.index("--learning_rate")
    ran = runs.train(argv[:place] + argv[place + 2 :])
    assert runs.origins(output)["learning_rate: 1.0e-05"] == "without LoRA" and runs.settings(output)["lora"] is None
    assert "without LoRA" in ran.out and f"  {output / 'pipeline'}\n" in ran.out and not (output / "lora").exists()
    assert runs.metrics(output)[0]["updates"][0]["learning_rate"] == 1e-5
    kept = Checkpoints.open(output / "checkpoints" / "checkpoint-1").tensors
    tuned = StableDiffusionPipeline.from_pretrained(output / "pipeline", safety_checker=None).unet.state_dict()
    base = StableDiffusionPipeline.from_pretrained(runs.model(), safety_checker=None).unet.state_dict()
    assert all(torch.equal(tensor, kept[f"policy/current/{name}"]) for name, tensor in tuned.items())
    moved = [float((tensor - base[name]).abs().max()) for name, tensor in tuned.items()]
    assert sum(change > 0 for change in moved) > 0.9 * len(moved) and max(moved) < 5e-5


def test_the_average_of_the_weights_is_what_is_kept_and_judged(tmp_path: Path) -> None:
    output = tmp_path / "run"
    runs.train(runs.words(output, "--ema", "0.9", "--iterations", "1"))
    kept = Checkpoints.open(output / "checkpoints" / "checkpoint-1").tensors
    names = {"lora_A": "lora.down", "lora_B": "lora.up"}
    sets = {
        which: {
            "unet."
            + name.removeprefix(f"policy/{which}/")
            .replace("lora_A", names["lora_A"])
            .replace("lora_B", names["lora_B"]): tensor
            for name, tensor in kept.items()
            if name.startswith(f"policy/{which}/")
        }
        for which in ("current", "ema")
    }
    assert apart(adapter(output), sets["ema"]) == 0 and apart(sets["ema"], sets["current"]) > 1e-4
    plain = runs.words(tmp_path / "plain", "--iterations", "1")
    runs.train(plain)
    assert apart(adapter(tmp_path / "plain"), sets["current"]) == 0  # the learner itself goes the same way
    last = [runs.rows(place, "evaluations")[-1]["values"] for place in (output, tmp_path / "plain")]
    assert last[0] != last[1]


def test_gradient_checkpointing_computes_again_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: dict[str, int] = {}
    for name, flags in (("without", ()), ("with", ("--gradient_checkpointing",))):

        def loaded(*args: Any, name: str = name, **settings: Any) -> Any:
            policy = load(*args, **settings)

            def count(*_: object) -> None:
                passes[name] = passes.get(name, 0) + 1

            policy.pipeline().unet.up_blocks[1].resnets[0].conv1.register_forward_hook(count)
            return policy

        monkeypatch.setattr(preparation, "load", loaded)
        runs.train(runs.small(tmp_path / name, *flags))
    # 2 pictures x 2 steps in training calls of 3 items: each of the 2 is computed a second time
    assert passes["with"] == passes["without"] + 2
    assert apart(adapter(tmp_path / "with"), adapter(tmp_path / "without")) < 1e-7


def test_half_precision_and_the_negative_prompt_change_what_is_drawn(tmp_path: Path) -> None:
    """Half precision by a little, of the base too; the adapter stays fp32. The negative prompt by more."""
    plain, half, negative = runs.plain(), tmp_path / "half", tmp_path / "negative"
    runs.train(runs.small(half, "--mixed_precision", "bf16"))
    runs.train(runs.small(negative, "--negative_prompt", "a dog"))
    values = [runs.rows(place, "evaluations")[0]["values"]["brightness"][0] for place in (plain, half, negative)]
    assert 0 < abs(values[1] - values[0]) < 1e-2 and values[2] != values[0]
    assert {tensor.dtype for tensor in adapter(half).values()} == {torch.float32}
    assert apart(adapter(half), adapter(plain)) > 0 and apart(adapter(negative), adapter(plain)) > 0


def test_seed_and_clipping_of_gradients(tmp_path: Path) -> None:
    plain, other, seeded = runs.plain(), tmp_path / "short", tmp_path / "seeded"
    runs.train(runs.small(other, "--max_grad_norm", "1e-12"))
    runs.train(runs.small(seeded, "--seed", "1"))
    norms = [runs.metrics(place)[0]["updates"][0]["grad_norm"] for place in (plain, other)]
    assert norms[0] == norms[1]  # as found, before clipping
    # AdamW divides by the gradient's size, until that is below its eps of 1e-8
    assert max(float(t.abs().max()) for n, t in adapter(other).items() if n.endswith("up.weight")) < 1e-4
    assert max(float(t.abs().max()) for n, t in adapter(plain).items() if n.endswith("up.weight")) > 1e-3
    assert apart(adapter(seeded), adapter(plain)) > 1e-2


def test_accelerates_precision_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    (line,) = [
        line for line in runs.train(runs.words(tmp_path / "run", "--dry-run")).out.splitlines() if "mixed_" in line
    ]
    assert line.split() == ["mixed_precision", "bf16", "accelerate"]


def test_a_runs_folder_is_a_lora_to_start_from(tmp_path: Path) -> None:
    folder, _ = runs.finished()
    runs.train(runs.words(tmp_path / "run", "--lora", str(folder)))
    first = runs.rows(tmp_path / "run", "evaluations")[0]["values"]
    assert first == runs.rows(folder, "evaluations")[-1]["values"]

"""Weights cut over processes: the same run as one process makes, whatever each of them has to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import runs
import sharding_ranks
import sharding_runs
import tiny
from sharded_toy import NetToy
from sharding_ranks import FOUR, RESUMED, RUNS, content, moved, numbers, training
from tastemaker.memory import Setup, estimate
from tastemaker.messages import Kind, Message, awaited
from tastemaker.policy import sharding
from tastemaker.policy.sharding import blocks
from tastemaker.settings import RunSettings
from tastemaker.training.checkpoint import Checkpoints
from tastemaker.world import World
from test_memory import NARROW
from toy_runs import apart
from two_ranks import left_by

EXACT = 1e-12  # fp64: what is left of the order in which numbers are added up
SECONDS = 150

pytestmark = pytest.mark.timeout(SECONDS + 30)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return left_by(sharding_ranks.__file__, tmp_path_factory, seconds=SECONDS)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return left_by(sharding_ranks.__file__, tmp_path_factory, seconds=SECONDS, ranks=4)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """How one process ends each run: weights, sets and moments."""
    found: dict[str, dict[str, Tensor]] = {}
    for name in RUNS:
        run = training(tmp_path_factory.mktemp(name), name, World())
        assert run.train()
        found[name] = content(run)
    return found


def said(folder: Path, what: str) -> list[Any]:
    files = sorted(folder.glob("rank-*.json"))
    return [json.loads(file.read_text())[what] for file in files]


def gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of two numbers in the same place."""
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


# ---- the same trajectory


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_end_where_one_ends(name: str, two: Path, ends: dict[str, dict[str, Tensor]]) -> None:
    start = NetToy().state()
    assert gap(start, {key: ends[name][key] for key in start}) > 0.01
    assert gap(load_file(two / f"{name}.safetensors"), ends[name]) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_four_end_where_one_ends(name: str, four: Path, ends: dict[str, dict[str, Tensor]]) -> None:
    assert gap(load_file(four / f"{name}.safetensors"), ends[name]) < EXACT


@pytest.mark.slow
def test_each_holds_its_part_and_the_first_alone_what_is_kept(two: Path) -> None:
    first, second = said(two, "ddpo")
    assert first["held"] + second["held"] == first["of"] == second["of"]
    assert first["held"] < 0.6 * first["of"]
    steps = len(NetToy().parameters())  # the optimizer's counts are no part of anything
    assert second["kept"] == steps < first["kept"]


# ---- checkpoints


@pytest.mark.slow
def test_a_checkpoint_is_that_of_one_process(two: Path) -> None:
    ours, theirs = (Checkpoints.open(two / run / "checkpoints" / "checkpoint-2") for run in (RESUMED, "alone"))
    assert gap(ours.tensors, theirs.tensors) < EXACT and not ours.per_rank
    counts = [one.data["optimizer"]["counts"] for one in (ours, theirs)]
    assert counts[0] == counts[1] and ours.data["state"] == theirs.data["state"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cut", "whole", "from-one"])
def test_two_go_on_from_a_checkpoint(name: str, two: Path, ends: dict[str, dict[str, Tensor]]) -> None:
    """Made by two with sharded weights (`cut`, and `whole` without), or by one process."""
    assert gap(load_file(two / f"{name}.safetensors"), ends[RESUMED]) < EXACT


@pytest.mark.slow
def test_one_goes_on_from_a_checkpoint_of_two(two: Path, ends: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    shutil.copytree(two / RESUMED, tmp_path / "run")
    run = training(tmp_path / "run", RESUMED, World())
    assert run.train(Checkpoints.open(tmp_path / "run" / "checkpoints" / "checkpoint-1"))
    assert gap(content(run), ends[RESUMED]) < EXACT


# ---- sets, stops


@pytest.mark.slow
def test_sets_are_those_of_one_process(two: Path) -> None:
    policy = NetToy(sets=("base", "old"))
    base = numbers(policy)
    moved(policy, 1.25)
    policy.blend("old", 0.5)
    with policy.using("old"):
        old = numbers(policy)
    now = numbers(policy)
    assert len({round(made[0], 6) for made in (base, old, now)}) == 3
    first, second = said(two, "sets")
    assert [name for name, _ in first["unequal"]] == ["old", "base", "old"]
    for name, made in [*first["unequal"], *second["unequal"]]:
        assert made == pytest.approx(old if name == "old" else base, abs=EXACT)
    for rank in (first, second):
        assert rank["after"] == pytest.approx(now, abs=EXACT) and rank["back"] == pytest.approx(now, abs=EXACT)
        assert "weights 'new' are not kept here" in rank["unknown"] and "do not fit this model" in rank["bad"]


@pytest.mark.slow
def test_a_stop_reaches_the_one_that_calls_and_leaves_the_current_weights(two: Path) -> None:
    for rank, (raised, waiting, now, after) in enumerate(said(two, "stopped")):
        assert raised == "Stop: the run was asked to stop." and waiting == 0 and after == 2
        assert now == pytest.approx(said(two, "sets")[rank]["back"], abs=EXACT)


def test_calls_come_before_backward_passes_and_these_before_all_else() -> None:
    call, other, back = Message(Kind.CALL, 3, False), Message(Kind.CALL, 1, False), Message(Kind.BACKWARD, 2, False)
    wait = Message(Kind.GRADIENTS, 7, False)
    assert awaited([wait, call, back, other]) == other
    assert awaited([wait, back]) == back and awaited([wait, wait]) is None


@pytest.mark.slow
def test_processes_that_begin_with_other_networks_are_told(two: Path) -> None:
    for strangers in said(two, "strangers"):
        assert len(strangers) == 2 and all("1 of 2 processes were asked for another run" in one for one in strangers)
    assert all("the checksum of the trained weights is" in one for one in said(two, "strangers")[1])
    assert said(two, "twins") == [["nothing"] * 2] * 2


def test_a_call_for_others_brings_no_text_encoder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tastemaker.policy.load import load

    monkeypatch.setattr(sharding, "shard", lambda *given: None)  # one process has nothing to cut
    policy: Any = load(str(tiny.save(tmp_path / "model")), lora=None, together=World())
    monkeypatch.setattr(policy, "_texts", None)
    policy._calls.fill(1)
    assert policy._calls.made == 1 and policy.rows.backward == 0


# ---- what is refused, what it needs


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "^fsdp has little to cut where a LoRA is trained.*lora=None"),
        ({"lora": None, "use_8bit_adam": True}, "^fsdp does not go with use_8bit_adam"),
        ({"lora": None, "compile": True}, "fsdp does not go with compile"),
        ({"lora": None, "cpu_offload": True}, "fsdp does not go with cpu_offload"),
        ({"lora": None, "mixed_precision": "fp16"}, "mixed_precision=fp16"),
    ],
)
def test_what_does_not_go_with_it_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RunSettings(fsdp=True, **settings)


def test_one_process_alone_is_told_how_to_start_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    words = f"train ddpo --model {runs.model()} --reward jpeg_compressibility --output_dir {tmp_path / 'run'}"
    prompts = ["--prompts", "text:a cat", "--device", "cpu"]
    assert runs.cli.main([*words.split(), *prompts, "--fsdp"]) != 0
    assert "--fsdp has little to cut" in capsys.readouterr().err
    assert runs.cli.main([*words.split(), *prompts, "--fsdp", "--no-lora"]) != 0
    error = capsys.readouterr().err
    assert "--fsdp cuts the weights over several processes" in error and "torchrun" in error
    assert not (tmp_path / "run").exists()


def test_the_estimate_divides_what_is_cut_and_adds_what_is_gathered() -> None:
    one, eight = (estimate(Setup(NARROW, None, processes=n), otherwise=False) for n in (1, 8))
    for what in ("trained weights", "gradients", "optimizer", "weight sets", "the step's own copies"):
        assert eight.of(what) == pytest.approx(one.of(what) / 8, abs=1)
    assert 0 < eight.of("gathered weights") < 1.5 * one.of("trained weights")
    for what in ("saved activations", "a sampling call", "decoder"):
        assert eight.of(what) == one.of(what)
    assert (one.processes, eight.processes) == (1, 8)


def test_inner_blocks_are_cut_before_those_around_them(tmp_path: Path) -> None:
    from tastemaker.policy.load import load

    network = load(str(tiny.save(tmp_path / "model")), lora=None).pipeline().unet
    names = {id(module): name for name, module in network.named_modules()}
    found = [names[id(block)] for block in blocks(network)]
    assert "up_blocks.1.resnets.0" in found and "mid_block.attentions.0.transformer_blocks.0" in found
    assert found.index("up_blocks.1.resnets.0") < found.index("up_blocks.1")
    toy = NetToy().network
    assert blocks(toy) == list(reversed(toy.blocks)) and blocks(torch.nn.Sequential(toy.first)) == [toy.first]


# ---- whole runs of pipelines, by the command


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return left_by(sharding_runs.__file__, tmp_path_factory, seconds=280)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sharding_runs.COMMANDS)
def test_a_pipeline_is_tuned_as_by_one_process(name: str, pipelines: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    done = sharding_runs.trained(name, pipelines, tmp_path / "one", fsdp=False)
    assert done == 0
    ours, theirs = pipelines / name, tmp_path / "one"
    files = sorted(file.relative_to(theirs) for file in theirs.rglob("*.safetensors"))
    assert any(file.parts[0] == "pipeline" for file in files) and any("best" in file.parts for file in files)
    for file in files:
        assert gap(load_file(ours / file), load_file(theirs / file)) < sharding_runs.COMMANDS[name].close, file
    for file in sorted(path.relative_to(theirs) for path in (theirs / "pipeline").rglob("*.json")):
        assert (ours / file).read_bytes() == (theirs / file).read_bytes(), file
    moments = [Checkpoints.open(folder / "checkpoints" / "checkpoint-2").tensors for folder in (ours, theirs)]
    assert apart(*({k: t for k, t in one.items() if "exp_avg/" in k} for one in moments)) < sharding_runs.SLOPES[name]
    drifts = [[row["watch"]["drift"] for row in runs.rows(folder, "metrics")] for folder in (ours, theirs)]
    assert drifts[0] == pytest.approx(drifts[1], rel=sharding_runs.COMMANDS[name].drift) and drifts[0][-1] > 0
    DiffusionPipeline.from_pretrained(ours / "pipeline")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_goes_on_alone(pipelines: Path, tmp_path: Path) -> None:
    home = shutil.copytree(pipelines / "policy-gradient", tmp_path / "run")
    more = ("--iterations", "3", "--resume_from_checkpoint", "latest")
    assert sharding_runs.trained("policy-gradient", pipelines, home, *more, fsdp=False) == 0
    assert [row["iteration"] for row in runs.rows(home, "metrics")] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_alarm_stops_all_and_the_whole_pipeline_is_there(pipelines: Path) -> None:
    assert said(pipelines, "stopped") == [0, 0] and len(runs.rows(pipelines / "stopped", "metrics")) == 2
    (alarm,) = runs.rows(pipelines / "stopped", "alarms")
    assert alarm["alarm"] == "drift" and alarm["stopped"]
    assert (pipelines / "stopped" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").is_file()

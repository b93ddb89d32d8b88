"""Sweeps: what is missing is made, what is there is not, and the plots show what the runs wrote."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import runs
from tastemaker import config, flags, sweeping
from tastemaker.evaluation.statistics import over_seeds
from tastemaker.sweeping import Sweep, variants


def words(folder: Path, *more: str, over: str = "learning_rate=1e-3,1e-2") -> list[str]:
    _, name, *settings = runs.small(folder)
    return ["sweep", name, "--over", over, *settings, "--evaluation.images_per_prompt", "2", *more]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("sweep") / "all"
    return folder, runs.train(words(folder, "--seeds", "2")).out


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    return found


def test_every_variant_and_seed_is_a_run_of_its_own(made: tuple[Path, str]) -> None:
    folder, out = made
    found = record(folder)
    assert [(run["variant"], run["seed"]) for run in found["runs"]] == [
        (f"learning_rate={rate}", seed) for rate in ("1e-3", "1e-2") for seed in (0, 1)
    ]
    for run in found["runs"]:
        home = folder / run["folder"]
        assert runs.settings(home)["seed"] == run["seed"] and runs.weights(home) and run["broke"] == ""
        assert f"learning_rate={runs.settings(home)['algorithm']['learning_rate']:g}" in (
            run["variant"].replace("1e-3", "0.001").replace("1e-2", "0.01")
        )
        (metrics,), (first, last) = runs.rows(home, "metrics"), runs.rows(home, "evaluations")
        assert [point["reward"] for point in run["curve"]] == [
            row["reward"]["brightness"]["mean"] for row in (first, last)
        ]
        assert run["curve"][0]["queries"] == run["curve"][0]["rows"] == 0
        assert run["curve"][1]["queries"] == metrics["queries"] == 2
        assert run["curve"][1]["rows"] == sum(metrics["network_calls"].values())
        assert run["curve"][1]["diversity"] == last["diversity"]["mean"]
    assert out.count("\nrun ") == 4 and "run 4 of 4: learning_rate=1e-2, seed 1" in out


def test_a_variant_is_summed_up_over_its_seeds(made: tuple[Path, str]) -> None:
    folder, out = made
    found = record(folder)
    for row in found["variants"]:
        ends = [run["curve"][-1] for run in found["runs"] if run["variant"] == row["variant"]]
        assert row["change"] == over_seeds([end["change"] for end in ends])._asdict()
        assert row["scores"]["brightness"] == over_seeds([end["reward"] for end in ends])._asdict()
        shown = next(line for line in out.splitlines() if line.startswith(f"{row['variant']}  "))
        assert f"{row['change']['mean']:+.3g} [{row['change']['low']:+.3g}" in shown


def test_plots_and_grid_can_be_opened(made: tuple[Path, str]) -> None:
    folder, _ = made
    for name in ("iterations", "queries", "network", "diversity"):
        text = "".join(ElementTree.parse(folder / f"{name}.svg").getroot().itertext())
        assert "learning_rate=1e-2" in text and ("pixels (mean squared)" in text) == (name == "diversity")
    with Image.open(folder / "grid.png") as picture:
        assert picture.height > 3 * 100


def test_what_is_there_is_not_made_again(
    made: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(made[0], folder)
    before = record(folder)
    shutil.rmtree(folder / "learning_rate=1e-2" / "seed-1")
    began = []
    real = sweeping.launch
    monkeypatch.setattr(sweeping, "launch", lambda *a, **k: began.append(a[1]["output_dir"]) or real(*a, **k))
    runs.train(words(folder, "--seeds", "2"))
    assert began == [str(folder / "learning_rate=1e-2" / "seed-1")]
    after = record(folder)
    for found in (before, after):
        for run in found["runs"]:
            for point in run["curve"]:
                point.pop("seconds")
        for row in found["variants"]:
            row.pop("seconds")
    assert after == before
    ran = runs.call(*words(folder, "--seeds", "2", "--algorithm.guidance", "3"))
    assert ran.code == 2 and "guidance is 3.0, but the run in" in ran.err
    ran = runs.call(*words(folder, "--algorithm.weight_decay", "0.5"))
    assert ran.code == 2 and "--weight_decay is 0.5, but" in ran.err and "was made with" in ran.err


TIRES = """
calls = []

def tires(images, prompts):
    calls.append(1)
    if 7 <= len(calls) <= 8:  # of the first run's second iteration
        raise ConnectionError("the judge is down")
    return images.mean((1, 2, 3))
"""


def test_a_run_that_breaks_is_told_of_and_the_others_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    (tmp_path / "judge.py").write_text(TIRES)
    more = ("--reward", f"{tmp_path / 'judge.py'}:tires", "--max_failed", "0.1", "--iterations", "3")
    ran = runs.call(*words(folder, *more, over="max_grad_norm=1,2"))
    first, second = record(folder)["runs"]
    assert ran.code == 1 and first["broke"].startswith("2 of 2 scores of iteration 1 failed") and not second["broke"]
    assert [row["broke"] for row in record(folder)["variants"]] == [1, 0]
    assert "max_grad_norm=1, seed 0 broke: 2 of 2 scores" in ran.err and "1, 1 broke" in ran.out


def test_a_sweep_that_is_asked_to_stop_stops_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    with runs.tripping("SIGTERM", 5, tmp_path / "calls"):  # in the first run's iteration
        ran = runs.train(words(folder))
    assert "stopped with learning_rate=1e-3, seed 0; the same command goes on with it" in ran.out
    assert "run 2 of 2" not in ran.out and not (folder / "sweep.json").exists()
    assert "resuming from" in runs.train(words(folder)).out
    assert [run["broke"] for run in record(folder)["runs"]] == ["", ""]


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ("clip", "--over 'clip': write --over SETTING=VALUE,VALUE"),
        ("algorithm.clip=", "--over 'algorithm.clip=': write"),
        ("algorithm.clip=1|", "--over is missing: write"),
        ("seed=1,2", "--over seed: a sweep has its own"),
        ("algorithm.clpi=1,2", "--algorithm.clpi is not a setting of ddpo.  Did you mean `--algorithm.clip`?"),
        ("algorithm.clip=1,high", "--algorithm.clip needs a number; found 'high'."),
    ],
)
def test_a_wrong_sweep_is_refused_before_its_first_run(over: str, said: str, tmp_path: Path) -> None:
    ran = runs.call(*words(tmp_path / "all", over=over))
    assert ran.code == 2 and ran.err.startswith(f"tastemaker: {said}"), ran.err
    assert not (tmp_path / "all").exists()


def test_combinations_and_names() -> None:
    found = variants("algorithm.clip=1,2;lora.rank=4")
    assert [one.name for one in found] == ["clip=1, rank=4", "clip=2, rank=4"]
    assert found[1].values == {"algorithm.clip": "2", "lora.rank": "4"}
    assert [one.name for one in variants("evaluation.steps=1; algorithm.steps=2")] == [
        "evaluation.steps=1, algorithm.steps=2"
    ]


def test_one_setting_and_then_the_other() -> None:
    found = variants("algorithm.kl=0,1 | algorithm.k=5;algorithm.kl=1 | algorithm.kl=0")
    assert [one.name for one in found] == ["kl=0", "kl=1", "k=5, kl=1"]
    assert found[2].values == {"algorithm.k": "5", "algorithm.kl": "1"}
    assert [one.name for one in variants("evaluation.steps=1|algorithm.steps=2")] == [
        "evaluation.steps=1",
        "algorithm.steps=2",
    ]


def settings(tmp_path: Path, over: str, *more: str, target: str = "ddpo") -> list[config.Resolved]:
    """Of every variant, before any run."""
    tree = flags.parse(runs.small(tmp_path, *more)[2:]).tree
    sweep = Sweep(target, tree, over, 1, tmp_path / "all")
    return [sweep._resolved(variant, 0) for variant in sweep.variants]


def test_lora_is_switched_on_and_off(tmp_path: Path) -> None:
    for more, rank in (((), 4), (("--lora.rank", "8"), 8), (("--no-lora",), 4)):
        on, off = (one.run for one in settings(tmp_path, "lora=on,off", *more))
        assert on.lora is not None and on.lora.rank == rank and off.lora is None
    assert [one.name for one in variants("lora=on,off;learning_rate=1e-5")] == [
        "lora=on, learning_rate=1e-5",
        "lora=off, learning_rate=1e-5",
    ]


def test_evaluations_come_as_often_as_somebody_said_or_six_times(tmp_path: Path) -> None:
    def every(*more: str, target: str = "ddpo") -> int:
        return settings(tmp_path, "max_grad_norm=1", *more, target=target)[0].run.evaluation.every

    assert every("--iterations", "42") == 7 and every() == 1
    assert every("--evaluation.every", "0") == 0
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("algorithm: ddpo\nevaluation:\n  every: 3\n")
    assert every(target=str(recipe)) == 3 and every("--evaluation.every", "0", target=str(recipe)) == 0


def test_flags_of_a_sweep(tmp_path: Path) -> None:
    for more, said in (
        (("--seeds", "none"), "--seeds is 'none'; it is a whole number above 0."),
        (("--seed", "3"), "--seed has no meaning for a sweep"),
    ):
        ran = runs.call(*words(tmp_path / "all", *more))
        assert ran.code == 2 and ran.err.startswith(f"tastemaker: {said}")
    assert runs.call("sweep", "ddpo").err.startswith("tastemaker: --over is missing")
    assert runs.train(["sweep", "--help"]).out.startswith("tastemaker sweep NAME --over")

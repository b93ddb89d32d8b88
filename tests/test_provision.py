"""Presets of known models, and what is said before a model is fetched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants

import runs
from tastemaker import config, fitting, planning, preparation, provision, subjects
from tastemaker.build import attribute
from tastemaker.memory import size
from tastemaker.policy.downloads import Download
from tastemaker.policy.families import TWO_ROWS
from tastemaker.policy.load import Files
from tastemaker.policy.presets import FILE, preset
from tastemaker.sweeping import Sweep

KNOWN = {model: entry for entry in yaml.safe_load(FILE.read_text()) for model in entry["models"]}
MEDIUM = "stabilityai/stable-diffusion-3.5-medium"
NEEDED = {"reward": "jpeg_compressibility", "prompts": "animals"}


@pytest.mark.parametrize("model", KNOWN)
def test_a_known_model_brings_its_defaults_to_every_algorithm(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    for algorithm in config.algorithms():
        found = config.resolve(algorithm, {"model": model, **NEEDED}, config.brought(model))
        assert found.origin["mixed_precision"] == "model"
        for path, value in planning.leaves(KNOWN[model]["defaults"]):
            if path == "guidance" and algorithm in KNOWN[model].get("unguided", ()):
                value = 1.0
            path = f"algorithm.{path}" if path in config.SHARED else path
            at = found.tree
            for key in path.split("."):
                at = at.get(key, {})
            assert at == value or path not in found.origin or found.origin[path] != "model", path


@pytest.mark.parametrize("model", KNOWN)
def test_algorithms_without_guidance_stay_without_where_it_is_a_second_row(model: str) -> None:
    for algorithm, entry in config.algorithms().items():
        if attribute(entry)().guidance == 1:
            found = config.resolve(algorithm, {"model": model, **NEEDED}, config.brought(model)).algorithm
            assert found.guidance == (3.5 if model.endswith("FLUX.1-dev") else 1), algorithm


def test_sweeps_and_bare_models_are_given_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects, "guiding_of", lambda model: TWO_ROWS)  # without the hub
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    sweep = Sweep("ddpo", {"model": MEDIUM, **NEEDED}, "learning_rate=1e-4,1e-3", 1, tmp_path / "sweep")
    assert {sweep._resolved(one, 0).run.mixed_precision for one in sweep.variants} == {"bf16"}
    bare = subjects.of_model(MEDIUM).tree
    assert (bare["mixed_precision"], bare["algorithm"]["guidance"]) == ("bf16", 4.5)


def test_every_value_of_a_preset_has_its_reason() -> None:
    lines = FILE.read_text().partition("  defaults:")[2].splitlines()
    values = [line for line in lines if line.startswith("    ") and ": " in line and "[" not in line.split("#")[0]]
    assert values and [line for line in values if "#" not in line] == []


def test_recipes_and_flags_come_before_a_preset_and_others_bring_nothing(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"algorithm: {{name: ddpo, guidance: 2.0}}\nmodel: {MEDIUM}\n")
    flags = {**NEEDED, "mixed_precision": "fp16"}
    found = config.resolve(str(recipe), flags, config.brought(MEDIUM))
    names = ("algorithm.guidance", "mixed_precision", "gradient_checkpointing", "algorithm.steps")
    assert [found.origin[name] for name in names] == ["recipe mine", "flag", "model", "paper"]
    assert found.algorithm.guidance == 2.0 and found.run.gradient_checkpointing and found.run.evaluation.steps == 40
    assert config.brought("someone/else") == preset("someone/else") == config.brought(None) == {}
    assert config.brought("shapes")["defaults"]["steps"] == 10


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> config.Resolved:
    """A run on a tiny model that passes for one of the hub, of which a file is here and two are not."""
    held = [Download("unet/a", 2**30, False), Download("vae/b", 2**29, False), Download("model_index.json", 99, True)]
    monkeypatch.setattr(provision, "find", lambda model, *_: Files(model, "owner/name", {}))
    monkeypatch.setattr(provision, "downloads", lambda files: held if files.source == "owner/name" else [])
    few = {"iterations": 25, "checkpoints_total_limit": None}
    return config.resolve("ddpo", {"model": runs.model(), **NEEDED, **few}, {}, spelling="argument")


def test_what_a_run_needs_is_added_up(asked: config.Resolved, tmp_path: Path) -> None:
    rows = provision.needs(asked, asked.run, torch.device("cpu"), tmp_path / "runs" / "one")
    assert [row[0] for row in rows] == ["download", "disk", "memory"]
    assert rows[0][1:] == ("1.50 GiB", f"2 files; 1 are in the cache; {provision._free(Path(constants.HF_HUB_CACHE))}")
    least = fitting.least(asked, asked.run, torch.device("cpu"))
    adapter = least.of("trained weights")
    assert provision.checkpoints(asked.run, 25) == 3 and least.of("weight sets") == 0
    assert rows[1][1] == size(3 * 3 * adapter + adapter) and str(tmp_path) in rows[1][2]
    assert rows[2][1] == size(least.needed)
    for settings, count in (
        ({"held_out_rewards": ("brightness",)}, 6),
        ({"held_out_rewards": ("brightness",), "best_checkpoints": 3}, 10),
        ({"held_out_rewards": ("brightness",), "best_checkpoints": 0}, 3),
        ({"best_checkpoints": 3}, 3),
        ({"best_checkpoints": 3, "best_metric": "reward", "alarms": None}, 10),
        ({"held_out_rewards": ("brightness",), "alarms": None}, 3),
        ({"best_checkpoints": 99, "best_metric": "reward"}, 27),
    ):
        assert provision.checkpoints(replace(asked.run, **settings), 25) == count


def test_it_is_said_before_the_model_is_loaded(
    asked: config.Resolved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(*_: Any) -> None:
        raise ValueError("now it would be fetched")

    monkeypatch.setattr(preparation, "load_policy", loads)
    ran = runs.call(*runs.words(tmp_path / "run", "--dry-run"))
    assert ran.code == 2 and "now it would be fetched" in ran.err
    assert "Before the model is loaded" in ran.out and "download  1.50 GiB" in ran.out and "Plan" not in ran.out

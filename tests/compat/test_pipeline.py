"""What a model's name stands for: itself, a LoRA beside it, or the model that a pushed LoRA was made for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import runs
from tastemaker.compat import pipeline
from tastemaker.compat.pipeline import LORA, Named
from tastemaker.compat.pipeline import DefaultDDPOStableDiffusionPipeline as Pipeline


def test_a_name_alone_is_a_model() -> None:
    made = Pipeline("shapes", pretrained_model_revision="v2")
    assert made.found == Named("shapes", None, None)  # a folder has no revisions
    assert made.use_lora and not Pipeline("shapes", use_lora=False).use_lora
    assert (made.pretrained_model, made.pretrained_revision, made.opened) == ("shapes", "v2", False)


def test_a_lora_beside_the_model_is_found(tmp_path: Path) -> None:
    shutil.copytree(runs.model(), tmp_path / "both")
    (tmp_path / "both" / LORA).write_bytes(b"")
    made = Pipeline(str(tmp_path / "both"), use_lora=False)
    assert made.found == Named(str(tmp_path / "both"), None, tmp_path / "both" / LORA) and made.use_lora


def test_a_lora_alone_names_its_model_in_its_config(tmp_path: Path) -> None:
    """As `push_to_hub` leaves it, and as it is fetched from there."""
    (tmp_path / LORA).write_bytes(b"")
    (tmp_path / "config.yaml").write_text("model: shapes\nrevision: null\nlora: {rank: 4}\n")
    assert Pipeline(str(tmp_path)).found == Named("shapes", None, tmp_path / LORA)


def test_on_the_hub_the_small_files_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str], str | None]] = []

    def fetch(model: str, patterns: list[str], revision: str | None) -> Path:
        asked.append((model, patterns, revision))
        if model == "no/network":
            raise OSError("offline")
        return tmp_path

    monkeypatch.setattr(pipeline, "fetch", fetch)
    (tmp_path / LORA).write_bytes(b"")
    (tmp_path / "model_index.json").write_text("{}")
    assert Pipeline("some/model", pretrained_model_revision="v1").found == Named("some/model", "v1", tmp_path / LORA)
    assert Pipeline("no/network").found == Named("no/network", None, None)  # loading it says why
    assert [(model, revision) for model, _, revision in asked] == [("some/model", "v1"), ("no/network", None)]
    assert not any(pattern.startswith("unet") for pattern in asked[0][1])
    assert Pipeline("jane/files-v1.5").found == Named("jane/files-v1.5", None, tmp_path / LORA)  # a dot is no suffix
    asked.clear()
    one = tmp_path / "model.safetensors"
    one.write_bytes(b"")
    assert Pipeline(str(one)).found == Named(str(one), None, None) and asked == []
    with pytest.raises(ValueError, match="--model lost.safetensors: there is no such file"):
        _ = Pipeline("lost.safetensors").found


def test_other_attributes_say_why_they_are_missing(tmp_path: Path) -> None:
    made = Pipeline(runs.model())
    with pytest.raises(AttributeError, match="'rgb_with_grad': it belongs to TRL's training loop"):
        _ = made.rgb_with_grad
    with pytest.raises(AttributeError, match="no attribute 'transformer'$"):
        _ = made.transformer
    with pytest.raises(ValueError, match="nothing has been trained with this pipeline"):
        made.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists() and not made.opened
    made.set_progress_bar_config(disable=True)
    assert made.tokenizer is made.sd_pipeline.tokenizer and made.opened
    assert made.sd_pipeline._progress_bar_config == {"disable": True}

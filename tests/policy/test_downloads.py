"""What would be fetched of a model of the hub: what diffusers chooses, how large it is, and what is here already."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
from diffusers import StableDiffusionPipeline
from diffusers.pipelines import pipeline_utils
from huggingface_hub.utils import filter_repo_objects

import fake_hub
from tastemaker.policy import pipelines
from tastemaker.policy.downloads import chosen, downloads
from tastemaker.policy.load import Files, quiet

MODEL = "owner/name"
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.40.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
# As repositories of Stable Diffusion are: pickles, other precisions, other programs' files beside what is read.
PLACES = """
    README.md v1-5-pruned.safetensors v1-5-pruned-emaonly.ckpt model_index.json
    feature_extractor/preprocessor_config.json
    safety_checker/config.json safety_checker/model.safetensors safety_checker/pytorch_model.bin
    scheduler/scheduler_config.json
    text_encoder/config.json text_encoder/model.safetensors text_encoder/model.fp16.safetensors
    text_encoder/pytorch_model.bin
    tokenizer/merges.txt tokenizer/special_tokens_map.json tokenizer/tokenizer_config.json tokenizer/vocab.json
    unet/config.json unet/diffusion_pytorch_model-00001-of-00002.safetensors unet/diffusion_pytorch_model.bin
    unet/diffusion_pytorch_model-00002-of-00002.safetensors unet/diffusion_pytorch_model.safetensors.index.json
    unet/diffusion_pytorch_model.fp16.safetensors unet/diffusion_pytorch_model.non_ema.safetensors
    vae/config.json vae/diffusion_pytorch_model.safetensors vae/diffusion_pytorch_model.bin
""".split()


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_what_is_chosen_is_what_diffusers_fetches(
    variant: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    listing = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in PLACES])
    (tmp_path / "model_index.json").write_text(json.dumps(INDEX))

    def fetch(*_: object, **settings: Any) -> None:
        asked.update(settings)
        raise RuntimeError("far enough")

    monkeypatch.setattr(pipeline_utils, "model_info", lambda *_, **__: listing)
    monkeypatch.setattr(pipeline_utils, "hf_hub_download", lambda *_, **__: str(tmp_path / "model_index.json"))
    monkeypatch.setattr(pipeline_utils, "snapshot_download", fetch)
    with quiet(), pytest.raises(RuntimeError, match="far enough"):
        StableDiffusionPipeline.download(MODEL, variant=variant, use_safetensors=True, **pipelines.UNCHECKED)
    patterns = {"allow_patterns": asked["allow_patterns"], "ignore_patterns": asked["ignore_patterns"]}
    expected = set(filter_repo_objects(PLACES, **patterns))
    files = Files(MODEL, MODEL, INDEX, variant=variant)
    assert chosen(PLACES, pipelines.parts(files), variant) == expected
    assert len(expected) == 14 - 2 * (variant == "fp16")


def test_a_hub_that_answers_no_more_costs_the_list_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: Any, **settings: Any) -> None:
        assert settings["timeout"] == 10
        raise OSError("too late")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", late)
    assert downloads(Files("owner/name", "owner/name", {})) == []


def test_sizes_come_from_the_hub_and_what_is_here_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    files = Files(MODEL, MODEL, INDEX, variant="fp16")
    with fake_hub.running(monkeypatch) as hub:
        hub.holds[MODEL] = {name: 10 + len(name) for name in PLACES}
        found = downloads(files)
        assert {one.name: one.size for one in found} == {
            name: 10 + len(name) for name in chosen(PLACES, pipelines.parts(files), "fp16")
        }
        assert not any(one.here for one in found)
        place = tmp_path / "models--owner--name" / "snapshots" / ("0" * 40) / "vae" / "config.json"
        place.parent.mkdir(parents=True)
        place.write_text("{}")
        assert [one.name for one in downloads(files) if one.here] == ["vae/config.json"]
        assert not [line for line in hub.asked if "/resolve/" in line]  # nothing was fetched
        assert downloads(files._replace(cached=True)) == downloads(Files("m", str(tmp_path), INDEX)) == []

"""Stable Diffusion 2.x on tiny random models in its own layout: another text encoder, heads by width, v at 768."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from full_size import UNET_21

import family_runs
import tiny
from family_runs import noise, ours, same, theirs
from policy.test_sdxl import layers
from tastemaker.metering import text_weights
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load, quiet
from thinning import slow_but

SMALLER = {
    "attention_head_dim": [1, 2, 4, 4],
    "block_out_channels": [4, 8, 16, 16],
    "cross_attention_dim": tiny.WIDTH,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "sample_size": tiny.SIDE,
}
TEXT = """{"architectures": ["CLIPTextModel"], "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096,
"max_position_embeddings": 77, "num_attention_heads": 16, "num_hidden_layers": 23, "projection_dim": 512,
"vocab_size": 49408}"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a v-model."""
    return str(
        tiny.save(
            tmp_path_factory.mktemp("sd2") / "v",
            prediction_type="v_prediction",
            unet=UNET_21 | SMALLER,
            text={"hidden_act": "gelu", "num_hidden_layers": 2, "projection_dim": 8},
        )
    )


def plain(folder: str) -> Any:
    with quiet():
        pipeline = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(("guidance", "negative", "size"), [(1.0, "", {}), (5.0, "fog", {"height": 18, "width": 10})])
def test_the_chain_is_the_pipelines(model: str, guidance: float, negative: str, size: dict[str, int]) -> None:
    """Of latents 9 x 5 too, which the UNet halves three times."""
    policy = load(model, lora=LoRA(), **size)
    x, pipeline = noise(policy), plain(model)
    wanted = theirs(pipeline, x, 4, guidance, negative)
    assert same(ours(policy, x, 4, guidance, negative), wanted) and not same(wanted, x)
    assert pipeline.text_encoder.config.hidden_act == "gelu" and pipeline.unet.config.use_linear_projection


# The code is that of Stable Diffusion 1.x, whose runs are elsewhere.
@pytest.mark.parametrize("name", slow_but(family_runs.ALGORITHMS, {"draft"}))
def test_a_run_learns_and_its_pictures_are_diffusers(model: str, tmp_path: Path, name: str) -> None:
    family_runs.diffusers_draws_what_was_learned(model, name, tmp_path / "run", plain(model))


def test_the_tiny_models_tensors_are_called_as_those_of_the_real_one(model: str) -> None:
    with torch.device("meta"):
        real = UNet2DConditionModel.from_config(UNET_21)
    assert sum(p.numel() for p in real.parameters()) == 865_910_724
    assert text_weights(TEXT) == 340_387_840
    assert layers(load(model, lora=None).pipeline().unet) == layers(real)

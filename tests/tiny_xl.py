"""A tiny Stable Diffusion XL with random weights, in the exact layout that diffusers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from full_size import UNET_XL
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import tiny
from tastemaker.policy.load import quiet

SIDE = 8  # of a latent; a picture has twice that
WIDTHS = (8, 12)  # of the two text encoders
NUMBERS = 8  # that each number about the picture's size becomes

SMALLER = {
    "addition_time_embed_dim": NUMBERS,
    "attention_head_dim": [1, 2, 4],
    "block_out_channels": [4, 8, 16],
    "cross_attention_dim": sum(WIDTHS),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "projection_class_embeddings_input_dim": 6 * NUMBERS + WIDTHS[1],
    "sample_size": SIDE,
    "transformer_layers_per_block": [1, 1, 2],
}


def save(
    folder: Path,
    *,
    force_zeros: bool = True,
    prediction_type: str = "epsilon",
    vae: dict[str, Any] | None = None,
    scheduler: dict[str, Any] | None = None,
    unet: dict[str, Any] | None = None,
) -> Path:
    """Write the pipeline and return its folder; the last three are laid over the configs of its parts."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        words = tiny.words()
        quick, exact = ({"hidden_act": kind} for kind in ("quick_gelu", "gelu"))
        betas = tiny.BETAS | {"prediction_type": prediction_type, "timestep_spacing": "leading"}
        pipeline = StableDiffusionXLPipeline(
            vae=tiny.autoencoder({"scaling_factor": 0.13025, "force_upcast": True} | (vae or {})),
            text_encoder=CLIPTextModel(tiny.clip(words, WIDTHS[0], quick)),
            text_encoder_2=CLIPTextModelWithProjection(tiny.clip(words, WIDTHS[1], exact)),
            tokenizer=words,
            tokenizer_2=words,
            unet=UNet2DConditionModel.from_config(UNET_XL | SMALLER | (unet or {})),
            scheduler=EulerDiscreteScheduler.from_config(betas | (scheduler or {})),
            force_zeros_for_empty_prompt=force_zeros,
            add_watermarker=False,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder

"""A tiny Stable Diffusion XL with random weights, in the exact layout that diffusers loads; and the real configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import tiny
from tastemaker.policy.load import quiet

SIDE = 8  # of a latent; a picture has twice that
WIDTHS = (8, 12)  # of the two text encoders
NUMBERS = 8  # that each number about the picture's size becomes

# stabilityai/stable-diffusion-xl-base-1.0, as published.
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "latent_channels": 4,
    "layers_per_block": 2,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 77,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
}
TEXT_2: dict[str, Any] = {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "max_position_embeddings": 77,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
    "vocab_size": 49408,
}
REAL = {"unet": UNET, "vae": VAE, "text_encoder": TEXT, "text_encoder_2": TEXT_2}

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
            unet=UNet2DConditionModel.from_config(UNET | SMALLER | (unet or {})),
            scheduler=EulerDiscreteScheduler.from_config(betas | (scheduler or {})),
            force_zeros_for_empty_prompt=force_zeros,
            add_watermarker=False,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder

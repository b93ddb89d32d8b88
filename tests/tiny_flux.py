"""A tiny FLUX.1 with random weights, saved in the exact layout that diffusers loads: for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel

from tastemaker.policy.load import quiet
from tiny_flow import JOINT, clip, clip_words, t5_encoder, t5_words, vae

CLIP_WIDTH = 8
# As published; the shift of dev goes by the picture's size, and a few patches are few.
SCHEDULERS: dict[str, dict[str, Any]] = {
    "dev": {
        "shift": 3.0,
        "use_dynamic_shifting": True,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "base_shift": 0.5,
        "max_shift": 1.15,
    },
    "schnell": {"shift": 1.0, "use_dynamic_shifting": False},
}


def save(
    folder: Path,
    kind: str = "dev",
    *,
    scheduler: dict[str, Any] | None = None,
    transformer: dict[str, Any] | None = None,
) -> Path:
    """Write the pipeline and return its folder; kind: dev or schnell; the others are laid over their configs."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        words = clip_words()
        pipeline = FluxPipeline(
            transformer=_transformer({"guidance_embeds": kind == "dev"} | (transformer or {})),
            scheduler=FlowMatchEulerDiscreteScheduler(**(SCHEDULERS[kind] | (scheduler or {}))),
            vae=vae(),
            text_encoder=clip(CLIPTextModel, words, CLIP_WIDTH),
            tokenizer=words,
            text_encoder_2=t5_encoder(),
            tokenizer_2=t5_words(),
        )
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _transformer(config: dict[str, Any]) -> FluxTransformer2DModel:
    settings: dict[str, Any] = {
        "patch_size": 1,
        "in_channels": 16,  # 2x2 latents of 4 channels
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": JOINT,
        "pooled_projection_dim": CLIP_WIDTH,
        "axes_dims_rope": (4, 6, 6),
    }
    return FluxTransformer2DModel(**(settings | config))

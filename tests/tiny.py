"""A tiny Stable Diffusion with random weights, saved in the exact layout that diffusers loads: for tests of loading."""

import string
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tastemaker.policy.load import quiet

TOKENS = 16
SIDE = 8  # of a latent; a picture has twice that
WIDTH = 16
BETAS: dict[str, object] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def save(
    folder: Path,
    *,
    prediction_type: str = "epsilon",
    latent_channels: int = 4,
    seed: int = 0,
    vae: dict[str, object] | None = None,
    scheduler: dict[str, object] | None = None,
    unet: dict[str, object] | None = None,
    text: dict[str, object] | None = None,
) -> Path:
    """Write the pipeline and return its folder; the last four are laid over the configs of its parts."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        tokenizer = words()
        pipeline = StableDiffusionPipeline(
            vae=autoencoder({"latent_channels": latent_channels} | (vae or {})),
            text_encoder=CLIPTextModel(clip(tokenizer, WIDTH, {"num_hidden_layers": 1} | (text or {}))),
            tokenizer=tokenizer,
            unet=_unet(latent_channels, unet or {}),
            scheduler=DDIMScheduler.from_config(BETAS | {"prediction_type": prediction_type} | (scheduler or {})),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _unet(channels: int, config: dict[str, object]) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_config(
        {
            "sample_size": SIDE,
            "in_channels": channels,
            "out_channels": channels,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": WIDTH,
            "attention_head_dim": 4,
            "norm_num_groups": 4,
        }
        | config
    )


def autoencoder(config: dict[str, object]) -> AutoencoderKL:
    return AutoencoderKL.from_config(
        {
            "block_out_channels": (8, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 4,
            "sample_size": 2 * SIDE,
        }
        | config
    )


def words() -> CLIPTokenizer:
    """One token a letter or digit: prompts longer than 14 of them are cut off."""
    characters = string.ascii_lowercase + string.digits
    tokens = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: n for n, t in enumerate(tokens)}, merges=[], model_max_length=TOKENS)


def clip(tokenizer: CLIPTokenizer, width: int, config: dict[str, object]) -> CLIPTextConfig:
    """Of a text encoder of two layers."""
    settings: dict[str, object] = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "projection_dim": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextConfig(**(settings | config))

"""The networks of the built-in model, in diffusers' own classes: a small but real `StableDiffusionPipeline`."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tastemaker.shapes.captions import everything
from tastemaker.shapes.drawing import SIZE

LATENT_CHANNELS = 16
FACTOR = 8
LATENT_SHAPE = (LATENT_CHANNELS, SIZE // FACTOR, SIZE // FACTOR)
TEXT_WIDTH = 64
TEXT_LENGTH = 8


def autoencoder() -> AutoencoderKL:
    """64x64 pictures to 8x8 latents of 16 channels; `shift_factor` 0 so that a flow pipeline can share it."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 48, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=1.0,
        shift_factor=0.0,
        force_upcast=False,
    )


def unet() -> UNet2DConditionModel:
    """The noise predictor: two levels with cross-attention, 8x8 and 4x4."""
    return UNet2DConditionModel(
        sample_size=SIZE // FACTOR,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH,
    )


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers over at most eight tokens; trained together with the network."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Write `vocab.json` and `merges.txt` into the folder, then load and save the tokenizer beside them.

    Every word of a caption is one token: its letters and the merges that join them, left to right. Unknown words
    fall apart into letters, so any text can be encoded.
    """
    words = sorted({word for text in everything() for word in text.split()})
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    tokens = [
        *letters,
        *(f"{c}</w>" for c in letters),
        *dict.fromkeys(a + b for word in words for a, b in _joins(word)),
    ]
    # Longer words' merges come first, or "red" would join the middle of "three" and leave it in pieces.
    merges = list(dict.fromkeys(pair for word in sorted(words, key=len, reverse=True) for pair in _joins(word)))
    vocabulary = {token: k for k, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n", encoding="utf-8")
    made = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_LENGTH)
    made.save_pretrained(folder)
    return made


def _joins(word: str) -> list[tuple[str, str]]:
    """The merges that make one token of a word, letter by letter."""
    parts = [*word[:-1], f"{word[-1]}</w>"]
    return [("".join(parts[:k]), parts[k]) for k in range(1, len(parts))]


def scheduler(**settings: Any) -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **settings,
    )


def pipeline(vae: AutoencoderKL, net: UNet2DConditionModel, text: CLIPTextModel, words: CLIPTokenizer) -> Any:
    """All parts as one pipeline that `save_pretrained` writes in diffusers' layout."""
    return StableDiffusionPipeline(
        vae=vae,
        unet=net,
        text_encoder=text,
        tokenizer=words,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def to_pixels(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 `[B,64,64,3]` to float `[B,3,64,64]` in [-1, 1], channels last."""
    return (pictures.permute(0, 3, 1, 2).float() / 127.5 - 1).to(memory_format=torch.channels_last)

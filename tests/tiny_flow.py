"""A tiny Stable Diffusion 3 with random weights, saved in the exact layout that diffusers loads: for tests."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tastemaker.policy.load import quiet

TOKENS = 12
SIDE = 8  # of a latent; a picture has twice that
MOST = 6  # patches along the longest side
WIDTHS = (8, 12)  # of the two CLIPs
JOINT = 24  # of what the transformer reads: T5's width


def save(
    folder: Path,
    *,
    t5: bool = False,
    seed: int = 0,
    scheduler: dict[str, Any] | None = None,
    transformer: dict[str, Any] | None = None,
) -> Path:
    """Write the pipeline and return its folder; `scheduler` and `transformer` are laid over their configs."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        words = clip_words()
        first, second = (clip(CLIPTextModelWithProjection, words, width) for width in WIDTHS)
        pipeline = StableDiffusion3Pipeline(
            transformer=_transformer(transformer or {}),
            scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | (scheduler or {}))),
            vae=vae(),
            text_encoder=first,
            tokenizer=words,
            text_encoder_2=second,
            tokenizer_2=words,
            text_encoder_3=t5_encoder() if t5 else None,
            tokenizer_3=t5_words() if t5 else None,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _transformer(config: dict[str, Any]) -> SD3Transformer2DModel:
    settings: dict[str, Any] = {
        "sample_size": SIDE,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": JOINT,
        "caption_projection_dim": 16,
        "pooled_projection_dim": sum(WIDTHS),
        "pos_embed_max_size": MOST,
        "qk_norm": "rms_norm",
    }
    return SD3Transformer2DModel(**(settings | config))


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=2 * SIDE,
        scaling_factor=1.5,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


def clip_words() -> CLIPTokenizer:
    """One token a letter or digit: prompts longer than 10 of them are cut off."""
    characters = string.ascii_lowercase + string.digits
    tokens = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: n for n, t in enumerate(tokens)}, merges=[], model_max_length=TOKENS)


def clip(kind: Any, words: CLIPTokenizer, width: int) -> Any:
    """A text encoder of that class of transformers."""
    return kind(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )


def t5_words() -> T5Tokenizer:
    """One token a letter."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase]
    return T5Tokenizer(vocab=[(piece, -1.0 * k) for k, piece in enumerate(pieces)], extra_ids=0)


def t5_encoder() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=32, d_model=JOINT, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
        )
    )

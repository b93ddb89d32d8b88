"""The second built-in model, `shapes-flow`: a small but real `StableDiffusion3Pipeline`.

It shares the autoencoder, the tokenizer and the world of `shapes`, and has a transformer and text encoders of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from tastemaker.shapes import models

WIDTHS = (64, 32)  # of the two text encoders
TEXT_WIDTH = sum(WIDTHS)
SHIFT = 1.0


def transformer() -> SD3Transformer2DModel:
    """Six joint blocks of width 120 over the 64 places of an 8x8 latent."""
    network = SD3Transformer2DModel(
        sample_size=models.LATENT_SHAPE[1],
        patch_size=1,
        in_channels=models.LATENT_CHANNELS,
        out_channels=models.LATENT_CHANNELS,
        num_layers=6,
        attention_head_dim=24,
        num_attention_heads=5,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=120,
        pooled_projection_dim=TEXT_WIDTH,
        pos_embed_max_size=models.LATENT_SHAPE[1],
        qk_norm="rms_norm",
    )
    for name, weight in network.named_parameters():  # every block begins as the identity, and the answer as 0
        if any(part in name for part in ("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")):
            nn.init.zeros_(weight)
    return network


def text_encoders(words: CLIPTokenizer) -> list[CLIPTextModelWithProjection]:
    """Of three and two layers; SD3 reads the last but one of each, and the projection of the end token."""
    made = []
    for width, layers in zip(WIDTHS, (3, 2), strict=True):
        config = CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=models.TEXT_LENGTH,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
        made.append(CLIPTextModelWithProjection(config))
    return made


def pipeline(vae: AutoencoderKL | None, net: SD3Transformer2DModel, texts: list[Any], words: CLIPTokenizer) -> Any:
    """All parts as one pipeline; without T5, and on request without the autoencoder, which is that of `shapes`."""
    return StableDiffusion3Pipeline(
        transformer=net,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=texts[0],
        tokenizer=words,
        text_encoder_2=texts[1],
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def read(texts: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """As the pipeline reads token ids [B,8]: context [B,9,96], its last token the padding's, and pooled [B,96]."""
    found = [encoder(tokens, output_hidden_states=True) for encoder in texts]
    context = torch.cat([each.hidden_states[-2] for each in found], dim=-1)
    pooled = torch.cat([each.text_embeds for each in found], dim=-1)
    return torch.cat([context, context.new_zeros(len(tokens), 1, TEXT_WIDTH)], dim=1), pooled

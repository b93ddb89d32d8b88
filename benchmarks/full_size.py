"""The configurations of full-size models, as their owners publish them: as much as decides memory. No weights."""

from __future__ import annotations

from typing import Any, NamedTuple

Config = dict[str, Any]


class Model(NamedTuple):
    """A model by its parts; `numbers` are the published parameters of its network, in billions."""

    hub_id: str
    pixels: tuple[int, ...]  # sides that are tabled
    numbers: float
    parts: dict[str, Config]


def clip(width: int, layers: int, heads: int, kind: str = "CLIPTextModel") -> Config:
    return {
        "architectures": [kind],
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": width,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
    }


PROJECTED = "CLIPTextModelWithProjection"
SMALL, LARGE = (768, 12, 12), (1280, 32, 20)  # CLIP ViT-L/14 and OpenCLIP ViT-bigG/14
T5 = {
    "architectures": ["T5EncoderModel"],
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}


def vae(channels: int, side: int, **more: Any) -> Config:
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": channels,
        "sample_size": side,
        **more,
    }


UNQUANTISED = {"use_quant_conv": False, "use_post_quant_conv": False, "force_upcast": True}
UNET_1 = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
UNET_21 = UNET_1 | {
    "sample_size": 96,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "upcast_attention": True,
}
UNET_XL = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
JOINT = {  # Stable Diffusion 3 medium
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
MEDIUM_35 = {"dual_attention_layers": list(range(13)), "pos_embed_max_size": 384, "qk_norm": "rms_norm"}
LARGE_35 = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"}
FLUX = {
    "_class_name": "FluxTransformer2DModel",
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
MODELS = {
    "sd1.5": Model(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        (512,),
        0.860,
        {"unet": UNET_1, "vae": vae(4, 512), "text_encoder": clip(*SMALL)},
    ),
    "sdxl": Model(
        "stabilityai/stable-diffusion-xl-base-1.0",
        (1024,),
        2.57,
        {
            "unet": UNET_XL,
            "vae": vae(4, 1024, force_upcast=True),
            "text_encoder": clip(*SMALL),
            "text_encoder_2": clip(*LARGE, PROJECTED),
        },
    ),
    "sd3.5-medium": Model(
        "stabilityai/stable-diffusion-3.5-medium",
        (512, 1024),
        2.5,
        {
            "transformer": JOINT | MEDIUM_35,
            "vae": vae(16, 1024, **UNQUANTISED),
            "text_encoder": clip(*SMALL, PROJECTED),
            "text_encoder_2": clip(*LARGE, PROJECTED),
            "text_encoder_3": T5,
        },
    ),
    "flux-dev": Model(
        "black-forest-labs/FLUX.1-dev",
        (512, 1024),
        11.9,
        {
            "transformer": FLUX,
            "vae": vae(16, 1024, **UNQUANTISED),
            "text_encoder": clip(*SMALL),
            "text_encoder_2": T5,
        },
    ),
}

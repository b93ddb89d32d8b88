"""A pipeline in diffusers layout as one .safetensors file with the names and shapes of the original code (CompVis).

Written from that code's names, against the direction in which diffusers converts: blocks are numbered through, the
VAE's attention is a convolution, OpenCLIP's three projections are one matrix. What training left in such files, and no
program needs, is in there too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from tastemaker.policy.load import quiet

UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
OPEN_CLIP = "cond_stage_model.model."
XL_CLIP, XL_OPEN_CLIP = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."


def save(folder: Path, file: Path, *, open_clip: bool = False, notes: dict[str, str] | None = None) -> Path:
    """The pipeline of the folder as one file, of XL, 1.x or, with `open_clip`, 2.x; notes are its metadata."""
    with quiet():
        pipeline = DiffusionPipeline.from_pretrained(folder)
    tensors = {f"{UNET}{name}": tensor for name, tensor in _unet(pipeline.unet)}
    tensors |= {f"{VAE}{name}": tensor for name, tensor in _vae(pipeline.vae)}
    if hasattr(pipeline, "text_encoder_2"):
        tensors |= dict(_clip(pipeline.text_encoder, XL_CLIP)) | dict(_open_clip(pipeline.text_encoder_2, XL_OPEN_CLIP))
    else:
        first = pipeline.text_encoder
        tensors |= dict(_open_clip(first, OPEN_CLIP) if open_clip else _clip(first, CLIP))
    tensors |= {"alphas_cumprod": pipeline.scheduler.alphas_cumprod, "betas": pipeline.scheduler.betas}
    tensors |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, file, metadata=notes)
    return file


def _renamed(network: Any, names: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module, the beginnings of their names replaced."""
    for name, tensor in network.state_dict().items():
        own = next((old for old in names if name.startswith(f"{old}.")), None)
        if own is None:
            yield name, tensor
        else:
            yield names[own] + name[len(own) :], tensor


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _unet(unet: Any) -> Iterator[tuple[str, Tensor]]:
    around = {
        "time_embed.0": unet.time_embedding.linear_1,
        "time_embed.2": unet.time_embedding.linear_2,
        "input_blocks.0.0": unet.conv_in,
        "out.0": unet.conv_norm_out,
        "out.2": unet.conv_out,
        "middle_block.1": unet.mid_block.attentions[0],
    }
    if unet.config.addition_embed_type:
        around |= {"label_emb.0.0": unet.add_embedding.linear_1, "label_emb.0.2": unet.add_embedding.linear_2}
    resnets = {"middle_block.0": unet.mid_block.resnets[0], "middle_block.2": unet.mid_block.resnets[1]}
    place = 1
    for block in unet.down_blocks:
        for layer, resnet in enumerate(block.resnets):
            resnets[f"input_blocks.{place}.0"] = resnet
            if hasattr(block, "attentions"):
                around[f"input_blocks.{place}.1"] = block.attentions[layer]
            place += 1
        for sampler in block.downsamplers or ():
            around[f"input_blocks.{place}.0.op"] = sampler.conv
            place += 1
    place = 0
    for block in unet.up_blocks:
        for layer, resnet in enumerate(block.resnets):
            resnets[f"output_blocks.{place}.0"] = resnet
            attends = hasattr(block, "attentions")
            if attends:
                around[f"output_blocks.{place}.1"] = block.attentions[layer]
            if block.upsamplers and layer == len(block.resnets) - 1:
                around[f"output_blocks.{place}.{1 + attends}.conv"] = block.upsamplers[0].conv
            place += 1
    for where, part in around.items():
        yield from ((f"{where}.{name}", tensor) for name, tensor in part.state_dict().items())
    for where, part in resnets.items():
        yield from ((f"{where}.{name}", tensor) for name, tensor in _renamed(part, RESNET))


ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _vae(vae: Any) -> Iterator[tuple[str, Tensor]]:
    for name in ("quant_conv", "post_quant_conv"):
        yield from ((f"{name}.{rest}", tensor) for rest, tensor in getattr(vae, name).state_dict().items())
    for side, coder in (("encoder", vae.encoder), ("decoder", vae.decoder)):
        parts = {"conv_in": coder.conv_in, "conv_out": coder.conv_out, "norm_out": coder.conv_norm_out}
        parts |= {f"mid.block_{k + 1}": resnet for k, resnet in enumerate(coder.mid_block.resnets)}
        blocks = coder.down_blocks if side == "encoder" else list(reversed(coder.up_blocks))
        way, samplers, sample = (
            ("down", "downsamplers", "downsample")
            if side == "encoder"
            else (
                "up",
                "upsamplers",
                "upsample",
            )
        )
        for k, block in enumerate(blocks):
            parts |= {f"{way}.{k}.block.{layer}": resnet for layer, resnet in enumerate(block.resnets)}
            for sampler in getattr(block, samplers) or ():
                parts[f"{way}.{k}.{sample}.conv"] = sampler.conv
        for where, part in parts.items():
            for name, tensor in _renamed(part, {"conv_shortcut": "nin_shortcut"}):
                yield f"{side}.{where}.{name}", tensor
        for name, tensor in _renamed(coder.mid_block.attentions[0], ATTENTION):
            yield f"{side}.mid.attn_1.{name}", tensor[:, :, None, None] if tensor.ndim == 2 else tensor


def _clip(encoder: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in encoder.state_dict().items():
        yield place + name.removeprefix("text_model."), tensor
    length = encoder.config.max_position_embeddings
    yield f"{place}embeddings.position_ids", torch.arange(length)[None]


def _open_clip(encoder: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    """Attention's q, k and v in one; the projection that the text encoder of 2.x never uses is there."""
    states = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    yield f"{place}token_embedding.weight", states["embeddings.token_embedding.weight"]
    yield f"{place}positional_embedding", states["embeddings.position_embedding.weight"]
    yield f"{place}text_projection", states.get("text_projection.weight", torch.eye(encoder.config.hidden_size)).T
    for end in ("weight", "bias"):
        yield f"{place}ln_final.{end}", states[f"final_layer_norm.{end}"]
        for layer in range(encoder.config.num_hidden_layers):
            old, new = f"encoder.layers.{layer}.", f"{place}transformer.resblocks.{layer}."
            projections = [states[f"{old}self_attn.{which}_proj.{end}"] for which in "qkv"]
            yield f"{new}attn.in_proj_{end}", torch.cat(projections)
            yield f"{new}attn.out_proj.{end}", states[f"{old}self_attn.out_proj.{end}"]
            names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
            for theirs, ours in names.items():
                yield f"{new}{theirs}.{end}", states[f"{old}{ours}.{end}"]

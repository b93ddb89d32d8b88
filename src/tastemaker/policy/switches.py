"""What saves memory or time without another model: kernels, compilation, tiles, bits. Refused where it cannot work.

Kernels: `set_attention_backend` of diffusers; compilation: its `compile_repeated_blocks`; tiles: its `enable_tiling`;
bits: bitsandbytes through its quantisation config (LLM.int8, arXiv:2208.07339; NF4, arXiv:2305.14314).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend, dispatch_attention_fn
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, JointAttnProcessor2_0
from torch import Tensor, nn

from tastemaker.policy.attention import Crossing
from tastemaker.policy.load import TILE, Request, half, quiet
from tastemaker.policy.padding import WeighedPadding

DISPATCHING = {AttnProcessor2_0: Crossing, JointAttnProcessor2_0: WeighedPadding}
"""Processors that do not ask diffusers for a kernel -> the same attention that does."""

GRAPHS = 64  # of one block that torch.compile keeps

COMPILERS = {"cuda": ("CC", ("gcc", "cc", "clang")), "cpu": ("CXX", ("g++", "c++", "clang++"))}
"""What torch.compile calls: the variable that names it, else the first of these programs."""


def check(request: Request) -> None:
    """What can be told before the weights are read. Errors: ValueError that names the flag."""
    check_kernel(request, masked=False)
    if request.compile:
        _check_compiler(request.device.type)
    if request.quantise is not None:
        _check_bits(request)


def check_kernel(request: Request, *, masked: bool) -> None:
    """One small attention by the kernel, both ways, on the device and in the precision of the run."""
    name = request.attention_backend
    if name is None:
        return
    known = [one.value for one in AttentionBackendName]
    if name not in known:
        raise ValueError(f"--attention_backend is {name!r}; the diffusers that is installed has {', '.join(known)}.")
    dtype = half(request.mixed_precision) or torch.float32
    rows = [torch.ones(1, 8, 1, 64, device=request.device, dtype=dtype, requires_grad=True) for _ in "qkv"]
    mask = torch.zeros(1, 1, 1, 8, device=request.device, dtype=dtype) if masked else None
    try:
        with quiet(), attention_backend(name), torch.enable_grad():
            mixed: Tensor = dispatch_attention_fn(*rows, attn_mask=mask)
            mixed.sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever a kernel of another package raises; its message is the reason
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"--attention_backend {name} does not work on {request.device} in {str(dtype).split('.')[1]}: {reason} "
            "Leave it out for torch's own choice."
        ) from error


def _check_compiler(kind: str) -> None:
    variable, programs = COMPILERS.get(kind, COMPILERS["cpu"])
    named = os.environ.get(variable)
    if not any(map(shutil.which, [named] if named else programs)):
        raise ValueError(
            f"--compile needs a compiler, and none is found ({named or ', '.join(programs)}): install one "
            f"(Debian, Ubuntu: apt-get install build-essential), name yours in {variable}, or leave --compile out."
        )
    if kind == "cuda" and importlib.util.find_spec("triton") is None:
        raise ValueError("--compile on a GPU needs Triton, which is not installed here: pip install triton")


def _check_bits(request: Request) -> None:
    asked = f"--quantise {request.quantise}"
    if request.lora is None:
        raise ValueError(f"{asked} is for a frozen network, and without LoRA all of it is trained: leave one out.")
    if request.device.type == "cpu":
        raise ValueError(f"{asked} does not work on a CPU: its kernels are for GPUs. Leave it out.")
    if request.files.single:
        raise ValueError(f"{asked} does not work on a model in one file: give a folder or a hub id as --model.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f'{asked} needs bitsandbytes, which is not installed here: pip install "tastemaker[memory]"')


def bits(request: Request, component: str) -> PipelineQuantizationConfig | None:
    """What `from_pretrained` is told of the network's linear layers; None where they stay as they are."""
    if request.quantise is None:
        return None
    dtype = half(request.mixed_precision) or torch.float32
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    config = BitsAndBytesConfig(**(four if request.quantise == "4bit" else {"load_in_8bit": True}))
    return PipelineQuantizationConfig(quant_mapping={component: config})


def prepare(request: Request, network: Any, vae: Any) -> None:
    """Switches on what was asked for, before an adapter is attached."""
    if request.gradient_checkpointing:
        network.enable_gradient_checkpointing()
        vae.enable_gradient_checkpointing()
    if request.vae_tiling:
        tile(vae)
    if request.attention_backend is not None:
        _use_kernel(network, request.attention_backend)
    if request.compile:
        _compile(network)


def tile(vae: Any) -> None:
    """Decoding and encoding in overlapping tiles of `TILE` pixels; a VAE's own may be as large as its pictures."""
    factor = vae.tile_sample_min_size // vae.tile_latent_min_size
    vae.tile_sample_min_size = min(vae.tile_sample_min_size, TILE)
    vae.tile_latent_min_size = vae.tile_sample_min_size // factor
    vae.enable_tiling()


@contextmanager
def visiting(part: nn.Module, device: torch.device, *, leaves: bool) -> Iterator[None]:
    """The part is on the device inside, and goes back to the CPU afterwards where it `leaves`."""
    part.to(device)
    try:
        yield
    finally:
        if leaves:
            part.to("cpu")


def _use_kernel(network: Any, name: str) -> None:
    for module in network.modules():
        if isinstance(module, Attention) and type(module.processor) in DISPATCHING:
            module.set_processor(DISPATCHING[type(module.processor)]())
    # It sets the kernel of the whole process too, which the reward's networks may share: that is put back.
    with quiet(), attention_backend(AttentionBackendName.NATIVE):
        network.set_attention_backend(name)


def _compile(network: Any) -> None:
    """The blocks that the network repeats: those that diffusers names, else the members of its longest list."""
    if not getattr(network, "_repeated_blocks", None):
        lists = [part for part in network.children() if isinstance(part, nn.ModuleList)]
        network._repeated_blocks = [type(max(lists, key=len)[0]).__name__]
    # Of one block's code there is a graph for each width, with an adapter and without, with a gradient and without, and
    # for few sizes of calls; past torch's limit of 8 the others would run uncompiled.
    from torch._dynamo import config as dynamo  # it takes a second to import

    dynamo.recompile_limit = max(dynamo.recompile_limit, GRAPHS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of parts of torch, to each other
        network.compile_repeated_blocks()

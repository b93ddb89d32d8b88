"""What a policy is held against: itself in fp32, itself without its adapter, and the call of its own pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from tastemaker.policy import switches
from tastemaker.policy.conditioning import TextCache
from tastemaker.policy.latent import LatentPolicy
from tastemaker.policy.load import quiet
from tastemaker.policy.policy import Policy
from tastemaker.policy.sizes import vae_factor
from tastemaker.policy.unet import UNetPolicy

HALF = (torch.float16, torch.bfloat16)
# What a scheduler may have that a chain here does not: noise of its own, and the clipping of pixels.
PLAIN = {"clip_sample": False, "thresholding": False, "stochastic_sampling": False}


@contextmanager
def exact(policy: Policy) -> Iterator[None]:
    """All of the model computes in fp32 inside, with the weights that it has; afterwards as before, bit for bit.

    Texts are encoded anew inside. A quantised network stays as it is.
    """
    own = _latent(policy)
    half, texts, read = own._half, own._texts, own._read_by
    with ExitStack() as stack:
        for part in (own._denoiser, *own._encoders, own._vae):
            stack.enter_context(in_fp32(part))
        own._half, own._texts, own._read_by = None, TextCache(own._encode_texts), {}
        try:
            yield
        finally:
            own._half, own._texts, own._read_by = half, texts, read


@contextmanager
def in_fp32(network: nn.Module) -> Iterator[None]:
    """Halves as fp32 inside, which loses nothing on the way back."""
    halves = [(t, t.dtype) for t in (*network.parameters(), *network.buffers()) if t.dtype in HALF]
    try:
        for tensor, _ in halves:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in halves:
            tensor.data = tensor.data.to(dtype)


@contextmanager
def bare(policy: Policy) -> Iterator[None]:
    """The model with its own layers in the place of those that have an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    own = _latent(policy)
    parts = (own._denoiser, *(encoder.network for encoder in own._trained))
    found = [(one, *pair) for one in parts for pair in one.named_modules() if isinstance(pair[1], BaseTunerLayer)]
    read, own._read_by = own._read_by, {}
    try:
        for part, name, layer in found:
            part.set_submodule(name, layer.get_base_layer())
        yield
    finally:
        for part, name, layer in found:
            part.set_submodule(name, layer)
        own._read_by = read


@torch.no_grad()
def own_chain(
    policy: Policy, prompts: Sequence[str], x: Tensor, *, steps: int, guidance: float, negative: str
) -> Tensor:
    """Where the pipeline's own call ends that begins at the noise x [B,C,h,w]; by `own_scheduler`."""
    own, side = _latent(policy), vae_factor(_latent(policy)._vae)
    pipeline = own.pipeline()
    before, pipeline.scheduler = pipeline.scheduler, own_scheduler(policy)
    pipeline.check_inputs = lambda *_, **__: None  # it wants multiples of 8 pixels, whatever the VAE's factor
    away = {"negative_prompt": [negative] * len(prompts)} if negative else {}
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of texts that are cut off, of which we tell ourselves
            found = pipeline(
                prompt=list(prompts),
                height=x.shape[2] * side,
                width=x.shape[3] * side,
                num_inference_steps=steps,
                guidance_scale=guidance,
                output_type="latent",
                **away,
                **own._asked(x),
            )
    finally:
        pipeline.scheduler = before
        del pipeline.check_inputs
        for part in (*own._visitors, *([own._vae] if own._visits else [])):
            part.to("cpu")
    return own._drawn(found.images, x)


def own_scheduler(policy: Policy) -> Any:
    """diffusers' scheduler with the settings of the model's own, deterministic: DDIM for a UNet, Euler for a flow."""
    own = _latent(policy)._scheduler
    with quiet():
        return type(own).from_config({**own.config, **{key: off for key, off in PLAIN.items() if key in own.config}})


def off_grid(policy: Policy, steps: int) -> bool:
    """Whether diffusers' scheduler steps beside the timesteps of its own grid, which a chain here does not."""
    if not isinstance(policy, UNetPolicy):
        return False
    scheduler = own_scheduler(policy)
    scheduler.set_timesteps(steps)
    stride = scheduler.config.num_train_timesteps // steps
    return any(sooner - stride != later for sooner, later in pairwise(scheduler.timesteps.tolist()))


def spacing(policy: Policy) -> str:
    """How the timesteps of the model's scheduler are spaced, in diffusers' words."""
    return str(_latent(policy)._scheduler.config.get("timestep_spacing"))


@torch.no_grad()
def decoded(policy: Policy, x0: Tensor) -> Tensor:
    """Pictures [B,3,H,W] in [0, 1] by the model's VAE in fp32 and its pipeline's own image processor."""
    own = _latent(policy)
    vae, rows = own._vae, []
    config = vae.config
    with in_fp32(vae), switches.visiting(vae, own.device, leaves=own._visits):
        for row in x0.float().split(1):
            rows.append(vae.decode(row / config.scaling_factor + (config.shift_factor or 0.0), return_dict=False)[0])
    images: Tensor = own._pipeline.image_processor.postprocess(torch.cat(rows), output_type="pt")
    return images


def vae_dtype(policy: Policy) -> torch.dtype:
    """What the VAE computes in."""
    found: torch.dtype = _latent(policy)._vae.dtype
    return found


def too_long(policy: Policy, texts: Sequence[str]) -> tuple[list[str], int]:
    """The texts that are not read to their end, and how many tokens are read."""
    return _latent(policy).too_long(texts)


def _latent(policy: Policy) -> LatentPolicy:
    assert isinstance(policy, LatentPolicy)
    return policy

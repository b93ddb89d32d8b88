"""Chains, gradients and one iteration of each kind of algorithm on a model of any family: what their tests share."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tastemaker as tm
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load, quiet
from tastemaker.process.samplers import DDIM

PROMPTS = ["a red cat", "two dogs"]
CHAIN: dict[str, Any] = {"images": 4, "updates": 1, "steps": 3, "iterations": 1, "learning_rate": 1e-2}

# By the guidance, and the noise of a step.
ALGORITHMS: dict[str, Callable[[float, Any], Any]] = {
    "ddpo": lambda guidance, noise: tm.DDPO(**CHAIN, guidance=guidance, sampler=noise),
    "flow_grpo": lambda guidance, noise: tm.FlowGRPO(
        **CHAIN, per_prompt=2, guidance=guidance, sampler=tm.Window(inside=noise, size=1, first=0, last=2)
    ),
    "diffusion_nft": lambda guidance, _: tm.DiffusionNFT(**CHAIN, per_prompt=2, levels=2, guidance=guidance),
    "draft": lambda guidance, _: tm.DRaFT(**CHAIN, guidance=guidance),
}


def noise(policy: Any, rows: int = 2) -> Tensor:
    return torch.randn(rows, *policy.latent_shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def ours(policy: Any, x: Tensor, steps: int, guidance: float, negative: str = "") -> Tensor:
    """Where our chain ends."""
    schedule, conditioning = policy.schedule(steps), policy.encode(PROMPTS, negative)
    for i in range(steps):
        x = DDIM(0.0).transition(policy.predict(x, i, schedule, conditioning, guidance), x, i, schedule).mean
    return x


@torch.no_grad()
def theirs(pipeline: Any, x: Tensor, steps: int, guidance: float, negative: str | None = None) -> Tensor:
    """Where the chain of a diffusers pipeline ends, by the scheduler that it has."""
    pipeline.check_inputs = lambda *_, **__: None  # it wants multiples of 8 pixels, whatever the VAE's factor
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Euler's tensors that NumPy makes arrays of
        found: Tensor = pipeline(
            PROMPTS,
            negative_prompt=negative and [negative] * len(PROMPTS),
            height=2 * x.shape[2],
            width=2 * x.shape[3],
            latents=x,
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="latent",
        ).images
    return found


def stirred(policy: Any) -> Any:
    """The policy with an adapter, or a network, that is not the base's any more."""
    with torch.no_grad():
        for parameter in policy.parameters():
            generator = torch.Generator().manual_seed(parameter.numel())
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy


def without_gradient(policy: Any, guidance: float) -> list[str]:
    """The trained tensors that an update behind another leaves alone."""
    schedule, conditioning, x = policy.schedule(3), policy.encode(PROMPTS, ""), noise(policy)
    optimizer = torch.optim.SGD(policy.parameters(), 1e-2)
    for _ in range(2):  # at first B is zero, and so is the gradient of A
        with torch.no_grad():
            policy.predict(x, 0, schedule, conditioning, guidance)
        optimizer.zero_grad()
        policy.predict(x, 1, schedule, conditioning, guidance).x0.square().sum().backward()
        optimizer.step()
    return [name for name, p in policy.named_parameters().items() if p.grad is None or not p.grad.any()]


def darkness(images: Tensor, prompts: list[str]) -> Tensor:
    return 1 - images.mean((1, 2, 3))


def trained(
    model: str, algorithm: str, folder: Path, *, guidance: float, lora: LoRA | None, noise: Any, **settings: Any
) -> tm.Run:
    """A run that has ended, and in which every update had a gradient."""
    run = tm.train(
        model=model,
        reward=darkness,
        prompts=["a cat", "a dog"],
        algorithm=ALGORITHMS[algorithm](guidance, noise),
        lora=lora,
        alarms=None,
        device="cpu",
        evaluation={"count": 2, "steps": 1},
        output_dir=str(folder),
        **settings,
    )
    (row,) = run.metrics()
    assert run.done and row["updates"] and all(update["grad_norm"] > 0 for update in row["updates"])
    return run


def same(found: Tensor, wanted: Tensor) -> bool:
    """Up to the last digits."""
    return bool((found - wanted).abs().max() < 1e-5 * wanted.abs().max())


def diffusers_draws_what_was_learned(model: str, algorithm: str, folder: Path, pipeline: Any) -> None:
    """A run on a model with a UNet; plain diffusers draws as its policy does with its LoRA file, and not without."""
    run = trained(model, algorithm, folder, guidance=2.0, lora=LoRA(rank=2), noise=DDIM(1.0))
    assert run.weights is not None
    policy: Any = load(model, lora=LoRA(file=str(run.weights)))
    x = noise(policy)
    wanted = ours(policy, x, 2, 3.0)
    assert not same(theirs(pipeline, x, 2, 3.0), wanted)
    with quiet():
        pipeline.load_lora_weights(run.weights.parent)
    assert same(theirs(pipeline, x, 2, 3.0), wanted)

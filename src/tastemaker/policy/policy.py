"""`Policy`: what everything else may ask of a model that draws pictures. It knows nothing of rewards or RL."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tastemaker.policy.conditioning import Conditioning
from tastemaker.process.prediction import Prediction
from tastemaker.process.schedule import Schedule

__all__ = ["Conditioning", "Exportable", "Policy", "Rows", "decode", "predict"]


@dataclass
class Rows:
    """Rows that went through the network so far, guidance's second row included.

    A row counts as backward when it was computed with gradients enabled: that is what will be differentiated. What
    gradient checkpointing computes again is not counted.
    """

    forward: int = 0
    backward: int = 0

    def add(self, rows: int) -> None:
        self.forward += rows
        if torch.is_grad_enabled():
            self.backward += rows


class Policy(Protocol):
    """A denoising model with trainable weights, over x[i] = alpha[i] x0 + sigma[i] eps."""

    rows: Rows

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w) of one latent."""

    @property
    def device(self) -> torch.device:
        """Where the network computes, and where `predict` wants its rows."""

    def schedule(self, steps: int) -> Schedule:
        """The model's own time grid with this many steps, on the policy's device."""

    def encode(self, prompts: Sequence[str], negative: str = "") -> Conditioning:
        """What `predict` needs of the prompts, one row for each."""

    def predict(
        self, x: Tensor, i: int | Tensor, schedule: Schedule, conditioning: Conditioning, guidance: float | Tensor
    ) -> Prediction:
        """The network's belief about x[i] [B,C,h,w], in fp32; i is one int or int64 [B], guidance a number or [B].

        What guidance is to the model, and how many rows it takes, `facts.guiding_of` says before the model is loaded.
        """

    def decode(self, x0: Tensor) -> Tensor:
        """Latents [B,C,h,w] to pictures [B,3,H,W] in [0, 1], fp32, differentiable."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Pictures [B,3,H,W] in [0, 1] to latents [B,C,h,w], fp32, without a graph."""

    def using(self, weights: str) -> AbstractContextManager[None]:
        """Compute with another set ("base", "old", "ema") and without gradients inside the block."""

    def dropping(self, number: int) -> AbstractContextManager[None]:
        """Inside, dropout is on wherever a gradient is made by the current weights, drawn from this number."""

    def blend(self, weights: str, keep: float) -> None:
        """set <- keep set + (1 - keep) current."""

    def parameters(self) -> list[nn.Parameter]:
        """The trainable tensors, fp32."""

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by a name that stays the same from run to run."""

    def state(self) -> dict[str, Tensor]:
        """The trainable tensors and the sets that change, for a checkpoint; views, not copies, and of `World.whole`."""

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave; a missing, unknown or misshapen tensor is a ValueError."""


class Exportable(Policy, Protocol):
    """A policy that other programs can load."""

    def lora_tensors(self) -> dict[str, Tensor] | None:
        """The adapter under the key names of its family's LoRA files, alpha / rank baked in; None without one."""

    def gathered(self) -> AbstractContextManager[None]:
        """Inside, `save_pipeline` has what it needs on rank 0; all processes enter it."""

    def save_pipeline(self, folder: Path) -> None:
        """The whole model in diffusers layout, with all that its base has beside the tuned network."""

    def pipeline(self) -> Any:
        """The diffusers pipeline around the live network, on the policy's device."""

    def frozen(self) -> Mapping[str, Mapping[str, Tensor]]:
        """What computes and is not trained: the tensors of the network and of all beside it, by part and name."""


def predict(
    policy: Policy, x: Tensor, i: int | Tensor, schedule: Schedule, conditioning: Conditioning, guidance: float
) -> Prediction:
    """`policy.predict`; without a graph, where memory runs out, of half the rows at a time, down to one.

    Rows know nothing of each other, so it is the same prediction up to rounding. With a graph the trainer begins its
    update again. Errors: ValueError where there is no memory for one row.
    """
    try:
        return policy.predict(x, i, schedule, conditioning, guidance)
    except torch.OutOfMemoryError as error:
        if torch.is_grad_enabled():
            raise
        if len(x) < 2:
            raise ValueError("out of memory with one picture a call: use a lower --resolution.") from error
    parts = [  # out of the handler, which holds what the failed call had made
        predict(policy, x[rows], i[rows] if isinstance(i, Tensor) else i, schedule, conditioning.take(rows), guidance)
        for rows in _halves(len(x), "a call")
    ]
    return Prediction(*(torch.cat(column) for column in zip(*parts, strict=True)))


def decode(policy: Policy, x0: Tensor) -> Tensor:
    """`policy.decode`; without a graph, where memory runs out, of half the pictures at a time, down to one.

    With a graph the error is the caller's: the trainer begins its update again with fewer items.
    Errors: ValueError where there is no memory for one picture.
    """
    try:
        return policy.decode(x0)
    except torch.OutOfMemoryError as error:
        if torch.is_grad_enabled():
            raise
        if len(x0) < 2:
            raise ValueError(
                "out of memory where one picture is decoded: use --vae_tiling or a lower --resolution."
            ) from error
    return torch.cat([decode(policy, x0[rows]) for rows in _halves(len(x0), "decoded at once")])


def _halves(count: int, where: str) -> tuple[Tensor, ...]:
    """The rows 0 ... count - 1 in two parts, with a warning."""
    half = count // 2
    what = f"out of memory with {count} pictures {where}: trying {half}. --plan.sampling_batch {half} saves the trying."
    warnings.warn(what, RuntimeWarning, stacklevel=3)
    return torch.arange(count).split([half, count - half])

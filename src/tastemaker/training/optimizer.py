"""The optimizer step: AdamW on named tensors, its learning rate, clipping, loss scaling, and when it is left out.

AdamW: Loshchilov & Hutter 2019, arXiv:1711.05101. 8 bits: Dettmers et al. 2022, arXiv:2110.02861. Everything that the
next step depends on is in `state`, by the parameters' names, so that a model that lists them in another order, or has
other ones, cannot take the wrong moments over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tastemaker import shards

SCHEDULES: Mapping[str, Callable[[float], float]] = {  # share of the way after warm-up -> share of the learning rate
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


@dataclass(frozen=True)
class OptimizerSettings:
    """What one step does with a gradient."""

    learning_rate: float
    """Step size of AdamW, before the schedule."""
    weight_decay: float = 1e-4
    """Decoupled: each step shrinks the weights by learning rate x this."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Memory of the gradient's mean and of its square."""
    eps: float = 1e-8
    """Added to the root of the squares."""
    max_grad_norm: float | None = 1.0
    """Longer gradients, all tensors taken together, are shortened to this; None leaves them."""
    schedule: str = "constant"
    """Course of the learning rate after warm-up: constant, linear or cosine, both to zero."""
    warmup_steps: int = 0
    """Updates in which the learning rate rises in equal steps to its full value."""
    use_8bit: bool = False
    """Keep AdamW's two moments in 8 bits (bitsandbytes): 2 bytes a weight instead of 8."""
    ema: float | None = None
    """Decay of the moving average of the weights; None keeps no average."""

    def __post_init__(self) -> None:
        positive = {"learning_rate": self.learning_rate, "max_grad_norm": self.max_grad_norm, "eps": self.eps}
        for name, value in positive.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}, it must be a positive number.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay is {self.weight_decay}, it must be 0 or more.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {self.betas}, both must lie in [0, 1).")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"lr_scheduler is {self.schedule!r}, it must be one of {', '.join(SCHEDULES)}.")
        if self.warmup_steps < 0:
            raise ValueError(f"lr_warmup_steps is {self.warmup_steps}, it must be 0 or more.")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}, it must lie in [0, 1); usual values are 0.99 to 0.9999.")

    def rate(self, update: int, updates: int) -> float:
        """Learning rate of the update with this index, of so many.

            warm-up:  learning_rate (update + 1) / warmup_steps
            after it: learning_rate schedule((update - warmup_steps) / (updates - warmup_steps))

        Departs from diffusers' get_scheduler: 1. the first update of a warm-up is not of size zero.
        """
        if update < self.warmup_steps:
            return self.learning_rate * (update + 1) / self.warmup_steps
        done = (update - self.warmup_steps) / max(1, updates - self.warmup_steps)
        return self.learning_rate * SCHEDULES[self.schedule](min(1.0, done))


def ema_keep(decay: float, averaged: int) -> float:
    """How much of the average survives the next update, after `averaged` of them: min(decay, (1 + n) / (10 + n)).

    An average of few updates would else be mostly the start; the first one replaces it, as in diffusers' EMAModel.
    """
    return min(decay, (1 + averaged) / (10 + averaged)) if averaged else 0.0


class Optimizer:
    """AdamW over named tensors. `zero_grad`, `backward` for each part of the update, then `step`.

    `updates` counts the steps asked for, `skipped` those left out because the gradient was not finite, and
    `consecutive_skips` those since the last one taken. `average`, asked for by `settings.ema`, is called after every
    step taken with the share to keep: `partial(policy.blend, "ema")`.

    scaler: multiply the loss before backward, for fp16 (Micikevicius et al. 2018, arXiv:1710.03740). Gradients are then
    scaled until `step`; all devices hold the same scale because all see the same summed gradient.
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        settings: OptimizerSettings,
        *,
        total_updates: int,
        scaler: bool = False,
        average: Callable[[float], None] | None = None,
    ) -> None:
        half = [name for name, p in named.items() if p.dtype not in (torch.float32, torch.float64)]
        assert not half, f"trainable tensors are kept in fp32, {half[0]} is not"
        assert settings.ema is None or average is not None, "settings.ema needs `average`"
        self.settings, self.total_updates = settings, total_updates
        self.updates = self.skipped = self.consecutive_skips = self.averaged = 0
        self._named, self._average = dict(named), average
        self._adam = _adam(settings)(
            list(self._named.values()),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        device = next(iter(self._named.values())).device.type
        self._scaler = torch.amp.GradScaler(device) if scaler else None

    def zero_grad(self) -> None:
        self._adam.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Add this loss's gradient; the parts of an update add up to the mean over its items."""
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        torch.autograd.backward(scaled)

    def step(self) -> dict[str, float]:
        """Clip and step, or leave the step out: one number that is not finite would spoil the weights for good.

        Returns grad_norm (unscaled, before clipping), learning_rate, and skipped (0 or 1).
        """
        rate = self.settings.rate(self.updates, self.total_updates)
        for group in self._adam.param_groups:
            group["lr"] = rate
        if self._scaler is not None:
            self._scaler.unscale_(self._adam)
        grads = [p.grad for p in self._named.values() if p.grad is not None]
        norm = shards.whole(torch.nn.utils.get_total_norm(grads))
        length = norm.item()  # the one wait for the device in a step
        taken = math.isfinite(length)
        if taken:
            if self.settings.max_grad_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(self._named.values(), self.settings.max_grad_norm, norm)
            self._adam.step()
            self._averaging()
        if self._scaler is not None:
            self._scaler.update()
        self.updates += 1
        self.skipped += not taken
        self.consecutive_skips = 0 if taken else self.consecutive_skips + 1
        return {"grad_norm": length, "learning_rate": rate, "skipped": float(not taken)}

    def _averaging(self) -> None:
        if self.settings.ema is not None and self._average is not None:
            self._average(ema_keep(self.settings.ema, self.averaged))
            self.averaged += 1

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by `<moment>/<parameter's name>`, and all that is not a tensor as plain data. Views, not copies.

        Where several processes hold parts of the weights, `World.whole` puts them together.
        """
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, dict[str, Any]] = {}
        for name, parameter in self._named.items():
            for key, value in self._adam.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{key}/{name}"] = value
                else:
                    numbers.setdefault(name, {})[key] = value
        counts = {name: getattr(self, name) for name in _COUNTS}
        scaler = None if self._scaler is None else self._scaler.state_dict()
        return tensors, {"counts": counts, "numbers": numbers, "scaler": scaler, "names": list(self._named)}

    def load_state(self, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
        """Go on as the optimizer that `state` was taken from. ValueError if it was over other parameters."""
        wrong = sorted(set(data["names"]) ^ set(self._named))
        if wrong:
            raise ValueError(
                f"the checkpoint's optimizer is over other tensors: {wrong[0]!r} and {len(wrong) - 1} more are on one "
                "side only. Resume with the --model and --lora that it was made with."
            )
        state: dict[str, dict[str, Any]] = {name: {} for name in self._named}
        for key, tensor in tensors.items():
            moment, name = key.split("/", 1)
            state[name][moment] = _placed(tensor, self._named[name], moment)
        for name, numbers in data["numbers"].items():
            state[name] |= numbers
        _check_kind(state, self.settings)
        _check_whole(state, self.settings, data["counts"])
        self._adam.state.clear()
        self._adam.state.update({self._named[name]: values for name, values in state.items() if values})
        for name in _COUNTS:
            setattr(self, name, data["counts"][name])
        if self._scaler is not None and data["scaler"] is not None:
            self._scaler.load_state_dict(data["scaler"])


_COUNTS = ("updates", "skipped", "consecutive_skips", "averaged")


def _placed(tensor: Tensor, parameter: nn.Parameter, moment: str) -> Tensor:
    """A copy where and in the layout in which the optimizer keeps it (torch's AdamW counts its steps on the CPU)."""
    if tensor.shape == parameter.shape and moment != "step":
        return shards.copied(tensor, parameter, tensor.dtype)
    return tensor.clone() if moment == "step" else tensor.to(parameter.device, copy=True)


def _check_kind(state: Mapping[str, Mapping[str, Any]], settings: OptimizerSettings) -> None:
    for values in state.values():
        was_8bit = "state1" in values
        if values and was_8bit != settings.use_8bit:
            with_, now = ("with", "without") if was_8bit else ("without", "with")
            raise ValueError(
                f"the checkpoint was made {with_} --use_8bit_adam and this run is {now} it: the moments cannot be "
                f"taken over. Resume {with_} it, or start a new run with --lora from the old one's result."
            )


def _check_whole(
    state: Mapping[str, Mapping[str, Any]], settings: OptimizerSettings, counts: Mapping[str, int]
) -> None:
    """Every tensor has its moments once a step was taken: AdamW would begin a lost one at 0."""
    needed = ("state1", "state2") if settings.use_8bit else ("step", "exp_avg", "exp_avg_sq")
    lacking = [f"{key}/{name}" for name, values in state.items() for key in needed if key not in values]
    if lacking and counts["updates"] > counts["skipped"]:
        raise ValueError(
            f"the checkpoint's optimizer lacks {lacking[0]!r} and {len(lacking) - 1} more: it is not whole. Resume "
            "from another checkpoint."
        )


def _adam(settings: OptimizerSettings) -> Callable[..., torch.optim.Optimizer]:
    if not settings.use_8bit:
        return torch.optim.AdamW
    try:
        import bitsandbytes
    except ImportError as error:
        raise ValueError(
            '--use_8bit_adam needs bitsandbytes, which is not installed here: pip install "tastemaker[memory]"'
        ) from error
    adam: Callable[..., torch.optim.Optimizer] = bitsandbytes.optim.AdamW8bit
    return adam

"""Annealed guidance: from the base model's prediction to the tuned model's along the chain.

The first steps decide what a picture shows, the last ones how it looks. With the base model at the noisy end and the
tuned one at the clean end, a picture keeps the base's variety and gets much of the reward. (Annealed importance
guidance of DRaFT+, arXiv:2409.06493, with the weights of NVIDIA's NeMo-Aligner.)

    eps = w eps_tuned + (1 - w) eps_base,    w a function of i / T: 0 at the noise, 1 - 1 / T at the last step

Both are predictions about the same x[i], so x0 and the velocity are mixed by it too: it is the same for all families.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tastemaker.policy.policy import Conditioning, Policy
from tastemaker.process.prediction import Prediction
from tastemaker.process.schedule import Schedule, rows

RULES = {"base": False, "tuned": False, "linear": False, "power": True, "step": True}  # kind -> has a number


@dataclass(frozen=True)
class Rule:
    """The tuned model's weight at each step: `base` 0, `tuned` 1, `linear` i / T, `power:p` (i / T)^p, and `step:f`:
    1 from the share f of the chain on, 0 before."""

    kind: str
    number: float = 1.0

    def weight(self, i: int, steps: int) -> float:
        """Of step i, from 0 at the noise to steps - 1."""
        share = i / steps
        if self.kind == "step":
            return float(share >= self.number)
        if self.kind in ("base", "tuned"):
            return float(self.kind == "tuned")
        return share**self.number

    def __str__(self) -> str:
        return f"{self.kind}:{self.number:g}" if RULES[self.kind] else self.kind


def rule(text: str) -> Rule:
    """`linear`, `power:2`, `step:0.6`, ... Errors: ValueError for anything else."""
    kind, mark, number = text.strip().partition(":")
    if kind not in RULES or RULES[kind] != bool(mark):
        raise ValueError(f"--anneal {text!r}: it is base, tuned, linear, power:2 or step:0.6 (with your numbers).")
    try:
        value = float(number) if mark else 1.0
    except ValueError as error:
        raise ValueError(f"--anneal {text}: {number!r} is not a number.") from error
    if kind == "power" and not (value > 0 and math.isfinite(value)):
        raise ValueError(f"--anneal {text}: the power is positive; `tuned` is the tuned model at every step.")
    if kind == "step" and not 0 <= value <= 1:
        raise ValueError(f"--anneal {text}: the share of the chain lies between 0 (all tuned) and 1 (all base).")
    return Rule(kind, value)


class Annealed:
    """A `Policy` that draws by a rule with the base and the current weights of another one.

    Where the weight is 0 or 1 one network is run, elsewhere both: `rows` counts what was run.
    """

    def __init__(self, policy: Policy, by: Rule) -> None:
        self._policy, self._rule = policy, by
        # All else is the policy's own.
        self.rows, self.latent_shape, self.device = policy.rows, policy.latent_shape, policy.device
        self.schedule, self.encode = policy.schedule, policy.encode
        self.decode, self.encode_images = policy.decode, policy.encode_images
        self.using, self.blend, self.dropping = policy.using, policy.blend, policy.dropping
        self.parameters, self.named_parameters = policy.parameters, policy.named_parameters
        self.state, self.load_state = policy.state, policy.load_state

    def predict(
        self, x: Tensor, i: int | Tensor, schedule: Schedule, conditioning: Conditioning, guidance: float | Tensor
    ) -> Prediction:
        """The mixed prediction; i as a tensor [B] costs both networks whatever the weights."""
        weights = [self._rule.weight(step, len(schedule)) for step in range(len(schedule))]
        weight = weights[i] if isinstance(i, int) else rows(torch.tensor(weights), i, x)
        if isinstance(weight, float) and weight == 1.0:
            return self._policy.predict(x, i, schedule, conditioning, guidance)
        with self._policy.using("base"):
            base = self._policy.predict(x, i, schedule, conditioning, guidance)
        if isinstance(weight, float) and weight == 0.0:
            return base
        tuned = self._policy.predict(x, i, schedule, conditioning, guidance)
        return Prediction(*(weight * t + (1 - weight) * b for t, b in zip(tuned, base, strict=True)))

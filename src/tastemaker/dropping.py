"""Dropout that is on for a while and drawn from a number: the program's own random stream stays as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

KINDS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class LearningDropout(nn.Dropout):
    """Drops where a gradient is made, and nowhere else."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if torch.is_grad_enabled() else input


@contextmanager
def dropping(modules: Iterable[nn.Module], device: torch.device, number: int) -> Iterator[None]:
    """Inside, these modules (not what lies below them) are in training, and what they drop is drawn from the number."""
    modules = list(modules)
    devices = [device] if device.type not in ("cpu", "meta") else []
    with torch.random.fork_rng(devices=devices, device_type=devices[0].type if devices else "cuda"):
        torch.manual_seed(number)
        for module in modules:
            module.training = True
        try:
            yield
        finally:
            for module in modules:
                module.training = False

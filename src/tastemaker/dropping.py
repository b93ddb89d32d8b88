"""Dropout that is on for a while and drawn from a number: the program's own random streams stay as they were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

KINDS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@contextmanager
def dropping(modules: Iterable[nn.Module], device: torch.device, number: int) -> Iterator[None]:
    """Inside, these modules (not what lies below them) are in training, and what they drop is drawn from the number."""
    modules = list(modules)
    if not modules:
        yield
        return
    devices = [device] if device.type not in ("cpu", "meta") else []
    with torch.random.fork_rng(devices=devices, device_type=devices[0].type if devices else "cuda"):
        _seed(device, number)
        for module in modules:
            module.training = True
        try:
            yield
        finally:
            for module in modules:
                module.training = False


def _seed(device: torch.device, number: int) -> None:
    """The CPU's stream and this device's, no other one: `torch.manual_seed` would take all."""
    torch.default_generator.manual_seed(number)
    if device.type in ("cpu", "meta"):
        return
    streams = torch.get_device_module(device)
    with streams.device(device) if device.index is not None and hasattr(streams, "device") else nullcontext():
        streams.manual_seed(number)

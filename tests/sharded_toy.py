"""The toy policy over a network of blocks, in fp64: whole on one process, or cut over several as a real one is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from tastemaker.policy.policy import Rows
from tastemaker.policy.sharding import Calls, Together
from tastemaker.policy.weights import Weights
from toy import Toy

WIDTH = 15  # of which no two, three or four processes have equal parts


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.nn.functional.silu(self.layer(x))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.scale = nn.Parameter(torch.ones(1))  # of one row: only the first process has a part of it
        self.last = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        made: Tensor = self.last(x * self.scale)
        return made


class NetToy(Toy):
    """`together`: the processes over which its weights are cut; None is one."""

    def __init__(self, *, sets: tuple[str, ...] = ("base",), together: Together | None = None, seed: int = 5) -> None:
        super().__init__(sets=())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = Network().double()
        with torch.no_grad():
            for parameter in self.network.last.parameters():
                parameter.mul_(0.3)
        if together is None:
            self.weights = Weights(self.network, sets=sets)
        else:
            self.calls = Calls(self.network, self.device, together, sets, self._example)
            self.weights = self.calls.weights

    def _example(self) -> None:
        counted, self.rows = self.rows, Rows()
        x = torch.zeros(1, *self.latent_shape, dtype=self.dtype)
        self.predict(x, 0, self.schedule(2), self.encode([""]), 1.0)
        self.rows = counted

    def _network(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        self.rows.add(len(x))
        flat = torch.cat([x.flatten(1), t[:, None] / 1000, text], 1).to(self.dtype)
        made: Tensor = self.network(flat).view_as(x)
        return made

    def parameters(self) -> list[nn.Parameter]:
        return self.weights.parameters()

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return self.weights.named_parameters()

    def using(self, weights: str) -> AbstractContextManager[None]:
        return self.weights.using(weights)

    def dropping(self, number: int) -> AbstractContextManager[None]:
        return nullcontext()

    def blend(self, weights: str, keep: float) -> None:
        self.weights.blend(weights, keep)

    def state(self) -> dict[str, Tensor]:
        return self.weights.state()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.weights.load_state(tensors)

"""A `Policy` whose pictures are 4 numbers and whose base is exact: any algorithm runs on it in milliseconds.

The data are N(0, 1), so the best prediction has a closed form, E[eps | x] = sigma x where alpha^2 + sigma^2 = 1 and
E[eps - x0 | x] = (sigma - alpha) x / (alpha^2 + sigma^2); a small trained network is added to it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tastemaker.policy.conditioning import Conditioning, Encoded, TextCache
from tastemaker.policy.policy import Rows
from tastemaker.process.noise import Key
from tastemaker.process.prediction import Prediction, from_eps, from_velocity
from tastemaker.process.schedule import Schedule

SHAPES = {"wide.weight": (16, 7), "wide.bias": (16,), "last.weight": (4, 16), "last.bias": (4,)}


class Toy:
    """An eps model, or with `flow` a velocity model.

    spread: standard deviation of the last layer at the start; 0 is the exact base.
    layout: added to the network's output for each row of a call, as kernels do to the last digits, but larger.
    """

    latent_shape = (4, 1, 1)
    device = torch.device("cpu")

    def __init__(
        self,
        *,
        flow: bool = False,
        dtype: torch.dtype = torch.float64,
        sets: tuple[str, ...] = ("base",),
        spread: float = 0.1,
        layout: float = 0.0,
    ) -> None:
        self.flow, self.dtype, self.layout, self.rows = flow, dtype, layout, Rows()
        random = torch.Generator().manual_seed(3)
        drawn = {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}
        scale = {name: spread if name.startswith("last") else 0.4 for name in SHAPES}
        self._named = {name: nn.Parameter((scale[name] * value).to(dtype)) for name, value in drawn.items()}
        self._sets = {name: [p.detach().clone() for p in self.parameters()] for name in sets}
        self._texts = TextCache(_encoded)
        self._schedules: dict[int, Schedule] = {}

    def schedule(self, steps: int) -> Schedule:
        if steps not in self._schedules:
            noise, level = torch.linspace(1, 0, steps + 1, dtype=self.dtype), torch.linspace(1000, 1, steps)
            kept = torch.linspace(0.02, 0.98, steps + 1, dtype=self.dtype)
            made = (1 - noise, noise) if self.flow else (kept.sqrt(), (1 - kept).sqrt())
            self._schedules[steps] = Schedule(level, *made)
        return self._schedules[steps]

    def encode(self, prompts: Sequence[str], negative: str = "") -> Conditioning:
        return self._texts.conditioning(prompts, negative, self.device)

    def predict(
        self, x: Tensor, i: int | Tensor, schedule: Schedule, conditioning: Conditioning, guidance: float | Tensor
    ) -> Prediction:
        t = schedule.t[i].expand(len(x))
        toward, away = (f("text").to(self.dtype) for f in (conditioning.positive_rows, conditioning.negative_rows))
        if isinstance(guidance, Tensor) or guidance > 1:
            scale = torch.as_tensor(guidance, dtype=self.dtype).clamp(min=1).reshape(-1, 1, 1, 1)
            both = self._network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([away, toward])).chunk(2)
            out = both[0] + scale * (both[1] - both[0])
        else:
            out = self._network(x, t, toward)
        alpha, sigma = schedule.at(i, x)
        if self.flow:
            return from_velocity(x * (sigma - alpha) / (alpha**2 + sigma**2) + out, x, alpha, sigma)
        return from_eps(sigma * x + out, x, alpha, sigma)

    def _network(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        self.rows.add(len(x))
        flat = torch.cat([x.flatten(1), t[:, None] / 1000, text], 1).to(self.dtype)
        w1, b1, w2, b2 = self.parameters()
        return F.linear(F.silu(F.linear(flat, w1, b1)), w2, b2).view_as(x) + self.layout * len(x)

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def encode_images(self, images: Tensor) -> Tensor:
        return images.detach()

    def parameters(self) -> list[nn.Parameter]:
        return list(self._named.values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._named)

    @contextmanager
    def using(self, weights: str) -> Iterator[None]:
        before = [p.data for p in self.parameters()]
        try:
            for p, data in zip(self.parameters(), self._sets[weights], strict=True):
                p.data = data
            with torch.no_grad():
                yield
        finally:
            for p, data in zip(self.parameters(), before, strict=True):
                p.data = data

    def dropping(self, number: int) -> AbstractContextManager[None]:
        return nullcontext()

    def blend(self, weights: str, keep: float) -> None:
        for kept, p in zip(self._sets[weights], self.parameters(), strict=True):
            kept.lerp_(p.detach(), 1 - keep)

    def state(self) -> dict[str, Tensor]:
        changing = {"current": self.parameters()} | {k: v for k, v in self._sets.items() if k != "base"}
        return {f"{k}/{name}": t.detach() for k, v in changing.items() for name, t in zip(SHAPES, v, strict=True)}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])


def _encoded(texts: list[str]) -> list[Encoded]:
    """Two numbers for a text, zeros for none."""
    return [{"text": Key(0, text).noise("text", 0, [0], (2,))[0] * bool(text)} for text in texts]

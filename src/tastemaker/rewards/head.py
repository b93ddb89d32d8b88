"""What a CLIP sees, as rows of numbers, and the head that is trained on them: the two halves of a reward of one's own.

parts of a row, of a picture with vector v, a text with vector w (both of length 1) and patch tokens p_k:

    picture  v            what is in the picture
    tokens   mean p_k     how it looks: light, texture and sharpness, which v has mostly forgotten
    words    v * w        what is in it of what the text says, number by number
    cosine   <v, w>       how well it fits the text

value = middle + scale * layers((row - mean) / spread)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tastemaker.rewards.clip import Clip, unit

PARTS = ("picture", "tokens", "words", "cosine")
READING = {"words", "cosine"}  # the parts that need a text
_PROBE = 96  # pixels of the edge of the picture by which a network is known


def reads(parts: Sequence[str]) -> bool:
    """Whether a part needs a text."""
    return not READING.isdisjoint(parts)


class Seen(NamedTuple):
    """Of B pictures: vectors [B,D] of length 1 and means of patch tokens [B,H], fp32."""

    picture: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Looking(Clip):
    """A CLIP that gives what heads are trained on."""

    name: ClassVar[str] = "trained"

    def look(self, images: Tensor) -> Seen:
        """Of pictures [B,3,H,W] in [0,1], with their graph."""
        return self.look_at(self.prepared(images))

    def look_at(self, pixels: Tensor) -> Seen:
        """Of pictures as `prepared` gives them."""
        network = self.network
        seen = network.vision_model(pixel_values=pixels)
        tokens = seen.last_hidden_state[:, 1:]  # the first is the class token, which v is made of
        wide = tokens.float() if tokens.itemsize < 4 else tokens
        return Seen(unit(network.visual_projection(seen.pooler_output)), wide.mean(1))

    @torch.no_grad()
    def probe(self) -> Tensor:
        """What the network makes of one fixed picture [D]: two networks, or two ways to resize, differ in it."""
        along = torch.linspace(0, 3.1416, _PROBE)
        waves = [(torch.sin(k * along)[:, None] * torch.cos((4 - k) * along) + 1) / 2 for k in (1, 2, 3)]
        return self.look(torch.stack(waves)[None]).picture[0].cpu()


def rows(parts: Sequence[str], seen: Seen, read: Tensor | None) -> Tensor:
    """Rows [B,F] of what was seen [B] and read [B,D]; read may be None where no part needs it."""
    found = []
    for part in parts:
        if part in READING:
            assert read is not None
            product = seen.picture * read.to(seen.picture)
            found.append(product if part == "words" else product.sum(1, keepdim=True))
        else:
            found.append(getattr(seen, part))
    return torch.cat(found, 1)


class Head(nn.Module):
    """A linear map of a row, or one with a hidden layer; standardises what comes in, and gives the labels' units."""

    def __init__(self, width: int, hidden: int = 0) -> None:
        super().__init__()
        last = nn.Linear(hidden or width, 1)
        nn.init.zeros_(last.weight)  # it begins by knowing nothing
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), last) if hidden else nn.Sequential(last)
        for name, size, value in (("mean", (width,), 0.0), ("spread", (width,), 1.0), ("middle", (), 0.0)):
            self.register_buffer(name, torch.full(size, value))
        self.register_buffer("scale", torch.ones(()))

    mean: Tensor
    spread: Tensor
    middle: Tensor
    scale: Tensor

    def fit_to(self, parts: Iterable[Tensor]) -> None:
        """Learns mean and spread of rows, which come in parts [n,F]; a number that never varies is passed over."""
        count, mean, squares = 0, torch.zeros_like(self.mean).double(), torch.zeros_like(self.mean).double()
        for part in parts:  # Chan, Golub & LeVeque 1983: means and squares of two sets as those of both
            apart = part.double().mean(0) - mean
            squares += ((part.double() - part.double().mean(0)) ** 2).sum(0)
            squares += apart**2 * count * len(part) / (count + len(part))
            mean += apart * len(part) / (count + len(part))
            count += len(part)
        spread = (squares / count).sqrt()
        self.mean.copy_(mean)
        # Below float's own noise nothing is told apart: such a number counts for nothing, and not for everything.
        self.spread.copy_(torch.where(spread > 1e-5 * (mean.abs() + 1e-3), spread, torch.inf))

    def forward(self, rows: Tensor) -> Tensor:
        """Values [B] of rows [B,F]."""
        values: Tensor = self.middle + self.scale * self.layers((rows - self.mean) / self.spread)[:, 0]
        return values

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Head:
        """The head that these tensors are of. Errors: KeyError, RuntimeError where they are of none."""
        hidden = len(state["layers.0.weight"]) if "layers.2.weight" in state else 0
        head = cls(len(state["mean"]), hidden)
        head.load_state_dict(dict(state))
        return head

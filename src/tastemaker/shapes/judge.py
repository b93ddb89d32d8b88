"""The reward `shapes_judge`: a small network that reads count, colour and shape of a Shapes picture, with a gradient.

score = mean over the asked parts of log p(what the caption says | picture)

The oracle reads the same without a network and stays the judge that nothing is trained on: where a picture pleases the
judge and not the oracle, the judge is being gamed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tastemaker.rewards.reward import Scores
from tastemaker.shapes import assets
from tastemaker.shapes.captions import read as read_caption
from tastemaker.shapes.drawing import COLOURS, COUNTS, SHAPES, SIZE

ANSWERS: dict[str, tuple[int | str, ...]] = {"count": COUNTS, "colour": tuple(COLOURS), "shape": SHAPES}
Logits = dict[str, Tensor]  # part -> [B, its answers]
_WIDTHS = (24, 48, 96)  # channels at 32, 16 and 8 pixels


class Block(nn.Module):
    """Two convolutions beside the way through."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)) for _ in range(2)]
        self.layers = nn.Sequential(*layers[0], *layers[1])

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.layers(x)
        return found


class Network(nn.Module):
    """Pictures [B,3,64,64] in [0,1] to logits of every answer; no layer mixes pictures, and all are smooth."""

    def __init__(self) -> None:
        super().__init__()
        large, middle, small = _WIDTHS
        self.eye = nn.Sequential(
            nn.Conv2d(3, large, 5, stride=2, padding=2),
            nn.SiLU(),
            nn.Conv2d(large, middle, 3, stride=2, padding=1),
            Block(middle),
            nn.Dropout(0.1),
            nn.Conv2d(middle, small, 3, stride=2, padding=1),
            Block(small),
            nn.Dropout(0.1),
            Block(small),
            nn.GroupNorm(8, small),
            nn.SiLU(),
            nn.Conv2d(small, 2 * small, 1),
            nn.SiLU(),
        )
        self.dropout = nn.Dropout(0.1)
        self.answer = nn.Linear(2 * small, sum(map(len, ANSWERS.values())))

    def forward(self, images: Tensor) -> Logits:
        # A mean over places, because it says how much there is of a thing: a maximum would not tell two from three.
        seen = self.eye(2 * images - 1).mean((2, 3))
        logits = self.answer(self.dropout(seen)).split([len(values) for values in ANSWERS.values()], 1)
        return dict(zip(ANSWERS, logits, strict=True))


@dataclass(frozen=True)
class Judge:
    """Mean log-probability that a picture shows what its caption says, from a frozen network of 0.9 MB.

    A prompt that is not of the Shapes world scores NaN, with a note. The parts `count`, `colour` and `shape` are
    probabilities.
    """

    of: str = "count,colour,shape"  # what counts: one or several of count, colour and shape, with commas between

    name: ClassVar[str] = "shapes_judge"

    def __post_init__(self) -> None:
        if len(set(self.asked)) < len(self.asked) or not set(self.asked) <= set(ANSWERS):
            raise ValueError(f"of is {self.of!r}; it is one or several of {', '.join(ANSWERS)}, such as `count,shape`.")

    @property
    def asked(self) -> tuple[str, ...]:
        """The parts that count."""
        return tuple(part.strip() for part in self.of.split(","))

    @cached_property
    def network(self) -> nn.Module:
        """The network, loaded when it is first asked for; its dropout is off."""
        made = Network()
        made.load_state_dict({name: weight.float() for name, weight in load_file(assets.judge()).items()})
        return made.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where the network is: it follows the pictures."""
        return next(self.network.parameters()).device

    def read(self, images: Tensor) -> Logits:
        """What the network says of pictures [B,3,H,W] in [0,1], with their graph; other sizes are resized to 64x64."""
        if images.device != self.device:
            self.network.to(images.device)
        x = images.float()
        if x.shape[-2:] != (SIZE, SIZE):
            x = F.interpolate(x, (SIZE, SIZE), mode="area")
        found: Logits = self.network(x)
        return found

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """Scores [B], at most 0, with their graph to the pictures."""
        scenes = [read_caption(text) for text in prompts]
        wanted = torch.tensor([[0, 0, 0] if scene is None else places(scene) for scene in scenes]).reshape(-1, 3)
        ours = torch.tensor([scene is not None for scene in scenes], dtype=torch.bool)
        logs = {}
        for (part, logits), place in zip(self.read(images).items(), wanted.unbind(1), strict=True):
            log = logits.log_softmax(1).gather(1, place[:, None].to(logits.device))[:, 0]
            logs[part] = torch.where(ours.to(log.device), log, torch.nan)
        value = torch.stack([logs[part] for part in self.asked]).mean(0)
        notes = [
            None if known else f"not a caption of Shapes: {text}" for text, known in zip(prompts, ours, strict=True)
        ]
        return Scores(value, {part: log.detach().exp() for part, log in logs.items()}, tuple(notes))


def places(scene: tuple[int, str, str]) -> list[int]:
    """Where count, colour and shape of a scene stand in `ANSWERS`."""
    return [values.index(value) for values, value in zip(ANSWERS.values(), scene, strict=True)]

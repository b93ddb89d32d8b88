"""The LAION aesthetic predictor: how people rate a picture, read off a CLIP's vector of it.

christophschuhmann/improved-aesthetic-predictor, `sac+logos+ava1-l14-linearMSE`: five linear layers with nothing but
dropout between them, which is off. So they are one affine map, multiplied out here in fp64: 769 numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from tastemaker.rewards import weights
from tastemaker.rewards.clip import Clip
from tastemaker.rewards.facts import AESTHETIC_HEAD as HEAD

_FILES = ("aesthetic.safetensors", *HEAD.weights)  # the first lies beside a network that brings its own head
_LAYERS = ((), (0, 2, 4, 6, 7))  # the numbers of a head's layers: one without a number, or five, dropout between


@dataclass(frozen=True)
class Aesthetic(Clip):
    """How beautiful people would find a picture, by the LAION predictor: about 1 to 10. Reads no prompt.

    value [B] = a . v / |v| + b,   v: the picture's vector in OpenAI's CLIP ViT-L/14

    Photographs mostly have 4 to 6. Optimised for long, pictures turn into the one painting that it likes.
    """

    head: str = HEAD.name
    """The layers on the vector: a hub id, a folder, or a file (.pth or .safetensors) with LAION's or TRL's names.

    The built-in model brings its own.
    """

    name: ClassVar[str] = "aesthetic"

    @cached_property
    def affine(self) -> tuple[Tensor, Tensor]:
        """a [768] and b, fp64, on the CPU."""
        head = self.model if self.head == HEAD.name and self.model in weights.BUILT_IN else self.head
        place = weights.find(weights.source(head, HEAD), reward=self.name, setting="head")
        file = weights.weights_in(place, _FILES, reward=self.name)
        return folded(weights.read(file, reward=self.name), file=file)

    def _loaded(self) -> Any:
        """The half of the CLIP that sees. The head is looked for first: it is small."""
        wide = len(self.affine[0])
        made = self._filled()
        if made.visual_projection.out_features != wide:
            raise ValueError(
                f"head {self.head} reads vectors of {wide} numbers, those of {self.model} have "
                f"{made.visual_projection.out_features} (reward `{self.name}`)."
            )
        return made

    def _empty(self) -> Any:
        from transformers import CLIPVisionModelWithProjection

        return CLIPVisionModelWithProjection(self._config().vision_config)

    def _vectors(self, pixels: Tensor) -> Tensor:
        return self.network(pixel_values=pixels).image_embeds

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Ratings [B], where the pictures are."""
        a, b = self.affine
        seen = self.see(images)
        return (seen @ a.to(seen) + b.to(seen)).to(images.device)


def folded(state: Mapping[str, Tensor], *, file: Path) -> tuple[Tensor, Tensor]:
    """The chain of linear layers in a file as one affine map: a [D] and b, fp64.

    Errors: ValueError for layers that are no such chain; between other layers than the published there may be more.
    """
    found: dict[int | None, dict[str, Tensor]] = {}
    for name, value in state.items():
        *_, place, kind = ("", *name.split("."))
        found.setdefault(int(place) if place.isdigit() else None, {})[kind] = value.double()
    numbers = tuple(sorted(number for number in found if number is not None))
    chain = [found[number] for number in numbers or found]
    whole = all(layer.keys() == {"weight", "bias"} and layer["weight"].ndim == 2 for layer in chain)
    if numbers not in _LAYERS or len(found) != len(numbers or (0,)) or not whole or len(chain[-1]["bias"]) != 1:
        raise ValueError(
            f"head {file} holds {', '.join(list(state)[:4]) or 'nothing'}, ...: not the aesthetic predictor's layers "
            "0, 2, 4, 6, 7, nor one layer. Heads with an activation between their layers are others."
        )
    a, b = torch.eye(chain[0]["weight"].shape[1], dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for layer in chain:
        a, b = layer["weight"] @ a, layer["weight"] @ b + layer["bias"] if b.ndim else layer["bias"]
    return a[0], b[0]

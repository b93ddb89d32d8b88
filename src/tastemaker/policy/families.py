"""The families by the names in a model's files: which module serves each, and what its network's config says.

Light: the modules, and diffusers with them, are imported by those who need one.

Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598) steps from the prediction for the negative prompt past
that for the prompt: two rows of the network. A network distilled from such steps gives the guided prediction from one
row: it is told how far (Meng et al. 2023, arXiv:2210.03142), or has learned one way for good and is told nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

FAMILIES = {
    "StableDiffusionPipeline": "tastemaker.policy.sd:StableDiffusion",
    "StableDiffusionXLPipeline": "tastemaker.policy.sdxl:StableDiffusionXL",
    "StableDiffusion3Pipeline": "tastemaker.policy.sd3:StableDiffusion3",
    "FluxPipeline": "tastemaker.policy.flux:Flux",
}
"""By `_class_name` of the folder's model_index.json."""

Config = Mapping[str, Any]

PADDING = 256  # tokens of T5 in diffusers' pipeline, which pads shorter texts; zeros where there is none
TOLD_TOKENS, UNTOLD_TOKENS = 512, 256  # of a text, by a distilled network that is told how far, and one that is not


class Guiding(NamedTuple):
    """What a run's `guidance` is to a model."""

    rows: int  # of the network, behind one guided prediction
    usual: float | None  # its strength where nobody says one; None is the algorithm's
    most: float  # above this there is none

    def check(self, model: str, guidance: Mapping[str, float], negative: Mapping[str, str]) -> None:
        """guidance, negative: what was asked for, by the name of the setting. Errors: ValueError for what is not."""
        for key, value in guidance.items():
            if value > self.most:
                raise ValueError(
                    f"{key} is {value:g}, but --model {model} takes no guidance: it was distilled to draw without. "
                    f"Write {key} {self.most:g}."
                )
        for key, text in negative.items():
            if text and self.rows == 1:
                way = "a number that its network is told" if self.most > 1 else "none, for it was distilled"
                raise ValueError(
                    f"{key} has no effect on --model {model}: guidance is {way}, and leads away from no other prompt. "
                    f"Leave {key} out."
                )


TWO_ROWS = Guiding(2, None, float("inf"))
TOLD = Guiding(1, 3.5, float("inf"))
NONE = Guiding(1, 1.0, 1.0)


def _clips(config: Config, clip: int, t5: bool) -> int:
    return clip


def _clips_and_t5(config: Config, clip: int, t5: bool) -> int:
    return clip + (PADDING if t5 else 1)


def _t5s(config: Config, clip: int, t5: bool) -> int:
    return TOLD_TOKENS if config.get("guidance_embeds") else UNTOLD_TOKENS


def _distilled(config: Config) -> Guiding:
    return TOLD if config.get("guidance_embeds") else NONE


class Network(NamedTuple):
    """What is to be known of a class of networks before any weights are read."""

    example: str  # the function that makes a call of it, for the estimate: (network, shape, tokens, live) -> call
    tokens: Callable[[Config, int, bool], int] = _clips  # of a text, by config, those of its CLIP, whether it has a T5
    guiding: Callable[[Config], Guiding] | None = None  # by its config; None is two rows


NETWORKS = {
    "UNet2DConditionModel": Network("tastemaker.policy.unet:example"),
    "SD3Transformer2DModel": Network("tastemaker.policy.sd3:example", _clips_and_t5),
    "FluxTransformer2DModel": Network("tastemaker.policy.flux:example", _t5s, _distilled),
}
"""By `_class_name` of the network's own config.json."""


def resolve(entry: str) -> Any:
    """The object that a table's "module:name" says."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)

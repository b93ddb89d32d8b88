"""What is known of a model from its config files, before any weights are read: guidance, sizes, lengths of texts.

Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598) steps from the prediction for the negative prompt past
that for the prompt: two rows of the network. A network distilled from such steps gives the guided prediction from one
row: it is told how far (Meng et al. 2023, arXiv:2210.03142), or has learned one way for good and is told nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tastemaker.policy.load import configs, find

DISTILLED = "FluxTransformer2DModel"
WITH_T5 = "SD3Transformer2DModel"
SIDE = 128  # of a latent where the network is built for no size of its own: 1024 pixels, as in diffusers' pipelines
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


def guiding(network: Mapping[str, Any]) -> Guiding:
    """By the config of the network that is trained."""
    if network.get("_class_name") != DISTILLED:
        return TWO_ROWS
    return TOLD if network.get("guidance_embeds") else NONE


def guiding_of(model: str, revision: str | None = None, variant: str | None = None) -> Guiding:
    """Of what the user typed as --model; of a hub id the config files are fetched.

    A model that cannot be had is loading's to tell of: until then it has two rows. Errors: ValueError for a config file
    that is not there or is no JSON.
    """
    try:
        found = find(model, revision, variant)
    except ValueError:
        return TWO_ROWS
    if found.contents.get("transformer") != ["diffusers", DISTILLED]:
        return TWO_ROWS
    file = configs(model, revision) / "transformer" / "config.json"
    try:
        return guiding(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"--model {model}: {file} is not there or is no JSON. Download the model again.") from error


def own_sides(network: Mapping[str, Any]) -> tuple[int, int]:
    """(h, w) of the latents that a network was made for, by its config."""
    side = network.get("sample_size") or SIDE
    height, width = side if isinstance(side, Sequence) else (side, side)
    return height, width


def text_tokens(network: Mapping[str, Any], clip: int, t5: bool) -> int:
    """Tokens of a text that a denoiser reads, by its config; clip: those of its CLIP; t5: whether the model has one."""
    if network.get("_class_name") == DISTILLED:
        return TOLD_TOKENS if network.get("guidance_embeds") else UNTOLD_TOKENS
    if network.get("_class_name") != WITH_T5:
        return clip
    from tastemaker.policy.padding import PADDING

    return clip + (PADDING if t5 else 1)

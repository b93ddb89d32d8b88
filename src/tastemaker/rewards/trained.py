"""A reward that `tastemaker train-reward` made: a folder with reward.json and head.safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from tastemaker.rewards import weights
from tastemaker.rewards.head import PARTS, Head, Looking, reads, rows

CARD, HEAD = "reward.json", "head.safetensors"
SCHEMA = 1
KINDS = ("regression", "preference")
_ALIKE = 0.98  # cosine of what two networks see of the probe, from which on they are taken for one
_NETWORK = ("model", "revision", "preprocess")


@dataclass(frozen=True)
class Trained(Looking):
    """What `tastemaker train-reward` learned from ratings or choices: `--reward FOLDER`, its folder. Has a gradient.

    value [B] = head(what a CLIP sees of the picture, and of its prompt if the folder says so)

    Of ratings it is a rating; of choices the chance that one picture is chosen over another of the same prompt is the
    logistic function of the difference of their values.
    """

    folder: str = ""
    """What `train-reward` wrote."""
    model: str = ""
    """The network, where it does not lie where it lay in training: a hub id, a folder or a file."""
    preprocess: str = ""
    """How pictures are resized; as in training unless it is said."""

    content: str = field(init=False, default="")  # of the folder: one that is trained anew is another reward

    name: ClassVar[str] = "trained"

    def __post_init__(self) -> None:
        if not self.folder:
            raise ValueError("folder is missing: name what `tastemaker train-reward` wrote, --reward FOLDER.")
        known, place = self.card["network"], Path(self.folder).expanduser()
        if not (place / HEAD).is_file():
            raise ValueError(f"{self.folder} holds no {HEAD}: its training has not ended, or did not write it.")
        content = hashlib.sha256((place / CARD).read_bytes() + (place / HEAD).read_bytes())
        object.__setattr__(self, "content", content.hexdigest()[:16])
        for name in _NETWORK:
            same = name != "revision" or self.model in ("", known["model"])  # a commit of one is none of another
            if not getattr(self, name) and same:
                object.__setattr__(self, name, known[name])
        super().__post_init__()

    @cached_property
    def card(self) -> dict[str, Any]:
        """What reward.json says."""
        return read_card(Path(self.folder).expanduser())

    @cached_property
    def _tensors(self) -> tuple[Head, Tensor]:
        file = Path(self.folder).expanduser() / HEAD
        state = weights.read(file, reward=self.name)
        try:
            probe = state.pop("probe")
            return Head.of(state), probe
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{self.folder}: {file.name} is no head of a reward: {error}") from error

    @cached_property
    def _place(self) -> Path:
        wanted = weights.source(self.model, self.published, self.revision)
        try:
            return weights.find(wanted, reward=self.name)
        except ValueError as error:
            raise ValueError(
                f"{self.folder} looks through {self.model}: {error} Say where it is: --reward.model."
            ) from error

    @property
    def _reads(self) -> bool:
        return reads(self.card["features"])

    def _empty(self) -> Any:
        from transformers import CLIPVisionModelWithProjection

        return super()._empty() if self._reads else CLIPVisionModelWithProjection(self._config().vision_config)

    def _loaded(self) -> Any:
        """The CLIP with the head beside it, which goes where it goes and counts for what is served."""
        head, probe = self._tensors
        network = super()._loaded() if self._reads else self._filled()
        self.__dict__["network"] = network  # the probe looks through it
        seen = self.probe()
        if seen.shape != probe.shape or float(seen @ probe) < _ALIKE:
            del self.__dict__["network"]
            raise ValueError(
                f"model {self.model} with preprocess={self.preprocess} does not see what the network saw that "
                f"{self.folder} was trained on ({self.card['network']['model']}): give that one with --reward.model."
            )
        network.add_module("taste", head.requires_grad_(False).eval().to(network.device))
        return network

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Values [B], where the pictures are."""
        seen = self.look(images)
        read = self.read(list(prompts)) if self._reads else None
        value: Tensor = self.network.taste(rows(self.card["features"], seen, read).to(torch.float32))
        return value.to(images.device)


def read_card(folder: Path) -> dict[str, Any]:
    """What a trained reward's reward.json says. Errors: ValueError where it is none of ours, or of another time."""
    file = folder / CARD
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        found = isinstance(card, Mapping) and card["kind"] in KINDS and set(card["features"]) <= set(PARTS)
        whole = found and all(isinstance(card["network"][name], str) for name in _NETWORK) and card["features"]
    except OSError as error:
        raise ValueError(f"{folder} holds no {CARD}: it is no reward that `train-reward` made.") from error
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{folder}: its {CARD} is not one that `tastemaker train-reward` writes.")
    if card.get("schema") != SCHEMA:
        raise ValueError(f"{folder}: its {CARD} is of schema {card.get('schema')}, this program reads {SCHEMA}.")
    return dict(card)

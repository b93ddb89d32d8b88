"""CLIP: a network that maps pictures and texts to vectors, and `clip_score`, how near they lie.

Radford et al. 2021, arXiv:2103.00020. Rewards that look through a CLIP of their own are made of the same class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tastemaker.rewards import preprocess, weights
from tastemaker.rewards.clip_names import is_open_clip, translated
from tastemaker.rewards.facts import CLIP_LARGE, TOKENIZER, Published

# What config.json says of the two networks that published rewards are made of; a single file has none.
LARGE: dict[str, Any] = {
    "projection_dim": 768,
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12},
    "vision_config": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
        "patch_size": 14,
    },
}  # fmt: skip
HUGE: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
        "hidden_act": "gelu",
    },
    "vision_config": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16, "num_hidden_layers": 32,
        "patch_size": 14, "hidden_act": "gelu",
    },
}  # fmt: skip

_REMEMBERED = 8192  # prompts whose vectors are kept


@dataclass(frozen=True)
class Clip:
    """What rewards that look through a CLIP have in common: pictures and texts as vectors of length 1."""

    model: str = CLIP_LARGE.name
    """The network: a hub id, a folder in transformers' layout, or one file in its or open_clip's names."""
    revision: str = ""
    """The commit or branch of a hub id; the published model has one of its own, which is pinned."""
    dtype: str = "float32"
    """What the network computes in: float32 or bfloat16."""
    device: str = "auto"
    """Where it computes: auto is where the pictures are."""
    preprocess: str = "torch"
    """How pictures are resized: torch, uint8 (PIL's, without a gradient) or bilinear (AlignProp's)."""

    name: ClassVar[str] = "clip"
    published: ClassVar[Published] = CLIP_LARGE
    architecture: ClassVar[Mapping[str, Any]] = LARGE  # where no config.json of a CLIP lies beside the weights

    def __post_init__(self) -> None:
        preprocess.check(self.preprocess)
        weights.check(self.dtype, self.device)

    @cached_property
    def _place(self) -> Path:
        return weights.find(weights.source(self.model, self.published, self.revision), reward=self.name)

    @property
    def _folder(self) -> Path:
        """Where config and words lie: with the weights."""
        return self._place if self._place.is_dir() else self._place.parent

    @cached_property
    def network(self) -> Any:
        """transformers' CLIP, loaded when it is first asked for. Errors: ValueError where it is not to be had."""
        return self._loaded()

    def _loaded(self) -> Any:
        _ = self.words  # what is small is missed first
        return self._filled()

    def _filled(self) -> Any:
        file = weights.weights_in(self._place, self.published.weights, reward=self.name)
        state = weights.read(file, reward=self.name)
        state = translated(state) if is_open_clip(state) else state
        dtype = weights.DTYPES[self.dtype]
        made = weights.filled(self._empty, state, file=file, reward=self.name, dtype=dtype)
        return made if self.device == "auto" else made.to(self.device)

    def _config(self) -> Any:
        from transformers import CLIPConfig

        file = self._folder / "config.json"
        said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        config = CLIPConfig.from_dict(said if said.get("model_type") == "clip" else dict(self.architecture))
        for part in (config.text_config, config.vision_config):
            part.projection_dim = config.projection_dim  # in some files the parts say another than the whole
        return config

    def _empty(self) -> Any:
        from transformers import CLIPModel

        return CLIPModel(self._config())

    @cached_property
    def words(self) -> Any:
        """What turns texts into numbers: the tokenizer beside the weights, else OpenAI's, which all of these share."""
        from transformers import CLIPTokenizer

        place = self._folder
        if not any((place / name).is_file() for name in TOKENIZER.weights):
            instead = f"put its {TOKENIZER.weights[0]} beside the weights of `model`"
            place = weights.find(TOKENIZER, reward=self.name, instead=instead)
        return CLIPTokenizer.from_pretrained(str(place), local_files_only=True)

    @cached_property
    def _known(self) -> dict[str, Tensor]:
        return {}

    def see(self, images: Tensor) -> Tensor:
        """Vectors [B,D] of pictures [B,3,H,W] in [0,1], fp32, with their graph; where the network is."""
        return unit(self._vectors(self.prepared(images)))

    def prepared(self, images: Tensor) -> Tensor:
        """Pictures [B,3,H,W] in [0,1] as the network takes them, [B,3,size,size] in its dtype, where it is."""
        network = self.network
        pixels = weights.together(network, images, self.device)
        size = getattr(network.config, "vision_config", network.config).image_size
        return preprocess.prepare(pixels, size, self.preprocess).to(network.dtype)

    def _vectors(self, pixels: Tensor) -> Tensor:
        return self.network.get_image_features(pixel_values=pixels).pooler_output  # transformers 5: an object

    def read(self, texts: Sequence[str]) -> Tensor:
        """Vectors [B,D] of texts, where the network is; each text goes through the network once."""
        known, asked = self._known, list(dict.fromkeys(texts))
        if len(known) + len(asked) > _REMEMBERED:
            known.clear()
        new = [text for text in asked if text not in known]
        if new:
            known.update(zip(new, self._encoded(new).cpu().unbind(), strict=True))
        return torch.stack([known[text] for text in texts]).to(self.network.device)

    @torch.no_grad()
    def _encoded(self, texts: list[str]) -> Tensor:
        length = self.network.config.text_config.max_position_embeddings
        ids = self.words(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids
        return unit(self.network.get_text_features(input_ids=ids.to(self.network.device)).pooler_output)

    def cosine(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine [B] of the angle between each picture and its prompt, from -1 to 1, with its graph."""
        seen = self.see(images)
        return (seen * self.read(list(prompts)).to(seen)).sum(1)


def unit(vectors: Tensor) -> Tensor:
    """Vectors [B,D] of length 1, fp32 (fp64 stays)."""
    return F.normalize(vectors.float() if vectors.itemsize < 4 else vectors, dim=-1)


@dataclass(frozen=True)
class ClipScore(Clip):
    """How well a picture fits its prompt to a CLIP: the cosine of the angle between their vectors, from -1 to 1.

    value [B] = <v(picture), w(prompt)> / (|v| |w|),   by default of OpenAI's ViT-L/14

    Fitting pictures have about 0.2 to 0.35; others print it times 100, or times 2.5 and cut off at 0. A CLIP counts
    badly and hardly reads where things are. Prompts are cut off after 77 tokens.
    """

    name: ClassVar[str] = "clip_score"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosines [B], where the pictures are."""
        return self.cosine(images, prompts).to(images.device)

"""ImageReward: how people would rank pictures of one prompt, by a BLIP.  Xu et al. 2023, arXiv:2304.05977.

    score = (r - 0.16717) / 1.03334,    r the head's number (`tastemaker.rewards.blip`)

The two numbers are the authors': with them scores lie around 0, with a standard deviation of about 1.

Departs from the package image-reward 1.5: 1. Pictures are resized in torch, as floats and with a gradient; its own
way, PIL's on 256 levels, is `preprocess: uint8`. 2. In bfloat16 the head stays in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from tastemaker.rewards import preprocess, weights
from tastemaker.rewards.blip import Network, sizes, translated
from tastemaker.rewards.facts import BERT_WORDS, IMAGE_REWARD

MEAN, STD = 0.16717362830052426, 1.0333394966054072
TOKENS = 35  # of a text; the rest is not read
_ADDED = ("[DEC]", "[ENC]")  # words that BLIP adds to BERT's


@dataclass(frozen=True)
class ImageReward:
    """How people would rank pictures of one prompt, by ImageReward: Xu et al. 2023, arXiv:2304.05977. About -2 to 2.

    value [B] = (r - 0.16717) / 1.03334,   r from a BLIP (ViT-L/16, and a BERT that looks at the picture) and its head

    Reads 35 tokens of the prompt and the middle square of the picture, at 224 pixels.
    """

    model: str = IMAGE_REWARD.name
    """The network: a hub id, a folder, or one file with the names of the published ImageReward.pt."""
    revision: str = ""
    """The commit or branch of a hub id; the published model has one of its own, which is pinned."""
    dtype: str = "float32"
    """What the network computes in: float32 or bfloat16."""
    device: str = "auto"
    """Where it computes: auto is where the pictures are."""
    preprocess: str = "torch"
    """How pictures are resized: torch, uint8 (the original package's, without a gradient) or bilinear."""

    name: ClassVar[str] = "image_reward"

    def __post_init__(self) -> None:
        preprocess.check(self.preprocess)
        weights.check(self.dtype, self.device)

    @cached_property
    def _place(self) -> Path:
        return weights.find(weights.source(self.model, IMAGE_REWARD, self.revision), reward=self.name)

    @cached_property
    def network(self) -> Any:
        """The BLIP and its head, loaded when it is first asked for. Errors: ValueError where it is not to be had."""
        _ = self.words  # missed before gigabytes are read
        file = weights.weights_in(self._place, IMAGE_REWARD.weights, reward=self.name)
        state = translated(weights.read(file, reward=self.name))
        try:
            found = sizes(state)
        except ValueError as error:
            raise ValueError(f"reward `{self.name}`: {file}: {error}.") from error
        made: Any = weights.filled(
            lambda: Network(found), state, file=file, reward=self.name, dtype=weights.DTYPES["float32"]
        )
        for part in (made.eye, made.text):
            part.to(weights.DTYPES[self.dtype])
        return made if self.device == "auto" else made.to(self.device)

    @cached_property
    def words(self) -> Any:
        """What turns texts into numbers: the vocabulary beside the weights, else BERT's, with the words BLIP adds."""
        from transformers import BertTokenizer

        place = self._place if self._place.is_dir() else self._place.parent
        if not any((place / name).is_file() for name in BERT_WORDS.weights):
            instead = f"put its {BERT_WORDS.weights[0]} beside the weights of `model`"
            place = weights.find(BERT_WORDS, reward=self.name, instead=instead)
        made = BertTokenizer.from_pretrained(str(place), local_files_only=True)
        made.add_tokens(list(_ADDED), special_tokens=True)
        return made

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of pictures [B,3,H,W] in [0,1], where the pictures are, with their graph."""
        network = self.network
        pixels = preprocess.prepare(
            weights.together(network, images, self.device), network.sizes.image, self.preprocess
        ).to(network.eye.dtype)
        read = self.words(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(pixels.device)
        raw = network(pixels, read.input_ids, read.attention_mask)
        return ((raw - MEAN) / STD).to(images.device)

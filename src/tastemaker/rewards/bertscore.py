"""BERTScore's recall: how much of a reference stands in a candidate, by the vectors of its words.  arXiv:1904.09675.

    recall = mean over tokens i of the reference of  max over tokens j of the candidate of  cos(r_i, c_j)

Vectors are those of one layer of a text network. The tokens that only mark beginning and end are looked at and not
counted, as in the authors' package bert_score 0.3 without weights. `rescaled` is theirs, too: (recall - b) / (1 - b),
with b the recall of texts that have nothing to do with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tastemaker.rewards import weights
from tastemaker.rewards.facts import DEBERTA
from tastemaker.rewards.reward import ContractError

_AT_ONCE = 32  # pairs of texts


@dataclass(frozen=True)
class Recall:
    """Recall of references in candidates, by layer `layer` of a text network of transformers (0: its embeddings).

    reward, setting: what messages call them.
    """

    model: str
    layer: int
    reward: str
    setting: str

    @cached_property
    def _place(self) -> Path:
        return weights.find(weights.source(self.model, DEBERTA), reward=self.reward, setting=self.setting)

    @cached_property
    def network(self) -> Any:
        """The text network, loaded when it is first asked for. Errors: ValueError where it is not to be had."""
        from transformers import AutoModel

        try:
            with weights.quiet():
                made = AutoModel.from_pretrained(str(self._place), local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ContractError(f"reward `{self.reward}`: {self._place} is no text network: {error}") from error
        layers = made.config.num_hidden_layers
        if not 0 <= self.layer <= layers:
            raise ContractError(f"layer is {self.layer}; {self.model} has {layers}: it is a number from 0 to {layers}.")
        return made.requires_grad_(False).eval()

    @cached_property
    def words(self) -> Any:
        """What turns texts into tokens."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(self._place), local_files_only=True)

    @torch.no_grad()
    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> Tensor:
        """Recalls [B], on the CPU, about 0 to 1."""
        found = []
        for first in range(0, len(candidates), _AT_ONCE):
            rows = slice(first, first + _AT_ONCE)
            said, said_there, _ = self._vectors(candidates[rows])
            wanted, _, counted = self._vectors(references[rows])
            near = (wanted @ said.mT).masked_fill(~said_there[:, None, :], -torch.inf).amax(2)
            found.append(torch.where(counted, near, 0).sum(1) / counted.sum(1))
        return torch.cat(found).cpu() if found else torch.zeros(0)

    def _vectors(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors [B,T,C] of tokens, which of them are there [B,T], and which of those count [B,T]."""
        network = self.network
        longest = min(self.words.model_max_length, getattr(network.config, "max_position_embeddings", 512), 512)
        read = self.words(
            list(texts),
            padding=True,
            truncation=True,
            max_length=longest,
            return_special_tokens_mask=True,
            return_tensors="pt",
        ).to(network.device)
        special = read.pop("special_tokens_mask").bool()
        vectors = network(**read, output_hidden_states=True).hidden_states[self.layer].float()
        there = read["attention_mask"].bool()
        return torch.nn.functional.normalize(vectors, dim=-1), there, there & ~special


def rescaled(recall: Tensor, baseline: float) -> Tensor:
    """Recalls, with that of unrelated texts as the 0."""
    return (recall - baseline) / (1 - baseline)

"""How a policy reads texts: once for all where its encoders are fixed, and anew by the weights in use where they learn.

Learning and sampling have to read a text to the same bits, whichever texts share their calls: it is always one at a
time. Without a gradient what was read is kept for each set of weights, until a number of the set's adapters changes.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tastemaker.policy.conditioning import Conditioning, Encoded, Table, TextCache, Words
from tastemaker.policy.encoders import Encoder
from tastemaker.policy.load import quiet
from tastemaker.policy.weights import Weights


class Reading(ABC):
    """The part of a `LatentPolicy` that is about texts."""

    trainable: ClassVar[tuple[str, ...]] = ("text_encoder",)
    """The text encoders that `lora.text_encoders` trains."""
    unread: ClassVar[dict[str, int]] = {}
    """Of which the network does not read the last layers: how many."""
    device: torch.device
    _pipeline: Any
    _encoders: list[Any]  # all of them
    _trained: tuple[Encoder, ...]
    _weights: Weights
    _texts: TextCache  # what encoders make of texts that are not trained
    _again: bool  # whether activations are computed a second time, in place of being kept
    _read_by: dict[str, tuple[Tensor, TextCache]]  # by the set: the numbers of its adapters, what they made of texts

    @abstractmethod
    def _encode_text(self, text: str) -> Encoded:
        """[1, ...] of each entry of `reads`, on the policy's device, by all encoders."""

    def _encode_live(self, text: str) -> Encoded:
        """The same, or where there is a `_encode_fixed` the rest of it, by those that are trained."""
        return self._encode_text(text)

    def _encode_fixed(self, text: str) -> Encoded:
        """What is left of it to encoders that are never trained."""
        return {}

    def _joined(self, live: Encoded, fixed: Encoded) -> Encoded:
        """[D, ...] of each entry of `reads`, of these two."""
        return {**live, **fixed}

    def _is_silence(self, negative: str) -> bool:
        """Whether guidance moves away from zeros in place of this text."""
        return False

    @abstractmethod
    def _longest(self) -> tuple[Any, int]:
        """The tokenizer that reads furthest into a text, and how many tokens that is."""

    @abstractmethod
    def _precision(self) -> AbstractContextManager[Any]:
        """What the network and the encoders that are trained compute in."""

    def encode(self, prompts: Sequence[str], negative: str = "") -> Conditioning:
        found = self._texts.conditioning(prompts, negative, self.device)
        if self._trained:
            return Words(found.index, tuple(dict.fromkeys(prompts)), negative, found)
        return self._hushed(found) if self._is_silence(negative) else found

    def _hushed(self, found: Table) -> Table:
        """The same, with zeros in the place of the negative prompt."""
        return replace(found, negative={name: torch.zeros_like(tensor[:1]) for name, tensor in found.negative.items()})

    # ---- by encoders that are trained

    def _table(self, conditioning: Conditioning, guided: bool) -> Table:
        """What the network reads by the weights in use; of the negative prompt only where it is `guided` by one."""
        if isinstance(conditioning, Table):
            return conditioning
        assert isinstance(conditioning, Words)
        places, index = conditioning.index.unique(return_inverse=True)
        texts, fixed = [conditioning.texts[place] for place in places.tolist()], conditioning.fixed
        if (guided and not self._is_silence(conditioning.negative)) or not texts:
            texts.append(conditioning.negative)
        found = self._read(texts)
        chosen = {name: tensor[places.to(tensor.device)] for name, tensor in fixed.table.items()}
        table = Table(
            index,
            self._joined({name: tensor[: len(places)] for name, tensor in found.items()}, chosen),
            self._joined({name: tensor[-1:] for name, tensor in found.items()}, fixed.negative),
        )
        return self._hushed(table) if self._is_silence(conditioning.negative) else table

    def _read(self, texts: list[str]) -> Encoded:
        """[D, ...] of each entry, in the order of the texts; each distinct one is read once."""
        if not torch.is_grad_enabled():
            rows = self._kept().entries(texts)
            return {name: torch.stack([row[name] for row in rows]).to(self.device) for name in rows[0]}
        found = {text: self._read_one(text, self._again) for text in dict.fromkeys(texts)}
        return {name: torch.cat([found[text][name] for text in texts]) for name in found[texts[0]]}

    def _kept(self) -> TextCache:
        """What the set in use has read so far."""
        numbers, name = self._weights.of_encoders(), self._weights.active
        if name not in self._read_by or not torch.equal(self._read_by[name][0], numbers):
            self._read_by[name] = numbers, TextCache(self._read_all)
        return self._read_by[name][1]

    def _read_all(self, texts: list[str]) -> list[Encoded]:
        """Without the batch's dimension, on the CPU."""
        return [{name: one[0].cpu() for name, one in self._read_one(text, False).items()} for text in texts]

    def _read_one(self, text: str, again: bool) -> Encoded:
        """[1, ...] of each entry. again: its activations are not kept for backward."""
        here = torch.empty(0, device=self.device)  # by which `checkpoint` knows whose random stream dropout draws from
        if again:
            found: Encoded = checkpoint(self._read_here, text, here, use_reentrant=False)
            return found
        return self._read_here(text, here)

    def _read_here(self, text: str, here: Tensor) -> Encoded:
        with self._precision(), self._weights.calling(), quiet():
            return self._encode_live(text)

    # ---- by encoders that are not

    @torch.no_grad()
    def _encode_texts(self, texts: list[str]) -> list[Encoded]:
        """Without the batch's dimension, on the CPU; the text encoders visit the device only for this.

        One text a call: in a batch the last bits would depend on which texts the cache already held, and a resumed run
        would differ from an uninterrupted one.
        """
        self._warn_of_truncation(texts)
        encode = self._encode_fixed if self._trained else self._encode_text
        try:
            for encoder in self._visitors:
                encoder.to(self.device)
            with quiet():
                found = [encode(text) for text in texts]
            return [{name: tensor[0].cpu() for name, tensor in one.items()} for one in found]
        finally:
            for encoder in self._visitors:
                encoder.to("cpu")

    @property
    def _visitors(self) -> list[Any]:
        """The text encoders that are not trained."""
        trained = [encoder.network for encoder in self._trained]
        return [one for one in self._encoders if not any(one is other for other in trained)]

    def too_long(self, texts: Sequence[str]) -> tuple[list[str], int]:
        """Those that are not read to their end, and how many tokens are read."""
        tokenizer, most = self._longest()
        return [text for text in texts if len(tokenizer(text, verbose=False).input_ids) > most], most

    def _warn_of_truncation(self, texts: list[str]) -> None:
        long, most = self.too_long(texts)
        if long:
            many = f"{len(long)} of {len(texts)} prompts are longer than the {most} tokens this model reads"
            warnings.warn(f"{many}; the rest of each is not seen by it. The first: {long[0]!r}", stacklevel=2)

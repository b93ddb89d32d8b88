"""Detectors that find what they are asked for in words: OWLv2 and Grounding DINO, of transformers.

A detector takes pictures [B,3,H,W] in [0,1] and a list of texts for each, and gives for each the boxes that it saw and
how sure it is of every text for every box. Pictures are resized in torch, in the way of transformers' processors where
a picture grows, which needs no torchvision.

    OWLv2            Minderer et al. 2023, arXiv:2306.09683
    Grounding DINO   Liu et al. 2023, arXiv:2303.05499
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tastemaker.prompts.english import with_article
from tastemaker.rewards import preprocess, weights
from tastemaker.rewards.composition import Found

_OWL_TOKENS = 16  # of a text
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EDGES = (800, 1333)  # a picture's shorter side for Grounding DINO, and the most that its longer may have


class Detector(Protocol):
    """Asked for texts, finds boxes; what it says of a picture does not depend on the others of a call."""

    network: Any

    def __call__(self, images: Tensor, texts: Sequence[Sequence[str]]) -> list[Found]: ...


def load(place: Path, *, dtype: torch.dtype, reward: str) -> Detector:
    """The detector in a folder of transformers' layout. Errors: ValueError where it is of another kind."""
    from transformers import AutoModelForZeroShotObjectDetection, BertTokenizer, CLIPTokenizer

    config = place / "config.json"
    kind = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
    if kind not in ("owlv2", "grounding-dino"):
        raise ValueError(
            f"reward `{reward}`: model {place} is {kind or 'no folder with a config.json'}; needed is an OWLv2 or a "
            "Grounding DINO in transformers' layout."
        )
    with weights.quiet():
        network: Any = AutoModelForZeroShotObjectDetection.from_pretrained(
            str(place), dtype=dtype, local_files_only=True
        )
    network.requires_grad_(False).eval()
    if kind == "owlv2":
        return Owl(network, CLIPTokenizer.from_pretrained(str(place), local_files_only=True))
    told = place / "preprocessor_config.json"
    size = json.loads(told.read_text(encoding="utf-8")).get("size") if told.is_file() else None
    edges = (size["shortest_edge"], size["longest_edge"]) if size else _EDGES
    return GroundingDino(network, BertTokenizer.from_pretrained(str(place), local_files_only=True), edges)


def _corners(boxes: Tensor, scale: Tensor) -> Tensor:
    """Boxes [N,4] (left, top, right, bottom) of (middle, size) in shares of `scale`, in its units; fp32."""
    middle, size = boxes.float().unflatten(-1, (2, 2)).unbind(-2)
    return torch.cat([(middle - size / 2) * scale, (middle + size / 2) * scale], -1)


@dataclass
class Owl:
    """OWLv2: every patch of a square picture is a box, and is sure of a text by their vectors' product."""

    network: Any
    words: Any

    def __call__(self, images: Tensor, texts: Sequence[Sequence[str]]) -> list[Found]:
        height, width = images.shape[-2:]
        side = max(height, width)
        square = F.pad(images.float(), (0, side - width, 0, side - height))
        pixels = preprocess.prepare(square, self.network.config.vision_config.image_size, "bilinear")
        most = max(map(len, texts))
        read = [self._read(row, most) for row in texts]
        ids, mask = (torch.cat(part).to(pixels.device) for part in zip(*read, strict=True))
        said = self.network(pixel_values=pixels.to(self.network.dtype), input_ids=ids, attention_mask=mask)
        boxes = _corners(said.pred_boxes, torch.tensor([side, side], device=pixels.device)).cpu()
        scores = said.logits.float().sigmoid().cpu()
        return [Found(boxes[k], scores[k, :, : len(row)]) for k, row in enumerate(texts)]

    def _read(self, texts: Sequence[str], most: int) -> tuple[Tensor, Tensor]:
        """Ids and mask [most, tokens]; rows of zeros, which the network passes over, fill them up."""
        rows = [f"a photo of {with_article(text)}" for text in texts]
        ids, mask = torch.zeros(2, most, _OWL_TOKENS, dtype=torch.long)
        for k, row in enumerate(self.words(rows, truncation=True, max_length=_OWL_TOKENS).input_ids):
            ids[k, : len(row)] = torch.tensor(row)
            mask[k, : len(row)] = 1
        mask[:, 0] = 1
        return ids, mask


@dataclass
class GroundingDino:
    """Grounding DINO: reads all texts as one sentence of phrases, and is sure of one by its surest token."""

    network: Any
    words: Any
    edges: tuple[int, int] = _EDGES

    def __call__(self, images: Tensor, texts: Sequence[Sequence[str]]) -> list[Found]:
        pixels = self._pixels(images)
        sentences = [self._sentence(row) for row in texts]
        ids = torch.zeros(len(texts), max(len(row) for row, _ in sentences), dtype=torch.long)
        for k, (row, _) in enumerate(sentences):
            ids[k, : len(row)] = torch.tensor(row)
        said = self.network(
            pixel_values=pixels.to(self.network.dtype),
            input_ids=ids.to(pixels.device),
            attention_mask=(ids > 0).long().to(pixels.device),
        )
        scale = torch.tensor([images.shape[-1], images.shape[-2]], device=pixels.device)
        boxes, sure = _corners(said.pred_boxes, scale).cpu(), said.logits.float().sigmoid().cpu()
        return [
            Found(boxes[k], torch.stack([sure[k, :, span].amax(1) for span in spans], 1))
            for k, (_, spans) in enumerate(sentences)
        ]

    def _sentence(self, texts: Sequence[str]) -> tuple[list[int], list[slice]]:
        """Ids of `text. text. text.`, and where each text stands in them."""
        stop = self.words.convert_tokens_to_ids(".")
        ids, spans = [self.words.cls_token_id], []
        for text in texts:
            read = self.words(text.lower(), add_special_tokens=False).input_ids
            spans.append(slice(len(ids), len(ids) + len(read)))
            ids += [*read, stop]
        if len(ids) >= self.network.config.max_text_len:
            raise ValueError(
                f"{len(texts)} texts are more than Grounding DINO reads at once: {', '.join(texts[:3])}, ..."
            )
        return [*ids, self.words.sep_token_id], spans

    def _pixels(self, images: Tensor) -> Tensor:
        """Resized with all that is in them, so that the shorter side has its length unless the longer got too long."""
        pixels, (height, width) = images.float(), images.shape[-2:]
        scale = min(self.edges[0] / min(height, width), self.edges[1] / max(height, width))
        down, across = (preprocess.matrix(side, round(side * scale), "bilinear").to(pixels) for side in (height, width))
        shift, spread = (pixels.new_tensor(row)[:, None, None] for row in (_MEAN, _STD))
        return (down @ (pixels @ across.T) - shift) / spread

"""The oracle reads a Shapes picture without any network: count, colour, shape and background, each with a confidence.

Objects are the connected regions of strong chroma (no background reaches it). A region's colour is the nearest of the
palette, its shape the best overlap with templates made by the world's own drawing. "unsure" is an answer; nothing
raises.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tastemaker.rewards.reward import Scores
from tastemaker.shapes import texture
from tastemaker.shapes.captions import read as read_caption
from tastemaker.shapes.drawing import COLOURS, OUTLINE, SHAPES, SIZE
from tastemaker.shapes.templates import FINER, enlarged, normalised, templates

UNSURE = "unsure"
_CHROMA = 0.33  # objects lie above 0.45, backgrounds below 0.24
_LIKE = 0.66  # overlap below which nothing is recognised
_CLEAR = 0.06  # overlap by which an object is clearly another shape
_NEAR = 0.25  # logarithm of the ratio of sizes within which a template is compared as it is
_SMALLEST = 20  # pixels of an object's inside
_PALETTE = np.array(list(COLOURS.values())) / 255
_COLOURS = tuple(COLOURS)
_INK = np.array(OUTLINE) / 255


class Answer(NamedTuple):
    """One reading; confidence in [0, 1]. `value` is `unsure` (0 for a count) where the picture does not tell."""

    value: str
    confidence: float


@dataclass(frozen=True)
class Reading:
    """What the oracle sees in one picture. `count` is the number of objects, 0 when there is none."""

    count: int
    colour: Answer
    shape: Answer
    background: Answer


def read(images: Tensor) -> list[Reading]:
    """Readings of `images [B,3,H,W]` in [0, 1]; other sizes than 64x64 are resized."""
    x = torch.nan_to_num(images.detach().float().cpu()).clamp(0, 1)
    if x.shape[-2:] != (SIZE, SIZE):
        x = F.interpolate(x, (SIZE, SIZE), mode="area")
    chroma = x.amax(1) - x.amin(1)
    inside = chroma > _CHROMA
    labels = _components(inside)
    around = F.max_pool2d(inside[:, None].float(), 13, 1, 6)[:, 0] > 0
    free = (~around).numpy()
    pixels = x.permute(0, 2, 3, 1).numpy()
    return [_reading(p, c, m, f) for p, c, m, f in zip(pixels, chroma.numpy(), labels.numpy(), free, strict=True)]


def alignment(images: Tensor, prompts: Sequence[str]) -> Scores:
    """How much of the caption the picture shows `[B]`: half for the count, a quarter each for colour and shape.

    A count that misses by one is worth half of the count's share. A prompt of another world scores NaN. The parts
    `count`, `colour` and `shape` are 1 where the picture shows what was asked and 0 where not.
    """
    rows = [_aligned(seen, text) for seen, text in zip(read(images), prompts, strict=True)]
    value, count, colour, shape = torch.tensor(rows).reshape(-1, 4).unbind(1)
    return Scores(value, {"count": count, "colour": colour, "shape": shape})


alignment.oracle = True  # type: ignore[attr-defined]  # alarms on reward hacking are judged by it, and never read it


def _aligned(seen: Reading, text: str) -> tuple[float, float, float, float]:
    """Score, and whether count, colour and shape are as asked."""
    asked = read_caption(text)
    if asked is None:
        return (float("nan"),) * 4
    count, colour, shape = asked
    right = float(seen.colour.value == colour), float(seen.shape.value == shape)
    near = {0: 1.0, 1: 0.5}.get(abs(seen.count - count), 0.0) if seen.count else 0.0
    return 0.5 * near + 0.25 * sum(right), float(seen.count == count), *right


def _components(inside: Tensor) -> Tensor:
    """Labels `[B,H,W]` of a mask's 8-connected regions, 0 outside: every pixel takes its region's largest index."""
    b, h, w = inside.shape
    label = torch.arange(1, h * w + 1, dtype=torch.float32).view(1, h, w) * inside
    while True:
        spread = F.max_pool2d(F.max_pool2d(label[:, None], 3, 1, 1) * inside[:, None], 3, 1, 1)[:, 0] * inside
        if torch.equal(spread, label):
            return label.long()
        label = spread


def _reading(
    pixels: NDArray[np.float32], chroma: NDArray[np.float32], labels: NDArray[np.int64], free: NDArray[np.bool_]
) -> Reading:
    background = Answer(*texture.kind(pixels, free))
    names, sizes = np.unique(labels[labels > 0], return_counts=True)
    regions = [labels == name for name, size in zip(names, sizes, strict=True) if size >= _SMALLEST]
    if not regions:
        return Reading(0, Answer(UNSURE, 0.0), Answer(UNSURE, 0.0), background)
    colours = [_colour(pixels, chroma, region) for region in regions]
    shapes = np.stack([_overlaps(pixels, chroma, region) for region in regions])
    return Reading(len(regions), _agreed(colours), _shape(shapes), background)


def _agreed(answers: list[Answer]) -> Answer:
    """The objects' vote, each weighed by its confidence; under three fifths of the weight it is unsure."""
    weights: dict[str, float] = {}
    for answer in answers:
        weights[answer.value] = weights.get(answer.value, 0.0) + answer.confidence + 1e-3
    best = max(weights, key=weights.__getitem__)
    share = weights[best] / sum(weights.values())
    confidence = share * float(np.mean([a.confidence for a in answers if a.value == best]))
    return Answer(best if share > 0.6 else UNSURE, confidence)


def _colour(pixels: NDArray[np.float32], chroma: NDArray[np.float32], region: NDArray[np.bool_]) -> Answer:
    """Nearest of the palette to the mean of the region's stronger half."""
    core = region & (chroma >= np.median(chroma[region]))
    distance = np.linalg.norm(_PALETTE - pixels[core].mean(0), axis=1)
    order = np.argsort(distance)
    margin = float(1 - distance[order[0]] / distance[order[1]])
    sure = distance[order[0]] < 0.30 and margin > 0.08
    return Answer(_COLOURS[order[0]] if sure else UNSURE, margin)


def _overlaps(
    pixels: NDArray[np.float32], chroma: NDArray[np.float32], region: NDArray[np.bool_]
) -> NDArray[np.floating]:
    """Best intersection over union of the region with the templates of each shape, `[5]`.

    The edge lies half-way from outline to fill, in colour and in chroma: JPEG halves the chroma's resolution, so
    colour bleeds into the outline while its brightness stays.
    """
    y, x = np.nonzero(region)
    window = np.s_[max(y.min() - 2, 0) : y.max() + 3, max(x.min() - 2, 0) : x.max() + 3]
    core = region & (chroma >= np.median(chroma[region]))
    fill = pixels[core].mean(0) - _INK
    along = (pixels[window] - _INK) @ fill / (fill @ fill)
    share = np.minimum(along, chroma[window] / chroma[core].mean()).clip(0, 1) * _grown(region[window])
    fine = enlarged(share) > 0.5
    mask = normalised(fine)
    masks, names, sizes = templates()
    common = masks @ mask
    overlap = common / (masks.sum(1) + mask.sum() - common)
    apart = np.abs(np.log(sizes * FINER / np.sqrt(fine.sum())))
    overlap = np.where(apart < _NEAR, overlap, overlap - apart)
    return np.array([overlap[names == k].max() for k in range(len(SHAPES))])


def _shape(overlaps: NDArray[np.floating]) -> Answer:
    """The shape that all objects `[objects, 5]` together overlap best; unsure where two in five clearly differ."""
    together = overlaps.mean(0)
    second, first = np.argsort(together)[-2:]
    ranked = np.sort(overlaps, axis=1)
    clear = (overlaps.argmax(1) != first) & (ranked[:, -1] - ranked[:, -2] > _CLEAR)
    confidence = min(1.0, 4 * float(together[first] - together[second]))
    sure = together[first] > _LIKE and clear.mean() < 0.4
    return Answer(SHAPES[first] if sure else UNSURE, confidence)


def _grown(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The region and every pixel beside it."""
    padded = np.pad(region, 1)
    h, w = region.shape
    return np.logical_or.reduce([padded[a : a + h, b : b + w] for a in range(3) for b in range(3)])

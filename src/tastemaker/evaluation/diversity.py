"""Diversity: how far a prompt's pictures lie apart, the mean distance over their pairs.

Every metric here is the squared distance of vectors v, one a picture, so no pair need ever be formed:

    mean over i < j of |v_i - v_j|^2  =  2 / (n - 1) (sum_i |u_i|^2 - |sum_i u_i|^2 / n),     u_i = v_i - v_1

at n passes through a network and the memory of one batch. A model that draws one and the same picture for a prompt,
however good a picture, has 0. The mean does not depend on n, but on the metric and on the pictures' size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from tastemaker.evaluation import lpips
from tastemaker.evaluation.statistics import Interval, bootstrap, paired
from tastemaker.iteration import Progress, Silence
from tastemaker.rewards.reward import NamedReward

G = TypeVar("G", bound=Hashable)


class Metric(Protocol):
    """What distance means. `name` stands beside every number; `note` says why it is not LPIPS where that was wanted."""

    @property
    def name(self) -> str: ...
    @property
    def note(self) -> str: ...
    @property
    def device(self) -> torch.device: ...

    def __call__(self, images: Tensor) -> Tensor:
        """Vectors [B,D] of pictures [B,3,H,W] in [0,1], whose squared distances are the metric's."""
        ...


@dataclass(frozen=True)
class Perceptual:
    """LPIPS, a number without unit."""

    network: lpips.LPIPS
    note: str = ""
    name: str = "LPIPS (AlexNet)"

    @property
    def device(self) -> torch.device:
        """Where its network is."""
        return self.network.heads[0].device

    def __call__(self, images: Tensor) -> Tensor:
        return self.network.vectors(images)


@dataclass(frozen=True)
class Embedding:
    """One minus the cosine of what a reward's `embed(images) -> [B,D]` makes of two pictures: 0 to 2."""

    reward: NamedReward
    note: str = ""

    @property
    def name(self) -> str:
        """Says whose embedding."""
        return f"cosine in {self.reward.name}"

    @property
    def device(self) -> torch.device:
        """The reward's."""
        return self.reward.device or torch.device("cpu")

    def __call__(self, images: Tensor) -> Tensor:
        found = _embed(self.reward)(images)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            form = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"`embed` of reward `{self.reward.name}` gave {form}, needed is [{len(images)}, D].")
        return torch.nn.functional.normalize(found.float(), dim=1) / 2**0.5  # |a - b|^2 / 2 = 1 - cos


@dataclass(frozen=True)
class Pixels:
    """Mean squared difference of colours in [0, 1]: 1 for black and white. Sees a shift as much as another subject."""

    note: str = ""
    name: str = "pixels (mean squared)"
    device: torch.device = torch.device("cpu")

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().flatten(1) / images[0].numel() ** 0.5


def metric_for(
    weights: str = "auto",
    rewards: Sequence[NamedReward] = (),
    *,
    size: int | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Metric:
    """The metric that `--lpips_weights` means: LPIPS, else the first reward's embedding that has one, else pixels.

    weights: `auto` takes the published ones where they lie in the torch hub's folder; `download` fetches them; `off`
    takes none; else a file or a folder. Only for `auto` may something else stand in. size: the pictures' shorter side.
    Errors: ValueError where what was named is not to be had or not LPIPS, or the pictures are too small for it.
    """
    why = ""
    if size is not None and size < lpips.SMALLEST and weights != "off":
        why = f"pictures of {size} pixels are too small for LPIPS, which needs {lpips.SMALLEST}."
    if weights not in ("auto", "off"):
        if why:
            raise ValueError(f"--lpips_weights: {why} Take `--lpips_weights off`.")
        network = lpips.published(progress) if weights == "download" else lpips.load(weights)
        return Perceptual(network.to(device))
    if weights == "auto" and not why:
        if lpips.missing():
            why = "its weights are not here (--lpips_weights download fetches them, 233 MB)."
        else:
            return Perceptual(lpips.published().to(device))
    embedding = next((reward for reward in rewards if callable(_embed(reward))), None)
    metric = Pixels() if embedding is None else Embedding(embedding)
    return replace(metric, note=f"diversity is measured as {metric.name}, not by LPIPS: {why}") if why else metric


def _embed(reward: NamedReward) -> Any:
    return getattr(reward.function, "embed", None)


@torch.no_grad()
def measure(
    metric: Metric,
    pictures: Sequence[Tensor],
    groups: Sequence[G],
    *,
    batch: int = 8,
    progress: Progress | None = None,
) -> dict[G, float]:
    """Mean distance over the pairs of each group's pictures, by group; NaN for a group of one picture.

    pictures: uint8 [3,H,W] (or floats in [0,1]), of one size; groups: whose each is. batch: pictures a call.
    Errors: ValueError where pictures and groups are not equally many.
    """
    if len(pictures) != len(groups):
        raise ValueError(f"{len(pictures)} pictures of {len(groups)} groups: give the group of each picture.")
    counts, progress = Counter(groups), progress or Silence()  # in the order of the groups' first pictures
    rows = sorted((row for row in range(len(groups)) if counts[groups[row]] > 1), key=_places(groups).__getitem__)
    progress.begin("diversity", len(rows))
    stream = _vectors(metric, pictures, rows, batch, progress)
    found = dict.fromkeys(counts, float("nan"))
    for group, members in groupby(rows, key=lambda row: groups[row]):
        found[group] = _over_pairs(stream, len(list(members)))
    return found


def _places(groups: Sequence[G]) -> list[int]:
    """The place of each picture's group."""
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    return [places[group] for group in groups]


def _vectors(
    metric: Metric, pictures: Sequence[Tensor], rows: Sequence[int], batch: int, progress: Progress
) -> Iterator[Tensor]:
    """The pictures' vectors [D], one after another."""
    for first in range(0, len(rows), batch):
        images = torch.stack([pictures[row] for row in rows[first : first + batch]]).to(metric.device)
        vectors = metric(images if images.is_floating_point() else images.float() / 255)
        progress.advance(len(images))
        yield from vectors


def _over_pairs(vectors: Iterator[Tensor], n: int) -> float:
    """Mean squared distance over the pairs of the next n vectors, n > 1."""
    origin = next(vectors)  # differences from it are exact for pictures that are alike
    total, squares = torch.zeros_like(origin), 0.0
    for vector in islice(vectors, n - 1):
        step = vector - origin
        total += step
        squares += float(step.square().sum())
    return 2 * (squares - float(total.square().sum()) / n) / (n - 1)


class Diversity(NamedTuple):
    """A tuned model's diversity against its base's: means over prompts with bootstrap intervals over prompts."""

    metric: str
    base: Interval
    tuned: Interval
    change: Interval  # paired


def over_prompts(values: Mapping[G, float], *, key: object = 0) -> Interval:
    """Mean over prompts of what `measure` gave, with its bootstrap interval; a prompt without a number is left out."""
    return bootstrap(list(values.values()), list(values), key=key)


def compare(metric: str, base: Mapping[G, float], tuned: Mapping[G, float], *, seed: int = 0) -> Diversity:
    """Two models' diversity on the same prompts, by the metric of that name; the change is over prompts of both."""
    key, both = (seed, "diversity"), [group for group in base if group in tuned]
    change = paired([base[group] for group in both], [tuned[group] for group in both], both, key=key)
    return Diversity(metric, over_prompts(base, key=key), over_prompts(tuned, key=key), change)

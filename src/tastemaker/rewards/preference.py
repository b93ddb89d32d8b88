"""CLIPs tuned on people's choices between pictures of one prompt: PickScore and the Human Preference Score v2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tastemaker.rewards.clip import HUGE, Clip
from tastemaker.rewards.facts import HPS, PICKSCORE, Published


@dataclass(frozen=True)
class PickScore(Clip):
    """Which picture people would choose, by PickScore: Kirstain et al. 2023, arXiv:2305.01569. About 17 to 24.

    value [B] = exp(s) <v(picture), w(prompt)> / (|v| |w|),   of a CLIP ViT-H/14 tuned on Pick-a-Pic; exp(s) is 100

    Its scores compare pictures of one prompt: the chance that one is chosen over another is the logistic function of
    the difference.
    """

    model: str = PICKSCORE.name
    """The network: a hub id, a folder in transformers' layout, or one file in its or open_clip's names."""

    name: ClassVar[str] = "pickscore"
    published: ClassVar[Published] = PICKSCORE
    architecture: ClassVar[Mapping[str, Any]] = HUGE

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B], where the pictures are."""
        cosine = self.cosine(images, prompts)
        return (self.network.logit_scale.to(cosine).exp() * cosine).to(images.device)


@dataclass(frozen=True)
class HPSv2(Clip):
    """Which picture people would prefer, by the Human Preference Score v2: Wu et al. 2023, arXiv:2306.09341.

    value [B] = <v(picture), w(prompt)> / (|v| |w|),   of a CLIP ViT-H/14 tuned on HPD v2

    About 0.2 to 0.35, as hpsv2's own `score`; its tables print it times 100. Scores compare pictures of one prompt.
    """

    model: str = HPS["v2.0"].name
    """The checkpoint: a hub id, a folder, or one file in open_clip's or transformers' names."""
    version: str = "v2.0"
    """Which of the published checkpoints: v2.0 or v2.1; their scores do not compare."""

    name: ClassVar[str] = "hpsv2"
    architecture: ClassVar[Mapping[str, Any]] = HUGE

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version not in HPS:
            raise ValueError(f"version is {self.version!r}; it is one of {', '.join(HPS)}.")

    @property
    def published(self) -> Published:  # type: ignore[override]
        """The checkpoint of that version."""
        return HPS[self.version]

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosines [B], where the pictures are."""
        return self.cosine(images, prompts).to(images.device)

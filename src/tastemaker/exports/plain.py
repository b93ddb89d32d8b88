"""The tuned model as plain diffusers: the base as its owner publishes it, with the tuned weights laid on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tastemaker.policy.load import find, half, quiet

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def load_plain(settings: Mapping[str, Any], weights: Path, device: str) -> DiffusionPipeline:
    """The pipeline of a run's settings with its weights: a LoRA file, or the folder of a whole pipeline."""
    import torch

    from tastemaker.policy.pipelines import plain

    dtype = (half(settings["mixed_precision"]) if device != "cpu" else None) or torch.float32
    if weights.is_dir():
        return plain(find(str(weights)), dtype).to(device)
    pipeline = plain(find(str(settings["model"]), settings["revision"], settings["variant"]), dtype)
    with quiet():
        pipeline.load_lora_weights(weights.parent, weight_name=weights.name)
        return pipeline.to(device)

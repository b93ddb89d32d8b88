"""What things hold, in a few letters: by which the processes of a run find out that they have the same."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tastemaker import shards
from tastemaker.policy.policy import Exportable
from tastemaker.prompts.functions import is_function_spec
from tastemaker.prompts.prompts import PromptSource
from tastemaker.prompts.sources import Listed
from tastemaker.rewards.terms import is_sum, whole
from tastemaker.rewards.trained import CARD

PACKAGE = Path(__file__).parent
MOST = 200_000  # prompts that are read, a second or two; of longer lists those that are drawn stand for all
ROOM = 2**28  # bytes of a folder's files that are read; of larger ones names and sizes stand for what is in them
UNREADABLE = "unreadable"
FEW = 2**30  # bytes of trained tensors, an adapter's and more: every one of them is compared


def of_prompts(source: PromptSource) -> str:
    """All texts with their metadata; empty where they are made by a function, or too many."""
    if not isinstance(source, Listed) or len(source.entries) > MOST:
        return ""
    return _digest(
        json.dumps([source.entries[row] for row in range(start, min(start + 1000, len(source.entries)))], default=_kind)
        for start in range(0, len(source.entries), 1000)
    )


def of_package() -> str:
    """The text of every module of Tastemaker: a version's number stays while one works on it."""
    return _of_folder(PACKAGE, "*.py")


def of_files(settings: Mapping[str, Any]) -> dict[str, str]:
    """Of the files of rewards and of prompt functions, and of trained rewards' folders, by the setting and the name.

    Those of one name under one setting are counted. It never raises: one process alone would end.
    """
    found, counts = dict[str, str](), Counter[str]()
    for key, spec in _named(settings):
        for path in _paths(spec):
            name = f"{path.name} ({key})"
            counts[name] += 1
            found[name if counts[name] == 1 else f"{name}, number {counts[name]}"] = _of_path(path)
    return found


def of_weights(policy: Exportable) -> dict[str, str]:
    """The trained tensors bit for bit, where they are no whole network; of all others sums over their bits.

    Of tensors that are spread over the processes it is a sum too, taken before they were.
    """
    trained = policy.named_parameters()
    few = sum(tensor.nbytes for tensor in trained.values()) <= FEW
    found = {"trained weights": _digest(_exact(trained) if few else _sums(trained))}
    return found | {f"frozen {part}": _digest(_sums(tensors)) for part, tensors in policy.frozen().items()}


def _named(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What settings name: rewards one by one, of sums every term; prompts."""
    rewards = [("reward", settings.get("reward"))]
    for key, one in rewards + [("held_out_rewards", one) for one in settings.get("held_out_rewards") or ()]:
        yield from ((key, term) for term in (whole(one, key=key)["sum"] if is_sum(one) else [one]))
    yield "prompts", settings.get("prompts")
    yield "evaluation.prompts", (settings.get("evaluation") or {}).get("prompts")


def _paths(spec: Any) -> Iterator[Path]:
    """The files and the trained rewards' folders that are named there, in settings of it too."""
    if isinstance(spec, Mapping):
        for part in spec.values():
            yield from _paths(part)
    elif isinstance(spec, str | Path):
        if path := _path(str(spec)):
            yield path
    elif callable(spec):
        yield from _source(spec)


def _path(text: str) -> Path | None:
    """What it names; None where it is no path, as most texts are: too long, no such user's folder, no permission."""
    function = is_function_spec(text)
    try:
        path = Path(text.rpartition(":")[0] if function else text).expanduser()
        return path if (path if function else path / CARD).is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _source(function: Callable[..., Any]) -> Iterator[Path]:
    """The file in which somebody wrote a function, an object's class, or what is bound in a partial."""
    function = getattr(function, "func", function)
    try:
        file = inspect.getsourcefile(function if inspect.isroutine(function) else type(function))
        if file and Path(file).is_file():
            yield Path(file)
    except (TypeError, OSError, ValueError):  # TypeError: written in C
        return


def _of_path(path: Path) -> str:
    return _of_folder(path, "*") if os.path.isdir(path) else _of_file(path)


def _of_folder(folder: Path, pattern: str) -> str:
    """Names and contents, in the order of the names; of more than ROOM names and sizes."""
    try:
        files = sorted(path for path in folder.rglob(pattern) if path.is_file() and "__pycache__" not in path.parts)
        sizes = [path.stat().st_size for path in files]
    except OSError:  # one of them vanished meanwhile
        return UNREADABLE
    much = sum(sizes) > ROOM
    told = (str(size) if much else _of_file(path) for path, size in zip(files, sizes, strict=True))
    return _digest(part for path, one in zip(files, told, strict=True) for part in (str(path.relative_to(folder)), one))


def _of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        return UNREADABLE


def _digest(parts: Any) -> str:
    """Of texts and bytes, in this order and apart from each other."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        found.update(f"{len(data)} ".encode())
        found.update(data)
    return found.hexdigest()[:16]


def _kind(value: Any) -> str:
    """Metadata that is no JSON, by what it is: its address would be another on every process."""
    return type(value).__name__


def _told(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _exact(tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    """Names, kinds and bytes, in the order of the names."""
    for name, tensor in sorted(tensors.items()):
        yield f"{name} {_told(tensor)}"
        if shards.is_sharded(tensor):
            yield str(shards.bits(tensor))
        else:
            yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _sums(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Names, kinds and sums, likewise."""
    return (f"{name} {_told(tensor)} {shards.bits(tensor)}" for name, tensor in sorted(tensors.items()))

"""What things hold, in a few letters: by which the processes of a run find out that they have the same."""

from __future__ import annotations

import hashlib
import inspect
import json
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

PACKAGE = Path(__file__).parent
MOST = 200_000  # prompts that are read, a second or two; of longer lists those that are drawn stand for all
LONGEST = 1000  # letters of a path
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
    """Of the files of rewards and of prompt functions, and of trained rewards' folders, by the setting and the name."""
    found = {}
    for key, spec in _named(settings):
        for path in _paths(spec):
            found[f"{path.name} ({key})"] = _of_folder(path, "*") if path.is_dir() else _digest([path.read_bytes()])
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
    """The files and folders that are named there, in settings of it too."""
    if isinstance(spec, Mapping):
        for part in spec.values():
            yield from _paths(part)
    elif isinstance(spec, str | Path):
        file = Path(str(spec).rpartition(":")[0] if is_function_spec(str(spec)) else spec).expanduser()
        if len(str(spec)) < LONGEST and (file.is_file() if is_function_spec(str(spec)) else file.is_dir()):
            yield file
    elif callable(spec):
        yield from _source(spec)


def _source(function: Callable[..., Any]) -> Iterator[Path]:
    """The file in which somebody wrote a function, an object's class, or what is bound in a partial."""
    function = getattr(function, "func", function)
    try:
        file = inspect.getsourcefile(function if inspect.isroutine(function) else type(function))
    except TypeError:  # written in C
        return
    if file and Path(file).is_file():
        yield Path(file)


def _of_folder(folder: Path, pattern: str) -> str:
    files = sorted(path for path in folder.rglob(pattern) if path.is_file() and "__pycache__" not in path.parts)
    return _digest(part for path in files for part in (path.relative_to(folder).as_posix(), path.read_bytes()))


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

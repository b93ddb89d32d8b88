"""Sources of prompts: lists, text files, the tables' sets, and functions written by users."""

import importlib
import inspect
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tastemaker.prompts.functions import is_function_spec, load_function, missing_file, unknown
from tastemaker.prompts.prompts import Prompts, PromptSource

Entry = tuple[str, Any]  # a text and its metadata

# name -> "module:function"; the function returns the texts
TABLE: dict[str, str] = {
    "shapes": "tastemaker.shapes.captions:train",
    "shapes_heldout": "tastemaker.shapes.captions:heldout",
}


@dataclass(frozen=True)
class Listed:
    """A fixed list of prompts.

    A draw goes through the whole list in a shuffled order before any prompt comes a second time.
    """

    name: str
    entries: tuple[Entry, ...]

    def draw(self, rng: random.Random, count: int) -> Prompts:
        """`count` prompts: whole shuffles of the list, the last one cut short."""
        rows: list[int] = []
        while len(rows) < count:
            rows += rng.sample(range(len(self.entries)), min(len(self.entries), count - len(rows)))
        drawn = [self.entries[row] for row in rows]
        return Prompts.of([text for text, _ in drawn], [metadata for _, metadata in drawn])


@dataclass(frozen=True)
class Function:
    """Prompts made by a function `() -> text` or `() -> (text, metadata)`, called once a prompt (ddpo-pytorch's rule).

    The function may draw from Python's, numpy's and torch's own (CPU) generators: they are seeded from `rng` for the
    calls and put back afterwards, so a draw is a function of `rng` alone and disturbs nobody else's numbers.
    """

    name: str
    function: Callable[[], str | Entry]

    def draw(self, rng: random.Random, count: int) -> Prompts:
        """`count` calls of the function."""
        with _global_generators(rng):
            drawn = [_entry(self.function(), f"prompts: `{self.name}` returned") for _ in range(count)]
        return Prompts.of([text for text, _ in drawn], [metadata for _, metadata in drawn])


def source(
    spec: str | Sequence[str | Entry] | Callable[[], Any] | PromptSource, *, key: str = "prompts"
) -> PromptSource:
    """The source that a user names: a name of the table, a .txt file, `file.py:function`, a list, a function, a source.

    A list holds texts or (text, metadata). Errors: ValueError naming `key`, what was found and what to do.
    """
    if isinstance(spec, str):
        return _named(spec, key)
    if isinstance(spec, Prompts):
        return _listed("prompts", list(zip(spec.texts, spec.metadata, strict=True)), key)
    if isinstance(spec, Sequence):
        return _listed("list", spec, key)
    if callable(getattr(spec, "draw", None)):
        return spec  # type: ignore[return-value]
    if callable(spec):
        return _function(getattr(spec, "__name__", type(spec).__name__), spec, key)
    raise ValueError(
        f"{key}: found a {type(spec).__name__}. Give a list of texts, a name ({', '.join(TABLE)}), a .txt file, "
        "`file.py:function` or a function."
    )


def _named(spec: str, key: str) -> PromptSource:
    if spec in TABLE:
        module, _, function = TABLE[spec].partition(":")
        return _listed(spec, getattr(importlib.import_module(module), function)(), key)
    if is_function_spec(spec):
        return _function(spec.rpartition(":")[2], load_function(spec, key=key), key)
    if spec.endswith(".txt") or os.sep in spec or Path(spec).is_file():
        return _listed(spec, _lines(Path(spec).expanduser(), key), key)
    also = "a .txt file (one prompt a line), or `path/to/file.py:function`"
    if len(spec.split()) > 1:
        also += f"; a single prompt is a list of one, [{spec!r}]"
    raise unknown(spec, TABLE, key=key, kind="prompt set", also=also)


def _listed(name: str, entries: Sequence[str | Entry], key: str) -> Listed:
    if not entries:
        raise ValueError(f"{key}: {name} holds no prompt: give at least one.")
    return Listed(name, tuple(_entry(entry, f"{key}: entry {k} is") for k, entry in enumerate(entries)))


def _function(name: str, function: Callable[[], Any], key: str) -> Function:
    needed = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise ValueError(
            f"{key}: `{name}` is called without arguments, but needs {', '.join(needed)}: give them defaults, or bind "
            "them with functools.partial."
        )
    return Function(name, function)


def _entry(found: object, where: str) -> Entry:
    if isinstance(found, str):
        return found, None
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], str):
        return found
    raise ValueError(f"{where} {found!r:.80} ({type(found).__name__}): a text or a pair (text, metadata) is needed.")


def _lines(path: Path, key: str) -> list[str]:
    """Prompts of a text file: UTF-8 with or without a byte order mark, one a line, blank lines left out."""
    if path.suffix != ".txt":
        raise ValueError(
            f"{key}: {path} is no kind of prompt file that is read: give a .txt file with one prompt a line."
        )
    if not path.is_file():
        raise ValueError(f"{key}: {missing_file(path)}")
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{key}: {path} is written in UTF-16: save it as UTF-8.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{key}: {path}:{line}: byte {data[error.start]:#04x} is not UTF-8: save the file as UTF-8."
        ) from error
    if "\0" in text:
        raise ValueError(f"{key}: {path} holds zero bytes, so it is not a text: give a UTF-8 file, one prompt a line.")
    lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    prompts = [line for line in lines if line]
    if not prompts:
        raise ValueError(f"{key}: {path} holds no prompt: write one a line.")
    return prompts


@contextmanager
def _global_generators(rng: random.Random) -> Iterator[None]:
    """Python's, numpy's and torch's (CPU) global generators seeded from `rng` inside, as they were outside."""
    # Imported by name: this package needs neither, but the user's function may import them at its first call.
    numpy, torch = importlib.import_module("numpy"), importlib.import_module("torch")
    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    random.seed(rng.getrandbits(64))
    numpy.random.seed(rng.getrandbits(32))
    torch.default_generator.manual_seed(rng.getrandbits(63))
    try:
        yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_rng_state(states[2])

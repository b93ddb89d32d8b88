"""Sources of prompts: the table's sets, files, hub data sets, lists, and functions written by users."""

import importlib
import inspect
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tastemaker.prompts import files, hub
from tastemaker.prompts.entries import Entries, Entry, at, column_of, fault, split_row, warn_of_repeats
from tastemaker.prompts.functions import bound, is_function_spec, load_function, unknown
from tastemaker.prompts.prompts import Prompts, PromptSource

# name -> "module:function"; the function returns the texts, or (text, metadata); its arguments are the set's settings
TABLE: dict[str, str] = {
    "shapes": "tastemaker.shapes.captions:train",
    "shapes_heldout": "tastemaker.shapes.captions:heldout",
    "animals": "tastemaker.prompts.words:animals",
    "animals_heldout": "tastemaker.prompts.words:animals_heldout",
    "uncommon_animals": "tastemaker.prompts.words:uncommon_animals",
    "objects": "tastemaker.prompts.words:objects",
    "imagenet": "tastemaker.prompts.words:imagenet",
    "imagenet_animals": "tastemaker.prompts.words:imagenet_animals",
    "imagenet_dogs": "tastemaker.prompts.words:imagenet_dogs",
    "nouns_activities": "tastemaker.prompts.words:nouns_activities",
    "counting": "tastemaker.prompts.words:counting",
    "pairs": "tastemaker.prompts.pairs:pairs",
    # the names that ddpo-pytorch and AlignProp have for some of them
    "simple_animals": "tastemaker.prompts.words:animals",
    "eval_simple_animals": "tastemaker.prompts.words:animals_heldout",
    "everyday_objects": "tastemaker.prompts.words:objects",
    "imagenet_all": "tastemaker.prompts.words:imagenet",
}

TEXT = "text:"  # text:a red circle is one prompt
# Sets with a sibling that evaluations take: none of its prompts is in the set.
HELD_OUT = {"shapes": "shapes_heldout", "animals": "animals_heldout", "simple_animals": "animals_heldout"}


@dataclass(frozen=True)
class Listed:
    """A fixed list of prompts.

    A draw goes through the whole list in a shuffled order before any prompt comes a second time.
    """

    name: str
    entries: Entries

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
    spec: str | Mapping[str, Any] | Sequence[str | Entry] | Callable[[], Any] | PromptSource, *, key: str = "prompts"
) -> PromptSource:
    """The source that a user names: a set of the table, a file, `hub:owner/name`, `file.py:function`, `text:a prompt`,
    or an object.

    Objects: a list of texts, of (text, metadata) or of dicts with a `prompt`; a function; a source. A set with settings
    is a dict: {"name": "counting", "high": 5}. Errors: ValueError naming `key`, what was found and what to do.
    """
    if isinstance(spec, str):
        return _named(spec, {}, key)
    if isinstance(spec, Mapping):
        settings = dict(spec)
        name = settings.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(f"{key}: found settings without a name: give {key}.name, such as {next(iter(TABLE))}.")
        return _named(name, settings, key)
    if isinstance(spec, Prompts):  # of an earlier draw: repeats are no accident
        return Listed("prompts", _entries("prompts", list(zip(spec.texts, spec.metadata, strict=True)), key))
    if isinstance(spec, Sequence):
        entries = _entries("list", spec, key)
        warn_of_repeats([text for text, _ in entries], name="the list", key=key)
        return Listed("list", entries)
    if callable(getattr(spec, "draw", None)):
        return spec  # type: ignore[return-value]
    if callable(spec):
        return _function(getattr(spec, "__name__", type(spec).__name__), spec, key)
    raise ValueError(
        f"{key}: found a {type(spec).__name__}. Give a list of texts, a name ({', '.join(TABLE)}), {files.FORMS}, "
        "`file.py:function` or a function."
    )


def _named(spec: str, settings: Mapping[str, Any], key: str) -> PromptSource:
    title = f"{spec} ({', '.join(f'{name} {value}' for name, value in settings.items())})" if settings else spec
    if spec.startswith(TEXT):
        if settings:
            raise ValueError(f"{key}.{next(iter(settings))} has no effect on a single prompt: leave it out.")
        return Listed("text", _entries("text", [spec.removeprefix(TEXT)], key))
    if spec in TABLE:
        module, _, function = TABLE[spec].partition(":")
        made = bound(getattr(importlib.import_module(module), function), settings, key=key, name=spec)
        try:
            found = made()
        except ValueError as error:  # it begins with the setting that it is about
            raise ValueError(f"{key}.{error}") from error
        return Listed(title, _entries(spec, found, key))
    if is_function_spec(spec):
        name = spec.rpartition(":")[2]
        return _function(name, bound(load_function(spec, key=key), settings, key=key, name=name), key)
    if spec.startswith(hub.PREFIX):
        read = partial(hub.read, spec.removeprefix(hub.PREFIX), key)
        return Listed(title, bound(read, settings, key=key, name=spec)())
    if _is_file(spec):
        return Listed(title, bound(partial(files.read, spec, key), settings, key=key, name=spec)())
    also = f"{files.FORMS}, hub:OWNER/NAME, or `path/to/file.py:function`"
    if len(spec.split()) > 1:
        also += f"; a single prompt is `{TEXT}{spec}`"
    raise unknown(spec, TABLE, key=key, kind="prompt set", also=also)


def _is_file(spec: str) -> bool:
    """Whether a text is meant as a file's path: by its ending (#column aside), its separators, or its being there."""
    ending = Path(spec.rpartition("#")[0] or spec).suffix.lower()
    return ending in files.READERS or os.sep in spec or Path(spec).is_file()


def _entries(name: str, found: Sequence[Any], key: str) -> tuple[Entry, ...]:
    if not found:
        raise ValueError(f"{key}: {name} holds no prompt: give at least one.")
    return tuple(_entry(one, f"{key}: entry {k} is") for k, one in enumerate(found))


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


def _entry(found: Any, where: str) -> Entry:
    entry = (found, None) if isinstance(found, str) else found
    if isinstance(found, Mapping):
        with at(f"{where} {found!r:.80}"):
            entry = split_row(dict(found), column_of(found, None))
    if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)):
        raise ValueError(
            f"{where} {found!r:.80} ({type(found).__name__}): a text or a pair (text, metadata) is needed."
        )
    wrong = fault(entry[0])
    if wrong:
        raise ValueError(f"{where} {found!r:.80}: the prompt {wrong}: give a text, or take it out.")
    return str(entry[0]), entry[1]  # numpy's texts are no plain ones, which a checkpoint would refuse


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

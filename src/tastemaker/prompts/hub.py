"""Data sets of the Hugging Face hub, or local folders in their form, through `datasets` (the extra `data`)."""

import importlib
from collections.abc import Iterator
from typing import Any

from tastemaker.prompts.entries import Entry, Rows, at, collect, column_of

PREFIX = "hub:"
BATCH = 10_000  # rows a look


def read(spec: str, key: str, *, split: str = "train", config: str = "", revision: str = "") -> Rows:
    """The prompts of `owner/name` or `owner/name#column` (`prompt`, `caption` or `text` unless it is named).

    Other columns are the metadata, a dict, except pictures, sound and films, which are never decoded. config: which of
    the data set's parts; revision: a branch, tag or commit. Errors: ValueError naming `key`.
    """
    name, _, column = spec.partition("#")
    found = _plain(_load(name, key, split, config, revision))
    with at(f"{key}: {PREFIX}{name}"):
        chosen = column_of(found.column_names, column or None)

    def entry(place: int) -> Entry:
        row = dict(found[place])
        return row.pop(chosen), row

    texts = found.select_columns([chosen])
    collect(_texts(texts, chosen), lambda text: (text, None), name=f"{PREFIX}{name}", key=key)
    return Rows(range(len(found)), entry)


def _texts(table: Any, column: str) -> Iterator[tuple[int, Any]]:
    place = 0
    for batch in table.iter(batch_size=BATCH):
        for text in batch[column]:
            yield place, text
            place += 1


def _load(name: str, key: str, split: str, config: str, revision: str) -> Any:
    # Imported by name: this package needs the standard library alone, and most users never come here.
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise ValueError(
            f"{key}: {PREFIX}{name} needs `datasets`, which is not installed here: pip install 'tastemaker[data]'"
        ) from error
    if not name:
        raise ValueError(f"{key}: {PREFIX} names no data set: write {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME#COLUMN.")
    try:
        return datasets.load_dataset(name, config or None, split=split, revision=revision or None)
    except (OSError, ValueError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{key}: {PREFIX}{name} (split {split}) could not be loaded: {said[0]} (settings: {key}.split, "
            f"{key}.config, {key}.revision)"
        ) from error


def _plain(table: Any) -> Any:
    """Without the columns that would be decoded."""
    return table.select_columns([one for one, kind in table.features.items() if not hasattr(kind, "decode_example")])

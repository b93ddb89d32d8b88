import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tastemaker.prompts.sources import Listed, source


class Picture:
    """Stands for a column that is decoded when it is looked at."""

    def decode_example(self, value: object) -> object:
        raise AssertionError("a picture was decoded")


class Table:
    """What is used of a data set, over plain columns."""

    def __init__(self, columns: dict[str, list[Any]], features: dict[str, object]) -> None:
        self.columns, self.features = columns, features
        self.column_names = list(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, row: int) -> dict[str, Any]:
        assert not any(isinstance(self.features[name], Picture) for name in self.columns)
        return {name: values[row] for name, values in self.columns.items()}

    def select_columns(self, names: list[str]) -> "Table":
        return Table({name: self.columns[name] for name in names}, {name: self.features[name] for name in names})

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        for first in range(0, len(self), batch_size):
            yield {name: values[first : first + batch_size] for name, values in self.columns.items()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    columns = {"image": [b""] * 3, "caption": ["a cat", "a dog", "a cow"], "n": [1, 2, 3], "broken": ["x", None, ""]}
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> Table:
        calls.append((name, config, split, revision))
        if split not in ("train", "test"):
            raise ValueError(f"Unknown split \"{split}\". Should be one of ['train', 'test'].\nAnd more.")
        return Table(columns, {"image": Picture(), "caption": "str", "n": "int", "broken": "str"})

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_a_data_set_of_the_hub(hub: list[tuple[Any, ...]]) -> None:
    found = source("hub:owner/name")
    drawn = found.draw(random.Random(0), 3)
    assert hub == [("owner/name", None, "train", None)] and isinstance(found, Listed) and found.name == "hub:owner/name"
    rows = {(text, data["n"], data["broken"]) for text, data in zip(drawn, drawn.metadata, strict=True)}
    assert rows == {("a cat", 1, "x"), ("a dog", 2, None), ("a cow", 3, "")} and len(drawn.metadata[0]) == 2
    assert found.draw(random.Random(0), 3) == drawn
    source({"name": "hub:owner/name#caption", "split": "test", "config": "en", "revision": "v1"})
    assert hub[1:] == [("owner/name", "en", "test", "v1")]


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("hub:o/n#words", r"hub:o/n: there is no `words`; found `caption`, `n`, `broken`"),
        ("hub:o/n#image", r"hub:o/n: there is no `image`"),
        ("hub:o/n#n", r"hub:o/n:0: the prompt is 1 \(int\), not a text"),
        ("hub:o/n#broken", r"hub:o/n:1: the prompt is null"),
        ("hub:#x", r"hub: names no data set: write hub:OWNER/NAME"),
        (
            {"name": "hub:o/n", "split": "dev"},
            r"hub:o/n \(split dev\) could not be loaded: Unknown split \"dev\"\. Should be one of .*\. \(settings: "
            r"--prompts\.split, --prompts\.config, --prompts\.revision\)$",
        ),
    ],
)
def test_data_sets_that_cannot_be_used(hub: object, spec: Any, error: str) -> None:
    with pytest.raises(ValueError, match=f"^--prompts: {error}"):
        source(spec, key="--prompts")


def test_settings_of_data_sets(hub: object) -> None:
    with pytest.raises(
        ValueError, match=r"^--prompts\.splt is not a setting of hub:o/n\. Did you mean `split`\? It has sp"
    ):
        source({"name": "hub:o/n", "splt": "test"}, key="--prompts")


def test_without_the_library_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ValueError, match=r"needs `datasets`, which is not installed here: pip install 'tastemaker\[data\]'$"
    ):
        source("hub:owner/name")


def test_a_local_folder_with_the_library_itself(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text('{"prompt": "a cat", "n": 1}\n{"prompt": "a dog", "n": 2}\n')
    found = source(f"hub:{tmp_path}").draw(random.Random(0), 2)
    assert {(text, data["n"]) for text, data in zip(found, found.metadata, strict=True)} == {("a cat", 1), ("a dog", 2)}

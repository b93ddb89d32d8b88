import functools
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tastemaker.prompts.sources import TABLE, Listed, source

WRITTEN = """\
import random
import sys
import numpy as np
import torch
from neighbour import WORD

def prompt():
    return f"{WORD} {random.random()} {np.random.rand()} {torch.rand(()).item()}"

def pair():
    return "a cat", {"answer": random.randrange(100)}

def nothing():
    pass

def needs(nouns):
    return nouns

def _hidden():
    pass

NUMBER = 3
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.path", list(sys.path))  # put back afterwards: loading appends the folder
    (tmp_path / "neighbour.py").write_text("WORD = 'cat'\n")
    (tmp_path / "mine.py").write_text(WRITTEN)
    return tmp_path / "mine.py"


def test_a_list_repeats_nothing_before_all_were_drawn() -> None:
    animals = source([f"animal {k}" for k in range(5)])
    drawn = animals.draw(random.Random(0), 13)
    assert drawn.ids == drawn.groups == tuple(range(13))
    assert len(set(drawn[:5])) == len(set(drawn[5:10])) == 5 and len(set(drawn[10:])) == 3
    assert drawn[:5].texts != drawn[5:10].texts  # every cycle is shuffled anew
    assert animals.draw(random.Random(0), 13) == drawn != animals.draw(random.Random(1), 13)


def test_first_places_are_uniform() -> None:
    letters = source(list("abcd"))
    first = Counter(letters.draw(random.Random(seed), 2)[0] for seed in range(2000))
    assert set(first) == set("abcd") and max(first.values()) < 600  # 500 +- 5 SD


def test_metadata_travels_with_its_text() -> None:
    drawn = source([("a", 1), ("b", {"x": 2}), "c"]).draw(random.Random(3), 6)
    assert {(text, repr(data)) for text, data in zip(drawn, drawn.metadata, strict=True)} == {
        ("a", "1"),
        ("b", "{'x': 2}"),
        ("c", "None"),
    }
    again = source(drawn).draw(random.Random(0), 6)
    assert Counter(map(repr, again.metadata)) == Counter(map(repr, drawn.metadata))


@pytest.mark.parametrize("data", [b"a cat\na dog\n", b"\xef\xbb\xbfa cat\r\n\r\n  a dog  ", b"\n\na cat\ra dog\n\n"])
def test_text_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "animals.txt").write_bytes(data)
    found = source(str(tmp_path / "animals.txt"))
    assert isinstance(found, Listed) and found.entries == (("a cat", None), ("a dog", None))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "holds no prompt: write one a line"),
        (b"\n  \n\xef\xbb\xbf"[:4], "holds no prompt"),
        (b"a cat\nna\xefve\n", r"animals\.txt:2: byte 0xef is not UTF-8: save the file as UTF-8"),
        ("ein Bär".encode("utf-16"), "written in UTF-16: save it as UTF-8"),
        (b"PK\0\1", "zero bytes"),
    ],
)
def test_broken_text_files(tmp_path: Path, data: bytes, error: str) -> None:
    (tmp_path / "animals.txt").write_bytes(data)
    with pytest.raises(ValueError, match=rf"^--prompts: .*{error}"):
        source(str(tmp_path / "animals.txt"), key="--prompts")


def test_missing_files_and_unknown_names(tmp_path: Path) -> None:
    (tmp_path / "animals.txt").write_text("a cat")
    (tmp_path / "animals.parquet").write_text("")
    for name, error in {
        str(tmp_path / "animal.txt"): r"animal\.txt does not exist .*Did you mean `.*animals\.txt`",
        str(tmp_path / "no" / "animals.txt"): "there is no folder",
        str(tmp_path / "animals.parquet"): r"give a \.txt file with one prompt a line",
        "shape": "Did you mean `shapes`.*Names that fit: `shapes`, `shapes_heldout`; or a .txt file",
        "a red circle": r"a single prompt is a list of one, \['a red circle'\]",
    }.items():
        with pytest.raises(ValueError, match=f"^prompts: .*{error}"):
            source(name)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ([], "list holds no prompt"),
        (["a", 3], r"entry 1 is 3 \(int\)"),
        ([("a", 1, 2)], "a text or a pair"),
        (3, "found a int. Give a list of texts, a name"),
    ],
)
def test_lists_that_are_none(spec: object, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        source(spec)  # type: ignore[arg-type]


def test_a_function_draws_from_the_key_alone_and_disturbs_nobody(file: Path) -> None:
    mine = source(f"{file}:prompt")
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = mine.draw(random.Random(7), 4)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected
    assert mine.draw(random.Random(7), 4) == first != mine.draw(random.Random(8), 4)
    numbers = [text.split() for text in first]
    assert all(row[0] == "cat" for row in numbers)
    assert all(len({row[place] for row in numbers}) == 4 for place in (1, 2, 3))  # each generator moves on
    pairs = source(f"{file}:pair").draw(random.Random(7), 2)
    assert list(pairs) == ["a cat"] * 2 and all("answer" in data for data in pairs.metadata)


def test_generators_are_put_back_when_the_function_raises() -> None:
    def fails() -> str:
        random.random()
        raise KeyError("x")

    before = random.getstate()
    with pytest.raises(KeyError):
        source(fails).draw(random.Random(0), 1)
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (":promt", r"has no `promt`\. Did you mean `prompt`\? It defines: prompt, pair, nothing, needs\.$"),
        ("", r"names a file, not a function in it: write `.*mine.py:NAME`\. It defines: prompt"),
        (":NUMBER", "`NUMBER` in .* is a int, not a function"),
        (":needs", "called without arguments, but needs nouns"),
    ],
)
def test_functions_that_cannot_be_used(file: Path, name: str, error: str) -> None:
    with pytest.raises(ValueError, match=f"^--prompts: .*{error}"):
        source(f"{file}{name}", key="--prompts")


def test_wrong_answers_of_a_function(file: Path) -> None:
    with pytest.raises(ValueError, match=r"`nothing` returned None \(NoneType\): a text or a pair"):
        source(f"{file}:nothing").draw(random.Random(0), 1)
    bound = source(functools.partial(lambda noun: f"a {noun}", "cat"))
    assert list(bound.draw(random.Random(0), 2)) == ["a cat"] * 2


def test_files_that_fail_and_files_that_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))
    bad = tmp_path / "bad.py"
    bad.write_text("import no_such_module_at_all\n")
    with pytest.raises(ValueError, match=r"bad.py could not be run: ModuleNotFoundError: No module named") as found:
        source(f"{bad}:prompt")
    assert isinstance(found.value.__cause__, ModuleNotFoundError)
    with pytest.raises(ValueError, match=r"random.py does not exist"):
        source(f"{tmp_path / 'random.py'}:prompt")
    mine = tmp_path / "random.py"  # a name of the standard library: must not shadow it
    mine.write_text("COUNT = []\ndef prompt():\n    COUNT.append(1)\n    return f'a {len(COUNT)}'\n")
    assert list(source(f"{mine}:prompt").draw(random.Random(0), 2)) == ["a 1", "a 2"]
    assert list(source(f"{mine}:prompt").draw(random.Random(0), 1)) == ["a 3"]  # the same module
    assert sys.path[-1] == str(tmp_path.resolve())  # last: a neighbour never hides an installed package
    mine.write_text("def prompt():\n    return 'edited by hand'\n")
    assert list(source(f"{mine}:prompt").draw(random.Random(0), 1)) == ["edited by hand"]


def test_the_table_resolves() -> None:
    for name in TABLE:
        found = source(name)
        assert isinstance(found, Listed) and found.name == name and len(set(found.draw(random.Random(0), 20))) == 20

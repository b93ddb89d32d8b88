import functools
import io
import json
import random
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tastemaker.process.noise import Key
from tastemaker.prompts.functions import bound
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
    assert source([{"prompt": "a", "n": 1}]).draw(random.Random(0), 1).metadata == ({"n": 1},)
    again = source(drawn).draw(random.Random(0), 6)
    assert Counter(map(repr, again.metadata)) == Counter(map(repr, drawn.metadata))


def test_unknown_names() -> None:
    for name, error in {
        "shape": r"Did you mean `shapes`\?.* Names that fit: `shapes`, .*; or a \.txt file with one prompt a line",
        "simple_animal": "Did you mean `simple_animals`",
        "a red circle": "a single prompt is `text:a red circle`",
    }.items():
        with pytest.raises(ValueError, match=f"^prompts: `{name}` is not the name of a prompt set.*{error}"):
            source(name)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ([], "list holds no prompt"),
        (["a", 3], r"entry 1 is 3 \(int\)"),
        ([("a", 1, 2)], "a text or a pair"),
        (["a", ""], "entry 1 is '': the prompt is empty"),
        (["a", None], r"entry 1 is None \(NoneType\)"),
        ([("a\ud83d", {})], "the prompt holds half a character"),
        ([{"caption": "a"}, {"n": 1}], r"entry 1 is {'n': 1}: none of prompt, caption, text is there; found `n`"),
        ([{"prompt": 3}], r"entry 0 is {'prompt': 3} \(dict\): a text"),
        (3, "found a int. Give a list of texts, a name"),
        ({"low": 3}, r"settings without a name: give prompts\.name"),
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


@pytest.mark.parametrize("kind", ["set", "txt", "jsonl", "csv", "tar", "list", "function"])
def test_a_resumed_run_and_every_rank_draw_the_same(tmp_path: Path, file: Path, kind: str) -> None:
    """A draw is a function of the generator alone: whatever was drawn before, wherever the source was opened."""
    texts = [f"prompt {k}" for k in range(40)]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"prompt": text, "n": len(text)}) for text in texts))
    (tmp_path / "a.csv").write_text("\n".join(["prompt,n", *(f"{text},1" for text in texts)]))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for text in texts:
            member = tarfile.TarInfo(f"{text}.txt")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    specs = {"set": "counting", "list": texts, "function": f"{file}:prompt"}
    spec = specs.get(kind, str(tmp_path / f"a.{kind}"))
    uninterrupted = source(spec)
    draws = [uninterrupted.draw(Key(3, iteration).random("prompts"), 12) for iteration in range(4)]
    assert len(set(draws_texts := [draw.texts for draw in draws])) == 4, draws_texts
    np.random.rand(3), torch.rand(3), random.random()
    resumed = source(spec)
    assert [resumed.draw(Key(3, iteration).random("prompts"), 12) for iteration in (2, 3)] == draws[2:]


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


def test_arguments_of_a_function_from_a_recipe(file: Path) -> None:
    assert source({"name": f"{file}:needs", "nouns": "a cat"}).draw(random.Random(0), 1).texts == ("a cat",)
    with pytest.raises(ValueError, match=r"^--prompts\.noun is not a setting of needs\. Did you mean `nouns`\?"):
        source({"name": f"{file}:needs", "noun": "a cat"}, key="--prompts")
    of_flags = bound(lambda a=1, b=0.5, c="x", d=None: (a, b, c, d), {"a": "2", "b": "3", "d": [1]}, key="k", name="f")
    assert of_flags() == (2, 3.0, "x", [1])
    with pytest.raises(ValueError, match=r"^k\.c is 3; it is a text"):
        bound(lambda c="x": c, {"c": 3}, key="k", name="f")


def test_wrong_answers_of_a_function(file: Path) -> None:
    with pytest.raises(ValueError, match=r"`nothing` returned None \(NoneType\): a text or a pair"):
        source(f"{file}:nothing").draw(random.Random(0), 1)
    with pytest.raises(ValueError, match=r"returned '': the prompt is empty"):
        source(lambda: "").draw(random.Random(0), 1)
    partly = source(functools.partial(lambda noun: f"a {noun}", "cat"))
    assert list(partly.draw(random.Random(0), 2)) == ["a cat"] * 2


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
    for name in TABLE.keys() - {"pairs"}:  # which are the user's own, in a file
        found = source(name)
        assert isinstance(found, Listed) and found.name == name
        few = min(20, len(found.entries))
        assert len(set(found.draw(random.Random(0), few))) == few


def test_pairs_are_asked_for_their_file() -> None:
    with pytest.raises(ValueError, match=r"^--prompts\.path is missing: give a \.jsonl file or a folder of pairs"):
        source("pairs", key="--prompts")


def test_a_single_prompt_may_be_typed() -> None:
    assert source("text:a red circle").draw(random.Random(0), 2).texts == ("a red circle", "a red circle")
    with pytest.raises(ValueError, match="the prompt is empty"):
        source("text:", key="--prompts")
    with pytest.raises(ValueError, match=r"^--prompts\.high has no effect on a single prompt"):
        source({"name": "text:a", "high": 3}, key="--prompts")

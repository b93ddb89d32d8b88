import json
import random
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from tastemaker.prompts import entries as held
from tastemaker.prompts import files
from tastemaker.prompts.sources import Listed, source


def entries(path: object) -> list[tuple[str, Any]]:
    found = source(str(path), key="--prompts")
    assert isinstance(found, Listed) and found.name == str(path)
    return [found.entries[k] for k in range(len(found.entries))]


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize("data", [b"a cat\na dog\n", b"\xef\xbb\xbfa cat\r\n\r\n  a dog  ", b"\n\na cat\ra dog\n\n"])
def test_text_files(tmp_path: Path, data: bytes) -> None:
    assert entries(written(tmp_path / "animals.txt", data)) == [("a cat", None), ("a dog", None)]


def test_a_prompt_may_hold_other_ends_of_lines(tmp_path: Path) -> None:
    text = "a cat\u2028and a dog\x0bat 5 o'clock"
    assert entries(written(tmp_path / "a.txt", text)) == [(text, None)]
    assert entries(written(tmp_path / "a.jsonl", json.dumps({"prompt": text}, ensure_ascii=False)))[0][0] == text
    assert entries(written(tmp_path / "a.csv", f"prompt\n{text}\n"))[0][0] == text


@pytest.mark.parametrize(
    ("data", "column", "found"),
    [
        (
            '{"prompt": "a cat", "n": 3}\n\n{"n": [1], "prompt": "a dog"}',
            "",
            [("a cat", {"n": 3}), ("a dog", {"n": [1]})],
        ),
        ('\ufeff{"caption": "a cat", "text": "x"}', "", [("a cat", {"text": "x"})]),
        ('{"words": "a cat", "n": 1}\r\n', "", [("a cat", {"n": 1})]),
        ('{"prompt": "x", "words": " a cat "}', "#words", [(" a cat ", {"prompt": "x"})]),
        ('{"prompt": "\\u00e9t\\u00e9"}', "", [("été", {})]),
    ],
)
def test_json_lines(tmp_path: Path, data: str, column: str, found: list[Any]) -> None:
    assert entries(f"{written(tmp_path / 'a.jsonl', data)}{column}") == found


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("a.csv", "prompt,n\na cat,3\n\n a dog , \n", [("a cat", {"n": "3"}), ("a dog", {"n": ""})]),
        ("a.csv", '\ufeffn,caption\r\n3,"a cat, ""Tom""\r\nby name"\r\n', [('a cat, "Tom"\nby name', {"n": "3"})]),
        ("a.tsv", "n\ttext\n3\ta cat, a dog\n", [("a cat, a dog", {"n": "3"})]),
        ("a.CSV#n", "prompt, n\nx, a cat\n", [("a cat", {"prompt": "x"})]),
    ],
)
def test_tables(tmp_path: Path, name: str, data: str, found: list[Any]) -> None:
    written(tmp_path / name.partition("#")[0], data)
    assert entries(tmp_path / name) == found


BROKEN = [
    ("a.txt", b"", "a.txt holds no prompt: give at least one"),
    ("a.txt", b"\n  \n", "holds no prompt"),
    ("a.txt", b"a cat\nna\xefve\n", r"a\.txt:2: byte 0xef is not UTF-8: save the file as UTF-8"),
    ("a.txt", "ein Bär".encode("utf-16"), "written in UTF-16: save it as UTF-8"),
    ("a.txt", b"PK\0\1", "zero bytes, so it is not a text: give a .txt file"),
    ("a.txt#text", b"a cat", "a.txt has no columns, but #text is asked for"),
    ("a.jsonl", b"", "holds no prompt"),
    ("a.jsonl", b'{"prompt": "a"}\n\n{"prompt": "a"', r"a\.jsonl:3: not JSON: Expecting ',' delimiter"),
    ("a.jsonl", b"nothing", r"a\.jsonl:1: not JSON: Expecting value"),
    ("a.jsonl", b'{"prompt": "a"}\n["b"]', r"a\.jsonl:2: found \[\"b\"\], but an object such as"),
    ("a.jsonl", b'{"prompt": "a"}\n{"text": "b"}', r"a\.jsonl:2: there is no `prompt`; found `text`"),
    ("a.jsonl", b'{"prompt": "a"}\n{"prompt": null}', r"a\.jsonl:2: the prompt is null: give a text"),
    ("a.jsonl", b'{"prompt": 3}', r"a\.jsonl:1: the prompt is 3 \(int\), not a text"),
    ("a.jsonl", b'{"prompt": " \\n"}', r"a\.jsonl:1: the prompt is empty"),
    ("a.jsonl", b'{"prompt": "a\\u0000"}', r"a\.jsonl:1: the prompt holds a zero byte"),
    ("a.jsonl", b'{"prompt": "a\\ud83d"}', r"a\.jsonl:1: the prompt holds half a character \('\\ud83d'\)"),
    ("a.jsonl", b'{"prompt": ' + b"[" * 200_000, r"a\.jsonl:1: .*recursion"),
    ("a.jsonl", b'{"one": "a", "two": "b"}', r"a\.jsonl:1: none of prompt, caption, text is there; found `one`, `two`"),
    ("a.jsonl#no", b'{"prompt": "a"}', r"a\.jsonl:1: there is no `no`; found `prompt`"),
    ("a.csv", b"", "found nothing"),
    ("a.csv", b"prompt,n\n", "holds no prompt"),
    (
        "a.csv",
        b"a cat\na dog\n",
        r"a\.csv:1: none of prompt, caption, text is there; found `a cat`\. Give the prompts one",
    ),
    ("a.csv", b"prompt,n\na cat,1\na dog, a cow,1\n", r"a\.csv:3: 3 cells, but 2 columns: quote cells"),
    ("a.csv", b"prompt,n\na cat,1\n,1\n", r"a\.csv:3: the prompt is empty"),
    ("a.csv", b'prompt,n\n"a cat,1\na dog,2\n', r"a\.csv:\d: unexpected end of data"),
    ("a.csv", b"prompt,n,n\na,1,2\n", r"a\.csv:1: more than one column is called 'n'"),
    ("a.csv", b"prompt\n" + b"a" * 200_000, r"a\.csv:2: field larger than field limit"),
    (
        "a.yaml",
        b"- a cat",
        "a.yaml is no kind of prompt file that is read: give a .txt file with one prompt a line, or",
    ),
]


@pytest.mark.parametrize(("name", "data", "error"), BROKEN)
def test_broken_files(tmp_path: Path, name: str, data: bytes, error: str) -> None:
    written(tmp_path / name.partition("#")[0], data)
    with pytest.raises(ValueError, match=rf"(?s)^--prompts: {tmp_path}/?.*{error}"):
        source(str(tmp_path / name), key="--prompts")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder: name a file in it"):
        source(f"{tmp_path}/")


def test_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "animals.txt", "a cat")
    for name, error in {
        "animal.txt": r"animal\.txt does not exist .*Did you mean `.*animals\.txt`",
        "animals.jsonl#prompt": r"animals\.jsonl does not exist",
        "no/animals.txt": "there is no folder",
    }.items():
        with pytest.raises(ValueError, match=f"^prompts: .*{error}"):
            source(str(tmp_path / name))
    with pytest.raises(ValueError, match=r"If it is a data set on the hub, write hub:owner/name#text$"):
        source("owner/name#text")
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "no.1 # best.txt", "a dog")  # a # in the name of a file that is there
    assert entries("no.1 # best.txt") == [("a dog", None)]


def test_repeated_prompts_are_kept_and_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "a cat\na dog\na cat\na dog\na cat\n")
    expected = r"^--prompts: .*a\.txt repeats prompts: 3 of its 5 rows .* for example 'a cat'\. They are kept"
    with pytest.warns(UserWarning, match=expected) as found:
        assert len(entries(path)) == 5
    assert len(found) == 1
    with pytest.warns(UserWarning, match="the list repeats prompts: 1 of its 2"):
        source(["a cat", "a cat"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = source(["a cat"]).draw(random.Random(0), 3)
        assert source(drawn).draw(random.Random(0), 3).texts == ("a cat",) * 3  # a draw repeats on purpose


def test_a_file_is_read_once_and_rows_are_made_when_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"prompt": f"prompt {k}", "n": k}) for k in range(1000)]
    reads, made = [], []
    text = files._text
    monkeypatch.setattr(files, "_text", lambda path, key: reads.append(path) or text(path, key))
    found = source(str(written(tmp_path / "a.jsonl", "\n".join(lines))))
    split = held.json_row
    monkeypatch.setattr(files, "json_row", lambda row: made.append(row) or split(row))
    drawn = found.draw(random.Random(0), 7)
    assert len(reads) == 1 and len(made) == 7
    assert all(text == f"prompt {data['n']}" for text, data in zip(drawn, drawn.metadata, strict=True))
    drawn.metadata[0]["n"] = "spoilt"  # by a reward, say: the next draw is as before
    assert "spoilt" not in [data["n"] for data in found.draw(random.Random(0), 7).metadata]


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv"])
def test_large_files_take_seconds(tmp_path: Path, ending: str) -> None:
    line = {"txt": "a prompt of number {}", "jsonl": '{{"prompt": "{}", "n": 1}}', "csv": "prompt {},1"}[ending]
    rows = [line.format(k) for k in range(20_000)]
    path = written(tmp_path / f"a.{ending}", "\n".join((["prompt,n"] if ending == "csv" else []) + rows))
    start = time.process_time()
    assert len(source(str(path)).draw(random.Random(0), 64)) == 64
    assert time.process_time() - start < 1  # a fiftieth of a million lines

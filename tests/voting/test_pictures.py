"""Which pictures with which prompts are found in a folder, and what is said of folders without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tastemaker.voting import pictures as module
from tastemaker.voting.pictures import kind, pictures, settled
from votables import picture, sampled, told

TWO = ["a cat", "a dog"]


def test_a_folder_that_sample_left(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "s", TWO)
    picture(folder / "grid.png")  # is in no row
    found = pictures(folder, place=1)
    assert told(found) == [("a cat", "0.png"), ("a dog", "1.png")]
    assert found[0].file == settled(folder / "0.png") and {one.place for one in found} == {1}


def test_a_run_under_way_has_a_half_written_row(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    picture(folder / "samples" / "0" / "evaluation-3.webp")
    row = {"iteration": 0, "id": 3, "prompt": "a cat", "reward": 1.0, "file": "samples/0/evaluation-3.webp"}
    (folder / "samples.jsonl").write_text('{"schema": 1, "kind": "samples"}\n' + f'{json.dumps(row)}\n{{"iter')
    assert told(pictures(folder)) == [("a cat", "samples/0/evaluation-3.webp")]


def test_a_row_that_comes_again_counts_once_and_the_last_one_counts(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "s", TWO)
    with (folder / "samples.jsonl").open("a") as file:
        file.write('{"prompt": "a cow", "file": "0.png"}\n')
    assert told(pictures(folder)) == [("a cow", "0.png"), ("a dog", "1.png")]


@pytest.mark.parametrize("column", ["prompt", "caption", "text"])
def test_imagefolder_jsonl(tmp_path: Path, column: str) -> None:
    picture(tmp_path / "deep" / "x.jpg")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "deep/x.jpg", column: "a cat"}) + "\n")
    assert told(pictures(tmp_path)) == [("a cat", "deep/x.jpg")]


def test_imagefolder_csv(tmp_path: Path) -> None:
    for name in ("x.png", "y.webp"):
        picture(tmp_path / name)
    (tmp_path / "metadata.csv").write_text('file_name,score,text\nx.png,3,"a cat, two"\n\ny.webp,1,a dog\n')
    assert told(pictures(tmp_path)) == [("a cat, two", "x.png"), ("a dog", "y.webp")]


def test_pictures_with_their_prompts_beside_them(tmp_path: Path) -> None:
    for name, text in {"10": "a dog", "2": "a cat\n", "x": "\ufeffa cow"}.items():
        picture(tmp_path / f"{name}.PNG")
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    assert told(pictures(tmp_path)) == [("a cat", "2.PNG"), ("a dog", "10.PNG"), ("a cow", "x.PNG")]


def test_one_prompt_for_those_without(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("its own")
    assert told(pictures(tmp_path, prompt="a cat")) == [("a cat", "a.png"), ("its own", "b.png")]


def test_a_folder_a_prompt(tmp_path: Path) -> None:
    for name in ("p2", "p10"):
        picture(tmp_path / name / "1.png")
        picture(tmp_path / name / "0.png")
        (tmp_path / name / "prompt.txt").write_text(f"prompt {name}\n")
    (tmp_path / "empty").mkdir()
    found = told(pictures(tmp_path))
    assert found == [(f"prompt {p}", f"{p}/{k}.png") for p in ("p2", "p10") for k in (0, 1)]


def test_what_a_browser_shows() -> None:
    heads = {
        b"\x89PNG\r\n\x1a\n....": "image/png",
        b"\xff\xd8\xff\xe0": "image/jpeg",
        b"RIFF\x0a\0\0\0WEBP": "image/webp",
        b"GIF89a": "image/gif",
        b"BM......": "image/bmp",
    }
    assert {head: kind(head) for head in heads} == heads
    assert [kind(head) for head in (b"", b"<svg", b"<!doctype ht", b"RIFF\0\0\0\0WAVE", b"%PDF-1.4")] == [None] * 5


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.gif", "x.bmp"])
def test_all_kinds_are_read(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert len(pictures(tmp_path, prompt="a cat")) == 1


ROWS = [
    ('{"prompt": "a cat", "file": "no.png"}', r"samples\.jsonl:3: file: there is no .*no\.png"),
    ('{"prompt": "a cat", "file": "text.png"}', r"samples\.jsonl:3: file: .*text\.png is no picture: give \.png, "),
    ('{"prompt": "a cat", "file": "empty.png"}', "is no picture"),
    ('{"prompt": "a cat", "file": "../out.png"}', "lies outside of"),
    ('{"prompt": "a cat", "file": "OUT/out.png"}', "lies outside of"),
    ('{"prompt": "a cat"}', r"samples\.jsonl:3: there is no `file`"),
    ('{"prompt": "a cat", "file": 3}', "there is no `file`"),
    ('{"prompt": "a cat", "file": "x\\u0000.png"}', "there is no `file`"),
    ('{"file": "0.png"}', r"samples\.jsonl:3: the prompt is null"),
    ('{"prompt": " ", "file": "0.png"}', "the prompt is empty"),
    ('{"prompt": "\\ud800", "file": "0.png"}', "the prompt holds half a character"),
    ('{"prompt": ', r"samples\.jsonl:3: not JSON"),
    ("[]", r"samples\.jsonl:3: found \[\], but an object"),
]


@pytest.mark.parametrize(("row", "said"), ROWS)
def test_a_wrong_row_is_named(tmp_path: Path, row: str, said: str) -> None:
    folder = sampled(tmp_path / "s", ["a cat"])
    picture(tmp_path / "out.png")
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.png").write_bytes(b"")
    with (folder / "samples.jsonl").open("a") as file:
        file.write(row.replace("OUT", str(tmp_path)) + "\n")
    with pytest.raises(ValueError, match=said):
        pictures(folder)


def test_wrong_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def says(said: str, folder: Path, prompt: str | None = None) -> None:
        with pytest.raises(ValueError, match=said):
            pictures(folder, prompt=prompt)

    says("there is no folder .*nowhere: give a folder that train, sample or evaluate left", tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    says("holds no picture with a prompt", empty)
    says("holds no picture with a prompt", empty, "a cat")
    plain = picture(tmp_path / "plain" / "x.png").parent
    says(r"x\.png has no prompt: write it into x\.txt beside it, or give --prompt TEXT", plain)
    says("--prompt: the prompt is empty", plain, " ")
    (plain / "x.txt").write_bytes(b"\xff\xfe")
    says(r"x\.txt: it is not UTF-8", plain)
    says("--prompt has no effect: .* have prompts of their own", sampled(tmp_path / "s", TWO), "a cat")
    folders = picture(tmp_path / "f" / "one" / "x.png").parent.parent
    (folders / "one" / "prompt.txt").write_text("a cat")
    picture(folders / "two" / "y.png")
    says(r"two holds pictures, but no prompt\.txt", folders)
    (folders / "two" / "prompt.txt").write_text("\n")
    says(r"two/prompt\.txt: the prompt is empty", folders)
    table = picture(tmp_path / "t" / "x.png").parent
    (table / "metadata.csv").write_text("file,prompt\nx.png,a cat\n")
    says(r"metadata\.csv:2: there is no `file_name`; found `file`, `prompt`", table)
    (table / "metadata.csv").write_text("file_name,title\nx.png,a cat\n")
    says(r"metadata\.csv:2: none of prompt, caption, text is there", table)
    (table / "metadata.csv").write_text("file_name,prompt\nx.png,a cat,b\n")
    says(r"metadata\.csv:2: 3 cells, but 2 columns", table)
    (table / "metadata.jsonl").write_text('{"file_name": "x.png", "prompt": "a"}\nno\n')
    says(r"metadata\.jsonl:2: not JSON", table)
    monkeypatch.setattr(module, "LARGEST", 10)
    says("is larger than 0 MB", sampled(tmp_path / "large", TWO))

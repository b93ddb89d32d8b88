import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tastemaker.prompts import archives
from tastemaker.prompts.sources import Listed, source


def archive(path: Path, *members: tuple[str, bytes | str]) -> Path:
    with tarfile.open(path, "w") as made:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return path


def entries(spec: str) -> list[tuple[str, Any]]:
    found = source(spec, key="--prompts")
    assert isinstance(found, Listed)
    return [found.entries[k] for k in range(len(found.entries))]


def test_texts_pictures_and_metadata(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "shard.tar",
        ("0000.jpg", b"\xff\xd8" * 5000),
        ("0000.txt", "a cat\n"),
        ("0000.json", json.dumps({"caption": "cat", "width": 512})),
        ("folder/0000.txt", "a dog"),  # another sample: its folder belongs to its name
        ("folder/._0001.txt", b"\0\5hidden"),
        ("0002.cls", "7"),
    )
    assert entries(str(path)) == [("a cat", {"caption": "cat", "width": 512}), ("a dog", {})]
    with pytest.raises(ValueError, match=rf"^--prompts: {path}:folder/0000: there is no \.json with that name"):
        entries(f"{path}#caption")


def test_texts_in_json(tmp_path: Path) -> None:
    members = [(f"{k:04}.json", json.dumps({"caption": f"a {word}", "n": k})) for k, word in enumerate(("cat", "dog"))]
    path = archive(tmp_path / "shard.tar", *members)
    assert entries(str(path)) == entries(f"{path}#caption") == [("a cat", {"n": 0}), ("a dog", {"n": 1})]


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ([("a.jpg", b"x")], "shard.tar holds no prompt"),
        ([("a.txt", b"na\xefve")], r"shard\.tar:a\.txt: byte 0xef is not UTF-8"),
        ([("a.txt", "  ")], r"shard\.tar:a: the prompt is empty"),
        ([("a.txt", "x"), ("a.txt", "y")], r"shard\.tar:a\.txt: the archive holds this member twice"),
        ([("a.json", '{"n": 3}')], r"shard\.tar:a: none of prompt, caption, text is there; found `n`"),
        ([("a.json", '{"prompt": 3}')], r"shard\.tar:a: the prompt is 3 \(int\)"),
        ([("a.json", "{")], r"shard\.tar:a: not JSON"),
        ([("a.txt", "x"), ("b.json", "{}")], r"shard\.tar:b: there is no \.txt beside the \.json"),
        ([("a.txt", "x" * 101)], r"shard\.tar:a\.txt: 101 bytes are no prompt: at most 100"),
        ([(f"{k}.txt", "x" * 60) for k in range(6)], r"shard\.tar:5\.txt: with this member .* larger than 300 bytes"),
    ],
)
def test_broken_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: list[tuple[str, Any]], error: str
) -> None:
    monkeypatch.setattr(archives, "MEMBER", 100)
    monkeypatch.setattr(archives, "TOTAL", 300)
    with pytest.raises(ValueError, match=f"^--prompts: {tmp_path}/{error}"):
        entries(str(archive(tmp_path / "shard.tar", *members)))


def test_links_are_not_followed_and_what_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as made:
        link = tarfile.TarInfo("a.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(link)
    with pytest.raises(ValueError, match="holds no prompt"):
        entries(str(path))
    whole = archive(tmp_path / "whole.tar", ("a.txt", "x"), ("b.txt", "y" * 2000)).read_bytes()
    for data in (b"no archive at all", whole[:2000], b""):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"^--prompts: {path} is not a whole, uncompressed tar archive"):
            entries(str(path))

"""Which folder a run gets, whether it may use it, and that nobody else does."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tastemaker import folder
from tastemaker.folder import CONFIG, LOCK, choose, claimed, empty, write_text


def chosen(output_dir: Path | str | None, *, resume: bool = False, overwrite: bool = False) -> Path:
    return choose(None if output_dir is None else str(output_dir), "ddpo-m-r", resume=resume, overwrite=overwrite)


def a_run(path: Path, *more: str) -> Path:
    path.mkdir(parents=True)
    for name in (CONFIG, *more):
        (path / name).write_text("x")
    return path


def test_a_named_folder_is_taken_but_not_made(tmp_path: Path) -> None:
    assert chosen(tmp_path / "a" / "b") == tmp_path / "a" / "b" and not (tmp_path / "a").exists()
    (tmp_path / "empty").mkdir()
    assert chosen(tmp_path / "empty") == tmp_path / "empty"


def test_a_home_folder_is_written_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert chosen("~/runs/first") == tmp_path / "runs" / "first"


def test_without_a_name_the_next_free_number_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert chosen(None) == chosen(None, resume=True) == Path("runs/ddpo-m-r-1")
    for name in ("ddpo-m-r-2", "ddpo-m-r-10", "ddpo-m-r-x", "ddpo-m-red-30", "other-40"):
        a_run(tmp_path / "runs" / name)
    assert chosen(None) == Path("runs/ddpo-m-r-11")  # numbers count, not names: 10 comes after 2
    assert chosen(None, resume=True) == Path("runs/ddpo-m-r-10")


def test_a_hub_id_or_a_path_makes_one_folder_and_not_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = choose(None, "ddpo-owner/model 1.5-../r:f", resume=False, overwrite=False)
    assert found.parent == Path("runs") and found.name == "ddpo-owner-model-1.5-..-r-f-1"


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_peoples_files_is_never_used(tmp_path: Path, resume: bool, overwrite: bool) -> None:
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(
        ValueError, match=r"^--output_dir .* is not empty: it holds a.txt, b.txt, c.txt \.\.\.\. Name an"
    ):
        chosen(tmp_path, resume=resume, overwrite=overwrite)


def test_a_runs_folder_is_used_again_only_on_request(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", "metrics.jsonl")
    with pytest.raises(ValueError, match="is not empty.*--resume_from_checkpoint latest, or empty it with --overwrite"):
        chosen(run)
    assert chosen(run, resume=True) == chosen(run, overwrite=True) == run


def test_a_folder_that_holds_a_lock_alone_is_empty(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("1")
    assert chosen(tmp_path) == tmp_path


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="^--output_dir .*/file is a file"):
        chosen(file)
    with pytest.raises(ValueError, match="^--output_dir .*/file/run cannot be made: .*/file is a file"):
        chosen(file / "run")
    assert file.read_text() == "mine"


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def access(path: Path, mode: int) -> bool:
        asked.append((Path(path), mode))
        return False

    monkeypatch.setattr(os, "access", access)  # root may write everywhere
    with pytest.raises(
        ValueError, match=f"^--output_dir .* cannot be written: no permission in {tmp_path}. Name anoth"
    ):
        chosen(tmp_path / "a" / "b")
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]


def test_claiming_makes_the_folder_and_keeps_others_out(tmp_path: Path) -> None:
    run = tmp_path / "a" / "run"
    with claimed(run):
        assert (run / LOCK).read_text() == f"{os.getpid()} {socket.gethostname()}"
        (run / CONFIG).write_text("x")
        with (
            pytest.raises(ValueError, match=f"is used by another run .process {os.getpid()}."),
            claimed(run),
        ):
            raise AssertionError("claimed twice")
        assert (run / CONFIG).exists() and (run / LOCK).read_text() == f"{os.getpid()} {socket.gethostname()}"
    with claimed(run):  # free again
        pass


def test_the_lock_is_given_back_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(KeyError), claimed(tmp_path):
        raise KeyError
    with claimed(tmp_path):
        pass


def test_overwriting_empties_the_folder_and_follows_no_link(tmp_path: Path) -> None:
    elsewhere = a_run(tmp_path / "elsewhere", "precious")
    run = a_run(tmp_path / "run", "metrics.jsonl")
    (run / "samples" / "0").mkdir(parents=True)
    (run / "samples" / "0" / "1.webp").write_text("x")
    (run / "link").symlink_to(elsewhere)
    (run / "trackers").mkdir()
    with claimed(run):
        empty(run, but="trackers")
        assert {path.name for path in run.iterdir()} == {LOCK, "trackers"}
        empty(run)
        assert [path.name for path in run.iterdir()] == [LOCK]
    assert (elsewhere / "precious").exists()


def test_where_no_folder_can_be_made_the_message_says_so(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (file / "run", Path("/proc/nowhere/run")):  # not even for root
        with (
            pytest.raises(ValueError, match=f"^--output_dir {place} cannot be written: "),
            claimed(place),
        ):
            raise AssertionError("claimed")


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.yaml"
    write_text(file, "old: ü\n")
    assert file.read_text(encoding="utf-8") == "old: ü\n"

    def full(self: Path, text: str, **_: object) -> int:
        with self.open("w") as half:
            half.write(text[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        folder.write_text(file, "new: value\n")
    monkeypatch.undo()
    assert file.read_text(encoding="utf-8") == "old: ü\n"

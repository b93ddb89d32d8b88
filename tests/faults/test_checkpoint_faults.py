"""Broken disks, full disks, killed processes and planted files (reference matrix D.4: 2, 6, 8-15, 46)."""

import errno
import hashlib
import json
import os
import pickle
import resource
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tastemaker.training import checkpoint
from tastemaker.training.checkpoint import Checkpoints, Cursor, newest

FILES = ("state.safetensors", "state.json", "rollout-0.safetensors", "rollout-0.json")


def save(folder: Path, iteration: int, *, limit: int | None = None) -> Path:
    weights = torch.arange(64.0) + iteration
    data = {"made": iteration, "history": [0.1, float("nan")]}
    return Checkpoints(folder, limit=limit).save(Cursor(iteration, 0), {"w": weights}, data, per_rank={"x": weights})


def check_whole(folder: Path, iterations: tuple[int, ...]) -> None:
    """The latest loads without a warning, is one of these, and holds what was saved under its number."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        latest = newest(folder)
    assert latest is not None and latest.cursor.iteration in iterations
    assert latest.tensors["w"].tolist() == (torch.arange(64.0) + latest.cursor.iteration).tolist()
    assert latest.data["made"] == latest.cursor.iteration and len(latest.per_rank) == 1


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, Callable[[Path], None]] = {
    "bit flip": flip,
    "truncated": cut_short,
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(tmp_path: Path, file: str, damage: str) -> None:
    save(tmp_path, 9)
    broken = save(tmp_path, 10)
    DAMAGE[damage](broken / file)
    with pytest.raises(ValueError, match=rf"checkpoint-10 cannot be used as a checkpoint: {file} "):
        Checkpoints.open(broken)
    with pytest.warns(UserWarning, match=rf"checkpoint-10 is damaged and passed over: {file} "):
        latest = newest(tmp_path)
    assert latest is not None and latest.data["made"] == 9


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_without_its_manifest_it_is_no_checkpoint(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 9)
    broken = save(tmp_path, 10)
    DAMAGE[damage](broken / "MANIFEST.json")
    with pytest.raises(ValueError, match="MANIFEST.json (is missing|cannot be read)"):
        Checkpoints.open(broken)
    with pytest.warns(UserWarning, match="checkpoint-10 is damaged"):
        latest = newest(tmp_path)
    assert latest is not None and latest.data["made"] == 9


def test_a_flipped_bit_anywhere_in_the_manifest_is_harmless_or_found(tmp_path: Path) -> None:
    manifest = save(tmp_path, 1) / "MANIFEST.json"
    content = manifest.read_bytes()
    for place in range(0, len(content), 3):
        manifest.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            opened = Checkpoints.open(manifest.parent)
        except ValueError:
            continue
        assert opened.data["made"] == 1 and opened.tensors["w"].tolist() == (torch.arange(64.0) + 1).tolist()


def test_a_run_does_not_begin_from_nothing_when_all_are_damaged(tmp_path: Path) -> None:
    for iteration in (1, 2):
        flip(save(tmp_path, iteration) / "state.json")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="none of the 2 checkpoints"):
        newest(tmp_path)


class Payload:
    """Unpickling it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def reseal(folder: Path, *files: str) -> None:
    """What someone who may write here can do: a manifest that fits."""
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    for name in files:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("file", [*FILES, "MANIFEST.json", "state.pkl", "random_states_0.pkl", "optimizer.pt"])
@pytest.mark.parametrize("listed", [False, True])
def test_a_planted_pickle_is_never_executed(tmp_path: Path, file: str, listed: bool) -> None:
    folder, mark = save(tmp_path / "c", 1), tmp_path / "executed"
    (folder / file).write_bytes(pickle.dumps(Payload(mark)))
    if listed and file != "MANIFEST.json":
        reseal(folder, file)
    if file in FILES or file == "MANIFEST.json" or listed:
        with pytest.raises((ValueError, checkpoint.SafetensorError)):
            Checkpoints.open(folder)
    else:
        assert Checkpoints.open(folder).data["made"] == 1  # a stray file is not looked at
    assert not mark.exists()


def test_a_manifest_cannot_point_out_of_its_folder(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", 1)
    (tmp_path / "state.json").write_text("{}")
    reseal(folder, "../../state.json")
    with pytest.raises(ValueError, match="lists '../../state.json', which is no file of a checkpoint"):
        Checkpoints.open(folder)


def test_a_checkpoint_of_a_later_format_is_not_misread(tmp_path: Path) -> None:
    manifest = save(tmp_path, 1) / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match="it is of format 2, this version reads 1"):
        Checkpoints.open(manifest.parent)


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "name"),
    [(checkpoint, "save_file"), (Path, "write_text"), (os, "fsync"), (Path, "mkdir"), (Path, "rename")],
)
def test_a_full_disk_leaves_what_was_there_and_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    for iteration in (1, 2):
        save(tmp_path, iteration)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, full)
        with pytest.raises(OSError, match=r"checkpoint-3 could not be written: .*No space .* needs 0\.0 MB.*untouched"):
            save(tmp_path, 3, limit=2)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-2"}
    check_whole(tmp_path, (2,))
    save(tmp_path, 3, limit=2)  # room was made
    check_whole(tmp_path, (3,))


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process; its exit status, negative for a signal. It never returns into the test run."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            os._exit(7 if isinstance(error, OSError) and "could not be written" in str(error) else 8)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def test_a_disk_that_really_takes_no_more(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))  # the weights' file is larger
        save(tmp_path, 2)

    assert in_child(work) == 7
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1"}
    check_whole(tmp_path, (1,))


def killed_at(event: int, folder: Path, iteration: int) -> int:
    """Save, and be killed just before the so-manieth change on the disk."""

    def work() -> None:
        left = [event]

        def counted(real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **kwargs: object) -> object:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return call

        for name in ("rename", "mkdir", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        os.fsync = counted(lambda handle: None)  # a kill, other than a power cut, leaves the kernel's buffers
        Path.write_text = counted(Path.write_text)  # type: ignore[method-assign]
        checkpoint.save_file = counted(checkpoint.save_file)
        save(folder, iteration, limit=2)

    return in_child(work)


@pytest.mark.parametrize("iteration", [3, 2])  # a new one that prunes the oldest; one that replaces the newest
def test_killed_anywhere_in_a_save_a_whole_checkpoint_is_the_latest(tmp_path: Path, iteration: int) -> None:
    before = tmp_path / "before"
    for old in (1, 2):
        save(before, old)
    kills = 0
    for event in range(1, 200):
        folder = tmp_path / str(event)
        shutil.copytree(before, folder)
        status = killed_at(event, folder, iteration)
        Checkpoints(folder)  # the next start
        check_whole(folder, (2, iteration))
        assert all(path.name.startswith("checkpoint-") for path in folder.iterdir())
        if status == 0:
            break
        assert status == -signal.SIGKILL
        kills += 1
    assert kills >= 18


def test_an_old_checkpoint_that_cannot_be_deleted_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for iteration in (1, 2):
        save(tmp_path, iteration)
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.name == "checkpoint-1":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    save(tmp_path, 3, limit=2)
    check_whole(tmp_path, (3,))

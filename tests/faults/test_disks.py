"""Runs whose disk is full, or whose folder is no longer theirs to write (reference matrix D.4: 6-8)."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import runs
from tastemaker import folder, provision
from tastemaker.training import checkpoint
from tastemaker.training.checkpoint import Checkpoints
from tastemaker.training.lines import Lines

RESUME = ("--resume_from_checkpoint", "latest")


def failing(real: Callable[..., Any], number: int, calls: int) -> Callable[..., Any]:
    """Does as the real one, but raises this error from its so-manieth call on."""
    left = [calls]

    def call(*given: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(number, errno.errorcode[number])
        return real(*given, **more)

    return call


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_save_that_fails_ends_the_run_with_one_message_and_costs_an_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The second checkpoint cannot be written; with room, or permission, the run goes on to the same bits."""
    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", failing(checkpoint.save_file, number, 2))
        ran = runs.call(*runs.words(output))
    assert ran.code == 2 and ran.err.count("\n") == 1 and "Traceback" not in ran.err
    assert f"checkpoint-2 could not be written: [Errno {number}]" in ran.err
    assert "MB are free" in ran.err and "--resume_from_checkpoint latest" in ran.err
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["checkpoint-1"]
    resumed = runs.train(runs.words(output, *RESUME))
    assert "checkpoints/checkpoint-1\n" in resumed.out
    assert runs.weights(output) == runs.weights(runs.finished()[0])
    assert runs.metrics(output) == runs.metrics(runs.finished()[0])


def test_a_row_that_cannot_be_written_costs_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the second iteration is to be noted."""
    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        real = Lines.add
        left = [2]

        def add(self: Lines, row: Any) -> None:
            left[0] -= self.kind == "metrics"
            if left[0] <= 0:
                with self.path.open("a") as file:
                    file.write('{"iteration": 1, "sec')  # as far as it went
                raise OSError(errno.ENOSPC, "No space left on device")
            real(self, row)

        patched.setattr(Lines, "add", add)
        ran = runs.call(*runs.words(output))
    assert ran.code == 2 and "No space left on device" in ran.err and ran.err.count("\n") == 1
    runs.train(runs.words(output, *RESUME))
    assert runs.weights(output) == runs.weights(runs.finished()[0])
    assert runs.metrics(output) == runs.metrics(runs.finished()[0])


# ---- 7: full at the start


def disk(free: int, total: int = 10**12) -> Callable[[Any], SimpleNamespace]:
    return lambda place: SimpleNamespace(free=free, total=total)


def test_a_disk_without_room_for_one_checkpoint_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room asked for is that of the numbers in a checkpoint."""
    output = tmp_path / "a" / "run"
    held = Checkpoints.open(runs.plain() / "checkpoints" / "checkpoint-1").tensors
    taken = sum(tensor.nbytes for name, tensor in held.items() if "/step/" not in name)
    for free in (0, taken - 1):
        with monkeypatch.context() as patched:
            patched.setattr(provision.shutil, "disk_usage", disk(free))
            ran = runs.call(*runs.small(output))
        assert ran.code == 2 and ran.err.startswith(f"tastemaker: --output_dir {output}: ")
        assert f"are free in {tmp_path}, and one checkpoint takes " in ran.err and ran.err.count("\n") == 1
        assert not (tmp_path / "a").exists()
    for usage in (disk(taken), disk(0, 0)):  # enough; a disk that does not say
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        monkeypatch.setattr(provision.shutil, "disk_usage", usage)
        runs.train(runs.small(output))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(Path, "mkdir", failing(Path.mkdir, number, 1))
    with pytest.raises(ValueError, match=f"^--output_dir {tmp_path}/run cannot be written: "):
        with folder.claimed(tmp_path / "run"):
            raise AssertionError("claimed")
    assert not (tmp_path / "run").exists()

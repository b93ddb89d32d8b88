"""What a resumed run may change, and what it depends on (reference matrix D.4: 16-18, 45)."""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import runs
import tiny
from tastemaker import folder
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.settings import RunSettings
from tastemaker.training.checkpoint import Checkpoints
from tastemaker.training.footing import footing, inexact, switches
from toy import Toy
from toy_runs import apart, plan_of, run_of, same

RESUME = ("--resume_from_checkpoint", "latest")
MACHINE = socket.gethostname()
SMALL = DDPO(images=12, per_prompt=2, updates=2, steps=4, guidance=2.0, iterations=4, learning_rate=0.02, clip=0.2)


# ---- 16: other settings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, looked at and never trained on."""
    place = tmp_path_factory.mktemp("made") / "run"
    shutil.copytree(runs.plain(), place)
    return place


REFUSED = {
    "model": "{other}",
    "lora.rank": "8",
    "lora.alpha": "3",
    "reward": "jpeg_compressibility",
    "prompts": "animals",
    "negative_prompt": "grey",
    "seed": "1",
    "resolution": "32",
    "mixed_precision": "bf16",
    "ema": "0.9",
    "algorithm.images": "4",
    "algorithm.steps": "3",
    "algorithm.guidance": "3",
    "algorithm.clip": "0.3",
    "algorithm.sampler.eta": "0.5",
    "evaluation.count": "2",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_a_run_is_made_of_does_not_change(made: Path, tmp_path: Path, setting: str) -> None:
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file() and path.name != folder.LOCK}
    value = REFUSED[setting].replace(
        "{other}", str(tiny.save(tmp_path / "other", seed=1)) if setting == "model" else ""
    )
    ran = runs.call(*runs.small(made, *RESUME, f"--{setting}", value))
    assert ran.code == 2 and ran.err.startswith(f"tastemaker: --{setting} is "), ran.err
    assert f", but the run in {made} was made with " in ran.err and "another --output_dir" in ran.err
    assert {
        path: path.read_bytes() for path in made.rglob("*") if path.name != folder.LOCK and path.is_file()
    } == before


ALLOWED = {
    "iterations": "2",
    "learning_rate": "1e-3",
    "lr_scheduler": "cosine",
    "max_grad_norm": "0.5",
    "plan.micro_batch": "2",
    "plan.sampling_batch": "1",
    "gradient_checkpointing": "true",
    "checkpointing_steps": "0",
    "max_failed": "0.1",
    "save_samples": "1",
}


def test_what_is_about_the_machine_or_the_course_does(tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(runs.plain(), output)
    given = [word for setting, value in ALLOWED.items() for word in (f"--{setting}", value)]
    ran = runs.call(*runs.small(output, *RESUME, *given))
    assert ran.code == 0 and ran.err == (
        "the run goes on with plan.micro_batch 2 (was 3), plan.sampling_batch 1 (was 2), gradient_checkpointing True "
        "(was False): the same results up to rounding, not bit for bit.\n"
    )
    assert "iteration 2/2" in ran.out and [row["iteration"] for row in runs.metrics(output)] == [0, 1]


# ---- 17: calls cut in another way


def test_a_run_goes_on_with_calls_of_other_sizes(tmp_path: Path) -> None:
    straight, policy = Toy(), Toy()
    assert run_of(tmp_path / "straight", SMALL, straight, micro=5).train()
    assert run_of(tmp_path / "run", SMALL, Toy(), micro=5, save=1).train()
    run = run_of(tmp_path / "run", SMALL, policy, micro=16, sampling=3, save=1)
    assert run.train(Checkpoints.open(tmp_path / "run" / "checkpoints" / "checkpoint-2"))
    assert apart(policy.state(), straight.state()) < 1e-6


# ---- 18: there is no state of a generator to lose


def test_a_run_depends_on_no_generator_that_has_a_state(tmp_path: Path) -> None:
    """Python's, numpy's and torch's stand anywhere before the run, between its iterations, and when it goes on."""

    def disturb(number: int) -> None:
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)

    straight, disturbed, resumed = Toy(), Toy(), Toy()
    disturb(1)
    assert run_of(tmp_path / "straight", SMALL, straight, micro=5).train()
    disturb(2)
    run = run_of(tmp_path / "run", SMALL, disturbed, micro=5, save=1)
    keep = run.record.update
    run.record.update = lambda *given: disturb(given[0]) or keep(*given)  # type: ignore[func-returns-value,method-assign]
    assert run.train()
    disturb(3)
    again = run_of(tmp_path / "run", SMALL, resumed, micro=5, save=1)
    start = Checkpoints.open(tmp_path / "run" / "checkpoints" / "checkpoint-2")
    assert not [name for name in (*start.tensors, *start.data) if "rng" in name or "generator" in name]
    assert again.train(start)
    assert same(straight.state(), disturbed.state()) and same(straight.state(), resumed.state())


# ---- 45: two runs in one folder


def test_a_second_process_is_refused_and_a_dead_ones_lock_is_none(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom tastemaker.folder import claimed\n"
        "with claimed(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"is used by another run \(process {holder.pid} on {MACHINE}\)"):
            with folder.claimed(tmp_path):
                raise AssertionError("claimed twice")
    finally:
        holder.kill()
        holder.communicate()
    assert (
        tmp_path / folder.LOCK
    ).read_text() == f"{holder.pid} {MACHINE}"  # killed: the file is left, the lock is not
    with folder.claimed(tmp_path):
        assert (tmp_path / folder.LOCK).read_text() == f"{os.getpid()} {MACHINE}"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_named_as_that(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(folder.fcntl, "flock", flock)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=rf"--output_dir {tmp_path} cannot be locked \({os.strerror(number)}\): its"):
        with folder.claimed(tmp_path):
            raise AssertionError("claimed without a lock")


def test_of_a_lock_little_is_shown(tmp_path: Path) -> None:
    with folder.claimed(tmp_path):
        (tmp_path / folder.LOCK).write_bytes(b"7 \x1b[31mhost\xff\n" + b"x" * 5000)
        with pytest.raises(ValueError, match="is used by another run") as found:
            with folder.claimed(tmp_path):
                raise AssertionError("claimed twice")
    said = str(found.value)
    assert "\x1b" not in said and "\n" not in said and len(said) < len(str(tmp_path)) + 400


def test_another_machines_lock_is_not_judged_by_this_ones_processes(tmp_path: Path) -> None:
    """Its process is none of ours, or has the number of one of ours: whether it is held, the disk says."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for number in (dead.pid, os.getpid()):
        with folder.claimed(tmp_path):
            (tmp_path / folder.LOCK).write_text(f"{number} elsewhere")
            with pytest.raises(ValueError, match=rf"process {number} on elsewhere, which is another machine\): wait"):
                with folder.claimed(tmp_path):
                    raise AssertionError("claimed twice")
    with folder.claimed(tmp_path):  # and free where nobody holds it, whatever is written there
        assert (tmp_path / folder.LOCK).read_text() == f"{os.getpid()} {MACHINE}"


# ---- 17: what is not exact is told


def test_a_resume_that_is_not_exact_says_what_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_of(tmp_path, SMALL, Toy(), micro=5, save=1).train()
    first = tmp_path / "checkpoints" / "checkpoint-1"

    def told(change: Callable[[dict[str, Any]], object] = lambda data: None, **settings: Any) -> str:
        start = Checkpoints.open(first)
        change(start.data)
        run = run_of(tmp_path, SMALL, Toy(), **{"micro": 5, "save": 1} | settings)
        capsys.readouterr()
        run._begin(start)
        return capsys.readouterr().err

    assert told() == ""
    ends = ": the same results up to rounding, not bit for bit.\n"
    assert told(micro=16, sampling=3) == (
        f"the run goes on with plan.micro_batch 16 (was 5), plan.sampling_batch 3 (was 5){ends}"
    )
    threads = torch.get_num_threads()
    assert told(lambda data: data["footing"].update(threads=64)) == (
        f"the run goes on with threads {threads} (was 64){ends}"
    )
    assert told(lambda data: data["footing"].update(device="NVIDIA H100", processes=3)) == (
        f"the run goes on with processes 1 (was 3), device cpu (was NVIDIA H100){ends}"
    )
    assert told(lambda data: data.pop("footing"), micro=16) == ""  # of an earlier version


def test_settings_that_change_last_digits_are_told_too() -> None:
    plan, device = plan_of(SMALL, Toy()), torch.device("cpu")
    before = footing(plan, device, switches(vars(RunSettings())))
    other = switches(vars(RunSettings(compile=True, attention_backend="flash", gradient_checkpointing=True)))
    assert inexact(before, plan, device, switches(vars(RunSettings()))) == ""
    assert inexact(before, plan, device, other) == (
        "the run goes on with attention_backend flash (was None), compile True (was False), gradient_checkpointing "
        "True (was False): the same results up to rounding, not bit for bit."
    )
    assert inexact(footing(plan, device), plan, device, other) == ""  # of an earlier version


def test_processes_that_do_not_divide_the_order_are_told_of() -> None:
    plan = plan_of(SMALL, Toy(), devices=2)
    assert plan.dealt == 3
    said = inexact({"processes": 1}, plan, torch.device("cpu"))
    assert said == (
        "the run goes on with processes 2 (was 1): the same results up to rounding, not bit for bit. 2 processes do "
        "not divide 3 groups: shares are unequal, updates are the same."
    )
    assert "do not divide" not in inexact({"processes": 1}, plan_of(SMALL, Toy(), devices=3), torch.device("cpu"))

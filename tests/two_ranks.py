"""Two processes that compute together, started once for all workers of a test session."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

import tastemaker

SOURCES = [Path(tastemaker.__file__).parents[1], Path(__file__).parent]  # what the scripts import


def left_by(script: str, factory: pytest.TempPathFactory, *words: str, seconds: int) -> Path:
    """The folder that both ranks of `script FOLDER WORDS` filled; whoever asks first starts them, others wait."""
    home = factory.getbasetemp()
    home = home.parent if "PYTEST_XDIST_WORKER" in os.environ else home
    folder = home / f"two-{Path(script).stem}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "ended").exists():
            folder.mkdir(exist_ok=True)
            _run([script, str(folder), *words], seconds)
            (folder / "ended").touch()
    return folder


def started(words: list[str]) -> list[subprocess.Popen[str]]:
    """Both ranks of `script WORDS`, under way; whoever asks waits for them and kills what is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    paths = os.pathsep.join([*map(str, SOURCES), os.environ.get("PYTHONPATH", "")])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-W", "error", *words],
            env=os.environ | common | {"PYTHONPATH": paths, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]


def _run(words: list[str], seconds: int) -> None:
    processes = started(words)
    try:
        output = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()  # closes its pipe
    assert [process.returncode for process in processes] == [0, 0], "\n".join(output)

"""Two processes or more that compute together, started once for all workers of a test session."""

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


def left_by(script: str, factory: pytest.TempPathFactory, *words: str, seconds: int, ranks: int = 2) -> Path:
    """The folder that all ranks of `script FOLDER WORDS` filled; whoever asks first starts them, others wait."""
    home = factory.getbasetemp()
    home = home.parent if "PYTEST_XDIST_WORKER" in os.environ else home
    folder = home / f"{'two' if ranks == 2 else ranks}-{Path(script).stem}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "ended").exists():
            folder.mkdir(exist_ok=True)
            _run([script, str(folder), *words], seconds, ranks)
            (folder / "ended").touch()
    return folder


def started(words: list[str], ranks: int = 2) -> list[subprocess.Popen[str]]:
    """All ranks of `script WORDS`, under way; whoever asks waits for them and kills what is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    paths = os.pathsep.join([*map(str, SOURCES), os.environ.get("PYTHONPATH", "")])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    common["WORLD_SIZE"] = str(ranks)
    return [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-X", "faulthandler", *words],
            env=os.environ | common | {"PYTHONPATH": paths, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]


def _run(words: list[str], seconds: int, ranks: int) -> None:
    processes = started(words, ranks)
    try:
        output = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()  # closes its pipe
    codes = [process.returncode for process in processes]
    assert codes == [0] * ranks, "\n".join([*output, f"exit codes of the ranks: {codes}"])

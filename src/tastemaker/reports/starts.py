"""How a run was begun: command, versions, machine. A line of starts.jsonl each time, also when it is resumed."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tastemaker.reports import secrets

STARTS = "starts.jsonl"
PACKAGES = ("tastemaker", "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy", "pillow")


def start(argv: Sequence[str], *, device: str, processes: int, resumed: str | None) -> dict[str, Any]:
    """A start as it is written down.

    argv: as `sys.argv` has it. device: what computes. resumed: the checkpoint that the run goes on from.
    """
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(argv),
        "resumed": resumed,
        "device": device,
        "processes": processes,
        "machine": f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **dict(_versions())},
    }


def command(argv: Sequence[str]) -> str:
    """The line that a shell would take, without the secrets in it."""
    program, *words = argv or [""]
    name = Path(program).name
    if name in ("tastemaker", "__main__.py"):
        first = ["tastemaker"]
    else:
        first = ["python", program] if name.endswith(".py") else [program or "python"]
    return shlex.join(secrets.command([*first, *words]))


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:  # from a checkout without installation: the version is that of the source
            continue
    return found

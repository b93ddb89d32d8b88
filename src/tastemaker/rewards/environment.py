"""`isolated`: a reward whose packages do not go with ours, in an environment of its own that is made, started, checked
and stopped for the user. It is asked as `remote` asks (`tastemaker.rewards.hermit` is the other side).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock
from torch import Tensor

from tastemaker.rewards import hermit
from tastemaker.rewards.remote import TOKEN, Remote
from tastemaker.rewards.reward import ContractError, Scores
from tastemaker.rewards.transport import Courier, Patience

_FAREWELL = 5.0  # seconds a stop waits for the process
_SAID = 600  # letters of what pip or the function said last


@dataclass(frozen=True)
class Isolated:
    """A function of a package with pins of its own, in a virtual environment that is made once and kept.

    It is called `function(images, prompts)` with float32 [B,3,H,W] in [0,1] (of torch, else numpy, else a memoryview,
    as the environment has it) and a list of texts, and gives a number a picture, None where there is none; a class is
    made without arguments first. What is installed runs with your rights: an environment is no sandbox.
    """

    requirements: str = ""
    """What is installed there, as pip reads it: "image-reward==1.5 transformers==4.27.4"."""
    function: str = ""
    """What is called there, module:function."""
    python: str = ""
    """The interpreter that the environment is made of, for old packages want an old one; empty is this one."""
    folder: str = "~/.cache/tastemaker/environments"
    """Where environments are kept."""
    startup_timeout: float = 600.0
    """Seconds that the function's module may take to load."""
    deadline: float = 600.0
    """Seconds that a call may take."""

    name: ClassVar[str] = "isolated"

    def __post_init__(self) -> None:
        if not shlex.split(self.requirements):
            raise ValueError("requirements is empty; it is what pip installs, such as image-reward==1.5.")
        if not all(self.function.partition(":")[::2]):
            raise ValueError(f"function is {self.function!r}; it is module:function.")
        _ = Patience(self.deadline, self.deadline)
        if not 0 < self.startup_timeout < float("inf"):
            raise ValueError(f"startup_timeout is {self.startup_timeout}; it is a number above 0.")

    @cached_property
    def _lock(self) -> threading.Lock:
        return threading.Lock()

    @cached_property
    def _running(self) -> list[tuple[Any, Remote]]:
        """The process and who asks it, once there is one."""
        return []

    @property
    def network(self) -> None:
        """None here. Runs ask for it before they load a model, and so hear in time of what cannot be installed."""
        _ = self._asked()

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """Scores [B] of pictures [B,3,H,W] in [0,1], on the CPU, without a gradient."""
        return self._asked()(images, prompts)

    def _asked(self) -> Remote:
        """Who asks the process; one that has died is started again. Errors: ContractError where it does not start."""
        with self._lock:
            if self._running and self._running[0][0].poll() is not None:
                self._running.clear()
            if not self._running:
                self._running.append(self._started(environment(self.requirements, self.folder, self.python)))
            return self._running[0][1]

    def _started(self, interpreter: Path) -> tuple[Any, Remote]:
        token = secrets.token_hex(16)
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [str(interpreter), "-I", hermit.__file__, self.function, self.requirements],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_surroundings() | {TOKEN: token},
                start_new_session=True,  # Ctrl-C is for the training, which ends it by its standard input
            )
            weakref.finalize(self, _stop, process)
            said = _first_line(process, self.startup_timeout)
            if "port" not in said:
                _stop(process)
                errors.seek(0)
                why = said.get("error") or errors.read().decode("utf-8", "replace")[-_SAID:].strip()
                raise ContractError(f"reward `isolated`: {self.function} does not start in {interpreter}: {why}")
        url = f"http://127.0.0.1:{said['port']}"
        asker = Remote(url, timeout=self.deadline, deadline=self.deadline)
        asker.__dict__["courier"] = Courier((url,), Patience(self.deadline, self.deadline), secret=token)
        _ = asker.service
        return process, asker


def isolated(requirements: str, function: str) -> Isolated:
    """The reward `module:function` of packages that are installed for it: isolated("package==1.5", "module:f")."""
    return Isolated(requirements, function)


def environment(requirements: str, folder: str, python: str = "") -> Path:
    """The interpreter of an environment with these packages, made if there is none yet. It is whole or not there.

    Errors: ContractError with what pip said last.
    """
    python = python or sys.executable
    wanted, root = shlex.split(requirements), Path(folder).expanduser()
    mark = hashlib.sha256(json.dumps([sorted(map(_meant, wanted)), python]).encode()).hexdigest()[:16]
    place, inside = root / mark, Path("Scripts/python.exe" if os.name == "nt" else "bin/python")
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not (place / inside).exists():
            shutil.rmtree(place, ignore_errors=True)  # its interpreter is gone
            _made(place, inside, wanted, python)
    return place / inside


def _meant(word: str) -> str:
    """A requirement; of a folder or a file here its whole path, and when its Python files were changed last."""
    path = Path(word).expanduser()
    if not path.exists():
        return word
    kinds = ("*.py", "pyproject.toml", "setup.cfg")
    files = (
        [path] if path.is_file() else [one for kind in kinds for one in path.rglob(kind) if "build" not in one.parts]
    )
    return f"{path.resolve()} {max((one.stat().st_mtime_ns for one in files), default=0)}"


def _made(place: Path, inside: Path, wanted: list[str], python: str) -> None:
    made = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))  # it finds its packages after a rename
    try:
        ours = importlib.util.find_spec("pip") is not None
        _do([python, "-m", "venv", *(["--without-pip"] if ours else []), str(made)])
        pip = [sys.executable, "-m", "pip", "--python", str(made / inside)]
        pip = pip if ours else [str(made / inside), "-m", "pip"]
        _do([*pip, "install", "--quiet", "--disable-pip-version-check", "--", *wanted])
        made.rename(place)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _surroundings() -> dict[str, str]:
    """The environment variables without those that lead an interpreter to other packages."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def _do(words: list[str]) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=_surroundings())
    except OSError as error:
        raise ContractError(f"reward `isolated`: {words[0]} cannot be run: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-_SAID:]
        raise ContractError(
            f"reward `isolated`: its environment could not be made ({' '.join(words[1:4])} ...): {said}"
        )


def _first_line(process: Any, seconds: float) -> dict[str, Any]:
    """What a process says first, as JSON; nothing where it dies or takes too long."""
    held = list[bytes]()
    reader = threading.Thread(target=lambda: held.append(process.stdout.readline()), daemon=True)
    reader.start()
    reader.join(seconds)
    try:
        found = json.loads(held[0]) if held else {"error": f"it took longer than {seconds:g} s"}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _stop(process: Any) -> None:
    """Its standard input ends, and so does it; else it is killed."""
    process.stdin.close()
    try:
        process.wait(_FAREWELL)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()

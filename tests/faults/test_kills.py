"""Every algorithm's run, killed with SIGKILL anywhere, goes on to the same bits (reference matrix D.4: 1, 2)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from faults import kills
from faults.kills import CASES, EVENTS, Place
from tastemaker.algorithms import TABLE
from tastemaker.training.checkpoint import Checkpoint, Checkpoints, newest
from thinning import slow_but
from toy_runs import metrics, same
from two_ranks import SOURCES

pytestmark = pytest.mark.timeout(120)
QUICK = ("ddpo", "refl")
KINDS = ("drawing", "learning", "update", "row", "save", "manifest", "renaming", "pruning", "best")


class Server:
    """Makes runs, each in a process of its own."""

    def __init__(self, log: Path) -> None:
        paths = os.pathsep.join([*map(str, SOURCES), os.environ.get("PYTHONPATH", "")])
        self.log, self._told = log, log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, kills.__file__],
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._told,
            text=True,
        )

    def run(self, name: str, folder: Path, place: Place = Place()) -> int:  # noqa: B008
        """Its exit status, negative for a signal."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, str(folder), *place]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def ends(self, name: str, folder: Path) -> None:
        assert self.run(name, folder) == 0, self.log.read_text()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._told.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server") / "log")
    yield made
    made.close()


@pytest.fixture(scope="module")
def straight(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of an algorithm's run that nothing happened to, made when it is first asked for."""
    folders: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            server.ends(name, folders[name])
        return folders[name]

    return of


def place_in(folder: Path, name: str, kind: str) -> Place:
    """One of the events of this kind, of all that the run has, drawn once and for all."""
    count = json.loads((folder / EVENTS).read_text())[kind]
    return Place(kind, 1 + int(Random(f"{name} {kind}").random() * count))


def check_equal(found: Path, straight: Path, *without: str) -> None:
    """Weights, averages, old ones, moments, counts, statistics, metrics, pictures with their prompts, and the best."""
    assert_same(last(found), last(straight))
    assert metrics(found, *without) == metrics(straight, *without)
    for name in ("samples.jsonl", "best.json"):
        assert (found / name).read_bytes() == (straight / name).read_bytes()
    one, other = (files(folder / "samples") for folder in (found, straight))
    assert one == other and len(one) == 8 * kills.ITERATIONS
    one, other = (files(folder / "checkpoints" / "best") for folder in (found, straight))
    assert one.keys() == other.keys()
    for row in json.loads((straight / "best.json").read_text())["kept"]:
        assert_same(*(Checkpoints.open(folder / row["checkpoint"]) for folder in (found, straight)))


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    assert a.cursor == b.cursor and same(a.tensors, b.tensors) and a.data == b.data


def last(folder: Path) -> Checkpoint:
    return Checkpoints.open(folder / "checkpoints" / f"checkpoint-{kills.ITERATIONS}")


def files(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_every_algorithm_is_here() -> None:
    assert CASES.keys() == TABLE.keys()


def places() -> Iterator[Any]:
    """Every algorithm at every kind of place; a sixth of them is quick enough for each change."""
    for row, name in enumerate(CASES):
        for column, kind in enumerate(KINDS):
            marks = () if (row + column) % 6 == 0 else pytest.mark.slow
            yield pytest.param(name, kind, marks=marks, id=f"{name}-{kind}")


@pytest.mark.parametrize(("name", "kind"), list(places()))
def test_killed_anywhere_it_goes_on_to_the_same_bits(
    name: str, kind: str, server: Server, straight: Any, tmp_path: Path
) -> None:
    place = place_in(straight(name), name, kind)
    assert server.run(name, tmp_path, place) == -signal.SIGKILL
    assert not (tmp_path / EVENTS).exists()
    server.ends(name, tmp_path)
    check_equal(tmp_path, straight(name))


@pytest.mark.parametrize("name", slow_but(CASES, QUICK))
def test_stopped_inside_an_iteration_and_then_killed_again_and_again(
    name: str, server: Server, straight: Any, tmp_path: Path
) -> None:
    """SIGTERM while it learns saves the iteration as it stands; SIGKILL comes in the rest of it, and in later saves."""
    updates = json.loads((straight(name) / EVENTS).read_text())["update"] // kills.ITERATIONS
    place = Place("update", 2 * updates + 1) if updates > 1 else place_in(straight(name), name, "learning")
    assert server.run(name, tmp_path, place._replace(signal=signal.SIGTERM)) == 0
    stopped = newest(tmp_path / "checkpoints")
    assert stopped is not None and stopped.per_rank and stopped.cursor < (kills.ITERATIONS, 0)
    (tmp_path / EVENTS).unlink()
    for kind, number in (("learning", 1), ("row", 2), ("renaming", 1), ("best", 9)):
        status = server.run(name, tmp_path, Place(kind, number))
        assert status == -signal.SIGKILL or (status == 0 and (tmp_path / EVENTS).exists())
    server.ends(name, tmp_path)
    # Calls that were made for nothing between pictures and the first update are counted too.
    check_equal(tmp_path, straight(name), "network_calls")

"""What a checkpoint gives back, which one is the latest, and which are kept."""

import math
import os
import struct
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tastemaker.training.checkpoint import Checkpoints, Cursor, newest
from tastemaker.training.encoding import decoded, encoded


def save(folder: Path, iteration: int, updates: int = 0, *, limit: int | None = None) -> Path:
    checkpoints = Checkpoints(folder, limit=limit)
    return checkpoints.save(Cursor(iteration, updates), {"w": torch.full((3,), float(iteration))}, {"made": iteration})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def exact(value: Any) -> Any:
    """A form in which only equal values of equal types are equal: NaN too, and 0.0 is not -0.0, 1 not 1.0."""
    if isinstance(value, torch.Tensor):
        return ("tensor", value.dtype, tuple(value.shape), value.contiguous().flatten().view(torch.uint8).tolist())
    if isinstance(value, float):
        return ("nan",) if math.isnan(value) else ("float", struct.pack("d", value))
    if isinstance(value, dict):
        return ("dict", [(exact(key), exact(part)) for key, part in value.items()])
    if isinstance(value, list | tuple):
        return (type(value).__name__, [exact(part) for part in value])
    return (type(value).__name__, value)


TENSORS = {
    "fp32": torch.tensor([1.5, float("nan"), -0.0, float("inf")]),
    "bf16": torch.randn(3, 2).bfloat16(),
    "fp16": torch.randn(3).half(),
    "fp64": torch.randn(2, dtype=torch.float64),
    "int64": torch.tensor([2**62, -1]),
    "bool": torch.tensor([True, False]),
    "uint8": torch.arange(4, dtype=torch.uint8),
    "scalar": torch.tensor(7.25),
    "empty": torch.empty(0, 4),
    "transposed": torch.arange(6.0).view(2, 3).t(),
    "channels_last": torch.randn(1, 4, 2, 2).to(memory_format=torch.channels_last),
}
DATA: dict[str, Any] = {
    "floats": [0.1, 1e-323, -0.0, 1.0, float("nan"), float("inf"), -float("inf")],
    "whole": (1, 1.0, True, None, 2**80),
    "history": {"a red circle": [1.0, 2.0], 'quo"ted é\ud800': []},
    "numbered": {3: "a", (1, 2): "b", None: (), "$tensor": {"$tuple": 1}},
    "rollout": {"x": torch.randn(2, 3), "ids": (0, 1), "deep": [{"y": torch.ones(1)}]},
    "a/b": torch.zeros(1),
    "a": {"b": torch.ones(1)},
}


def test_everything_comes_back_equal_in_type_and_bits(tmp_path: Path) -> None:
    shared = torch.arange(10.0)
    tensors = TENSORS | {"view": shared[2:5], "same": shared, "parameter": torch.nn.Parameter(torch.ones(2))}
    Checkpoints(tmp_path).save(Cursor(3, 1), tensors, DATA)
    loaded = newest(tmp_path)
    assert loaded is not None and loaded.cursor == Cursor(3, 1) and loaded.path == tmp_path / "checkpoint-3-1"
    expected = {name: tensor.detach() for name, tensor in tensors.items()}
    assert exact(loaded.tensors) == exact(expected)
    assert exact(loaded.data) == exact(DATA)
    assert loaded.per_rank == ()


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers() | st.sampled_from(["$tuple", "$dict", "a", "a/b", ""]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(PLAIN)
def test_any_plain_data_is_coded_exactly(tree: Any) -> None:
    assert exact(decoded(*encoded(tree))) == exact(tree)


class Pair(NamedTuple):
    a: int


@pytest.mark.parametrize("value", [Pair(1), {1, 2}, Path("x"), object(), numpy.float64(1.0), b"bytes", torch.Size([1])])
def test_what_would_come_back_as_something_else_is_refused_with_its_place(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match=rf"data/kept/1 is a {type(value).__name__}, which a checkpoint cannot keep"):
        Checkpoints(tmp_path / "new").save(Cursor(1, 0), {}, {"kept": [0, value]})
    assert not (tmp_path / "new").exists()


def test_the_tensors_outlive_the_folder(tmp_path: Path) -> None:
    save(tmp_path, 4)
    loaded = newest(tmp_path)
    assert loaded is not None
    for path in loaded.path.iterdir():
        path.unlink()
    assert loaded.tensors["w"].tolist() == [4.0] * 3


def test_numbers_not_letters_or_clocks_say_which_is_the_latest(tmp_path: Path) -> None:
    for iteration, updates in ((10, 2), (9, 0), (10, 0), (2, 11)):
        save(tmp_path, iteration, updates)
    os.utime(tmp_path / "checkpoint-9", (time.time() + 9e6,) * 2)
    for stray in ("checkpoint-foo", "checkpoint-99-", "checkpoint-099", "checkpoint-12-0", "checkpoint-", "x-99"):
        (tmp_path / stray).mkdir()
    (tmp_path / "checkpoint-77").write_text("a file")
    latest = newest(tmp_path)
    assert latest is not None and latest.cursor == Cursor(10, 2)


def test_no_checkpoint_is_none_and_not_an_error(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    assert Checkpoints(tmp_path / "not there").latest() is None
    assert not (tmp_path / "not there").exists()


def test_open_takes_exactly_the_one_named(tmp_path: Path) -> None:
    for iteration in (1, 2):
        save(tmp_path / "checkpoints", iteration)
    assert Checkpoints.open(str(tmp_path / "checkpoints" / "checkpoint-1")).data == {"made": 1}
    with pytest.raises(ValueError, match="there is no such folder"):
        Checkpoints.open(tmp_path / "checkpoints" / "checkpoint-7")
    for folder in (tmp_path, tmp_path / "checkpoints"):
        with pytest.raises(ValueError, match="It holds checkpoints, the last is .*checkpoint-2"):
            Checkpoints.open(folder)


def test_the_limit_keeps_the_newest_and_always_what_was_just_saved(tmp_path: Path) -> None:
    for iteration in range(5):
        save(tmp_path, iteration, limit=3)
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-3", "checkpoint-4"}
    save(tmp_path, 1, limit=2)  # gone back to: what lies behind it has larger numbers
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-4"}


def test_one_checkpoint_is_no_reserve(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoints_total_limit is 1, it must be at least 2"):
        Checkpoints(tmp_path, limit=1)


def test_a_damaged_checkpoint_does_not_push_a_whole_one_out(tmp_path: Path) -> None:
    for iteration in (1, 2):
        save(tmp_path, iteration)
    (tmp_path / "checkpoint-2" / "state.safetensors").write_bytes(b"")
    save(tmp_path, 3, limit=2)
    assert {"checkpoint-1", "checkpoint-3"} <= names(tmp_path)


def test_the_same_cursor_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 5)
    Checkpoints(tmp_path).save(Cursor(5, 0), {}, "again")
    latest = newest(tmp_path)
    assert latest is not None and latest.data == "again" and latest.tensors == {}
    assert names(tmp_path) == {"checkpoint-5"}


def test_what_lies_behind_the_cursor_can_be_forgotten(tmp_path: Path) -> None:
    for iteration, updates in ((4, 0), (4, 2), (5, 0), (6, 1)):
        save(tmp_path, iteration, updates)
    Checkpoints(tmp_path).forget_after(Cursor(4, 2))
    assert names(tmp_path) == {"checkpoint-4", "checkpoint-4-2"}


def test_the_owner_tidies_up_and_a_reader_does_not(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "checkpoint-2").rename(
        tmp_path / ".old-checkpoint-2"
    )  # killed between the two renames of a replacement
    for left in (".tmp-checkpoint-2", ".old-checkpoint-1", ".gone-checkpoint-0"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "state.json").write_text("half")
    (tmp_path / ".mine-checkpoint-1").mkdir()
    before = names(tmp_path)
    newest(tmp_path)
    Checkpoints.open(tmp_path / "checkpoint-1")
    assert names(tmp_path) == before
    latest = Checkpoints(tmp_path).latest()
    assert latest is not None and latest.data == {"made": 2}
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-2", ".mine-checkpoint-1"}


class Threads:
    """A world of two ranks in two threads."""

    size = 2
    whole = staticmethod(dict)

    def __init__(self, rank: int, shared: dict[str, Any]) -> None:
        self.rank, self._shared = rank, shared

    def barrier(self) -> None:
        self._shared["barrier"].wait(timeout=10)

    def broadcast_text(self, text: str | None) -> str:
        if self.rank == 0:
            self._shared["text"] = text
        self.barrier()
        return str(self._shared["text"])


def on_two_ranks(work: Any) -> list[Any]:
    """work(world) on each; results or exceptions, by rank."""
    shared, results = {"barrier": threading.Barrier(2)}, [None, None]

    def run(rank: int) -> None:
        try:
            results[rank] = work(Threads(rank, shared))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return results


def test_every_rank_leaves_its_own_part(tmp_path: Path) -> None:
    def work(world: Threads) -> Path:
        checkpoints = Checkpoints(tmp_path, world=world)
        mine = {"x": torch.full((2,), float(world.rank)), "ids": (world.rank,)}
        return checkpoints.save(Cursor(1, 2), {"w": torch.ones(1)}, {"of": "rank 0"}, per_rank=mine)

    assert on_two_ranks(work) == [tmp_path / "checkpoint-1-2"] * 2
    loaded = newest(tmp_path)
    assert loaded is not None and loaded.data == {"of": "rank 0"}
    assert [part["ids"] for part in loaded.per_rank] == [(0,), (1,)]
    assert [part["x"].tolist() for part in loaded.per_rank] == [[0.0, 0.0], [1.0, 1.0]]


def test_a_rank_that_cannot_write_fails_the_checkpoint_on_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tastemaker.training import checkpoint

    save(tmp_path, 1)
    real = checkpoint.save_file

    def full_on_rank_1(tensors: Any, file: Path) -> None:
        if file.name == "rollout-1.safetensors":
            raise OSError(28, "No space left on device")
        real(tensors, file)

    monkeypatch.setattr(checkpoint, "save_file", full_on_rank_1)
    errors = on_two_ranks(lambda world: Checkpoints(tmp_path, world=world).save(Cursor(2, 0), {}, {}, per_rank=[1]))
    assert "rank 1 left no part" in str(errors[0]) and "No space left on device" in str(errors[1])
    assert all(isinstance(error, OSError) for error in errors)
    assert names(tmp_path) == {"checkpoint-1"}

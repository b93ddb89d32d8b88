"""What each of two ranks does in test_world.py, which runs this file twice: all cases in order, results to a file."""

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tastemaker import summing
from tastemaker import world as module
from tastemaker.world import Stop, World

BIG = 2**24 + 1  # the first whole number that fp32 does not have


class Update(NamedTuple):
    batch: range


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    shapes = [((2, 3), torch.float32), ((4,), torch.float64), ((5,), torch.float32), ((1, 2, 2, 2), torch.float32)]
    return [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape, dtype in shapes]


def numbers(world: World) -> object:
    return [world.rank, world.size, world.sum(10 + world.rank), world.maximum(10 - world.rank), world.sum(BIG**2)]


def ragged(world: World) -> object:
    """Rank 0 has three rows, rank 1 has two; ids beyond 2**24 and a value of each dtype."""
    ids = [[BIG, 3, BIG - 1], [7, 0]][world.rank]
    values = torch.tensor(ids, dtype=torch.int64) * 2
    rewards = torch.tensor(ids, dtype=torch.float64) / 7
    seen: dict[str, Any] = {}

    def fn(whole: torch.Tensor, real: torch.Tensor, flags: torch.Tensor) -> torch.Tensor:
        seen.update(whole=whole.tolist(), real=real.tolist(), dtypes=[str(v.dtype) for v in (whole, real, flags)])
        return whole.cumsum(0)

    own = world.over_all(fn, values, rewards, values > 10, ids=ids)
    return seen | {"own": own.tolist(), "dtype": str(own.dtype)}


def empty_share(world: World) -> object:
    """Rank 1 has no row, and does not know the shape of one."""
    rows = torch.ones(2, 3) if world.rank == 0 else torch.zeros(0)
    return list(world.over_all(lambda r: r.sum(1), rows, ids=[1, 0] if world.rank == 0 else []).shape)


def gradients(world: World) -> object:
    """Parameter 0 has a gradient on both ranks, 1 on rank 0 only, 2 on none, 3 on rank 1, in another memory format."""
    summing.BUCKET = 11  # fp32: the first two together, the third alone
    weights = parameters()
    weights[0].grad = torch.full((2, 3), 1.0 + world.rank)
    if world.rank == 0:
        weights[1].grad = torch.arange(4, dtype=torch.float64) / 3
    else:
        weights[3].grad = torch.arange(8.0).view(1, 2, 2, 2).to(memory_format=torch.channels_last)
    world.add_gradients(weights)
    return [None if weight.grad is None else weight.grad.tolist() for weight in weights]


def other_weights(world: World) -> object:
    return raised(lambda: world.add_gradients(parameters()[: 2 + world.rank]))


def equal_updates(world: World) -> object:
    """An empty share is an update of 0 items."""
    return [len(update.batch) for update in world.lockstep(iter([Update(range(3)), Update(range(2 * world.rank))]))]


def unequal_updates(world: World) -> object:
    made: list[int] = []

    def updates() -> None:
        for update in world.lockstep(iter([Update(range(1))] * (2 + world.rank))):
            made.append(len(update.batch))

    return [raised(updates), len(made)]


def out_of_step(world: World) -> object:
    return raised(lambda: world.sum(1) if world.rank == 0 else world.barrier())


def stop_in_a_rollout(world: World) -> object:
    """Only rank 1 is asked to stop; both poll between their network calls and meet in no collective."""
    calls = 0

    def rollout() -> None:
        nonlocal calls
        for calls in range(1000):
            if world.rank == 1 and calls == 3:
                world.request_stop()
            world.poll()
            time.sleep(0.01)

    return [raised(rollout), calls]


def stop_before_a_collective(world: World) -> object:
    """Rank 1 finds its request between two network calls while rank 0 waits in a sum already."""
    if world.rank == 0:
        return raised(lambda: world.sum(1))
    time.sleep(0.1)
    world.request_stop()
    return raised(world.poll)


def stop_at_an_update(world: World) -> object:
    """The request arrives inside an update: the next message carries it, and no further update is made."""
    made = 0

    def updates() -> None:
        nonlocal made
        for _ in world.lockstep(iter([Update(range(1))] * 5)):
            made += 1
            if world.rank == 0 and made == 2:
                world.request_stop()

    return [raised(updates), made]


def stop_after_the_last_update(world: World) -> object:
    """Then it waits, also while the iteration is saved, and is raised by the next iteration's first poll."""
    for _ in world.lockstep(iter([Update(range(1))])):
        if world.rank == 1:
            world.request_stop()
    world.barrier()
    with world.uninterrupted():
        world.poll()
        saved = [world.broadcast_text(f"cursor of rank {world.rank}"), world.sum(1)]

    def rollout() -> None:
        for _ in range(1000):
            world.poll()
            time.sleep(0.01)

    return [*saved, raised(rollout)]


def afterwards(world: World) -> object:
    """Each Stop used its request up."""
    time.sleep(module.LOOK)
    world.poll()
    return world.sum(1)


def no_text(world: World) -> object:
    return raised(lambda: world.broadcast_text(None if world.rank == 0 else "ignored"))


CASES: list[Callable[[World], object]] = [
    numbers,
    ragged,
    empty_share,
    gradients,
    other_weights,
    equal_updates,
    unequal_updates,
    out_of_step,
    stop_in_a_rollout,
    stop_before_a_collective,
    stop_at_an_update,
    stop_after_the_last_update,
    afterwards,
    no_text,
]


def raised(call: Callable[[], object]) -> str:
    try:
        call()
    except (Stop, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def rank_main(folder: Path) -> None:
    warnings.simplefilter("error")
    world = World.here("cpu")
    found = {case.__name__: case(world) for case in CASES}
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(found))
    world.close()


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]))

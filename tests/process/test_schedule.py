"""The grid of a chain: lookups, copies, what is refused."""

import pytest
import torch

from tastemaker.process.prediction import from_eps
from tastemaker.process.samplers import DDIM
from tastemaker.process.schedule import Schedule, from_alphas_cumprod

TABLE = torch.linspace(0.999, 0.01, 1000)


def chain(steps: int = 4) -> Schedule:
    return from_alphas_cumprod(TABLE, range(1000 - 1000 // steps, -1, -(1000 // steps)), 1.0)


def test_the_grid_runs_from_noise_to_picture() -> None:
    schedule = chain()
    assert len(schedule) == 4
    assert schedule.t.tolist() == [750, 500, 250, 0]
    assert schedule.t.dtype == torch.float32
    torch.testing.assert_close(schedule.alpha**2, torch.cat([TABLE[[750, 500, 250, 0]], torch.ones(1)]))
    torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, torch.ones(5))
    assert schedule.sigma[-1] == 0


def test_tables_are_computed_in_double_and_kept_as_given() -> None:
    """1 - alphas_cumprod in fp64: near the picture sigma keeps its digits."""
    assert chain().sigma.dtype == torch.float32
    wide = from_alphas_cumprod(TABLE.double(), [750, 500, 250, 0], 1.0)
    assert wide.sigma.dtype == torch.float64
    assert wide.sigma[3] == torch.sqrt(1 - TABLE[0].double())


@pytest.mark.parametrize("i", [2, torch.tensor(2), torch.tensor([2]), torch.tensor([0, 2, 4])])
@pytest.mark.parametrize("shape", [(3, 4, 2, 2), (3, 5), (3,)])
def test_at_broadcasts_against_any_latent(i: int | torch.Tensor, shape: tuple[int, ...]) -> None:
    like, schedule = torch.zeros(shape, dtype=torch.float64), chain()
    for found, table in zip(schedule.at(i, like), (schedule.alpha, schedule.sigma), strict=True):
        assert found.dtype == torch.float64
        wanted = table.double()[torch.as_tensor(i).reshape(-1)].view(-1, *(1,) * (len(shape) - 1)).expand(shape)
        assert torch.equal((like + found), wanted)


def test_steps_outside_the_chain_are_refused() -> None:
    for i in (-1, 5):
        with pytest.raises(IndexError):
            chain().at(i, torch.zeros(1, 2))


def test_a_copy_for_another_device_is_made_once() -> None:
    schedule = chain()
    assert schedule.to("cpu") is schedule
    moved = schedule.to("meta")
    assert moved.alpha.device.type == "meta"
    assert schedule.to("meta") is moved
    assert schedule.at(1, torch.zeros(2, 3, device="meta"))[0].device.type == "meta"


@pytest.mark.gpu
def test_nothing_waits_for_the_accelerator() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA, whose waits can be made errors")
    x, i, schedule = torch.zeros(2, 3, device="cuda"), torch.tensor([0, 3], device="cuda"), chain()
    schedule.at(0, x)  # copies the tables
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in (1, i):
            p = DDIM().transition(from_eps(x, x, *schedule.at(step, x)), x, step, schedule)
            assert p.mean.device == p.std.device == x.device
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ([], "descend"),
        ([0, 500], "descend"),
        ([500, 500], "descend"),
        ([1000, 500], "use fewer steps"),
        ([500, -1], "leave the 1000"),
    ],
)
def test_a_grid_that_is_none_is_refused(timesteps: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_alphas_cumprod(TABLE, timesteps, 1.0)


def test_a_table_that_does_not_fall_is_refused() -> None:
    with pytest.raises(ValueError, match="alphas_cumprod must fall"):
        from_alphas_cumprod(TABLE.flip(0), [750, 0], 1.0)
    with pytest.raises(ValueError, match="alphas_cumprod must fall"):
        from_alphas_cumprod(TABLE, [750, 0], 0.5)


def test_tables_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha \[T \+ 1\]"):
        Schedule(torch.zeros(3), torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="T >= 1"):
        Schedule(torch.zeros(0), torch.zeros(1), torch.zeros(1))

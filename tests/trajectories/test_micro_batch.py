"""How the work is cut into network calls does not change what is learned."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.policy.load import load
from tastemaker.prompts.prompts import Prompts
from toy_runs import apart, gradient, iteration_of, metrics, plan_of
from trajectories.ranks import CASES

PLAIN = [name for name, case in CASES.items() if not case.layout]  # with a layout, old log-probs depend on the calls


@pytest.mark.parametrize("name", PLAIN)
def test_a_trajectory_does_not_depend_on_the_rows_of_a_call(name: str, tmp_path: Path) -> None:
    """Training calls of one item, ragged ones, and one for all; sampling calls of one picture, ragged ones, all."""
    found = []
    for micro, sampling in ((16, 8), (7, 3), (1, 16), (200, 1)):
        policy, folder = CASES[name].policy(), tmp_path / str(micro)
        assert CASES[name].run(folder, policy, micro=micro, sampling=sampling).train()
        found.append((policy.state(), [update["loss"] for row in metrics(folder) for update in row["updates"]]))
    (wanted, losses), *others = found
    for state, other in others:
        assert apart(state, wanted) < 1e-6
        assert other == pytest.approx(losses, abs=1e-6)


def test_nor_does_the_gradient_of_a_real_network_in_fp32(tmp_path: Path) -> None:
    """From the same kept rollout; the last bits of x' - mean, numbers up to 4, are divided by a step's std."""

    def redness(images: Tensor, prompts: Prompts) -> Tensor:
        return images[:, 0].mean((1, 2))

    algorithm = DDPO(images=6, updates=2, steps=4, guidance=3.0)
    policy = load(str(tiny.save(tmp_path)), lora=None, sets=())
    stds = algorithm.sampler.stds(policy.schedule(algorithm.steps))
    rounding = 4 * torch.finfo(torch.float32).eps / float(stds[stds > 0].min())
    start = {name: tensor.clone() for name, tensor in policy.state().items()}
    kept, found = {}, []
    for micro in (4, 5, 12):
        policy.load_state(start)
        plan = plan_of(algorithm, policy, micro=micro, sampling=6)
        it = iteration_of(algorithm, policy, plan, reward=redness, kept=kept)
        found.append(gradient(it, next(iter(algorithm.iteration(it))), algorithm)[0])
        kept = {name: value for name, value in it.kept.items() if name.startswith("rollout.")}
    assert all(apart(other, found[0]) < rounding < 3e-5 for other in found[1:])
    assert torch.cat([g.flatten() for g in found[0].values()]).norm() > 0

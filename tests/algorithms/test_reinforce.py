"""REINFORCE: what it refuses, what one update holds, and that it learns."""

import pytest
import torch

from tastemaker.algorithms.reinforce import REINFORCE
from tastemaker.credit import whiten
from tastemaker.process.samplers import DDIM, Window
from toy import Toy
from toy_runs import closeness, failing, ids_of, improvement, iteration_of


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"updates": 2}, "updates is 2, but the score function holds .* use updates=1, or ddpo"),
        ({"advantage_limit": 0.0}, "advantage_limit is 0.0; it must be positive"),
        ({"images": 0}, "images is 0; it must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive"),
    ],
)
def test_settings_are_refused_with_the_reason(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        REINFORCE(**settings)


def test_a_deterministic_sampler_is_refused() -> None:
    with pytest.raises(ValueError, match=r"DDIM\(eta=0.0\) draws nothing at random in 5 steps"):
        REINFORCE(sampler=DDIM(0.0)).items(Toy().schedule(5))


def test_one_update_holds_every_transition_with_its_advantage() -> None:
    algorithm = REINFORCE(images=8, per_prompt=2, steps=5, guidance=2.0, advantage_limit=0.9)
    it = iteration_of(algorithm, Toy(), reward=failing(lambda b: b == 5))
    (update,) = algorithm.iteration(it)
    assert len(update.batch) == 7 * 5 and 5 not in ids_of(update.batch)
    rewards = it.kept["rollout.reward"]
    wanted = whiten(rewards).clamp(-0.9, 0.9)[update.batch.sample]
    assert torch.equal(update.batch.credit, wanted) and wanted.abs().max() == 0.9
    loss = update.loss(update.batch)
    torch.testing.assert_close(loss.value.detach(), -wanted * update.batch.old)
    assert (algorithm.epochs, algorithm.learning_guidance, algorithm.begin()) == (1, 2.0, {})


def test_a_window_is_all_it_learns_from() -> None:
    algorithm = REINFORCE(images=8, steps=6, guidance=1.0, sampler=Window(DDIM(), 2))
    it = iteration_of(algorithm, Toy())
    assert it.plan.items == 2
    (update,) = algorithm.iteration(it)
    low, high = update.batch.i.min(), update.batch.i.max()
    assert len(update.batch) == 16 and high == low + 1


def test_it_learns() -> None:
    algorithm = REINFORCE(images=64, steps=5, guidance=1.0, iterations=20, learning_rate=0.02)
    learned, control = (improvement(algorithm, closeness, permuted=permuted) for permuted in (False, True))
    assert learned > 1.0 and control < learned / 4

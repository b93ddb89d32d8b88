"""DDPO: what it refuses, what each of its settings does, and that it learns."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tastemaker.algorithms.ddpo import DDPO
from tastemaker.credit import per_prompt, whiten
from tastemaker.iteration import Iteration, Silence, Update
from tastemaker.process.prediction import Prediction
from tastemaker.process.samplers import DDIM, Window
from tastemaker.prompts.prompts import Prompts
from tastemaker.training.trainer import descend
from tastemaker.world import World
from toy import Toy
from toy_runs import Scorer, closeness, failing, ids_of, improvement, iteration_of, optimizer_of, plan_of


def updates_of(algorithm: DDPO, *, reward: Scorer = closeness, index: int = 0) -> tuple[Iteration, list[Update]]:
    """All updates of one iteration, none of them made."""
    it = iteration_of(algorithm, Toy(), index=index, reward=reward)
    return it, list(algorithm.iteration(it))


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"inner_epochs": 0}, "inner_epochs is 0; it must be at least 1"),
        ({"timestep_fraction": 0.0}, "timestep_fraction is 0.0; it must be above 0 and at most 1"),
        ({"timestep_fraction": 1.1}, "timestep_fraction is 1.1; it must be above 0 and at most 1"),
        ({"clip": 0.0}, "clip is 0.0; it must be positive"),
        ({"advantage_limit": -1.0}, "advantage_limit is -1.0; it must be positive"),
        ({"prompt_history": -1}, "prompt_history is -1; it must be at least 0"),
        ({"prompt_history": 8}, "prompt_history is 8, so no prompt ever has prompt_minimum=16 .* raise .* or lower"),
        ({"prompt_minimum": 0, "prompt_history": 8}, "prompt_minimum is 0; it must be at least 1"),
        ({"prompt_minimum": 16}, "prompt_minimum has no effect without prompt_history: give that one too"),
        ({"guidance": 1.0, "guidance_in_loss": False}, "guidance_in_loss has no effect at guidance=1.0, which is none"),
        ({"guidance": -1.0}, "guidance is -1.0; it must be at least 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must be at least 0"),
        *(({name: 0}, f"{name} is 0; it must be at least 1") for name in ("images", "per_prompt", "updates", "steps")),
    ],
)
def test_settings_are_refused_with_the_reason(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DDPO(**settings)


def test_a_deterministic_sampler_is_refused_before_any_work() -> None:
    schedule = Toy().schedule(5)
    with pytest.raises(
        ValueError, match=r"DDIM\(eta=0.0\) draws nothing at random in 5 steps.*--algorithm.sampler.eta 1"
    ):
        DDPO(sampler=DDIM(0.0)).items(schedule)
    with pytest.raises(ValueError, match="window: there are no 9 consecutive random steps"):
        DDPO(sampler=Window(DDIM(), 9)).items(schedule)


def test_defaults_are_the_authors() -> None:
    made = DDPO()
    assert (made.images, made.updates, made.steps, made.guidance) == (256, 4, 50, 5.0)
    assert (made.clip, made.advantage_limit, made.inner_epochs, made.timestep_fraction) == (1e-4, 5.0, 1, 1.0)
    assert (made.learning_rate, made.weight_decay, made.sampler.eta) == (3e-4, 1e-4, 1.0)
    assert made.given == frozenset() and DDPO(7, clip=1e-4).given == {"images", "clip"}


# ---- advantages


def test_advantages_are_whitened_over_the_iteration_and_cut() -> None:
    def outlier(images: Tensor, prompts: Prompts) -> Tensor:
        return closeness(images, prompts) + torch.tensor([30.0 * (name == 2) for name in prompts.ids])

    algorithm = DDPO(images=12, updates=2, steps=3, advantage_limit=2.0)
    it, made = updates_of(algorithm, reward=outlier)
    wanted = whiten(it.kept["rollout.reward"])
    assert wanted.max() > 2.2
    found = torch.cat([update.batch.credit for update in made])
    assert torch.equal(found, wanted.clamp(-2.0, 2.0).repeat_interleave(3)) and found.max() == 2.0


def test_a_picture_without_a_score_has_no_transitions() -> None:
    _, made = updates_of(DDPO(images=12, updates=2, steps=3), reward=failing(lambda b: b < 6 or b == 8))
    assert [len(update.batch) for update in made] == [0, 15]
    assert set(ids_of(made[1].batch)) == {6, 7, 9, 10, 11}
    assert made[1].batch.credit.isfinite().all()


def test_a_prompts_own_history_is_kept_from_iteration_to_iteration() -> None:
    """The credit of each iteration and the state after it are per_prompt's, with whole texts as keys."""
    algorithm = DDPO(images=12, updates=2, steps=3, prompt_history=6, prompt_minimum=4, advantage_limit=100.0)
    state, wanted = algorithm.begin(), {}
    for index in range(3):
        it = iteration_of(algorithm, Toy(), index=index, reward=failing(lambda b: b == 7))
        it.state = state
        made = list(algorithm.iteration(it))
        rewards = it.kept["rollout.reward"]
        credit, wanted = per_prompt(rewards, it.prompts.texts, wanted, buffer=6, minimum=4)
        found = torch.cat([update.batch.credit for update in made])
        assert torch.equal(found, credit[credit.isfinite()].repeat_interleave(3))
        state = it.state
        assert state["history"] == wanted and set(wanted) == {"cat", "dog", "cow"}
        assert all(len(past) <= 6 for past in wanted.values())
    assert not torch.equal(credit, whiten(rewards).float())


def test_the_history_is_the_same_on_every_device() -> None:
    """With several pictures of a prompt: everyone's rewards enter it in the order of the ids, under the right text."""
    algorithm = DDPO(images=12, per_prompt=2, updates=2, steps=3, prompt_history=8, prompt_minimum=2)
    it, _ = updates_of(algorithm)
    wanted: dict[str, list[float]] = {}
    for text, value in zip(it.prompts.texts, it.kept["rollout.reward"].tolist(), strict=True):
        wanted.setdefault(text, []).append(value)
    assert it.state["history"] == wanted
    own = iteration_of(algorithm, Toy(), world=World(1, 2))
    assert all(own.everyone[group] == text for group, text in zip(own.prompts.groups, own.prompts.texts, strict=True))


# ---- which transitions, under which prediction


def chosen(updates: Sequence[Update]) -> dict[int, tuple[int, ...]]:
    """The steps that each picture is learned from."""
    steps: dict[int, tuple[int, ...]] = {}
    for update in updates:
        for name, i in zip(ids_of(update.batch), update.batch.i.tolist(), strict=True):
            steps[name] = (*steps.get(name, ()), i)
    return steps


def test_a_fraction_of_the_steps_is_drawn_for_each_picture_and_epoch() -> None:
    algorithm = DDPO(images=12, updates=2, steps=8, timestep_fraction=0.5, inner_epochs=2)
    assert algorithm.items(Toy().schedule(8)) == 4
    _, made = updates_of(algorithm)
    assert [len(update.batch) for update in made] == [6 * 4] * 4
    first, second = chosen(made[:2]), chosen(made[2:])
    assert first.keys() == second.keys() == set(range(12))
    for steps in (first, second):
        assert all(len(set(own)) == 4 for own in steps.values())
        assert len(set(steps.values())) > 6
        assert set().union(*map(set, steps.values())) == set(range(8))
    assert sum(first[name] != second[name] for name in first) > 6
    assert chosen(updates_of(algorithm)[1][:2]) == first
    assert chosen(updates_of(algorithm, index=1)[1][:2]) != first
    assert DDPO(timestep_fraction=0.01).items(Toy().schedule(8)) == 1


def test_a_window_moves_from_iteration_to_iteration() -> None:
    algorithm = DDPO(images=4, updates=2, steps=8, sampler=Window(DDIM(), 2))
    assert algorithm.items(Toy().schedule(8)) == 2
    places = set()
    for index in range(8):
        it, made = updates_of(algorithm, index=index)
        steps = set(chosen(made).values())
        assert len(steps) == 1 and it.plan.items == 2
        (pair,) = steps
        assert pair[1] == pair[0] + 1
        places |= {pair[0]}
    assert len(places) > 2


class Watched(Toy):
    """Notes the guidance of every prediction that will be differentiated, and the others'."""

    def predict(self, x, i, schedule, conditioning, guidance) -> Prediction:
        self.seen = getattr(self, "seen", set()) | {(torch.is_grad_enabled(), guidance)}
        return super().predict(x, i, schedule, conditioning, guidance)


@pytest.mark.parametrize(("inside", "learning"), [(True, 3.0), (False, 1.0)])
def test_guidance_in_the_loss(inside: bool, learning: float) -> None:
    algorithm = DDPO(images=8, updates=2, steps=3, guidance=3.0, guidance_in_loss=inside)
    policy = Watched()
    it = iteration_of(algorithm, policy, plan_of(algorithm, policy, micro=6))
    assert it.plan.learning_guidance == algorithm.learning_guidance == learning
    optimizer = optimizer_of(algorithm, policy)
    for update in algorithm.iteration(it):
        descend(it, optimizer, update, Silence())
    assert policy.seen == {(False, 3.0), (False, learning), (True, learning)}


def test_inner_epochs_learn_from_the_same_pictures_again() -> None:
    algorithm = DDPO(images=256, updates=2, steps=2, inner_epochs=3)
    it, made = updates_of(algorithm)
    assert len(made) == 6 and it.policy.rows.forward == 2 * 2 * (256 + 4)  # one call to measure the mismatch
    epochs = [[set(ids_of(update.batch)) for update in made[k : k + 2]] for k in (0, 2, 4)]
    assert all(a | b == set(range(256)) and not a & b for a, b in epochs)
    assert epochs[0] != epochs[1] or epochs[0] != epochs[2]


# ---- learning


@pytest.mark.parametrize(
    ("flow", "settings"),
    [
        (False, {"clip": 0.02}),
        (True, {"clip": 0.02, "inner_epochs": 2, "sampler": Window(DDIM(), 3, last=6)}),
        (False, {"clip": 0.02, "prompt_history": 64, "timestep_fraction": 0.6, "guidance": 2.0}),
    ],
)
def test_it_learns(flow: bool, settings: dict[str, object]) -> None:
    """From -3.25, where the base is, toward 0; and not from rewards that are given to the wrong pictures."""
    shared = {"images": 64, "updates": 2, "steps": 8, "guidance": 1.0, "iterations": 15, "learning_rate": 0.02}
    algorithm = DDPO(**shared | settings)
    learned, control = (improvement(algorithm, closeness, flow=flow, permuted=p) for p in (False, True))
    assert learned > 1.0 and control < learned / 4

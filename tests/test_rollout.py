"""The denoising loop, what a rollout keeps, and how its pictures are cut into updates on any number of devices."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tastemaker.algorithms.ddpo import DDPO
from tastemaker.iteration import Iteration, deal
from tastemaker.process.flow_samplers import FlowSDE
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM, Sampler, Window
from tastemaker.process.transition import log_prob
from tastemaker.prompts.prompts import Prompts
from tastemaker.prompts.sources import source
from tastemaker.rewards.reward import Scores
from tastemaker.rollout import Rollout, chain, collect, padded, placed, transition_at
from tastemaker.world import Stop, World
from toy import Toy
from toy_runs import SEED, TEXTS, Scorer, closeness, failing, ids_of, iteration_of, plan_of

STEPS = 6
KEY = Key(SEED, 0)


def iteration(
    sampler: Sampler | None = None, *, images: int = 8, micro: int = 4, sampling: int = 0, reward: Scorer = closeness
) -> Iteration:
    algorithm = DDPO(images=images, per_prompt=2, updates=2, steps=STEPS, guidance=2.0, sampler=sampler or DDIM())
    policy = Toy()
    return iteration_of(algorithm, policy, plan_of(algorithm, policy, micro=micro, sampling=sampling), reward=reward)


def drawn(policy: Toy, prompts: Prompts, sampler: Sampler, **settings: object) -> list[Tensor]:
    """x[first + 1] ... x[T]"""
    made = chain(policy, sampler, prompts, key=KEY, schedule=policy.schedule(STEPS), guidance=2.0, **settings)
    return [step.cleaner for step in made]


# ---- chain


def test_a_chain_is_its_transitions_one_after_the_other() -> None:
    policy, prompts = Toy(), Prompts.of(["cat", "dog", "cow"])
    schedule, x = policy.schedule(STEPS), KEY.noise("x0", 0, prompts.ids, (4, 1, 1)).double()
    for i, step in enumerate(chain(policy, DDIM(), prompts, key=KEY, schedule=schedule, guidance=2.0)):
        assert step.i == i and torch.equal(step.x, x)
        prediction = policy.predict(x, i, schedule, policy.encode(prompts), 2.0)
        p = DDIM().transition(prediction, x, i, schedule)
        x = p.mean + p.std * KEY.noise("chain", i, prompts.ids, (4, 1, 1)).double()
        assert torch.equal(step.transition.mean, p.mean) and torch.equal(step.cleaner, x)
        assert not step.cleaner.requires_grad
    assert i == STEPS - 1


def test_a_picture_does_not_depend_on_its_company() -> None:
    policy, prompts = Toy(), Prompts.of(["cat", "dog", "cow", "cat"])
    whole = drawn(policy, prompts, DDIM())[-1]
    parts = [drawn(policy, part, DDIM())[-1] for part in (prompts.take([3, 1]), prompts.take([2]))]
    torch.testing.assert_close(torch.cat(parts), whole[[3, 1, 2]], rtol=1e-12, atol=0)
    assert not torch.equal(whole[0], whole[3])  # the same text, another id


def test_a_chain_goes_on_from_anywhere() -> None:
    policy, prompts = Toy(), Prompts.of(["cat", "dog"])
    whole = drawn(policy, prompts, DDIM(0.5))
    rest = drawn(policy, prompts, DDIM(0.5), x=whole[1], first=2)
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], rest, strict=True))


def test_a_chain_keeps_its_graph_only_when_asked() -> None:
    policy, prompts = Toy(), Prompts.of(["cat"])
    last = drawn(policy, prompts, DDIM(0.0), grad=True)[-1]
    assert all(slope.abs().sum() > 0 for slope in torch.autograd.grad(last.sum(), policy.parameters()))


def test_the_negative_prompt_and_guidance_reach_the_network() -> None:
    policy, prompts = Toy(), Prompts.of(["cat"])
    plain = drawn(policy, prompts, DDIM())[-1]
    assert not torch.allclose(plain, drawn(policy, prompts, DDIM(), negative="dog")[-1])
    assert policy.rows.forward == 2 * 2 * STEPS and policy.rows.backward == 0


def test_a_chain_has_the_precision_of_its_schedule() -> None:
    for dtype in (torch.float32, torch.float64):
        assert all(x.dtype == dtype for x in drawn(Toy(dtype=dtype), Prompts.of(["cat"]), DDIM()))


# ---- collect


@pytest.mark.parametrize("sampling", [3, 4, 8, 16])
def test_a_rollout_is_the_chain_and_its_rewards(sampling: int) -> None:
    """3 fills its last call up, 16 its only one."""
    it = iteration(sampling=sampling)
    rollout = collect(it, DDIM())
    whole = drawn(Toy(), it.prompts, DDIM())
    assert rollout.steps.tolist() == [list(range(STEPS))] * 8 and rollout.times.tolist() == [list(range(STEPS + 1))] * 8
    torch.testing.assert_close(rollout.path[:, 1:], torch.stack(whole, 1), rtol=1e-12, atol=0)
    torch.testing.assert_close(rollout.x0, whole[-1], rtol=1e-12, atol=0)
    torch.testing.assert_close(rollout.reward, closeness(whole[-1], it.prompts).float())
    calls = -(-len(it.prompts) // sampling)
    assert it.policy.rows.forward == calls * sampling * 2 * STEPS
    assert it.reward.queries == 8


@pytest.mark.parametrize("sampler", [DDIM(), DDIM(0.3), Window(DDIM(), 2), Window(FlowSDE(), 2, each="group")])
def test_old_log_probs_are_those_of_the_transitions(sampler: Sampler) -> None:
    it = iteration(sampler)
    sampler = placed(it, sampler)
    pairs = collect(it, sampler).credited(torch.ones(8)).transitions()
    found = log_prob(transition_at(it, sampler, pairs), pairs.x1)
    torch.testing.assert_close(found, pairs.old, rtol=1e-12, atol=1e-12)
    other = log_prob(transition_at(it, sampler, pairs), pairs.x)
    assert (other - pairs.old).abs().min() > 1e-6


def test_only_random_steps_are_kept() -> None:
    it = iteration(Window(DDIM(), 2, first=1))
    sampler = placed(it, Window(DDIM(), 2, first=1))
    rollout = collect(it, sampler)
    start = sampler.start
    assert rollout.steps.tolist() == [[start, start + 1]] * 8
    assert rollout.times.tolist() == [[start, start + 1, start + 2]] * 8
    assert rollout.path.shape == (8, 3, 4, 1, 1) and rollout.old.shape == (8, 2)
    ode = collect(iteration(), DDIM(0.0))
    assert ode.steps.shape == ode.times.shape == (8, 0) and ode.path.numel() == ode.old.numel() == 0
    assert ode.x0.shape == (8, 4, 1, 1) and ode.reward.isfinite().all()


def test_every_group_keeps_the_steps_of_its_own_window() -> None:
    """And the pictures, log-probabilities and states are the same in any calls."""
    asked = Window(FlowSDE(), 2, each="group")
    found = []
    for sampling in (3, 8):
        it = iteration(asked, sampling=sampling)
        rollout = collect(it, placed(it, asked)).credited(torch.arange(8.0))
        steps, groups = rollout.steps, torch.tensor(it.prompts.groups)
        assert len({tuple(own) for own in steps.tolist()}) > 1
        assert all(len({tuple(own) for own in steps[groups == group].tolist()}) == 1 for group in range(4))
        assert torch.equal(rollout.times, torch.cat([steps, steps[:, 1:] + 1], 1))
        assert rollout.path.shape == (8, 3, 4, 1, 1) and rollout.old.isfinite().all()
        pairs = rollout.transitions()
        assert torch.equal(pairs.i, steps.flatten()) and ids_of(pairs) == [b for b in range(8) for _ in range(2)]
        few = rollout.take(torch.tensor([6, 1]))
        assert torch.equal(few.steps, steps[[6, 1]]) and torch.equal(few.transitions().x1, pairs.x1[[12, 13, 2, 3]])
        found.append(rollout)
    for name, value in found[0].tensors().items():
        torch.testing.assert_close(value, found[1].tensors()[name], rtol=1e-12, atol=1e-12)


def test_pictures_of_a_group_may_begin_at_the_same_noise() -> None:
    it = iteration(sampling=3)
    rollout = collect(it, DDIM(), same_noise=True)
    start = rollout.path[:, 0]
    assert torch.equal(start[::2], start[1::2]) and len({tuple(x.flatten().tolist()) for x in start[::2]}) == 4
    assert not torch.equal(rollout.path[::2, 1], rollout.path[1::2, 1])
    assert not torch.equal(start, collect(iteration(sampling=3), DDIM()).path[:, 0])
    plain = [
        step.cleaner
        for step in chain(
            it.policy, DDIM(), it.prompts, key=it.key, x=start, schedule=it.policy.schedule(STEPS), guidance=2.0
        )
    ]
    torch.testing.assert_close(rollout.x0, plain[-1], rtol=1e-12, atol=0)


def test_random_steps_may_lie_apart() -> None:
    """Each state is kept once, and every transition finds its own two."""

    class Every(DDIM):
        def stds(self, schedule):
            return super().stds(schedule) * torch.tensor([1.0, 0, 1, 1, 0, 0])

        def transition(self, prediction, x, i, schedule):
            p = super().transition(prediction, x, i, schedule)
            return p._replace(std=p.std * (self.stds(schedule)[i] > 0).reshape(-1, 1, 1, 1))

    it = iteration()
    rollout = collect(it, Every()).credited(torch.ones(8))
    assert rollout.times.tolist() == [[0, 1, 2, 3, 4]] * 8
    pairs = rollout.transitions()
    assert sorted(set(pairs.i.tolist())) == [0, 2, 3]
    found = log_prob(transition_at(it, Every(), pairs), pairs.x1)
    torch.testing.assert_close(found, pairs.old, rtol=1e-12, atol=1e-12)


def test_a_rollout_is_made_once_an_iteration_and_put_together_from_what_was_kept() -> None:
    it = iteration(reward=failing(lambda b: b == 3))
    first = collect(it, DDIM())
    rows, queries = it.policy.rows.forward, it.reward.queries
    again = collect(replace(it, kept={name: value.clone() for name, value in it.kept.items()}), DDIM())
    assert (it.policy.rows.forward, it.reward.queries) == (rows, queries)
    assert again.prompts == first.prompts and again.tensors().keys() == first.tensors().keys()
    for name, value in first.tensors().items():
        assert torch.equal(again.tensors()[name].nan_to_num(7), value.nan_to_num(7)), name
    assert first.reward.isnan().tolist() == [b == 3 for b in range(8)]
    torch.testing.assert_close(first.parts["half"], first.reward / 2, equal_nan=True)


def test_a_reward_that_raises_leaves_notes_and_no_score() -> None:
    def broken(images: Tensor, prompts: Sequence[str]) -> Tensor:
        raise RuntimeError("the judge is out")

    it = iteration(reward=broken)
    assert collect(it, DDIM()).reward.isnan().all()
    assert len(it.notes) == 8 and "the judge is out" in it.notes[0]


def test_notes_are_of_the_pictures_without_a_score() -> None:
    """Not of those that a judge had something to say about, or was asked for twice."""

    def talks(images: Tensor, prompts: Prompts) -> Scores:
        missing = torch.tensor([b == 3 for b in prompts.ids])
        return Scores(torch.ones(len(images)).masked_fill(missing, torch.nan), {}, tuple(f"n{b}" for b in prompts.ids))

    it = iteration(reward=talks)
    collect(it, DDIM())
    assert it.notes == ["n3"]


def test_a_stop_request_drops_the_rollout_between_two_calls() -> None:
    it = iteration()
    it.world.request_stop()
    with pytest.raises(Stop):
        collect(it, DDIM())
    assert it.policy.rows.forward == 2 * 4 and it.kept == {}


# ---- devices and updates


def shares(size: int, *, images: int, per_prompt: int, updates: int, epoch: int) -> list[set[int]]:
    """The ids of every update, all devices together; each device's share is asked for by itself."""
    algorithm = DDPO(images=images, per_prompt=per_prompt, updates=updates, steps=2, inner_epochs=3)
    found: list[set[int]] = [set() for _ in range(updates)]
    for rank in range(size):
        it = iteration_of(algorithm, Toy(), world=World(rank, size))
        made = rollout_of(it.prompts).updates(it, epoch)
        assert len(made) == updates
        for own, update in zip(made, found, strict=True):
            assert not update & set(own.prompts.ids)
            update |= set(own.prompts.ids)
            assert all(closeness_of(row) == value for row, value in zip(own.prompts.ids, own.x0, strict=True))
    return found


def closeness_of(name: int) -> float:
    return name / 8


def rollout_of(prompts: Prompts) -> Rollout:
    """A rollout whose every number tells its picture's id."""
    ids = torch.tensor([closeness_of(name) for name in prompts.ids])
    (times, steps), texts = (torch.arange(count).expand(len(ids), -1) for count in (3, 2)), Toy().encode(prompts)
    path, old = (ids[:, None].expand(-1, count) for count in (3, 2))
    return Rollout(prompts, texts, steps, times, path, old, ids, ids, {})


@pytest.mark.parametrize("epoch", [0, 1, 2])
@pytest.mark.parametrize(("images", "per_prompt", "updates"), [(32, 2, 2), (24, 1, 4), (72, 3, 2)])
def test_every_number_of_devices_makes_the_same_updates(images: int, per_prompt: int, updates: int, epoch: int) -> None:
    alone = shares(1, images=images, per_prompt=per_prompt, updates=updates, epoch=epoch)
    assert set().union(*alone) == set(range(images)) and {len(part) for part in alone} == {images // updates}
    for part in alone:  # groups stay whole
        assert all(
            len([b for b in part if b // per_prompt == g]) == per_prompt for g in {b // per_prompt for b in part}
        )
    for size in (2, 3, 4):
        assert shares(size, images=images, per_prompt=per_prompt, updates=updates, epoch=epoch) == alone


def test_later_epochs_come_in_another_order_and_mix_the_updates() -> None:
    """256 groups an update make rows of 64: with 2 updates, 8 rows change places."""
    first, *others = (shares(1, images=512, per_prompt=1, updates=2, epoch=epoch) for epoch in range(4))
    assert first == [set(range(256)), set(range(256, 512))]
    assert any(other != first for other in others)


def test_devices_are_dealt_whole_groups_of_the_same_draw() -> None:
    algorithm = DDPO(images=24, per_prompt=3, updates=2, steps=2)
    plan = plan_of(algorithm, Toy())
    prompts, everyone = deal(source(TEXTS), KEY, plan, World())
    assert prompts.ids == tuple(range(24)) and prompts.groups == tuple(b // 3 for b in range(24))
    assert prompts.texts == tuple(everyone[g] for g in prompts.groups) and set(everyone) == set(TEXTS)
    for rank in range(3):
        own, texts = deal(source(TEXTS), KEY, plan, World(rank, 3))
        assert texts == everyone
        assert sorted(set(own.groups)) == list(range(rank, 8, 3))
        assert own == prompts.take([b for b in range(24) if b // 3 % 3 == rank])
    assert deal(source(TEXTS), Key(SEED, 1), plan, World())[1] != everyone


def test_transitions_are_those_of_pictures_with_credit_and_of_chosen_steps() -> None:
    rollout = collect(iteration(), DDIM())
    credit = torch.tensor([1.0, torch.nan, 3, 4, torch.nan, 6, 7, 8])
    pairs = rollout.credited(credit).transitions()
    assert len(pairs) == 6 * STEPS
    assert ids_of(pairs)[::STEPS] == [0, 2, 3, 5, 6, 7]
    assert pairs.credit[::STEPS].tolist() == [1, 3, 4, 6, 7, 8]
    chosen = torch.zeros(8, STEPS, dtype=torch.bool)
    chosen[0, 2] = chosen[1, 3] = chosen[2, [0, 5]] = True
    few = rollout.credited(credit).transitions(chosen)
    assert list(zip(few.sample.tolist(), few.i.tolist(), strict=True)) == [(0, 2), (2, 0), (2, 5)]
    again = few.take(torch.tensor([2, 0, 2]))
    assert again.i.tolist() == [5, 2, 5] and ids_of(again) == [2, 0, 2]
    assert torch.equal(again.x, rollout.path[[2, 0, 2], [5, 2, 5]])
    assert torch.equal(again.x1, rollout.path[[2, 0, 2], [6, 3, 6]])
    assert torch.equal(again.old, rollout.old[[2, 0, 2], [5, 2, 5]])


def test_padding_repeats_the_last_row() -> None:
    prompts = Prompts.of(["a", "b"])
    assert padded(prompts, 4).ids == (0, 1, 1, 1) and padded(prompts, 2) == prompts

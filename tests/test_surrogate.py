"""The chain of reward gradients: what runs without a graph, what with one, who joins and leaves, and what is kept."""

from functools import partial

import pytest
import torch
from torch import Tensor

from tastemaker.algorithms.draft import DRaFT
from tastemaker.iteration import Iteration
from tastemaker.process.prediction import Prediction
from tastemaker.process.samplers import DDIM, Sampler, Window
from tastemaker.process.truncation import Fixed, PerStep, Uniform
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards.reward import Scores
from tastemaker.rollout import chain, placed
from tastemaker.surrogate import Course, Judged, finished, judged, prefix, shares, walk, whole
from tastemaker.world import Stop, World
from toy import Toy
from toy_runs import Scorer, closeness, failing, iteration_of, plan_of

STEPS, IMAGES = 6, 8
ODE = DDIM(eta=0.0)
SAMPLERS = {"ode": ODE, "ddpm": DDIM(1.0), "window": Window(DDIM(), 2), "windows": Window(DDIM(), 2, each="group")}


class Watched(Toy):
    """Notes step, rows and graph of every prediction."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.calls: list[tuple[int, int, bool]] = []

    def predict(self, x, i, schedule, conditioning, guidance) -> Prediction:
        assert len(x) == len(conditioning)
        self.calls.append((i, len(x), torch.is_grad_enabled()))
        return super().predict(x, i, schedule, conditioning, guidance)


def iteration(*, sampling: int = 3, micro: int = 4, guidance: float = 2.0, **settings: object) -> Iteration:
    algorithm = DRaFT(images=IMAGES, updates=1, steps=STEPS, guidance=guidance)
    policy = Watched()
    plan = plan_of(algorithm, policy, micro=micro, sampling=sampling)
    return iteration_of(algorithm, policy, plan, **settings)


def drawn(it: Iteration, sampler: Sampler) -> list[Tensor]:
    """x[0] ... x[T] of all pictures by `chain`."""
    steps = list(
        chain(
            Toy(),
            placed(it, sampler),
            it.prompts,
            key=it.key,
            schedule=it.policy.schedule(STEPS),
            guidance=it.plan.guidance,
        )
    )
    return [step.x for step in steps] + [steps[-1].cleaner]


def uniform(it: Iteration) -> Course:
    return whole(Uniform().live(it.key, it.prompts.ids, STEPS))


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-12)


# ---- the prefix


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("sampling", [1, 3, 64])
def test_the_prefix_costs_the_sum_of_its_steps_and_no_graph(sampling: int, guidance: float) -> None:
    it = iteration(sampling=sampling, guidance=guidance)
    course = uniform(it)
    starts = prefix(it, ODE, it.prompts, course)
    wanted = int(course.first.sum())
    assert 0 < wanted < IMAGES * (STEPS - 1)
    assert it.policy.rows.forward == wanted * it.plan.guided and it.policy.rows.backward == 0
    assert all(0 < rows <= sampling for _, rows, _ in it.policy.calls)
    assert not starts.x.requires_grad and starts.x.dtype == torch.float64


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_every_picture_stands_at_its_first_live_step_whatever_the_calls(sampler: Sampler) -> None:
    """Sorted by it; text, course and latent stay with the id."""
    for sampling in (1, 3, 64):
        it = iteration(sampling=sampling)
        course, path = uniform(it), drawn(it, sampler)
        starts = prefix(it, sampler, it.prompts, course)
        first = starts.course.first.tolist()
        assert first == sorted(course.first.tolist()) and sorted(starts.prompts.ids) == list(range(IMAGES))
        texts = it.policy.encode(starts.prompts).positive_rows("text")
        assert torch.equal(starts.conditioning.positive_rows("text"), texts)
        for row, (b, i) in enumerate(zip(starts.prompts.ids, first, strict=True)):
            assert starts.prompts.texts[row] == it.prompts.texts[b]
            assert torch.equal(starts.course.live[row], course.live[b]) and i == course.first[b]
            assert close(starts.x[row], path[i][b])


def test_who_begins_at_the_noise_needs_no_prefix() -> None:
    it = iteration()
    starts = prefix(it, ODE, it.prompts, whole(Fixed(STEPS).live(it.key, it.prompts.ids, STEPS)))
    assert it.policy.calls == []
    assert torch.equal(starts.x, it.key.noise("x0", 0, starts.prompts.ids, Toy.latent_shape).double())


def test_no_pictures_make_no_calls() -> None:
    it = iteration()
    starts = prefix(it, ODE, it.prompts.take([]), whole(Uniform().live(it.key, [], STEPS)))
    assert len(starts) == 0 and finished(it, ODE, starts).shape == (0, *Toy.latent_shape) and it.policy.calls == []


def test_a_stop_is_heard_between_two_calls_of_the_prefix() -> None:
    world = World()
    it = iteration(world=world)
    world.request_stop()
    with pytest.raises(Stop):
        prefix(it, ODE, it.prompts, whole(Fixed(2).live(it.key, it.prompts.ids, STEPS)))
    assert len(it.policy.calls) == 1


# ---- the rest of the chain


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("rule", [Uniform(), PerStep(), Fixed(STEPS)], ids=repr)
def test_it_ends_at_the_pictures_that_are_drawn_anyway(sampler: Sampler, rule: Uniform) -> None:
    """With and without a graph, all at once and in any company."""
    it = iteration()
    course, pictures = whole(rule.live(it.key, it.prompts.ids, STEPS)), drawn(it, sampler)[-1]
    starts = prefix(it, sampler, it.prompts, course)
    wanted = pictures[list(starts.prompts.ids)]
    assert close(finished(it, sampler, starts), wanted)
    for detached in (False, True):
        assert close(walk(it, sampler, starts, detached=detached).x0, wanted)
    some = torch.tensor([5, 2, 7])
    assert close(walk(it, sampler, starts.take(some)).x0, wanted[some])


def test_only_live_calls_keep_a_graph_and_every_row_is_called_once_a_step() -> None:
    it = iteration()
    course = whole(PerStep().live(it.key, it.prompts.ids, STEPS))
    starts = prefix(it, ODE, it.prompts, course)
    before = it.policy.rows.forward
    it.policy.calls.clear()
    way = walk(it, ODE, starts)
    assert it.policy.rows.backward == 2 * int(course.live.sum())
    assert it.policy.rows.forward - before == 2 * int((STEPS - course.first).sum())
    for i in range(STEPS):
        rows = {graph: n for step, n, graph in it.policy.calls if step == i}
        live, idle = course.live[:, i], ~course.live[:, i] & (course.first <= i)
        assert rows == {graph: int(m.sum()) for graph, m in ((True, live), (False, idle)) if m.any()}
    assert any(not graph for *_, graph in it.policy.calls)  # idle steps inside a chain
    assert sorted((live.i, row) for live in way.live for row in live.rows.tolist()) == sorted(
        (int(i), int(row)) for row, i in starts.course.live.nonzero()
    )
    assert way.x0.requires_grad


def test_rows_join_at_their_first_step_and_leave_where_their_chain_stops() -> None:
    """The picture of a row that left is what the network believed there, whatever the others do afterwards."""
    it = iteration()
    first, stop = torch.tensor([0, 1, 2, 3, 3, 4, 5, 5]), torch.tensor([2, 1, 4, 3, 6, 4, 5, 6])
    live = torch.arange(STEPS) == first[:, None]
    starts = prefix(it, ODE, it.prompts, Course(live, stop))
    assert starts.course.first.tolist() == first.tolist()
    it.policy.calls.clear()
    way = walk(it, ODE, starts)
    under_way = [int(((first <= i) & (stop >= i)).sum()) for i in range(STEPS)]
    assert [sum(n for step, n, _ in it.policy.calls if step == i) for i in range(STEPS)] == under_way
    path, schedule = drawn(it, ODE), it.policy.schedule(STEPS)
    text = it.policy.encode(it.prompts)
    for b, i in enumerate(stop.tolist()):
        own = path[i][[b]]
        x0 = own if i == STEPS else it.policy.predict(own, i, schedule, text.take([b]), 2.0).x0
        assert close(way.x0[[b]], x0)


def test_a_detached_walk_has_no_gradient_through_one_call_into_another() -> None:
    it = iteration()
    starts = prefix(it, ODE, it.prompts, whole(Fixed(2).live(it.key, it.prompts.ids, STEPS)))
    for detached in (False, True):
        way = walk(it, ODE, starts, detached=detached)
        early, late = (live.prediction.eps for live in way.live)
        (through,) = torch.autograd.grad(late.sum(), early, allow_unused=True, retain_graph=True)
        (along,) = torch.autograd.grad(way.x0.sum(), early)
        assert (through is None) == detached and along.any()


# ---- pictures and scores


def scored(reward: Scorer) -> tuple[Iteration, Judged, Tensor]:
    it = iteration(reward=reward)
    x0 = torch.randn(IMAGES, *Toy.latent_shape, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    return it, judged(it, it.prompts, x0), x0


def test_a_picture_without_a_score_has_no_gradient_and_spoils_no_others() -> None:
    """Whether its score is masked, or is NaN with a slope that is NaN too."""
    good = torch.tensor([b not in (1, 4) for b in range(IMAGES)])

    def root(images: Tensor, prompts: Prompts, sign: Tensor | float = 1.0) -> Tensor:
        return -(-closeness(images, prompts) * sign).sqrt()

    broken = partial(root, sign=torch.where(good, 1.0, -1.0))
    for reward, whole_one in ((failing(lambda b: not good[b]), closeness), (broken, root)):
        it, found, x0 = scored(reward)
        (wanted,) = torch.autograd.grad(whole_one(x0, it.prompts).sum() + (x0**2).sum(), x0)
        (slope,) = torch.autograd.grad(found.value.sum() + (found.images**2).sum(), x0)
        assert torch.equal(slope[good], wanted[good]) and not slope[~good].any()
        assert found.value[~good].tolist() == [0.0, 0.0] and found.reward.isnan().tolist() == (~good).tolist()
        assert torch.equal(found.value[good], found.reward[good]) and not found.reward.requires_grad
        kept = it.kept["rollout.reward"]
        assert torch.equal(kept.isnan(), ~good) and torch.equal(kept[good], found.reward[good].float())
        assert torch.equal(it.kept["rollout.x0"], x0.detach().float())


def test_what_a_judge_says_of_a_failed_score_is_noted() -> None:
    def squeamish(images: Tensor, prompts: Prompts) -> Scores:
        value = closeness(images, prompts) + torch.tensor([torch.nan if b == 2 else 0.0 for b in prompts.ids])
        return Scores(value, {}, tuple(f"this is {b}" for b in prompts.ids))

    assert scored(squeamish)[0].notes == ["this is 2"]


def test_what_was_seen_is_kept_by_id_and_seen_again_replaced() -> None:
    it = iteration(reward=failing(lambda b: b == 3))
    x0 = torch.arange(IMAGES).view(-1, 1, 1, 1).expand(IMAGES, *Toy.latent_shape).double()
    for rows in ([6, 3], [0, 1, 6], [6, 6]):
        judged(it, it.prompts.take(rows), x0[rows] + len(rows))
    seen = it.kept["rollout.x0"][:, 0, 0, 0]
    assert seen.isnan().tolist() == [b not in (0, 1, 3, 6) for b in range(IMAGES)]
    assert seen[[0, 1, 3, 6]].tolist() == [3.0, 4.0, 5.0, 8.0]
    reward = it.kept["rollout.reward"]
    assert reward.isfinite().tolist() == [b in (0, 1, 6) for b in range(IMAGES)]
    assert torch.equal(it.kept["rollout.parts.half"][[0, 1, 6]], reward[[0, 1, 6]] / 2)


# ---- shares


@pytest.mark.parametrize("size", [1, 2, 3])
def test_updates_are_cut_by_group_the_same_on_any_number_of_devices(size: int) -> None:
    algorithm = DRaFT(images=24, per_prompt=2, updates=2, steps=STEPS)
    seen: list[list[int]] = [[], []]
    for rank in range(size):
        it = iteration_of(algorithm, Toy(), plan_of(algorithm, Toy(), devices=size), world=World(rank, size))
        for own, prompts in zip(seen, shares(it), strict=True):
            assert len(prompts) == 12 // size
            own += prompts.ids
            assert all(prompts.groups.count(group) == 2 for group in prompts.groups)
    assert [sorted(own) for own in seen] == [list(range(12)), list(range(12, 24))]

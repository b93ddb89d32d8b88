"""Runs, plans and iterations over the toy policy, as the composition root makes them over a real one."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tastemaker.algorithms.algorithm import Algorithm
from tastemaker.iteration import Iteration, Later, Silence, Update, deal
from tastemaker.plan import Plan
from tastemaker.policy.policy import Policy
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.prompts import Prompts
from tastemaker.prompts.sources import source
from tastemaker.rewards.recorded import Recorded
from tastemaker.rewards.reward import Scores
from tastemaker.rollout import Transitions, chain
from tastemaker.training.checkpoint import Checkpoints
from tastemaker.training.lines import read_lines
from tastemaker.training.optimizer import Optimizer, OptimizerSettings
from tastemaker.training.record import METRICS, Record
from tastemaker.training.trainer import Training, descend
from tastemaker.world import World
from toy import Toy

TEXTS = ("cat", "dog", "cow")
SEED = 1
Scorer = Callable[[Tensor, Prompts], Any]


def closeness(images: Tensor, prompts: Prompts) -> Tensor:
    """Minus the squared distance to 1.5 for cats, -1.5 for others: smooth, so that rounding stays rounding."""
    target = torch.tensor([1.5 if text == "cat" else -1.5 for text in prompts.texts]).view(-1, 1, 1, 1)
    return -((images - target) ** 2).flatten(1).mean(1)


def failing(ids: Callable[[int], bool], reward: Scorer = closeness) -> Scorer:
    """The reward with no score for these pictures, and with a part that is half of it."""

    def scored(images: Tensor, prompts: Prompts) -> Scores:
        value = reward(images, prompts).clone()
        value[[row for row, name in enumerate(prompts.ids) if ids(name)]] = torch.nan
        return Scores(value, {"half": value / 2})

    return scored


def plan_of(
    algorithm: Algorithm, policy: Policy, *, micro: int = 8, sampling: int = 0, devices: int = 1, save: int = 0
) -> Plan:
    schedule = policy.schedule(algorithm.steps)
    calls = algorithm.calls(schedule)
    return Plan(
        iterations=algorithm.iterations,
        images=algorithm.images,
        per_prompt=algorithm.per_prompt,
        updates=algorithm.updates,
        inner_epochs=algorithm.epochs,
        steps=algorithm.steps,
        guidance=algorithm.guidance,
        items=algorithm.items(schedule),
        drawn=calls.drawn,
        learned=calls.learned,
        queries=calls.queries,
        micro_batch=micro,
        sampling_batch=sampling or micro,
        devices=devices,
        learning_guidance=algorithm.learning_guidance,
        save_every=save,
    )


def iteration_of(
    algorithm: Algorithm,
    policy: Policy,
    plan: Plan | None = None,
    *,
    index: int = 0,
    reward: Scorer = closeness,
    world: World | None = None,
    kept: dict[str, Tensor] | None = None,
) -> Iteration:
    plan, world, key = plan or plan_of(algorithm, policy), world or World(), Key(SEED, index)
    prompts, everyone = deal(source(TEXTS), key, plan, world)
    state, kept = algorithm.begin(), {} if kept is None else kept
    return Iteration(key, policy, Recorded(reward), prompts, everyone, plan, world, state, kept)


def optimizer_of(algorithm: Algorithm, policy: Policy, **settings: Any) -> Optimizer:
    return Optimizer(
        policy.named_parameters(),
        OptimizerSettings(algorithm.learning_rate, algorithm.weight_decay, **settings),
        total_updates=1000,
        average=partial(policy.blend, "ema"),
    )


def run_of(
    folder: Path,
    algorithm: Algorithm,
    policy: Policy,
    *,
    reward: Scorer = closeness,
    world: World | None = None,
    evaluate: Callable[[int], None] = lambda index: None,
    micro: int = 8,
    sampling: int = 0,
    save: int = 0,
    max_failed: float = 0.5,
    **settings: Any,
) -> Training:
    """A run with everything new; its checkpoints and metrics are in the folder."""
    world = world or World()
    folder.mkdir(parents=True, exist_ok=True)
    return Training(
        algorithm=algorithm,
        policy=policy,
        reward=Recorded(reward),
        source=source(TEXTS),
        optimizer=optimizer_of(algorithm, policy, **settings),
        plan=plan_of(algorithm, policy, micro=micro, sampling=sampling, devices=world.size, save=save),
        world=world,
        record=Record(folder, iterations=algorithm.iterations, write=world.rank == 0, samples=0),
        checkpoints=Checkpoints(folder / "checkpoints", world=world),
        evaluate=evaluate,
        seed=SEED,
        max_failed=max_failed,
    )


def made(update: Update) -> Update:
    """The update with its batch drawn, as the trainer does when its turn has come."""
    return update._replace(batch=update.batch.make()) if isinstance(update.batch, Later) else update


def gradient(it: Iteration, update: Update, algorithm: Algorithm) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The gradient of an update by name, unclipped, and its statistics; the weights have made the step afterwards."""
    stats = descend(it, optimizer_of(algorithm, it.policy, max_grad_norm=None), made(update), Silence())
    found = {name: p.grad.clone() for name, p in it.policy.named_parameters().items() if p.grad is not None}
    return found, stats


class Cost(NamedTuple):
    """Of one iteration: network rows forward and backward, and pictures judged."""

    forward: int
    backward: int
    queries: int


def costs(algorithm: Algorithm, policy: Policy, **calls: int) -> tuple[Cost, Cost]:
    """What the plan announces of one iteration, and what it took."""
    it = iteration_of(algorithm, policy, plan_of(algorithm, policy, **calls))
    for update in algorithm.iteration(it):
        gradient(it, update, algorithm)
    plan = it.plan
    announced = Cost(plan.sampling_rows + plan.learning_rows, plan.learning_rows, plan.images * plan.queries)
    return announced, Cost(policy.rows.forward, policy.rows.backward, it.reward.queries)


def ids_of(pairs: Transitions) -> list[int]:
    """The picture of each item."""
    return [pairs.rollout.prompts.ids[row] for row in pairs.sample.tolist()]


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """|a - b| / |b| over all tensors together."""
    assert a.keys() == b.keys()
    return float((flat(a) - flat(b)).norm() / flat(b).norm())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def metrics(folder: Path, *without: str) -> list[dict[str, Any]]:
    """The rows a run wrote, without what the clock says."""
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "memory", *without)}
        for row in read_lines(folder / METRICS)
    ]


def shuffled(reward: Scorer) -> Scorer:
    """The same rewards, given to the wrong pictures: a control that holds no information."""
    random = torch.Generator().manual_seed(0)

    def scored(images: Tensor, prompts: Prompts) -> Tensor:
        return reward(images, prompts)[torch.randperm(len(images), generator=random)]

    return scored


def signs(reward: Scorer) -> Scorer:
    """The same rewards, each picture's gradient times a random sign: that control where rewards are differentiated."""
    random = torch.Generator().manual_seed(0)

    def scored(images: Tensor, prompts: Prompts) -> Tensor:
        r = reward(images, prompts)
        sign = 2 * torch.randint(2, r.shape, generator=random) - 1
        return r.detach() + sign * (r - r.detach())

    return scored


def judged(policy: Policy, reward: Scorer) -> float:
    """The mean reward of 256 deterministic pictures from fixed noise."""
    prompts = source(TEXTS).draw(Key(SEED, "evaluation").random("prompts"), 256)
    schedule, ode = policy.schedule(8), DDIM(eta=0.0)
    *_, last = chain(policy, ode, prompts, key=Key(SEED, "evaluation"), schedule=schedule, guidance=1.0)
    return float(reward(policy.decode(last.cleaner), prompts).mean())


def improvement(algorithm: Algorithm, reward: Scorer, *, permuted: bool = False, flow: bool = False) -> float:
    """What a run of an algorithm adds to the mean reward, from the exact base; all pictures are scored in one call."""
    policy = Toy(flow=flow, spread=0.0, dtype=torch.float32, sets=algorithm.sets)
    before = judged(policy, reward)
    with TemporaryDirectory() as folder:
        scorer = shuffled(reward) if permuted else reward
        assert run_of(Path(folder), algorithm, policy, reward=scorer, micro=algorithm.images).train()
    return judged(policy, reward) - before

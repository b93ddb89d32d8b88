"""The gradient of every algorithm that differentiates its reward is that of plain autograd over diffusers' scheduler.

Nothing of our chain is in the references: they walk the whole chain with its graph and cut it by `detach`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.func import functional_call
from transformers import CLIPTextModel, CLIPTokenizer

import tiny
from tastemaker.algorithms.algorithm import Algorithm
from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.algorithms.draft import DRaFT
from tastemaker.algorithms.drtune import DRTune
from tastemaker.algorithms.grad_copy import GradCopy
from tastemaker.algorithms.refl import ReFL
from tastemaker.iteration import Iteration, Update
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load, quiet
from tastemaker.policy.policy import Policy
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM
from tastemaker.process.truncation import Fixed, Gaussian, PerStep, Uniform
from tastemaker.prompts.prompts import Prompts
from tastemaker.shapes import assets
from toy import Toy
from toy_runs import SEED, apart, closeness, flat, gradient, iteration_of, made, plan_of, same

STEPS, KEY, SHAPE = 6, Key(SEED, 0), Toy.latent_shape
P = TypeVar("P", bound=Policy)
SMALL = {"images": 12, "updates": 2, "steps": STEPS, "guidance": 2.0, "learning_rate": 0.02}
REAL = SMALL | {"images": 4, "updates": 1, "steps": 4}  # on a real network
Step = Callable[[Tensor, int, Tensor, float, Tensor], tuple[Tensor, Tensor]]


# ---- the references


def diffusers_step(policy: Toy) -> Step:
    """(output, i, x, eta, noise) -> x[i + 1] and x0 by DDIMScheduler, on the toy's grid; Euler's for a flow."""
    schedule = policy.schedule(STEPS)
    scheduler = DDIMScheduler(num_train_timesteps=STEPS, clip_sample=False)
    scheduler.set_timesteps(STEPS)
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = schedule.alpha[:-1].flip(0) ** 2, schedule.alpha[-1] ** 2

    def step(out: Tensor, i: int, x: Tensor, eta: float, noise: Tensor) -> tuple[Tensor, Tensor]:
        if policy.flow:
            level, cleaner = 1 - i / STEPS, 1 - (i + 1) / STEPS
            return x + (cleaner - level) * out, x - level * out
        return scheduler.step(out, STEPS - 1 - i, x, eta, variance_noise=noise if eta else None, return_dict=False)

    return step


def per_row(mask: Tensor) -> Tensor:
    return mask.view(-1, 1, 1, 1)


def walked(
    it: Iteration,
    ids: Sequence[int],
    live: Tensor,
    *,
    stop: Tensor | None = None,
    cut: bool = False,
    eta: float = 0.0,
    x: Tensor | None = None,
    first: int = 0,
) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
    """Pictures with the graph of the calls where `live [B,T]` holds, and (x, output, x0) of every step.

    stop: the step whose x0 is the picture. cut: the network's input is detached.
    """
    policy, step = it.policy, diffusers_step(it.policy)
    text = policy.encode([it.prompts.texts[b] for b in ids])
    x = KEY.noise("x0", 0, ids, SHAPE).double() if x is None else x
    stop, seen = torch.full((len(ids),), STEPS) if stop is None else stop, []
    for i in range(first, STEPS):
        said = policy.predict(x.detach() if cut else x, i, policy.schedule(STEPS), text, it.plan.guidance)
        out = said.velocity if policy.flow else said.eps
        out = torch.where(per_row(live[:, i]), out, out.detach())
        cleaner, x0 = step(out, i, x, eta, KEY.noise("chain", i, ids, SHAPE).double())
        seen.append((x, out, x0))
        x = torch.where(per_row(stop > i), cleaner, torch.where(per_row(stop == i), x0, x))
    return x, seen


def reward_of(it: Iteration, x0: Tensor, ids: Sequence[int]) -> Tensor:
    return closeness(x0, it.prompts.take(ids))


def draft(it: Iteration, a: DRaFT, ids: Sequence[int]) -> Tensor:
    """[B] the loss of DRaFT, DRaFT-LV and DRaFT+."""
    x0, seen = walked(it, ids, torch.arange(STEPS).expand(len(ids), STEPS) >= STEPS - a.k, eta=a.sampler.eta)
    if a.copies:
        return torch.stack([renoised(it, x0.detach(), copy, ids) for copy in range(a.copies)]).mean(0)
    loss, base, schedule = -reward_of(it, x0, ids), Toy(flow=it.policy.flow), it.policy.schedule(STEPS)
    text = base.encode([it.prompts.texts[b] for b in ids])
    for i in range(STEPS - a.k, STEPS):
        x, out, _ = seen[i]
        with torch.no_grad():
            theirs = base.predict(x, i, schedule, text, it.plan.guidance).eps
        ours = x + (1 - schedule.sigma[i]) * out if it.policy.flow else out
        loss = loss + a.kl * ((ours - theirs) ** 2).mean((1, 2, 3)) / a.k
    for row, b in enumerate(ids):
        others = [r for r, c in enumerate(ids) if c // a.per_prompt == b // a.per_prompt and c != b]
        far = [((x0[row] - x0[r].detach()) ** 2).mean() for r in others]
        loss = loss - a.diversity * sum(far) / max(len(far), 1) * (torch.arange(len(ids)) == row)
    return loss


def renoised(it: Iteration, x0: Tensor, copy: int, ids: Sequence[int]) -> Tensor:
    """[B] minus the reward of the last step from x0 with new noise."""
    alpha, sigma = it.policy.schedule(STEPS).alpha[-2], it.policy.schedule(STEPS).sigma[-2]
    x = alpha * x0 + sigma * KEY.noise("copies", copy, ids, SHAPE).double()
    live = torch.ones(len(ids), STEPS, dtype=torch.bool)
    return -reward_of(it, walked(it, ids, live, x=x, first=STEPS - 1)[0], ids)


def alignprop(it: Iteration, a: AlignProp, ids: Sequence[int]) -> Tensor:
    rows = []
    for b in ids:
        random = KEY.random("truncation", b)
        match a.truncation:
            case Uniform():
                first = min(random.randint(0, STEPS), STEPS - 1)
                rows.append([i >= first for i in range(STEPS)])
            case Gaussian(mean, std):
                first = min(max(round(random.gauss(mean, std) * STEPS), 0), STEPS - 1)
                rows.append([i >= first for i in range(STEPS)])
            case PerStep():
                row = [random.randint(0, STEPS) <= i for i in range(STEPS)]
                rows.append(row[:-1] + [row[-1] or not any(row)])
    r = reward_of(it, walked(it, ids, torch.tensor(rows))[0], ids)
    forms = {"negative": -r, "target": a.scale * (r - a.target).abs(), "one_minus": 1 - r}
    return a.coefficient * forms[a.loss_form]


def refl(it: Iteration, a: ReFL, ids: Sequence[int]) -> Tensor:
    low, high = round(a.first * STEPS), round(a.last * STEPS)
    step = torch.tensor([KEY.random("step", b).randint(low, high) for b in ids])
    assert len(step.unique()) > 1
    x0, _ = walked(it, ids, torch.arange(STEPS) == step[:, None], stop=step, eta=a.sampler.eta)
    missing = torch.relu(a.threshold - reward_of(it, x0, ids))
    assert 0 < int((missing == 0).sum()) < len(ids)
    return a.scale * missing


def drtune(it: Iteration, a: DRTune, ids: Sequence[int]) -> Tensor:
    live, stop, spacing = torch.zeros(len(ids), STEPS, dtype=torch.bool), [], STEPS // a.active
    for row, b in zip(live, ids, strict=True):
        random = KEY.random("course", b)
        begin = random.randint(0, STEPS - 1 - spacing * (a.active - 1))
        stop.append(STEPS - random.randint(1, a.early))
        row[begin::spacing] = True
        row[begin + spacing * a.active :] = False
        row[stop[-1] + 1 :] = False
        row[stop[-1]] |= not row.any()
    return -reward_of(it, walked(it, ids, live, stop=torch.tensor(stop), cut=True)[0], ids)


def grad_copy(it: Iteration, a: GradCopy, ids: Sequence[int]) -> Tensor:
    """[items] the squared distance of every chosen velocity to where the reward's gradient moves it."""
    ones = torch.ones(len(ids), STEPS, dtype=torch.bool)
    with torch.no_grad():
        x0, seen = walked(it, ids, ones)
    (g,) = torch.autograd.grad(reward_of(it, x0.requires_grad_(), ids).sum(), x0)
    g, losses = g / (g**2).mean().sqrt(), []
    text = it.policy.encode([it.prompts.texts[b] for b in ids])
    for row, b in enumerate(ids):
        for i in KEY.permutation(STEPS, "steps", b)[: a.chosen] if a.chosen else range(STEPS):
            x, out, clean = (part[[row]] for part in seen[i])
            old = out if it.policy.flow else out - clean
            one = text.take([row])
            new = it.policy.predict(x, i, it.policy.schedule(STEPS), one, it.plan.guidance).velocity
            losses.append(((new - (old - a.scale * g[[row]])) ** 2).mean())
    return torch.stack(losses)


REFERENCES = {DRaFT: draft, AlignProp: alignprop, ReFL: refl, DRTune: drtune, GradCopy: grad_copy}
CASES: dict[str, Algorithm] = {
    "draft-1": DRaFT(**SMALL),
    "draft-3": DRaFT(k=3, **SMALL),
    "the whole chain": DRaFT(k=STEPS, **SMALL),
    "without guidance": DRaFT(k=2, **SMALL | {"guidance": 1.0}),
    "random steps": DRaFT(k=3, sampler=DDIM(0.7), **SMALL),
    "draft-lv": DRaFT(copies=2, **SMALL),
    "kl of 1 step": DRaFT(kl=0.5, **SMALL),
    "kl of 3 steps": DRaFT(k=3, kl=0.5, **SMALL),
    "diversity": DRaFT(k=2, diversity=0.3, kl=0.1, per_prompt=3, **SMALL),
    "alignprop uniform": AlignProp(**SMALL),
    "alignprop gaussian": AlignProp(truncation=Gaussian(0.6, 0.2), **SMALL),
    "alignprop per step": AlignProp(truncation=PerStep(), **SMALL),
    "alignprop target": AlignProp(loss_form="target", target=-3.0, scale=2.0, **SMALL),
    "alignprop one minus": AlignProp(loss_form="one_minus", coefficient=1.0, **SMALL),
    "refl": ReFL(first=0.5, last=0.84, threshold=-3.0, **SMALL | {"images": 6, "updates": 1}),
    "drtune": DRTune(active=2, **SMALL),
    "drtune stopped early": DRTune(active=3, early=5, **SMALL),
    "grad-copy": GradCopy(**SMALL),
    "grad-copy of 2 steps": GradCopy(chosen=2, scale=0.3, **SMALL),
}


def nudged(policy: P, by: float = 0.1) -> P:
    """Off its base."""
    random = torch.Generator().manual_seed(5)
    for p in policy.parameters():
        p.data += by * torch.randn(p.shape, generator=random, dtype=p.dtype)
    return policy


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
def test_the_gradient_is_that_of_plain_autograd_over_diffusers_scheduler(name: str, flow: bool) -> None:
    """Of both updates of an iteration, in ragged calls; the second is on pictures of the weights after the first."""
    algorithm, policy = CASES[name], nudged(Toy(flow=flow))
    if flow and isinstance(algorithm, DRaFT | ReFL) and algorithm.sampler.eta:
        algorithm = replace(algorithm, sampler=DDIM(0.0))  # Euler has no noise
    it = iteration_of(algorithm, policy, plan_of(algorithm, policy, micro=5, sampling=4))
    for number, update in enumerate(algorithm.iteration(it)):
        loss = REFERENCES[type(algorithm)](it, algorithm, range(6 * number, 6 * number + 6)).mean()
        named = policy.named_parameters()
        wanted = dict(zip(named, torch.autograd.grad(loss, named.values()), strict=True))
        found, stats = gradient(it, update, algorithm)
        assert apart(found, wanted) < 1e-9
        assert stats["loss"] == pytest.approx(float(loss.detach()), rel=1e-9)
    assert number == algorithm.updates - 1


# ---- a real network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("tiny"))


def shade(images: Tensor, prompts: Prompts) -> Tensor:
    """Not far from 0, so that fp32 holds its differences."""
    return -100 * ((images - 0.3) ** 2).mean((1, 2, 3))


def autograd(folder: Path, it: Iteration, a: DRaFT, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The gradient of an update: diffusers' networks and scheduler in `dtype`, at the policy's weights."""
    with quiet():
        unet, vae = (kind.from_pretrained(folder, subfolder=name).to(dtype).eval() for kind, name in NETWORKS)
        scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").float().eval()
    texts, most = [""] * len(it.prompts) + list(it.prompts), encoder.config.max_position_embeddings
    words = tokenizer(texts, padding="max_length", max_length=most, return_tensors="pt")
    scheduler.set_timesteps(a.steps)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(dtype)
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.to(dtype)
    leaves = {name: p.detach().clone().to(dtype).requires_grad_() for name, p in it.policy.named_parameters().items()}
    weights, base = dict(leaves), dict(unet.named_parameters())
    if any(".lora_A." in name for name in leaves):
        layers = [name.removesuffix(".lora_A.weight") for name in leaves if ".lora_A." in name]
        change = {name: leaves[f"{name}.lora_B.weight"] @ leaves[f"{name}.lora_A.weight"] for name in layers}
        weights = {f"{name}.weight": base[f"{name}.weight"].detach() + change[name] for name in layers}

    def guided(x: Tensor, t: Tensor, network: dict[str, Tensor]) -> Tensor:
        away, toward = functional_call(unet, network, (torch.cat([x, x]), t, text)).sample.chunk(2)
        return away + it.plan.guidance * (toward - away)

    with torch.no_grad():
        text = encoder(words.input_ids)[0].to(dtype)
    x, apart = KEY.noise("x0", 0, it.prompts.ids, it.policy.latent_shape).to(dtype), torch.zeros(())
    for i, t in enumerate(scheduler.timesteps):
        out = guided(x, t, weights)
        out = out if i >= a.steps - a.k else out.detach()
        if a.kl and i >= a.steps - a.k:
            apart = apart + ((out - guided(x, t, base).detach()) ** 2).mean() / a.k
        x = scheduler.step(out, t, x, eta=0.0).prev_sample
    images = (vae.decode(x / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    (a.kl * apart - shade(images, it.prompts).mean()).backward()
    return {name: leaf.grad for name, leaf in leaves.items()}


NETWORKS = ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize(("k", "kl"), [(1, 0.0), (3, 0.05)])
def test_so_it_is_on_a_real_network(folder: Path, lora: LoRA | None, k: int, kl: float) -> None:
    """Ours in fp32, which is all that this family computes in; with k = 3 through three calls of the network."""
    algorithm = DRaFT(**REAL, k=k, kl=kl)
    policy = nudged(load(str(folder), lora=lora), 0.02 if lora is None else 0.2)
    it = iteration_of(algorithm, policy, plan_of(algorithm, policy, micro=3, sampling=4), reward=shade)
    wanted = autograd(folder, it, algorithm)
    assert apart(of_one(algorithm, it), wanted) < 1e-5


@pytest.mark.parametrize("k", [1, 3])
def test_and_on_the_built_in_model(k: int) -> None:
    """Ours in fp32, whose rounding calls of a larger network amplify: hardly farther off than diffusers' own."""
    algorithm = DRaFT(**REAL, k=k)
    policy = nudged(load("shapes", lora=LoRA(rank=4)), 0.02)
    it = iteration_of(algorithm, policy, plan_of(algorithm, policy, micro=3, sampling=4), reward=shade)
    wanted = autograd(assets.folder(), it, algorithm)
    rounding = apart(autograd(assets.folder(), it, algorithm, torch.float32), wanted)
    assert apart(of_one(algorithm, it), wanted) < 3 * rounding < 1e-3


# ---- identities


def of_one(algorithm: Algorithm, it: Iteration) -> dict[str, Tensor]:
    """The gradient of the first update."""
    return gradient(it, next(iter(algorithm.iteration(it))), algorithm)[0]


def of_toy(algorithm: Algorithm, policy: Toy | None = None, **settings: Any) -> dict[str, Tensor]:
    return of_one(algorithm, iteration_of(algorithm, policy or nudged(Toy()), **settings))


@pytest.mark.parametrize("k", [1, 3, STEPS])
def test_a_fixed_truncation_is_draft(k: int) -> None:
    truncated = AlignProp(truncation=Fixed(k), coefficient=1.0, **SMALL)
    assert same(of_toy(truncated), of_toy(DRaFT(k=k, **SMALL)))


def test_the_coefficient_scales() -> None:
    one, other = (of_toy(AlignProp(coefficient=c, **SMALL)) for c in (0.02, 3.0))
    assert apart({name: 150 * slope for name, slope in one.items()}, other) < 1e-12


def test_the_distance_to_the_base_enters_by_its_weight_and_costs_nothing_without() -> None:
    slopes, rows = [], []
    for kl in (0.0, 0.5, 2.0):
        policy = nudged(Toy())
        slopes.append(flat(of_toy(DRaFT(k=3, kl=kl, **SMALL), policy)))
        rows.append(policy.rows.forward)
    plain, some, much = slopes
    torch.testing.assert_close(much - plain, 4 * (some - plain), rtol=1e-9, atol=1e-12)
    assert (some - plain).norm() > 1e-3
    assert torch.equal(plain, flat(of_toy(DRaFT(k=3, **SMALL)))) and rows[0] + 3 * 8 * 2 == rows[1] == rows[2]


@pytest.mark.parametrize("real", [False, True], ids=["toy", "network"])
def test_the_distance_to_the_base_has_a_gradient_off_it_and_none_at_it(folder: Path, real: bool) -> None:
    def silent(images: Tensor, prompts: Prompts) -> Tensor:
        return 0 * images.mean((1, 2, 3))

    makes = (
        [partial(load, str(folder), lora=lora) for lora in (None, LoRA(rank=2))]
        if real
        else [Toy, partial(Toy, flow=True)]
    )
    for k, make in product((3,) if real else (1, 3), makes):
        algorithm = DRaFT(k=k, kl=1.0, **REAL)
        assert not flat(of_toy(algorithm, make(), reward=silent)).any()
        assert flat(of_toy(algorithm, nudged(make()), reward=silent)).norm() > 1e-3


@pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
def test_at_the_last_step_grad_copy_is_parallel_to_draft_1(flow: bool) -> None:
    algorithm, policy = GradCopy(**SMALL), nudged(Toy(flow=flow))
    it = iteration_of(algorithm, policy)
    targets = made(next(iter(algorithm.iteration(it)))).batch
    last = targets.take((targets.step == STEPS - 1).nonzero().flatten())
    assert len(last) == 6
    found = flat(gradient(it, Update(last, partial(algorithm.loss, it)), algorithm)[0])
    wanted = flat(of_toy(DRaFT(**SMALL), nudged(Toy(flow=flow))))
    assert 1 - float(torch.cosine_similarity(found, wanted, dim=0)) < 1e-9


# ---- what changes no gradient


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_does_not_depend_on_the_rows_of_a_call(name: str) -> None:
    found = []
    for micro, sampling in ((6, 6), (1, 1), (4, 5), (64, 64)):
        policy = nudged(Toy())
        found.append(of_toy(CASES[name], policy, plan=plan_of(CASES[name], policy, micro=micro, sampling=sampling)))
    assert all(apart(other, found[0]) < 1e-9 for other in found[1:])


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
def test_nor_do_those_of_a_real_network_on_them_or_on_what_is_computed_twice(folder: Path, lora: LoRA | None) -> None:
    found, calls = [], [0, 0, 0, 0]
    algorithm = DRaFT(k=2, kl=0.05, **REAL)

    def counted(run: int, *args: object) -> None:
        calls[run] += 1

    ways = ((4, 4, False), (4, 4, True), (3, 1, False), (4, 4, None))
    for run, (micro, sampling, twice) in enumerate(ways):  # None: pictures are decoded one by one
        more = {"vae_slicing": True} if twice is None else {"gradient_checkpointing": twice}
        policy = nudged(load(str(folder), lora=lora, **more), 0.05)
        policy.pipeline().unet.down_blocks[0].resnets[0].register_forward_pre_hook(partial(counted, run))
        plan = plan_of(algorithm, policy, micro=micro, sampling=sampling)
        found.append(of_toy(algorithm, policy, plan=plan, reward=shade))
    assert calls[0] == 2 + 2 + 2 < calls[1]  # of the prefix, of the live steps, of the base
    assert all(apart(one, found[0]) < 1e-6 for one in found[1:])


SHORT = REAL | {"images": 2, "steps": 3}


@pytest.mark.parametrize(
    ("algorithm", "precision"),
    [
        (DRaFT(k=2, kl=0.1, **SHORT), "no"),
        (DRaFT(k=2, kl=0.1, **SHORT), "bf16"),
        (DRaFT(copies=2, diversity=1.0, per_prompt=2, **SHORT), "bf16"),
        (AlignProp(truncation=PerStep(), **SHORT), "bf16"),
        (ReFL(**SHORT), "bf16"),
        (DRTune(active=2, **SHORT), "bf16"),
        (GradCopy(**SHORT), "bf16"),
    ],
    ids=lambda value: getattr(value, "__class__", type(value)).__name__ if isinstance(value, Algorithm) else value,
)
def test_every_trainable_tensor_is_reached_after_one_step(folder: Path, algorithm: Algorithm, precision: str) -> None:
    """LoRA's B starts at 0, so A is reached from the second on; low precision keeps nothing of the prefix."""
    policy = load(str(folder), lora=LoRA(rank=2), mixed_precision=precision)
    for index in range(2):
        slopes = of_toy(algorithm, policy, index=index, reward=shade)
        reached = {name for name, slope in slopes.items() if slope.any()}
        assert reached == {name for name in policy.named_parameters() if index or ".lora_B." in name}

"""Annealed guidance: its weights, both ends bit for bit, a loop with diffusers' own scheduler, and what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

import tiny
import toy
from tastemaker.evaluation.evaluate import Trial, draw_pictures
from tastemaker.evaluation.guidance import Annealed, Rule, rule
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load, quiet
from tastemaker.policy.policy import Exportable, Policy
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.prompts import Prompts
from tastemaker.rollout import chain

KEY, STEPS, GUIDANCE = Key(5, "evaluation"), 5, 3.0
PROMPTS = Prompts.of(["a red cat", "two dogs"])
RULES = ("base", "tuned", "linear", "power:2", "step:0.6")


def of_toy(flow: bool) -> toy.Toy:
    """Tuned away from its base."""
    policy = toy.Toy(flow=flow, sets=("base",))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3)
    return policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tuned(folder: Path) -> Exportable:
    policy = load(str(folder), lora=LoRA())
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return policy


def pictures(policy: Policy, eta: float = 0.0) -> Tensor:
    return draw_pictures(policy, Trial(PROMPTS, STEPS, GUIDANCE, DDIM(eta), 5), KEY, PROMPTS)


def test_the_weights_grow_from_the_noise_to_the_picture() -> None:
    found = {text: [rule(text).weight(i, 5) for i in range(5)] for text in RULES}
    assert found == {
        "base": [0, 0, 0, 0, 0],
        "tuned": [1, 1, 1, 1, 1],
        "linear": [0, 0.2, 0.4, 0.6, 0.8],
        "power:2": pytest.approx([0, 0.04, 0.16, 0.36, 0.64]),
        "step:0.6": [0, 0, 0, 1, 1],
    }
    assert [str(rule(text)) for text in RULES] == list(RULES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lineer", "it is base, tuned, linear, power:2 or step:0.6"),
        ("power", "it is base, tuned, linear, power:2 or step:0.6"),
        ("linear:2", "it is base, tuned, linear, power:2 or step:0.6"),
        ("power:two", "'two' is not a number"),
        ("power:0", "the power is positive"),
        ("power:inf", "the power is positive"),
        ("step:60", "lies between 0"),
        ("step:nan", "lies between 0"),
    ],
)
def test_a_rule_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^--anneal '?{text}'?: .*{said}"):
        rule(text)


def test_both_ends_are_the_models_bit_for_bit(folder: Path, tuned: Exportable) -> None:
    base = pictures(load(str(folder), lora=None), eta=1.0)
    assert torch.equal(pictures(Annealed(tuned, Rule("base")), eta=1.0), base)
    assert torch.equal(pictures(Annealed(tuned, Rule("tuned")), eta=1.0), pictures(tuned, eta=1.0))
    assert not torch.allclose(pictures(tuned, eta=1.0), base, atol=1e-2)


@torch.no_grad()
def by_diffusers(folder: Path, tuned: Exportable, x: Tensor, prompts: list[str]) -> Tensor:
    """x0 of linear annealing, in noise predictions and by diffusers' own scheduler."""
    with quiet():
        base = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", use_safetensors=True)
        scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
        text = torch.cat(tuned.pipeline().encode_prompt(prompts, torch.device("cpu"), 1, True)[::-1])
    scheduler.set_timesteps(STEPS)
    for i, t in enumerate(scheduler.timesteps):
        away, toward = base(torch.cat([x, x]), t, text).sample.chunk(2)
        away1, toward1 = tuned.pipeline().unet(torch.cat([x, x]), t, text).sample.chunk(2)
        eps, eps1 = (a + GUIDANCE * (b - a) for a, b in ((away, toward), (away1, toward1)))
        x = scheduler.step(i / STEPS * eps1 + (1 - i / STEPS) * eps, t, x, eta=0.0).prev_sample
    return x


def test_linear_annealing_is_a_loop_of_diffusers(folder: Path, tuned: Exportable) -> None:
    policy = Annealed(tuned, Rule("linear"))
    steps = chain(policy, DDIM(0.0), PROMPTS, key=KEY, schedule=policy.schedule(STEPS), guidance=GUIDANCE)
    *_, last = steps
    x = KEY.noise("x0", 0, PROMPTS.ids, policy.latent_shape)
    expected = by_diffusers(folder, tuned, x, list(PROMPTS))
    assert (last.cleaner - expected).abs().max() < 1e-4 * expected.abs().max()
    *_, other = chain(tuned, DDIM(0.0), PROMPTS, key=KEY, schedule=policy.schedule(STEPS), guidance=GUIDANCE)
    assert (other.cleaner - expected).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.parametrize("flow", [False, True])
def test_the_prediction_is_linear_for_every_family(flow: bool) -> None:
    policy = of_toy(flow)
    schedule, conditioning = policy.schedule(4), policy.encode(list(PROMPTS))
    x = torch.randn(2, 4, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tuned = policy.predict(x, 3, schedule, conditioning, GUIDANCE)
    with policy.using("base"):
        base = policy.predict(x, 3, schedule, conditioning, GUIDANCE)
    mixed = Annealed(policy, Rule("power", 2.0)).predict(x, 3, schedule, conditioning, GUIDANCE)
    w = 0.75**2
    assert torch.allclose(mixed.eps, w * tuned.eps + (1 - w) * base.eps)
    assert torch.allclose(mixed.velocity, w * tuned.velocity + (1 - w) * base.velocity)
    alpha, sigma = schedule.at(3, x)
    assert torch.allclose(alpha * mixed.x0 + sigma * mixed.eps, x)  # a prediction about this x
    rows = Annealed(policy, Rule("power", 2.0)).predict(x, torch.tensor([3, 0]), schedule, conditioning, GUIDANCE)
    assert torch.allclose(rows.eps[0], mixed.eps[0]) and not torch.allclose(rows.eps[1], mixed.eps[1])


@pytest.mark.parametrize(
    ("text", "calls"), [("base", 5), ("tuned", 5), ("linear", 9), ("power:2", 9), ("step:0.6", 5), ("step:1", 5)]
)
def test_where_one_network_is_enough_one_is_run(text: str, calls: int) -> None:
    policy = of_toy(flow=False)
    pictures(Annealed(policy, rule(text)))
    assert policy.rows.forward == calls * 2 * len(PROMPTS)  # with guidance two rows a picture
    assert policy.rows.backward == 0

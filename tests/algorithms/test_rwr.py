"""RWR: its weights, what it refuses, what it costs, and that it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import forward_runs as forward
from tastemaker import config
from tastemaker.algorithms.rwr import RWR
from tastemaker.process.samplers import DDIM


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"inner_epochs": 0}, "inner_epochs is 0; it must be at least 1"),
        ({"levels": 0}, "levels is 0; it must be at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be positive"),
        ({"top": 1.5}, "top is 1.5; it is a share between 0"),
        ({"top": 0.1, "temperature": 0.3}, "temperature has no effect with top"),
        ({"top": 0.1, "temperature": 1.0}, "temperature has no effect with top.* leave one of them out"),
        ({"guidance": 1.0, "guidance_in_loss": False}, "guidance_in_loss has no effect at guidance=1.0.* leave it out"),
        ({"space": "noise"}, "space is 'noise'; it is one of x0, eps, velocity"),
    ],
)
def test_settings_are_refused_with_the_reason(settings: dict[str, object], said: str) -> None:
    forward.refuses(RWR, settings, said)


def test_more_levels_than_steps_are_refused() -> None:
    forward.refuses_more_levels_than_steps(RWR)
    forward.refuses_the_error_of_eps_on_a_flow(RWR)


def test_defaults_are_the_papers() -> None:
    own = RWR()
    assert (own.images, own.iterations, own.inner_epochs, own.guidance, own.sampler) == (10_240, 10, 5, 5.0, DDIM(1.0))
    assert own.guidance_in_loss and own.learning_guidance == 5.0 and own.space == "eps"
    assert RWR(guidance_in_loss=False).learning_guidance == 1.0


@pytest.mark.parametrize(("top", "temperature"), [("0.1", 1.0), ("0", 0.5), (None, 0.5)])
def test_a_models_temperature_gives_way_to_the_best_share(top: str | None, temperature: float) -> None:
    asked = {"model": "shapes", "reward": "jpeg_compressibility", "algorithm": {"top": top} if top else {}}
    said = config.model_defaults(Path(config.__file__).parent / "shapes")
    assert config.resolve("rwr", asked, said).algorithm.temperature == temperature


def test_weights_are_exponentials_with_a_mean_of_one() -> None:
    r = torch.tensor([1.0, 2.0, 4.0, torch.nan])
    white = (r[:3] - r[:3].mean()) / (r[:3].std(correction=0) + 1e-6)
    wanted = torch.exp(white / 0.5)
    weights = RWR(temperature=0.5).weights(r)
    torch.testing.assert_close(weights[:3], wanted / wanted.mean())
    assert weights[3].isnan() and RWR(top=0.34).weights(r).nan_to_num(0).tolist() == [0, 0, 1, 0]


def test_the_best_share_is_taken_and_one_at_least() -> None:
    r = torch.tensor([3.0, 1.0, 3.0, torch.nan, 2.0, 0.0])
    assert RWR(top=0.4).weights(r).nan_to_num(0).tolist() == [1, 0, 1, 0, 0, 0]
    assert RWR(top=0.01).weights(r).nan_to_num(0).tolist() == [1, 0, 0, 0, 0, 0]
    assert RWR(top=0.5).weights(torch.full((3,), torch.nan)).isnan().all()


@pytest.mark.parametrize("settings", [{}, {"guidance_in_loss": False}], ids=["guided", "conditional"])
def test_an_iteration_costs_what_the_plan_says(settings: dict[str, bool]) -> None:
    forward.costs_what_the_plan_says(RWR(**forward.SMALL, inner_epochs=2, **settings))


def test_a_failed_score_is_left_out() -> None:
    forward.leaves_failed_scores_out(RWR(**forward.SMALL))


@pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
@pytest.mark.parametrize("weighing", [{"temperature": 0.3}, {"top": 0.2}], ids=["dense", "sparse"])
def test_it_learns(flow: bool, weighing: dict[str, float]) -> None:
    space = "velocity" if flow else "eps"
    forward.learns(RWR(**forward.LEARNS, inner_epochs=1, space=space, **weighing), flow=flow, gain=0.8)

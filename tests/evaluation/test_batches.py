"""What may hang on the number of pictures a call, on the built-in model and its rewards: next to nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tastemaker.evaluation.evaluate import Trial, Verdict, draw_pictures, judge, trial_prompts
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load
from tastemaker.policy.policy import Exportable
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.sources import source
from tastemaker.rewards import named
from tastemaker.rewards.reward import adapt

BATCHES = (4, 3, 1)  # whole, with a last call that is filled up, one by one


def contrast(images: Any, prompts: Any) -> Any:
    return images.std((1, 2, 3))


@pytest.fixture(scope="module")
def policy() -> Exportable:
    return load("shapes", lora=LoRA())


@pytest.fixture(scope="module")
def trial() -> Trial:
    return Trial(trial_prompts(source("shapes_heldout"), 2, 2, 1), 4, 3.0, DDIM(eta=0.0), 1)


@pytest.fixture(scope="module")
def found(policy: Exportable, trial: Trial) -> dict[int, Verdict]:
    rewards = [adapt(contrast), named("jpeg_compressibility"), named("jpeg_incompressibility")]
    return {batch: judge(policy, rewards, replace(trial, batch=batch)) for batch in BATCHES}


def test_the_same_batch_gives_the_same_bits(policy: Exportable, trial: Trial, found: dict[int, Verdict]) -> None:
    again = judge(policy, [adapt(contrast)], replace(trial, batch=3))
    assert torch.equal(again.values["contrast"], found[3].values["contrast"])
    assert all(torch.equal(a, b) for a, b in zip(again.pictures, found[3].pictures, strict=True))


def test_another_batch_gives_the_same_pictures_within_a_ten_thousandth(policy: Exportable, trial: Trial) -> None:
    key = Key(1, "evaluation")
    whole = draw_pictures(policy, trial, key, trial.prompts)
    assert (whole[0] - whole[1]).abs().max() > 0.05
    parts = torch.cat([draw_pictures(policy, trial, key, part) for part in trial.prompts.split(2)])
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=0)


def test_another_batch_gives_the_same_scores(found: dict[int, Verdict]) -> None:
    """Continuous rewards within 1e-4 of their size; files, whose sizes jump when a level rounds over, within 1 %."""
    for batch in BATCHES[1:]:
        for name, near in (("contrast", 1e-4), ("jpeg_compressibility", 0.01), ("jpeg_incompressibility", 0.01)):
            torch.testing.assert_close(found[batch].values[name], found[4].values[name], rtol=near, atol=0)
    sizes = found[4].values["jpeg_incompressibility"]
    assert (
        torch.equal(found[4].values["jpeg_compressibility"], -sizes)
        and sizes.min() > 0.5
        and sizes.unique().numel() == 4
    )

"""Checks on fixed pictures: paired with the base's, in its deviations, and drawn once for it."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tastemaker.evaluation.checking import Check, change
from tastemaker.evaluation.evaluate import Trial, trial_prompts
from tastemaker.iteration import Silence
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.sources import source
from tastemaker.rewards.reward import adapt
from tastemaker.world import World
from toy import Toy
from toy_runs import SEED, TEXTS

BASE, TUNED = torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([0.0, 2.0, 1.0, 3.0])


def test_a_change_is_the_mean_difference_in_the_deviations_of_the_base() -> None:
    unit = math.sqrt(14 / 4)  # of 1, 2, 3, 6 around 3
    mean, error = change(BASE, TUNED, range(4))
    away = torch.tensor([-1.0, 0.0, -2.0, -3.0])
    assert mean == pytest.approx(-1.5 / unit) and error == pytest.approx(float(away.std()) / 2 / unit)
    assert change(BASE, BASE + 0.5, range(4)) == pytest.approx((0.5 / unit, 0.0))


def test_pictures_of_one_prompt_are_not_as_many_as_they_are() -> None:
    base, away = torch.arange(6.0), torch.tensor([-1.0, -1.2, 0.1, -0.1, -2.0, -2.2])
    unit, groups = float(base.std(correction=0)), (4, 4, 7, 7, 9, 9)
    whole = torch.tensor([-1.1, 0.0, -2.1])  # what each prompt says
    assert change(base, base + away, groups)[1] == pytest.approx(float(whole.std()) / math.sqrt(3) / unit)
    assert change(base, base + away, range(6))[1] == pytest.approx(float(away.std()) / math.sqrt(6) / unit)
    twice = [torch.cat([scores, scores]) for scores in (base, base + away)]
    assert change(*twice, [*range(6), *range(6)]) == pytest.approx(change(base, base + away, range(6)))
    assert math.isnan(change(base, base + away, [0] * 6)[1])


def test_scores_that_failed_are_left_out_in_pairs() -> None:
    holes = torch.tensor([math.nan, 0.0]), torch.tensor([0.0, math.inf])
    more = [torch.cat([scores, hole]) for scores, hole in zip((BASE, TUNED), holes, strict=True)]
    assert change(*more, range(6)) == change(BASE, TUNED, range(4))
    for few in (BASE[:0], BASE[:1], torch.full((4,), math.nan)):
        assert all(map(math.isnan, change(few, few, range(len(few)))))


def brightness(images: Tensor, prompts: Any) -> Tensor:
    return images.flatten(1).mean(1)


def darkness(images: Tensor, prompts: Any) -> Tensor:
    return 1 - brightness(images, prompts)


def test_the_same_weights_have_not_changed_and_the_base_is_drawn_once() -> None:
    policy = Toy()
    fixed = Trial(trial_prompts(source(TEXTS), 5, 1, SEED), 4, 1.0, DDIM(eta=0.0), SEED, 2)
    check = Check(fixed, adapt(brightness), [adapt(darkness)])
    found = check.changes(policy, World(), Silence())
    assert found == {"checked": 5.0, "checked_trained": 0.0, "checked.darkness": 0.0, "checked_error.darkness": 0.0}
    before = policy.rows.forward
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05
    found = check.changes(policy, World(), Silence())
    assert (
        policy.rows.forward - before == 5 * 4 + 1 * 4
    )  # its own pictures, the last call filled up; none of the base's
    assert found["checked_trained"] == pytest.approx(-found["checked.darkness"]) != 0
    assert found["checked_error.darkness"] > 0


def test_scores_that_are_all_equal_are_measured_as_they_are() -> None:
    assert change(torch.zeros(4), torch.tensor([0.0, 0.0, 1.0, 1.0]), range(4)) == pytest.approx((0.5, 1 / 12**0.5))


def test_a_reward_that_fails_is_asked_again() -> None:
    """Else one that is down for a while would never be compared again."""
    down = [True]

    def sometimes(images: Tensor, prompts: Any) -> Tensor:
        return torch.full((len(images),), math.nan) if down[0] else darkness(images, prompts)

    fixed = Trial(trial_prompts(source(TEXTS), 5, 1, SEED), 4, 1.0, DDIM(eta=0.0), SEED, 5)
    check, policy = Check(fixed, adapt(brightness), [adapt(sometimes)]), Toy()
    found = check.changes(policy, World(), Silence())
    assert found["checked"] == 5 and found["checked_trained"] == 0 and math.isnan(found["checked.sometimes"])
    down[0] = False
    found = check.changes(policy, World(), Silence())
    assert found["checked.sometimes"] == 0 == found["checked_error.sometimes"]
    down[0] = True
    assert math.isnan(check.changes(policy, World(), Silence())["checked.sometimes"])
    down[0] = False
    assert check.changes(policy, World(), Silence())["checked.sometimes"] == 0

"""Judging a model: fixed prompts, fixed noise, and numbers that hang on nothing else."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import runs
from tastemaker.evaluation.diversity import Pixels
from tastemaker.evaluation.evaluate import Trial, compare, draw_pictures, judge, some, trial_prompts
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load
from tastemaker.policy.policy import Exportable
from tastemaker.process.flow_samplers import FlowSDE
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM, Window
from tastemaker.prompts.prompts import Prompts
from tastemaker.prompts.sources import Listed
from tastemaker.rewards.reward import Scores, adapt
from tastemaker.world import Stop, World

SOURCE = Listed("six", tuple((text, None) for text in runs.PROMPTS[:6]))


@pytest.fixture(scope="module")
def policy() -> Exportable:
    return load(runs.model(), lora=LoRA())


@pytest.fixture
def trial() -> Trial:
    return Trial(trial_prompts(SOURCE, 5, 1, 3), 3, 2.0, DDIM(eta=0.0), 3, batch=5)


def brightness(images: Tensor, prompts: Prompts) -> Tensor:
    return images.mean((1, 2, 3))


JUDGE = adapt(brightness)


def test_prompts_of_a_trial_hang_on_the_seed_alone() -> None:
    asked = trial_prompts(SOURCE, 4, 2, 3)
    assert asked == trial_prompts(SOURCE, 4, 2, 3) and asked.texts != trial_prompts(SOURCE, 4, 2, 4).texts
    assert asked.ids == tuple(range(8)) and asked.groups == (0, 0, 1, 1, 2, 2, 3, 3)
    assert asked.texts[::2] == asked.texts[1::2] == trial_prompts(SOURCE, 6, 1, 3).texts[:4]  # the first of its order


def test_some_pictures_of_a_trial_are_of_as_many_prompts_as_can_be() -> None:
    whole = Trial(trial_prompts(SOURCE, 4, 3, 3), 3, 2.0, DDIM(eta=0.0), 3, batch=8)
    for count, ids in ((4, (0, 3, 6, 9)), (6, (0, 1, 3, 4, 6, 9)), (2, (0, 3)), (99, tuple(range(12)))):
        part = some(whole, count)
        assert part.prompts.ids == ids and part.batch == min(8, len(ids))
        assert part.prompts.texts == tuple(whole.prompts.texts[b] for b in ids)
        assert part.prompts.groups == tuple(b // 3 for b in ids)


def test_some_pictures_are_drawn_as_the_whole_trial_draws_them(policy: Exportable, trial: Trial) -> None:
    part = some(trial, 2)
    whole, few = judge(policy, [JUDGE], trial), judge(policy, [JUDGE], part)
    wanted = whole.values["brightness"][list(part.prompts.ids)]
    assert torch.allclose(few.values["brightness"], wanted, atol=1e-4) and len(few.pictures) == 2


@pytest.mark.parametrize("sampler", [DDIM(eta=0.0), Window(DDIM(), 1), Window(FlowSDE(), 1, each="group")])
def test_the_batch_changes_no_picture(policy: Exportable, trial: Trial, sampler: Any) -> None:
    """Pictures of 5 in calls of 5, of 2 (the last filled up), of 1, and of 7 (filled up): within 1e-4 a pixel."""
    trial = replace(trial, sampler=sampler)
    key = Key(3, "evaluation")
    whole = draw_pictures(policy, trial, key, trial.prompts)
    assert whole.shape == (5, 3, 16, 16) and 0 <= whole.min() < whole.max() <= 1
    assert (whole[0] - whole[1]).abs().max() > 0.05
    found = {batch: judge(policy, [JUDGE], replace(trial, batch=batch)) for batch in (5, 2, 1, 7)}
    for batch, verdict in found.items():
        assert verdict.ids == trial.prompts.ids and len(verdict.pictures) == 5
        torch.testing.assert_close(verdict.values["brightness"], brightness(whole, trial.prompts), atol=1e-4, rtol=0)
        parts = [draw_pictures(policy, trial, key, part) for part in trial.prompts.split(batch)]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=0)
    for picture, pixels in zip(found[5].pictures, whole, strict=True):
        assert picture.dtype is torch.uint8 and torch.equal(picture, (pixels * 255).round().to(torch.uint8))


def test_judging_twice_gives_the_same_bits_and_asks_no_gradient(policy: Exportable, trial: Trial) -> None:
    before = policy.rows.backward
    one, other = (judge(policy, [JUDGE], trial) for _ in range(2))
    assert torch.equal(one.values["brightness"], other.values["brightness"])
    assert all(torch.equal(a, b) for a, b in zip(one.pictures, other.pictures, strict=True))
    assert policy.rows.backward == before and all(p.grad is None for p in policy.parameters())


def test_the_tuned_and_the_base_model_get_the_same_noise(policy: Exportable, trial: Trial) -> None:
    """An adapter that starts at zero draws the base's pictures, bit for bit."""
    with policy.using("base"):
        base = judge(policy, [JUDGE], trial)
    change = compare(base.values, judge(policy, [JUDGE], trial).values, trial.prompts, 3)["brightness"]
    assert change.change == (0.0, 0.0, 0.0) and change.deviations == 0 and change.wins == (0.5, 0.5, 0.5)


def test_the_negative_prompt_and_the_guidance_are_the_trials(policy: Exportable, trial: Trial) -> None:
    plain = judge(policy, [JUDGE], trial).values["brightness"]
    for other in (replace(trial, negative="bad luck"), replace(trial, guidance=4.0), replace(trial, steps=2)):
        assert not torch.allclose(judge(policy, [JUDGE], other).values["brightness"], plain, atol=1e-5)


def test_parts_are_columns_of_their_own_and_failures_are_holes(policy: Exportable, trial: Trial) -> None:
    """The second of three parts raises, twice: its pictures have no score and no part; a judge beside it has all."""
    calls = iter(range(4))

    def flaky(images: Tensor, prompts: Prompts) -> Scores:
        if next(calls) in (1, 2):
            raise ConnectionError("the judge is down")
        return Scores(brightness(images, prompts), {"red": images[:, 0].mean((1, 2))})

    found = judge(policy, [adapt(flaky), JUDGE], replace(trial, batch=2)).values
    assert list(found) == ["flaky", "flaky.red", "brightness"]
    for name in ("flaky", "flaky.red"):
        assert found[name].isnan().tolist() == [False, False, True, True, False]
    assert found["brightness"].isfinite().all()


def test_the_scores_go_with_their_pictures(policy: Exportable, trial: Trial) -> None:
    def place(images: Tensor, prompts: Prompts) -> Tensor:
        return torch.tensor(prompts.ids)

    values = judge(policy, [adapt(place)], replace(trial, batch=2)).values["place"]
    assert values.tolist() == [0, 1, 2, 3, 4] and values.dtype is torch.float32


def test_a_stop_is_heard_between_two_calls(policy: Exportable, trial: Trial) -> None:
    world, asked = World(), []

    def stopping(images: Tensor, prompts: Prompts) -> Tensor:
        asked.append(len(images))
        world.request_stop()
        return brightness(images, prompts)

    with pytest.raises(Stop):
        judge(policy, [adapt(stopping)], replace(trial, batch=2), world=world)
    assert asked == [2]


def test_comparison_is_paired() -> None:
    prompts = Prompts.of(["a", "b", "c", "d"]).repeat(2)
    base = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    found = compare({"r": base, "gone": base}, {"r": base + 1, "new": base}, prompts, 0)
    assert list(found) == ["r"]
    assert found["r"].base.mean == 3.5 and found["r"].tuned.mean == 4.5
    # every pair rises by the same, so there is nothing to doubt, however much pictures differ
    assert found["r"].change == (1.0, 1.0, 1.0) and found["r"].wins.mean == 1
    assert math.isclose(found["r"].deviations, 1 / float(base.std(unbiased=False)), rel_tol=1e-6)


def test_comparison_leaves_out_pairs_with_a_hole() -> None:
    prompts = Prompts.of(["a", "b", "c", "d"])
    nan = math.nan
    found = compare({"r": torch.tensor([nan, 1.0, 2.0, 3.0])}, {"r": torch.tensor([9.0, 2.0, nan, 4.0])}, prompts, 0)[
        "r"
    ]
    assert found.change.mean == 1.0 and found.base.mean == 2.0 and found.tuned.mean == 5.0
    none = compare({"r": torch.full((4,), nan)}, {"r": torch.full((4,), nan)}, prompts, 0)["r"]
    assert math.isnan(none.change.mean) and math.isnan(none.deviations)
    flat = compare({"r": torch.ones(4)}, {"r": torch.ones(4)}, prompts, 0)["r"]
    assert flat.change.mean == 0 and math.isnan(flat.deviations)


def test_diversity_is_that_of_the_pictures_of_each_prompt(policy: Exportable) -> None:
    trial = Trial(trial_prompts(SOURCE, 3, 3, 3), 3, 2.0, DDIM(eta=0.0), 3, batch=4)
    found = judge(policy, [JUDGE], trial, metric=Pixels())
    assert judge(policy, [JUDGE], trial).diversity == {} and set(found.diversity) == {0, 1, 2}
    for group in range(3):
        one, two, three = (found.pictures[3 * group + k].double() / 255 for k in range(3))
        pairs = [(one - two), (one - three), (two - three)]
        assert found.diversity[group] == pytest.approx(float(torch.stack(pairs).square().mean()), rel=1e-5)


class Alone(World):
    """One of two ranks, without the other: it keeps to its share."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank, self.size = rank, 2

    def everyone(self, value: Tensor, *, ids: Any) -> Tensor:
        return value

    def broadcast_text(self, text: str | None) -> str:
        return text or ""

    def poll(self) -> None:
        pass


def test_a_prompts_pictures_stay_on_one_device(policy: Exportable) -> None:
    trial = Trial(trial_prompts(SOURCE, 3, 2, 3), 3, 2.0, DDIM(eta=0.0), 3, batch=4)
    whole = judge(policy, [JUDGE], trial, metric=Pixels())
    parts = [judge(policy, [JUDGE], trial, metric=Pixels(), world=Alone(rank)) for rank in (0, 1)]
    assert [part.ids for part in parts] == [(0, 1, 4, 5), (2, 3)]
    assert set(parts[0].diversity) == {0, 2} and set(parts[1].diversity) == {1}
    for part in parts:
        for group, value in part.diversity.items():
            assert value == pytest.approx(whole.diversity[group], rel=0.02)  # pictures differ by a level at most

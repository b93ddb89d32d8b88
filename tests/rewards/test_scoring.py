import threading
import time

import pytest
import torch
from torch import Tensor

from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards.recorded import Recorded
from tastemaker.rewards.reward import Scores
from tastemaker.rewards.scoring import Scoring

PROMPTS = Prompts.of([f"p{k}" for k in range(10)])


def pictures(prompts: Prompts) -> Tensor:
    return torch.tensor([float(k) for k in prompts.ids]).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def level(images: Tensor, prompts: Prompts) -> Scores:
    value = images.mean((1, 2, 3))
    return Scores(torch.where(value == 3, torch.nan, value), {"twice": 2 * value}, tuple(f"n{i}" for i in prompts.ids))


def test_results_go_by_id_whatever_the_order() -> None:
    reward = Recorded(level)
    with Scoring(reward) as scoring:
        for part in reversed(PROMPTS.split(3)):
            scoring.submit(part, pictures(part))
        results = scoring.results()
        assert scoring.waiting == 0
    assert {k: v for k, (v, _) in results.items() if k != 3} == {k: float(k) for k in range(10) if k != 3}
    assert results[3][0] != results[3][0] and results[4][1] == {"twice": 8.0}  # NaN, never 0
    assert scoring.notes == {k: f"n{k}" for k in range(10)} and reward.queries == 10


def test_the_worker_runs_beside_the_caller_without_a_graph() -> None:
    release, seen = threading.Event(), []

    def slow(images: Tensor, prompts: Prompts) -> Tensor:
        seen.append((threading.current_thread().name, torch.is_grad_enabled()))
        release.wait(10)
        return images.mean((1, 2, 3))

    with Scoring(slow, parts=1) as scoring:
        parts = PROMPTS.split(4)
        for part in parts[:2]:  # one under way, one waiting: submit has not blocked
            scoring.submit(part, pictures(part).clone().requires_grad_())
        assert scoring.waiting == 8
        threading.Timer(0.1, release.set).start()
        began = time.perf_counter()
        scoring.submit(parts[2], pictures(parts[2]))  # the queue is full: waits
        assert time.perf_counter() - began > 0.05
        assert len(scoring.results()) == 10
    assert seen == [("scoring", False)] * 3


def test_an_error_that_is_no_score_reaches_the_caller() -> None:
    def leaves(images: Tensor, prompts: Prompts) -> Tensor:
        raise SystemExit(3)

    with pytest.raises(SystemExit), Scoring(leaves, parts=1) as scoring:
        for part in PROMPTS.split(2):
            scoring.submit(part, pictures(part))
        scoring.results()


def test_a_failed_call_is_nan_with_its_traceback() -> None:
    with Scoring(lambda images, prompts: [0.0][9]) as scoring:
        scoring.submit(PROMPTS, pictures(PROMPTS))
        results = scoring.results()
    assert all(value != value for value, _ in results.values()) and "IndexError" in scoring.notes[0]


def test_polls_while_waiting_and_drops_what_waits() -> None:
    release, calls = threading.Event(), []

    def slow(images: Tensor, prompts: Prompts) -> Tensor:
        calls.append(prompts.ids)
        release.wait(10)
        return images.mean((1, 2, 3))

    def poll() -> None:
        threading.Timer(0.5, release.set).start()  # once the context has been left, however busy the machine is
        raise InterruptedError

    with pytest.raises(InterruptedError), Scoring(slow, parts=3, poll=poll) as scoring:
        for part in PROMPTS.split(4):
            scoring.submit(part, pictures(part))
        scoring.results()
    assert len(calls) <= 2 and not any(thread.name == "scoring" for thread in threading.enumerate())


def test_a_reward_on_an_accelerator_runs_in_the_callers_thread() -> None:
    class Judge:
        device = torch.device("meta")

        def __call__(self, images: Tensor, prompts: Prompts) -> Tensor:
            assert threading.current_thread() is threading.main_thread() and not torch.is_grad_enabled()
            return images.mean((1, 2, 3))

    with Scoring(Recorded(Judge())) as scoring:
        scoring.submit(PROMPTS, pictures(PROMPTS))
        assert scoring.waiting == 0 and scoring.results()[7][0] == 7


def test_parts_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="1 part or more"):
        Scoring(level, parts=0)

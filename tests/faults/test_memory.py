"""Memory that runs out while pictures are drawn (reference matrix D.4: 28; 29, in training: tests/training)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.draft import DRaFT
from tastemaker.evaluation.evaluate import Trial, draw_pictures
from tastemaker.process.noise import Key
from tastemaker.process.prediction import Prediction
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.prompts import Prompts
from toy import Toy
from toy_runs import apart, metrics, run_of, same

SHARED: dict[str, Any] = {"images": 12, "per_prompt": 2, "updates": 2, "steps": 4, "guidance": 2.0, "iterations": 2}
KINDS = {"ddpo": DDPO(clip=0.2, learning_rate=0.02, **SHARED), "draft": DRaFT(k=2, learning_rate=0.02, **SHARED)}
KINDS["fellows"] = DRaFT(k=2, learning_rate=0.02, diversity=0.1, **SHARED)  # finished and decoded without a graph


class Cramped(Toy):
    """Has memory for so many rows of a call without a graph."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.drawn = most, list[int]()

    def predict(self, x: torch.Tensor, *given: Any) -> Prediction:
        if not torch.is_grad_enabled():
            if len(x) > self.most:
                raise torch.OutOfMemoryError("out of memory")
            self.drawn.append(len(x))
        return super().predict(x, *given)


@pytest.mark.parametrize("kind", KINDS)
def test_the_calls_are_halved_and_the_run_is_the_same(kind: str, tmp_path: Path) -> None:
    plain, cramped = Toy(), Cramped(2)
    assert run_of(tmp_path / "plain", KINDS[kind], plain, micro=5).train()
    with pytest.warns(RuntimeWarning, match=r"out of memory with \d pictures a call: trying \d. --plan.sampling_batch"):
        assert run_of(tmp_path / "cramped", KINDS[kind], cramped, micro=5).train()
    assert apart(cramped.state(), plain.state()) < 1e-9 and max(cramped.drawn) == 2
    pairs = zip(metrics(tmp_path / "plain"), metrics(tmp_path / "cramped"), strict=True)
    assert all(a["reward"]["mean"] == pytest.approx(b["reward"]["mean"], abs=1e-9) for a, b in pairs)


def test_pictures_of_an_evaluation_too() -> None:
    trial = Trial(Prompts.of(["cat", "dog", "cow"]), 4, 2.0, DDIM(eta=0.5), 0, 3)
    with pytest.warns(RuntimeWarning, match="with 3 pictures a call: trying 1"), torch.no_grad():
        found = draw_pictures(Cramped(2), trial, Key(0, "evaluation"), trial.prompts)
    with torch.no_grad():
        assert torch.allclose(found, draw_pictures(Toy(), trial, Key(0, "evaluation"), trial.prompts), atol=1e-12)


class Narrow(Toy):
    """Has memory to decode so many pictures at once; more with a graph, where there are fewer."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        if len(x0) > self.most and not torch.is_grad_enabled():
            raise torch.OutOfMemoryError("out of memory")
        return super().decode(x0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_without_memory_takes_half_the_pictures_and_the_run_is_the_same(kind: str, tmp_path: Path) -> None:
    plain, narrow = Toy(), Narrow(2)
    assert run_of(tmp_path / "plain", KINDS[kind], plain, micro=5).train()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert run_of(tmp_path / "narrow", KINDS[kind], narrow, micro=5).train()
    assert same(narrow.state(), plain.state())
    assert all("pictures decoded at once: trying" in str(one.message) for one in said)
    assert bool(said) == (kind != "draft")  # where the reward is differentiated, pictures have a graph
    trial = Trial(Prompts.of(["cat", "dog", "cow"]), 4, 2.0, DDIM(eta=0.5), 0, 3)
    with pytest.warns(RuntimeWarning, match="with 3 pictures decoded at once: trying 1"), torch.no_grad():
        found = draw_pictures(Narrow(2), trial, Key(0, "evaluation"), trial.prompts)
    with torch.no_grad():
        assert torch.equal(found, draw_pictures(Toy(), trial, Key(0, "evaluation"), trial.prompts))


def test_no_memory_to_decode_one_picture_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(ValueError, match="where one picture is decoded: use --vae_tiling"),
    ):
        run_of(tmp_path, KINDS["ddpo"], Narrow(0)).train()


@pytest.mark.filterwarnings("ignore:out of memory:RuntimeWarning")
def test_no_memory_for_one_picture_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    policy = Cramped(0)
    before = {name: tensor.clone() for name, tensor in policy.state().items()}
    with pytest.raises(ValueError, match="out of memory with one picture a call: use a lower --resolution"):
        run_of(tmp_path, KINDS["ddpo"], policy).train()
    assert same(before, policy.state())

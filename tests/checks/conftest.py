from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
import tiny_flow
import tiny_flux
import tiny_xl
from tastemaker import flags, preparation
from tastemaker.checks.case import Case
from tastemaker.examination import case_of, wanted_of
from tastemaker.preparation import load_policy
from tastemaker.settings import RunSettings

# The models of the tests of every family, and what makes a run of them small.
MODELS: dict[str, Callable[[Path], Path]] = {
    "eps": tiny.save,
    "v": lambda folder: tiny.save(folder, prediction_type="v_prediction"),
    "xl": tiny_xl.save,
    "3": tiny_flow.save,
    "dev": tiny_flux.save,
    "schnell": lambda folder: tiny_flux.save(folder, "schnell"),
}
SMALL = "--device cpu --algorithm.steps 3 --resolution 16 --plan.micro_batch 4 --plan.sampling_batch 4"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny model, by its kind."""
    made: dict[str, str] = {}

    def folder(kind: str) -> str:
        if kind not in made:
            made[kind] = str(MODELS[kind](tmp_path_factory.mktemp("doctor") / kind))
        return made[kind]

    return folder


POLICIES: dict[str, tuple[Any, dict[str, Tensor]]] = {}  # with the weights that each was loaded with


def loaded(run: RunSettings, device: torch.device, sets: tuple[str, ...], together: None) -> Any:
    """The policy of these settings: read once for all tests, and put back to what it was."""
    key = repr((run.model, run.lora, run.mixed_precision, run.ema, run.resolution, sets))
    if key not in POLICIES:
        policy: Any = load_policy(run, device, sets)
        POLICIES[key] = policy, {name: tensor.clone() for name, tensor in policy.state().items()}
    policy, state = POLICIES[key]
    policy._weights._exchange("current")
    policy.load_state(state)
    for layer in policy._weights._layers:
        layer._disable_adapters = False
    for parameter in policy.parameters():
        parameter.grad = None
    return policy


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are loaded once."""
    monkeypatch.setattr(preparation, "load_policy", loaded)


@pytest.fixture
def case(model: Callable[[str], str]) -> Callable[..., Case]:
    """What the doctor looks at, of a tiny model, an algorithm and more flags."""

    def build(kind: str = "eps", algorithm: str = "ddpo", more: str = "", **settings: Any) -> Case:
        line = f"--model {model(kind)} --algorithm {algorithm} {SMALL} {more}"
        return case_of(wanted_of({**flags.parse(line.split()).tree, **settings})[0])

    return build

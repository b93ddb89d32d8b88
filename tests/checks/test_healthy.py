"""On models that nothing is wrong with every check passes, of every family and with every kind of algorithm."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tastemaker import flags
from tastemaker.build import attribute
from tastemaker.checks import TABLE
from tastemaker.checks.case import Case
from tastemaker.checks.finding import Finding, Verdict
from tastemaker.examination import answer, case_of, wanted_of

RATIO = ("first ratio", "log-probs")


def findings(case: Case, *without: str) -> dict[str, Finding]:
    return {name: answer(attribute(place), case) for name, place in TABLE.items() if name not in without}


@pytest.mark.parametrize(
    ("kind", "algorithm", "more"),
    [
        ("eps", "ddpo", ""),
        ("eps", "draft", "--no-lora"),
        ("eps", "dpok", "--mixed_precision bf16 --ema 0.9 --algorithm.clip 1"),
        ("v", "awm", "--algorithm.levels 2 --algorithm.images 8 --algorithm.per_prompt 2"),
        ("xl", "draft", "--negative_prompt fog"),
        ("3", "flow_grpo", "--algorithm.sampler window --algorithm.sampler.inside flow_sde --algorithm.sampler.size 1"),
        ("dev", "draft", ""),
        ("schnell", "refl", "--algorithm.guidance 1 --algorithm.steps 4 --algorithm.images 4"),
    ],
)
def test_a_healthy_model_passes(kind: str, algorithm: str, more: str, case: Callable[..., Case]) -> None:
    """But for the VAE, which has random weights here: what it decodes it does not encode."""
    found = findings(case(kind, algorithm, more))
    assert found.pop("encoding").verdict is Verdict.WARNING
    bad = {name: one for name, one in found.items() if one.verdict in (Verdict.WARNING, Verdict.WRONG)}
    assert bad == {}
    skipped = {name for name, one in found.items() if one.verdict is Verdict.NOT_APPLICABLE}
    if algorithm in ("ddpo", "dpok", "flow_grpo"):
        assert skipped == (set() if "bf16" in more else {"half precision"})
    else:
        assert skipped == {*RATIO, "half precision"} - ({"first ratio"} if algorithm == "awm" else set())
    sets = {"awm": "base, old", "dpok": "base, ema"}
    assert found["weight sets"].measured == sets.get(algorithm, "base")


def test_a_built_in_model_passes_whole() -> None:
    """Its VAE is trained, and gives a picture back."""
    line = "--model shapes --algorithm draft --algorithm.steps 2 --device cpu"
    found = findings(case_of(wanted_of(flags.parse(line.split()).tree)[0]), "gradients")
    assert {name for name, one in found.items() if one.verdict is not Verdict.OK} == {*RATIO, "half precision"}
    assert {found[name].advice for name in RATIO} == {"draft clips no ratio."}


def test_reasons_why_a_check_does_not_apply(case: Callable[..., Case]) -> None:
    one = case("v", "awm", "--algorithm.levels 2")
    assert answer(attribute(TABLE["log-probs"]), one).advice == "the ratio of awm is not one of steps of the chain."

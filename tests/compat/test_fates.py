"""The table of fates: it has every name, it names settings that exist, and the guide shows it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from house.syntax import ROOT
from tastemaker import manual
from tastemaker.algorithms import TABLE as ALGORITHMS
from tastemaker.build import attribute
from tastemaker.compat import alignprop, ddpo_pytorch, fates, translation
from tastemaker.compat.configs import AlignPropConfig, DDPOConfig, defaults
from tastemaker.process import samplers, truncation
from tastemaker.settings import RunSettings

GUIDE = (ROOT / "docs" / "guides" / "coming_from.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("config", fates.CONFIGS)
def test_every_setting_has_a_fate_and_a_row_in_the_guide(config: type) -> None:
    own = fates.CONFIGS[config]
    assert set(own) == set(defaults(config))
    assert fates.table(own, defaults(config)) in GUIDE, "put this in:\n" + fates.table(own, defaults(config))


def rows(title: str) -> dict[str, str]:
    """First cell -> the whole row, of the table below a heading of the guide."""
    part = GUIDE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return {found[1]: line for line in part.splitlines() if (found := re.match(r"\| `([^`]+)` \|", line))}


def test_the_guide_names_every_key_of_the_two_repositories() -> None:
    ours = rows("From ddpo-pytorch")
    for key, (default, trl) in ddpo_pytorch.BASE.items():
        assert f"`{default!r}`" in ours[key] and f"`{trl}`" in ours[key], key
    for key, (default, name, _) in ddpo_pytorch.OWN.items():
        assert f"`{default!r}`" in ours[key] and f"`{name}`" in ours[key], key
    theirs = rows("From AlignProp")
    for key, (default, name, note) in (alignprop.BASE | alignprop.OWN).items():
        assert f"`{default!r}`" in theirs[key] and name in theirs[key] and note in theirs[key], key
    for key in (*alignprop.IDLE, *alignprop.ELSEWHERE):
        assert f"`{key}`" in GUIDE, key


def known(config: type) -> set[str]:
    """Paths of our settings: the run's, below `algorithm` the algorithm's, and below its parts those of any of them."""
    own = {row.path for row in manual.settings(attribute(ALGORITHMS[translation.NAMES[config]]))}
    parts = {"sampler": samplers.TABLE, "truncation": truncation.TABLE}
    inside = {
        f"{part}.{row.path}"
        for part, table in parts.items()
        for one in table.values()
        for row in manual.settings(attribute(one))
    }
    return {row.path for row in manual.settings(RunSettings)} | {f"algorithm.{path}" for path in own | inside}


@pytest.mark.parametrize("config", fates.CONFIGS)
def test_what_a_setting_becomes_exists(config: type) -> None:
    paths = {path for fate in fates.CONFIGS[config].values() for path in fate.ours.split(", ") if path}
    assert paths - known(config) == set()


def test_what_a_key_of_alignprop_becomes_exists() -> None:
    ours = {name for _, name, _ in alignprop.OWN.values()}
    assert ours - known(AlignPropConfig) == set()
    assert {name for _, name, _ in alignprop.BASE.values()} <= set(defaults(AlignPropConfig))


OTHER: dict[str, Any] = {
    "tracker_kwargs": {"wandb": {"name": "x"}},
    "tracker_project_name": "mine",
    "push_to_hub": True,
    "async_reward_computation": True,
    "max_workers": 5,
}


def test_a_value_without_an_effect_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(OTHER) == {name for name, fate in fates.DDPO.items() if fate.kind == "idle"} - {"exp_name"}
    usual = translation.settings(DDPOConfig())
    assert capsys.readouterr().out == ""
    for name, value in OTHER.items():
        assert translation.settings(DDPOConfig(**{name: value})) == usual
        assert capsys.readouterr().out == f"tastemaker.compat: {name} has no effect: {fates.DDPO[name].note}.\n"


def test_adams_settings_are_the_runs() -> None:
    found = translation.settings(DDPOConfig(train_adam_beta1=0.8, train_adam_beta2=0.99, train_adam_epsilon=1e-6))
    assert (found["adam_beta1"], found["adam_beta2"], found["adam_epsilon"]) == (0.8, 0.99, 1e-6)


def test_only_the_first_process_tells(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    translation.settings(DDPOConfig(max_workers=9))
    assert capsys.readouterr().out == ""

"""From what a user writes to a reward: names, files, settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import runs
from tastemaker.rewards import named

FILE = """
def tinted(images, prompts, weight=1.0, channel=0):
    return weight * images[:, channel].mean((1, 2))

class Scaled:
    def __init__(self, factor=2.0):
        self.factor = factor

    def __call__(self, images, prompts):
        return self.factor * images.mean((1, 2, 3))
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(FILE)
    return str(tmp_path / "mine.py")


def test_settings_of_a_function_and_of_a_class(file: str) -> None:
    images, prompts = torch.rand(3, 3, 4, 4), ["a", "b", "c"]
    found = named({"name": f"{file}:tinted", "weight": "3", "channel": 2})
    assert found.name == "tinted"
    torch.testing.assert_close(found(images, prompts).value, 3 * images[:, 2].mean((1, 2)))
    plain = named(f"{file}:tinted")(images, prompts).value
    torch.testing.assert_close(plain, images[:, 0].mean((1, 2)))
    scaled = named({"name": f"{file}:Scaled", "factor": 5})(images, prompts).value
    torch.testing.assert_close(scaled, 5 * images.mean((1, 2, 3)))


def test_a_wrong_setting_is_named_as_it_was_typed(file: str) -> None:
    with pytest.raises(ValueError, match=r"^--reward\.wieght is not a setting of tinted. Did you mean `weight`\?"):
        named({"name": f"{file}:tinted", "wieght": 3}, key="--reward")
    with pytest.raises(ValueError, match=r"prompts is not a setting of tinted\. It has weight, channel\."):
        named({"name": f"{file}:tinted", "prompts": 3}, key="--reward")
    with pytest.raises(ValueError, match=r"^--reward\.weight is 'much'; it is a number"):
        named({"name": f"{file}:tinted", "weight": "much"}, key="--reward")
    with pytest.raises(ValueError, match=r"settings without a name: give --reward\.name"):
        named({"weight": 3}, key="--reward")
    with pytest.raises(ValueError, match="is not the name of a reward"):
        named({"name": "jpeg", "weight": 3})


def test_settings_by_flags_reach_the_run_and_its_judgement(file: str, tmp_path: Path) -> None:
    once, thrice = tmp_path / "once", tmp_path / "thrice"
    runs.train(runs.small(once, "--reward", f"{file}:tinted"))
    runs.train(runs.small(thrice, "--reward", f"{file}:tinted", "--reward.weight", "3"))
    assert runs.settings(thrice)["reward"] == {"name": f"{file}:tinted", "weight": "3"}
    one, three = (runs.rows(folder, "evaluations")[0]["reward"]["tinted"]["mean"] for folder in (once, thrice))
    assert three == pytest.approx(3 * one, rel=1e-6)
    anew = runs.call("evaluate", str(thrice), "--device", "cpu", "--evaluation.prompts", "train")
    assert anew.code == 0 and f"   {three:.4g} " in anew.out

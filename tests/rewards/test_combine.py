"""A sum of rewards: its numbers, its parts, its graph, its name, and its way through recipes, runs and their judges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import runs
import tastemaker
from tastemaker import config
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import Sum, named
from tastemaker.rewards.reward import Scores, check
from tastemaker.sweeping import Sweep

N = 5
PROMPTS = Prompts.of([f"p{k}" for k in range(N)], [{"k": k} for k in range(N)])
FILE = """
def tinted(images, prompts, weight=1.0, channel=0):
    return weight * images[:, channel].mean((1, 2))

def counted(images, prompts, metadata):
    return [float(one["k"]) for one in metadata]
"""


def pictures() -> Tensor:
    return torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def red(images: Tensor, prompts: Any) -> Tensor:
    return images[:, 0].mean((1, 2))


class Choosy:
    """No score for the third picture, and a word on it."""

    name = "choosy judge"
    device = "cpu"
    network = torch.nn.Linear(1, 1)

    def __call__(self, images: Tensor, prompts: Any) -> Scores:
        value = images[:, 1].mean((1, 2)).index_fill(0, torch.tensor([2]), torch.nan)
        notes = tuple("no" if k == 2 else None for k in range(len(images)))
        return Scores(value, {"green": images[:, 1].mean((1, 2))}, notes)


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(FILE)
    return str(tmp_path / "mine.py")


# ---- as a reward


def test_the_sum_its_parts_and_notes() -> None:
    images = pictures()
    found = named(Sum([(red, 2), (Choosy, -0.5), ("brightness", 1)]))(images, PROMPTS)
    one, two, three = red(images, ()), images[:, 1].mean((1, 2)), named("brightness")(images, PROMPTS).value
    expected = 2 * one - 0.5 * two + three
    assert found.value.isnan().tolist() == [False, False, True, False, False]
    torch.testing.assert_close(found.value[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])
    assert list(found.parts) == ["red", "choosy judge", "choosy judge.green", "brightness"]
    assert torch.equal(found.parts["red"], one) and torch.equal(found.parts["choosy judge.green"], two)
    assert found.notes == (None, None, "choosy judge: no", None, None)


def test_it_keeps_the_contract_and_takes_metadata(file: str) -> None:
    reward = named(f"{file}:counted:2,{file}:tinted:0.5,brightness")
    check(reward, pictures(), PROMPTS)
    found = reward(pictures(), PROMPTS)
    assert found.parts["counted"].tolist() == [0, 1, 2, 3, 4] and found.notes == ()
    torch.testing.assert_close(found.parts["tinted"], red(pictures(), ()))
    assert reward.name == "counted+tinted+brightness"


def test_the_graph_of_every_term_is_kept() -> None:
    images = pictures().requires_grad_()
    (slope,) = torch.autograd.grad(Sum([(red, 3), ("brightness", -1)])(images, PROMPTS).value.sum(), images)
    weights = torch.tensor([3 - 0.299, -0.587, -0.114]) / 64
    torch.testing.assert_close(slope, weights.view(1, 3, 1, 1).expand_as(slope))


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("brightness:0.3,smoothness:1", "brightness+smoothness"),
        ("brightness:-1,smoothness:-.5", "-brightness-smoothness"),
        ("brightness:-1", "-brightness"),
        ("brightness:0.25", "0.25brightness"),
        ("brightness:1", "brightness"),
        ([(Choosy(), 1), "brightness"], "choosy-judge+brightness"),
        ("brightness,brightness:2", "brightness+brightness_2"),
    ],
)
def test_names(written: Any, name: str) -> None:
    assert named(written).name == name


def test_device_and_network_are_those_of_the_terms_that_have_one() -> None:
    assert Sum("brightness,smoothness").device is None and Sum("brightness,smoothness").network is None
    both = Sum([(red, 1), (Choosy(), 1)])
    assert both.device == torch.device("cpu") and list(both.network or []) == [Choosy.network]
    assert named(both).device == torch.device("cpu")


def test_settings_of_a_term_stand_beside_its_name(file: str) -> None:
    terms = [{"name": f"{file}:tinted", "channel": 2, "weight": 4}, {"name": "colour", "colour": "blue"}]
    found = named({"sum": terms})(pictures(), PROMPTS)
    torch.testing.assert_close(found.parts["tinted"], pictures()[:, 2].mean((1, 2)))
    torch.testing.assert_close(found.value, 4 * found.parts["tinted"] + found.parts["colour"])
    assert not torch.equal(found.parts["colour"], named("colour")(pictures(), PROMPTS).value)


def test_errors_name_the_key_as_it_was_typed(file: str) -> None:
    for written, said in (
        (
            "brightness:1,jpeg_prxy:2",
            r"^--reward: `jpeg_prxy` is not the name of a reward. Did you mean `jpeg_proxy`\?",
        ),
        (f"brightness:1,{file}:tinde:2", r"^--reward: .* has no `tinde`. Did you mean `tinted`"),
        (["brightness", {"name": "colour", "color": 1}], r"^--reward\.sum\[1\]\.color is not a setting of colour"),
        (["brightness", {"name": "colour", "colour": "mauve"}], r"^--reward\.sum\[1\]\.colour is 'mauve'; it is one"),
    ):
        with pytest.raises(ValueError, match=said):
            named(written, key="--reward")
    with pytest.raises(ValueError, match="^Sum: `jpeg_prxy` is not the name of a reward"):
        Sum({"jpeg_prxy": 1})


# ---- in recipes and runs


def resolved(target: str, **settings: Any) -> config.Resolved:
    return config.resolve(target, settings, {"defaults": {"prompts": "shapes"}}, spelling="flag")


def test_it_stands_in_config_yaml_as_a_recipe_writes_it(tmp_path: Path) -> None:
    terms = [{"name": "jpeg_proxy", "weight": 0.3}, {"name": "brightness", "weight": 1.0}]
    for reward in ("jpeg_proxy:0.3,brightness:1", {"sum": terms}, Sum({"jpeg_proxy": 0.3, "brightness": 1})):
        found = resolved("ddpo", model="shapes", reward=reward)
        assert found.tree["reward"] == {"sum": terms, "standardise": None} and found.origin["reward.sum"] == "flag"
    path = tmp_path / "config.yaml"
    path.write_text(config.as_yaml(found.tree, found.origin))
    again = resolved(str(path))
    assert again.tree == found.tree and again.origin["reward.sum"] == "recipe config"
    assert named(again.run.reward).name == "jpeg_proxy+brightness"


def test_layers_replace_a_sum_as_a_whole(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("algorithm: ddpo\nmodel: shapes\nreward: {sum: [{name: jpeg_proxy, weight: .3}, brightness:2]}\n")
    assert named(resolved(str(recipe)).run.reward).name == "jpeg_proxy+brightness"
    assert resolved(str(recipe), reward="smoothness").run.reward == "smoothness"
    colour = {"name": "colour", "colour": "blue"}
    assert resolved(str(recipe), reward=colour).run.reward == colour
    over = resolved(str(recipe), reward="colour:1,brightness:1")
    assert named(over.run.reward).name == "colour+brightness"
    recipe.write_text(f"algorithm: ddpo\nmodel: shapes\nreward: {colour}\n")
    assert named(resolved(str(recipe), reward="brightness:1,smoothness:1").run.reward).name == "brightness+smoothness"
    recipe.write_text("algorithm: ddpo\nmodel: shapes\nreward: {sum: [{name: jpeg_proxy, weight: lots}]}\n")
    with pytest.raises(ValueError, match=r"mine\.yaml:3: reward: the weight of `jpeg_proxy` is 'lots'"):
        resolved(str(recipe))


def test_a_run_its_judges_and_its_continuation(tmp_path: Path) -> None:
    folder, file = tmp_path / "run", runs.reward("redness")
    reward = f"{file}:0.5,brightness:-1"
    held_out = ("--held_out_rewards", "smoothness,brightness:-1")
    ran = runs.train(runs.small(folder, "--reward", reward, *held_out))
    assert "redness-brightness.redness.green" in ran.out
    first = runs.rows(folder, "evaluations")[0]
    parts = ["redness-brightness.redness", "redness-brightness.redness.green", "redness-brightness.redness.blue"]
    assert list(first["reward"]) == ["redness-brightness", *parts, "redness-brightness.brightness", "smoothness",
                                     "-brightness", "-brightness.brightness"]  # fmt: skip
    total = 0.5 * first["values"][parts[0]][0] - first["values"]["redness-brightness.brightness"][0]
    assert first["values"]["redness-brightness"][0] == pytest.approx(total, rel=1e-5)
    assert "redness.green" in runs.rows(folder, "metrics")[0]["reward"]["parts"]
    more = ("--iterations", "2", "--resume_from_checkpoint", "latest")
    written = "[{name: " + file + ", weight: 0.5}, {name: brightness, weight: -1}]"
    recipe = tmp_path / "same.yaml"  # the same sum, written in another way
    recipe.write_text(f"algorithm: ddpo\nreward: {{sum: {written}}}\n")
    words = runs.small(folder, *held_out, *more)
    at = words.index("--reward")
    again = runs.train(["train", str(recipe), *words[2:at], *words[at + 2 :]])
    assert "resuming from" in again.out and len(runs.rows(folder, "metrics")) == 2
    other = runs.call(*runs.small(folder, "--reward", f"{file}:0.6,brightness:-1", *held_out, *more))
    assert other.code == 2 and "--reward.sum is " in other.err
    alone = ("--rewards", "brightness:-1,smoothness", "--device", "cpu", "--evaluation.prompts", "train")
    judged = runs.call("evaluate", str(folder), *alone)
    assert judged.code == 0 and "\n-brightness " in judged.out and "redness" not in judged.out
    assert list(tastemaker.Run.open(folder).evaluate(device="cpu", evaluation={"prompts": "train"}))[1] == parts[0]


def test_a_sweep_takes_one(tmp_path: Path) -> None:
    flags = {"model": runs.model(), "reward": "brightness:1,smoothness:2", "prompts": "shapes"}
    sweep = Sweep("ddpo", flags, "algorithm.clip=1e-4,1e-3", 1, tmp_path)
    found = [sweep._resolved(variant, 0).tree["reward"]["sum"][1]["weight"] for variant in sweep.variants]
    assert found == [2.0, 2.0]

"""A sum of rewards: its numbers, its parts, its graph, its name, and its way through recipes, runs and their judges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import runs
import tastemaker
from tastemaker import config
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import Sum, named
from tastemaker.rewards.reward import Scores, check
from tastemaker.sweeping import Sweep
from toy_runs import same

N = 5
ALONE = ("--device", "cpu", "--evaluation.prompts", "train")
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


def test_a_term_may_have_an_argument_of_the_name_of_an_option(file: str) -> None:
    found = named(f"{file}:tinted:2{{settings: {{weight: 3}}, channel: 1}},brightness")(pictures(), PROMPTS)
    torch.testing.assert_close(found.parts["tinted"], 3 * pictures()[:, 1].mean((1, 2)))
    torch.testing.assert_close(found.value, 2 * found.parts["tinted"] + found.parts["brightness"])


def test_clips_and_limits_count_and_are_parts() -> None:
    low, high = red(pictures(), ()).sort().values[[1, 3]].tolist()
    written = [(red, {"weight": 2, "clip": [low, high]}), (Choosy(), {"weight": 4, "at_least": 0.5, "floor": 0.48})]
    found = named(Sum(written))(pictures(), PROMPTS)
    one, two = red(pictures(), ()), pictures()[:, 1].mean((1, 2))
    shown = two.index_fill(0, torch.tensor([2]), torch.nan)
    expected = 2 * one.clamp(low, high) - 4 * torch.relu(0.5 - shown)
    torch.testing.assert_close(found.value, expected, equal_nan=True)
    names = ["red", "red.counted", "choosy judge", "choosy judge.green", "choosy judge.counted", "choosy judge.holds"]
    assert list(found.parts) == names and torch.equal(found.parts["red"], one)
    torch.testing.assert_close(found.parts["choosy judge.counted"], -torch.relu(0.5 - shown), equal_nan=True)
    holds = [float("nan") if k == 2 else float(two[k] >= 0.5) for k in range(N)]
    assert found.parts["choosy judge.holds"].tolist() == pytest.approx(holds, nan_ok=True)
    check(Sum(written[:1]), pictures(), PROMPTS)


def test_their_gradient_is_that_of_finite_differences() -> None:
    def square(images: Tensor, prompts: Any) -> Tensor:
        return images.square().mean((1, 2, 3))

    images = pictures().double().requires_grad_()
    middle = float(square(images, ()).detach().median())
    reward = Sum([(square, {"weight": 3, "at_least": middle + 1e-4}), (red, {"weight": -2, "clip": [None, 0.5]})])
    (slope,) = torch.autograd.grad(reward(images, PROMPTS).value.sum(), images)
    way = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        ends = [reward(images + step * way, PROMPTS).value for step in (1e-6, -1e-6)]
    torch.testing.assert_close((slope * way).sum((1, 2, 3)), (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-8)
    assert len(set(reward(images, PROMPTS).parts["square.holds"].tolist())) == 2  # both sides of the limit
    assert torch.autograd.gradcheck(lambda x: reward(x, PROMPTS).value, images[:, :, :2, :2].detach().requires_grad_())


def test_only_the_outermost_sum_compares() -> None:
    inner = Sum("brightness,smoothness", standardise="group")
    assert Sum(inner.sum, standardise="iteration").standardise == "iteration"
    for written in ([(inner, 1), ("colour", 1)], "(brightness{floor: 1},smoothness):2,colour"):
        with pytest.raises(ValueError, match="`standardise` and `floor` are of the outermost sum alone"):
            named(written)
    with pytest.raises(ValueError, match="^Sum.standardise is 'batch'; it is one of group, iteration, or none."):
        Sum("brightness,smoothness", standardise="batch")
    nested = named("(brightness:2,smoothness):-1,colour")(pictures(), PROMPTS)
    parts = nested.parts
    expected = (
        parts["colour"] - 2 * parts["brightness+smoothness.brightness"] - parts["brightness+smoothness.smoothness"]
    )
    torch.testing.assert_close(nested.value, expected)


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


def test_standardise_is_laid_over_a_sum_and_goes_with_it(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "algorithm: ddpo\nmodel: shapes\nreward: {sum: 'jpeg_proxy:.3,brightness:2', standardise: group}\n"
    )
    assert resolved(str(recipe)).run.reward["standardise"] == "group"
    over = resolved(str(recipe), reward={"standardise": "iteration"})
    assert over.run.reward["standardise"] == "iteration" and over.origin["reward.standardise"] == "flag"
    assert over.origin["reward.sum"] == "recipe mine" and named(over.run.reward).name == "jpeg_proxy+brightness"
    other = resolved(str(recipe), reward="colour:1,brightness:1")  # another sum comes without it
    assert other.run.reward["standardise"] is None
    typed = resolved(str(recipe), reward={"name": "colour:1,brightness:1", "standardise": "group"})
    assert typed.run.reward["standardise"] == "group" and named(typed.run.reward).name == "colour+brightness"
    path = tmp_path / "config.yaml"
    path.write_text(config.as_yaml(typed.tree, typed.origin))
    assert resolved(str(path)).tree == typed.tree
    made = resolved("ddpo", model="shapes", reward=Sum("colour:1,brightness:1", standardise="group"))
    assert made.tree["reward"] == typed.tree["reward"]
    recipe.write_text("algorithm: ddpo\nmodel: shapes\nreward: {sum: 'colour,brightness', standardise: all}\n")
    with pytest.raises(ValueError, match=r"mine\.yaml:3: reward\.standardise is 'all'; it is one of group, iteration"):
        resolved(str(recipe))


def test_what_has_no_place_is_refused_before_the_model_is_loaded() -> None:
    compared = ("--reward", "brightness:1,smoothness:1", "--reward.standardise", "group")
    for words, said in (
        (("ddpo", *compared), "--reward.standardise is `group`, the pictures of one prompt, but per_prompt is 1"),
        (("draft", *compared), "--reward: draft differentiates the reward call by call, but `standardise` weighs a"),
        (("draft", "--reward", "brightness,smoothness{floor: 1}"), "but `floor` weighs a picture against all others"),
        (("draft", "--reward", "brightness,smoothness{floor: 1}"), "or write `at_least`, which costs weight x what"),
        (("draft", "--reward", "(brightness,jpeg_compressibility):2,colour"), "`jpeg_compressibility` has no gradient"),
        (("ddpo", "--reward", "brightness", "--reward.standardise", "group"), "standardise is not a setting of"),
    ):
        ran = runs.call("train", *words, "--model", "no/such-model", "--prompts", "shapes", "--dry-run")
        assert ran.code == 2 and said in ran.err, ran.err
    held_out = [{"sum": "brightness,smoothness", "standardise": "group"}]
    settings = {"model": "no/such-model", "reward": "colour", "prompts": "shapes", "held_out_rewards": held_out}
    with pytest.raises(ValueError, match=r"^held_out_rewards: `standardise` of `brightness\+smoothness` has no effect"):
        tastemaker.train(algorithm=tastemaker.DDPO(), **settings)


def test_a_run_on_a_standardised_sum_reports_every_part(tmp_path: Path) -> None:
    folder, file = tmp_path / "run", runs.reward("redness")
    flags = ("--reward", f"{file}:3{{at_least: 0.5}},brightness:-1{{clip: [0, 0.5], floor: 0.1}}")
    flags = (*flags, "--reward.standardise", "iteration")
    runs.train(runs.small(folder, *flags))
    names = {"redness", "redness.green", "redness.blue", "redness.counted", "redness.holds"}
    names |= {"brightness", "brightness.counted", "brightness.holds"}
    row, *_ = runs.rows(folder, "metrics")
    assert set(row["reward"]["parts"]) == names and 0 <= row["reward"]["parts"]["redness.holds"] <= 1
    sample, *_ = (one for one in runs.rows(folder, "samples") if one["kind"] == "training")
    parts = sample["parts"]
    assert set(parts) == names
    total = 3 * min(parts["redness"] - 0.5, 0) - min(max(parts["brightness"], 0), 0.5)
    assert sample["reward"] == pytest.approx(total, rel=1e-5)
    judged = runs.rows(folder, "evaluations")[0]["reward"]
    assert {name.partition(".")[2] for name in judged} == {"", *names}
    other = runs.call(*runs.small(folder, *flags[:2], "--resume_from_checkpoint", "latest"))
    assert other.code == 2 and "--reward.standardise is none, but the run in" in other.err
    one = runs.call("evaluate", str(folder), "--rewards", "(brightness:2,smoothness),colour{colour: blue}", *ALONE)
    assert one.code == 0 and "\nbrightness+smoothness " in one.out and "\ncolour " in one.out, one.err


def test_held_out_rewards_are_recorded_and_nothing_else(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    flags = ("--reward", "brightness", "--iterations", "2")
    runs.train(runs.small(first, *flags))
    recorded = "smoothness,(brightness:2,colour:-1{colour: blue, floor: 0.5}),colour{colour: red},colour,brightness"
    runs.train(runs.small(second, *flags, "--held_out_rewards", recorded))
    assert same(load_file(first / runs.LORA), load_file(second / runs.LORA))
    ours, theirs = ([one["updates"] for one in runs.rows(folder, "metrics")] for folder in (first, second))
    assert ours == theirs
    mine, row = runs.rows(first, "metrics")[0], runs.rows(second, "metrics")[0]
    assert row["reward"] == mine["reward"] and row["queries"] == mine["queries"]
    assert set(mine["held_out"]) == {"brightness"}
    assert set(row["held_out"]) == {"brightness", "smoothness", "brightness-colour", "colour", "colour_2"}
    assert "brightness-colour.colour.holds" in runs.rows(second, "evaluations")[0]["reward"]
    again = tmp_path / "again"  # written in a recipe
    specs = [{"sum": ["brightness:2", {"name": "colour", "weight": -1, "colour": "blue"}]}, {"name": "colour"}]
    (tmp_path / "mine.yaml").write_text(json.dumps({"algorithm": "ddpo", "held_out_rewards": specs}))
    words = runs.small(again, "--reward", "brightness")
    runs.train(["train", str(tmp_path / "mine.yaml"), *words[2:]])
    assert runs.rows(again, "metrics")[0]["updates"] == ours[0]
    found = tastemaker.Run.open(again).evaluate(device="cpu", evaluation={"prompts": "train"})
    assert {"brightness", "brightness-colour", "colour"} <= set(found)


def test_a_sweep_takes_one(tmp_path: Path) -> None:
    flags = {"model": runs.model(), "reward": "brightness:1,smoothness:2", "prompts": "shapes"}
    sweep = Sweep("ddpo", flags, "algorithm.clip=1e-4,1e-3", 1, tmp_path)
    found = [sweep._resolved(variant, 0).tree["reward"]["sum"][1]["weight"] for variant in sweep.variants]
    assert found == [2.0, 2.0]

"""Recipes, flags and a model's defaults make one run, each value with its origin; errors as the user meets them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from tastemaker import algorithms, config, flags, manual
from tastemaker.algorithms.algorithm import Algorithm
from tastemaker.build import Where, build, plain
from tastemaker.layers import layer, stack
from tastemaker.process.samplers import DDIM, Sampler, Window
from tastemaker.process.samplers import TABLE as SAMPLERS
from tastemaker.settings import PlanSettings, RunSettings, amount

MODEL = {
    "defaults": {"steps": 10, "guidance": 3.0, "prompts": "shapes", "evaluation": {"steps": 20}},
    "algorithms": {"toy": {"images": 32, "learning_rate": 3e-3}, "other": {"images": 7}},
}
NAMES = ", ".join(config.algorithms())
RUN = {"model": "shapes", "reward": "jpeg_compressibility", "prompts": "shapes"}


@dataclass(frozen=True)
class Toy(Algorithm):
    """An algorithm for these tests."""

    clip: float = 1e-4  # a number that is odd
    # two numbers,
    # and the reason
    betas: tuple[float, float] = (0.9, 0.999)
    kind: Literal["a", "b"] = "a"
    """Said below."""
    sampler: Sampler = field(default_factory=DDIM)  # the chain's rule

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; it must be positive.")
        if "kind" in self.given and self.clip == 1e-4:
            raise ValueError("kind has no effect at the default clip.")

    items = epochs = training_sampler = iteration = None  # type: ignore[assignment]  # nothing here is run


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(algorithms.TABLE, "toy", f"{__name__}:Toy")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        return "mine.yaml"

    return write


def resolve(line: str, model: dict[str, Any] | None = None) -> config.Resolved:
    words, tree, _ = flags.parse(line.split())
    return config.resolve(words[0], {**RUN, **tree}, model or {})


def refusal(line: str, model: dict[str, Any] | None = None) -> str:
    with pytest.raises(ValueError) as caught:
        resolve(line, model)
    return str(caught.value)


# ---- precedence and origins


def test_paper_model_recipe_flags_in_this_order(recipe: Callable[[str], str]) -> None:
    file = recipe("algorithm: {name: toy, images: 64, clip: 2e-4}\nlora: {rank: 8}\n")
    run = resolve(f"{file} --algorithm.clip 3e-4 --lora.alpha=2", MODEL)
    toy = run.algorithm
    assert (toy.weight_decay, toy.steps, toy.images, toy.clip) == (1e-4, 10, 64, 3e-4)
    assert [run.origin[f"algorithm.{name}"] for name in ("weight_decay", "steps", "images", "clip")] == [
        "paper",
        "model",
        "recipe mine",
        "flag",
    ]
    assert run.run.lora is not None and (run.run.lora.rank, run.run.lora.alpha) == (8, 2.0)
    assert [run.origin[f"lora.{name}"] for name in ("rank", "alpha", "init")] == ["recipe mine", "flag", "default"]
    assert run.run.evaluation.steps == 20 and run.origin["evaluation.steps"] == "model"
    assert run.origin["seed"] == "default" and run.origin["algorithm.name"] == "recipe mine"


def test_every_leaf_has_an_origin_and_nothing_else_has() -> None:
    run = resolve("toy --algorithm.sampler window --algorithm.sampler.inside ddim --algorithm.sampler.size 2")

    def leaves(tree: dict[str, Any], at: str = "") -> set[str]:
        parts = (leaves(v, f"{at}{k}.") if isinstance(v, dict) and v else {at + k} for k, v in tree.items())
        return set().union(*parts)

    assert leaves(run.tree) == set(run.origin)


def test_a_model_says_nothing_for_an_algorithm_that_it_does_not_name() -> None:
    assert resolve("toy", {"algorithms": {"other": {"images": 7}}}).algorithm.images == 256


def test_a_model_may_state_steps_for_algorithms_that_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(algorithms.TABLE, "stepless", f"{__name__}:Stepless")
    run = config.resolve("stepless", RUN, {"defaults": {"steps": 10}})
    assert run.algorithm == Stepless()


@dataclass(frozen=True)
class Stepless:
    """An algorithm without a chain, and with a name of its own for everything."""

    learning_rate: float = 1.0
    settled = Algorithm.settled


def test_short_names_are_the_paths_they_stand_for() -> None:
    _, tree, _ = flags.parse(
        "--iterations 3 --learning_rate 1e-2 --rank 2 --lora f.st --model_name_or_path here".split()
    )
    run = config.resolve("toy", {**tree, "reward": "r", "prompts": "p"}, {})
    assert (run.algorithm.iterations, run.algorithm.learning_rate) == (3, 0.01)
    assert run.run.lora is not None and (run.run.lora.rank, run.run.lora.file) == (2, "f.st")
    assert run.run.model == "here" and run.origin["algorithm.iterations"] == "flag"


@pytest.mark.parametrize(
    ("line", "rate", "origin"),
    [
        ("toy", 3e-3, "model"),
        ("toy --no-lora", 1e-5, "without LoRA"),
        ("toy --lora none", 1e-5, "without LoRA"),
        ("toy --no-lora --learning_rate 2e-4", 2e-4, "flag"),
    ],
)
def test_without_lora_the_default_learning_rate_is_small(line: str, rate: float, origin: str) -> None:
    run = resolve(line, MODEL)
    assert run.algorithm.learning_rate == rate and run.origin["algorithm.learning_rate"] == origin
    assert (run.run.lora is None) == ("lora" in line)


def test_a_recipe_without_lora_keeps_its_own_rate_and_a_flag_brings_lora_back(recipe: Callable[[str], str]) -> None:
    file = recipe("algorithm: toy\nlora: null\nlearning_rate: 5e-5\n")
    assert resolve(file).algorithm.learning_rate == 5e-5 and resolve(file).run.lora is None
    back = resolve(f"{file} --lora.rank 2").run.lora
    assert back is not None and back.rank == 2


def test_accelerates_mixed_precision_lies_under_the_recipe(
    recipe: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert resolve("toy").run.mixed_precision == "bf16" and resolve("toy").origin["mixed_precision"] == "accelerate"
    assert resolve("toy --mixed_precision no").run.mixed_precision == "no"
    assert resolve(recipe("algorithm: toy\nmixed_precision: fp16")).run.mixed_precision == "fp16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    assert refusal("toy").startswith("ACCELERATE_MIXED_PRECISION needs one of no, fp16, bf16; found 'fp8'")


# ---- an algorithm object from Python


def test_what_the_caller_gave_stays_and_the_model_fills_the_rest() -> None:
    mine = Toy(images=48, sampler=DDIM(0.25))
    run = config.resolve(mine, {**RUN, "reward": len}, MODEL, spelling="argument")
    assert (run.algorithm.images, run.algorithm.steps, run.algorithm.learning_rate) == (48, 10, 3e-3)
    assert run.algorithm.sampler == DDIM(0.25) and run.name == "toy"
    origins = ("images", "steps", "clip", "sampler.eta")
    assert [run.origin[f"algorithm.{name}"] for name in origins] == ["argument", "model", "paper", "argument"]
    assert mine.steps == 50, "the caller's object changed"
    assert run.run.reward is len and run.tree["reward"] == "builtins:len"


def test_an_object_is_built_again_without_being_given_more_than_it_was() -> None:
    run = config.resolve(Toy(), RUN, {}, spelling="argument")  # `kind` in given would raise
    assert run.algorithm == Toy() and run.algorithm.given == frozenset()


def test_a_model_has_no_say_in_what_follows_from_what_was_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"algorithms": {"toy": {"images": 32, "steps": 7, "clip": 2e-4}}}
    monkeypatch.setattr(Toy, "settled", lambda stated: frozenset({"steps"} if stated.get("kind") == "b" else ()))
    for run in (
        resolve("toy --algorithm.kind b --algorithm.clip 1e-3", said),
        config.resolve(Toy(1, kind="b", clip=1), RUN, said),
    ):
        assert run.algorithm.steps == 50 and run.origin["algorithm.steps"] == "paper"
    assert run.algorithm.images == 1
    assert resolve("toy --algorithm.clip 1e-3", said).algorithm.steps == 7


def test_an_explicit_default_is_the_callers() -> None:
    assert config.resolve(Toy(steps=50), RUN, MODEL).algorithm.steps == 50
    rate = config.resolve(Toy(learning_rate=3e-4), {**RUN, "lora": None}, MODEL).algorithm.learning_rate
    assert rate == 3e-4


def test_what_is_no_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"algorithm is .*Toy.*; it is a name \(ddpo"):
        config.resolve(Toy, RUN, {})


# ---- parts chosen by name


def test_a_setting_of_a_part_keeps_the_part() -> None:
    run = resolve("toy --algorithm.sampler.eta .5")
    assert run.algorithm.sampler == DDIM(0.5)
    assert (run.origin["algorithm.sampler.name"], run.origin["algorithm.sampler.eta"]) == ("paper", "flag")


def test_a_new_name_drops_the_settings_of_the_old(recipe: Callable[[str], str]) -> None:
    file = recipe("algorithm: {name: toy, sampler: {name: window, inside: {name: ddim, eta: 0.5}, size: 4}}\n")
    assert resolve(file).algorithm.sampler == Window(DDIM(0.5), 4)
    assert resolve(f"{file} --algorithm.sampler.size 2").algorithm.sampler == Window(DDIM(0.5), 2)
    assert resolve(f"{file} --algorithm.sampler.inside.eta 1").algorithm.sampler == Window(DDIM(1.0), 4)
    changed = resolve(f"{file} --algorithm.sampler ddim")
    assert changed.algorithm.sampler == DDIM() and changed.origin["algorithm.sampler.eta"] == "default"


def test_a_new_algorithm_drops_the_recipes_settings_of_the_old(recipe: Callable[[str], str]) -> None:
    run = resolve(recipe("algorithm: {name: ddpo, clip: 5e-4, images: 8}\n") + " --algorithm toy")
    assert run.name == "toy" and run.algorithm == Toy()


def test_a_part_that_may_also_be_a_word() -> None:
    assert resolve("toy").run.evaluation.sampler == "deterministic"
    assert resolve("toy --evaluation.sampler train").run.evaluation.sampler == "train"
    assert resolve("toy --evaluation.sampler ddim").run.evaluation.sampler == DDIM()
    assert resolve("toy --evaluation.sampler.name ddim --evaluation.sampler.eta 0").run.evaluation.sampler == DDIM(0)


# ---- values


@pytest.mark.parametrize(
    ("flag", "path", "value"),
    [
        ("--algorithm.clip 3e-4", "algorithm.clip", 3e-4),
        ("--algorithm.betas 0.5,0.75", "algorithm.betas", [0.5, 0.75]),
        ("--lora.targets to_q,to_k", "lora.targets", ["to_q", "to_k"]),
        ("--gradient-checkpointing", "gradient_checkpointing", True),
        ("--gradient_checkpointing false", "gradient_checkpointing", False),
        ("--no-gradient_checkpointing", "gradient_checkpointing", False),
        ("--max_grad_norm none", "max_grad_norm", None),
        ("--no-max_grad_norm", "max_grad_norm", None),
        ("--save_samples all", "save_samples", "all"),
        ("--save_samples=3", "save_samples", 3),
        ("--negative_prompt=", "negative_prompt", ""),
        ("--seed -3", "seed", -3),
        ("--seed 1 --seed 2", "seed", 2),
        ("--dry-run", "dry_run", True),
    ],
)
def test_texts_become_what_the_setting_is(flag: str, path: str, value: object) -> None:
    tree: Any = resolve(f"toy {flag}").tree
    for part in path.split("."):
        tree = tree[part]
    assert tree == value and type(tree) is type(value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--seed 1.5", "--seed needs a whole number; found '1.5'."),
        ("--seed", "--seed needs a value: a whole number."),
        ("--no-seed", "--seed cannot be switched off; it takes a whole number."),
        ("--reward", "--reward needs a value."),
        ("--overwrite out", "--overwrite needs true or false; found 'out'."),
        ("--algorithm.clip nan", "--algorithm.clip needs a number; found 'nan'."),
        ("--algorithm.betas 1", "--algorithm.betas needs a list of a number (with commas); found ['1']."),
        ("--algorithm.kind c", "--algorithm.kind needs one of a, b; found 'c'."),
        ("--algorithm.clip -1", "--algorithm.clip is -1.0; it must be positive."),
        ("--evaluation.count 0", "--evaluation.count is 0; at least 1 prompt is needed."),
        ("--lora.rank 0", "--lora.rank is 0, it must be at least 1. For no adapter at all: --no-lora."),
        ("--fit 12", "--fit is '12'; it is an amount of memory such as 12GB (MB, GB, MiB, GiB)."),
        ("--evaluation 3", "--evaluation is a group of settings, evaluation.KEY; found '3'."),
        (
            "--algorithm.sampler dim",
            f"--algorithm.sampler needs a name, one of {', '.join(SAMPLERS)}; found 'dim'.  Did you mean",
        ),
        ("--algorithm.sampler window", "--algorithm.sampler: window needs a value for `inside` and `size`."),
        (
            "--algorithm.sampler window --algorithm.sampler.size 1 --algorithm.sampler.inside window "
            "--algorithm.sampler.inside.size 2 --algorithm.sampler.inside.inside ddim",
            "--algorithm.sampler.inside is a window, but the steps of a window need a sampler that is none",
        ),
        (
            "--algorithm.clip_range 1",
            "--algorithm.clip_range is not a setting of toy.  Did you mean `--algorithm.clip`?",
        ),
        ("--clip 1", "--clip is not a setting of a run.  Did you mean `--algorithm.clip`?"),
        ("--guidance_scale 1", "--guidance_scale is not a setting of a run.  Did you mean `--algorithm.guidance`?"),
        ("--learning_rat 1", "--learning_rat is not a setting of a run.  Did you mean `--learning_rate`?"),
        (
            "--algorithm.sampler.etta 1",
            "--algorithm.sampler.etta is not a setting of ddim.  Did you mean `--algorithm.s",
        ),
        ("--zzz 1", "--zzz is not a setting of a run.  (`tastemaker explain run` lists all)"),
        (
            "--learning_rate 1 --algorithm.learning_rate 2",
            "--learning_rate is `algorithm.learning_rate` by another name",
        ),
        (
            "--no-lora --lora.rank 2",
            "--lora.rank sets a part of `lora`, which --no-lora switches: take one of them out.",
        ),
        ("--lora.rank 2 --no-lora", "--lora is switched, and a part of it is set by another flag"),
        ("--no-lora=x", "--no-lora takes no value"),
        ("--lora..rank 1", "--lora..rank is not a flag"),
        ("--resolution 64 --height 64", "--resolution is given beside height or width"),
        ("--overwrite --resume_from_checkpoint latest", "--overwrite empties the folder"),
        ("--checkpoints_total_limit 1", "--checkpoints_total_limit is 1; at least 2 are kept"),
        ("--algorithm tooy", f"--algorithm: 'tooy' is none of {NAMES}, toy.  Did you mean `toy`?"),
    ],
)
def test_errors_begin_with_the_key_as_it_was_typed(flags: str, message: str) -> None:
    assert refusal(f"toy {flags}").startswith(message)


def test_what_an_algorithm_says_later_begins_with_the_key_too(recipe: Callable[[str], str]) -> None:
    file = recipe("algorithm:\n  name: toy\n  clip: 2e-4\n")
    mine = config.resolve(Toy(clip=0.1), RUN, {}, spelling="argument")

    def told(run: config.Resolved, message: str) -> str:
        with pytest.raises(ValueError) as caught, run.where.naming(run.algorithm):
            raise ValueError(message)
        return str(caught.value)

    for run, said in (
        (resolve("toy --algorithm.clip 1"), "--algorithm.clip"),
        (resolve(file), "mine.yaml:3: algorithm.clip"),
        (resolve("toy", {"algorithms": {"toy": {"clip": 1}}}), "tastemaker.json: algorithm.clip"),
        (mine, "algorithm.clip"),
    ):
        assert told(run, "clip is 1: lower it.") == f"{said} is 1: lower it."
    run = resolve("toy --algorithm.sampler.eta 1")
    assert told(run, "eta is 1, but") == "--algorithm.sampler.eta is 1, but"  # of a part
    for message in ("eta: no", "--fit 1 is not enough", "64 images (clip)", ""):
        assert told(run, message) == message


@pytest.mark.parametrize("key", ["model", "reward", "prompts"])
def test_what_has_no_default_is_asked_for_with_names_that_fit(key: str) -> None:
    given = {name: value for name, value in RUN.items() if name != key}
    with pytest.raises(ValueError, match=rf"^--{key} is missing, .* Give --{key}: .*shapes"):
        config.resolve("toy", given, {})
    assert config.resolve("toy", given, {"defaults": {key: "shapes"}}).origin[key] == "model"


def test_an_argument_from_python_is_named_without_dashes() -> None:
    with pytest.raises(ValueError, match=r"^seed needs a whole number; found True"):
        config.resolve("toy", {**RUN, "seed": True}, {}, spelling="argument")


# ---- recipes


def test_an_unknown_key_of_a_recipe_names_file_and_line(recipe: Callable[[str], str]) -> None:
    file = recipe("# a comment\nalgorithm:\n  name: ddpo\n  clip_range: 1e-4\n")
    assert refusal(file) == (
        "mine.yaml:4: algorithm.clip_range is not a setting of ddpo.  Did you mean `clip`?  "
        "(`tastemaker explain ddpo` lists all)"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("algorithm: toy\nseed: x\n", "mine.yaml:2: seed needs a whole number; found 'x'."),
        ("algorithm: toy\nlora:\n  rank: 0\n", "mine.yaml:3: lora.rank is 0, it must be"),
        ("algorithm: toy\nseed: 1\nseed: 2\n", "mine.yaml:3: seed is given twice."),
        ("algorithm: toy\nlora:\n  rank: 1\n  rank: 2\n", "mine.yaml:4: lora.rank is given twice."),
        ("algorithm: toy\non: 1\n", "mine.yaml:2: found the key 'on', which YAML does not read as a text"),
        ("algorithm: toy\nseed: [1\n", "mine.yaml:3: not YAML: "),
        ("- a\n- b\n", "mine.yaml: a recipe is a mapping"),
        ("", "mine.yaml: a recipe is a mapping"),
        ("seed: 1\n", "mine.yaml: a recipe names its algorithm: `algorithm: NAME`, one of ddpo"),
        ("algorithm: tooy\n", f"mine.yaml:1: algorithm: 'tooy' is none of {NAMES}, toy.  Did you mean `toy`?"),
        (
            "algorithm: toy\nsampler: {name: ddim}\n",
            "mine.yaml:2: sampler is not a setting of a run.  Did you mean `alg",
        ),
        ("algorithm: !!python/object:os.system {}\n", "mine.yaml:1: not YAML: could not determine a constructor"),
    ],
)
def test_a_broken_recipe_names_the_line(recipe: Callable[[str], str], text: str, message: str) -> None:
    assert refusal(recipe(text)).startswith(message)


def test_a_recipe_that_is_no_text(recipe: Callable[[str], str]) -> None:
    file = recipe("")
    Path(file).write_bytes(b"\xff\xfe\x00")
    assert refusal(file).startswith("mine.yaml: not a text in UTF-8")


def test_yaml_anchors_work(recipe: Callable[[str], str]) -> None:
    file = recipe("algorithm: toy\nlora: &l {rank: 3, alpha: 1}\nevaluation: {count: 2}\n")
    assert resolve(file).run.evaluation.count == 2
    file = recipe("plan: &p {micro_batch: 3}\nalgorithm: toy\n<<: {seed: 5, device: cpu}\nseed: 6\n")
    assert resolve(file).run.seed == 6 and resolve(file).run.device == "cpu"


def test_a_resolved_tree_written_as_yaml_is_a_recipe_for_the_same_run(recipe: Callable[[str], str]) -> None:
    flags = "--algorithm.sampler window --algorithm.sampler.inside ddim --algorithm.sampler.size 2 --no-lora --fit 2GiB"
    run = resolve(f"toy {flags} --algorithm.clip 1e-5 --save_samples all --negative_prompt=#1:a", MODEL)
    text = config.as_yaml(run.tree, run.origin)
    assert "images: 32" in text and text.splitlines()[2].endswith("# flag"), text
    again = resolve(recipe(text))
    assert (again.algorithm, again.run, again.tree) == (run.algorithm, run.run, run.tree)


def test_what_a_resolved_file_states_because_it_states_all_is_no_choice(recipe: Callable[[str], str]) -> None:
    """`kind` is refused beside the default clip when somebody states it; the file states it, and nobody chose it."""
    run = resolve("toy --algorithm.steps 50 --evaluation.sampler ddim", MODEL)
    text = config.as_yaml(run.tree, run.origin)
    again = resolve(recipe(text), MODEL)
    assert (again.algorithm, again.run, again.tree) == (run.algorithm, run.run, run.tree)
    assert again.algorithm.given == {"images", "learning_rate", "guidance"}  # the model's
    assert again.algorithm.steps == 50  # not 10, which the model says below the file
    origins = ("algorithm.images", "algorithm.kind", "seed", "evaluation.sampler.name", "evaluation.count")
    assert [again.origin[name] for name in origins] == ["recipe mine", "paper", "default", "recipe mine", "default"]
    changed = resolve("mine.yaml --algorithm.clip 2e-4 --algorithm.kind a --seed 4 --evaluation.sampler train", MODEL)
    assert (changed.algorithm.clip, changed.run.seed, changed.run.evaluation.sampler) == (2e-4, 4, "train")
    rate = resolve("toy --no-lora --learning_rate 3e-4")  # the paper's, and not what it would be without LoRA
    assert resolve(recipe(config.as_yaml(rate.tree, rate.origin))).algorithm.learning_rate == 3e-4
    said = "--algorithm.kind has no effect at the default clip."
    assert refusal(recipe(text) + " --algorithm.kind a") == said  # now somebody does
    assert "kind has no effect" in refusal(recipe(text.replace("resolved: true", "resolved: false")))


def test_wrong_names_are_answered_with_a_suggestion() -> None:
    for name, said in {
        "ddpoo": "Did you mean `ddpo`?",
        "a/b.yaml": "there is no recipe file a/b.yaml",
        "x.yml": "no",
    }.items():
        with pytest.raises(ValueError, match=r"algorithm|recipe") as caught:
            config.find(name)
        assert said in str(caught.value)


# ---- a model's defaults


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"default": {}}, "tastemaker.json: default is neither `defaults` nor `algorithms`."),
        ({"defaults": {"stps": 1}}, "tastemaker.json: defaults.stps is neither a setting of a run nor of toy."),
        ({"defaults": {"steps": "x"}}, "tastemaker.json: algorithm.steps needs a whole number; found 'x'."),
        (
            {"algorithms": {"toy": {"imags": 1}}},
            "tastemaker.json: algorithm.imags is not a setting of toy.  Did you mean",
        ),
    ],
)
def test_wrong_defaults_of_a_model_are_named(said: dict[str, Any], message: str) -> None:
    assert refusal("toy", said).startswith(message)


def test_a_models_defaults_are_read_from_its_folder(tmp_path: Path) -> None:
    assert config.model_defaults(tmp_path) == {}
    (tmp_path / "tastemaker.json").write_text('{"defaults": {"steps": 3}}')
    assert config.model_defaults(tmp_path) == {"defaults": {"steps": 3}}
    for text, said in {"{": "not JSON", "[]": "it is a mapping"}.items():
        (tmp_path / "tastemaker.json").write_text(text)
        with pytest.raises(ValueError, match=rf"tastemaker\.json: {said}"):
            config.model_defaults(tmp_path)


# ---- build, by itself


def test_build_names_the_field_that_is_missing_or_wrong() -> None:
    with pytest.raises(ValueError, match=r"^here: window needs a value for `size`"):
        build(Window, {"inside": "ddim"}, Where("here", "window"))
    assert build(Window, {"inside": {"eta": 0.5, "name": "ddim"}, "size": "2"}) == Window(DDIM(0.5), 2)
    with pytest.raises(
        ValueError, match=r"inside needs a name, one of ddim, flow_sde, dance_sde, cps, window; found \{'eta': 1\}"
    ):
        build(Window, {"inside": {"eta": 1}, "size": 2})


def test_layers_do_not_touch_the_values_they_were_made_of() -> None:
    values = {"algorithm": {"sampler": "ddim"}}
    stack([layer("a", values, str), layer("b", {"algorithm": {"sampler": {"eta": 1}}}, str)])
    assert values == {"algorithm": {"sampler": "ddim"}}


def test_plain_and_build_are_inverse() -> None:
    settings = build(RunSettings, {"evaluation": {"sampler": {"name": "ddim", "eta": 0.5}}, "ema": 0.9})
    assert build(RunSettings, plain(settings)) == settings


@pytest.mark.parametrize(("text", "size"), [("12GB", 12e9), ("1.5 gib", 1.5 * 2**30), ("500MB", 5e8)])
def test_amounts_of_memory(text: str, size: float) -> None:
    assert amount(text) == size == RunSettings(fit=text).fit_bytes


@pytest.mark.parametrize("text", ["12", "GB", "-1GB", "0GB", "1..5GB", "12GB more", ""])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(ValueError, match="^fit is "):
        amount(text)


def test_a_batch_of_nothing_is_refused() -> None:
    for name in ("micro_batch", "sampling_batch"):
        with pytest.raises(ValueError, match=name):
            PlanSettings(**{name: 0})


# ---- the manual


def test_sentences_are_read_from_behind_below_and_above() -> None:
    said = manual.sentences(Toy)
    assert said["clip"] == "a number that is odd"
    assert said["betas"] == "two numbers, and the reason"
    assert said["kind"] == "Said below." and said["steps"] == "steps of the denoising chain"


def test_the_manual_knows_every_setting() -> None:
    rows = {row.path: row for row in manual.settings(RunSettings)}
    assert rows["lora.rank"].default == "4" and rows["evaluation.sampler"].kind.startswith(
        f"one of {', '.join(SAMPLERS)} or one of"
    )
    assert rows["overwrite"] == ("overwrite", "true or false", "false", "empty an existing output_dir first")
    assert {row.path for row in manual.settings(Window)} == {"inside", "size", "first", "last", "each"}
    assert next(manual.settings(Window)).default == "required"


def test_flags_are_read_into_a_tree() -> None:
    words, tree, wanted = flags.parse(["toy", "--a-b.c-d", "1", "--e=--f", "--g", "-h", "--x", "y=z"])
    assert (words, wanted) == (["toy"], True)
    assert tree == {"a_b": {"c_d": "1"}, "e": "--f", "g": flags.Switch.ON, "x": "y=z"}

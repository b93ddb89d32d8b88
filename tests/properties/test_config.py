"""Any settings, by flags or as arguments, become the same run again when they are written down and read."""

from __future__ import annotations

import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tastemaker import config, flags
from tastemaker.build import build, plain
from tastemaker.planning import leaves
from tastemaker.settings import RunSettings

NEEDED = {"model": "shapes", "reward": "jpeg_compressibility", "prompts": "shapes"}
WORDS = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_characters="\x7f"), min_size=1, max_size=9
)
SHARE = st.floats(0, 0.999)
SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(-(2**40), 2**40),
    "negative_prompt": WORDS.filter(lambda word: word not in ("none", "null") and not word.startswith("--")),
    "ema": st.none() | SHARE,
    "max_failed": SHARE,
    "max_grad_norm": st.none() | st.floats(1e-6, 1e6),
    "checkpointing_steps": st.integers(0, 999),
    "save_samples": st.just("all") | st.integers(0, 99),
    "lr_scheduler": st.sampled_from(["constant", "linear", "cosine"]),
    "gradient_checkpointing": st.booleans(),
    "held_out_rewards": st.lists(
        st.sampled_from(["colour", "brightness", "smoothness"]), min_size=1, max_size=2, unique=True
    ),
    "lora.rank": st.integers(1, 64),
    "lora.alpha": st.none() | st.floats(0.5, 64),
    "evaluation.count": st.integers(1, 99),
    "plan.micro_batch": st.none() | st.integers(1, 99),
    "algorithm.clip": st.floats(1e-6, 1.0),
    "algorithm.images": st.integers(1, 99),
    "algorithm.sampler.eta": SHARE,
    "algorithm.guidance_in_loss": st.booleans(),
}
SOME = st.sets(st.sampled_from(sorted(SETTINGS)), max_size=6).flatmap(
    lambda names: st.fixed_dictionaries({name: SETTINGS[name] for name in sorted(names)})
)
MODEST = settings(derandomize=True, deadline=None, max_examples=25, database=None)


def words(path: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{path}" if value else f"--no-{path}"]
    if isinstance(value, list):
        value = ",".join(value)
    return [f"--{path}={'none' if value is None else value}"]


def resolved(tree: dict[str, Any], spelling: str = "flag") -> config.Resolved:
    return config.resolve("ddpo", tree, {}, spelling=spelling)


@MODEST
@given(SOME)
def test_flags_become_what_they_say_and_survive_being_written_down(asked: dict[str, Any]) -> None:
    """flags -> tree -> dataclasses -> plain -> dataclasses; and config.yaml of the run is a recipe for the same."""
    parsed = flags.parse([word for path, value in {**NEEDED, **asked}.items() for word in words(path, value)])
    assert parsed.words == [] and not parsed.help
    made = resolved(parsed.tree)
    found = dict(leaves(made.tree))
    for path, value in asked.items():
        assert found.get(path, made.tree.get(path)) == value, path
        assert made.origin.get(path, "flag") == "flag"
    again = build(RunSettings, {key: value for key, value in made.tree.items() if key != "algorithm"})
    assert again == made.run and plain(again) == plain(made.run)
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "config.yaml"
        recipe.write_text(config.as_yaml(made.tree, made.origin), encoding="utf-8")
        written = config.resolve(str(recipe), {}, {})
    assert (written.run, written.algorithm, written.tree) == (made.run, made.algorithm, made.tree)


NAMES = st.from_regex(r"[a-z][a-z_]{0,11}[a-z]", fullmatch=True)
PLACES = {
    "": RunSettings,
    "algorithm.": None,
    "lora.": None,
    "evaluation.": None,
    "plan.": None,
    "algorithm.sampler.": None,
}


@MODEST
@given(st.sampled_from(sorted(PLACES)), NAMES)
def test_an_unknown_key_is_an_error_that_names_it_as_it_was_typed(place: str, name: str) -> None:
    tree = resolved({**NEEDED}).tree
    at: Any = tree
    for part in place.split(".")[:-1]:
        at = at[part]
    short = {"clip", "images", "iterations", "learning_rate", "sampler", "steps", "name"}
    if name in at or name.startswith("no_") or name in {field.name for field in fields(RunSettings)} | short:
        return
    argv = [word for key, value in NEEDED.items() for word in words(key, value)]
    with pytest.raises(ValueError) as no:
        resolved(flags.parse([*argv, f"--{place}{name}=1"]).tree)
    assert str(no.value).startswith(f"--{place}{name}"), no.value
    with pytest.raises(ValueError) as no:
        resolved(flags.parse([*argv, f"--{place}{name}=1"]).tree, "argument")
    assert str(no.value).startswith(f"{place}{name}"), no.value


@MODEST
@given(st.lists(st.text(max_size=12), max_size=6))
def test_whatever_is_typed_is_read_or_refused(argv: list[str]) -> None:
    """Nothing but a ValueError, or what was typed: every word is a plain one, a flag's name, or a flag's value."""
    try:
        found = flags.parse(argv)
    except ValueError:
        return
    assert all(word in argv for word in found.words)
    assert all(isinstance(key, str) and key for key in found.tree)

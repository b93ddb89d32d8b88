"""Keys are known by their names and by their looks; settings of ours and sentences are left alone."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from tastemaker import config
from tastemaker.reports.secrets import cleaned, command, named, text
from tastemaker.settings import RunSettings

HEX = "0a" * 20
NAMES = "x-api-key apikey access_key Authorization tokens api_key apiKey API_KEY HF_TOKEN hfToken passwd auth secret-id"
OTHERS = "tokenizer author algorithm per_prompt keyframes monkey hub_model_id authority compass passage step"


@pytest.mark.parametrize("name", [*NAMES.split(), "credentials", "password", "client_secret", "oauth", "ssh key"])
def test_names_of_secrets(name: str) -> None:
    assert named(name) and cleaned({name: "abc"}) == {name: "(removed)"} == cleaned({name: b"abc"})
    assert cleaned({name: ["abc", {"id": "abc", "n": 12345}]}) == {
        name: ["(removed)", {"id": "(removed)", "n": "(removed)"}]
    }
    plain = [None, True, 0.5, 7, ""]
    assert cleaned({name: plain}) == {name: plain}


@pytest.mark.parametrize("name", [*OTHERS.split(), "max_steps"])
def test_names_that_only_look_like_it(name: str) -> None:
    assert not named(name) and cleaned({name: "abc"}) == {name: "abc"}


def test_a_number_of_tokens_is_none() -> None:
    assert cleaned({"max_tokens": 4096, "n_keys": 4096, "password": 4096}) == {
        "max_tokens": 4096, "n_keys": 4096, "password": "(removed)"
    }  # fmt: skip


@pytest.mark.parametrize("algorithm", config.algorithms())
def test_every_setting_of_ours_stays_as_it_is(algorithm: str) -> None:
    asked = {"model": "owner/base", "reward": "jpeg_compressibility", "prompts": "animals"}
    tree = config.resolve(algorithm, asked, {}).tree
    assert {one.name for one in fields(RunSettings)} <= {*tree, "dry_run", "overwrite"}

    def names(found: dict[str, Any]) -> list[str]:
        return [one for key, part in found.items() for one in (key, *(names(part) if isinstance(part, dict) else ()))]

    assert [name for name in names(tree) if named(name)] == []
    assert cleaned(tree) == tree


@pytest.mark.parametrize(
    ("found", "left"),
    [
        ("http://jane:pw@host/score", "http://(removed)@host/score"),
        ("see http://key@host and http://jane:p/w@host", "see http://(removed)@host and http://(removed)@host"),
        ("https://host/a?api_key=abc&x=1 next", "https://host/a?(removed) next"),
        ("https://host/#access_token=abc", "https://host/#(removed)"),
        ("Bearer hf_" + "x" * 34, "Bearer (removed)"),
        ("Bearer abc", "Bearer (removed)"),
        ("it said: bearer abc123def", "it said: bearer (removed)"),
        ("a Basic dXNlcjpwYXNz", "a Basic (removed)"),
        ("Authorization: Basic abc", "Authorization: (removed)"),
        ("x-api-key: abc", "x-api-key: (removed)"),
        ("{'api_key': 'abc', 'n': 1}", "{'api_key': '(removed)', 'n': 1}"),
        ("--token=abc --n=1", "--token=(removed) --n=1"),
        (f"WANDB_API_KEY={HEX}", "WANDB_API_KEY=(removed)"),
        (f"the key {HEX}", "the key (removed)"),
    ],
)
def test_keys_inside_a_text(found: str, left: str) -> None:
    assert text(found) == left == text(left)
    assert cleaned({"a": [found]}) == {"a": [left]} and cleaned((found,)) == [left]


@pytest.mark.parametrize(
    "known",
    ["hf_" + "x" * 34, "ghp_" + "x" * 36, "github_pat_" + "x_" * 20, "sk-" + "x" * 48, "sk-proj-" + "x-" * 20,
     "xoxb-123456789012-" + "x" * 24, "AKIAIOSFODNN7EXAMPLE", "glpat-" + "x" * 20, "eyJhbGciOiJI.eyJzdWIi.x-y"],
)  # fmt: skip
def test_tokens_are_known_by_how_they_begin(known: str) -> None:
    assert text(f"a {known}, b") == "a (removed), b" and text(f"f.py:{known}") == "f.py:(removed)"


@pytest.mark.parametrize(
    "sentence",
    ["a ring bearer of gold", "basic watercolor/ink shapes", "Basic geometry", "the key: a story", "a secret: gold",
     "token of love", "task-oriented-something-very-long", "http://host:80/a@b", "https://host/f.csv#caption",
     "hub:owner/name", "C:\\Users", HEX, "a 4k photo, f=1.8", "sk-learn"],
)  # fmt: skip
def test_sentences_and_addresses_stay_as_they_are(sentence: str) -> None:
    assert text(sentence) == sentence


def test_a_command_line() -> None:
    words = [
        "train",
        "--a.api_key",
        "abc",
        "--api_key=abc",
        "--auth",
        "--seed",
        "3",
        "--url",
        "http://j:pw@h",
        "token",
        "x",
    ]
    left = ["train", "--a.api_key", "(removed)", "--api_key=(removed)", "--auth", "--seed", "3", "--url"]
    assert command(words) == [*left, "http://(removed)@h", "token", "x"]

"""The card says what the records say, shows texts as texts, and names nothing of the machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from finished_runs import change, make
from tastemaker.exports import card
from tastemaker.exports.finished import Finished


def text_of(folder: Path, repo: str | None = "jane/run", **settings: Any) -> str:
    return card.render(Finished.read(make(folder, **settings)), repo)


def head(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def snippet(text: str) -> str:
    return text.split("\n```python\n")[1].split("\n```\n")[0]


def test_it_says_what_the_records_say(tmp_path: Path) -> None:
    text = text_of(tmp_path)
    assert "# jane/run\n" in text and "](before_after.png)" in text
    assert "A LoRA (rank 4) of [owner/base](https://huggingface.co/owner/base), fine-tuned with `ddpo`" in text
    assert "64 pictures of `animals_heldout` by each of the two models" in text
    assert "20 steps of the deterministic sampler, guidance 7.5" in text
    assert "| `jpeg_compressibility` | trained on | 0 | 2 | +1 [+0.5, +1.5] | +1.25 | 75% |" in text
    assert "| `shapes_alignment` | held out | 0 | 2 | +1 [-2, -1] | +1.25 | 75% |" in text
    assert "`jpeg_compressibility` **rose**." in text and "- Not trained on: `shapes_alignment`." in text
    assert "| `algorithm.clip` | `0.0001` | the paper's default |" in text
    assert "| `algorithm.images` | `8` | the user |" in text
    assert "It took 2 iterations: 16 pictures, 16 queries of the reward (2 of them failed" in text
    assert "640 rows forward and 3,200 backward through the network, 60 seconds." in text
    assert "@inproceedings{black2024training," in text and "@software{tastemaker," in text
    assert "output_dir" not in text and "This card states none." in text


def test_the_header_names_the_base_only_where_the_hub_has_it(tmp_path: Path) -> None:
    found = head(text_of(tmp_path / "hub"))
    assert (found["base_model"], found["base_model_relation"]) == ("owner/base", "adapter")
    assert {"text-to-image", "diffusers", "lora", "tastemaker", "ddpo"} <= set(found["tags"])
    assert found["library_name"] == "diffusers" and "license" not in found
    whole = head(text_of(tmp_path / "whole", lora=None))
    assert whole["base_model_relation"] == "finetune" and "lora" not in whole["tags"]
    moved = head(text_of(tmp_path / "moved", model="runwayml/stable-diffusion-v1-5"))
    assert moved["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    (tmp_path / "models" / "mine").mkdir(parents=True)
    local = ("shapes", "models/mine", str(tmp_path / "models" / "mine"), "models/one.safetensors")
    for number, model in enumerate(local):
        assert "base_model" not in head(text_of(tmp_path / str(number), model=model)), model


@pytest.mark.parametrize(
    ("settings", "repo", "lines"),
    [
        ({"revision": "v2"}, "jane/run", ['from_pretrained("owner/base", revision="v2")', 'weights("jane/run")']),
        ({"model": "shapes"}, "jane/run", ['plain(find("shapes"), torch.float32)', 'weights("jane/run")']),
        ({"model": "/home/x/mine"}, "jane/run", ['from_pretrained("mine")', "# the base model was a local folder"]),
        ({"model": "/x/a.safetensors"}, "jane/run", ['from_single_file("a.safetensors")', 'weights("jane/run")']),
        ({"lora": None}, "jane/run", ['from_pretrained("jane/run")']),
        ({}, None, ['tm.Run.open("run").pipeline()']),
        ({"resolution": "64", "negative_prompt": "fog"}, "j/r", ["height=64, width=64", 'negative_prompt="fog"']),
    ],
)
def test_it_says_how_to_load_it(tmp_path: Path, settings: Any, repo: str | None, lines: list[str]) -> None:
    code = snippet(text_of(tmp_path / "run", repo, **settings))
    compile(code, "card", "exec")
    assert 'pipe("a \\"cat\\"", num_inference_steps=20, guidance_scale=7.5' in code
    for line in lines:
        assert line in code
    assert ("load_lora_weights" in code) == (repo is not None and "lora" not in settings)


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        (change(0.1, 0.2), "**rose**"),
        (change(-0.2, -0.1), "**fell**"),
        (change(-0.2, 0.1), "**this run shows no clear change.**"),
        (change(None, None), "**this run shows no clear change.**"),
    ],
)
def test_a_change_is_claimed_only_where_the_interval_shows_it(tmp_path: Path, trained: Any, said: str) -> None:
    text = text_of(tmp_path, rewards={"jpeg_compressibility": trained}, evaluation={"count": "12"})
    assert [one for one in ("**rose**", "**fell**", "no clear change") if one in text] == [
        one for one in ("**rose**", "**fell**", "no clear change") if one in said
    ]
    assert "No other reward was measured beside it" in text and "With fewer than 20 prompts" in text
    assert "[–, –]" in text if trained["low"] is None else "–" not in text


def test_evaluation_on_the_training_prompts_is_said(tmp_path: Path) -> None:
    text = text_of(tmp_path / "own", judged="animals (the training prompts)")
    assert "pictures of `animals` by" in text and "the prompts that it was trained on" in text
    assert "the prompts that it was trained on" not in text_of(tmp_path / "others")


def test_a_list_of_prompts_is_counted_and_begun(tmp_path: Path) -> None:
    text = text_of(tmp_path, prompts=[f"prompt {k}" for k in range(40)])
    assert "40 training prompts, the first of them `prompt 0`, `prompt 1`, `prompt 2`." in text
    assert "`prompt 3`" not in text and "| `prompts` | `40 of them` | the user |" in text


EVIL = [
    "a | b",
    "<script>alert(1)</script>",
    "x`y``z",
    "](javascript:alert(1))",
    "![p](http://x.org/p.png)",
    "*b* _i_ ~s~",
    "<!-- ",
    "&lt;b&gt;",
    "http://evil.org www.evil.org",
    "a\n\n# title\n\n- point",
    "{{ 7 * 7 }}",
    "```\n\ntext",
]


def shape(reader: MarkdownIt, text: str) -> list[str]:
    """What a card is made of: blocks, links, tags; without its words."""
    tokens = [part for one in reader.parse(text) for part in (one, *(one.children or ()))]
    marks = [f"{one.type} {one.attrGet('href') or one.attrGet('src') or ''}" for one in tokens]
    return [one for one in marks if not re.match(r"(text|softbreak|text_special) ", one)]


@pytest.mark.parametrize("evil", EVIL)
def test_texts_are_shown_and_do_nothing(tmp_path: Path, evil: str) -> None:
    """The card is read as CommonMark with HTML and tables: the texts are in it, as text alone."""

    def written(folder: Path, word: str, setting: str) -> str:
        rewards = {f"r{word}": change(), f"r{word}.part": change(), f"h{word}": change()}
        return text_of(folder, rewards=rewards, prompts=[setting], judged=f"j{word}", negative_prompt=setting)

    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    clean = written(tmp_path / "clean", "", "p")
    text = written(tmp_path / "evil", evil, " ".join(evil.split()))
    assert shape(reader, text) == shape(reader, clean)
    shown = {" ".join(one.split()) for one in (evil, f"r{evil}", f"r{evil}.part", f"h{evil}", f"j{evil}")}
    codes = [part.content for one in reader.parse(text) for part in one.children or () if part.type == "code_inline"]
    assert shown <= set(codes)
    compile(snippet(text), "card", "exec")


def test_nothing_names_the_machine(tmp_path: Path) -> None:
    home = "/home/jane doe/secret"
    settings = {
        "model": f"{home}/mine",
        "reward": f"{home}/mine.py:sharpness",
        "held_out_rewards": [f"{home}/mine.py:blur"],
        "prompts": {"name": "nouns_activities", "nouns": f"{home}/nouns.txt"},
        "output_dir": f"{home}/run",
        "evaluation": {"prompts": "C:\\Users\\jane\\secret\\heldout.csv#caption"},
    }
    judged = f"nouns_activities (nouns {home}/nouns.txt)"
    run = Finished.read(make(tmp_path / "run", judged=judged, **settings))
    for text in (card.render(run), run.config, run.lines("evaluations").decode()):
        assert "jane" not in text and "secret" not in text, text
    assert "| `reward` | `mine.py:sharpness` | the user |" in card.render(run)
    assert "of `nouns_activities (nouns nouns.txt)` by" in card.render(run)
    found = yaml.safe_load(run.config)
    assert (found["model"], found["evaluation"]["prompts"]) == ("mine", "heldout.csv#caption")
    assert "\n  clip: 0.0001" in run.config and "# paper\n" in run.config


def test_hub_names_prompts_and_addresses_are_no_paths(tmp_path: Path) -> None:
    prompts = ["a cat/dog", "and/or", "~50 cats", "hub:owner/name", "1:2"]
    run = Finished.read(make(tmp_path, prompts=prompts, reward={"name": "remote", "url": "http://jane:pw@host/score"}))
    assert run.settings["model"] == "owner/base" and run.settings["prompts"] == prompts
    assert run.settings["reward"]["url"] == "http://(removed)@host/score"


def test_keys_are_taken_out(tmp_path: Path) -> None:
    key = "hf_" + "x" * 34
    headers = {"x-api-key": "abc", "Authorization": "Basic abc", "accept": "*"}
    reward = {"name": "remote", "header": f"Bearer {key}", "tokens": ["abc"], "max_tokens": 5, "headers": headers}
    reward |= {"credentials": {"user": "abc", "more": ["abc"]}, "url": "http://jane:abc@host/score?api_key=abc"}
    run = Finished.read(make(tmp_path, reward=reward, prompts=[f"a {key}"]))
    for text in (run.config, card.render(run)):
        assert key not in text and "abc" not in text
    found = yaml.safe_load(run.config)
    assert found == run.settings and found["prompts"] == ["a (removed)"] and "\n  clip: 0.0001" in run.config
    assert found["reward"] == {
        "name": "remote",
        "header": "Bearer (removed)",
        "tokens": ["(removed)"],
        "max_tokens": 5,
        "headers": {"x-api-key": "(removed)", "Authorization": "(removed)", "accept": "*"},
        "credentials": {"user": "(removed)", "more": ["(removed)"]},
        "url": "http://(removed)@host/score?(removed)",
    }


def test_a_key_in_a_prompt_that_was_drawn_is_taken_out(tmp_path: Path) -> None:
    folder, key = make(tmp_path), "ghp_" + "x" * 36
    path = folder / "samples.jsonl"
    path.write_text(path.read_text().replace("cat", key))
    assert key not in card.render(Finished.read(folder)) and 'pipe("a ' in card.render(Finished.read(folder))


def test_a_reward_that_is_called_like_a_secret_keeps_its_numbers(tmp_path: Path) -> None:
    text = text_of(tmp_path, rewards={"secret_token": change()})
    assert "| `secret_token` | trained on | 0 | 2 | +1 [+0.5, +1.5] | +1.25 | 75% |" in text


def test_a_config_of_several_lines_keeps_its_values(tmp_path: Path) -> None:
    run = Finished.read(make(tmp_path, negative_prompt="fog\nrain", model="/home/jane/mine"))
    assert yaml.safe_load(run.config) == run.settings and run.settings["negative_prompt"] == "fog\nrain"
    assert "`mine`" in card.render(run)


def test_a_card_is_written_anew_until_somebody_edits_it(tmp_path: Path) -> None:
    folder = make(tmp_path)
    path = card.write(folder)
    assert path == folder / "README.md" and "tm.Run.open" in path.read_text() and not card.is_edited(path)
    card.write(folder, "jane/run")
    assert 'load_lora_weights("jane/run")' in path.read_text()
    edited = path.read_text().replace("pipeline_tag", "license: mit\npipeline_tag")
    path.write_text(edited)
    card.write(folder, "jane/other")
    assert path.read_text() == edited and card.is_edited(path)


@pytest.mark.parametrize("more", ["\n## My notes\n\nmine\n", "mine", "\n"])
def test_a_card_with_something_behind_the_stamp_is_edited(tmp_path: Path, more: str) -> None:
    folder = make(tmp_path)
    path = card.write(folder)
    edited = path.read_text() + more
    path.write_text(edited)
    card.write(folder, "jane/other")
    assert path.read_text() == edited and card.is_edited(path)


@pytest.mark.parametrize("missing", ["lora/pytorch_lora_weights.safetensors", "evaluations.jsonl", ""])
def test_a_run_that_has_not_ended_is_refused_with_what_to_do(tmp_path: Path, missing: str) -> None:
    folder = make(tmp_path / "my run", iterations=2 if missing else 1)
    if missing:
        (folder / missing).unlink()
    command = f"tastemaker train '{folder}/config.yaml' --output_dir '{folder}' --resume_from_checkpoint latest"
    with pytest.raises(ValueError, match="has not ended") as caught:
        card.write(folder)
    assert command in str(caught.value) and not (folder / "README.md").exists()


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.yaml"):
        card.write(tmp_path)


def test_the_prompts_of_the_evaluations_stay_here(tmp_path: Path) -> None:
    folder = make(tmp_path)
    file = folder / "evaluations.jsonl"
    file.write_text(file.read_text().replace('"values": {}', '"values": {}, "texts": ["my own idea"], "groups": [0]'))
    assert b"my own idea" not in Finished.read(folder).lines("evaluations")

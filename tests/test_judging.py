"""Models side by side: tables that equal their JSON, verdicts that are not made twice, seeds that are summed up."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import runs
from tastemaker import judging
from tastemaker.evaluation.statistics import over_seeds


def judged(*words: str, prompts: str = "train") -> str:
    return runs.train(["evaluate", "--device", "cpu", "--evaluation.prompts", prompts, *words]).out


def numbers(*words: str, file: Path, prompts: str = "train") -> dict[str, Any]:
    judged(*words, "--output", str(file), prompts=prompts)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_a_run_is_judged_to_the_numbers_it_wrote_itself(tmp_path: Path) -> None:
    folder, _ = runs.finished()
    found = numbers(str(folder), file=tmp_path / "numbers.json")
    assert (tmp_path / "numbers.json").read_bytes() == (
        numbers("--run", str(folder), file=tmp_path / "again.json") and (tmp_path / "again.json").read_bytes()
    )
    assert found["prompts"].endswith("prompts.txt (the training prompts)") and found["metric"] == ""
    base, tuned = found["rows"]
    assert base["base"] == tuned["base"] == base["name"] == "tiny-model" and tuned["name"] == "finished"
    for row, own in zip((base, tuned), runs.rows(folder, "evaluations"), strict=True):
        score = row["scores"]["brightness"]
        for end in ("mean", "low", "high"):
            assert math.isclose(score[end], own["reward"]["brightness"][end], abs_tol=1e-5)
            name = "change" if end == "mean" else f"change_{end}"
            assert math.isclose(score[name], own["change"]["brightness"][end], abs_tol=1e-5)
    assert base["scores"]["brightness"]["change"] == 0 and tuned["scores"]["brightness"]["change"] != 0


def test_the_table_the_json_and_the_csv_say_the_same(tmp_path: Path) -> None:
    folder, _ = runs.finished()
    out = judged(str(folder), "--output", str(tmp_path / "all"), "--evaluation.images_per_prompt", "2")
    found = json.loads((tmp_path / "all" / "evaluation.json").read_text())
    lines = list(csv.DictReader(io.StringIO((tmp_path / "all" / "evaluation.csv").read_text())))
    assert [(line["model"], line["score"]) for line in lines] == [
        (row["name"], score) for row in found["rows"] for score in row["scores"]
    ]
    for line in lines:
        row = next(row for row in found["rows"] if row["name"] == line["model"])
        for name, value in row["scores"][line["score"]].items():
            assert line[name] == ("" if value is None else repr(value))
    tuned = found["rows"][1]["scores"]["brightness"]
    shown = next(line for line in out.splitlines() if line.startswith("finished"))
    ends = f"{tuned['change']:+.3g}   [{tuned['change_low']:+.3g}, {tuned['change_high']:+.3g}]"
    assert re.sub(r" {2,}", "   ", shown).startswith(f"finished   {tuned['mean']:.4g}   {ends}")
    assert "diversity, pixels (mean squared)" in out and found["metric"] == "pixels (mean squared)"
    assert found["rows"][1]["scores"]["diversity"]["wins"] is None


def test_what_is_done_is_not_done_again_until_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs.finished()[0], run)
    asked = ("run", "--output", "all", "--evaluation.count", "2")
    monkeypatch.chdir(tmp_path)
    first = judged(*asked)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "all").rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(judging, "judge", lambda *_, **__: pytest.fail("judged again"))
        again = judged(*asked)
    assert [line for line in first.splitlines() if not line.startswith("judging")] == again.splitlines()
    assert {path.name: path.read_bytes() for path in (tmp_path / "all").rglob("*") if path.is_file()} == kept
    with Image.open(tmp_path / "all" / "images" / "run" / "0.png") as picture:
        assert picture.size == (16, 16)
    listed = tmp_path / "all" / "images" / "run" / "samples.jsonl"
    assert [json.loads(line).get("file") for line in listed.read_text().splitlines()] == [None, "0.png", "1.png"]
    listed.unlink()  # as an earlier version left it
    judged(*asked)
    assert listed.read_bytes() == kept[listed.name]
    made = []
    monkeypatch.setattr(judging, "judge", lambda *a, real=judging.judge, **k: made.append(1) or real(*a, **k))
    (run / runs.LORA).touch()  # trained again: only the run is
    judged(*asked)
    assert len(made) == 1
    judged("run", "--output", "all", "--evaluation.count", "3")
    assert len(made) == 3


@pytest.mark.slow
def test_runs_that_differ_in_their_seed_are_summed_up(tmp_path: Path) -> None:
    places = [tmp_path / f"run-{seed}" for seed in (1, 2, 3)]
    for seed, place in enumerate(places, 1):
        runs.train(runs.small(place, "--seed", str(seed), "--save_samples", "0", "--evaluation.count", "2"))
    other = runs.plain()
    words = [str(place) for place in (*places, other)]
    found = numbers(*words, file=tmp_path / "numbers.json")
    assert [row["name"] for row in found["rows"]] == ["tiny-model", "run-1", "run-2", "run-3", "plain"]
    (seeds,) = found["seeds"]
    assert seeds["names"] == ["run-1", "run-2", "run-3"]
    changes = [row["scores"]["brightness"]["change"] for row in found["rows"][1:4]]
    assert len(set(changes)) == 3
    assert seeds["changes"]["brightness"] == over_seeds(changes)._asdict()
    assert found["seed"] == 1  # one noise for all
    assert "over 3 seeds" in judged(*words)
    few = ("--evaluation.count", "1", "--evaluation.steps", "2")
    found = numbers(*words[:2], "--anneal", "linear,step:.5", *few, file=tmp_path / "rules.json")
    names = [["run-1, linear", "run-2, linear"], ["run-1, step:0.5", "run-2, step:0.5"]]
    assert [group["names"] for group in found["seeds"]] == names


def test_models_lora_files_and_names_that_are_equal(tmp_path: Path) -> None:
    folder, _ = runs.finished()
    prompts = str(runs.home() / "prompts.txt")
    like = ("--model", runs.model(), "--rewards", runs.reward("brightness"), "--evaluation.count", "4")
    like += ("--evaluation.steps", "3", "--evaluation.guidance", "2")
    file = str(folder / runs.LORA)
    found = numbers(file, str(folder / "lora"), "base", *like, file=tmp_path / "numbers.json", prompts=prompts)
    names = [row["name"] for row in found["rows"]]
    assert names == ["tiny-model", "finished", "finished #2"]
    own = numbers(str(folder), file=tmp_path / "own.json")
    assert found["rows"][1]["scores"] == found["rows"][2]["scores"] == own["rows"][1]["scores"]


def test_another_judge_other_prompts_and_the_training_chain(tmp_path: Path) -> None:
    folder, _ = runs.finished()
    (tmp_path / "own.txt").write_text("a cat\na pig\n")
    asked = (str(folder), "--rewards", f"{runs.reward('redness')},{runs.reward('brightness')}")
    asked += ("--evaluation.images_per_prompt", "2", "--evaluation.count", "2")
    out = judged(*asked, prompts=str(tmp_path / "own.txt"))
    assert f"4 pictures of {tmp_path / 'own.txt'} by each model" in out
    names = [line.strip() for line in out.splitlines() if line and line[0].isalpha() and "   " not in line.strip()]
    assert [name for name in names if "ness" in name] == ["redness", "redness.green", "redness.blue", "brightness"]
    drawn = judged(*asked, "--evaluation.sampler", "train", prompts=str(tmp_path / "own.txt"))
    assert drawn != out and "train sampler" in drawn


def test_a_run_of_the_whole_network_is_judged_against_its_base(tmp_path: Path) -> None:
    run = tmp_path / "run"
    runs.train(runs.small(run, "--no-lora", "--evaluation.count", "2", "--save_samples", "0"))
    found = numbers(str(run), file=tmp_path / "numbers.json")["rows"][1]["scores"]["brightness"]
    change = runs.rows(run, "evaluations")[-1]["change"]["brightness"]["mean"]
    assert math.isclose(found["change"], change, rel_tol=1e-3) and abs(change) > 1e-3


def test_a_set_with_a_held_out_sibling_is_judged_by_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    runs.train(runs.small(run, "--prompts", "animals"))
    assert runs.rows(run, "evaluations")[0]["prompts"] == "animals_heldout"
    own = tmp_path / "own"
    runs.train(runs.small(own, "--prompts", "animals", "--evaluation.prompts", "train"))
    assert runs.rows(own, "evaluations")[0]["prompts"] == "animals (the training prompts)"


MIXED = ("--evaluation.count", "2", "--evaluation.images_per_prompt", "2")


def test_weights_and_rules_are_models_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = str(runs.finished()[0]), tmp_path / "all"
    asked = (run, "--mix", "0", ".5", "1", "--anneal", "base,tuned,linear", "--output", str(out), *MIXED)
    judgements = []
    real = judging.judge
    monkeypatch.setattr(judging, "judge", lambda *a, **k: judgements.append(1) or real(*a, **k))
    judged(*asked)
    chart = (out / "diversity.svg").read_text()
    assert len(judgements) == 4  # the base, its half, the run, and linear: the others are one of these
    found = json.loads((out / "evaluation.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    names = ["tiny-model", "0 finished", "0.5 finished", "1 finished"]
    assert list(rows) == [*names, "finished, base", "finished, tuned", "finished, linear"]
    assert rows["0.5 finished"]["mix"] == {"finished": 0.5} and rows["finished, linear"]["anneal"] == "linear"
    scores = {name: row["scores"] for name, row in rows.items()}
    for base in ("0 finished", "finished, base"):
        assert scores[base]["brightness"]["mean"] == scores["tiny-model"]["brightness"]["mean"]
        assert scores[base]["brightness"]["change"] == 0
    assert scores["1 finished"] == scores["finished, tuned"]
    apart = [scores[name]["brightness"]["mean"] for name in (*names[1:], "finished, linear")]
    assert len(set(apart)) == 4
    texts = [text.text for text in ElementTree.fromstring(chart).iter("{http://www.w3.org/2000/svg}text")]
    for said in ("from tiny-model to finished", "finished, annealed", "diversity, pixels (mean squared)", "brightness"):
        assert said in texts, said
    for label in ("0.5", "linear", "1, tuned", "tiny-model, 0, base"):  # points in one place share a text
        assert texts.count(label) == 1, (label, texts)
    x, y = (scores["0.5 finished"][name]["mean"] for name in ("diversity", "brightness"))
    place = f"{x:g}, brightness {y:.4g}"
    assert f"<title>from tiny-model to finished: diversity, pixels (mean squared) {place}</title>" in chart
    judged(*asked)
    assert len(judgements) == 4  # all were kept
    judged(run, "--mix", "-.5", "--anneal", "power:2,linear", "--output", str(out), *MIXED)
    assert len(judgements) == 6
    judged(run, "--mix", ".5", "--output", str(tmp_path / "single"), "--evaluation.count", "1")
    assert not (tmp_path / "single" / "diversity.svg").exists()  # one picture a prompt has no diversity
    plain = judged(run, *MIXED, "--output", str(tmp_path / "run.json"))
    own = json.loads((tmp_path / "run.json").read_text())["rows"][1]["scores"]
    assert own == scores["1 finished"] and plain.count("judging") == 2


def test_between_two_runs_lies_their_mix(tmp_path: Path) -> None:
    one, two = str(runs.finished()[0]), str(runs.plain())
    few = ("--evaluation.count", "2")
    found = numbers(one, two, "--mix", "0", ".25", "1", *few, file=tmp_path / "mix.json")
    assert [row["name"] for row in found["rows"]] == [
        "tiny-model",
        "1 finished + 0 plain",
        "0.75 finished + 0.25 plain",
        "0 finished + 1 plain",
    ]
    file = runs.train(["mix", one, two, "--weights", ".75", ".25", "--output", str(tmp_path)]).out.split()[-1]
    like = ("--model", runs.model(), "--rewards", runs.reward("brightness"), "--evaluation.steps", "3")
    prompts = str(runs.home() / "prompts.txt")
    own = numbers(file, *like, "--evaluation.guidance", "2", *few, file=tmp_path / "own.json", prompts=prompts)
    assert own["rows"][1]["scores"] == found["rows"][2]["scores"]
    apart = {row["scores"]["brightness"]["mean"] for row in found["rows"]}
    assert len(apart) == 4


def test_judging_disturbs_no_global_generator() -> None:
    before = torch.get_rng_state()
    judged(str(runs.plain()), "--evaluation.count", "1")
    assert torch.equal(before, torch.get_rng_state())


def test_runs_of_a_sweep_are_told_apart_and_one_prompt_fills_the_grid(tmp_path: Path) -> None:
    folder, _ = runs.finished()
    for variant in ("kl=0", "kl=1"):
        shutil.copytree(folder, tmp_path / variant / "seed-0")
    words = [str(tmp_path / variant / "seed-0") for variant in ("kl=0", "kl=1")]
    few = ("--evaluation.count", "1", "--evaluation.images_per_prompt", "3", "--evaluation.steps", "2")
    judged(*words, *few, "--output", str(tmp_path / "out"), prompts="text:a red circle")
    rows = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["tiny-model", "kl=0/seed-0", "kl=1/seed-0"]
    assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == {
        "tiny-model",
        "kl-0-seed-0",
        "kl-1-seed-0",
    }
    with Image.open(tmp_path / "out" / "grid.png") as sheet:
        width, height = sheet.size
    assert width > height > 400  # three pictures across, three down, and the names beside them


def test_pictures_of_another_noise_are_not_taken_for_those_of_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = str(runs.finished()[0]), tmp_path / "all"
    few = ("--evaluation.count", "1", "--evaluation.steps", "2", "--output", str(out))
    made = []
    real = judging.judge
    monkeypatch.setattr(judging, "judge", lambda *a, **k: made.append(1) or real(*a, **k))
    grids = []
    for seed in ("0", "1", "0", "0"):
        judged(run, "--seed", seed, *few)
        grids.append((out / "grid.png").read_bytes())
    assert grids[0] == grids[2] == grids[3] != grids[1] and len(made) == 6  # the base and the run, three times


def test_a_term_of_a_sum_that_changes_is_another_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, out = tmp_path / "mine.py", tmp_path / "all"
    asked = (str(runs.finished()[0]), "--evaluation.count", "1", "--evaluation.steps", "2", "--output", str(out))
    found = []
    for factor in (1, 1000):
        file.write_text(f"def bright(images, prompts):\n    return {factor} * images.mean((1, 2, 3))\n")
        judged(*asked, "--rewards", f"{file}:bright:2")
        rows = json.loads((out / "evaluation.json").read_text())["rows"]
        found.append(next(iter(rows[0]["scores"].values()))["mean"])
    assert found[1] == pytest.approx(1000 * found[0], rel=1e-4)


def test_distances_of_two_metrics_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = str(runs.finished()[0]), tmp_path / "all"
    few = ("--evaluation.count", "1", "--evaluation.images_per_prompt", "2", "--evaluation.steps", "2")
    judged(run, *few, "--output", str(out))
    real = judging.metric_for
    monkeypatch.setattr(judging, "metric_for", lambda *a, **k: replace(real(*a, **k), name="LPIPS"))
    asked = ("evaluate", "--device", "cpu", "--evaluation.prompts", "train", run, *few, "--output", str(out))
    ran = runs.call(*asked, "--mix", ".5")
    said = "measured diversity as pixels (mean squared), now it would be LPIPS, and the two cannot be compared"
    assert ran.code == 2 and said in ran.err


def test_a_mix_of_a_lora_for_another_model_is_refused(tmp_path: Path) -> None:
    weights = load_file(runs.finished()[0] / runs.LORA)
    layer = next(iter(weights)).partition(".lora")[0]
    pair = {name: weight for name, weight in weights.items() if name.startswith(layer)}
    more = {re.sub(r"(down|up)_blocks\.\d", "down_blocks.7", name): weight.clone() for name, weight in pair.items()}
    save_file(weights | more, tmp_path / "other.safetensors")
    asked = ("evaluate", str(tmp_path / "other.safetensors"), "--model", runs.model(), "--device", "cpu", "--mix", ".5")
    ran = runs.call(*asked, "--rewards", runs.reward("brightness"), "--evaluation.prompts", "text:a red circle")
    assert ran.code == 2 and "has no layer for 'down_blocks.7" in ran.err and "Use the model that" in ran.err, ran.err

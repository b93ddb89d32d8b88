"""`sample` and `evaluate`: pictures and judgements of what a run left."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

import runs


def grid_of(*words: str) -> Path:
    ran = runs.train(["sample", "--device", "cpu", *words])
    path = Path(ran.out.strip())
    assert path.name == "grid.png" and ran.out == f"  {path}\n"
    return path


def pictures(grid: Path) -> list[bytes]:
    found = []
    for k in range(len([path for path in grid.parent.iterdir() if path != grid])):
        with Image.open(grid.parent / f"{k}.png") as picture:
            assert picture.size == (16, 16)
            found.append(picture.tobytes())
    return found


def test_a_run_and_its_lora_file_draw_the_same(tmp_path: Path) -> None:
    folder, _ = runs.finished()
    few = ("--count", "3", "--seed", "5")
    by_run = grid_of("--run", str(folder), *few, "--output_dir", str(tmp_path / "a" / "run"))
    with Image.open(by_run) as sheet:
        assert sheet.width > 3 * 16
    drawn = pictures(by_run)
    assert len(drawn) == len(set(drawn)) == 3
    like = ("--model", runs.model(), "--prompts", str(runs.home() / "prompts.txt"), "--steps", "3", "--guidance", "2")
    lora = grid_of(*like, "--lora", str(folder / runs.LORA), *few, "--output_dir", str(tmp_path / "lora"))
    base = grid_of(*like, *few, "--output_dir", str(tmp_path / "base"))
    assert pictures(lora) == drawn != pictures(base)


def test_prompts_may_be_typed_and_everything_has_an_effect(tmp_path: Path) -> None:
    def drawn(name: str, *words: str) -> list[bytes]:
        like = ("--model", runs.model(), "--prompts", "text:a cat", "--steps", "2", "--guidance", "2", "--count", "2")
        return pictures(grid_of(*like, *words, "--output_dir", str(tmp_path / name)))

    plain = drawn("plain")
    assert plain[0] != plain[1] and drawn("again") == plain  # two pictures of one prompt, the same every time
    for name, words in {
        "prompts": ("--prompts", "text:bad luck"),
        "negative": ("--negative_prompt", "bad luck"),
        "seed": ("--seed", "1"),
        "steps": ("--steps", "3"),
        "guidance": ("--guidance", "5"),
    }.items():
        assert drawn(name, *words) != plain, name


def judged(*words: str) -> str:
    return runs.train(["evaluate", "--device", "cpu", *words]).out


def test_evaluating_twice_gives_the_same_numbers_as_the_run_itself(tmp_path: Path) -> None:
    folder, ran = runs.finished()
    first = judged(str(folder), "--output", str(tmp_path / "numbers.json"))
    assert judged("--run", str(folder), "--output", str(tmp_path / "again.json")) == first
    assert (tmp_path / "numbers.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    assert first.splitlines()[0] in ran.out and first.splitlines()[1].startswith("  brightness  ")
    found = json.loads((tmp_path / "numbers.json").read_text())["brightness"]
    before, after = runs.rows(folder, "evaluations")
    for key, row in (("base", before), ("tuned", after)):
        expected = row["reward"]["brightness"]
        assert set(found[key]) == {"mean", "low", "high"}
        assert all(math.isclose(found[key][end], expected[end], abs_tol=1e-5) for end in expected)
    change = after["change"]["brightness"]
    assert math.isclose(found["change"]["mean"], change["mean"], abs_tol=1e-5)
    assert math.isclose(found["deviations"], change["deviations"], rel_tol=1e-2)


def test_another_judge_other_prompts_and_the_training_chain(tmp_path: Path) -> None:
    folder, _ = runs.finished()
    other = ("--rewards", f"{runs.reward('redness')},{runs.reward('brightness')}")
    asked = ("--evaluation.prompts", str(tmp_path / "own.txt"), "--evaluation.images_per_prompt", "2")
    (tmp_path / "own.txt").write_text("a cat\na pig\n")
    out = judged(str(folder), *other, *asked, "--evaluation.count", "2")
    assert out.startswith(f"4 pictures of {tmp_path / 'own.txt'}, same prompts and noise")
    names = [line.split()[0] for line in out.splitlines()[1:]]
    assert names == ["redness", "redness.green", "redness.blue", "brightness"]
    drawn = judged(str(folder), *other, *asked, "--evaluation.count", "2", "--evaluation.sampler", "train")
    assert drawn.splitlines()[0] == out.splitlines()[0] and drawn.splitlines()[1:] != out.splitlines()[1:]


def test_a_lora_file_is_judged_without_a_run(tmp_path: Path) -> None:
    folder, _ = runs.finished()
    like = ("--model", runs.model(), "--lora", str(folder / runs.LORA), "--rewards", runs.reward("brightness"))
    more = ("--evaluation.prompts", str(runs.home() / "prompts.txt"), "--evaluation.steps", "3")
    out = judged(*like, *more, "--evaluation.guidance", "2", "--evaluation.count", "4")
    assert out.splitlines()[1:] == judged(str(folder)).splitlines()[1:]


MISTAKES = [
    ("sample --modle x", "--modle is not a flag of tastemaker sample.  Did you mean `--model`?"),
    ("sample --prompts text:x", "there is neither --run nor --model: name one."),
    ("sample --model {model}", "there are no --prompts: name a set, a text file, or write --prompts 'text:"),
    (
        "sample --model {model} --prompts shaps",
        "--prompts: `shaps` is not the name of a prompt set. Did you mean `shapes`",
    ),
    ("sample --model {home}/no --prompts text:x", "--model {home}/no: no such folder."),
    ("sample --model {model} --prompts text:x --count some", "--count is 'some'; it is a whole number."),
    ("sample --model {model} --prompts text:x --count 0", "--count is 0; it is positive."),
    ("sample --model {model} --prompts text:x --guidance high", "--guidance is 'high'; it is a number."),
    ("sample --model {model} --prompts text:x --resolution big", "--resolution is 'big'; it is a whole number."),
    ("sample --model {model} --prompts text:x --resolution 18", "--resolution 18 does not fit --model {model}"),
    ("sample --model {model} --prompts", "--prompts needs a value."),
    ("sample --model {model} --prompts text:x --lora no.safetensors", "--lora no.safetensors"),
    ("sample --model {model} --prompts text:x --lora.rank 8", "--lora.KEY has no effect without a file"),
    ("sample --model {model} --prompts text:x --lora x --lora.rnk 8", "--lora.rnk is not a setting of lora."),
    (
        "sample --model {model} --prompts text:x --guidance 1 --negative_prompt y",
        "--negative_prompt has no effect at --guidance 1.0, which is none.",
    ),
    ("sample --run {done} --model {model}", "--model has no effect beside --run, which has one of its own"),
    ("sample --run {home}", "--run {home} holds no config.yaml: name a folder that `tastemaker train` left."),
    ("sample a cat", "sample takes no plain words, found 'a'. Write --prompts 'text:a cat'."),
    ("evaluate {done} {done}", "evaluate takes one run, found "),
    ("evaluate --model {model}", "there is nothing to compare with the base model: give --run FOLDER or --lora FILE."),
    ("evaluate --model {model} --lora x", "there are no prompts to judge by: give --evaluation.prompts"),
    ("evaluate {done} --evaluation.cuont 3", "--evaluation.cuont is not a setting of evaluation."),
    ("evaluate {done} --evaluation 3", "--evaluation is a group of settings, --evaluation.KEY; found '3'."),
    ("evaluate {done} --evaluation.prompts no.txt", "--evaluation.prompts: no.txt does not exist"),
    ("evaluate {done} --rewards jpeg", "--rewards: `jpeg` is not the name of a reward."),
    ("evaluate {done} --reward jpeg", "--reward is not a flag of tastemaker evaluate.  Did you mean `--rewards`?"),
    ("evaluate {done} --output {home}/no/x.json", "--output {home}/no/x.json: there is no folder {home}/no."),
]


@pytest.mark.parametrize(("line", "said"), MISTAKES)
def test_a_mistake_is_one_message_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)

    def filled(text: str) -> str:
        folder = str(runs.finished()[0]) if "{done}" in text else ""
        return text.replace("{home}", str(runs.home())).replace("{model}", runs.model()).replace("{done}", folder)

    ran = runs.call(*filled(line).split())
    assert (ran.code, ran.out) == (2, "") and ran.err.count("\n") == 1, ran.err
    assert ran.err.startswith(f"tastemaker: {filled(said)}")
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_the_whole_network_is_drawn_with_and_judged(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ran = runs.train(runs.small(run, "--no-lora", "--evaluation.count", "2", "--save_samples", "0"))
    out = judged(str(run), "--output", str(tmp_path / "numbers.json"))
    assert out in ran.out
    found = json.loads((tmp_path / "numbers.json").read_text())["brightness"]
    change = runs.rows(run, "evaluations")[-1]["change"]["brightness"]["mean"]
    assert math.isclose(found["change"]["mean"], change, rel_tol=1e-3) and abs(change) > 1e-3
    few = ("--prompts", "text:a cat", "--count", "1", "--steps", "2", "--guidance", "2")
    places = {
        "run": ("--run", str(run)),
        "tuned": ("--model", str(run / "pipeline")),
        "base": ("--model", runs.model()),
    }
    run_, tuned, base = (
        pictures(grid_of(*which, *few, "--output_dir", str(tmp_path / "drawn" / name)))
        for name, which in places.items()
    )
    assert run_ == tuned != base


def test_a_run_without_a_lora_file_is_not_a_run_to_draw_with(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((runs.finished()[0] / "config.yaml").read_text())
    for command in ("sample", "evaluate"):
        ran = runs.call(command, "--run", str(tmp_path))
        assert ran.code == 2 and f"--run {tmp_path} holds no {runs.LORA}: the run has not ended" in ran.err
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text[: text.index("lora:")] + "lora: null\n")
    assert (
        f"--run {tmp_path} holds no pipeline: the run has not ended" in runs.call("sample", "--run", str(tmp_path)).err
    )


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    like = ("--model", runs.model(), "--prompts", "text:x", "--device", "cpu", "--steps", "1", "--count", "1")
    ran = runs.call("sample", *like, "--output_dir", str(tmp_path / "file" / "x"))
    assert ran.code == 2 and ran.err.startswith(f"tastemaker: --output_dir {tmp_path}/file/x cannot be made: Not a dir")


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_help_names_every_flag(command: str) -> None:
    ran = runs.train([command, "--help"])
    assert ran.out.startswith(f"tastemaker {command} ") and "--run" in ran.out and "--model" in ran.out

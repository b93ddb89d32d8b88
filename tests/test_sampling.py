"""`sample` and `evaluate`: pictures and judgements of what a run left."""

from __future__ import annotations

import json
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
    for k in range(len(list(grid.parent.glob("[0-9]*.png")))):
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
    listed = [json.loads(line) for line in (by_run.parent / "samples.jsonl").read_text().splitlines()]
    assert listed[0] == {"schema": 1, "kind": "samples"} and [row["file"] for row in listed[1:]] == [
        f"{k}.png" for k in range(3)
    ]
    assert {row["prompt"] for row in listed[1:]} <= set((runs.home() / "prompts.txt").read_text().splitlines())
    lora = grid_of(*like, "--lora", str(folder / runs.LORA), *few, "--output_dir", str(tmp_path / "lora"))
    base = grid_of(*like, *few, "--output_dir", str(tmp_path / "base"))
    assert pictures(lora) == drawn != pictures(base)


def test_a_rule_leads_from_the_base_to_the_run(tmp_path: Path) -> None:
    def drawn(name: str, *words: str) -> list[bytes]:
        like = ("--prompts", "text:a cat", "--count", "2", "--steps", "4")
        return pictures(grid_of(*words, *like, "--output_dir", str(tmp_path / name)))

    run = ("--run", str(runs.finished()[0]))
    tuned, base = drawn("tuned", *run), drawn("base", "--model", runs.model(), "--guidance", "2")
    by_rule = {rule: drawn(rule, *run, "--anneal", rule) for rule in ("base", "tuned", "linear", "step:0.5")}
    assert by_rule["base"] == base and by_rule["tuned"] == tuned
    assert len({tuple(found) for found in by_rule.values()}) == 4


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
    ("sample --model {model} --prompts text:x --resolution 17", "--resolution 17 does not fit --model {model}"),
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
    ("evaluate", "there is neither --run nor --model: name one."),
    ("evaluate base", "`base` is the base of what? Name a run, or the model with --model."),
    ("evaluate {home}", "{home} holds no config.yaml: name a folder that `tastemaker train` left."),
    ("evaluate {home}/no --evaluation.prompts animals", "--model {home}/no: no such folder."),
    ("evaluate {done}", "finished names no prompts to be judged by but those it was trained on: give others with"),
    ("evaluate --model {model}", "there are no prompts to judge by: give --evaluation.prompts"),
    ("evaluate --model {model} --lora x.safetensors", "--lora x.safetensors: no LoRA file in safetensors format could"),
    ("sample --run {done} --anneal lin", "--anneal 'lin': it is base, tuned, linear, power:2 or step:0.6"),
    ("sample --run {done} --anneal", "--anneal needs a value."),
    ("sample --model {model} --prompts text:x --anneal linear", "--anneal without a tuned model: give --run FOLDER"),
    ("evaluate {model} --anneal linear", "--anneal without a tuned model: name a run's folder, or a LoRA file"),
    ("evaluate {done} --anneal linear,power", "--anneal 'power': it is base, tuned, linear, power:2 or step:0.6"),
    ("evaluate {done} --mix", "--mix needs a value."),
    ("evaluate {done} --mix a", "--mix: 'a' is not a number. Write them with spaces: --mix .3 .7"),
    ("evaluate {done} --mix 0 inf", "--mix: inf is not a finite number."),
    (
        "evaluate {done} {done} {done} --mix 0",
        "--mix goes from the base to one LoRA or from one to another; found 3 of",
    ),
    ("evaluate {done} --mix 0 --report_to tensorboard", "--report_to tells of the runs themselves: leave it out with"),
    ("evaluate {done} --output x.txt", "--output x.txt: give FILE.json, FILE.csv, or a folder."),
    ("evaluate {model} --report_to tensorboard", "--report_to goes on with a run's trackers: name the run's folder"),
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


def test_a_run_of_the_whole_network_is_drawn_with(tmp_path: Path) -> None:
    run = tmp_path / "run"
    runs.train(runs.small(run, "--no-lora", "--save_samples", "0"))
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
    mix = ["mix", str(run), "--weights", "1", "--output", str(tmp_path / "x")]
    for flag, words in {
        "mix": mix,
        "--anneal": ["sample", "--run", str(run), *few, "--anneal", "linear"],
        "--mix and --anneal": ["evaluate", str(run), "--mix", ".5", "--anneal", "linear"],
    }.items():
        ran = runs.call(*words)
        assert ran.code == 2 and ran.err.startswith(
            f"tastemaker: {flag}: run tuned the whole network (--no-lora). Need"
        )


def test_a_run_that_has_not_ended_is_not_a_run_to_draw_with(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((runs.finished()[0] / "config.yaml").read_text())
    for command in ("sample", "evaluate"):
        ran = runs.call(command, "--run", str(tmp_path))
        assert ran.code == 2 and f"--run {tmp_path}: the run has not ended; go on with --resume" in ran.err


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    like = ("--model", runs.model(), "--prompts", "text:x", "--device", "cpu", "--steps", "1", "--count", "1")
    ran = runs.call("sample", *like, "--output_dir", str(tmp_path / "file" / "x"))
    assert ran.code == 2 and ran.err.startswith(f"tastemaker: --output_dir {tmp_path}/file/x cannot be made: Not a dir")


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_help_names_every_flag(command: str) -> None:
    ran = runs.train([command, "--help"])
    assert ran.out.startswith(f"tastemaker {command} ") and "--run" in ran.out and "--model" in ran.out

"""The command line in process: lists, help, pages, the doctor, and every wrong name with one message and code 2."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from collections.abc import Callable

import pytest
import torch

import tastemaker
from tastemaker import algorithms, cli, config
from tastemaker.algorithms import NEEDS
from tastemaker.build import attribute
from tastemaker.commands import doctor, explain
from tastemaker.process.samplers import DDIM
from tastemaker.process.samplers import TABLE as SAMPLERS
from tastemaker.process.schedule import from_alphas_cumprod
from tastemaker.rewards import DIFFERENTIABLE, TABLE, named
from tastemaker.rewards.facts import FACTS

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> tuple[int, str, str]:
        code = cli.main(words)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_version_and_the_list_of_commands(run: Run) -> None:
    assert run("--version") == (0, f"tastemaker {tastemaker.__version__}\n", "")
    for words in ((), ("--help",), ("-h",), ("help",)):
        code, out, err = run(*words)
        assert (code, err) == (0, "") and all(f"\n  {name} " in out for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("trian", "'trian' is not a command.  Did you mean `train`?"),
        ("ddpo", "'ddpo' is not a command.  Did you mean `tastemaker train ddpo`?"),
        ("zzz", "'zzz' is not a command."),
        ("train ddpoo", "'ddpoo' is neither an algorithm nor a recipe.  Did you mean `ddpo`?"),
        ("train", "tastemaker train takes one algorithm or recipe, and then flags; found none."),
        (
            "train --overwrite ddpo",
            "tastemaker train takes one algorithm or recipe, and then flags; found none, because --overw",
        ),
        ("train ddpo reinforce", "tastemaker train takes one algorithm or recipe"),
        ("train no/such.yaml", "there is no recipe file no/such.yaml"),
        (
            "train ddpo --algorithm.clip_range 1",
            "--algorithm.clip_range is not a setting of ddpo.  Did you mean `--algor",
        ),
        ("explain ddpoo", "nothing is called 'ddpoo'.  Did you mean `ddpo`?"),
        ("explain learning_rte", "nothing is called 'learning_rte'.  Did you mean `learning_rate`?"),
        ("explain a b", "tastemaker explain takes one name and no flags; found a b."),
        ("doctor now", "tastemaker doctor takes no words, only flags; found now."),
    ],
)
def test_a_users_error_is_one_message_and_code_2(run: Run, line: str, said: str) -> None:
    code, out, err = run(*line.split())
    assert (code, out) == (2, "") and err.startswith(f"tastemaker: {said}") and "Traceback" not in err


def test_our_own_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = types.ModuleType("broken")
    broken.main = lambda argv: {}["x"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "broken", broken)
    monkeypatch.setitem(cli.COMMANDS, "break", ("broken", ""))
    with pytest.raises(KeyError):
        cli.main(["break"])


def test_a_commands_code_is_the_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    command = types.ModuleType("command")
    command.main = lambda argv: len(argv)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "command", command)
    monkeypatch.setitem(cli.COMMANDS, "count", ("command", ""))
    assert run("count", "a", "b", "c")[0] == 3


def test_an_interruption_is_no_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupt)
    assert run("train") == (130, "", "tastemaker: interrupted\n")


FLAGS = """--model --revision --variant --lora --reward --held_out_rewards --prompts --output_dir --overwrite --seed
--iterations --learning_rate --device --mixed_precision --resolution --height --width --no-lora --gradient_checkpointing
--use_8bit_adam --checkpointing_steps --checkpoints_total_limit --resume_from_checkpoint --report_to --save_samples
--push_to_hub --hub_model_id --fit --dry-run --negative_prompt --lr_scheduler --lr_warmup_steps --ema --max_grad_norm
--lpips_weights --max_failed --plan.micro_batch --evaluation.steps --lora.rank --stop_on --alarms.parting"""


def test_help_knows_every_flag_of_the_design(run: Run) -> None:
    _, out, _ = run("train", "--help")
    assert [flag for flag in FLAGS.split() if not re.search(rf"^\s.*{flag}\b", out, re.MULTILINE)] == []


def test_help_lists_the_runs_flags_and_the_algorithms(run: Run) -> None:
    code, out, _ = run("train", "ddpo", "--help")
    assert code == 0
    for said in (
        "--seed  [0]  a whole number",
        "--evaluation.every",
        "--algorithm.clip  [0.0001]  a number",
        "--lora.rank",
    ):
        assert f"\n  {said}" in out
    code, out, _ = run("train", "--help")
    assert code == 0 and "--algorithm.clip" not in out and "NAME --help` adds" in out


def test_names_are_answered_quickly_and_without_torch() -> None:
    """One fresh process for all of them: no test before it has imported anything."""
    lines = ["--version", "", "trian", "train ddpoo", "train nowhere.yaml", "train", "explain"]
    code = f"""
import json, sys, time
began = time.process_time()
from tastemaker import cli
for line in {lines}:
    cli.main(line.split())
heavy = [name for name in ("torch", "numpy", "diffusers", "transformers") if name in sys.modules]
print(json.dumps([time.process_time() - began, heavy]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    seconds, heavy = json.loads(done.stdout.splitlines()[-1])
    assert heavy == [] and seconds < 1.0
    module = subprocess.run([sys.executable, "-m", "tastemaker", "trian"], capture_output=True, text=True, timeout=60)
    assert module.returncode == 2 and module.stdout == "" and "Did you mean `train`" in module.stderr


# ---- explain


def test_every_name_is_listed_and_has_a_page(run: Run) -> None:
    code, listed, _ = run("explain")
    assert code == 0
    for known, _ in explain._shelves():
        for name in known:
            assert re.search(rf"\n  {name} +[A-Z`]", listed), name  # and a sentence
            assert explain.explain(name), name
    assert max(map(len, listed.splitlines())) <= 120


def test_the_list_says_what_goes_with_what(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    known = config.algorithms()
    few = {"ddpo": known["ddpo"], "reinforce": known["reinforce"], "picky": known["ddpo"]}
    monkeypatch.setattr(algorithms, "TABLE", few)
    monkeypatch.setitem(NEEDS, "picky", "a differentiable reward")
    monkeypatch.setattr(explain, "DIFFERENTIABLE", frozenset({"shapes_alignment"}))
    listed = " ".join(run("explain")[1].split())
    assert "Takes any reward; a sampler with random steps" in listed and "Takes a differentiable reward." in listed
    assert "[B,3,H,W] in [0,1]. Not differentiable: for ddpo, reinforce." in listed
    assert "Differentiable: for ddpo, reinforce, picky." in listed
    assert "ddpo, reinforce any reward" in listed and "picky shapes_alignment, or a function in torch" in listed
    known_here = "shapes, shapes_heldout, shapes_alignment, shapes_judge, shapes_taste;"
    assert f"knows few words and is judged by them: {known_here}" in listed
    assert "take few bytes. ddpo_full" in listed
    assert "simple_animals `animals` by another name" in listed


def test_what_the_list_says_of_algorithms_and_rewards_is_true() -> None:
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    for name in set(TABLE) - set(FACTS):  # what needs a download has tests of its own
        value = named(name)(images, ["a red circle"]).value
        assert value.requires_grad == (name in DIFFERENTIABLE), name
    assert NEEDS.keys() == config.algorithms().keys()
    schedule = from_alphas_cumprod(torch.linspace(0.99, 0.01, 1000, dtype=torch.float64), [750, 500, 250], 0.99)
    for name, needs in NEEDS.items():
        assert needs.startswith(("any reward", "a differentiable reward")), name
        if "random steps" in needs:
            with pytest.raises(ValueError, match="draws nothing at random"):
                attribute(config.algorithms()[name])(sampler=DDIM(eta=0)).items(schedule)


def test_pages_say_what_a_thing_is(run: Run) -> None:
    out = run("explain", "ddpo")[1]
    assert out.startswith("ddpo, an algorithm\n") and "arXiv:2305.13301" in out
    assert "  algorithm.clip  [0.0001]  a number\n      " in out
    assert f"[ddim (eta 1.0)] one of {', '.join(SAMPLERS)} draws" in " ".join(out.split())  # however wide the terminal
    assert run("explain", "window")[1].startswith("window, a sampler: --algorithm.sampler window\n")
    assert "--reward jpeg_compressibility" in run("explain", "jpeg_compressibility")[1]
    assert "--lora.rank  [4]" in run("explain", "lora")[1] and "--seed" not in run("explain", "lora")[1]
    assert "Of run\n  --seed  [0]" in run("explain", "seed")[1]
    both = run("explain", "learning-rate")[1]
    assert "Of ddpo\n  --algorithm.learning_rate" in both and "Of reinforce\n" in both
    prompts_and_model = run("explain", "shapes")[1]
    assert "a built-in model" in prompts_and_model and "--prompts shapes" in prompts_and_model


def test_a_recipes_page_is_the_recipe(run: Run) -> None:
    for name, path in config.recipes().items():
        assert run("explain", name)[1].endswith(path.read_text()), name


# ---- doctor


def test_the_doctor_reports(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"there": (("json",), "a"), "absent": (("no_such_module",), "pictures")})
    code, out, err = run("doctor")
    assert (code, err) == (0, "") and f"tastemaker {tastemaker.__version__}" in out and "cpu  " in out
    assert "pictures" in out and "pip install 'tastemaker[absent]'" in out and "[there]" not in out


def test_the_doctor_finds_a_torchvision_of_another_torch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.13.0+cpu", "torchvision": "0.20.0"}
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, "1"))
    monkeypatch.setattr(doctor, "requires", lambda name: ["numpy", "torch==2.5.0", "x; extra == 'y'"])
    code, out, _ = run("doctor")
    assert code == 1 and "PROBLEM: torchvision 0.20.0 is for torch 2.5.0, and torch is 2.13.0+cpu: pip uninstall" in out


def test_the_doctor_finds_a_torchvision_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor, "requires", lambda name: ["torch==2.13.0"])
    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    (problem,) = doctor.torchvision_problems("2.13.0+cpu", "0.28.0")
    assert "nms does not exist" in problem and "pip uninstall torchvision" in problem
    assert doctor.torchvision_problems("2.13.0", None) == []


def test_the_doctor_finds_a_missing_package(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "peft" else "1")
    monkeypatch.setattr(doctor, "torchvision_problems", lambda *versions: [])
    code, out, _ = run("doctor")
    assert code == 1 and "PROBLEM: peft is not installed" in out

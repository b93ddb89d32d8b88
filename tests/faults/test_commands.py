"""Every mistake of a user is one message that names the key as it was typed, exit code 2, and nothing half-written."""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path

import pytest
import torch
import yaml

import runs
import tastemaker
from tastemaker import cli, folder

HERE = "{home}"  # stands for the folder of prompts and rewards


def refused(argv: list[str], output: Path) -> str:
    """The message of a command that fails as it should."""
    ran = runs.call(*argv)
    assert ran.code == 2, ran.out + ran.err
    assert ran.err.startswith("tastemaker: ") and ran.err.count("\n") == 1 and "Traceback" not in ran.err, ran.err
    assert not output.exists(), [path.name for path in output.rglob("*")]
    return ran.err.removeprefix("tastemaker: ").rstrip("\n")


KEYS = [
    ("--outpt_dir x", "--outpt_dir is not a setting of a run.  Did you mean `--output_dir`?"),
    ("--clip_range 1", "--clip_range is not a setting of a run.  Did you mean `--algorithm.clip`?"),
    ("--algorithm.clip_range 1", "--algorithm.clip_range is not a setting of ddpo.  Did you mean `--algorithm.clip`?"),
    (
        "--algorithm.sampler.etta 1",
        "--algorithm.sampler.etta is not a setting of ddim.  Did you mean `--algorithm.samp",
    ),
    ("--evaluation.cuont 3", "--evaluation.cuont is not a setting of evaluation.  Did you mean `--evaluation.count`?"),
    ("--lora.rnk 3", "--lora.rnk is not a setting of lora.  Did you mean `--lora.rank`?"),
    ("--plan.micro 3", "--plan.micro is not a setting of plan.  Did you mean `--plan.micro_batch`?"),
    ("--seed many", "--seed needs a whole number; found 'many'."),
    ("--learning_rate fast", "--learning_rate needs a number; found 'fast'."),
    ("--learning_rate 0", "--learning_rate is 0.0; it must be positive."),
    ("--mixed_precision fp8", "--mixed_precision needs one of no, fp16, bf16; found 'fp8'."),
    ("--save_samples some", "--save_samples needs a whole number or one of all; found 'some'."),
    (
        "--algorithm.sampler euler",
        "--algorithm.sampler needs a name, one of ddim, flow_sde, dance_sde, cps, window; found 'euler'.",
    ),
]

ARITHMETIC = [
    (
        "--algorithm.images 5",
        "5 images do not make equal updates: 2 updates of whole groups of 1 = 2. Nearest: 4 or 6 images.",
    ),
    ("--algorithm.per_prompt 3", "4 images do not make groups of 3 (per_prompt). Nearest: 6 images."),
    ("--algorithm.updates 3 --algorithm.per_prompt 2", "4 images do not make equal updates: 3 updates of whole groups"),
    ("--algorithm.images 0", "--algorithm.images is 0; it must be at least 1."),
    ("--plan.micro_batch 0", "--plan.micro_batch is 0; it is 1 or more."),
    ("--algorithm.steps 2000", "--algorithm.steps is 2000, this model's chains have 1 to 1000."),
    ("--fit 1MB", "--fit 1.0 MiB is not enough: at least "),
    (
        "--resolution 17",
        "--resolution 17 does not fit --model {model}: its sides are multiples of 2 pixels. Nearest: 16",
    ),
]

MISSING = [
    ("--prompts {home}/promts.txt", "--prompts: {home}/promts.txt does not exist"),
    ("--prompts animals.txt", "--prompts: animals.txt does not exist"),
    ("--prompts shaps", "--prompts: `shaps` is not the name of a prompt set. Did you mean `shapes`?"),
    ("--evaluation.prompts nowhere.txt", "--evaluation.prompts: nowhere.txt does not exist"),
    ("--reward {home}/reward.py:f", "--reward: {home}/reward.py does not exist"),
    ("--reward {home}/rewards.py", "--reward: `{home}/rewards.py` names a file, not a function in it"),
    (
        "--reward {home}/rewards.py:brightnes",
        "--reward: {home}/rewards.py has no `brightnes`. Did you mean `brightness`?",
    ),
    ("--reward {home}/rewards.py:not_a_function", "--reward: `not_a_function` in {home}/rewards.py is a int"),
    ("--reward jpeg_compresibility", "--reward: `jpeg_compresibility` is not the name of a reward. Did you mean `jpeg"),
    ("--held_out_rewards jpeg", "--held_out_rewards: `jpeg` is not the name of a reward."),
    ("--model {home}/nowhere", "--model {home}/nowhere: no such folder."),
    ("--model {home}", "--model {home}: the folder {home} has no model_index.json."),
    ("--lora {home}/no.safetensors", "--lora {home}/no.safetensors"),
    ("--resume_from_checkpoint {home}/checkpoint-3", "{home}/checkpoint-3 cannot be used as a checkpoint: there is no"),
]

REWARDS = [
    ("matrix", "reward `matrix` returned the shape [4, 3] for 4 picture(s); needed is one number a picture"),
    ("column", "reward `column` returned the shape [4, 1]; needed is one number a picture, a tensor [4]. Finish with"),
    ("single", "reward `single` returned a single number for 4 picture(s)"),
    ("short", "reward `short` returned the shape [3] for 4 picture(s)"),
    ("nothing", "reward `nothing` returned None; needed is one number a picture, a tensor [4]. Is a `return` missing?"),
    ("nan", "reward `nan` returned nan for 4 of 4 pictures"),
    ("ranks", "reward `ranks` gave other scores when the same pictures came in another order"),
    ("broken", "reward `broken` failed on pictures [4, 3, 16, 16] in [0, 1]: RuntimeError: no weights"),
    ("spoils", "reward `spoils` changes the pictures it is given"),
]

IDLE = [
    (
        "--negative_prompt blurry --algorithm.guidance 1",
        "--negative_prompt has no effect at guidance=1.0, which is none: set --algorithm.guidance above 1",
    ),
    ("--revision main", "--revision main has no effect on a model that lies in a folder ({model}): leave it out"),
    ("--algorithm.prompt_minimum 2", "--algorithm.prompt_minimum has no effect without prompt_history"),
    (
        "--algorithm.guidance 1 --algorithm.guidance_in_loss false",
        "--algorithm.guidance_in_loss has no effect at guidan",
    ),
    ("--algorithm.sampler.eta 0", "--algorithm.sampler DDIM(eta=0.0) draws nothing at random in 3 steps"),
    ("--resolution 16 --height 16", "--resolution is given beside height or width"),
    ("--overwrite --resume_from_checkpoint latest", "--overwrite empties the folder that resume_from_checkpoint would"),
    ("--no-lora --lora.rank 2", "--lora.rank sets a part of `lora`, which --no-lora switches: take one of them out."),
]


@pytest.mark.parametrize(("flags", "said"), [*KEYS, *ARITHMETIC, *MISSING, *IDLE])
def test_a_mistake_is_one_message_and_leaves_nothing(tmp_path: Path, flags: str, said: str) -> None:
    def filled(text: str) -> str:
        return text.replace("{home}", str(runs.home())).replace("{model}", runs.model())

    output = tmp_path / "run"
    assert refused(runs.words(output, *filled(flags).split()), output).startswith(filled(said))


@pytest.mark.parametrize(
    ("algorithm", "flags", "said"),
    [
        ("awm", "--algorithm.levels 30", "--algorithm.levels is 30, but the chain has 3 steps: lower it"),
        ("draft", "--algorithm.k 9", "--algorithm.k is 9, but the chain has 3 steps"),
        ("alignprop", "--algorithm.truncation fixed --algorithm.truncation.k 9", "--algorithm.truncation.k is 9, but"),
        ("draft", "--algorithm.reward_dropout", "--algorithm.reward_dropout has no effect on the reward `brightness`"),
        ("diffusion_dpo", "--algorithm.pairs given", "--algorithm.pairs is `given`, but the prompt 'a "),
    ],
)
def test_what_shows_beside_model_reward_or_prompts_is_named_as_typed(
    tmp_path: Path, algorithm: str, flags: str, said: str
) -> None:
    output = tmp_path / "run"
    command, _, *rest = runs.words(output, *flags.split())
    assert refused([command, algorithm, *rest], output).startswith(said)


@pytest.mark.parametrize(("name", "said"), REWARDS)
def test_a_reward_that_is_none_is_found_before_training(tmp_path: Path, name: str, said: str) -> None:
    output = tmp_path / "run"
    assert refused(runs.words(output, "--reward", runs.reward(name)), output).startswith(said)


def test_a_held_out_reward_has_to_answer_too(tmp_path: Path) -> None:
    output = tmp_path / "run"
    for name, said in (("matrix", "reward `matrix` returned the shape"), ("broken", "RuntimeError: no weights")):
        message = refused(runs.words(output, "--held_out_rewards", runs.reward(name)), output)
        assert message.startswith(f"held-out reward `{name}` failed: ") and said in message


@pytest.mark.parametrize("key", ["model", "reward", "prompts"])
def test_what_is_not_given_is_asked_for_with_examples(tmp_path: Path, key: str) -> None:
    output = tmp_path / "run"
    argv = runs.words(output)
    place = argv.index(f"--{key}")
    message = refused(argv[:place] + argv[place + 2 :], output)
    assert message.startswith(f"--{key} is missing, ") and f"Give --{key}: " in message and message.count(",") >= 2


def test_a_recipes_mistake_has_its_file_and_line(tmp_path: Path) -> None:
    recipe, output = tmp_path / "mine.yaml", tmp_path / "run"
    recipe.write_text("algorithm:\n  name: ddpo\n  clip_range: 1e-4\n")
    argv = runs.words(output)
    argv[1] = str(recipe)
    said = f"{recipe}:3: algorithm.clip_range is not a setting of ddpo.  Did you mean `clip`?"
    assert refused(argv, output).startswith(said)
    recipe.write_text("algorithm: ddpo\nseed: 1\nevaluation:\n  cuont: 1\n")
    assert refused(argv, output).startswith(f"{recipe}:4: evaluation.cuont is not a setting of evaluation.")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    output = tmp_path / "run"
    said = refused(runs.words(output, "--device", "cuda"), output)
    assert said.startswith("--device cuda is not there; found: cpu. This torch (")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="it is installed here")
def test_a_missing_extra_is_named_with_its_command(tmp_path: Path) -> None:
    output = tmp_path / "run"
    message = refused(runs.words(output, "--use_8bit_adam"), output)
    assert message.startswith("--use_8bit_adam needs bitsandbytes") and 'pip install "tastemaker[memory]"' in message


# ---- the output folder


def content(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def left_alone(argv: list[str], place: Path) -> str:
    """The message of a command that fails and changes nothing of what lies in a folder."""
    before = content(place)
    ran = runs.call(*argv)
    assert ran.code == 2 and ran.err.startswith("tastemaker: --output_dir ") and ran.err.count("\n") == 1, ran.err
    assert content(place) == before
    return ran.err


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert "is not empty: it holds thesis.tex. Name another" in left_alone(runs.words(tmp_path), tmp_path)
    assert "neither continued nor emptied" in left_alone(runs.words(tmp_path, "--overwrite"), tmp_path)
    (tmp_path / folder.CONFIG).write_text("algorithm: {name: ddpo}\n")
    assert "--resume_from_checkpoint latest, or empty it with --overwrite" in left_alone(runs.words(tmp_path), tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert f"{file} is a file: name a folder." in left_alone(runs.words(file), tmp_path)
    assert f"{file} is a file. Name another folder." in left_alone(runs.words(file / "run"), tmp_path)
    assert "/proc/nowhere cannot be written: " in left_alone(runs.words(Path("/proc/nowhere")), tmp_path)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with folder.claimed(tmp_path / "run"):
        message = left_alone(runs.words(tmp_path / "run"), tmp_path)
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    assert f"is used by another run ({holder}): wait for it, or name another folder." in message


def test_a_half_written_model_is_named(tmp_path: Path) -> None:
    model, output = tmp_path / "model", tmp_path / "run"
    model.mkdir()
    (model / "model_index.json").write_text('{"_class_name": "PaintPipeline"}')
    message = refused(runs.words(output, "--model", str(model)), output)
    assert message.startswith(f"--model {model} is a PaintPipeline, Tastemaker knows ")
    (model / "tastemaker.json").write_text('{"defaults": {"stepps": 3}}')
    assert refused(runs.words(output, "--model", str(model)), output).startswith("tastemaker.json: defaults.stepps is")


# ---- the same in Python


def test_python_users_meet_the_same_errors_in_their_spelling(tmp_path: Path) -> None:
    output = tmp_path / "run"
    given = {
        "algorithm": "ddpo",
        "model": runs.model(),
        "reward": lambda images, prompts: images,
        "prompts": ["a cat"],
    }
    given |= {"output_dir": str(output), "device": "cpu"}
    for more, said in (
        ({"sed": 1}, "^sed is not a setting of a run.  Did you mean `seed`"),
        ({"prompts": []}, "^prompts: list holds no prompt"),
        ({"prompts": None}, "^prompts is missing, .* Give prompts: "),
        ({"evaluation": {"prompts": "no.txt"}}, "^evaluation.prompts: no.txt does not exist"),
        ({"evaluation": {"count": 0}}, "^evaluation.count is 0; at least 1 prompt is needed"),
        ({"algorithm": 3}, "^algorithm is 3; it is a name"),
        ({"iterations": 0}, "^iterations is 0; it must be at least 1"),
    ):
        with pytest.raises(ValueError, match=said):
            tastemaker.train(**(given | more))
    with pytest.raises(ValueError, match=r"^reward `reward` returned the shape \[4, 3, 16, 16\]"):
        tastemaker.train(**(given | {"algorithm": tastemaker.DDPO(images=2, updates=1, steps=2)}))
    with pytest.raises(ValueError, match="^guidance_in_loss has no effect"):
        tastemaker.DDPO(guidance=1.0, guidance_in_loss=False)
    assert not output.exists()


def test_a_run_that_goes_on_stays_the_run_it_was(tmp_path: Path) -> None:
    made = tmp_path / "run"
    runs.train(runs.small(made))
    resume = ("--resume_from_checkpoint", "latest")
    for flag, value in (
        ("seed", "7"),
        ("reward", runs.reward("redness")),
        ("algorithm.clip", "0.5"),
        ("resolution", "32"),
    ):
        before = content(made)
        ran = runs.call(*runs.small(made, *resume, f"--{flag}", value))
        assert ran.code == 2 and ran.err.startswith(f"tastemaker: --{flag} is ") and ran.err.count("\n") == 1
        assert "was made with" in ran.err and "another --output_dir" in ran.err and content(made) == before
    settings = yaml.safe_load((made / "config.yaml").read_text())
    del settings["lora"]["rslora"]  # a setting that the program did not have when the run was made
    (made / "config.yaml").write_text(yaml.safe_dump(settings))
    assert "--lora.rslora is " in runs.call(*runs.small(made, *resume, "--lora.rslora")).err
    for flag, value in (("learning_rate", "1e-3"), ("iterations", "2")):
        assert runs.call(*runs.small(made, *resume, f"--{flag}", value)).code == 0


def test_a_full_disk_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(words: list[str]) -> int:
        raise OSError(28, "No space left on device", "/runs/1")

    monkeypatch.setattr(cli, "_run", full)
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "tastemaker: [Errno 28] No space left on device: '/runs/1'\n"

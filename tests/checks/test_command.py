"""`tastemaker doctor --model ... --algorithm ...` in process: its page, its exit code, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tastemaker import cli, examination
from tastemaker.checks import TABLE, decoding
from tastemaker.checks.case import Case
from tastemaker.checks.finding import Finding, Verdict

SMALL = "--device cpu --algorithm.steps 3 --plan.micro_batch 4 --plan.sampling_batch 4"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def test_what_it_prints(model: Callable[[str], str], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--model {model('eps')} --algorithm ddpo {SMALL} --output_dir runs/first --algorithm.clip 2e-4"
    code = cli.main(["doctor", *words.split()])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "") and list(place.iterdir()) == []
    lines = [line.rstrip() for line in out.splitlines()]
    assert all(len(line) <= 80 for line in lines)
    assert "--reward is not given: brightness, good enough to look at the model with" in lines
    assert all(
        any(line.startswith(f"{k:>3}/{len(TABLE)}  {name} ") for line in lines) for k, name in enumerate(TABLE, 1)
    )
    (ratio,) = [line for line in lines if "first ratio" in line and "clip / 10" in line]
    assert ratio.startswith("ok ") and "2e-05, clip / 10" in ratio
    assert "warning  encoding" in lines and lines[-1] == "Nothing is wrong; warnings: 1."
    assert "\nnot applicable  half precision\n  the network computes in fp32." in out


def test_a_recipe_with_its_reward(
    model: Callable[[str], str], place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "TABLE", {"reward": TABLE["reward"]})
    code = cli.main(["doctor", "--model", model("eps"), "--algorithm", "ddpo_compressibility", *SMALL.split()])
    out, _ = capsys.readouterr()
    assert code == 0 and "jpeg_compressibility" in out and "is not given" not in out
    assert list(place.iterdir()) == []


def test_what_is_wrong_is_the_exit_code(
    model: Callable[[str], str], place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def black(case: Case) -> Finding:
        return Finding(Verdict.WRONG, "all of it", "some light", "pictures are black: open your eyes. " * 4)

    monkeypatch.setattr(decoding, "decoding", black)
    monkeypatch.setattr(examination, "TABLE", {name: TABLE[name] for name in ("prompts", "decoding")})
    code = cli.main(["doctor", "--model", model("eps"), "--algorithm", "draft", *SMALL.split()])
    out, _ = capsys.readouterr()
    assert code == 1 and "\nwrong  decoding\n  pictures are black: open your eyes." in out
    assert out.endswith("1 of 2 checks found something wrong.\n") and max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--model shapes", "--algorithm is missing: tastemaker doctor looks at a model with the settings of a run."),
        ("--model shapes --algorithm", "--algorithm is missing"),
        ("--model shapes --algorithm.clip 1", "--algorithm is missing"),
        (
            "--model shapes --algorithm ddpoo",
            "--algorithm: 'ddpoo' is neither an algorithm nor a recipe.  Did you mean",
        ),
        ("--algorithm ddpo", "--model is missing, and neither the model nor a recipe brings one."),
        ("--model nowhere --algorithm ddpo", "--model nowhere: no such folder."),
        ("--model shapes --algorithm ddpo --clipp 1", "--clipp is not a setting"),
        ("--model shapes --algorithm ddpo --algorithm.clipp 1", "--algorithm.clipp is not a setting of ddpo."),
        ("--model shapes --algorithm ddpo --reward brightnes", "--reward"),
        ("--model shapes --algorithm draft --reward jpeg_compressibility", "--reward: draft differentiates the reward"),
        ("ddpo --model shapes", "tastemaker doctor takes no words, only flags; found ddpo."),
    ],
)
def test_a_users_error_is_one_message_and_code_2(
    line: str, said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["doctor", *line.split()])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and err.startswith(f"tastemaker: {said}"), err
    assert list(place.iterdir()) == []


def test_help_and_the_plain_report_stay(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--help"]) == 0
    assert "tastemaker doctor --model MODEL --algorithm NAME" in capsys.readouterr().out
    assert cli.main(["doctor"]) in (0, 1)
    assert "Devices" in capsys.readouterr().out

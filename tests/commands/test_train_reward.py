"""`tastemaker train-reward`: it learns, shows what it learned, and leaves nothing behind where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from labelled import drawn, folder, ratings, table, taste, votes
from tastemaker import cli
from tastemaker.reward_training import fitting, showing
from tastemaker.rewards import named


def ran(*words: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(["train-reward", *map(str, words)])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_ratings_are_learned_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, test = ratings(tmp_path / "a", 200), ratings(tmp_path / "b", 80, seed=9)
    words = ["regression", "--data", data, "--test", test, "--model", "shapes", "--cache", tmp_path / "cache",
             "--curve", "50", "--output_dir", tmp_path / "r"]  # fmt: skip
    code, out, _ = ran(*words, capsys=capsys)
    assert code == 0
    card = json.loads((tmp_path / "r" / "reward.json").read_text())
    found = card["test"]["rank correlation"]
    assert found["mean"] > 0.85 and found["low"] < found["mean"] < found["high"]
    assert [point["labels"] for point in card["learning_curve"]] == [50, 200]
    assert "200" in out and f"{found['mean']:.3f}" in out and "by which nothing was chosen" in out
    held = {path.name for path in (tmp_path / "r").iterdir()}
    assert held == {
        "reward.json",
        "head.safetensors",
        "learning_curve.svg",
        "epochs.svg",
        "best_and_worst.png",
        ".lock",
    }
    pictures, captions = drawn(80, 9)
    with torch.no_grad():
        scores = named(str(tmp_path / "r"))(pictures, list(captions)).value
    assert float(torch.corrcoef(torch.stack([scores, taste(pictures)]))[0, 1]) > 0.85
    assert 3 < float(scores.mean()) < 7  # in the ratings' own units


def test_choices_are_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = votes(tmp_path, 300)
    words = ["preference", "--data", data, "--model", "shapes", "--cache", "", "--output_dir", tmp_path / "r"]
    code, out, _ = ran(*words, "--ties", "leave_out", capsys=capsys)
    assert code == 0 and "15 rows passed over" in out and "whole prompts at a time" in out
    card = json.loads((tmp_path / "r" / "reward.json").read_text())
    assert card["validation"]["accuracy"]["mean"] > 0.75 and card["kind"] == "preference"
    assert card["split_by"] == "prompt"


def test_what_is_wrong_is_told_and_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ratings(tmp_path / "a", 30)
    gone = table(tmp_path / "a" / "gone.csv", ["image", "rating"], [["nowhere.png", 3]])
    for words, told in (
        ([], "train-reward takes one kind of labels, regression or preference; found none."),
        (["preferences"], "Did you mean `preference`?"),
        (["regression"], "--data is missing"),
        (["regression", "--data", gone], f"--data: {gone}:2: image: there is no file"),
        (["regression", "--data", data, "--test", gone], f"--test: {gone}:2: image: there is no file"),
        (["regression", "--data", data, "--hiden", "3"], "--hiden is not a setting of train-reward.  Did you mean"),
        (["regression", "--data", data, "--hidden", "-1"], "--hidden is -1; it is 0 or more."),
        (["regression", "--data", data, "--columns.stars", "x"], "--columns.stars is not a setting of"),
        (["regression", "--data", data, "--model", "none.bin"], "--model is 'none.bin'"),
        (["regression", "--data", data, "--features", "smell"], "--features needs"),
        (["regression", "--data", gone.replace("gone", "x")], "--data: there is no"),
        (["regression", "--data", data, "--device", "tpu"], "--device is 'tpu'"),
        (["regression", "--data", data, "--resume_from_checkpoint", "x"], "--resume_from_checkpoint is 'x'"),
    ):  # fmt: skip
        code, _, err = ran(*words, "--output_dir", tmp_path / "r", capsys=capsys)
        assert code == 2 and told in err, (words, err)
        assert not (tmp_path / "r").exists(), words


def test_twins_are_named_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Path(votes(tmp_path, 60))
    (tmp_path / "5.png").write_bytes((tmp_path / "4.png").read_bytes())
    code, _, err = ran("preference", "--data", data, "--model", "shapes", "--cache", "", "--output_dir", tmp_path / "r",
                       capsys=capsys)  # fmt: skip
    assert code == 2 and f"{data}:3: " in err and "are the same picture" in err and not (tmp_path / "r").exists()


def test_a_rewards_folder_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ratings(tmp_path / "a", 60)
    words = ["regression", "--data", data, "--model", "shapes", "--cache", tmp_path / "c", "--epochs", "2"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letters.txt").write_text("dear")
    code, _, err = ran(*words, "--output_dir", tmp_path / "full", "--overwrite", capsys=capsys)
    assert code == 2 and "holds letters.txt, which no training of a reward writes" in err
    assert (tmp_path / "full" / "letters.txt").read_text() == "dear"
    assert ran(*words, "--output_dir", tmp_path / "r", capsys=capsys)[0] == 0
    code, _, err = ran(*words, "--output_dir", tmp_path / "r", capsys=capsys)
    assert code == 2 and "holds a reward" in err
    before = (tmp_path / "r" / "head.safetensors").read_bytes()
    assert ran(*words, "--output_dir", tmp_path / "r", "--overwrite", "--seed", "1", capsys=capsys)[0] == 0
    assert (tmp_path / "r" / "head.safetensors").read_bytes() != before


def test_mistakes_cost_no_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, r = ratings(tmp_path / "a", 60), tmp_path / "r"
    words = ["regression", "--model", "shapes", "--cache", tmp_path / "c", "--epochs", "2", "--output_dir", r]
    assert ran(*words, "--data", data, capsys=capsys)[0] == 0
    before = {path.name: path.read_bytes() for path in r.iterdir()}
    for more, told in (
        (["--data", data + "x", "--overwrite"], "--data: there is no"),
        (["--data", data, "--resume_from_checkpoint", "latest"], "--resume_from_checkpoint: the training in"),
        (["--data", data, "--seed", "5", "--resume_from_checkpoint", "latest"], "has ended"),
        (["--data", data, "--overwrite", "--learning_rate", "1e30"], "--learning_rate 1e+30 is too high"),
        (["--data", data, "--overwrite", "--learning_rate", "inf"], "--learning_rate is inf"),
        (["--data", data, "--overwrite", "--test", data], "--test: 60 of its 60 pictures are in the data too"),
        (["--data", data, "--overwrite", "--ties", "leave_out"], "--ties has no effect on ratings"),
        (["--data", data, "--overwrite", "--columns.first", "x"], "--columns.first has no effect on ratings"),
    ):
        code, _, err = ran(*words, *more, capsys=capsys)
        assert code == 2 and told in err, err
        assert {path.name: path.read_bytes() for path in r.iterdir()} == before


def test_noise_teaches_nothing_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, _, _ = folder(tmp_path, 60)
    rows = [[name, value] for name, value in zip(names, torch.randperm(60).tolist(), strict=True)]
    data = table(tmp_path / "r.csv", ["image", "rating"], rows)
    code, _, err = ran("regression", "--data", data, "--model", "shapes", "--cache", "", "--learning_rate", "0.5",
                       "--patience", "2", "--output_dir", tmp_path / "r", capsys=capsys)  # fmt: skip
    assert code == 2 and "--data: nothing could be learned" in err and not (tmp_path / "r").exists()


def test_a_killed_training_goes_on_to_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ratings(tmp_path / "a", 80)
    words = ["regression", "--data", data, "--model", "shapes", "--cache", tmp_path / "c", "--epochs", "12"]
    assert ran(*words, "--output_dir", tmp_path / "straight", capsys=capsys)[0] == 0
    monkeypatch.setattr(fitting, "SAVED_EVERY", 0.0)
    whole = fitting.Fit._pass

    def killed(self: fitting.Fit, number: int) -> float:
        if number == 6:
            raise KeyboardInterrupt
        return whole(self, number)

    monkeypatch.setattr(fitting.Fit, "_pass", killed)
    assert ran(*words, "--output_dir", tmp_path / "r", capsys=capsys)[0] == 130
    assert not (tmp_path / "r" / "reward.json").exists()
    monkeypatch.setattr(fitting.Fit, "_pass", whole)
    code, _, err = ran(*words, "--output_dir", tmp_path / "r", "--resume_from_checkpoint", "latest", "--seed", "3",
                       capsys=capsys)  # fmt: skip
    assert code == 2 and "--resume_from_checkpoint: the training in" in err
    assert ran(*words, "--output_dir", tmp_path / "r", "--resume_from_checkpoint", "latest", capsys=capsys)[0] == 0
    for name in ("head.safetensors", "epochs.svg"):
        assert (tmp_path / "r" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ran("--help", capsys=capsys)
    assert code == 0
    for said in ("--data", "--columns.rating", "--ties", "--curve", "--output_dir", "tastemaker vote"):
        assert said in out


def test_a_resume_of_nothing_begins_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, r = ratings(tmp_path / "a", 40), tmp_path / "r"
    r.mkdir()
    (r / ".head.safetensors.part").write_bytes(b"half")  # a kill at the end of an earlier one
    code, out, _ = ran("regression", "--data", data, "--model", "shapes", "--cache", "", "--epochs", "2",
                       "--output_dir", r, "--resume_from_checkpoint", "latest", capsys=capsys)  # fmt: skip
    assert code == 0 and f"{r} holds no training that was stopped: it begins." in out
    assert (r / "reward.json").is_file() and not list(r.glob("*.part")) and not list(r.glob(".*.part"))


def test_a_chart_that_fails_costs_no_reward(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, r = ratings(tmp_path / "a", 40), tmp_path / "r"
    words = ["regression", "--data", data, "--model", "shapes", "--cache", "", "--epochs", "2", "--output_dir", r]
    assert ran(*words, capsys=capsys)[0] == 0
    before = {name: (r / name).read_bytes() for name in ("reward.json", "head.safetensors")}

    def full(*about: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(showing, "extremes", full)
    assert ran(*words, "--overwrite", "--seed", "1", capsys=capsys)[0] == 2
    assert {name: (r / name).read_bytes() for name in before} == before

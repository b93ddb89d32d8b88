"""What is around a run and fails, or must not be told: trackers, keys, prompts (reference matrix D.4: 40, 42, 47)."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import runs
from tastemaker import cli
from tastemaker.reports import backends

CANARIES = {
    "HF_TOKEN": "hf_CanaryCanaryCanaryCanary0001",
    "TASTEMAKER_REWARD_TOKEN": "canary-reward-0002",
    "WANDB_API_KEY": "00c0ffee" * 5,
    "OPENAI_API_KEY": "sk-canary-0003-canary-0003",
}


def found_in(place: Path, words: list[str]) -> list[tuple[str, str]]:
    """(file, word) of all that is written there."""
    files = [path for path in place.rglob("*") if path.is_file()]
    return [(str(path), word) for path in files for word in words if word.encode() in path.read_bytes()]


# ---- 40: trackers


def test_a_tracker_that_is_lost_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named once, and what the run writes itself is whole."""
    calls = []

    def lost(*given: Any) -> None:
        calls.append(given)
        raise ConnectionError("network is unreachable")

    monkeypatch.setattr(backends, "send", lost)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ran = runs.call(*runs.words(tmp_path / "run", "--report_to", "tensorboard"))
    assert ran.code == 0 and len(calls) == 1
    (one,) = [str(warning.message) for warning in said if "tracker" in str(warning.message)]
    assert one.startswith("tracker tensorboard was lost (ConnectionError: network is unreachable)")
    assert runs.weights(tmp_path / "run") == runs.weights(runs.finished()[0])
    assert runs.metrics(tmp_path / "run") == runs.metrics(runs.finished()[0])


# ---- 42: keys


@pytest.mark.filterwarnings("default")
def test_keys_of_the_environment_are_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither in what a run with everything on writes and prints, nor in what it says when it fails."""
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    output = tmp_path / "run"
    argv = runs.small(output, "--report_to", "tensorboard", "--held_out_rewards", runs.reward("redness"))
    monkeypatch.setattr("sys.argv", ["tastemaker", *argv])
    assert cli.main(argv) == 0 and cli.main(["report", str(output)]) == 0
    failed = runs.small(tmp_path / "failed", "--reward", "remote", "--reward.url", "http://127.0.0.1:9")
    assert cli.main([*failed, "--reward.startup_timeout", "0.2"]) == 2
    told = "".join(capfd.readouterr())
    assert "iteration 1/1" in told and "no answer from http://127.0.0.1:9" in told
    words = list(CANARIES.values())
    assert found_in(tmp_path, words) == [] and [word for word in words if word in told] == []
    assert (output / "report.html").exists() and len(list(output.rglob("*"))) > 15


def test_a_key_on_the_command_line_is_in_config_yaml_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where it has to be, for the run to go on; report, tracker, card, starts.jsonl and terminal do not have it."""
    key = "hf_CanaryCanaryCanaryCanary0004"
    (tmp_path / "mine.py").write_text(
        "def f(images, prompts, api_key=''):\n    assert api_key\n    return images.mean((1, 2, 3))\n"
    )
    output = tmp_path / "run"
    given = ("--reward", f"{tmp_path / 'mine.py'}:f", "--reward.api_key", key, "--report_to", "tensorboard")
    argv = runs.small(output, *given)
    monkeypatch.setattr("sys.argv", ["tastemaker", *argv])
    assert cli.main(argv) == 0 and cli.main(["report", str(output)]) == 0
    from tastemaker.exports import card
    from tastemaker.exports.finished import Finished

    card.write(Finished.read(output))
    assert found_in(tmp_path, [key]) == [(str(output / "config.yaml"), key)]
    told = "".join(capfd.readouterr())
    again = runs.call(*argv, "--resume_from_checkpoint", "latest", "--reward.api_key", f"{key}5")
    assert again.code == 2 and "--reward.api_key is (removed), but the run in" in again.err
    assert "iteration 1/1" in told and key not in told + again.out + again.err
    assert "(removed)" in (output / "starts.jsonl").read_text()


# ---- 47: strange prompts


def test_strange_prompts_are_trained_on_and_what_is_cut_off_is_told(tmp_path: Path) -> None:
    """Ten thousand letters, every script, control characters, markup: kept as they are in every file."""
    strange = [
        "ab " * 3_333 + "z",
        "\u0645\u0631\u062d\u0628\u0627 \u4f60\u597d \U0001f431\u200d\U0001f680 e\u0301",
        "a\u2028b\x1b[31mred\x07",
        "</script><script>alert(1)</script> {{7*7}} ${HOME} %s \\n",
    ]
    file, output = tmp_path / "prompts.jsonl", tmp_path / "run"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in strange))
    few = ("--iterations", "1", "--save_samples", "all", "--prompts", str(file), "--evaluation.prompts", "train")
    with pytest.warns(UserWarning, match="prompts are longer than the 16 tokens this model reads") as said:
        ran = runs.call(*runs.words(output, *few))
    assert ran.code == 0 and len(said) >= 1, ran.err
    rows = runs.rows(output, "samples")
    assert {row["prompt"] for row in rows} == set(strange)
    assert all(row["reward"] is not None for row in rows)
    assert torch.tensor([row["reward"]["mean"] for row in runs.rows(output, "metrics")]).isfinite().all()

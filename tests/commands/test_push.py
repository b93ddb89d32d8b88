"""`tastemaker push` from the command line, and a real run on its way to the hub and back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

import runs
from fake_hub import TOKEN, Hub, running
from finished_runs import make
from runs import call
from tastemaker.policy.load import quiet

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running(monkeypatch) as there:
        yield there


def test_help_says_what_goes_where() -> None:
    done = call("push", "--help")
    assert done.code == 0 and done.err == ""
    assert done.out.startswith("tastemaker push RUN [--hub_model_id OWNER/NAME] [--private]")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "push takes one run's folder, and then flags; found none."),
        (["a", "b"], "found a and b."),
        (["a", "--hub_model"], "--hub_model is not a flag of tastemaker push.  Did you mean `--hub_model_id`?"),
        (["a", "--hub_model_id"], "--hub_model_id needs a value."),
        (["--private", "a"], "--private takes no value, found 'a': write it behind the plain words."),
        (["a", "--hub_token", TOKEN], "--hub_token: a token is never a flag"),
        (["nowhere"], "nowhere holds no config.yaml: name a folder that `tastemaker train` left."),
    ],
)
def test_a_wrong_line_is_refused(words: list[str], said: str) -> None:
    done = call("push", *words)
    assert done.code == 2 and said in done.err and done.out == "" and TOKEN not in done.err


def test_a_wrong_name_and_half_a_run_are_refused(tmp_path: Path) -> None:
    whole, half = make(tmp_path / "whole"), make(tmp_path / "half", iterations=1)
    done = call("push", str(whole), "--hub_model_id", "my model")
    assert done.code == 2 and "--hub_model_id is 'my model'; it is owner/name" in done.err
    done = call("push", str(half))
    assert done.code == 2 and "has not ended" in done.err and "--resume_from_checkpoint latest" in done.err


def test_what_the_hub_refuses_is_code_1_and_the_same_command_tries_again(far: Hub, tmp_path: Path) -> None:
    words = ["push", str(make(tmp_path)), "--hub_model_id", "jane/taste", "--private"]
    far.refuse = {"/commit/": 403}
    done = call(*words)
    assert done.code == 1 and done.out == "" and f"  tastemaker {' '.join(words)}\n" in done.err
    far.refuse = {}
    done = call(*words)
    assert (done.code, done.out) == (0, f"on the hub: {far.address}/jane/taste\n")
    assert far.repos == {"jane/taste": True} and len(far.commits) == 1


def test_a_trained_run_is_pushed_and_loaded_as_its_card_says(far: Hub, tmp_path: Path) -> None:
    """The folder is a copy: other tests look at the run too. The base model lies in a folder of this machine."""
    folder = shutil.copytree(runs.finished()[0], tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    assert call("push", str(folder), "--hub_model_id", "jane/taste").code == 0
    here = tmp_path / "downloaded"
    for name, content in far.commits[0].items():
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        assert str(runs.home()).encode() not in content, name
    card = (here / "README.md").read_text()
    assert "| `reward` | `rewards.py:brightness` | the user |" in card
    code = card.split("\n```python\n")[1].split("\n```\n")[0]
    base = Path(runs.model()).name
    found: dict[str, DiffusionPipeline] = {}
    code = code.replace(f'"{base}"', repr(runs.model())).replace('"jane/taste"', repr(str(here))).rpartition("\n")[0]
    with quiet():
        exec(compile(code, "card", "exec"), found)  # the card's own lines, up to the picture
    loaded = found["pipe"].unet.state_dict()
    adapted = [value for name, value in loaded.items() if "lora_B" in name]
    assert adapted and all(isinstance(value, torch.Tensor) and value.abs().sum() > 0 for value in adapted)

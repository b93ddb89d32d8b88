"""How a run was begun, as it is written down."""

from __future__ import annotations

import pytest

from tastemaker.reports.starts import command, start


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["/x/.venv/bin/tastemaker", "train", "ddpo", "--prompts", "text:a cat"],
         "tastemaker train ddpo --prompts 'text:a cat'"),
        (["/x/src/tastemaker/__main__.py", "train", "ddpo"], "tastemaker train ddpo"),
        (["mine.py", "--x"], "python mine.py --x"),
        (["tastemaker", "train", "ddpo", "--reward.api_key", "abcdef"],
         "tastemaker train ddpo --reward.api_key '(removed)'"),
        ([""], "python"),
        ([], "python"),
    ],
)  # fmt: skip
def test_the_command_is_the_one_to_type(argv: list[str], line: str) -> None:
    assert command(argv) == line


def test_versions_and_the_machine() -> None:
    found = start(["tastemaker"], device="cuda:0", processes=2, resumed="checkpoints/checkpoint-3")
    assert found["versions"]["python"].startswith("3.") and "torch" in found["versions"]
    assert (found["device"], found["processes"], found["resumed"]) == ("cuda:0", 2, "checkpoints/checkpoint-3")
    assert found["began"].endswith("+00:00")

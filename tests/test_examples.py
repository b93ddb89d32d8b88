"""The examples run, short; and they are short."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from house.syntax import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(path.read_text().splitlines()) < 50
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    run = example.main(str(tmp_path / "run"), iterations=1, prompts=2, images=4)
    assert run.done and len(run.metrics()) == 1
    said = capsys.readouterr().out
    assert "best of 1: " in said and "held-out prompts: " in said
    with Image.open(tmp_path / "run" / "tuned-1.png") as picture:
        assert picture.size == (64, 64)

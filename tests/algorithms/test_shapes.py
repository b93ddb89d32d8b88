"""One short run on the built-in model: does the whole library, from flags to LoRA file, make a model learn?"""

from __future__ import annotations

from pathlib import Path

import pytest

import tastemaker
from tastemaker.training.lines import read_lines


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ddpo_makes_pictures_of_the_built_in_model_smaller(tmp_path: Path) -> None:
    """By sign, one seed, held-out prompts and fixed noise; the protocol itself is benchmarks/learn.py."""
    algorithm = tastemaker.DDPO(images=64, steps=10, updates=4, iterations=10, learning_rate=3e-3)
    found = tastemaker.train(
        model="shapes",
        reward="jpeg_compressibility",
        algorithm=algorithm,
        output_dir=str(tmp_path / "run"),
        evaluation={"count": 32, "images_per_prompt": 2, "steps": 10, "prompts": "shapes_heldout"},
        lr_warmup_steps=4,
        save_samples=0,
    )
    assert found.done
    before, after = read_lines(found.folder / "evaluations.jsonl")
    assert before["prompts"] == "shapes_heldout"
    change = after["change"]["jpeg_compressibility"]
    assert change["mean"] > 0 and change["wins"] > 0.5, change
    updates = [row["updates"] for row in read_lines(found.folder / "metrics.jsonl")]
    assert [rows[0]["mismatch"] for rows in updates] == [0.0] * 10  # fp32, calls of equal rows

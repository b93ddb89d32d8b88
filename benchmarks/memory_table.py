"""What full-size models need of a device, by algorithm and switches: the guide's table, from the plan's estimate.

Nothing is loaded: the configurations of `full_size.py` run on torch's meta device. One item a call and one picture a
sampling call; everything included, as `--dry-run` counts it. A line of `results/memory.jsonl` with the same model,
pixels, algorithm and column stands beside its estimate as measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from full_size import MODELS, Model

from tastemaker import config, fitting, memory
from tastemaker.policy.presets import preset

ALGORITHMS = ("ddpo", "flow_grpo", "diffusion_nft", "draft")
FLOWS_ALONE = ("flow_grpo",)
COLUMNS: dict[str, dict[str, Any]] = {
    "LoRA, bf16": {},
    "`--gradient_checkpointing`": {"gradient_checkpointing": True},
    "and `--quantise 4bit`": {"gradient_checkpointing": True, "quantise": "4bit"},
}
RESULTS = Path(__file__).parent / "results" / "memory.jsonl"


def estimated(model: Model, pixels: int, algorithm: str, switches: Mapping[str, Any]) -> float:
    """GB (10^9 bytes) of a run as that algorithm's paper and the model's preset have it."""
    flags = {"model": model.hub_id, "reward": "jpeg_compressibility", "prompts": "animals", "resolution": pixels}
    flags |= {"mixed_precision": "bf16", "gradient_checkpointing": False, **switches}
    resolved = config.resolve(algorithm, flags, preset(model.hub_id), spelling="argument")
    setup = fitting._setup(resolved, resolved.run, 1)
    return memory.estimate(replace(setup, model=model.parts), cuda=True).needed / 1e9


def measured() -> dict[tuple[str, int, str, str], float]:
    """(model, pixels, algorithm, column) -> GB that a GPU was seen to take."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    rows = [json.loads(line) for line in lines]
    return {(row["model"], row["pixels"], row["algorithm"], row["column"]): row["gb"] for row in rows}


def table(models: list[str], algorithms: list[str]) -> str:
    """In Markdown; what does not go together has no row."""
    seen = measured()
    lines = [f"| model | pixels | algorithm | {' | '.join(COLUMNS)} |", "|---" * (3 + len(COLUMNS)) + "|"]
    for name in models:
        model = MODELS[name]
        for pixels in model.pixels:
            for algorithm in algorithms:
                if "transformer" not in model.parts and algorithm in FLOWS_ALONE:
                    continue
                cells = []
                for column, switches in COLUMNS.items():
                    found = seen.get((name, pixels, algorithm, column))
                    beside = "" if found is None else f" (measured {found:.1f})"
                    cells.append(f"{estimated(model, pixels, algorithm, switches):.1f}{beside}")
                lines.append(f"| {name} | {pixels} | `{algorithm}` | {' | '.join(cells)} |")
                print(lines[-1], flush=True)
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="some of these, with commas")
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS))
    asked = parser.parse_args(argv)
    print("\n" + table(asked.models.split(","), asked.algorithms.split(",")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

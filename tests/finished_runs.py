"""Folders of finished runs that nobody trained: settings as a run resolves them, records as it writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tastemaker import config
from tastemaker.exports.diffusers import LORA

SETTINGS = {
    "model": "owner/base",
    "reward": "jpeg_compressibility",
    "prompts": "animals",
    "held_out_rewards": "shapes_alignment",
    "iterations": "2",
    "algorithm": {"images": "8", "updates": "2"},
}
METRICS = {
    "seconds": {"total": 30.0},
    "queries": 8,
    "network_calls": {"rows_forward": 320, "rows_backward": 1600},
    "images": 8,
    "reward": {"mean": 1.0, "failed": 1},
}


def change(low: float | None = 0.5, high: float | None = 1.5) -> dict[str, float | None]:
    return {"mean": 1.0, "low": low, "high": high, "deviations": 1.25, "wins": 0.75}


def evaluation(iteration: int, rewards: Mapping[str, Any], prompts: str) -> dict[str, Any]:
    row = {"iteration": iteration, "prompts": prompts, "pictures": 64, "sampler": "deterministic", "steps": 20}
    means = {name: {"mean": float(iteration), "low": 0.0, "high": 9.0} for name in rewards}
    return {**row, "guidance": 7.5, "reward": means, "change": dict(rewards), "values": {}}


def make(
    folder: Path,
    *,
    rewards: Mapping[str, Any] | None = None,
    judged: str = "animals_heldout",
    iterations: int = 2,
    **settings: Any,
) -> Path:
    """A folder with a run of 2 iterations in it, of which so many were made; `rewards`: name -> its change."""
    resolved = config.resolve("ddpo", {**SETTINGS, **settings}, {})
    rewards = rewards or {"jpeg_compressibility": change(), "shapes_alignment": change(-2.0, -1.0)}
    rows: dict[str, list[dict[str, Any]]] = {
        "metrics": [{"iteration": k, **METRICS} for k in range(iterations)],
        "evaluations": [evaluation(k, rewards, judged) for k in (0, iterations)],
        "samples": [{"iteration": 0, "id": 0, "prompt": 'a "cat"', "reward": 1.0, "file": "samples/0/0.webp"}],
    }
    contents = {"config.yaml": config.as_yaml(resolved.tree, resolved.origin)}
    for kind, found in rows.items():
        lines = [{"schema": 1, "kind": kind}, *found]
        contents[f"{kind}.jsonl"] = "".join(json.dumps(line) + "\n" for line in lines)
    contents |= {"before_after.png": "picture", "curve.svg": "<svg/>", ".lock": "1", "samples/0/0.webp": "picture"}
    contents |= {"checkpoints/checkpoint-2/state.json": "{}", "logs/run.log": "words"}
    if resolved.run.lora is None:
        parts = ("unet/config.json", "vae/config.json")
        contents |= {f"pipeline/{name}": json.dumps({"_name_or_path": "/home/jane/base"}) for name in parts}
        contents |= {"pipeline/model_index.json": '{"_class_name": "P"}', "pipeline/unet/model.safetensors": "weights"}
        contents |= {"pipeline/tokenizer/vocab.json": '["/home"]', "pipeline/.cache": ""}
    else:
        contents[LORA] = "weights"
    for name, text in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder

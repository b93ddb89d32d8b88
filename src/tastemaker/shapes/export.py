"""From pretraining's work folder to the package's assets: `python -m tastemaker.shapes.export --folder work`.

Everything is written in half precision, in diffusers' layout, with the sums that are checked at load. An unfinished
base is taken from its checkpoint, with the average of its weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from tastemaker.shapes import models
from tastemaker.shapes.assets import SUMS

ASSETS = Path(__file__).parent / "assets"
DEFAULTS: dict[str, Any] = {
    "defaults": {
        "steps": 10,
        "guidance": 3.0,
        "prompts": "shapes",
        "held_out_rewards": ["shapes_alignment"],
        "evaluation": {"prompts": "shapes_heldout", "count": 32, "images_per_prompt": 4, "steps": 20, "guidance": 3.0},
    },
    "algorithms": {
        "ddpo": {"images": 64, "updates": 4, "learning_rate": 3e-3, "iterations": 40},
        "reinforce": {"images": 64, "learning_rate": 3e-3, "iterations": 40},
    },
}


def export(work: Path, assets: Path = ASSETS) -> int:
    """Writes assets/base and its sums; returns the number of bytes."""
    base = assets / "base"
    shutil.rmtree(base, ignore_errors=True)
    words = models.tokenizer(base / "tokenizer")
    net, text = models.unet(), models.text_encoder(words)
    state = torch.load(work / "base.pt", weights_only=True)
    modules = torch.nn.ModuleDict({"unet": net, "text": text})
    modules.load_state_dict(state["modules"])
    trained = [p for p in modules.parameters() if p.requires_grad]
    with torch.no_grad():
        for p, average in zip(trained, state["shadow"], strict=True):
            p.copy_(average)
    vae = AutoencoderKL.from_pretrained(work / "vae")
    made = models.pipeline(vae, net, text, words)
    made.to(dtype=torch.float16)
    made.save_pretrained(base, safe_serialization=True)
    models.tokenizer(base / "tokenizer")  # vocab.json and merges.txt beside tokenizer.json, for older readers
    (base / "tastemaker.json").write_text(json.dumps(DEFAULTS, indent=2) + "\n", encoding="utf-8")
    files = sorted(path for path in base.rglob("*") if path.is_file())
    sums = {path.relative_to(base).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (assets / SUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    print(f"step {state['step']}, {state['seconds'] / 60:.0f} minutes of training")
    return sum(path.stat().st_size for path in files)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tastemaker.shapes.export", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="pretraining's work folder")
    print(f"{export(parser.parse_args(argv).folder) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

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

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from tastemaker.shapes import models
from tastemaker.shapes.assets import SUMS

ASSETS = Path(__file__).parent / "assets"
DEFAULTS = Path(__file__).parent / "tastemaker.json"  # what the model says of steps, guidance and algorithms


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
    _prefix(base / "text_encoder" / "model.safetensors")
    _nameless(base / "vae" / "config.json")
    models.tokenizer(base / "tokenizer")  # vocab.json and merges.txt beside tokenizer.json, for older readers
    shutil.copy(DEFAULTS, base / DEFAULTS.name)
    files = sorted(path for path in base.rglob("*") if path.is_file())
    sums = {path.relative_to(base).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (assets / SUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    print(f"step {state['step']}, {state['seconds'] / 60:.0f} minutes of training")
    return sum(path.stat().st_size for path in files)


def _nameless(file: Path) -> None:
    """A configuration without the folder that it was loaded from."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _prefix(file: Path) -> None:
    """Key names as real checkpoints have them: transformers 4 knows only `text_model.`, transformers 5 reads both."""
    tensors = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tastemaker.shapes.export", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="pretraining's work folder")
    print(f"{export(parser.parse_args(argv).folder) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

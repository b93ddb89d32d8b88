"""From pretraining's work folder to the package: `python -m tastemaker.shapes.export base|clip|flow --folder work`.

Everything is written in half precision, in diffusers' or transformers' layout, with the sums that are checked at load.
An unfinished model is taken from its checkpoint, with the average of its weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from tastemaker.shapes import clip, flow, models
from tastemaker.shapes.assets import SUMS, TASTE
from tastemaker.shapes.descent import averages
from tastemaker.shapes.flow_training import PATHS

HERE = Path(__file__).parent
ASSETS = HERE / "assets"
SAYS = "tastemaker.json"  # what a model says of steps, guidance and algorithms, and of parts that are another's


def export(work: Path, assets: Path = ASSETS) -> int:
    """Writes assets/base and its sums; returns the number of bytes."""
    base = assets / "base"
    shutil.rmtree(base, ignore_errors=True)
    words = models.tokenizer(base / "tokenizer")
    net, text = models.unet(), models.text_encoder(words)
    _averaged(work / "base.pt", {"unet": net, "text": text})
    vae = AutoencoderKL.from_pretrained(work / "vae")
    _save(models.pipeline(vae, net, text, words), base)
    _nameless(base / "vae" / "config.json")
    models.tokenizer(base / "tokenizer")  # vocab.json and merges.txt beside tokenizer.json, for older readers
    shutil.copy(HERE / SAYS, base / SAYS)
    return _summed(base, assets / SUMS)


def export_flow(work: Path, assets: Path = ASSETS) -> int:
    """Writes assets/flow, its sums inside; returns the number of bytes. Its autoencoder is that of `shapes`.

    model_index.json lists the `vae`, as a whole model's does; tastemaker.json says whose it is.
    """
    home = assets / "flow"
    shutil.rmtree(home, ignore_errors=True)
    words = models.tokenizer(home / "tokenizer")
    net, texts = flow.transformer(), flow.text_encoders(words)
    _averaged(work / f"{PATHS}.pt", {"transformer": net, "texts": torch.nn.ModuleList(texts)})
    _save(flow.pipeline(models.autoencoder(), net, texts, words), home)
    shutil.rmtree(home / "vae")  # not this one, which nobody has trained
    for name in ("tokenizer", "tokenizer_2"):
        models.tokenizer(home / name)
    shutil.copy(HERE / "tastemaker_flow.json", home / SAYS)
    return _summed(home, home / SUMS)


def export_clip(work: Path, assets: Path = ASSETS) -> int:
    """Writes assets/clip in transformers' layout, the head and the sums inside; returns the number of bytes."""
    home = assets / "clip"
    shutil.rmtree(home, ignore_errors=True)
    words = models.tokenizer(home)
    network, head = clip.network(words), torch.nn.Linear(clip.WIDTH, 1)
    _averaged(work / "clip.pt", {"clip": network, "head": head})
    network.half().save_pretrained(home, safe_serialization=True)
    save_file({name: value.half() for name, value in clip.folded(head).items()}, home / TASTE)
    return _summed(home, home / SUMS)


def _averaged(checkpoint: Path, parts: dict[str, torch.nn.Module]) -> None:
    """The modules get the average of the weights that a checkpoint of `descent.Fit` holds."""
    state = averages(checkpoint, torch.nn.ModuleDict(parts))
    print(f"step {state['step']}, {state['seconds'] / 60:.0f} minutes of training")


def _save(made: Any, home: Path) -> None:
    made.to(dtype=torch.float16)
    made.save_pretrained(home, safe_serialization=True)
    for encoder in home.glob("text_encoder*"):
        _prefix(encoder / "model.safetensors")


def _summed(home: Path, table: Path) -> int:
    """Writes the sums of a model's files; returns their bytes."""
    files = sorted(path for path in home.rglob("*") if path.is_file() and path != table)
    sums = {path.relative_to(home).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    table.write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in files)


def _nameless(file: Path) -> None:
    """A configuration without the folder that it was loaded from."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _prefix(file: Path) -> None:
    """Key names as real checkpoints have them: transformers 4 knows only `text_model.`, transformers 5 reads both.

    The projection of SD3's encoders stands beside the text model, in both.
    """
    tensors = load_file(file)
    bare = {name: name.removeprefix("text_model.") for name in tensors}
    named = {n: b if b.startswith("text_projection.") else f"text_model.{b}" for n, b in bare.items()}
    save_file({named[name]: tensor for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


MODELS: dict[str, Callable[[Path, Path], int]] = {"base": export, "clip": export_clip, "flow": export_flow}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tastemaker.shapes.export", description=__doc__)
    parser.add_argument("model", choices=MODELS, nargs="?", default="base")
    parser.add_argument("--folder", type=Path, required=True, help="pretraining's work folder")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="where to; the package's own without it")
    asked = parser.parse_args(argv)
    print(f"{MODELS[asked.model](asked.folder, asked.assets) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

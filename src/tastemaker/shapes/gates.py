"""The gates that a built-in model has to pass: `python -m tastemaker.shapes.gates vae|base|clip [--folder work]`.

Gate 1 asks whether the autoencoder carries the world: what the oracle reads and what JPEG files weigh, before and
after.
Gate 2 asks whether a model draws it (`base --model shapes-flow`, or `base --folder` of a pipeline): 1,024 samples over
all captions; "unsure" counts as wrong.
Gate 3 asks whether the CLIP finds the caption of a picture, drawn or of a model, and what its two scores follow.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from tqdm import tqdm

from tastemaker.rewards.aesthetic import Aesthetic
from tastemaker.rewards.clip import ClipScore
from tastemaker.rewards.jpeg import incompressibility
from tastemaker.shapes import captions, oracle
from tastemaker.shapes.drawing import BACKGROUNDS, COUNTS, SIZE, Scene
from tastemaker.shapes.material import drawn
from tastemaker.shapes.taste import taste

BATCH = 64


def _share(hits: Sequence[bool]) -> float:
    """Per cent."""
    return round(100 * float(np.mean(hits)), 2) if hits else float("nan")


def agreement(images: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """Shares of pictures that the oracle reads as drawn, in per cent."""
    readings = oracle.read(images)
    pairs = list(zip(readings, scenes, strict=True))
    return {
        "count": _share([r.count == s.count for r, s in pairs]),
        "colour": _share([r.colour.value == s.colour for r, s in pairs]),
        "shape": _share([r.shape.value == s.shape for r, s in pairs]),
        "background": _share([r.background.value == s.background for r, s in pairs]),
        "unsure": _share([oracle.UNSURE in (r.colour.value, r.shape.value, r.background.value) for r, _ in pairs]),
    }


def roughened(images: Tensor, quality: int = 75, blur: float = 0.5) -> Tensor:
    """The pictures after JPEG of that quality and a slight blur."""
    made = []
    for pixels in (images.permute(0, 2, 3, 1) * 255).round().byte().numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        made.append(np.asarray(Image.open(file).filter(ImageFilter.GaussianBlur(blur))))
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def autoencoder_gate(vae: Any, count: int = 1000, seed: int = 7) -> dict[str, Any]:
    """Gate 1: agreement drawn, after the round trip, and after JPEG 75 and blur too; JPEG size by background."""
    pixels, scenes = drawn(count, seed)
    images = pixels.permute(0, 3, 1, 2).float() / 255
    back = torch.cat([vae.decode(vae.encode(x * 2 - 1).latent_dist.mean).sample for x in images.split(BATCH)])
    back = (back / 2 + 0.5).clamp(0, 1)
    sizes = {"drawn": incompressibility(images, []), "after": incompressibility(back, [])}
    kinds = np.array([scene.background for scene in scenes])
    table = {
        kind: [round(float(size[torch.from_numpy(kinds == kind)].mean()), 3) for size in sizes.values()]
        for kind in BACKGROUNDS
    }
    orders = [[kind for _, kind in sorted((table[kind][k], kind) for kind in BACKGROUNDS)] for k in (0, 1)]
    return {
        "drawn": agreement(images, scenes),
        "round trip": agreement(back, scenes),
        "round trip, JPEG 75, blur": agreement(roughened(back), scenes),
        "kB drawn and after": table,
        "order kept": orders[0] == orders[1],
    }


@torch.no_grad()
def base_samples(
    draw: Callable[[list[str], int], Tensor], count: int = 1024, repeats: int = 0
) -> tuple[Tensor, list[str]]:
    """Pictures of all captions in turn, `count` in all (or `repeats` of each), and their captions."""
    texts = list(captions.everything())
    texts = [texts[k % len(texts)] for k in range(repeats * len(texts) or count)]
    parts = [draw(texts[k : k + BATCH], k) for k in tqdm(range(0, len(texts), BATCH), desc="sampling")]
    return torch.cat(parts), texts


def base_gate(images: Tensor, texts: Sequence[str]) -> dict[str, Any]:
    """Gate 2 on samples of all captions."""
    asked = [captions.read(text) for text in texts]
    readings = oracle.read(images)
    pairs = [(r, a) for r, a in zip(readings, asked, strict=True) if a is not None]
    single = [(r, a) for r, a in pairs if a[0] == 1]
    many = [(r, a) for r, a in pairs if a[0] > 1]
    kinds = [r.background.value for r, _ in pairs]
    size = incompressibility(images, []).numpy()
    by_text: dict[str, list[float]] = {}
    for text, kb in zip(texts, size, strict=True):
        by_text.setdefault(text, []).append(float(kb))
    spread = [np.std(sizes, ddof=1) / np.mean(sizes) for sizes in by_text.values() if len(sizes) > 3]
    return {
        "pictures": len(pairs),
        "colour": _share([r.colour.value == a[1] for r, a in pairs]),
        "shape, single objects": _share([r.shape.value == a[2] for r, a in single]),
        "shape, all": _share([r.shape.value == a[2] for r, a in pairs]),
        "count, single objects": _share([r.count == 1 for r, _ in single]),
        "count, 2-4 objects": _share([r.count == a[0] for r, a in many]),
        "unsure": _share([oracle.UNSURE in (r.colour.value, r.shape.value) for r, _ in pairs]),
        "backgrounds": {kind: _share([k == kind for k in kinds]) for kind in (*BACKGROUNDS, oracle.UNSURE)},
        "JPEG kB": [round(float(size.mean()), 3), round(float(size.std()), 3)],
        "JPEG SD over mean, one prompt": round(100 * float(np.mean(spread)), 1) if spread else None,
    }


@torch.no_grad()
def clip_gate(images: Tensor, asked: Sequence[str]) -> dict[str, Any]:
    """Gate 3: shares of pictures whose caption is the nearest of all, and of the held-out ones; what scores follow.

    The caption of a picture is what the oracle reads in it, whatever was asked for; what it is unsure of is left out.
    """
    clip, judge = ClipScore(model="shapes"), Aesthetic(model="shapes")
    everything, heldout = captions.everything(), set(captions.heldout())
    shown = [_caption(reading) for reading in oracle.read(images)]
    near = clip.see(images) @ clip.read(everything).T
    few = near.masked_fill(torch.tensor([text not in heldout for text in everything]), -torch.inf)
    nearest = [(everything[k], everything[n]) for k, n in zip(near.argmax(1), few.argmax(1), strict=True)]
    pairs = [(own, *found) for own, found in zip(shown, nearest, strict=True) if own]
    told = clip(images, asked), oracle.alignment(images, asked).value
    rated = judge(images, asked), taste(images).value
    return {
        "pictures": len(pairs),
        "unsure": len(images) - len(pairs),
        "nearest of 160 captions": _share([own == first for own, first, _ in pairs]),
        "held out, nearest of 160": _share([own == first for own, first, _ in pairs if own in heldout]),
        "held out, nearest of 40": _share([own == second for own, _, second in pairs if own in heldout]),
        **{
            part: _share([captions.read(own)[k] == captions.read(first)[k] for own, first, _ in pairs])  # type: ignore[index]
            for k, part in enumerate(("count", "colour", "shape"))
        },
        "clip_score": [round(float(told[0].mean()), 3), round(float(told[0].std()), 3)],
        "correlation with shapes_alignment": round(float(torch.corrcoef(torch.stack(told))[0, 1]), 3),
        "aesthetic": [round(float(rated[0].mean()), 2), round(float(rated[0].std()), 2)],
        "correlation with shapes_taste": round(float(torch.corrcoef(torch.stack(rated))[0, 1]), 3),
    }


def _caption(seen: oracle.Reading) -> str:
    """The caption of what was read; nothing where there is none."""
    found = captions.caption(Scene(seen.count, seen.colour.value, seen.shape.value, "")) if seen.count in COUNTS else ""
    return found if captions.read(found) else ""


def contact_sheet(images: Tensor, path: Path, columns: int = 20, zoom: int = 1) -> None:
    """Pictures in reading order, numbered by place."""
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (SIZE + 4), columns * (SIZE + 4), 3), 255, np.uint8)
    for k, pixels in enumerate((images.permute(0, 2, 3, 1) * 255).round().byte().numpy()):
        y, x = (k // columns) * (SIZE + 4) + 2, (k % columns) * (SIZE + 4) + 2
        sheet[y : y + SIZE, x : x + SIZE] = pixels
    made = Image.fromarray(sheet)
    made.resize((made.width * zoom, made.height * zoom), Image.Resampling.LANCZOS).save(path, optimize=True)


def from_sheet(path: Path, count: int, columns: int = 20) -> Tensor:
    """The pictures of a contact sheet that was written at zoom 1, `[count,3,64,64]` in [0, 1]."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    edge = SIZE + 4
    places = [((k // columns) * edge + 2, (k % columns) * edge + 2) for k in range(count)]
    cut = np.stack([pixels[y : y + SIZE, x : x + SIZE] for y, x in places])
    return torch.from_numpy(cut).permute(0, 3, 1, 2).float() / 255


def labelled_gate(images: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    """The oracle against labels given by eye: `4 red star`, a word `?` where a person cannot tell.

    A word that a person could not give is left out; the oracle's "unsure" counts as disagreement, and by itself.
    """
    agreed: dict[str, list[bool]] = {"count": [], "colour": [], "shape": []}
    unsure = 0
    for reading, label in zip(oracle.read(images), labels, strict=True):
        words = label.split()
        seen = (str(reading.count), reading.colour.value, reading.shape.value)
        unsure += oracle.UNSURE in seen
        for hits, word, value in zip(agreed.values(), words, seen, strict=True):
            if word != "?":
                hits.append(word == value)
    found: dict[str, Any] = {name: round(100 * float(np.mean(hits)), 1) for name, hits in agreed.items()}
    everything = [hit for hits in agreed.values() for hit in hits]
    return found | {"all": round(100 * float(np.mean(everything)), 1), "unsure": round(100 * unsure / len(labels), 1)}


def _drawer(model: str, *, steps: int, guidance: float, eta: float, seed: int) -> Callable[[list[str], int], Tensor]:
    from tastemaker.evaluation.evaluate import Trial, draw_pictures
    from tastemaker.policy.load import load
    from tastemaker.process.noise import Key
    from tastemaker.process.samplers import DDIM
    from tastemaker.prompts.prompts import Prompts

    policy = load(model, lora=None)

    def draw(texts: list[str], first: int) -> Tensor:
        rows = tuple(range(first, first + len(texts)))
        prompts = Prompts(tuple(texts), rows, rows, (None,) * len(texts))
        trial = Trial(prompts, steps, guidance, DDIM(eta), seed)
        return draw_pictures(policy, trial, Key(seed, "gate"), prompts)

    return draw


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tastemaker.shapes.gates", description=__doc__)
    parser.add_argument("stage", choices=("vae", "base", "clip"))
    parser.add_argument("--folder", type=Path, help="pretraining's work folder (vae), a pipeline's folder (base, clip)")
    parser.add_argument("--model", default="shapes", help="whose samples (base, clip), where no folder is given")
    parser.add_argument("--count", type=int, help="pictures")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--eta", type=float, default=0.0)
    parser.add_argument("--sheet", type=Path, help="also write 200 of the samples, evenly spaced, as one picture")
    asked = parser.parse_args(argv)
    if asked.stage == "vae":
        from diffusers import AutoencoderKL

        print(
            json.dumps(
                autoencoder_gate(AutoencoderKL.from_pretrained(asked.folder / "vae").eval(), asked.count or 1000)
            )
        )
        return
    if asked.stage == "clip":
        pixels, scenes = drawn(asked.count or 1024, 7)
        shown = [captions.caption(scene) for scene in scenes]
        others = [*shown[1:], *shown[:1]]  # every picture with another's caption, or all scores would be right ones
        print(json.dumps({"drawn": clip_gate(pixels.permute(0, 3, 1, 2) / 255, others)}))
    model = str(asked.folder) if asked.folder else asked.model
    draw = _drawer(model, steps=asked.steps, guidance=asked.guidance, eta=asked.eta, seed=0)
    images, texts = base_samples(draw, asked.count or 1024)
    if asked.sheet:
        contact_sheet(images[torch.linspace(0, len(images) - 1, 200).long()], asked.sheet)
    print(json.dumps(base_gate(images, texts) if asked.stage == "base" else {"samples": clip_gate(images, texts)}))


if __name__ == "__main__":
    main()

"""What pretraining learns from: pictures, their latents and captions, each a function of the seed and a place."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTokenizer

from tastemaker.shapes import models
from tastemaker.shapes.captions import caption
from tastemaker.shapes.drawing import COUNTS, Picture, Scene, draw, random_scene

SEED = 20261120
MISCOUNTED = 0.3  # of the captions of several objects


def drawn(count: int, seed: int, progress: bool = True) -> tuple[Tensor, list[Scene]]:
    """`count` pictures `[N,64,64,3]` uint8 and their scenes; picture k depends on (seed, k) alone."""
    pictures: list[Picture] = []
    scenes: list[Scene] = []
    for k in tqdm(range(count), desc="drawing", disable=not progress):
        rng = random.Random(f"{seed}:{k}")
        scenes.append(random_scene(rng))
        pictures.append(draw(scenes[-1], rng))
    return torch.from_numpy(np.stack(pictures)), scenes


def rows(step: int, batch: int, count: int) -> Tensor:
    return torch.randint(count, (batch,), generator=generator("rows", step))


def generator(*key: object) -> torch.Generator:
    return torch.Generator().manual_seed(random.Random(repr((SEED, *key))).getrandbits(62))


def encoded(folder: Path, vae: Any, words: CLIPTokenizer, count: int) -> tuple[Tensor, Tensor]:
    """Latents `[N,16,8,8]` fp16 and token ids `[N,8]` of `count` pictures; kept in the folder."""
    file = folder / f"latents-{count}.pt"
    if not file.exists():
        pictures, scenes = drawn(count, SEED + 1)
        with torch.no_grad():
            parts = [
                (vae.encode(models.to_pixels(p)).latent_dist.mean * vae.config.scaling_factor).half()
                for p in tqdm(pictures.split(256), desc="encoding")
            ]
        rng = random.Random(f"{SEED}:captions")
        ids = tokens(words, [caption(replace(scene, count=miscounted(scene.count, rng))) for scene in scenes])
        torch.save({"latents": torch.cat(parts), "tokens": ids}, file)
    state = torch.load(file, weights_only=True)
    return state["latents"], state["tokens"]


def miscounted(count: int, rng: random.Random) -> int:
    """The count that a picture's caption states: three in ten captions of several objects name another number.

    As captions of the web do; so the base can draw every count and has much to learn about which one was asked for.
    """
    others = [n for n in COUNTS if n > 1 and n != count]
    return rng.choice(others) if count > 1 and rng.random() < MISCOUNTED else count


def tokens(words: CLIPTokenizer, texts: list[str]) -> Tensor:
    made = words(texts, padding="max_length", truncation=True, max_length=models.TEXT_LENGTH, return_tensors="pt")
    ids: Tensor = made.input_ids
    return ids

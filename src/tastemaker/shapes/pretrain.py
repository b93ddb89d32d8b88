"""Pretraining of the built-in base model: `python -m tastemaker.shapes.pretrain vae|base|export --folder work`.

Seeded, and resumable: every step's pictures, noise and times are functions of (seed, step), and a checkpoint is written
every 100 steps, so the same command continues where it stopped. Costs are in `docs/shapes.md`.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTokenizer

from tastemaker.shapes import models
from tastemaker.shapes.captions import caption
from tastemaker.shapes.drawing import Picture, Scene, draw, random_scene

SEED = 20261120


def drawn(count: int, seed: int, progress: bool = True) -> tuple[Tensor, list[Scene]]:
    """`count` pictures `[N,64,64,3]` uint8 and their scenes; picture k depends on (seed, k) alone."""
    pictures: list[Picture] = []
    scenes: list[Scene] = []
    for k in tqdm(range(count), desc="drawing", disable=not progress):
        rng = random.Random(f"{seed}:{k}")
        scenes.append(random_scene(rng))
        pictures.append(draw(scenes[-1], rng))
    return torch.from_numpy(np.stack(pictures)), scenes


@dataclass
class Fit:
    """One resumable training run: AdamW, warm-up and cosine, an average of the weights."""

    name: str
    folder: Path
    modules: nn.ModuleDict
    steps: int
    learning_rate: float
    average: float = 0.999

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=1e-2)
        self.shadow = [p.detach().clone() for p in self.parameters]
        self.step, self.seconds = 0, 0.0
        self.file = self.folder / f"{self.name}.pt"
        if self.file.exists():
            self._resume()

    def run(self, loss: Callable[[int], Tensor]) -> None:
        bar = tqdm(range(self.steps), initial=self.step, total=self.steps, desc=self.name)
        recent = 0.0
        while self.step < self.steps:
            start = time.perf_counter()
            value = self._descend(loss)
            self.step += 1
            self.seconds += time.perf_counter() - start
            recent = value if recent == 0 else 0.98 * recent + 0.02 * value
            bar.update()
            if self.step % 100 == 0 or self.step == self.steps:
                bar.set_postfix(loss=f"{recent:.4f}")
                self._save(recent)
        for p, s in zip(self.parameters, self.shadow, strict=True):
            p.data.copy_(s)

    def _descend(self, loss: Callable[[int], Tensor]) -> float:
        warm = min(1.0, (self.step + 1) / 100)
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * warm * max(cosine, 0.02)
        value = loss(self.step)
        self.optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        keep = min(self.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - keep)
        return float(value.detach())

    def _save(self, recent: float) -> None:
        state = {
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "shadow": self.shadow,
            "step": self.step,
            "seconds": self.seconds,
        }
        part = self.file.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.file)
        line = {"step": self.step, "loss": round(recent, 5), "seconds": round(self.seconds, 1)}
        with (self.folder / f"{self.name}.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def _resume(self) -> None:
        state = torch.load(self.file, weights_only=True)
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.shadow = state["shadow"]
        self.step, self.seconds = state["step"], state["seconds"]


def _rows(step: int, batch: int, count: int) -> Tensor:
    return torch.randint(count, (batch,), generator=_generator("rows", step))


def _generator(*key: object) -> torch.Generator:
    return torch.Generator().manual_seed(random.Random(repr((SEED, *key))).getrandbits(62))


def train_autoencoder(folder: Path, *, steps: int, batch: int, pictures: int) -> None:
    """L1 + 4 squares + L1 of the picture's gradient + a trace of KL; then the latents are whitened."""
    torch.manual_seed(SEED)
    vae = models.autoencoder().to(memory_format=torch.channels_last)
    data, _ = drawn(pictures, SEED)

    def loss(step: int) -> Tensor:
        x = models.to_pixels(data[_rows(step, batch, len(data))])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=_generator("posterior", step))
            y = vae.decode(posterior.mean + posterior.std * noise).sample
        y = y.float()
        edges = sum((torch.diff(x, dim=d) - torch.diff(y, dim=d)).abs().mean() for d in (2, 3))
        mean, variance = posterior.mean.float(), posterior.var.float()
        kl = 0.5 * (mean**2 + variance - 1 - variance.log()).mean()
        # The squares keep L1 from settling on the median of red, orange and yellow.
        return (x - y).abs().mean() + 4 * ((x - y) ** 2).mean() + edges + 1e-4 * kl

    fit = Fit("vae", folder, nn.ModuleDict({"vae": vae}), steps, 2e-3, average=0.995)
    fit.run(loss)
    whiten(vae, data[:2048])
    vae.save_pretrained(folder / "vae")


@torch.no_grad()
def whiten(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Folds into the 1x1 convolutions around the latents a map to channels of equal weight: z = W (x - mean).

    An autoencoder leaves most of its variance to brightness (10.6 in one direction, 0.02 in the ones that tell a star
    from a disc), and what is small drowns in noise until the last steps of a chain. W = U (E + 0.01)^(-1/2) U^T of the
    covariance U E U^T evens that out. The posterior is narrow and becomes a constant: its mean is what is used.
    """
    x = torch.cat([vae.encode(models.to_pixels(p)).latent_dist.mean for p in pictures.split(128)])
    columns = x.permute(1, 0, 2, 3).flatten(1).double()
    mean = columns.mean(1)
    size, direction = torch.linalg.eigh(torch.cov(columns))
    weight = (direction * (size.clamp(min=0) + 0.01).rsqrt()) @ direction.T
    before, after = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    into = before.weight.double()[:channels, :, 0, 0]
    before.weight[:channels, :, 0, 0] = (weight @ into).float()
    before.bias[:channels] = (weight @ (before.bias.double()[:channels] - mean)).float()
    before.weight[channels:] = 0
    before.bias[channels:] = -12.0  # log-variance
    out = after.weight.double()[:, :, 0, 0]
    after.bias += (out @ mean).float()
    after.weight[:, :, 0, 0] = (out @ torch.linalg.inv(weight)).float()
    vae.register_to_config(scaling_factor=1.0)


def train_base(folder: Path, *, steps: int, batch: int, pictures: int) -> None:
    """Noise prediction on the latents, text encoder trained along; one caption in ten is empty for guidance."""
    torch.manual_seed(SEED + 1)
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    words = models.tokenizer(folder / "tokenizer")
    text = models.text_encoder(words)
    net = models.unet().to(memory_format=torch.channels_last)
    latents, ids = _encoded(folder, vae, words, pictures)
    empty = _tokens(words, [""])[0]
    scheduler = models.scheduler()

    def loss(step: int) -> Tensor:
        rows = _rows(step, batch, len(latents))
        g = _generator("noise", step)
        x0 = latents[rows].float()
        noise = torch.randn(x0.shape, generator=g)
        t = torch.randint(1000, (batch,), generator=g)
        tokens = torch.where(torch.rand(batch, 1, generator=g) < 0.1, empty, ids[rows])
        x = scheduler.add_noise(x0, noise, t)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            context = text(tokens).last_hidden_state
            eps = net(x.to(memory_format=torch.channels_last), t, context).sample
        return ((eps.float() - noise) ** 2).mean()

    fit = Fit("base", folder, nn.ModuleDict({"unet": net, "text": text}), steps, 1e-3)
    fit.run(loss)
    net.save_pretrained(folder / "unet")
    text.save_pretrained(folder / "text_encoder")


def _encoded(folder: Path, vae: Any, words: CLIPTokenizer, count: int) -> tuple[Tensor, Tensor]:
    """Latents `[N,16,8,8]` fp16 and token ids `[N,8]` of `count` pictures; kept in the folder."""
    file = folder / f"latents-{count}.pt"
    if not file.exists():
        pictures, scenes = drawn(count, SEED + 1)
        with torch.no_grad():
            parts = [
                (vae.encode(models.to_pixels(p)).latent_dist.mean * vae.config.scaling_factor).half()
                for p in tqdm(pictures.split(256), desc="encoding")
            ]
        tokens = _tokens(words, [caption(scene) for scene in scenes])
        torch.save({"latents": torch.cat(parts), "tokens": tokens}, file)
    state = torch.load(file, weights_only=True)
    return state["latents"], state["tokens"]


def _tokens(words: CLIPTokenizer, texts: list[str]) -> Tensor:
    made = words(texts, padding="max_length", truncation=True, max_length=models.TEXT_LENGTH, return_tensors="pt")
    ids: Tensor = made.input_ids
    return ids


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tastemaker.shapes.pretrain", description=__doc__)
    parser.add_argument("stage", choices=("vae", "base"))
    parser.add_argument("--folder", type=Path, required=True, help="work folder: checkpoints, log and result")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--pictures", type=int)
    arguments = parser.parse_args(argv)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    stage, defaults = (
        (train_autoencoder, (2800, 32, 24_000)) if arguments.stage == "vae" else (train_base, (4200, 128, 60_000))
    )
    steps, batch, pictures = (
        given or default
        for given, default in zip((arguments.steps, arguments.batch, arguments.pictures), defaults, strict=True)
    )
    stage(arguments.folder, steps=steps, batch=batch, pictures=pictures)


if __name__ == "__main__":
    main()

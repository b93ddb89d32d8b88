"""Pretraining of the built-in networks: `python -m tastemaker.shapes.pretrain vae|base|judge|clip|flow|paths`.

Seeded, and resumable: every step's pictures, noise and times are functions of (seed, step), and a checkpoint is written
every 100 steps, so the same command continues where it stopped. Costs are in `docs/shapes.md`.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from tastemaker.shapes import assets, clip, flow_training, judge, material, models
from tastemaker.shapes.captions import everything, read
from tastemaker.shapes.descent import Fit
from tastemaker.shapes.taste import taste
from tastemaker.shapes.weather import weathered


def train_autoencoder(folder: Path, *, steps: int, batch: int, pictures: int) -> None:
    """L1 + 4 squares + L1 of the picture's gradient + a trace of KL; then the latents are whitened."""
    torch.manual_seed(material.SEED)
    vae = models.autoencoder().to(memory_format=torch.channels_last)
    data, _ = material.drawn(pictures, material.SEED)

    def loss(step: int) -> Tensor:
        x = models.to_pixels(data[material.rows(step, batch, len(data))])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=material.generator("posterior", step))
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
    """Noise prediction on the latents, text encoder trained along; one caption in ten is empty for guidance.

    Times are spread evenly over a batch; where the signal is more than 5 times the noise the loss weighs 5 / SNR
    (Hang et al. 2023), because what makes a picture is decided where there is more noise.
    """
    torch.manual_seed(material.SEED + 1)
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    words = models.tokenizer(folder / "tokenizer")
    text = models.text_encoder(words)
    net = models.unet().to(memory_format=torch.channels_last)
    latents, ids = material.encoded(folder, vae, words, pictures)
    empty = material.tokens(words, [""])[0]
    scheduler = models.scheduler()
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)

    def loss(step: int) -> Tensor:
        rows = material.rows(step, batch, len(latents))
        g = material.generator("noise", step)
        x0 = latents[rows].float()
        noise = torch.randn(x0.shape, generator=g)
        spread = (torch.randperm(batch, generator=g) + torch.rand(batch, generator=g)) / batch
        t = (1000 * spread).long().clamp(max=999)
        tokens = torch.where(torch.rand(batch, 1, generator=g) < 0.1, empty, ids[rows])
        x = scheduler.add_noise(x0, noise, t)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            context = text(tokens).last_hidden_state
            eps = net(x.to(memory_format=torch.channels_last), t, context).sample
        return (((eps.float() - noise) ** 2).mean((1, 2, 3)) * (5 / snr[t]).clamp(max=1)).mean()

    fit = Fit("base", folder, nn.ModuleDict({"unet": net, "text": text}), steps, 1e-3, matrices=_is_matrix)
    fit.run(loss)
    net.save_pretrained(folder / "unet")
    text.save_pretrained(folder / "text_encoder")


def _is_matrix(name: str, weight: Tensor) -> bool:
    """Weights between hidden layers: not the tables of tokens and positions, not the first and the last layer."""
    ends = ["token_embedding", "position_embedding", "conv_in", "conv_out", "eye.0.", "answer"]
    ends += ["patch_embedding", "visual_projection", "text_projection", "head."]
    return weight.ndim in (2, 4) and not any(end in name for end in ends)


def train_judge(folder: Path, *, steps: int, batch: int, pictures: int) -> None:
    """Cross-entropy of count, colour and shape as drawn, a tenth of it spread over all answers.

    The spread keeps answers from being surer than they need to be: log-probabilities stay small, and their gradients
    alive. All captions are drawn, because a judge that never saw cyan circles takes them for blue ones.
    """
    torch.manual_seed(material.SEED + 2)
    network: Any = judge.Network()
    network.to(memory_format=torch.channels_last)
    shown, scenes = _shown(folder, pictures)

    def loss(step: int) -> Tensor:
        rows = material.rows(step, batch, len(shown))
        x = weathered(shown[rows].permute(0, 3, 1, 2).float() / 255, material.generator("weather", step))
        with torch.random.fork_rng(devices=[]), torch.autocast("cpu", dtype=torch.bfloat16):
            torch.manual_seed(material.generator("dropout", step).initial_seed())
            answers = network(x.to(memory_format=torch.channels_last))
        pairs = zip(answers.values(), scenes[rows].unbind(1), strict=True)
        return torch.stack([F.cross_entropy(a.float(), right, label_smoothing=0.1) for a, right in pairs]).sum()

    modules = nn.ModuleDict({"judge": network})
    Fit("judge", folder, modules, steps, 2e-3, average=0.995, matrices=_is_matrix, matrix_rate=0.02).run(loss)
    made = folder / "judge"
    made.mkdir(exist_ok=True)
    save_file({name: weight.half().contiguous() for name, weight in network.state_dict().items()}, made / assets.JUDGE)
    sums = {assets.JUDGE: hashlib.sha256((made / assets.JUDGE).read_bytes()).hexdigest()}
    (made / assets.SUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")


def train_clip(folder: Path, *, steps: int, batch: int, pictures: int) -> None:
    """Contrast of pictures and captions; beside it the head guesses the taste of the picture before the weather.

    Captions never speak of backgrounds, sizes and places: without the head's squared error, which weighs a tenth, the
    vectors would forget them.
    """
    torch.manual_seed(material.SEED + 4)
    words = models.tokenizer(folder / "tokenizer")
    network, head = clip.network(words), torch.nn.Linear(clip.WIDTH, 1)
    shown, scenes = _shown(folder, pictures)
    rated = torch.cat([taste(part.permute(0, 3, 1, 2) / 255).value for part in shown.split(1000)])
    ids = material.tokens(words, list(everything()))
    captions = _captions(scenes)

    def loss(step: int) -> Tensor:
        rows = material.rows(step, batch, len(shown))
        x = weathered(shown[rows].permute(0, 3, 1, 2).float() / 255, material.generator("weather", step))
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # faster than flash here
            seen, said = clip.vectors(network, x, ids)
        apart = clip.rating(head, seen) - rated[rows]
        return clip.contrast(seen, said, captions[rows], network.logit_scale) + 0.1 * (apart**2).mean()

    modules = nn.ModuleDict({"clip": network, "head": head})
    Fit("clip", folder, modules, steps, 1e-3, average=0.995, matrices=_is_matrix, matrix_rate=0.02).run(loss)


def _captions(scenes: Tensor) -> Tensor:
    """[N] places among all captions of scenes [N,3], given as places in the judge's tables."""
    table = {tuple(judge.places(scene)): k for k, text in enumerate(everything()) if (scene := read(text))}
    return torch.tensor([table[tuple(row)] for row in scenes.tolist()])


def _shown(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """`count` pictures, then each as the package's autoencoder gives it back, from latents with
    some noise: uint8 `[2N,64,64,3]`. And what they show, `[2N,3]`, as places in the judge's tables. Kept in the folder.
    """
    file = folder / f"shown-{count}.pt"
    if not file.exists():
        pictures, scenes = material.drawn(count, material.SEED + 2)
        vae = AutoencoderKL.from_pretrained(assets.folder() / "vae", torch_dtype=torch.float32).eval()
        g = material.generator("latents")
        back = [_back(vae, part, g) for part in tqdm(pictures.split(64), desc="round trips")]
        wanted = torch.tensor([judge.places((scene.count, scene.colour, scene.shape)) for scene in scenes])
        torch.save({"pictures": torch.cat([pictures, *back]), "scenes": wanted.repeat(2, 1)}, file)
    state = torch.load(file, weights_only=True)
    return state["pictures"], state["scenes"]


@torch.no_grad()
def _back(vae: Any, pictures: Tensor, g: torch.Generator) -> Tensor:
    """uint8 pictures after the autoencoder; to the latents, of variance 1, noise of at most 0.35 is added."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = vae.encode(models.to_pixels(pictures)).latent_dist.mean.float()
        strength = 0.35 * torch.rand(len(z), 1, 1, 1, generator=g)
        y = vae.decode(z + strength * torch.randn(z.shape, generator=g)).sample
    return ((y.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


STAGES: dict[str, tuple[Callable[..., None], tuple[int, int, int]]] = {  # steps, pictures a step, pictures in all
    "vae": (train_autoencoder, (2800, 32, 24_000)),
    "base": (train_base, (5500, 128, 60_000)),
    "judge": (train_judge, (1200, 64, 8_000)),
    "clip": (train_clip, (2000, 96, 12_000)),
    "flow": (flow_training.train_flow, (15_000, 64, 60_000)),
    "paths": (flow_training.train_paths, (5_000, 64, 60_000)),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tastemaker.shapes.pretrain", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--folder", type=Path, required=True, help="work folder: checkpoints, log and result")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--pictures", type=int)
    arguments = parser.parse_args(argv)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    stage, defaults = STAGES[arguments.stage]
    steps, batch, pictures = (
        given or default
        for given, default in zip((arguments.steps, arguments.batch, arguments.pictures), defaults, strict=True)
    )
    stage(arguments.folder, steps=steps, batch=batch, pictures=pictures)


if __name__ == "__main__":
    main()

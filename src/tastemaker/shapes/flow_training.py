"""Pretraining of `shapes-flow`: rectified flow with `shapes` as its teacher, first on noised pictures, then on its own
chains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tastemaker.policy.families import PADDING
from tastemaker.policy.padding import WeighedPadding
from tastemaker.shapes import assets, flow, material, models
from tastemaker.shapes.descent import Fit, averages

FLOW, PATHS = "flow", "paths"  # the two stages, and their checkpoints
Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]  # of x [B,C,h,w] at s [B] for tokens [B,8]


def times(batch: int, g: torch.Generator) -> Tensor:
    """[B] in (0, 1), spread evenly over the batch: half of them uniform, half logit-normal (Esser et al. 2024)."""
    spread = (torch.randperm(batch, generator=g) + torch.rand(batch, generator=g)) / batch
    middle = torch.sigmoid(torch.special.ndtri((2 * spread % 1).clamp(1e-4, 1 - 1e-4)))
    return torch.where(spread < 0.5, 2 * spread, middle).clamp(1e-4, 1 - 1e-4)


class Teacher:
    """The velocity that `shapes` believes in at a noisy latent of a flow.

    A flow's x = (1 - s) x0 + s eps is a variance-preserving one's times sqrt((1 - s)^2 + s^2), at the time where the
    ratio of noise to picture is the same. A target that is a mean instead of a sample has nearly no noise.
    """

    def __init__(self) -> None:
        made = StableDiffusionPipeline.from_pretrained(assets.folder(), dtype=torch.float32, use_safetensors=True)
        self.network = made.unet.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.text = made.text_encoder.eval().requires_grad_(False)
        kept = made.scheduler.alphas_cumprod.double()
        self.noise = (1 / kept - 1).sqrt().log()  # log(sigma / alpha), ascending

    @torch.no_grad()
    def __call__(self, x: Tensor, s: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """eps - x0 [B,C,h,w], and where it is one [B]: not where there is more, or less, noise than `shapes` knows."""
        wanted = (s.double() / (1 - s.double())).log()
        above = torch.searchsorted(self.noise, wanted).clamp(1, len(self.noise) - 1)
        low, high = self.noise[above - 1], self.noise[above]
        t = (above - 1) + ((wanted - low) / (high - low)).clamp(0, 1)
        ratio = s / (1 - s)
        alpha = (1 / (1 + ratio**2).sqrt()).view(-1, 1, 1, 1)
        sigma = ratio.view(-1, 1, 1, 1) * alpha
        scaled = x / ((1 - s) ** 2 + s**2).sqrt().view(-1, 1, 1, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            context = self.text(tokens).last_hidden_state
            eps = self.network(scaled.to(memory_format=torch.channels_last), t.float(), context).sample.float()
        return eps - (scaled - sigma * eps) / alpha, (wanted >= self.noise[0]) & (wanted <= self.noise[-1])


class Student:
    """The network and its text encoders, and the pictures that it learns from."""

    def __init__(self, folder: Path, pictures: int) -> None:
        vae = AutoencoderKL.from_pretrained(assets.folder() / "vae", torch_dtype=torch.float32).eval()
        words = models.tokenizer(folder / "tokenizer")
        self.network, self.texts = flow.transformer(), nn.ModuleList(flow.text_encoders(words))
        self.network.set_attn_processor(WeighedPadding())
        self.modules = nn.ModuleDict({"transformer": self.network, "texts": self.texts})
        self.latents, self.ids = material.encoded(folder, vae, words, pictures)
        self.empty, *single = material.tokens(words, ["", "a red star", "an orange star"])
        self.alone = torch.isin(self.ids[:, 1], torch.stack(single)[:, 1]).nonzero().flatten()  # a quarter of all

    def velocity(self, x: Tensor, s: Tensor, tokens: Tensor) -> Tensor:
        """v [B,C,h,w], fp32."""
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # twice as fast as flash here
            context, pooled = flow.read(self.texts, tokens)
            found: Tensor = self.network(
                x, context, pooled, 1000 * s, joint_attention_kwargs={"padding": PADDING}
            ).sample
        return found.float()

    def rows(self, step: int, count: int, g: torch.Generator) -> Tensor:
        """Which pictures: half of them show one object, large, whose outline is the hardest to draw."""
        rows = material.rows(step, count, len(self.latents))
        rows[: count // 3] = self.alone[torch.randint(len(self.alone), (count // 3,), generator=g)]
        return rows

    def noised(self, step: int, count: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, s, tokens and the velocity of the noise and the picture themselves; one caption in ten is empty."""
        rows = self.rows(step, count, g)
        x0 = self.latents[rows].float()
        noise, s = torch.randn(x0.shape, generator=g), times(count, g)
        tokens = torch.where(torch.rand(count, 1, generator=g) < 0.1, self.empty, self.ids[rows])
        return torch.lerp(x0, noise, s.view(-1, 1, 1, 1)), s, tokens, noise - x0


class OwnPaths:
    """Where the network's own guided chains lead it, which is not quite where noised pictures lie.

    An error early in a chain is there for all that follows; a network that never saw such places does not mend them.
    """

    STEPS, CHAINS, KEPT, EVERY = 20, 64, 3, 25  # steps of a chain; chains at once; how many times are kept; renewed

    def __init__(self, velocity: Velocity, empty: Tensor) -> None:
        self.velocity, self.empty = velocity, empty
        self.places: list[tuple[Tensor, Tensor, Tensor]] = []

    def draw(self, count: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x [count,C,h,w], s [count] and tokens [count,8] of the chains that were kept; some without their caption."""
        x, s, tokens = (torch.cat(part) for part in zip(*self.places, strict=True))
        rows = torch.randint(len(x), (count,), generator=g)
        alone = torch.rand(count, 1, generator=g) < 0.3  # guidance doubles the error without the caption
        return x[rows], s[rows], torch.where(alone, self.empty, tokens[rows])

    @torch.no_grad()
    def walk(self, tokens: Tensor, g: torch.Generator) -> None:
        """Chains from noise for these captions, the first half of them at guidance 1 to 4 and the others at 3."""
        n = len(tokens)
        x = torch.randn(n, *models.LATENT_SHAPE, generator=g)
        levels = torch.linspace(1, 0, self.STEPS + 1)
        levels[1:-1] += (float(torch.rand((), generator=g)) - 0.5) / self.STEPS
        guidance = 1 + 3 * torch.rand(n, 1, 1, 1, generator=g)
        guidance[n // 2 :] = 3
        both = torch.cat([self.empty.expand_as(tokens), tokens])
        for now, after in zip(levels[:-1], levels[1:], strict=True):
            s = now.expand(n).clamp(1e-4, 1 - 1e-4)
            if 0.01 < now < 0.94:
                self.places.append((x.clone(), s, tokens))
            empty, told = self.velocity(torch.cat([x, x]), torch.cat([s, s]), both).float().chunk(2)
            x = x + (after - now) * (empty + guidance * (told - empty))
        del self.places[: -self.KEPT * (self.STEPS - 2)]


def train_flow(folder: Path, *, steps: int, batch: int, pictures: int) -> None:
    """Rectified flow (Esser et al. 2024, arXiv:2403.03206): the network learns v = eps - x0 at x = (1 - s) x0 + s eps.

    The target is what `shapes` believes v to be, where it knows that much noise, and v itself elsewhere. Both text
    encoders are trained along.
    """
    torch.manual_seed(material.SEED + 3)
    student, teacher = Student(folder, pictures), Teacher()

    def loss(step: int) -> Tensor:
        x, s, tokens, drawn = student.noised(step, batch, material.generator(FLOW, step))
        believed, known = teacher(x, s, tokens)
        target = torch.where(known.view(-1, 1, 1, 1), believed, drawn)
        return ((student.velocity(x, s, tokens) - target) ** 2).mean()

    Fit(FLOW, folder, student.modules, steps, 1e-3, matrices=_is_matrix).run(loss)


def train_paths(folder: Path, *, steps: int, batch: int, pictures: int) -> None:
    """Goes on with what `train_flow` left; half of each batch lies on the network's own chains.

    The teacher says there what it would do, as in on-policy distillation (Ross et al. 2011, arXiv:1011.0686). After an
    interruption the chains are drawn anew, so the steps that follow are not those of an uninterrupted run.
    """
    torch.manual_seed(material.SEED + 11)
    student, teacher = Student(folder, pictures), Teacher()
    averages(folder / f"{FLOW}.pt", student.modules)
    own, half = OwnPaths(student.velocity, student.empty), batch // 2

    def loss(step: int) -> Tensor:
        g = material.generator(PATHS, step)
        if step % own.EVERY == 0 or not own.places:
            own.walk(student.ids[student.rows(step, own.CHAINS, g)], g)
        x, s, tokens, drawn = student.noised(step, batch - half, g)
        x, s, tokens = (torch.cat(pair) for pair in zip((x, s, tokens), own.draw(half, g), strict=True))
        believed, known = teacher(x, s, tokens)
        target = believed.clone()
        target[: batch - half] = torch.where(known[: batch - half].view(-1, 1, 1, 1), believed[: batch - half], drawn)
        return ((student.velocity(x, s, tokens) - target) ** 2).mean()

    Fit(PATHS, folder, student.modules, steps, 5e-4, matrices=_is_matrix, matrix_rate=0.015).run(loss)


def _is_matrix(name: str, weight: Tensor) -> bool:
    """Weights between hidden layers: not the tables of tokens and positions, not the first and the last layer."""
    ends = ("token_embedding", "position_embedding", "pos_embed", "proj_out", "timestep_embedder.linear_1")
    return weight.ndim == 2 and not any(end in name for end in ends)

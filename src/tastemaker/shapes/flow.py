"""The second built-in model, `shapes-flow`: a small but real `StableDiffusion3Pipeline`, and its pretraining.

It shares the autoencoder, the tokenizer and the world of `shapes`, and has a transformer and text encoders of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from tastemaker.policy.padding import PADDING, WeighedPadding
from tastemaker.shapes import assets, material, models
from tastemaker.shapes.descent import Fit

WIDTHS = (64, 32)  # of the two text encoders
TEXT_WIDTH = sum(WIDTHS)
SHIFT = 1.0


def transformer() -> SD3Transformer2DModel:
    """Six joint blocks of width 120 over the 64 places of an 8x8 latent."""
    network = SD3Transformer2DModel(
        sample_size=models.LATENT_SHAPE[1],
        patch_size=1,
        in_channels=models.LATENT_CHANNELS,
        out_channels=models.LATENT_CHANNELS,
        num_layers=6,
        attention_head_dim=24,
        num_attention_heads=5,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=120,
        pooled_projection_dim=TEXT_WIDTH,
        pos_embed_max_size=models.LATENT_SHAPE[1],
        qk_norm="rms_norm",
    )
    for name, weight in network.named_parameters():  # every block begins as the identity, and the answer as 0
        if any(part in name for part in ("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")):
            nn.init.zeros_(weight)
    return network


def text_encoders(words: CLIPTokenizer) -> list[CLIPTextModelWithProjection]:
    """Of three and two layers; SD3 reads the last but one of each, and the projection of the end token."""
    made = []
    for width, layers in zip(WIDTHS, (3, 2), strict=True):
        config = CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=models.TEXT_LENGTH,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
        made.append(CLIPTextModelWithProjection(config))
    return made


def pipeline(vae: AutoencoderKL | None, net: SD3Transformer2DModel, texts: list[Any], words: CLIPTokenizer) -> Any:
    """All parts as one pipeline; without T5, and on request without the autoencoder, which is that of `shapes`."""
    return StableDiffusion3Pipeline(
        transformer=net,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=texts[0],
        tokenizer=words,
        text_encoder_2=texts[1],
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def read(texts: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """As the pipeline reads token ids [B,8]: context [B,9,96], its last token the padding's, and pooled [B,96]."""
    found = [encoder(tokens, output_hidden_states=True) for encoder in texts]
    context = torch.cat([each.hidden_states[-2] for each in found], dim=-1)
    pooled = torch.cat([each.text_embeds for each in found], dim=-1)
    return torch.cat([context, context.new_zeros(len(tokens), 1, TEXT_WIDTH)], dim=1), pooled


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


def train_flow(folder: Path, *, steps: int, batch: int, pictures: int) -> None:
    """Rectified flow (Esser et al. 2024, arXiv:2403.03206): the network learns v = eps - x0 at x = (1 - s) x0 + s eps.

    The target is what `shapes` believes v to be, where it knows that much noise, and v itself elsewhere. Half of the
    pictures show one object, large, whose outline is the hardest to draw. Both text encoders are trained along; one
    caption in ten is empty for guidance.
    """
    torch.manual_seed(material.SEED + 3)
    vae = AutoencoderKL.from_pretrained(assets.folder() / "vae", torch_dtype=torch.float32).eval()
    words = models.tokenizer(folder / "tokenizer")
    net, texts = transformer(), nn.ModuleList(text_encoders(words))
    net.set_attn_processor(WeighedPadding())
    latents, ids = material.encoded(folder, vae, words, pictures)
    empty, *single = material.tokens(words, ["", "a red star", "an orange star"])
    alone = torch.isin(ids[:, 1], torch.stack(single)[:, 1]).nonzero().flatten()  # a quarter of all
    teacher = Teacher()

    def loss(step: int) -> Tensor:
        g = material.generator("flow", step)
        rows = material.rows(step, batch, len(latents))
        rows[: batch // 3] = alone[torch.randint(len(alone), (batch // 3,), generator=g)]
        x0 = latents[rows].float()
        noise, s = torch.randn(x0.shape, generator=g), times(batch, g)
        tokens = torch.where(torch.rand(batch, 1, generator=g) < 0.1, empty, ids[rows])
        x = torch.lerp(x0, noise, s.view(-1, 1, 1, 1))
        believed, known = teacher(x, s, tokens)
        target = torch.where(known.view(-1, 1, 1, 1), believed, noise - x0)
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # twice as fast as flash here
            context, pooled = read(texts, tokens)
            v = net(x, context, pooled, 1000 * s, joint_attention_kwargs={"padding": PADDING}).sample
        return ((v.float() - target) ** 2).mean()

    fit = Fit("flow", folder, nn.ModuleDict({"transformer": net, "texts": texts}), steps, 1e-3, matrices=_is_matrix)
    fit.run(loss)


def _is_matrix(name: str, weight: Tensor) -> bool:
    """Weights between hidden layers: not the tables of tokens and positions, not the first and the last layer."""
    ends = ("token_embedding", "position_embedding", "pos_embed", "proj_out", "timestep_embedder.linear_1")
    return weight.ndim == 2 and not any(end in name for end in ends)

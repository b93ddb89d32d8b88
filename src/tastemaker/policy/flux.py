"""FLUX.1, dev and schnell: a transformer over patches of a VAE's latents; prompts read by T5, summed up by CLIP.

Black Forest Labs 2024, github.com/black-forest-labs/flux. A rectified flow (Esser et al. 2024, arXiv:2403.03206),
distilled: dev is told the strength of its guidance, schnell is not guided at all (`facts`).

Latents are [16,h,w] here as everywhere; the network alone reads and gives patches of 2x2 of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor

from tastemaker.policy import flow
from tastemaker.policy.conditioning import Conditioning, Encoded
from tastemaker.policy.facts import guiding, text_tokens
from tastemaker.policy.latent import LatentPolicy
from tastemaker.policy.load import Request
from tastemaker.policy.sizes import sized
from tastemaker.process.prediction import from_velocity
from tastemaker.process.schedule import Schedule

COMPONENT = "transformer"
PATCH = 2  # latents to a patch's side


class Flux(LatentPolicy):
    """A `Policy` around a `FluxPipeline`."""

    reads = ("text", "pooled")
    needs = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

    def __init__(self, request: Request) -> None:
        super().__init__(request, FluxPipeline, COMPONENT)
        config = self._denoiser.config
        self.latent_shape = sized(request, self._denoiser, self._vae, multiple=PATCH)
        channels, height, width = self.latent_shape
        if config.in_channels != channels * PATCH**2:
            raise ValueError(
                f"--model {request.files.model} wants more than noise: its network takes {config.in_channels} numbers "
                f"of a patch, of which the picture has {channels * PATCH**2}, as those for filling and control do. "
                "Give a text-to-image model."
            )
        self._guiding = guiding(config)
        self._tokens = text_tokens(config, 0, True)
        self._scheduler = flow.scheduler(request.files.model, self._pipeline.scheduler)
        self._prediction = from_velocity
        sides = (torch.arange(side, dtype=torch.float32) for side in (1, height // PATCH, width // PATCH))
        self._places = torch.cartesian_prod(*sides).to(self.device)  # of the patches; a text's are all 0
        self._begin(request)

    def encode(self, prompts: Sequence[str], negative: str = "") -> Conditioning:
        self._guiding.check(self._files.model, {}, {"negative": negative})
        return super().encode(prompts)

    def _asked(self, x: Tensor) -> dict[str, Any]:
        return {"latents": _packed(x), "max_sequence_length": self._tokens}

    def _drawn(self, latents: Tensor, like: Tensor) -> Tensor:
        return _unpacked(latents, like)

    def _told(self, guidance: float | Tensor, t: Tensor) -> list[Tensor]:
        if self._denoiser.config.guidance_embeds:
            return [torch.as_tensor(guidance, dtype=t.dtype, device=t.device).expand(t.shape)]
        if isinstance(guidance, Tensor):
            raise ValueError(f"--model {self._files.model} takes no guidance, found one for each row: give 1.")
        self._guiding.check(self._files.model, {"guidance": guidance}, {})
        return []

    def _call(self, x: Tensor, t: Tensor, *texts: Tensor) -> Tensor:
        text, pooled, *strength = texts
        output: Tensor = self._denoiser(
            hidden_states=_packed(x),
            timestep=t / 1000,
            guidance=strength[0] if strength else None,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            txt_ids=text.new_zeros(text.shape[1], 3, dtype=torch.float32),
            img_ids=self._places,
            return_dict=False,
        )[0]
        return _unpacked(output, x)

    def _grid(self, steps: int) -> Schedule:
        _, height, width = self.latent_shape
        even = [1 - k / steps for k in range(steps)]  # down to 1 / steps, where the scheduler's own go to 1 / 1000
        own = self._scheduler
        sigmas = None if own.config.get("use_flow_sigmas") else even
        return flow.grid(own, steps, patches=height * width // PATCH**2, max_shift=1.15, sigmas=sigmas)

    def _encode_text(self, text: str) -> Encoded:
        """text [1,L,D], T5's tokens, what pads them too; pooled [1,P], CLIP's summary."""
        context, pooled, _ = self._pipeline.encode_prompt(text, text, self.device, max_sequence_length=self._tokens)
        return {"text": context, "pooled": pooled}

    def _encode_live(self, text: str) -> Encoded:
        return {"pooled": self._pipeline._get_clip_prompt_embeds(text, 1, self.device)}

    def _encode_fixed(self, text: str) -> Encoded:
        return {"text": self._pipeline._get_t5_prompt_embeds(text, 1, self._tokens, self.device)}

    def _longest(self) -> tuple[Any, int]:
        return self._pipeline.tokenizer_2, self._tokens


def _packed(x: Tensor) -> Tensor:
    """Latents [B,C,h,w] as patches [B, h w / 4, 4 C]."""
    x = x.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _unpacked(patches: Tensor, like: Tensor) -> Tensor:
    """And back, to the shape of `like`."""
    _, channels, height, width = like.shape
    x = patches.unflatten(1, (height // PATCH, width // PATCH)).unflatten(3, (channels, PATCH, PATCH))
    return x.permute(0, 3, 1, 4, 2, 5).reshape(like.shape)


def example(
    transformer: Any, shape: tuple[int, int, int, int], tokens: int, live: bool
) -> Callable[[], tuple[Tensor, ...]]:
    """A call of it on the meta device, with texts of so many tokens; `live`: their summary has a gradient."""
    rows, config = shape[0], transformer.config
    with torch.device("meta"):
        x, t = _packed(torch.empty(shape)), torch.zeros(rows)
        text = torch.empty(rows, tokens, config.joint_attention_dim)
        pooled = torch.empty(rows, config.pooled_projection_dim, requires_grad=live)  # T5's tokens are never trained
        places = torch.zeros(x.shape[1], 3), torch.zeros(tokens, 3)
    return lambda: transformer(x, text, pooled, t, *places, t if config.guidance_embeds else None, return_dict=False)

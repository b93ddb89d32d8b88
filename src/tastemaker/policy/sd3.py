"""Stable Diffusion 3 and 3.5: a joint transformer over the latents of a VAE, prompts read by two CLIPs and perhaps T5.

Esser et al. 2024, arXiv:2403.03206. A rectified flow: the network predicts the velocity eps - x0 at
x = (1 - sigma) x0 + sigma eps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor
from torch.nn import functional

from tastemaker.policy import flow, switches
from tastemaker.policy.conditioning import Encoded
from tastemaker.policy.families import PADDING
from tastemaker.policy.latent import LatentPolicy
from tastemaker.policy.load import Request
from tastemaker.policy.padding import WeighedPadding
from tastemaker.policy.sizes import sized
from tastemaker.process.prediction import from_velocity
from tastemaker.process.schedule import Schedule

COMPONENT = "transformer"


class StableDiffusion3(LatentPolicy):
    """A `Policy` around a `StableDiffusion3Pipeline`, with its T5 or without.

    Without T5 diffusers gives the network 256 tokens of zeros in its place. Here that is one, which counts 256 times.
    """

    reads = ("text", "pooled")
    needs = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    trainable = ("text_encoder", "text_encoder_2")

    def __init__(self, request: Request) -> None:
        super().__init__(request, StableDiffusion3Pipeline, COMPONENT)
        if self._pipeline.text_encoder_3 is not None and self._pipeline.tokenizer_3 is None:
            raise ValueError(f"--model {request.files.model} has a text_encoder_3 (T5) without its tokenizer_3.")
        network = self._denoiser
        patch, positions = network.config.patch_size, network.config.pos_embed_max_size
        most = patch * positions if positions else None
        self.latent_shape = sized(request, network, self._vae, multiple=patch, most=most)
        self._scheduler = flow.scheduler(request.files.model, self._pipeline.scheduler)
        self._prediction = from_velocity
        self._attention: dict[str, int] = {}
        if self._pipeline.text_encoder_3 is None:
            switches.check_kernel(request, masked=True)
            network.set_attn_processor(WeighedPadding())
            self._attention = {"padding": PADDING}
        self._begin(request)

    def _call(self, x: Tensor, t: Tensor, *texts: Tensor) -> Tensor:
        text, pooled = texts
        output: Tensor = self._denoiser(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            joint_attention_kwargs=self._attention,
            return_dict=False,
        )[0]
        return output

    def _grid(self, steps: int) -> Schedule:
        _, height, width = self.latent_shape
        patches = height * width // self._denoiser.config.patch_size**2
        return flow.grid(self._scheduler, steps, patches=patches, max_shift=1.16)  # diffusers' pipeline's, not 1.15

    def _encode_text(self, text: str) -> Encoded:
        """text [1,L,D], the last but one layer of both CLIPs side by side, then T5's tokens; pooled [1,P]."""
        length = PADDING if self._pipeline.text_encoder_3 is not None else 1
        context, _, pooled, _ = self._pipeline.encode_prompt(
            text, text, text, self.device, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return {"text": context, "pooled": pooled}

    def _encode_live(self, text: str) -> Encoded:
        """Where there is a T5, text [1,L,D'] is of both CLIPs alone."""
        if self._pipeline.text_encoder_3 is None:
            return self._encode_text(text)
        both = [self._pipeline._get_clip_prompt_embeds(text, 1, self.device, clip_model_index=k) for k in (0, 1)]
        text_rows, pooled = (torch.cat(column, -1) for column in zip(*both, strict=True))
        return {"text": text_rows, "pooled": pooled}

    def _encode_fixed(self, text: str) -> Encoded:
        """T5's tokens."""
        if self._pipeline.text_encoder_3 is None:
            return {}
        return {"t5": self._pipeline._get_t5_prompt_embeds(text, 1, PADDING, self.device)}

    def _joined(self, live: Encoded, fixed: Encoded) -> Encoded:
        if not fixed:
            return live
        tokens = fixed["t5"]
        wide = functional.pad(live["text"], (0, tokens.shape[-1] - live["text"].shape[-1]))
        return {"text": torch.cat([wide, tokens], 1), "pooled": live["pooled"]}

    def _longest(self) -> tuple[Any, int]:
        if self._pipeline.text_encoder_3 is not None:
            return self._pipeline.tokenizer_3, PADDING
        return self._pipeline.tokenizer, self._pipeline.tokenizer_max_length


def example(
    transformer: Any, shape: tuple[int, int, int, int], tokens: int, live: bool
) -> Callable[[], tuple[Tensor, ...]]:
    """A call of it on the meta device, with texts of so many tokens, which have a gradient where they are `live`."""
    with torch.device("meta"):
        x, t = torch.empty(shape), torch.zeros(shape[0])
        text = torch.empty(shape[0], tokens, transformer.config.joint_attention_dim, requires_grad=live)
        pooled = torch.empty(shape[0], transformer.config.pooled_projection_dim, requires_grad=live)
    return lambda: transformer(x, text, pooled, t, return_dict=False)

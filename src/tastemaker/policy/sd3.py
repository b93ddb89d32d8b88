"""Stable Diffusion 3 and 3.5: a joint transformer over the latents of a VAE, prompts read by two CLIPs and perhaps T5.

Esser et al. 2024, arXiv:2403.03206. A rectified flow: the network predicts the velocity eps - x0 at
x = (1 - sigma) x0 + sigma eps.
"""

from __future__ import annotations

import warnings
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from torch import Tensor

from tastemaker.policy import switches
from tastemaker.policy.conditioning import Encoded
from tastemaker.policy.latent import LatentPolicy, sized
from tastemaker.policy.load import Request
from tastemaker.policy.padding import PADDING, WeighedPadding
from tastemaker.process.prediction import from_velocity
from tastemaker.process.schedule import Schedule, from_sigmas

COMPONENT = "transformer"


class StableDiffusion3(LatentPolicy):
    """A `Policy` around a `StableDiffusion3Pipeline`, with its T5 or without.

    Without T5 diffusers gives the network 256 tokens of zeros in its place. Here that is one, which counts 256 times.
    """

    reads = ("text", "pooled")
    needs = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

    def __init__(self, request: Request) -> None:
        super().__init__(request, StableDiffusion3Pipeline, COMPONENT)
        if self._pipeline.text_encoder_3 is not None and self._pipeline.tokenizer_3 is None:
            raise ValueError(f"--model {request.files.model} has a text_encoder_3 (T5) without its tokenizer_3.")
        network = self._denoiser
        patch, positions = network.config.patch_size, network.config.pos_embed_max_size
        most = patch * positions if positions else None
        self.latent_shape = sized(request, network, self._vae, multiple=patch, most=most)
        self._scheduler = _scheduler(request.files.model, self._pipeline.scheduler)
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
        """As the scheduler itself makes it: shift, its end, Karras' and other spacings are its own."""
        config, extra = self._scheduler.config, {}
        if config.use_dynamic_shifting:
            _, height, width = self.latent_shape
            patch = self._denoiser.config.patch_size
            extra["mu"] = calculate_shift(
                (height // patch) * (width // patch),
                config.get("base_image_seq_len", 256),
                config.get("max_image_seq_len", 4096),
                config.get("base_shift", 0.5),
                config.get("max_shift", 1.16),  # diffusers' pipeline says 1.16, its scheduler 1.15
            )
        with warnings.catch_warnings():  # of a division by zero, whose result is refused below
            warnings.simplefilter("ignore", RuntimeWarning)
            self._scheduler.set_timesteps(steps, **extra)
        return from_sigmas(self._scheduler.timesteps, self._scheduler.sigmas)

    def _encode_text(self, text: str) -> Encoded:
        """text [1,L,D], the last but one layer of both CLIPs side by side, then T5's tokens; pooled [1,P]."""
        length = PADDING if self._pipeline.text_encoder_3 is not None else 1
        context, _, pooled, _ = self._pipeline.encode_prompt(
            text, text, text, self.device, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return {"text": context, "pooled": pooled}

    def _longest(self) -> tuple[Any, int]:
        if self._pipeline.text_encoder_3 is not None:
            return self._pipeline.tokenizer_3, PADDING
        return self._pipeline.tokenizer, self._pipeline.tokenizer_max_length


def _scheduler(model: str, own: Any) -> FlowMatchEulerDiscreteScheduler:
    """The model's scheduler; what it has of noise of its own is left out, for the sampler decides on that."""
    if type(own) is not FlowMatchEulerDiscreteScheduler:
        raise ValueError(
            f"--model {model} has a {type(own).__name__}; known for a flow is the FlowMatchEulerDiscreteScheduler that "
            "Stable Diffusion 3 is published with: put its scheduler_config.json into the model's folder scheduler/."
        )
    if own.config.invert_sigmas:
        raise ValueError(
            f"--model {model}: its scheduler has invert_sigmas, in which time runs the other way. Set it to false in "
            "scheduler_config.json if the model is a Stable Diffusion 3."
        )
    scheduler: FlowMatchEulerDiscreteScheduler = FlowMatchEulerDiscreteScheduler.from_config(own.config)
    return scheduler

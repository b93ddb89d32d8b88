"""Stable Diffusion 1.x and 2.x: a UNet over the latents of a VAE, prompts read by one CLIP text encoder.

Rombach et al. 2022, arXiv:2112.10752. Predicts eps (1.x, 2.x-base), v (2.x at 768; Salimans & Ho 2022) or x0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from tastemaker.policy.conditioning import Encoded
from tastemaker.policy.latent import LatentPolicy, sized
from tastemaker.policy.load import Request, quiet
from tastemaker.process.prediction import from_eps, from_v, from_x0
from tastemaker.process.schedule import Schedule, from_alphas_cumprod

PREDICTIONS = {"epsilon": from_eps, "v_prediction": from_v, "sample": from_x0}
COMPONENT = "unet"


class StableDiffusion(LatentPolicy):
    """A `Policy` around a `StableDiffusionPipeline`."""

    def __init__(self, request: Request) -> None:
        super().__init__(request, StableDiffusionPipeline, COMPONENT)
        unet, vae = self._denoiser, self._vae
        # A side must survive the VAE's and then the UNet's halvings.
        self.latent_shape = sized(request, unet, vae, multiple=2 ** (len(unet.config.block_out_channels) - 1))
        self._scheduler = _scheduler(request, self._pipeline.scheduler.config)
        self._prediction = PREDICTIONS[self._scheduler.config.prediction_type]
        self._begin(request)

    def _call(self, x: Tensor, t: Tensor, *texts: Tensor) -> Tensor:
        output: Tensor = self._denoiser(x, t, *texts, return_dict=False)[0]
        return output

    def _grid(self, steps: int) -> Schedule:
        """Spacing, offset and last step of the model's own scheduler are kept; it is walked by DDIM."""
        self._scheduler.set_timesteps(steps)
        # "trailing" spacing counts in fractions and then gives some step counts (61, 103, ...) one step too many.
        timesteps = self._scheduler.timesteps.tolist()[:steps]
        final = float(self._scheduler.final_alpha_cumprod)
        return from_alphas_cumprod(self._scheduler.alphas_cumprod, timesteps, final)

    def _encode_text(self, text: str) -> Encoded:
        return {"text": self._pipeline.encode_prompt(text, self.device, 1, False)[0]}

    def _longest(self) -> tuple[Any, int]:
        tokenizer = self._pipeline.tokenizer
        return tokenizer, tokenizer.model_max_length


def _scheduler(request: Request, config: Mapping[str, object]) -> DDIMScheduler:
    """The model's scheduler as DDIM; its clipping is left out, for latents are not pixels and have no range."""
    with quiet():
        scheduler = DDIMScheduler.from_config(config)
    kind, model = scheduler.config.prediction_type, request.files.model
    if kind not in PREDICTIONS:
        raise ValueError(f"--model {model} predicts {kind!r}, known are {', '.join(PREDICTIONS)}.")
    if kind == "epsilon" and float(scheduler.alphas_cumprod[-1]) == 0.0:
        raise ValueError(
            f"--model {model} predicts eps and its scheduler has zero terminal SNR (rescale_betas_zero_snr): "
            "x[0] is pure noise there, so eps says nothing about x0. Use a v_prediction model, or set "
            "rescale_betas_zero_snr to false in its scheduler_config.json."
        )
    return scheduler

"""What the families with a UNet have in common: it predicts eps, v or x0, on the grid of the model's own scheduler.

v is that of Salimans & Ho 2022, arXiv:2202.00512.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from tastemaker.policy.latent import LatentPolicy
from tastemaker.policy.load import Request, quiet
from tastemaker.policy.sizes import sized
from tastemaker.process.prediction import from_eps, from_v, from_x0
from tastemaker.process.schedule import Schedule, from_alphas_cumprod

PREDICTIONS = {"epsilon": from_eps, "v_prediction": from_v, "sample": from_x0}


class UNetPolicy(LatentPolicy):
    """A `Policy` around a pipeline with a UNet; a family's `__init__` calls this one, and then `_begin`."""

    def __init__(self, request: Request, kind: Any, component: str) -> None:
        """kind: the diffusers pipeline class; component: its name for the UNet."""
        super().__init__(request, kind, component)
        if self._denoiser.config.time_cond_proj_dim is not None:
            raise ValueError(
                f"--model {request.files.model} is a latent consistency model: its UNet is told the guidance "
                "(time_cond_proj_dim), which stands for rows without a prompt here. Use the model it was made from."
            )
        # The UNet rounds uneven sides up where it halves them, and crops where it doubles them again.
        self.latent_shape = sized(request, self._denoiser, self._vae, multiple=1)
        self._scheduler = _scheduler(request.files.model, self._pipeline.scheduler)
        self._prediction = PREDICTIONS[self._scheduler.config.prediction_type]

    def _grid(self, steps: int) -> Schedule:
        """Spacing, offset and last step of the model's own scheduler are kept; it is walked by DDIM."""
        self._scheduler.set_timesteps(steps)
        # "trailing" spacing counts in fractions and then gives some step counts (61, 103, ...) one step too many.
        timesteps = self._scheduler.timesteps.tolist()[:steps]
        final = float(self._scheduler.final_alpha_cumprod)
        return from_alphas_cumprod(self._scheduler.alphas_cumprod, timesteps, final)

    def _longest(self) -> tuple[Any, int]:
        tokenizer = self._pipeline.tokenizer
        return tokenizer, tokenizer.model_max_length


def _scheduler(model: str, own: Any) -> DDIMScheduler:
    """The model's scheduler as DDIM; its clipping is left out, for latents are not pixels and have no range."""
    if "beta_schedule" not in own.config:
        raise ValueError(
            f"--model {model} has a {type(own).__name__}, which has no betas; known for a UNet are the schedulers "
            "over betas, as DDIM, Euler, DPM-Solver++ and PNDM are."
        )
    with quiet():
        scheduler: DDIMScheduler = DDIMScheduler.from_config(own.config)
    kind = scheduler.config.prediction_type
    if kind not in PREDICTIONS:
        raise ValueError(f"--model {model} predicts {kind!r}, known are {', '.join(PREDICTIONS)}.")
    if kind == "epsilon" and float(scheduler.alphas_cumprod[-1]) == 0.0:
        raise ValueError(
            f"--model {model} predicts eps and its scheduler has zero terminal SNR (rescale_betas_zero_snr): "
            "x[0] is pure noise there, so eps says nothing about x0. Use a v_prediction model, or set "
            "rescale_betas_zero_snr to false in its scheduler_config.json."
        )
    return scheduler


def example(unet: Any, shape: tuple[int, int, int, int], tokens: int, live: bool) -> Callable[[], tuple[Tensor, ...]]:
    """A call of it on the meta device, with texts of so many tokens, perhaps their summary and the picture's size.

    live: the texts have a gradient.
    """
    rows, config = shape[0], unet.config
    with torch.device("meta"):
        x, t = torch.empty(shape), torch.zeros(rows)
        text = torch.empty(rows, tokens, config.cross_attention_dim, requires_grad=live)
        added: dict[str, Tensor] | None = None
        if config.addition_embed_type == "text_time":
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            summary = torch.empty(rows, pooled, requires_grad=live)
            added = {"text_embeds": summary, "time_ids": torch.zeros(rows, 6)}
    return lambda: unet(x, t, text, added_cond_kwargs=added, return_dict=False)

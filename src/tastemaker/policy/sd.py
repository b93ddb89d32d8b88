"""Stable Diffusion 1.x and 2.x: a UNet over the latents of a VAE, prompts read by one text encoder.

Rombach et al. 2022, arXiv:2112.10752. The text encoder is OpenAI's CLIP (1.x) or OpenCLIP (2.x, published without the
last layer that it does not use); the network predicts eps, in 2.x at 768 pixels v.
"""

from __future__ import annotations

from diffusers import StableDiffusionPipeline
from torch import Tensor

from tastemaker.policy.conditioning import Encoded
from tastemaker.policy.load import Request
from tastemaker.policy.unet import UNetPolicy

COMPONENT = "unet"


class StableDiffusion(UNetPolicy):
    """A `Policy` around a `StableDiffusionPipeline`."""

    def __init__(self, request: Request) -> None:
        super().__init__(request, StableDiffusionPipeline, COMPONENT)
        self._begin(request)

    def _call(self, x: Tensor, t: Tensor, *texts: Tensor) -> Tensor:
        output: Tensor = self._denoiser(x, t, *texts, return_dict=False)[0]
        return output

    def _encode_text(self, text: str) -> Encoded:
        return {"text": self._pipeline.encode_prompt(text, self.device, 1, False)[0]}

"""Stable Diffusion XL: a UNet over the latents of a VAE, prompts read by two text encoders, told the picture's size.

Podell et al. 2023, arXiv:2307.01952. The base, not the refiner. Its VAE overflows in half precision and is computed in
fp32 unless its config says that it need not be (force_upcast: false).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from tastemaker.policy.conditioning import Encoded
from tastemaker.policy.load import Request
from tastemaker.policy.sizes import vae_factor
from tastemaker.policy.unet import UNetPolicy

COMPONENT = "unet"
SIZES = 6  # numbers about a picture's size: original, corner of the crop, target, each of height and width


class StableDiffusionXL(UNetPolicy):
    """A `Policy` around a `StableDiffusionXLPipeline`.

    The UNet is told the size that is drawn as the original's and the target's, and that nothing was cropped.
    """

    reads = ("text", "pooled")
    needs = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    trainable = ("text_encoder", "text_encoder_2")
    unread: ClassVar = {"text_encoder": 1}  # its last but one layer is read; of the other, the summary of the last too

    def __init__(self, request: Request) -> None:
        super().__init__(request, StableDiffusionXLPipeline, COMPONENT)
        _check(request.files.model, self._denoiser.config, self._pipeline.text_encoder_2.config.projection_dim)
        height, width = (side * vae_factor(self._vae) for side in self.latent_shape[1:])
        self._sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=self.device)
        self._begin(request)

    def _call(self, x: Tensor, t: Tensor, *texts: Tensor) -> Tensor:
        text, pooled = texts
        added = {"text_embeds": pooled, "time_ids": self._sizes.expand(len(x), -1)}
        output: Tensor = self._denoiser(x, t, text, added_cond_kwargs=added, return_dict=False)[0]
        return output

    def _is_silence(self, negative: str) -> bool:
        """Without a negative prompt guidance moves away from zeros, where the model was published so."""
        return not negative and bool(self._pipeline.config.force_zeros_for_empty_prompt)

    def _encode_text(self, text: str) -> Encoded:
        """text [1,L,D], the last but one layer of both encoders side by side; pooled [1,P] of the second."""
        context, _, pooled, _ = self._pipeline.encode_prompt(
            text, device=self.device, do_classifier_free_guidance=False
        )
        return {"text": context, "pooled": pooled}


def _check(model: str, unet: Mapping[str, Any], pooled: int) -> None:
    """Errors: ValueError if the UNet is told something else than the text's summary and `SIZES` numbers."""
    kind, told = unet["addition_embed_type"], unet["projection_class_embeddings_input_dim"]
    if kind != "text_time":
        raise ValueError(
            f"--model {model}: its unet/config.json has addition_embed_type {kind!r}; that of Stable Diffusion XL is "
            "'text_time'."
        )
    numbers = (told - pooled) / unet["addition_time_embed_dim"]
    if numbers == SIZES - 1:
        raise ValueError(
            f"--model {model} is a refiner: its UNet is told an aesthetic score in the place of the target size, and "
            "goes on from pictures of the base. Give the base model."
        )
    if numbers != SIZES:
        raise ValueError(
            f"--model {model}: its UNet takes {told} numbers beside the time (projection_class_embeddings_input_dim); "
            f"with a text_encoder_2 of {pooled} that makes {numbers:g} sizes, and {SIZES} are needed. Its unet and "
            "text_encoder_2 do not belong together."
        )

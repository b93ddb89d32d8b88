"""Stable Diffusion 1.x and 2.x: a UNet over the latents of a VAE, prompts read by one CLIP text encoder.

Rombach et al. 2022, arXiv:2112.10752. Predicts eps (1.x, 2.x-base), v (2.x at 768; Salimans & Ho 2022) or x0.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tastemaker.policy import pipelines
from tastemaker.policy.conditioning import Conditioning, Encoded, TextCache
from tastemaker.policy.load import Request, half, quiet
from tastemaker.policy.lora_file import named_for_file, read
from tastemaker.policy.policy import Rows
from tastemaker.policy.weights import Weights
from tastemaker.process.prediction import Prediction, from_eps, from_v, from_x0
from tastemaker.process.schedule import Schedule, from_alphas_cumprod

PREDICTIONS = {"epsilon": from_eps, "v_prediction": from_v, "sample": from_x0}
COMPONENT = "unet"

# Pixels the VAE sees in one call: eight pictures of 512 x 512; with a graph, which keeps every activation, one.
CALL_PIXELS = 8 * 512 * 512
GRAPH_PIXELS = 512 * 512
KEPT_PIXELS = 256 * 256  # in all: so few that keeping their graph costs little beside the chain's


class StableDiffusion:
    """A `Policy` around a diffusers pipeline."""

    def __init__(self, request: Request) -> None:
        lora = request.lora  # its file is small: what is wrong with it is said before gigabytes are read
        start = read(lora.file, StableDiffusionPipeline, COMPONENT) if lora and lora.file else None
        self.device = request.device
        self.rows = Rows()
        self._half = half(request.mixed_precision)
        self._slicing = request.vae_slicing
        # Pays on GPUs of these kinds; on a CPU the small built-in model is a tenth slower so.
        self._format = torch.channels_last if self.device.type in ("cuda", "xpu") else torch.contiguous_format
        # What is trained stays fp32. Frozen networks may be half, except the VAE, which is decided by its own config.
        frozen = self._half or torch.float32
        trained = frozen if lora else torch.float32
        dtypes = {COMPONENT: trained, "text_encoder": frozen, "default": torch.float32}
        self._files = request.files
        self._pipeline = pipelines.read(request.files, dtypes)
        self._unet, self._vae = self._pipeline.unet, self._pipeline.vae
        self.latent_shape = _latent_shape(request, self._unet, self._vae)
        self._scheduler = _scheduler(request, self._pipeline.scheduler.config)
        self._prediction = PREDICTIONS[self._scheduler.config.prediction_type]
        self._schedules: dict[int, Schedule] = {}
        self._texts = TextCache(self._encode_texts)
        self._prepare(request)
        self._weights = Weights(self._unet, lora, sets=request.sets, start=start, seed=request.seed)

    def _prepare(self, request: Request) -> None:
        """Devices, dtypes, memory format; before the adapter is made, which takes them over."""
        self._pipeline.text_encoder.requires_grad_(False).eval()
        self._vae.requires_grad_(False).eval().to(self.device, memory_format=self._format)
        if self._half and not self._vae.config.force_upcast:  # with it, it would overflow in fp16
            with quiet():
                self._vae.to(self._half)
        self._unet.to(self.device, memory_format=self._format)
        if request.gradient_checkpointing:
            self._unet.enable_gradient_checkpointing()
            self._vae.enable_gradient_checkpointing()

    def schedule(self, steps: int) -> Schedule:
        """The grid of the model's own scheduler (spacing, offset and last step kept), walked by DDIM."""
        most = self._scheduler.config.num_train_timesteps
        if not 1 <= steps <= most:
            raise ValueError(f"steps is {steps}, this model's chains have 1 to {most}.")
        if steps not in self._schedules:
            self._scheduler.set_timesteps(steps)
            # "trailing" spacing counts in fractions and then gives some step counts (61, 103, ...) one step too many.
            timesteps = self._scheduler.timesteps.tolist()[:steps]
            final = float(self._scheduler.final_alpha_cumprod)
            grid = from_alphas_cumprod(self._scheduler.alphas_cumprod, timesteps, final)
            self._schedules[steps] = grid.to(self.device)
        return self._schedules[steps]

    def encode(self, prompts: Sequence[str], negative: str = "") -> Conditioning:
        return self._texts.conditioning(prompts, negative, self.device)

    def predict(
        self, x: Tensor, i: int | Tensor, schedule: Schedule, conditioning: Conditioning, guidance: float | Tensor
    ) -> Prediction:
        """uncond + guidance (cond - uncond), both rows in one call; a number <= 1 is the prompt alone, one row each.

        A tensor of guidances [B] always costs two rows (looking inside would wait for the device); there too, values
        below 1 count as 1.
        """
        if isinstance(i, Tensor):
            i = i.to(self.device)
        t = schedule.t[i].expand(len(x))
        text = conditioning.positive_rows("text")
        if isinstance(guidance, Tensor) or guidance > 1.0:
            both = torch.cat([conditioning.negative_rows("text"), text])
            away, toward = self._network(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
            if isinstance(guidance, Tensor):
                guidance = guidance.to(away).clamp(min=1.0).view(-1, 1, 1, 1)
            output = away + guidance * (toward - away)
        else:
            output = self._network(x, t, text)
        alpha, sigma = schedule.at(i, x)
        return self._prediction(output, x, alpha, sigma)

    def _network(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """One call: [B,C,h,w], fp32 whatever the network computes in."""
        self.rows.add(len(x))
        x = x.contiguous(memory_format=self._format)
        # The cache of low-precision copies is off: entries made without a graph would serve a call that needs one,
        # entries of one weight set a call with another. Within one call every weight is read once, so it saves nothing.
        with torch.autocast(self.device.type, self._half, enabled=self._half is not None, cache_enabled=False):
            output: Tensor = self._unet(x, t, text, return_dict=False)[0]
        return output.float().contiguous()

    def decode(self, x0: Tensor) -> Tensor:
        graph = torch.is_grad_enabled() and x0.requires_grad
        parts = x0.split(self._rows_per_call(GRAPH_PIXELS if graph else CALL_PIXELS))
        if not graph or (len(x0) * self._pixels <= KEPT_PIXELS and not self._slicing):
            return torch.cat([self._decode(part) for part in parts])
        once_more = [checkpoint(self._decode, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        return torch.cat(once_more)

    def _decode(self, x0: Tensor) -> Tensor:
        config = self._vae.config
        latents = (x0 / config.scaling_factor + (config.shift_factor or 0.0)).to(self._vae.dtype)
        images: Tensor = self._vae.decode(latents.contiguous(memory_format=self._format), return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1).contiguous()

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """The mode of the VAE's posterior: no noise of its own."""
        config = self._vae.config
        parts = []
        for part in images.to(self.device).split(self._rows_per_call(CALL_PIXELS)):
            pixels = (part * 2 - 1).to(self._vae.dtype).contiguous(memory_format=self._format)
            latents = self._vae.encode(pixels).latent_dist.mode().float()
            parts.append((latents - (config.shift_factor or 0.0)) * config.scaling_factor)
        return torch.cat(parts).contiguous()

    def _rows_per_call(self, pixels: int) -> int:
        if self._slicing:
            return 1
        return max(1, pixels // self._pixels)

    @property
    def _pixels(self) -> int:
        """Of one picture."""
        side = _vae_factor(self._vae)
        return self.latent_shape[1] * self.latent_shape[2] * side * side

    def using(self, weights: str) -> AbstractContextManager[None]:
        return self._weights.using(weights)

    def blend(self, weights: str, keep: float) -> None:
        self._weights.blend(weights, keep)

    def parameters(self) -> list[nn.Parameter]:
        return self._weights.parameters()

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return self._weights.named_parameters()

    def state(self) -> dict[str, Tensor]:
        return self._weights.state()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self._weights.load_state(tensors)

    def lora_tensors(self) -> dict[str, Tensor] | None:
        return named_for_file(self._weights.adapter(), COMPONENT) if self._weights.lora else None

    def pipeline(self) -> StableDiffusionPipeline:
        """The live pipeline, adapter included; with mixed precision and LoRA call it under the same autocast."""
        self._pipeline.text_encoder.to(self.device)
        return self._pipeline

    def save_pipeline(self, folder: Path) -> None:
        """The whole model in diffusers layout, the tuned network and all that its base has beside it."""
        pipelines.write(self._pipeline, self._files, folder)

    @torch.no_grad()
    def _encode_texts(self, texts: list[str]) -> list[Encoded]:
        """[L, D] each, on the CPU; the text encoder visits the device only for this.

        One text a call: in a batch the last bits would depend on which texts the cache already held, and a resumed run
        would differ from an uninterrupted one.
        """
        self._warn_of_truncation(texts)
        encoder = self._pipeline.text_encoder.to(self.device)
        try:
            with quiet():
                found = [self._pipeline.encode_prompt(text, self.device, 1, False)[0] for text in texts]
            return [{"text": embedding[0].cpu()} for embedding in found]
        finally:
            if self.device.type != "cpu":
                encoder.to("cpu")

    def _warn_of_truncation(self, texts: list[str]) -> None:
        tokenizer = self._pipeline.tokenizer
        most = tokenizer.model_max_length
        long = [text for text in texts if len(tokenizer(text, verbose=False).input_ids) > most]
        if long:
            warnings.warn(
                f"{len(long)} of {len(texts)} prompts are longer than the {most} tokens this model reads; the rest of "
                f"each is not seen by it. The first: {long[0]!r}",
                stacklevel=2,
            )


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


def _vae_factor(vae: Any) -> int:
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _latent_shape(request: Request, unet: Any, vae: Any) -> tuple[int, int, int]:
    """(C, h, w); a side must survive the VAE's and then the UNet's halvings."""
    factor = _vae_factor(vae)
    multiple = factor * 2 ** (len(unet.config.block_out_channels) - 1)
    default = unet.config.sample_size
    sides = default if isinstance(default, Sequence) else (default, default)
    found = []
    size = request.size
    for flag, asked, side in zip(("height", "width"), (size.height, size.width), sides, strict=True):
        pixels = asked or size.resolution or side * factor
        if pixels < multiple or pixels % multiple:
            key = f"--{flag}" if asked else "--resolution"
            low = max(pixels // multiple, 1) * multiple
            raise ValueError(
                f"{key} {pixels} does not fit --model {request.files.model}: its sides are multiples of {multiple} "
                f"pixels. Nearest: {low} or {low + multiple}. (--resolution sets both --height and --width.)"
            )
        found.append(pixels // factor)
    return unet.config.in_channels, found[0], found[1]

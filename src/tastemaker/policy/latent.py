"""What the families over latents of a VAE have in common: guidance, pictures, weights, texts, sizes, files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tastemaker.policy import pipelines, sharding, switches
from tastemaker.policy.conditioning import Conditioning, TextCache
from tastemaker.policy.encoders import Encoder, check
from tastemaker.policy.hub import INDEX
from tastemaker.policy.load import Request, half, quiet
from tastemaker.policy.lora_file import named_for_file, read
from tastemaker.policy.policy import Rows
from tastemaker.policy.reading import Reading
from tastemaker.policy.sizes import vae_factor
from tastemaker.policy.weights import Weights
from tastemaker.process.prediction import Prediction
from tastemaker.process.schedule import Schedule

# Pixels the VAE sees in one call: eight pictures of 512 x 512; with a graph, which keeps every activation, one.
CALL_PIXELS = 8 * 512 * 512
GRAPH_PIXELS = 512 * 512
CPU_PIXELS = 256 * 256  # the activations of more leave a CPU's caches, and a call takes twice as long
KEPT_PIXELS = 256 * 256  # in all: so few that keeping their graph costs little beside the chain's


class LatentPolicy(Reading):
    """A `Policy` around a diffusers pipeline.

    A family's `__init__` calls this one, which reads the pipeline; sets `latent_shape`, `_scheduler` and `_prediction`;
    and calls `_begin`, which makes the weights trainable.
    """

    reads: ClassVar[tuple[str, ...]] = ("text",)
    """What the network takes of an encoded text, in the order of `_call`."""
    needs: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    """Parts of the pipeline that it does not work without, beside the network, the VAE and the scheduler."""
    latent_shape: tuple[int, int, int]
    _scheduler: Any  # diffusers': its config has num_train_timesteps
    _prediction: Callable[[Tensor, Tensor, Tensor, Tensor], Prediction]  # of (network's answer, x, alpha, sigma)

    def __init__(self, request: Request, kind: Any, component: str) -> None:
        """kind: the diffusers pipeline class; component: its name for the network that is trained."""
        switches.check(request)
        lora = request.lora  # its file is small: what is wrong with it is said before gigabytes are read
        trained = self.trainable if lora and lora.text_encoders else ()
        self._start = read(lora.file, kind, component, trained) if lora and lora.file else None
        self.device = request.device
        self.rows = Rows()
        self._half = half(request.mixed_precision)
        self._slicing, self._visits = request.vae_slicing, request.cpu_offload
        # Pays on GPUs of these kinds; on a CPU the small built-in model is a tenth slower so.
        self._format = torch.channels_last if self.device.type in ("cuda", "xpu") else torch.contiguous_format
        # What is trained stays fp32. Frozen networks may be half, except the VAE, which is decided by its own config.
        frozen = self._half or torch.float32
        texts = [name for name in request.files.contents if name.startswith("text_encoder")]
        dtypes = {component: frozen if lora else torch.float32, "default": torch.float32} | dict.fromkeys(texts, frozen)
        self._files, self._component = request.files, component
        self._pipeline = pipelines.read(request.files, dtypes, switches.bits(request, component))
        missing = [name for name in (component, "vae", *self.needs) if getattr(self._pipeline, name) is None]
        if missing:
            raise ValueError(
                f"--model {request.files.model} has no {' and no '.join(missing)}: its {INDEX} says so. Give a model "
                f"that has {', '.join((component, 'vae', *self.needs))}."
            )
        self._denoiser, self._vae = getattr(self._pipeline, component), self._pipeline.vae
        self._encoders = [one for one in (getattr(self._pipeline, name) for name in texts) if one is not None]
        self._schedules: dict[int, Schedule] = {}
        self._texts, self._read_by, self._again = TextCache(self._encode_texts), {}, request.gradient_checkpointing
        self._trained = tuple(self._trainable(name) for name in trained)
        self._calls: sharding.Calls | None = None

    def _begin(self, request: Request) -> None:
        """Devices, dtypes, memory format; then the adapter, which takes them over."""
        for encoder in self._encoders:
            encoder.requires_grad_(False).eval()
        self._vae.requires_grad_(False).eval().to(memory_format=self._format)
        self._vae.to("cpu" if self._visits else self.device)
        if self._half and not self._vae.config.force_upcast:  # with it, it would overflow in fp16
            with quiet():
                self._vae.to(self._half)
        network = self._denoiser
        switches.prepare(request, network, self._vae)
        if request.together is not None:
            example = partial(self._example, self.encode([""]))  # read now: while it learns, encoders have no room
            self._calls = sharding.Calls(network, self.device, request.together, request.sets, example)
            self._weights: Weights = self._calls.weights
        else:
            network.to(self.device, memory_format=self._format)
            for encoder in self._trained:
                encoder.network.to(self.device)
            lora, start = request.lora, self._start
            self._weights = Weights(
                network, lora, sets=request.sets, start=start, seed=request.seed, encoders=self._trained
            )
        self._start = None

    def _trainable(self, part: str) -> Encoder:
        network = getattr(self._pipeline, part)
        check(self._files.model, part, network)
        return Encoder(part, network, self.unread.get(part, 0))

    # ---- what a family says

    @abstractmethod
    def _call(self, x: Tensor, t: Tensor, *texts: Tensor) -> Tensor:
        """The network's own call: x [B,C,h,w], t [B], and [B, ...] of each entry of `reads`."""

    @abstractmethod
    def _grid(self, steps: int) -> Schedule:
        """The model's own time grid."""

    def _asked(self, x: Tensor) -> dict[str, Any]:
        """How its pipeline's own call is told to begin at x, and what else it has to be told to read texts as here."""
        return {"latents": x}

    def _drawn(self, latents: Tensor, like: Tensor) -> Tensor:
        """Latents as its pipeline's own call ends at them, in the shape of `like` [B,C,h,w]."""
        return latents

    def _told(self, guidance: float | Tensor, t: Tensor) -> list[Tensor] | None:
        """What a distilled network is told of guidance, after the texts; None where a second row guides."""
        return None

    # ---- the chain

    def schedule(self, steps: int) -> Schedule:
        """The grid of the model's own scheduler, with this many steps."""
        most = self._scheduler.config.num_train_timesteps
        if not 1 <= steps <= most:
            raise ValueError(f"steps is {steps}, this model's chains have 1 to {most}.")
        if steps not in self._schedules:
            self._schedules[steps] = self._grid(steps).to(self.device)
        return self._schedules[steps]

    def predict(
        self, x: Tensor, i: int | Tensor, schedule: Schedule, conditioning: Conditioning, guidance: float | Tensor
    ) -> Prediction:
        """uncond + guidance (cond - uncond), both rows in one call; a number <= 1 is the prompt alone, one row each.

        A tensor of guidances [B] always costs two rows (looking inside would wait for the device); there too, values
        below 1 count as 1. A distilled network is told instead, in one row.
        """
        if isinstance(i, Tensor):
            i = i.to(self.device)
        t = schedule.t[i].expand(len(x))
        told = self._told(guidance, t)
        guided = told is None and (isinstance(guidance, Tensor) or guidance > 1.0)
        read = self._table(conditioning, guided)
        texts = [read.positive_rows(name) for name in self.reads]
        if guided:
            negative = [read.negative_rows(name) for name in self.reads]
            both = [torch.cat(pair) for pair in zip(negative, texts, strict=True)]
            away, toward = self._network(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
            if isinstance(guidance, Tensor):
                guidance = guidance.to(away).clamp(min=1.0).view(-1, 1, 1, 1)
            output = away + guidance * (toward - away)
        else:
            output = self._network(x, t, [*texts, *(told or ())])
        alpha, sigma = schedule.at(i, x)
        return self._prediction(output, x, alpha, sigma)

    def _network(self, x: Tensor, t: Tensor, texts: Sequence[Tensor]) -> Tensor:
        """One call: [B,C,h,w], fp32 whatever the network computes in."""
        self.rows.add(len(x))
        x = x.float().contiguous(memory_format=self._format)  # latents of fp64 are for the arithmetic around it alone
        with self._precision(), self._weights.calling():
            output = self._call(x, t, *texts) if self._calls is None else self._calls.told(self._call, x, t, *texts)
        return output.float().contiguous()

    def _precision(self) -> torch.autocast:
        # The cache of low-precision copies is off: entries made without a graph would serve a call that needs one,
        # entries of one weight set a call with another. Within one call every weight is read once, so it saves nothing.
        return torch.autocast(self.device.type, self._half, enabled=self._half is not None, cache_enabled=False)

    def _example(self, texts: Conditioning) -> None:
        """One call of the network that counts for nothing."""
        counted, self.rows = self.rows, Rows()
        try:
            self.predict(torch.zeros(1, *self.latent_shape, device=self.device), 0, self.schedule(2), texts, 1.0)
        finally:
            self.rows = counted

    # ---- pictures

    def decode(self, x0: Tensor) -> Tensor:
        graph = torch.is_grad_enabled() and x0.requires_grad
        parts = x0.split(self._rows_per_call(GRAPH_PIXELS if graph else CALL_PIXELS))
        assert not (graph and self._visits), "backward needs a VAE that stays on the device"
        if not graph or (len(x0) * self._pixels <= KEPT_PIXELS and not self._slicing):
            with switches.visiting(self._vae, self.device, leaves=self._visits):
                return torch.cat([self._decode(part) for part in parts])
        return torch.cat([checkpoint(self._decode, x, use_reentrant=False, preserve_rng_state=False) for x in parts])

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
        with switches.visiting(self._vae, self.device, leaves=self._visits):
            for part in images.to(self.device).split(self._rows_per_call(CALL_PIXELS)):
                pixels = (part * 2 - 1).to(self._vae.dtype).contiguous(memory_format=self._format)
                parts.append(self._vae.encode(pixels).latent_dist.mode().float())
        return ((torch.cat(parts) - (config.shift_factor or 0.0)) * config.scaling_factor).contiguous()

    def _rows_per_call(self, pixels: int) -> int:
        if self._slicing:
            return 1
        most = min(pixels, CPU_PIXELS) if self.device.type == "cpu" else pixels
        return max(1, most // self._pixels)

    @property
    def _pixels(self) -> int:
        """Of one picture."""
        side = vae_factor(self._vae)
        return self.latent_shape[1] * self.latent_shape[2] * side * side

    # ---- weights

    def using(self, weights: str) -> AbstractContextManager[None]:
        return self._weights.using(weights)

    def dropping(self, number: int) -> AbstractContextManager[None]:
        return self._weights.dropping(number)

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
        return named_for_file(self._weights.adapter(), self._component) if self._weights.lora else None

    def pipeline(self) -> Any:
        """The live pipeline, adapter included; with mixed precision and LoRA call it under the same autocast."""
        for part in (*self._encoders, self._vae):
            part.to(self.device)
        return self._pipeline

    def gathered(self) -> AbstractContextManager[None]:
        """Inside, rank 0's pipeline has the whole network, on the CPU, if it is cut over processes: all enter it."""
        return self._calls.gathered(self._pipeline, self._component) if self._calls else nullcontext()

    def frozen(self) -> dict[str, dict[str, Tensor]]:
        return pipelines.frozen(self._pipeline, self.parameters())

    def save_pipeline(self, folder: Path) -> None:
        """The whole model in diffusers layout, the tuned network and all that its base has beside it."""
        pipelines.write(self._pipeline, self._files, folder)

"""What a network call keeps in memory, measured without any: the real architecture on torch's meta device.

Tensors there have shapes and dtypes but no content, so a network of any size runs in a fraction of a second. What a GPU
does and the meta device does not is put in its place, the attention kernel and autocast, in front of autograd: what is
saved for backward is what a GPU saves. Left out is the channels_last layout: 4 % without autocast, nothing with it.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tastemaker.dropping import dropping
from tastemaker.policy.adapter import LoRA, droppers
from tastemaker.policy.families import NETWORKS, resolve
from tastemaker.policy.load import half, quiet
from tastemaker.policy.switches import tile
from tastemaker.policy.weights import Weights

# Autocast on CUDA computes the first in half precision and the others in fp32; all else takes what it gets. (Of torch's
# lists, the functions that denoisers and VAEs are made of.)
LOWER = ("linear", "conv2d", "scaled_dot_product_attention")
UPPER = ("group_norm", "layer_norm", "rms_norm")


class Cost(NamedTuple):
    """Bytes, without the weights and their gradients."""

    saved: int
    """Activations kept from forward to backward, each storage once."""
    copies: int
    """Copies of weights in another precision, kept with them."""
    peak: int
    """The most that lives at one time, those two included."""


def measure(
    network: nn.Module,
    call: Callable[[], Tensor],
    *,
    half: torch.dtype | None = None,
    kernel: str = "efficient",
    grad: bool = True,
) -> Cost:
    """`call` runs the network, on the meta device, forward; with `grad` backward too.

    half: autocast's dtype, None without autocast. kernel: "efficient" is any fused attention (flash, memory-efficient,
    cuDNN), which saves q, k, v, the output and a log-sum-exp a row; "math" saves the attention maps. Gradients count as
    there already, as from the second part of an update on. Not for use while another thread computes.
    """
    trained = [p for p in network.parameters() if grad and p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    own = [*network.parameters(), *network.buffers(), *(p.grad for p in trained if p.grad is not None)]
    known = {tensor.untyped_storage()._cdata for tensor in own}
    live, saved = _Live(known), dict[int, int]()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    try:
        with _like_a_gpu(half, kernel, live), live, torch.set_grad_enabled(grad):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                output = call()
            copies = sum(size for place, size in saved.items() if place in live.copies)
            if output.requires_grad:
                output.float().sum().backward()  # type: ignore[no-untyped-call]
    finally:
        for parameter in trained:
            parameter.grad = None
    return Cost(sum(saved.values()) - copies, copies, live.peak)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The bytes of all storages that are alive, and the most they have been; those known before do not count."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self.copies: set[int] = set()
        self._known = known
        self._watched: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        return result

    def _watch(self, storage: Any) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._known or place in self._watched:
            return
        self.bytes += size
        self.peak = max(self.peak, self.bytes)

        def freed(_: object) -> None:  # the place may be another storage's from now on
            del self._watched[place]
            self.copies.discard(place)
            self.bytes -= size

        self._watched[place] = weakref.ref(storage, freed)


@contextmanager
def _like_a_gpu(half: torch.dtype | None, kernel: str, live: _Live) -> Iterator[None]:
    """Inside, functions of torch.nn.functional cast as autocast does, and attention is the given kernel's."""
    before = {name: getattr(F, name) for name in (*LOWER, *UPPER)}

    def in_precision(function: Callable[..., Tensor], to: torch.dtype | None) -> Callable[..., Tensor]:
        def cast(value: Any) -> Any:
            if to is None or not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == to:
                return value
            other = value.to(to)
            if isinstance(value, nn.Parameter):
                live.copies.add(other.untyped_storage()._cdata)
            return other

        def wrapped(*args: Any, **kwargs: Any) -> Tensor:
            return function(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})

        return wrapped

    try:
        for name, function in before.items():
            fused = kernel == "efficient" and name == "scaled_dot_product_attention"
            to = None if half is None else half if name in LOWER else torch.float32
            setattr(F, name, in_precision(_fused_attention if fused else function, to))
        yield
    finally:
        for name, function in before.items():
            setattr(F, name, function)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The operation that scaled_dot_product_attention becomes on a GPU; a mask's few bytes are left out."""
    kept = torch.is_grad_enabled()
    output: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, None, kept, dropout_p, is_causal, scale=scale
    )[0]
    return output


@lru_cache(maxsize=8)
def network(config: str, lora: LoRA | None, precision: str) -> nn.Module:
    """The denoiser as policies have it: half precision where it is frozen, fp32 where it is trained."""
    import diffusers

    values = json.loads(config)
    if (kind := values.get("_class_name")) not in NETWORKS:
        raise ValueError(f"what a {kind} needs of memory is not known, only that of a {' or a '.join(NETWORKS)}.")
    frozen = half(precision) if lora else None
    with torch.device("meta"), quiet():
        made: nn.Module = getattr(diffusers, kind).from_config(values)
        made.to(frozen or torch.float32)
    Weights(made, lora, sets=())
    return made


@lru_cache(maxsize=8)
def autoencoder(config: str, precision: str) -> Any:
    import diffusers

    values = json.loads(config)
    with torch.device("meta"), quiet():
        vae = diffusers.AutoencoderKL.from_config(values)
        # with force_upcast it overflows in half precision, and policies keep it in fp32
        vae.to(torch.float32 if vae.config.force_upcast else half(precision) or torch.float32)
    # Blending tiles, row by row, takes a minute here and next to no memory there.
    vae.blend_v = vae.blend_h = lambda beside, tile, extent: tile
    return vae.eval()


@lru_cache(maxsize=8)
def text_weights(config: str) -> int:
    """How many numbers a text encoder has, of any class of transformers."""
    import transformers

    values = json.loads(config)
    encoder = getattr(transformers, (values.get("architectures") or ["CLIPTextModel"])[0])
    with torch.device("meta"), quiet():
        return sum(p.numel() for p in encoder(encoder.config_class.from_dict(values)).parameters())


@lru_cache(maxsize=256)
def denoising(
    config: str,
    lora: LoRA | None,
    precision: str,
    shape: tuple[int, int, int, int],
    tokens: int,
    checkpointing: bool,
    grad: bool,
    kernel: str,
) -> Cost:
    """tokens: of a text, as the network reads it; where `lora.text_encoders` trains what read it, it has a gradient."""
    denoiser: Any = network(config, lora, precision)
    (denoiser.enable_gradient_checkpointing if checkpointing else denoiser.disable_gradient_checkpointing)()
    live = grad and lora is not None and lora.text_encoders
    call = resolve(NETWORKS[json.loads(config)["_class_name"]].example)(denoiser, shape, tokens, live)
    with dropping(droppers(denoiser) if grad else (), torch.device("meta"), 0):
        return measure(denoiser, lambda: call()[0], half=half(precision), kernel=kernel, grad=grad)


@lru_cache(maxsize=64)
def decoding(
    config: str,
    precision: str,
    shape: tuple[int, int, int, int],
    kernel: str,
    checkpointing: bool = False,
    grad: bool = False,
    tiled: bool = False,
) -> Cost:
    """`grad`: the gradient goes through the decoder, into the latents."""
    vae = autoencoder(config, precision)
    (tile if tiled else type(vae).disable_tiling)(vae)
    (vae.enable_gradient_checkpointing if checkpointing else vae.disable_gradient_checkpointing)()
    latents = torch.empty(shape, device="meta", dtype=vae.dtype, requires_grad=grad)
    return measure(vae, lambda: vae.decode(latents, return_dict=False)[0], kernel=kernel, grad=grad)

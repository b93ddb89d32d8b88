"""A low-rank adapter: its settings, and how it comes into a network."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tastemaker.process.noise import Key

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

ADAPTER = "learner"  # peft keeps adapters as attributes of modules: `train` would hide Module.train
MAGNITUDE = ".lora_magnitude_vector.weight"  # what DoRA has in each layer beside A and B
INITS = ("gaussian", "kaiming")
OWNER = re.compile(r"text_encoder(_\d+)?\.")  # how the names of text encoders' layers begin


@dataclass(frozen=True)
class LoRA:
    """A low-rank adapter: W x + (alpha / rank) B A x.  Hu et al. 2021, arXiv:2106.09685.

    B starts at zero, so the tuned model starts as the base model; A is drawn in fp32 from the seed, so that every
    process starts with the same numbers.

    `rslora`, whose change does not fade as the rank grows: alpha / sqrt(rank).  Kalajdzievski 2023, arXiv:2312.03732.
    `dora`, with V = W + (alpha / rank) B A: m V / |V| x, a length m for each output of a layer, which starts as |W| and
    is trained too; no gradient through |V|.  Liu et al. 2024, arXiv:2402.09353.
    """

    rank: int = 4
    """Inner size of each adapter; 4 is the authors' of DDPO."""
    alpha: float | None = None
    """Strength; None stands for `rank`, which makes the factor 1 (with `rslora` sqrt(rank))."""
    rslora: bool = False
    """Rank-stabilised: the factor is alpha / sqrt(rank) in place of alpha / rank."""
    dora: bool = False
    """Train the length of each row of a layer's weights too (DoRA); slower, and its LoRA file cannot be mixed."""
    dropout: float = 0.0
    """Share of each adapter's input that is left out wherever a gradient is made, the rest scaled up. Anew in every
    call, so what is dropped goes by how an update is cut. Not for algorithms that take a ratio."""
    targets: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")
    """Ends of the names of the layers that get an adapter."""
    text_encoders: bool = False
    """Adapters in the model's CLIP text encoders too, in their attention and in what `targets` names of them in full
    (`text_encoder.text_model.encoder.layers.0.mlp.fc1`). Every call with a gradient reads its texts anew."""
    init: str = "gaussian"
    """How A starts: `gaussian` (standard deviation 1 / rank) or `kaiming` (uniform within 1 / sqrt(inputs))."""
    file: str | None = None
    """A LoRA file, folder or hub id to start from; of a rank up to `rank`, its denoiser's layers among `targets`."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank is {self.rank}, it must be at least 1. For no adapter at all: --no-lora.")
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"lora.alpha is {self.alpha}, it must be positive. Leave it out for alpha = rank.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"lora.dropout is {self.dropout}, it must be a share from 0 up to, but not, 1.")
        if isinstance(self.targets, str) or not self.targets:
            raise ValueError(f"lora.targets is {self.targets!r}, it must be a list with one name or more.")
        named = [one for one in self.targets if OWNER.match(one)]
        if named and not self.text_encoders:
            raise ValueError(f"lora.targets names {named[0]!r}, of a text encoder: that needs --lora.text_encoders.")
        if len(named) == len(self.targets):
            raise ValueError("lora.targets names layers of text encoders alone: name one of the denoiser too.")
        if self.init not in INITS:
            raise ValueError(f"lora.init is {self.init!r}, it must be one of {', '.join(INITS)}.")

    @property
    def scale(self) -> float:
        alpha = float(self.rank) if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def attach(
    network: nn.Module, lora: LoRA, start: Mapping[str, Tensor], seed: int, prefix: str = ""
) -> dict[str, nn.Parameter]:
    """Adapters into the network, which start as those of a file where there are any; the tensors by name.

    prefix: what stands before the names of its layers, here and in `start`.
    """
    named = _injected(network, lora, seed, prefix)
    if start:
        _begin_at(named, start, lora)
    if lora.dora:
        _measure(network, named, start, prefix)
    return named


def _injected(network: nn.Module, lora: LoRA, seed: int, prefix: str) -> dict[str, nn.Parameter]:
    from peft import LoraConfig, inject_adapter_in_model

    _check_targets(network, lora)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.rank * lora.scale,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        use_dora=lora.dora,
    )
    with torch.random.fork_rng(devices=[]):  # peft draws from the global stream, we do not keep what it draws
        inject_adapter_in_model(config, network, adapter_name=ADAPTER)
    for layer in adapter_layers(network):
        layer.cast_input_dtype_enabled = False  # autocast decides; a cast to fp32 before it only costs memory
    mark = f".{ADAPTER}."
    named = {prefix + n.replace(mark, "."): p for n, p in network.named_parameters() if mark in n}
    for name, parameter in named.items():
        # fp32 before drawing: drawn in the base's half precision it would be another adapter
        value = torch.zeros(parameter.shape)
        if ".lora_A." in name:
            generator = Key(seed, "lora").generator("init", name)
            bound = 1.0 / math.sqrt(parameter[0].numel())
            if lora.init == "gaussian":
                value.normal_(0.0, 1.0 / lora.rank, generator=generator)
            else:
                value.uniform_(-bound, bound, generator=generator)
        parameter.data = value.to(parameter.device)
    return named


@torch.no_grad()
def _measure(network: nn.Module, named: Mapping[str, nn.Parameter], start: Mapping[str, Tensor], prefix: str) -> None:
    """DoRA's lengths in fp32, which start as those of W + (alpha / rank) B A where the file has none."""
    from peft.utils.integrations import dequantize_module_weight

    for name, layer in network.named_modules():
        if (key := prefix + name + MAGNITUDE) not in named:
            continue
        dora: Any = layer.lora_magnitude_vector[ADAPTER]
        # peft takes them in the precision of the input: in bf16 the start would be off the base by 0.4 % a layer.
        dora.get_weight_norm = partial(_length, dora.get_weight_norm)
        if key not in start:
            change = layer.get_delta_weight(ADAPTER)
            base = dequantize_module_weight(layer.get_base_layer())
            named[key].data = dora.get_weight_norm(weight=base, lora_weight=change, scaling=1.0)


def _length(
    of: Callable[..., Tensor], *, weight: Tensor, lora_weight: Tensor, scaling: float, adapter_name: str | None = None
) -> Tensor:
    """peft's length of each row of a weight, in fp32."""
    return of(weight.float(), lora_weight.float(), scaling, adapter_name=adapter_name)


def adapter_layers(network: nn.Module) -> list[BaseTunerLayer]:
    """Every layer that has an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


def _check_targets(network: nn.Module, lora: LoRA) -> None:
    """peft passes over a target that matches nothing as long as another matches."""
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    last = [name.split(".")[-2:] for name in layers]
    ends = sorted({".".join(parts) if parts[-1].isdigit() else parts[-1] for parts in last})
    for target in lora.targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            close = difflib.get_close_matches(target, ends, n=1)
            hint = f" Did you mean `{close[0]}`?" if close else f" There are: {', '.join(ends[:12])}."
            raise ValueError(f"lora.targets: no linear or convolution layer's name ends with `{target}`.{hint}")


def _begin_at(named: Mapping[str, nn.Parameter], start: Mapping[str, Tensor], lora: LoRA) -> None:
    """Copy a file's adapter (scale baked into its B) in; a smaller rank fills the first rows, the rest of B is zero."""
    if not lora.dora and any(name.endswith(MAGNITUDE) for name in start):
        raise ValueError(f"--lora {lora.file}: it is a DoRA, which has a length for each row too. Give --lora.dora.")
    unknown = sorted(start.keys() - named.keys())
    if unknown:
        raise ValueError(
            f"--lora {lora.file}: its layer {unknown[0]!r} (and {len(unknown) - 1} more) gets no adapter here. "
            f"lora.targets is {', '.join(lora.targets)}: name the file's layers there."
        )
    needed = max((tensor.shape[0] for name, tensor in start.items() if ".lora_A." in name), default=0)
    if needed > lora.rank:
        raise ValueError(
            f"--lora {lora.file}: it is of rank {needed}, and --lora.rank is {lora.rank}. Give --lora.rank {needed} "
            "or more."
        )
    for name, tensor in start.items():
        place = named[name].data
        for part, axis in ((".lora_A.", 0), (".lora_B.", 1)):  # along which the rank runs
            place = place.narrow(axis, 0, min(tensor.shape[axis], lora.rank)) if part in name else place
        if tensor.shape != place.shape:
            raise ValueError(
                f"--lora {lora.file}: {name!r} is {list(tensor.shape)}, here it is {list(named[name].shape)}. "
                "Use the model it was made for."
            )
        place.copy_(tensor / lora.scale if ".lora_B." in name else tensor)


def droppers(network: nn.Module) -> list[nn.Module]:
    """What has to be in training for the dropout of its adapter; DoRA asks its layer."""
    found: list[nn.Module] = []
    for layer in adapter_layers(network):
        own = layer.get_submodule("lora_dropout")[ADAPTER]  # type: ignore[index]
        found += [layer, own] if isinstance(own, nn.Dropout) else []
    return found

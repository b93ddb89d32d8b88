"""What a run needs of a device's memory, before anything is loaded.

    peak = what is always there + the largest of: reading prompts, sampling, decoding, learning, stepping

The architecture comes from the model's config files and runs on torch's meta device (`metering`); its weights are not
read. What a reward keeps on the device comes on top.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from tastemaker.metering import Cost, autoencoder, decoding, denoising, network, text_weights
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.facts import guiding, own_sides, text_tokens
from tastemaker.policy.hub import INDEX
from tastemaker.policy.load import TILE, configs, elsewhere
from tastemaker.policy.sharding import blocks
from tastemaker.text_metering import Readers, readers

DENOISERS = ("unet", "transformer")  # what the network that is trained is called in a model's folder
DECODE_PIXELS = 8 * 512 * 512  # that a policy gives its VAE in one call
GRAPH_PIXELS = 512 * 512  # the same where the gradient goes through it
BLOCK_8BIT, LEAST_8BIT = 256, 4096  # bitsandbytes: an fp32 scale for each block; smaller tensors stay fp32
BLOCK_4BIT = 64  # its NF4: numbers that share a scale
# Allowances, not measured: a CUDA context and its libraries lie outside of what torch allocates, and what torch
# allocates falls into pieces, some of them too small to be of use.
CONTEXT, SLACK = 600 * 2**20, 0.05


@dataclass(frozen=True)
class Setup:
    """What decides a run's memory; the names are the user's flags where they have one."""

    model: str | Path | Mapping[str, Mapping[str, Any]]
    """As `--model`, or the contents of its config files, by part. Only these are read or fetched."""
    lora: LoRA | None
    revision: str | None = None
    mixed_precision: str = "no"
    height: int | None = None
    """Pixels; None is the model's own."""
    width: int | None = None
    guided: bool = True
    """Whether predictions are guided, by as many rows of the network as the model takes for that."""
    learning_guided: bool | None = None
    """The same of training calls; None is as above."""
    micro_batch: int = 1
    """Items in one training call."""
    sampling_batch: int | None = None
    """Pictures in one sampling call; None is `micro_batch`."""
    gradient_checkpointing: bool = False
    vae_slicing: bool = False
    """Decode one picture at a time."""
    vae_tiling: bool = False
    """Decode in tiles where pictures are larger than one."""
    cpu_offload: bool = False
    """The VAE is there while it decodes."""
    quantise: str | None = None
    """Bits of the frozen network's linear layers: "8bit", "4bit"."""
    use_8bit_adam: bool = False
    sets: tuple[str, ...] = ("base",)
    """Weight sets as `policy.load.load` takes them, "ema" among them."""
    depth: int = 1
    """Network calls of one item whose graphs are held at once."""
    differentiates: bool = False
    """Whether the reward's gradient goes through the decoder."""
    kernel: str = "efficient"
    """Attention: "efficient" for any fused kernel, "math" for none."""
    processes: int = 1
    """Over which what is trained is cut (`fsdp`)."""


class Line(NamedTuple):
    """One entry: when it is there (`always` or a phase), what it is, its bytes, how they come about."""

    when: str
    what: str
    bytes: int
    how: str


@dataclass(frozen=True)
class Memory:
    """The breakdown of one device's memory, in bytes."""

    lines: tuple[Line, ...]
    context: int
    """Taken by the device for itself."""
    processes: int = 1
    """Over which what is trained is cut."""

    def of(self, what: str) -> int:
        """Bytes of one line."""
        return next(line.bytes for line in self.lines if line.what == what)

    def during(self, when: str) -> int:
        """Bytes that one phase adds to what is always there."""
        return sum(line.bytes for line in self.lines if line.when == when)

    @property
    def peak(self) -> int:
        """The most that tensors take, which is what torch.cuda.max_memory_allocated counts."""
        phases = {line.when for line in self.lines} - {"always"}
        return self.during("always") + max(map(self.during, phases))

    @property
    def needed(self) -> int:
        """Peak, and an allowance for the device's own part and for what is lost in pieces."""
        return int(self.peak * (1 + SLACK)) + self.context

    def table(self) -> list[tuple[str, str, str]]:
        """Rows (quantity, number, how it comes about) for the terminal, as `Plan.table` has them."""
        rows = [(line.what, size(line.bytes), f"{line.when}: {line.how}") for line in self.lines if line.bytes]
        return [*rows, ("memory", size(self.peak), f"at most; {size(self.needed)} with what the device itself takes")]


def size(count: int) -> str:
    """Bytes as people write them."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"


def estimate(setup: Setup, *, cuda: bool = True, otherwise: bool = True) -> Memory:
    """What this setup needs. ValueError if the model's configs are not there or of a kind that is unknown here.

    otherwise: says of the activations what they would be with checkpointing switched over, which takes a quarter of
    the time.
    """
    model = _configs(setup)
    denoiser = network(_denoiser(model), setup.lora, setup.mixed_precision)
    read = readers(model, setup.lora, setup.mixed_precision, setup.kernel)
    trained = [*(p.numel() for p in denoiser.parameters() if p.requires_grad), *read.trained]
    frozen = _frozen(denoiser, setup.quantise)
    vae = autoencoder(model["vae"], setup.mixed_precision)
    texts = sum(text_weights(config) for name, config in model.items() if name.startswith("text_encoder"))
    visitors = texts * (4 if setup.mixed_precision == "no" else 2) - read.frozen  # those that are trained stay
    copies = [name for name in setup.sets if not (setup.lora and name == "base")]
    n = setup.processes
    moments = -(-sum(_moments(count, setup.use_8bit_adam) for count in trained) // n)
    fp32 = -(-4 * sum(trained) // n)
    part = f", one of {n} parts" if n > 1 else ""
    lines = [
        Line("always", "network", frozen, f"frozen weights{f', {setup.quantise}' if setup.quantise else ''}"),
        Line("always", "trained weights", fp32, f"{sum(trained):,} numbers in fp32{part}"),
        *([Line("always", "gathered weights", _gathered(denoiser), "two blocks, one's gradient, the rest")] * (n > 1)),
        Line("always", "gradients", fp32, f"in fp32{part}"),
        Line("always", "optimizer", moments, "AdamW in 8 bits" if setup.use_8bit_adam else "AdamW's two moments, fp32"),
        Line("always", "weight sets", fp32 * len(copies), ", ".join(copies)),
        Line(
            "decoding" if setup.cpu_offload else "always",
            "decoder",
            sum(p.nbytes for p in vae.parameters()),
            f"VAE, {str(vae.dtype).split('.')[1]}",
        ),
        *([Line("always", "encoders trained", read.frozen, "frozen weights")] if read.frozen else []),
        Line("reading prompts", "text encoder", visitors, "a visitor"),
        *_calls(setup, model, read, otherwise),
        Line("stepping", "the step's own copies", 0 if setup.use_8bit_adam else fp32, "of all tensors at once"),
    ]
    return Memory(tuple(lines), CONTEXT if cuda else 0, n)


def tiles(setup: Setup) -> bool:
    """Whether pictures are larger than a tile of the VAE, so that `vae_tiling` does something."""
    model = _configs(setup)
    _, *sides = _latent_shape(setup, model)
    return max(sides) * _factor(model["vae"]) > min(TILE, json.loads(model["vae"]).get("sample_size", TILE))


def _calls(setup: Setup, model: Mapping[str, str], read: Readers, otherwise: bool) -> list[Line]:
    """What the calls of each phase keep."""
    latent = _latent_shape(setup, model)
    pictures = setup.sampling_batch or setup.micro_batch
    pixels = latent[1] * latent[2] * _factor(model["vae"]) ** 2
    at_once = 1 if setup.vae_slicing else min(pictures, max(1, DECODE_PIXELS // pixels))
    guided = guiding(json.loads(_denoiser(model))).rows
    each = guided if setup.guided else 1
    learnt = guided if (setup.guided if setup.learning_guided is None else setup.learning_guided) else 1
    rows = setup.micro_batch * learnt
    most = json.loads(model.get("text_encoder", "{}")).get("max_position_embeddings", 77)
    tokens = text_tokens(json.loads(_denoiser(model)), most, "text_encoder_3" in model)

    def calling(rows: int, checkpointing: bool, grad: bool) -> Cost:
        key = (_denoiser(model), setup.lora, setup.mixed_precision)
        return denoising(*key, (rows, *latent), tokens, checkpointing, grad, setup.kernel)

    sampling = calling(pictures * each, False, False)
    decoded = decoding(model["vae"], setup.mixed_precision, (at_once, *latent), setup.kernel, tiled=setup.vae_tiling)
    learning = calling(rows, setup.gradient_checkpointing, True)
    said = f"{rows} rows{f' x {setup.depth} calls' * (setup.depth > 1)}"
    if otherwise:
        other = calling(learnt, not setup.gradient_checkpointing, True).saved * setup.micro_batch * setup.depth
        said += f"; {size(other)} {'without' if setup.gradient_checkpointing else 'with'} gradient checkpointing"
    rest = max(learning.peak - learning.saved - learning.copies, read.working(setup.gradient_checkpointing))
    judging = _differentiated(setup, model["vae"], latent) if setup.differentiates else 0
    return [
        Line("sampling", "a sampling call", sampling.peak, f"{pictures * each} rows"),
        Line("decoding", "a decoding call", decoded.peak, f"{at_once} at a time"),
        Line("learning", "saved activations", learning.saved * setup.depth, said),
        *([_texts(setup, read, learnt)] if read.frozen else []),
        Line("learning", "autocast's copies", learning.copies * setup.depth, "of weights, kept for backward"),
        Line("learning", "working memory", max(rest, judging), "what comes and goes"),
    ]


def _texts(setup: Setup, read: Readers, learnt: int) -> Line:
    """What the texts of a training call keep where encoders are trained; learnt: rows of the network for each item."""
    texts = setup.micro_batch + (learnt == 2)  # and that which guidance moves away from
    kept = 0 if setup.gradient_checkpointing else texts * read.saved * setup.depth
    return Line("learning", "texts' activations", kept, f"{texts} texts{f' x {setup.depth} calls' * (setup.depth > 1)}")


def _differentiated(setup: Setup, vae: str, latent: tuple[int, int, int]) -> int:
    """Bytes of the gradient through the decoder, which is made anew for a few pictures at a time."""
    pixels = latent[1] * latent[2] * _factor(vae) ** 2
    at_once = 1 if setup.vae_slicing else min(setup.micro_batch, max(1, GRAPH_PIXELS // pixels))
    shape = (at_once, *latent)
    how = (setup.kernel, setup.gradient_checkpointing, True, setup.vae_tiling)
    return decoding(vae, setup.mixed_precision, shape, *how).peak


def _gathered(network: nn.Module) -> int:
    """Bytes of what is whole at one time of a network that is cut: a block, the one that is fetched ahead, the gradient
    of one; and all that lies in no block, with its gradient. fp32."""
    seen: set[int] = set()
    largest = 0
    for block in blocks(network):
        own = [one for one in block.parameters() if id(one) not in seen]
        seen |= {id(one) for one in own}
        largest = max(largest, sum(one.numel() for one in own))
    rest = sum(one.numel() for one in network.parameters() if id(one) not in seen)
    return 4 * (3 * largest + 2 * rest)


def _frozen(network: nn.Module, quantise: str | None) -> int:
    """Bytes of the weights that are not trained; bitsandbytes packs those of linear layers, fp32 scales beside them."""
    linear = {id(one.weight) for one in network.modules() if quantise and isinstance(one, nn.Linear)}
    frozen = [one for one in network.parameters() if not one.requires_grad]
    fixed = sum(one.nbytes for one in network.buffers())  # a table of positions can be a tenth of a network
    return fixed + sum(_packed(one, quantise) if id(one) in linear else one.nbytes for one in frozen)


def _packed(weight: Tensor, quantise: str | None) -> int:
    """4bit: half a byte a number and a scale for each block; 8bit: a byte a number and a scale for each row."""
    count = weight.numel()
    return count // 2 + 4 * -(-count // BLOCK_4BIT) if quantise == "4bit" else count + 4 * len(weight)


def _moments(count: int, in_8bit: bool) -> int:
    """Bytes of AdamW's two moments of one tensor."""
    if not in_8bit or count < LEAST_8BIT:
        return 8 * count
    return 2 * (count + 4 * -(-count // BLOCK_8BIT))


def _configs(setup: Setup) -> dict[str, str]:
    """Part -> its config as JSON."""
    if isinstance(setup.model, Mapping):
        return {name: json.dumps(config) for name, config in setup.model.items()}
    place = _place(str(setup.model), setup.revision)
    found = {path.parent.name: path.read_text(encoding="utf-8") for path in place.glob("*/config.json")}
    found |= {name: (home / "config.json").read_text(encoding="utf-8") for name, home in elsewhere(place).items()}
    index = place / INDEX
    named = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    found = {name: text for name, text in found.items() if named.get(name) != [None, None]}  # said to be left out
    lacks = [] if found.keys() & DENOISERS else [" or ".join(f"{name}/config.json" for name in DENOISERS)]
    lacks += [] if "vae" in found else ["vae/config.json"]
    if lacks:
        raise ValueError(f"--model {setup.model}: {place} has no {lacks[0]}, so its memory is not known.")
    return found


def _denoiser(model: Mapping[str, str]) -> str:
    """The config of the network that is trained."""
    return next(model[name] for name in DENOISERS if name in model)


@lru_cache(maxsize=8)
def _place(model: str, revision: str | None) -> Path:
    """A folder with the model's configs; those of a hub id are fetched, a few kB."""
    return configs(model, revision)


def _factor(vae: str) -> int:
    return int(2 ** (len(json.loads(vae)["block_out_channels"]) - 1))


def _latent_shape(setup: Setup, model: Mapping[str, str]) -> tuple[int, int, int]:
    factor, (height, width) = _factor(model["vae"]), own_sides(json.loads(_denoiser(model)))
    return (
        json.loads(model["vae"]).get("latent_channels", 4),
        setup.height // factor if setup.height else height,
        setup.width // factor if setup.width else width,
    )

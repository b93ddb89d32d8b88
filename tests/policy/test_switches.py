"""Switches for memory and time: each is seen to do something, and is refused where it cannot."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.models.attention_processor import Attention

import tiny
import tiny_flow
from tastemaker.policy import attention, switches
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load

ROWS = 2


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Stable Diffusion 3 without T5, with the second attention of 3.5-medium."""
    folder = tmp_path_factory.mktemp("flow")
    return str(tiny_flow.save(folder, transformer={"dual_attention_layers": (0,)}))


def predicted(policy: Any) -> torch.Tensor:
    """A prediction with a random adapter, and the gradient of its mean square left in the parameters."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) / 10)
    x = torch.randn(ROWS, *policy.latent_shape, generator=random)
    x0: torch.Tensor = policy.predict(x, 1, policy.schedule(3), policy.encode(["a cat", "a dog"]), 2.0).x0
    x0.square().mean().backward()
    return x0.detach()


# ---- tiles

LARGE = 4 * tiny.SIDE  # pixels: a tile has half of that, as many as the tiny VAE was made for


def test_a_large_picture_is_decoded_in_overlapping_tiles(model: str) -> None:
    whole, tiled = (load(model, lora=LoRA(), resolution=LARGE, vae_tiling=on) for on in (False, True))
    sides: list[Any] = []
    tiled.pipeline().vae.decoder.register_forward_hook(lambda module, rows, out: sides.append(rows[0].shape[-1]))
    x0 = torch.randn(1, *tiled.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pictures, other = tiled.decode(x0), whole.decode(x0)
    assert len(sides) == 9 and max(sides) == tiny.SIDE  # steps of 3/4 of a tile, in both directions
    assert pictures.shape == other.shape == (1, 3, LARGE, LARGE)
    assert 0 < (pictures - other).abs().mean() < 0.05
    small = load(model, lora=LoRA(), vae_tiling=True)
    sides.clear()
    small.pipeline().vae.decoder.register_forward_hook(lambda module, rows, out: sides.append(rows[0].shape[-1]))
    small.decode(torch.zeros(1, *small.latent_shape))
    assert len(sides) == 1


def test_the_gradient_passes_through_tiles(model: str) -> None:
    policy = load(model, lora=LoRA(), resolution=LARGE, vae_tiling=True, gradient_checkpointing=True)
    random = torch.Generator().manual_seed(0)
    x0 = torch.randn(1, *policy.latent_shape, generator=random)
    toward = torch.randn(x0.shape, generator=random)
    x0.requires_grad_()
    policy.decode(x0).square().mean().backward()
    assert x0.grad is not None
    with torch.no_grad():
        up, down = (policy.decode(x0 + sign * 0.01 * toward).square().mean() for sign in (1, -1))
    assert float((x0.grad * toward).sum()) == pytest.approx(float(up - down) / 0.02, rel=0.03)


def test_a_tile_is_of_512_pixels_where_the_vae_was_made_for_more() -> None:
    with torch.device("meta"):
        vae = tiny.autoencoder({"sample_size": 1024})
    switches.tile(vae)
    assert (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size) == (True, 512, 256)


# ---- kernels


@pytest.mark.parametrize("kernel", ["native", "_native_math"])
@pytest.mark.parametrize("kind", ["model", "flow"])
def test_every_attention_of_the_network_asks_for_the_kernel(
    kind: str, kernel: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue(kind)
    plain, chosen = (load(folder, lora=LoRA(rank=2), attention_backend=name) for name in (None, kernel))
    asked: list[str] = []

    def dispatch(*rows: Any, backend: Any, **more: Any) -> Any:
        asked.append(backend.value)
        return real(*rows, backend=backend, **more)

    real = attention.dispatch_attention_fn
    monkeypatch.setattr(attention, "dispatch_attention_fn", dispatch)
    expected, nothing, found = predicted(plain), list(asked), predicted(chosen)
    assert nothing == [] and asked == [kernel] * {"model": 8, "flow": 3}[kind]
    assert torch.allclose(found, expected, atol=1e-5)
    for one, other in zip(plain.parameters(), chosen.parameters(), strict=True):
        assert one.grad is not None and torch.allclose(one.grad, other.grad, atol=1e-6)
    assert _AttentionBackendRegistry.get_active_backend()[0].value == "native"  # of other networks, as it was


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        ("fast", "is 'fast'; the diffusers that is installed has flash, .*_native_math"),
        ("flash", "flash does not work on cpu in float32: .*flash-attn"),
        ("xformers", "xformers does not work on cpu in float32: .*xformers"),
        ("_native_cudnn", "_native_cudnn does not work on cpu in float32: "),
    ],
)
def test_a_kernel_that_does_not_work_here_is_refused_with_the_reason(model: str, kernel: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"--attention_backend {why}"):
        load(model, lora=LoRA(), attention_backend=kernel)


def test_a_kernel_without_masks_is_refused_where_one_is_needed(flow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unmasked(*rows: torch.Tensor, attn_mask: torch.Tensor | None, **more: Any) -> torch.Tensor:
        if attn_mask is not None:
            raise ValueError("masks are not supported")
        return rows[0]

    monkeypatch.setattr(switches, "dispatch_attention_fn", unmasked)
    with pytest.raises(ValueError, match="--attention_backend native does not work on .* masks are not supported"):
        load(flow, lora=LoRA(), attention_backend="native")


@torch.no_grad()
def test_attention_with_more_around_it_is_left_to_diffusers() -> None:
    """As in UNets with blocks of attention alone: a norm of groups, pictures in, and what came in added."""
    plain = Attention(8, heads=2, dim_head=4, norm_num_groups=4, residual_connection=True, rescale_output_factor=2.0)
    x = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = plain(x)
    plain.set_processor(attention.Crossing())
    assert torch.equal(plain(x), expected)


# ---- compilation


def test_the_repeated_blocks_are_compiled_and_nothing_else(model: str, flow: str) -> None:
    for folder, part, block in (
        (model, "unet", "BasicTransformerBlock"),
        (flow, "transformer", "JointTransformerBlock"),
    ):
        network = getattr(load(folder, lora=LoRA(), compile=True).pipeline(), part)
        compiled = [one for one in network.modules() if one._compiled_call_impl is not None]
        every = [one for one in network.modules() if type(one).__name__ == block]
        assert compiled == every != []


def test_without_a_compiler_nothing_is_begun(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"^--compile needs a compiler, and none is found \(g\+\+, .* in CXX"):
        load(model, lora=LoRA(), compile=True)


@pytest.mark.slow
@pytest.mark.timeout(400)  # compilers take their time
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own, while it compiles
def test_compiled_blocks_follow_the_weights_and_are_compiled_once(model: str) -> None:
    """A minute of the compiler: the first round makes the graphs, other weights and sets make no more of them."""
    from torch._dynamo.utils import counters

    plain, compiled = (load(model, lora=LoRA(rank=2), compile=on, sets=("base", "old")) for on in (False, True))
    graphs = []
    for _ in range(3):
        assert torch.allclose(predicted(compiled), predicted(plain), atol=1e-4)
        for weights in ("base", "old"):
            found = []
            for policy in (plain, compiled):
                x = torch.ones(ROWS, *policy.latent_shape)
                with policy.using(weights):
                    found.append(policy.predict(x, 1, policy.schedule(3), policy.encode(["a", "b"]), 2.0).x0)
            assert torch.allclose(*found, atol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
        for policy in (plain, compiled):
            policy.blend("old", 0.5)
    assert graphs[0] == graphs[1] == graphs[2] > 0


# ---- what is idle leaves the device


def test_the_vae_visits_the_device_to_decode(model: str) -> None:
    here, away = (load(model, lora=LoRA(), cpu_offload=on) for on in (False, True))
    vae, done = away._vae, []  # type: ignore[attr-defined]
    move = vae.to
    vae.to = lambda place: done.append(str(place)) or move(place)
    vae.decoder.register_forward_hook(lambda *_: done.append("decodes"))
    vae.encoder.register_forward_hook(lambda *_: done.append("encodes"))
    away.device = torch.device("cpu", 0)  # a name of its own for the device
    predicted(away)
    assert done == []
    with torch.no_grad():
        pictures = away.decode(torch.ones(2, *away.latent_shape))
        assert torch.equal(pictures, here.decode(torch.ones(2, *here.latent_shape)))
    away.encode_images(pictures)
    assert done == ["cpu:0", "decodes", "cpu", "cpu:0", "encodes", "cpu"]


def test_text_encoders_visit_the_device_for_texts_that_are_new(model: str) -> None:
    policy = load(model, lora=LoRA())
    (encoder,), done = policy._encoders, []  # type: ignore[attr-defined]
    move = encoder.to
    encoder.to = lambda place: done.append(str(place)) or move(place)
    encoder.register_forward_hook(lambda *_: done.append("reads"))
    policy.device = torch.device("cpu", 0)
    policy.encode(["a cat", "a dog", "a cat"])
    assert done == ["cpu:0", *["reads"] * 3, "cpu"]  # with the empty text of guidance
    policy.encode(["a dog", "a cat"])
    assert len(done) == 5
    policy.encode(["a cow", "a cat"])
    assert done[5:] == ["cpu:0", "reads", "cpu"]


# ---- bits


def test_bits_are_refused_where_they_cannot_be(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"^--quantise 4bit does not work on a CPU"):
        load(model, lora=LoRA(), quantise="4bit")
    with pytest.raises(ValueError, match=r"^--quantise 8bit is for a frozen network, and without LoRA"):
        load(model, lora=None, device="cuda", quantise="8bit")
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    with pytest.raises(ValueError, match=r'^--quantise 8bit needs .*: pip install "tastemaker\[memory\]"$'):
        load(model, lora=LoRA(), device="cuda", quantise="8bit")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("4bit", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}),
        ("8bit", {"load_in_8bit": True}),
    ],
)
def test_diffusers_is_told_to_pack_the_network_alone(
    asked: str, expected: dict[str, Any], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = ModuleType("bitsandbytes")
    fake.__spec__ = ModuleSpec("bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.49.0" if name == "bitsandbytes" else version(name)
    )
    told: dict[str, Any] = {}

    def from_pretrained(*_: object, **settings: Any) -> None:
        told.update(settings)
        raise OSError("far enough")

    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", from_pretrained)
    with pytest.raises(ValueError, match="far enough"):
        load(model, lora=LoRA(), device="cuda", mixed_precision="bf16", quantise=asked)
    ((part, config),) = told["quantization_config"].quant_mapping.items()
    assert part == "unet" and {name: getattr(config, name) for name in expected} == expected


def test_without_switches_diffusers_is_told_nothing(model: str, tmp_path: Path, monkeypatch: Any) -> None:
    real, told = StableDiffusionPipeline.from_pretrained, {}
    monkeypatch.setattr(
        StableDiffusionPipeline, "from_pretrained", lambda *words, **more: told.update(more) or real(*words, **more)
    )
    network = load(model, lora=LoRA()).pipeline().unet
    assert "quantization_config" not in told
    assert all(one._compiled_call_impl is None for one in network.modules())
    assert {type(one).__name__ for one in network.attn_processors.values()} == {"AttnProcessor2_0"}

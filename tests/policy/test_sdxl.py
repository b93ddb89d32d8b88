"""Stable Diffusion XL on tiny random models in its own layout: the chain is its pipeline's, and so are the files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from full_size import MODELS, UNET_XL
from safetensors.torch import load_file, save_file
from torch import nn

import family_runs
import tiny
import tiny_xl
from family_runs import PROMPTS, noise, ours, same, stirred, theirs
from tastemaker.exports.diffusers import save
from tastemaker.memory import Setup, estimate
from tastemaker.metering import denoising, text_weights
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load, quiet
from tastemaker.process.samplers import DDIM
from test_memory import really_saved
from thinning import slow_but

PARTS = ("unet", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an eps-model."""
    return str(tiny_xl.save(tmp_path_factory.mktemp("sdxl") / "eps"))


def plain(folder: str | Path) -> Any:
    with quiet():
        pipeline = StableDiffusionXLPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def by_ddim(pipeline: Any) -> Any:
    with quiet():
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    return pipeline


# ---- the chain


@pytest.mark.parametrize(
    ("guidance", "negative", "size"),
    [(1.0, None, {}), (5.0, "fog", {"height": 24, "width": 16}), (5.0, None, {"width": 10})],
)
def test_the_chain_is_the_pipelines(model: str, guidance: float, negative: str | None, size: dict[str, int]) -> None:
    """Of latents 8 x 5 too, which the UNet halves twice."""
    policy = load(model, lora=LoRA(), **size)
    x = noise(policy)
    wanted = theirs(by_ddim(plain(model)), x, 5, guidance, negative)
    assert same(ours(policy, x, 5, guidance, negative or ""), wanted) and not same(wanted, x)


def test_what_it_ends_at_is_what_the_published_scheduler_draws(model: str) -> None:
    """Euler's last step goes to x0 itself; DDIM's to the first entry of the model's table."""
    policy, x = load(model, lora=None), noise(load(model, lora=None))
    wanted = theirs(plain(model), x, 4, 5.0)
    schedule, conditioning = policy.schedule(4), policy.encode(PROMPTS)
    for i in range(4):
        with torch.no_grad():
            prediction = policy.predict(x, i, schedule, conditioning, 5.0)
        x = DDIM(0.0).transition(prediction, x, i, schedule).mean
    assert (prediction.x0 - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("zero", [False, True])
def test_a_network_that_predicts_v(tmp_path: Path, zero: bool) -> None:
    scheduler = {"rescale_betas_zero_snr": zero, "timestep_spacing": "trailing" if zero else "leading"}
    folder = tiny_xl.save(tmp_path, prediction_type="v_prediction", scheduler=scheduler)
    policy = load(str(folder), lora=None)
    x = noise(policy)
    assert same(ours(policy, x, 4, 5.0), theirs(by_ddim(plain(folder)), x, 4, 5.0))
    assert (policy.schedule(4).alpha[0] == 0) == zero


def test_without_a_negative_prompt_guidance_moves_away_from_what_the_model_says(model: str, tmp_path: Path) -> None:
    encoded = load(model, lora=None).encode(["", "a red cat"])
    assert not any(tensor.any() for tensor in encoded.negative.values())
    assert encoded.table["text"].shape == (2, tiny.TOKENS, sum(tiny_xl.WIDTHS)) and encoded.table["text"][0].any()
    assert encoded.table["pooled"].shape == (2, tiny_xl.WIDTHS[1]) and encoded.table["pooled"][0].any()
    folder = tiny_xl.save(tmp_path, force_zeros=False)
    policy = load(str(folder), lora=None)
    assert torch.equal(policy.encode(["a"]).negative_rows("text")[0], encoded.table["text"][0])
    x = noise(policy)
    assert same(ours(policy, x, 3, 5.0), theirs(by_ddim(plain(folder)), x, 3, 5.0))


def test_rows_alone_and_steps_as_a_tensor_are_the_same(model: str) -> None:
    policy = load(model, lora=LoRA())
    schedule, conditioning, x = policy.schedule(4), policy.encode(PROMPTS, "fog"), noise(policy)
    with torch.no_grad():
        one = policy.predict(x, 1, schedule, conditioning, 3.0)
        many = policy.predict(x, torch.tensor([1, 1]), schedule, conditioning, torch.tensor([3.0, 3.0]))
        alone = policy.predict(x[1:], 1, schedule, conditioning.take([1]), 3.0)
    assert torch.equal(one.x0, many.x0) and torch.equal(one.eps, many.eps)
    torch.testing.assert_close(one.x0[1:], alone.x0, rtol=1e-5, atol=1e-5)


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unet": {"addition_embed_type": None}}, "addition_embed_type None; that of Stable Diffusion XL is 'text_t"),
        (
            {"unet": {"projection_class_embeddings_input_dim": 5 * 8 + 12}},
            "is a refiner: its UNet is told an aesthetic",
        ),
        (
            {"unet": {"projection_class_embeddings_input_dim": 68}},
            "takes 68 numbers .* of 12 that makes 7 sizes, and 6",
        ),
        ({"unet": {"time_cond_proj_dim": 8}}, "is a latent consistency model: its UNet is told the guidance"),
        ({"scheduler": {"rescale_betas_zero_snr": True}}, "predicts eps and its scheduler has zero terminal SNR"),
    ],
)
def test_models_that_are_another_thing(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    folder = tiny_xl.save(tmp_path, **settings)
    with pytest.raises(ValueError, match=f"^--model {folder}.* {message}"):
        load(str(folder), lora=None)


def altered(folder: Path, **entries: Any) -> str:
    """The folder, with other lines in its model_index.json."""
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | entries))
    return str(folder)


def test_parts_that_are_of_another_kind_or_missing(tmp_path: Path) -> None:
    folder = tiny_xl.save(tmp_path / "edm")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "EDMEulerScheduler"}))
    with pytest.raises(ValueError, match="has a EDMEulerScheduler, which has no betas"):
        load(altered(folder, scheduler=["diffusers", "EDMEulerScheduler"]), lora=None)
    folder = tiny_xl.save(tmp_path / "half")
    with pytest.raises(ValueError, match=r"has no text_encoder and no tokenizer: its model_index.json says so"):
        load(altered(folder, text_encoder=[None, None], tokenizer=[None, None]), lora=None)


# ---- pictures


def test_a_vae_that_overflows_in_half_precision_is_computed_in_fp32(tmp_path: Path) -> None:
    """As the published one does, whose config says so."""
    pictures = {}
    for upcast in (True, False):
        folder = tiny_xl.save(tmp_path / str(upcast), vae={"force_upcast": upcast})
        file = folder / "vae" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        save_file(tensors | {"decoder.conv_in.weight": 1e6 * tensors["decoder.conv_in.weight"]}, file)
        policy = load(str(folder), lora=LoRA(), mixed_precision="fp16")
        pictures[upcast] = policy.decode(noise(policy).requires_grad_())
        if upcast:
            x0 = noise(policy).requires_grad_()
            assert torch.equal(load(str(folder), lora=LoRA()).decode(x0), pictures[True])
            policy.decode(x0).sum().backward()
            assert x0.grad is not None and x0.grad.isfinite().all() and x0.grad.any()
            assert policy.encode_images(pictures[True].detach()).isfinite().all()
    assert pictures[True].isfinite().all() and pictures[True].dtype == torch.float32
    assert not pictures[False].isfinite().all()


# ---- weights


@pytest.mark.parametrize("lora", [LoRA(), None], ids=["LoRA", "full"])
def test_the_base_is_the_base_bit_for_bit(model: str, lora: LoRA | None) -> None:
    plainly = load(model, lora=None)
    plainly.pipeline().unet.requires_grad_(lora is None)  # torch multiplies in another way where nothing is trained
    wanted = ours(plainly, x := noise(plainly), 2, 3.0)
    policy = stirred(load(model, lora=lora))
    tuned = ours(policy, x, 2, 3.0)
    with policy.using("base"):
        assert torch.equal(ours(policy, x, 2, 3.0), wanted)
    assert torch.equal(ours(policy, x, 2, 3.0), tuned) and not torch.allclose(tuned, wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("lora", "precision", "checkpointing"),
    [(LoRA(), "no", False), (LoRA(), "bf16", True), (None, "no", True), (None, "bf16", False)],
)
def test_every_trainable_tensor_receives_a_gradient(
    model: str, lora: LoRA | None, precision: str, checkpointing: bool
) -> None:
    policy: Any = load(model, lora=lora, mixed_precision=precision, gradient_checkpointing=checkpointing)
    assert family_runs.without_gradient(policy, 3.0) == []
    if lora:
        kept = {p.dtype for n, p in policy.pipeline().unet.named_parameters() if ".lora_" not in n}
        assert kept == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


# ---- files


def test_the_lora_file_gives_the_same_pictures_in_plain_diffusers(model: str, tmp_path: Path) -> None:
    policy = stirred(load(model, lora=LoRA(rank=3, alpha=5.0)))
    x = noise(policy)
    wanted = ours(policy, x, 3, 3.0)
    file = save(policy, tmp_path)
    assert all(re.fullmatch(r"unet\..*\.lora\.(up|down)\.weight", name) for name in load_file(file))
    pipeline, bare = by_ddim(plain(model)), by_ddim(plain(model))
    with quiet():
        pipeline.load_lora_weights(file.parent)
    assert same(theirs(pipeline, x, 3, 3.0), wanted) and not same(theirs(bare, x, 3, 3.0), wanted)
    assert same(ours(load(model, lora=LoRA(rank=4, file=str(file))), x, 3, 3.0), wanted)


def test_full_tuning_is_saved_whole_and_read_again(model: str, tmp_path: Path) -> None:
    policy = stirred(load(model, lora=None))
    x = noise(policy)
    folder = save(policy, tmp_path)
    assert {one.name for one in folder.iterdir()} == {one.name for one in Path(model).iterdir()}
    wanted = ours(policy, x, 2, 3.0)
    assert torch.equal(ours(load(str(folder), lora=None), x, 2, 3.0), wanted)
    assert same(theirs(by_ddim(plain(folder)), x, 2, 3.0), wanted)


# ---- runs


@pytest.mark.parametrize("name", slow_but(family_runs.ALGORITHMS, {"ddpo", "draft"}))
def test_a_run_learns_and_its_pictures_are_diffusers(model: str, tmp_path: Path, name: str) -> None:
    family_runs.diffusers_draws_what_was_learned(model, name, tmp_path / "run", by_ddim(plain(model)))


# ---- the real one


def layers(network: nn.Module) -> dict[str, int]:
    """Names of a network's tensors, whatever their layer is counted as, and their dimensions."""
    counted = r"(resnets|attentions|transformer_blocks)\.\d+"
    return {re.sub(counted, r"\1.*", name): p.ndim for name, p in network.named_parameters()}


def test_the_tiny_models_tensors_are_called_as_those_of_the_real_one(model: str) -> None:
    with torch.device("meta"):
        real = UNet2DConditionModel.from_config(UNET_XL)
    assert sum(p.numel() for p in real.parameters()) == 2_567_463_684
    assert layers(load(model, lora=None).pipeline().unet) == layers(real)


def test_a_small_model_really_keeps_what_was_estimated(model: str) -> None:
    policy: Any = load(model, lora=LoRA(rank=2), resolution=64)  # the fused kernel counts rows in 32s
    rows, pipeline = policy.encode(["a cat"] * 2), policy.pipeline()
    texts = [rows.positive_rows(name) for name in policy.reads]
    real = really_saved(pipeline.unet, lambda: policy._call(noise(policy), torch.zeros(2), *texts))
    unet, *encoders = ((Path(model) / name / "config.json").read_text() for name in PARTS)
    shape = (2, *policy.latent_shape)
    guess = denoising(unet, LoRA(rank=2), "no", shape, tiny.TOKENS, False, True, "efficient").saved
    assert guess == pytest.approx(real, rel=0.02)
    for name, config in zip(PARTS[1:], encoders, strict=True):
        assert text_weights(config) == sum(p.numel() for p in getattr(pipeline, name).parameters())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_the_real_one_needs() -> None:
    setup = Setup(MODELS["sdxl"].parts, LoRA(), mixed_precision="bf16", gradient_checkpointing=True)
    found = estimate(setup)
    assert found.of("network") == 2 * 2_567_463_684
    assert found.of("text encoder") / 2 == pytest.approx(123.1e6 + 694.7e6, rel=1e-3)
    assert found.of("decoder") / 4 == pytest.approx(83.7e6, rel=1e-3)  # fp32: force_upcast
    assert found.of("saved activations") < 2 * 2**30 and found.needed < 16e9

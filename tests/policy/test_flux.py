"""FLUX.1 on tiny random models in diffusers' own layout: the chain is its pipeline's, the files are too."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FluxPipeline
from full_size import MODELS
from safetensors.torch import load_file
from torch import Tensor, nn

import family_runs
import runs
import tastemaker as tm
import tiny_flow
import tiny_flux
from family_runs import PROMPTS, noise, ours, stirred
from tastemaker.budget import fit
from tastemaker.exports.diffusers import LORA, PIPELINE, save
from tastemaker.memory import Setup, estimate
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.facts import guiding_of
from tastemaker.policy.families import NONE, TOLD, TWO_ROWS
from tastemaker.policy.flux import _packed, _unpacked
from tastemaker.policy.load import load as load_as_is
from tastemaker.policy.load import quiet
from tastemaker.subjects import of_model
from test_memory import really_saved
from thinning import slow_but

GUIDANCE = {"dev": 3.5, "schnell": 1.0}
KINDS = list(GUIDANCE)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """kind -> folder."""
    home = tmp_path_factory.mktemp("flux")
    return {kind: str(tiny_flux.save(home / kind, kind)) for kind in KINDS}


def load(folder: str, **settings: Any) -> Any:
    """With small pictures, for its own are of 1024 pixels."""
    return load_as_is(folder, **({} if {"resolution", "height"} & settings.keys() else {"resolution": 16}), **settings)


def plain(folder: str | Path) -> Any:
    """As anybody would load it."""
    with quiet():
        pipeline = FluxPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def theirs(pipeline: Any, x: Tensor, steps: int, guidance: float) -> Tensor:
    told = pipeline.transformer.config.guidance_embeds
    with quiet():
        found = pipeline(
            prompt=PROMPTS,
            height=2 * x.shape[2],
            width=2 * x.shape[3],
            latents=_packed(x),
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=512 if told else 256,
            output_type="latent",
        ).images
    return _unpacked(found, x)


# ---- the chain


@pytest.mark.parametrize("kind", KINDS)
def test_the_chain_is_the_pipelines(kind: str, models: dict[str, str]) -> None:
    policy = load(models[kind], lora=LoRA(), height=20, width=12)
    assert policy.latent_shape == (4, 10, 6)
    x, before = noise(policy), policy.rows.forward
    wanted = theirs(plain(models[kind]), x, 4, GUIDANCE[kind])
    assert (ours(policy, x, 4, GUIDANCE[kind]) - wanted).abs().max() < 1e-5
    assert (wanted - x).abs().max() > 0.1
    assert policy.rows.forward - before == 4 * len(x)  # guided or not, one row each


def test_guidance_is_a_number_that_the_network_is_told(models: dict[str, str]) -> None:
    policy: Any = load(models["dev"], lora=None)
    schedule, conditioning, x = policy.schedule(4), policy.encode(PROMPTS), noise(policy)
    with torch.no_grad():
        weak, strong = (policy.predict(x, 1, schedule, conditioning, value).x0 for value in (1.0, 6.0))
        each = policy.predict(x, torch.tensor([1, 1]), schedule, conditioning, torch.tensor([1.0, 6.0])).x0
    assert (weak - strong).abs().max() > 1e-4
    torch.testing.assert_close(each, torch.stack([weak[0], strong[1]]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 4, 6, 10), (2, 16, 8, 8)])
def test_patches_are_packed_as_in_the_pipeline(shape: tuple[int, int, int, int]) -> None:
    x = torch.randn(shape)
    assert torch.equal(_packed(x), FluxPipeline._pack_latents(x, *shape))
    assert torch.equal(_unpacked(_packed(x), x), x)
    assert torch.equal(_packed(x.contiguous(memory_format=torch.channels_last)), _packed(x))


@pytest.mark.parametrize("side", [16, 64])
def test_the_shift_of_dev_goes_by_the_pictures_size(side: int, models: dict[str, str]) -> None:
    policy, own = load(models["dev"], lora=None, resolution=side), plain(models["dev"]).scheduler
    patches = (side // 4) ** 2
    mu = 0.5 + (patches - 256) * (1.15 - 0.5) / (4096 - 256)
    for steps in (1, 4, 28):
        own.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps, dtype=torch.float64).numpy(), mu=mu)
        torch.testing.assert_close(policy.schedule(steps).sigma, own.sigmas)
        torch.testing.assert_close(policy.schedule(steps).t, own.timesteps)


def test_texts_are_as_long_as_the_model_reads(models: dict[str, str]) -> None:
    for kind, tokens in (("dev", 512), ("schnell", 256)):
        policy = load(models[kind], lora=None)
        found = policy.encode(PROMPTS).table
        assert found["text"].shape == (2, tokens, tiny_flow.JOINT) and found["pooled"].shape == (
            2,
            tiny_flux.CLIP_WIDTH,
        )
        with pytest.warns(UserWarning, match=f"longer than the {tokens} tokens"):
            policy.encode(["long " * 120])


# ---- weights


@pytest.mark.parametrize("lora", [LoRA(), None], ids=["LoRA", "full"])
def test_the_base_is_the_base_bit_for_bit(models: dict[str, str], lora: LoRA | None) -> None:
    base = load(models["dev"], lora=None)
    wanted = ours(base, x := noise(base), 3, 3.5)
    policy = stirred(load(models["dev"], lora=lora))
    tuned = ours(policy, x, 3, 3.5)
    with pytest.raises(ZeroDivisionError), policy.using("base"):
        assert torch.equal(ours(policy, x, 3, 3.5), wanted)
        1 / 0  # noqa: B018
    assert torch.equal(ours(policy, x, 3, 3.5), tuned) and not torch.allclose(tuned, wanted, atol=1e-3)


# Those of diffusers' training script; blocks of one stream have no output of their own.
TARGETS = ("attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out", "attn.to_k", "attn.to_out.0")
TARGETS += ("attn.to_q", "attn.to_v", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")


@pytest.mark.parametrize(
    ("lora", "precision", "checkpointing"),
    [(LoRA(targets=TARGETS), "no", False), (LoRA(targets=TARGETS), "bf16", True), (None, "no", True)],
    ids=["LoRA", "half", "full"],
)
def test_every_trainable_tensor_receives_a_gradient(
    lora: LoRA | None, precision: str, checkpointing: bool, models: dict[str, str]
) -> None:
    policy: Any = load(models["dev"], lora=lora, mixed_precision=precision, gradient_checkpointing=checkpointing)
    assert family_runs.without_gradient(policy, 3.5) == []
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


# ---- runs: loaded, drawn, trained, saved, and read again by plain diffusers


WHOLE = ("draft", "schnell", False)  # without an adapter
RUNS = [*((name, "dev", True) for name in family_runs.ALGORITHMS), WHOLE]


@pytest.mark.parametrize("case", slow_but(RUNS, {("diffusion_nft", "dev", True), WHOLE}))
def test_a_run_learns_and_plain_diffusers_draws_the_same(
    case: tuple[str, str, bool], models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, kind, lora = case
    guidance = GUIDANCE[kind]
    asked: dict[str, Any] = {"guidance": guidance, "lora": LoRA() if lora else None, "noise": tm.FlowSDE()}
    run = family_runs.trained(models[kind], name, tmp_path / "r", **asked, resolution=16)
    (row,) = run.metrics()
    assert run.weights == run.folder / (LORA if lora else PIPELINE)
    planned = re.search(r"rows to learn +(\d+) ", capsys.readouterr().out)  # guided, and yet one row each
    assert planned and row["network_calls"]["rows_backward"] == int(planned[1])
    pipeline = plain(models[kind] if lora else run.weights)
    policy = load(str(models[kind] if lora else run.weights), lora=LoRA(file=str(run.weights)) if lora else None)
    bare = theirs(plain(models[kind]), x := noise(policy), 2, guidance)
    if lora:
        assert all(key.startswith("transformer.") for key in load_file(run.weights))
        with quiet():
            pipeline.load_lora_weights(run.weights.parent)
    found = theirs(pipeline, x, 2, guidance)
    assert (found - ours(policy, x, 2, guidance)).abs().max() < 1e-5 < (found - bare).abs().max()


@pytest.mark.parametrize("lora", [True, False])
def test_files_give_the_same_pictures_in_plain_diffusers(lora: bool, models: dict[str, str], tmp_path: Path) -> None:
    adapter = LoRA(rank=3, alpha=5.0, targets=TARGETS) if lora else None
    policy = stirred(load(models["dev"], lora=adapter))
    x = noise(policy)
    wanted, place = ours(policy, x, 2, 3.5), save(policy, tmp_path)
    pipeline = plain(models["dev"] if lora else place)
    if lora:
        with quiet():
            pipeline.load_lora_weights(place.parent)
        again = load(models["dev"], lora=LoRA(rank=3, targets=TARGETS, file=str(place)))
    else:
        assert {one.name for one in place.iterdir()} == {one.name for one in Path(models["dev"]).iterdir()}
        again = load(str(place), lora=None)
    scale = wanted.abs().max()
    assert (theirs(pipeline, x, 2, 3.5) - wanted).abs().max() < 1e-5 * scale
    assert (ours(again, x, 2, 3.5) - wanted).abs().max() < 1e-5 * scale


# ---- refusals


def refused(model: str, **asked: Any) -> str:
    settings = {
        "reward": family_runs.darkness,
        "prompts": PROMPTS,
        "device": "cpu",
        "output_dir": "nowhere",
        "dry_run": True,
    }
    with pytest.raises(ValueError) as error:
        tm.train(model=model, **{**settings, **asked})
    assert not Path("nowhere").exists()
    return str(error.value)


def test_guidance_that_a_model_has_no_use_for_is_refused_before_any_work(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "schnell"  # without any weights: nothing may be read of them
    shutil.copytree(models["schnell"], bare, ignore=shutil.ignore_patterns("*.safetensors"))
    said = refused(str(bare), algorithm="ddpo")
    assert said.startswith(f"algorithm.guidance is 5, but --model {bare} takes no guidance") and said.endswith(
        "Write algorithm.guidance 1."
    )
    quietly = tm.DDPO(guidance=1.0)
    assert refused(str(bare), algorithm=quietly, evaluation={"guidance": 2.0}).startswith(
        "evaluation.guidance is 2, but"
    )
    for model, algorithm in ((bare, quietly), (models["dev"], tm.DDPO(guidance=3.5)), (models["dev"], quietly)):
        said = refused(str(model), algorithm=algorithm, negative_prompt="fog")
        assert said.startswith(f"negative_prompt has no effect on --model {model}: guidance is")
    for command in ("sample", "evaluate"):
        words = ["--prompts", "text:a cat", "--output_dir", str(tmp_path / "s"), "--guidance", "2"]
        words = words if command == "sample" else ["--rewards", "brightness", "--evaluation.prompts", "animals"]
        words += ["--evaluation.guidance", "2"] if command == "evaluate" else []
        ran = runs.call(command, *(["--model"] if command == "sample" else []), str(bare), *words)
        assert ran.code and "guidance is 2, but --model" in ran.err, ran.err


def test_guidance_is_refused_by_the_policy_too(models: dict[str, str]) -> None:
    policy: Any = load(models["schnell"], lora=None)
    schedule, conditioning, x = policy.schedule(2), policy.encode(PROMPTS), noise(policy)
    with pytest.raises(ValueError, match="guidance is 3, but --model .* takes no guidance"):
        policy.predict(x, 0, schedule, conditioning, 3.0)
    with pytest.raises(ValueError, match="takes no guidance, found one for each row"):
        policy.predict(x, 0, schedule, conditioning, torch.ones(2))
    with pytest.raises(ValueError, match="negative has no effect on --model"):
        policy.encode(PROMPTS, "fog")


def test_what_guidance_is_to_a_model_is_known_before_it_is_loaded(models: dict[str, str], tmp_path: Path) -> None:
    assert guiding_of(models["dev"]) == TOLD and guiding_of(models["schnell"]) == NONE
    assert guiding_of("shapes") == guiding_of("shapes-flow") == TWO_ROWS
    assert of_model(models["dev"]).tree["algorithm"] == {"guidance": 3.5}
    assert of_model(models["schnell"]).tree["algorithm"] == {"guidance": 1.0}
    bare = tmp_path / "m"
    shutil.copytree(models["dev"], bare)
    (bare / "transformer" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"transformer/config.json is not there or is no JSON"):
        guiding_of(str(bare))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"resolution": 18}, r"--resolution 18 .* multiples of 4 pixels. Nearest: 16 or 20. \(--res"),
        ({"height": 16, "width": 2}, r"--width 2 .* Nearest: 4 or 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(models: dict[str, str], sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(models["dev"], lora=None, **sizes)


def test_without_a_size_of_its_own_a_side_is_128_latents(models: dict[str, str]) -> None:
    assert load_as_is(models["schnell"], lora=None).latent_shape == (4, 128, 128)  # 1024 pixels of the real VAE


def test_networks_that_want_a_picture_beside_the_noise_are_refused(tmp_path: Path) -> None:
    folder = tiny_flux.save(tmp_path, transformer={"in_channels": 32, "out_channels": 16})
    with pytest.raises(ValueError, match="takes 32 numbers of a patch, of which the picture has 16"):
        load(str(folder), lora=None)


# ---- the real configurations

DEV = MODELS["flux-dev"].parts
NETWORK, VAE = DEV["transformer"], DEV["vae"]


def names(network: nn.Module) -> dict[str, int]:
    """Key, the numbers of blocks aside -> dimensions."""
    return {re.sub(r"\.\d+\.", ".N.", key): value.ndim for key, value in network.state_dict().items()}


def on_meta(config: dict[str, Any]) -> nn.Module:
    with torch.device("meta"), quiet():
        made: nn.Module = getattr(diffusers, config["_class_name"]).from_config(config)
    return made


def test_the_tiny_models_have_the_real_ones_keys(models: dict[str, str]) -> None:
    few = {"num_layers": 1, "num_single_layers": 1}  # blocks are all alike
    for kind in KINDS:
        pipeline = plain(models[kind])
        assert names(pipeline.transformer) == names(on_meta(NETWORK | few | {"guidance_embeds": kind == "dev"}))
        inner = {key for key in names(on_meta(VAE)) if ".down_blocks." not in key and ".up_blocks." not in key}
        assert inner <= names(pipeline.vae).keys()
        listed = json.loads((Path(models[kind]) / "model_index.json").read_text())
        parts = {name: entry[1] for name, entry in listed.items() if isinstance(entry, list) and entry[1]}
        assert parts == {
            "scheduler": "FlowMatchEulerDiscreteScheduler",
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "T5EncoderModel",
            "tokenizer": "CLIPTokenizer",
            "tokenizer_2": "T5Tokenizer",
            "transformer": "FluxTransformer2DModel",
            "vae": "AutoencoderKL",
        }


def test_folders_name_the_tokenizer_as_it_was_called(models: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(models["schnell"], tmp_path / "m")
    index = tmp_path / "m" / "model_index.json"
    index.write_text(index.read_text().replace('"T5Tokenizer"', '"T5TokenizerFast"'))
    found, wanted = (load(str(one), lora=None).encode(PROMPTS).table for one in (tmp_path / "m", models["schnell"]))
    assert torch.equal(found["text"], wanted["text"])


# ---- memory


def test_a_small_model_really_keeps_what_was_estimated(models: dict[str, str]) -> None:
    policy: Any = load(models["dev"], lora=LoRA(rank=2), resolution=32)
    rows = policy.encode(["a cat"] * 6)
    texts = [rows.positive_rows(name) for name in policy.reads]
    network = policy.pipeline().transformer
    real = really_saved(network, lambda: policy._call(noise(policy, 6), torch.zeros(6), *texts, torch.ones(6)))
    setup = Setup(models["dev"], LoRA(rank=2), micro_batch=6, height=32, width=32)
    found = estimate(setup, cuda=False)
    assert found.of("saved activations") == pytest.approx(real, rel=0.02)
    assert found.of("network") == sum(p.nbytes for p in network.parameters() if not p.requires_grad)
    encoders = policy.pipeline().text_encoder, policy.pipeline().text_encoder_2
    assert found.of("text encoder") == sum(p.nbytes for one in encoders for p in one.parameters())


def numbers(double: int, single: int) -> int:
    return sum(p.numel() for p in on_meta(NETWORK | {"num_layers": double, "num_single_layers": single}).parameters())


def test_the_estimate_of_the_real_configuration() -> None:
    """All blocks of a stream are alike: so the whole is counted, and a shallow one is fitted, in a second."""
    one = numbers(1, 1)
    whole = one + 18 * (numbers(2, 1) - one) + 37 * (numbers(1, 2) - one)
    assert whole == pytest.approx(11.9e9, rel=0.005)
    shallow = NETWORK | {"num_layers": 1, "num_single_layers": 1}
    model = {name: DEV[name] for name in ("vae", "text_encoder_2")} | {"transformer": shallow}
    setup = Setup(model, LoRA(), mixed_precision="bf16", height=512, width=512)
    found = estimate(setup)
    assert found.of("network") == 2 * one and found.of("text encoder") / 2 == pytest.approx(4.76e9, rel=0.005)
    assert found.of("decoder") == 4 * sum(p.numel() for p in on_meta(VAE).parameters())  # in fp32, as its config says
    assert estimate(replace(setup, guided=False)) == found  # guidance takes no second row
    chosen = fit(found.needed, setup, most=2)
    assert chosen.memory.needed <= found.needed and chosen.setup.micro_batch >= 1

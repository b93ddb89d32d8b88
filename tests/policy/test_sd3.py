"""Stable Diffusion 3 on tiny random models in diffusers' own layout: the chain is its pipeline's, the files are too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from full_size import JOINT, LARGE_35, MEDIUM_35
from safetensors.torch import load_file, save_file
from torch import Tensor

import family_runs
import runs
import tastemaker as tm
import tiny_flow
from family_runs import PROMPTS, noise, ours, stirred, theirs
from tastemaker import metering
from tastemaker.budget import fit
from tastemaker.exports.diffusers import LORA, save
from tastemaker.memory import Setup, estimate
from tastemaker.policy import pipelines, single_file
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.families import PADDING
from tastemaker.policy.load import find, load, quiet
from tastemaker.process.samplers import DDIM
from tastemaker.process.schedule import from_sigmas
from tastemaker.subjects import adapter_of
from test_memory import really_saved
from thinning import slow_but


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model without T5."""
    return str(tiny_flow.save(tmp_path_factory.mktemp("sd3") / "short"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model with all three text encoders."""
    return str(tiny_flow.save(tmp_path_factory.mktemp("sd3") / "whole", t5=True))


def plain(folder: str | Path) -> Any:
    """As anybody would load it; the parts that the model does without have to be named."""
    without = {} if (Path(folder) / "text_encoder_3").exists() else {"text_encoder_3": None, "tokenizer_3": None}
    with quiet():
        pipeline = StableDiffusion3Pipeline.from_pretrained(folder, use_safetensors=True, **without)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# ---- the chain


@pytest.mark.parametrize("model", ["short", "whole"])
@pytest.mark.parametrize(("guidance", "negative"), [(1.0, ""), (4.0, "fog")])
def test_the_chain_is_the_pipelines(model: str, guidance: float, negative: str, request: Any) -> None:
    folder = request.getfixturevalue(model)
    policy = load(folder, lora=LoRA(), height=20, width=12)
    x = noise(policy)
    wanted = theirs(plain(folder), x, 5, guidance, negative)
    assert (ours(policy, x, 5, guidance, negative) - wanted).abs().max() < 1e-5
    assert (wanted - x).abs().max() > 0.1


# 3.5 as published, and what a tiny one of the same structure has of it.
TINY_35 = {
    "medium": {"num_layers": 3, "dual_attention_layers": (0, 1), "pos_embed_max_size": 12},
    "large": {"num_layers": 3, "dual_attention_layers": ()},
}


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of tiny models of 3.5, with T5."""
    home = tmp_path_factory.mktemp("sd35")
    return {size: str(tiny_flow.save(home / size, t5=True, transformer=found)) for size, found in TINY_35.items()}


@pytest.mark.parametrize(("size", "real"), [("medium", MEDIUM_35), ("large", LARGE_35)])
def test_models_of_3_5(size: str, real: dict[str, Any], newer: dict[str, str], tmp_path: Path) -> None:
    """Their keys are those of the real one, and base and tuned model draw as the pipeline does."""
    policy = stirred(load(newer[size], lora=LoRA(), height=20, width=12))
    pipeline, x = plain(newer[size]), noise(policy)
    few = {"num_layers": 3, "dual_attention_layers": real.get("dual_attention_layers", [])[:2]}
    with torch.device("meta"), quiet():
        wanted = SD3Transformer2DModel.from_config(JOINT | real | few).state_dict()
    assert {k: v.ndim for k, v in pipeline.transformer.state_dict().items()} == {k: v.ndim for k, v in wanted.items()}
    second = "transformer_blocks.0.attn2.to_q.lora_A.weight" in policy.named_parameters()
    assert second == (size == "medium")
    with policy.using("base"):
        assert (ours(policy, x, 3, 3.0) - theirs(pipeline, x, 3, 3.0)).abs().max() < 1e-5
    with quiet():
        pipeline.load_lora_weights(save(policy, tmp_path / "out").parent)
    assert (ours(policy, x, 3, 3.0) - theirs(pipeline, x, 3, 3.0)).abs().max() < 1e-5


@pytest.mark.parametrize("name", slow_but(family_runs.ALGORITHMS, {"flow_grpo", "diffusion_nft"}))
def test_every_kind_of_algorithm_trains_3_5(name: str, newer: dict[str, str], tmp_path: Path) -> None:
    asked: dict[str, Any] = {"guidance": 2.0, "lora": LoRA(), "noise": tm.FlowSDE()}
    run = family_runs.trained(newer["medium"], name, tmp_path / "r", **asked, resolution=16)
    assert run.weights is not None
    policy = load(newer["medium"], lora=LoRA(file=str(run.weights)))
    pipeline, x = plain(newer["medium"]), noise(policy)
    bare = theirs(pipeline, x, 2, 2.0)
    with quiet():
        pipeline.load_lora_weights(run.weights.parent)
    found = theirs(pipeline, x, 2, 2.0)
    assert (found - ours(policy, x, 2, 2.0)).abs().max() < 1e-5 < (found - bare).abs().max()


def test_a_second_attention_reads_the_picture_alone(tmp_path: Path) -> None:
    """As in 3.5 medium, here without T5."""
    policy = load(str(tiny_flow.save(tmp_path, transformer={"dual_attention_layers": (0,)})), lora=LoRA())
    pipeline, x = plain(tmp_path), noise(policy)
    assert (ours(policy, x, 3, 3.0) - theirs(pipeline, x, 3, 3.0)).abs().max() < 1e-5


def test_without_t5_one_token_stands_for_its_zeros(short: str, whole: str) -> None:
    found = load(short, lora=None).encode(PROMPTS).table
    assert found["text"].shape == (2, tiny_flow.TOKENS + 1, tiny_flow.JOINT) and not found["text"][:, -1].any()
    assert found["pooled"].shape == (2, sum(tiny_flow.WIDTHS)) and found["pooled"].any()
    found = load(whole, lora=None).encode(PROMPTS).table
    assert found["text"].shape == (2, tiny_flow.TOKENS + PADDING, tiny_flow.JOINT)


@pytest.mark.parametrize("steps", [1, 4, 28])
@pytest.mark.parametrize(
    "config",
    [
        {"shift": 1.0},
        {"shift": 3.0},
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_image_seq_len": 4, "max_image_seq_len": 16},
        {"shift": 3.0, "use_karras_sigmas": True},
    ],
    ids=["1", "3", "dynamic", "linear", "karras"],
)
def test_the_ode_is_the_schedulers_step(config: dict[str, Any], steps: int, flows: Any) -> None:
    policy = flows(config)
    schedule = policy.schedule(steps)
    assert schedule.straight and len(schedule) == steps and policy.schedule(steps) is schedule
    own = FlowMatchEulerDiscreteScheduler(**config)
    mu = {}
    if own.config.use_dynamic_shifting:  # as the pipeline says it, for the 16 patches of this model
        low, high = own.config.base_image_seq_len, own.config.max_image_seq_len
        mu["mu"] = own.config.base_shift + (16 - low) * (own.config.max_shift - own.config.base_shift) / (high - low)
    own.set_timesteps(steps, **mu)
    assert torch.equal(schedule.t, own.timesteps) and float(schedule.sigma[-1]) == 0
    random = torch.Generator().manual_seed(0)
    for i, t in enumerate(own.timesteps):
        x, velocity = torch.randn(2, 2, 4, 3, 3, generator=random)
        p = DDIM(0.0).transition(policy._prediction(velocity, x, *schedule.at(i, x)), x, i, schedule)
        torch.testing.assert_close(p.mean, own.step(velocity, t, x).prev_sample, rtol=1e-5, atol=1e-5)
        assert not p.std.any()


@pytest.fixture(scope="module")
def flows(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Policies by their scheduler's settings, each loaded once."""
    made: dict[str, Any] = {}

    def policy(config: dict[str, Any]) -> Any:
        key = json.dumps(config)
        if key not in made:
            made[key] = load(str(tiny_flow.save(tmp_path_factory.mktemp("flow"), scheduler=config)), lora=None)
        return made[key]

    return policy


def test_a_chain_with_noise_keeps_the_marginals_of_the_flow(flows: Any) -> None:
    """With the true x0 and eps a step of any eta leads to (1 - sigma) x0 + sigma eps', as far as mean and variance."""
    schedule = flows({"shift": 3.0}).schedule(6)
    for eta in (0.0, 0.5, 1.0):
        stds = DDIM(eta).stds(schedule)
        assert stds.isfinite().all() and float(stds[-1]) == 0 and bool((stds[:-1] > 0).all()) == (eta > 0)
        assert bool((stds <= schedule.sigma[1:]).all())


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_chain_longer_than_the_training_grid_is_refused(steps: int, flows: Any) -> None:
    with pytest.raises(ValueError, match=f"steps is {steps}, .* 1 to 1000"):
        flows({"shift": 3.0}).schedule(steps)


def test_sigmas_that_do_not_fall_are_refused(flows: Any) -> None:
    assert len(flows({"shift_terminal": 0.1}).schedule(4)) == 4
    with pytest.raises(ValueError, match="1 steps of this scheduler are nan"):
        flows({"shift_terminal": 0.1}).schedule(1)
    for wrong in ([1.0, 0.5, 0.5, 0.0], [1.2, 0.5, 0.0], [1.0, 0.5, 0.1]):
        with pytest.raises(ValueError, match="the sigmas of a flow fall from at most 1"):
            from_sigmas(torch.zeros(len(wrong) - 1), torch.tensor(wrong))


def test_rows_alone_and_steps_as_a_tensor_are_the_same(short: str) -> None:
    policy = load(short, lora=LoRA())
    schedule, conditioning, x = policy.schedule(4), policy.encode(PROMPTS, "fog"), noise(policy)
    with torch.no_grad():
        one = policy.predict(x, 1, schedule, conditioning, 3.0)
        many = policy.predict(x, torch.tensor([1, 1]), schedule, conditioning, torch.tensor([3.0, 3.0]))
        alone = policy.predict(x[1:], 1, schedule, conditioning.take([1]), 3.0)
        before = policy.rows.forward
        policy.predict(x, 1, schedule, conditioning, 1.0)
    assert torch.equal(one.x0, many.x0) and torch.equal(one.eps, many.eps)
    torch.testing.assert_close(one.x0[1:], alone.x0, rtol=1e-5, atol=1e-5)
    assert policy.rows.forward - before == 2


# ---- texts


def test_a_text_is_encoded_once_and_by_itself(short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy: Any = load(short, lora=None)
    asked: list[str] = []
    encode = policy._encode_text
    monkeypatch.setattr(policy, "_encode_text", lambda text: asked.append(text) or encode(text))
    first = policy.encode(["a cat", "a dog", "a cat"])
    second = policy.encode(["a dog", "an owl"], "a cat")
    assert asked == ["", "a cat", "a dog", "an owl"]
    assert torch.equal(first.positive_rows("text")[1], second.positive_rows("text")[0])
    assert torch.equal(first.positive_rows("pooled")[0], second.negative_rows("pooled")[1])


def test_a_prompt_that_is_too_long_is_told(short: str, whole: str) -> None:
    with pytest.warns(UserWarning, match=f"longer than the {tiny_flow.TOKENS} tokens"):
        load(short, lora=None).encode(["a prompt much too long for this"])
    policy = load(whole, lora=None)
    policy.encode(["a prompt much too long for clip"])  # T5 reads all of it, and warnings are errors
    with pytest.warns(UserWarning, match=f"longer than the {PADDING} tokens"):
        policy.encode(["long " * 60])


def altered(folder: str, to: Path, **entries: Any) -> str:
    """A copy with other lines in its model_index.json."""
    shutil.copytree(folder, to)
    index = to / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | entries))
    return str(to)


def test_t5_may_be_left_out_of_a_whole_model(whole: str, tmp_path: Path) -> None:
    none = [None, None]
    folder = altered(whole, tmp_path / "m", text_encoder_3=none, tokenizer_3=none)
    assert load(folder, lora=None).encode(PROMPTS).table["text"].shape[1] == tiny_flow.TOKENS + 1


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2", "tokenizer_2", "vae"])
def test_other_parts_may_not(name: str, short: str, tmp_path: Path) -> None:
    folder = altered(short, tmp_path / "m", **{name: [None, None]})
    with pytest.raises(ValueError, match=rf"^--model .* has no {name}: its model_index.json says so. Give a model"):
        load(folder, lora=None)


def test_t5_without_its_tokenizer_is_refused(whole: str, tmp_path: Path) -> None:
    folder = altered(whole, tmp_path / "m", tokenizer_3=[None, None])
    with pytest.raises(ValueError, match=r"has a text_encoder_3 \(T5\) without its tokenizer_3"):
        load(folder, lora=None)


def test_weights_that_are_not_there(whole: str, tmp_path: Path) -> None:
    folder = altered(whole, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "text_encoder_3")
    said = (
        "could not be loaded: its model_index.json lists text_encoder_3, and there is no folder .*text_encoder_3: put"
    )
    with pytest.raises(ValueError, match=said):
        load(folder, lora=None)
    (tmp_path / "m" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "m" / "text_encoder_3").mkdir()
    names = "transformer, vae, text_encoder, text_encoder_2 and text_encoder_3"
    with pytest.raises(ValueError, match=f"could not be loaded: .* Needed: the weights of {names} as"):
        load(folder, lora=None)


def test_weights_in_several_files(whole: str, tmp_path: Path) -> None:
    """As T5 is published."""
    folder = altered(whole, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "text_encoder_3")
    with quiet():
        plain(whole).text_encoder_3.save_pretrained(tmp_path / "m" / "text_encoder_3", max_shard_size="2kB")
    assert len(list((tmp_path / "m" / "text_encoder_3").glob("*-of-*.safetensors"))) > 1
    found, wanted = (load(one, lora=None).encode(PROMPTS).table["text"] for one in (folder, whole))
    assert torch.equal(found, wanted)


# ---- sizes and schedulers


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"resolution": 18}, r"--resolution 18 .* multiples of 4 pixels, 24 at most. Nearest: 16 or 20. \(--res"),
        ({"height": 22}, r"--height 22 .* Nearest: 20 or 24"),
        ({"resolution": 16, "width": 2}, r"--width 2 .* Nearest: 4 or 8"),
        ({"width": 28}, r"--width 28 .* 24 at most. Nearest: 24\."),
        ({"resolution": 1024}, r"--resolution 1024 .* Nearest: 24\."),
    ],
)
def test_sizes_that_do_not_fit_are_refused(short: str, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(short, lora=None, **sizes)


def test_the_models_own_size(short: str) -> None:
    policy = load(short, lora=None)
    assert policy.latent_shape == (4, tiny_flow.SIDE, tiny_flow.SIDE)


def test_schedulers_that_are_no_flow_of_this_family(short: str, tmp_path: Path) -> None:
    folder = altered(short, tmp_path / "m", scheduler=["diffusers", "DDIMScheduler"])
    with pytest.raises(ValueError, match="has a DDIMScheduler; known for a flow is the FlowMatchEulerDiscrete"):
        load(folder, lora=None)
    folder = str(tiny_flow.save(tmp_path / "n", scheduler={"invert_sigmas": True}))
    with pytest.raises(ValueError, match="its scheduler has invert_sigmas"):
        load(folder, lora=None)


# ---- pictures


def test_pictures_and_latents_are_those_of_the_vae(short: str) -> None:
    policy, vae = load(short, lora=None), plain(short).vae.eval()
    x0 = noise(policy, 3)
    with torch.no_grad():
        wanted = (vae.decode(x0 / 1.5 + 0.1).sample / 2 + 0.5).clamp(0, 1)
        images = policy.decode(x0)
        back = (vae.encode(images * 2 - 1).latent_dist.mean - 0.1) * 1.5
    assert torch.allclose(images, wanted, atol=1e-6) and images.shape == (3, 3, 16, 16)
    assert torch.allclose(policy.encode_images(images), back, atol=1e-6)
    again = x0.clone().requires_grad_()
    policy.decode(again).square().sum().backward()
    assert again.grad is not None and again.grad.any()


# ---- weights


@pytest.mark.parametrize("lora", [LoRA(), LoRA(dora=True), None], ids=["LoRA", "DoRA", "full"])
def test_the_base_is_the_base_bit_for_bit(short: str, lora: LoRA | None) -> None:
    wanted = ours(load(short, lora=None), x := noise(load(short, lora=None)), 3, 3.0)
    policy = stirred(load(short, lora=lora))
    tuned = ours(policy, x, 3, 3.0)
    with policy.using("base"):
        assert torch.equal(ours(policy, x, 3, 3.0), wanted)
    with pytest.raises(ZeroDivisionError), policy.using("base"):
        1 / 0  # noqa: B018
    assert torch.equal(ours(policy, x, 3, 3.0), tuned) and not torch.allclose(tuned, wanted, atol=1e-3)


TARGETS = ("attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out")
TARGETS += ("attn.to_k", "attn.to_out.0", "attn.to_q", "attn.to_v")  # flow_grpo's; the last block lacks some


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("model", ["short", "whole"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_trainable_tensor_receives_a_gradient(
    model: str, precision: str, checkpointing: bool, request: Any
) -> None:
    folder = request.getfixturevalue(model)
    policy: Any = load(folder, lora=LoRA(), mixed_precision=precision, gradient_checkpointing=checkpointing)
    assert family_runs.without_gradient(policy, 3.0) == []
    kept = {p.dtype for n, p in policy.pipeline().transformer.named_parameters() if ".lora_" not in n}
    assert kept == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


def test_the_prediction_is_fp32_under_mixed_precision(short: str, whole: str) -> None:
    for folder in (short, whole):
        half, exact = load(folder, lora=LoRA(), mixed_precision="bf16"), load(folder, lora=LoRA())
        x = noise(half)
        with torch.no_grad():
            found, wanted = (p.predict(x, 1, p.schedule(4), p.encode(PROMPTS), 3.0) for p in (half, exact))
        assert found.x0.dtype == torch.float32 and 0 < (found.x0 - wanted.x0).abs().max() < 0.1


# ---- files


@pytest.mark.parametrize("dora", [False, True])
def test_the_lora_file_gives_the_same_pictures_in_plain_diffusers(short: str, tmp_path: Path, dora: bool) -> None:
    policy = stirred(load(short, lora=LoRA(rank=3, alpha=5.0, dora=dora, targets=TARGETS)))
    x = noise(policy)
    wanted = ours(policy, x, 3, 3.0)
    file = save(policy, tmp_path)
    assert set(load_file(file)) >= {"transformer.transformer_blocks.0.attn.to_add_out.lora_B.weight"}
    assert not any("transformer_blocks.1.attn.to_add_out" in name for name in load_file(file))
    pipeline, bare = plain(short), plain(short)
    with quiet():
        pipeline.load_lora_weights(file.parent)
    assert (theirs(pipeline, x, 3, 3.0) - wanted).abs().max() < 1e-5
    assert (theirs(bare, x, 3, 3.0) - wanted).abs().max() > 1e-3
    assert (theirs(policy.pipeline(), x, 3, 3.0) - wanted).abs().max() < 1e-5  # the live one too


def test_a_lora_file_is_gone_on_from(short: str, tmp_path: Path) -> None:
    policy = stirred(load(short, lora=LoRA(rank=3, alpha=5.0)))
    x, file = noise(policy), save(policy, tmp_path)
    wanted = ours(policy, x, 3, 3.0)
    again = load(short, lora=LoRA(rank=4, file=str(file)))
    assert (ours(again, x, 3, 3.0) - wanted).abs().max() < 1e-5
    component, adapter = adapter_of(str(file))
    assert component == "transformer" and adapter.keys() == policy.named_parameters().keys()
    bare = tmp_path / "bare.safetensors"
    save_file({name.removeprefix("transformer."): t for name, t in load_file(file).items()}, bare)
    component, other = adapter_of(str(bare))
    assert component == "transformer" and all(torch.equal(other[name], adapter[name]) for name in adapter)
    alien = runs.plain() / LORA
    assert adapter_of(str(alien))[0] == "unet"
    with pytest.raises(ValueError, match="it tunes no layer of the transformer"):
        load(short, lora=LoRA(file=str(alien)))


def test_full_tuning_is_saved_whole_and_read_again(short: str, whole: str, tmp_path: Path) -> None:
    for k, model in enumerate((short, whole)):
        policy = stirred(load(model, lora=None))
        assert policy.lora_tensors() is None
        x = noise(policy)
        folder = save(policy, tmp_path / str(k))
        assert {one.name for one in folder.iterdir()} == {one.name for one in Path(model).iterdir()}
        wanted = ours(policy, x, 3, 3.0)
        assert torch.equal(ours(load(str(folder), lora=None), x, 3, 3.0), wanted)
        assert pipelines.without(find(str(folder))) == ([] if model == whole else ["text_encoder_3", "tokenizer_3"])
        assert (theirs(plain(folder), x, 3, 3.0) - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_a_whole_model_in_one_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sd3.safetensors"
    save_file({"model.diffusion_model.joint_blocks.0.x_block.attn.proj.bias": torch.zeros(1)}, file)
    with pytest.raises(
        ValueError, match="is a Stable Diffusion 3 model in one file: give a folder in diffusers layout"
    ):
        single_file.find(str(file), file)


# ---- runs


@pytest.fixture(scope="module")
def run(short: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One iteration of DDPO, on two pictures."""

    def darkness(images: Tensor, prompts: list[str]) -> Tensor:
        return 1 - images.mean((1, 2, 3))

    return tm.train(
        model=short,
        reward=darkness,
        prompts=["a cat", "a dog"],
        algorithm=tm.DDPO(images=4, updates=2, steps=3, guidance=2.0, iterations=1, learning_rate=1e-2),
        device="cpu",
        evaluation={"count": 2, "steps": 2},
        output_dir=str(tmp_path_factory.mktemp("run") / "r"),
    )


def test_a_run_learns_and_its_pipeline_draws(run: Any) -> None:
    assert run.done and run.weights == run.folder / LORA
    (row,) = run.metrics()
    assert row["updates"][0]["mismatch"] < 1e-4 and all(update["grad_norm"] > 0 for update in row["updates"])
    assert any(tensor.any() for name, tensor in load_file(run.weights).items() if ".lora_B." in name)
    pipeline: Any = tm.Run.open(run.folder).pipeline(device="cpu")
    assert isinstance(pipeline, StableDiffusion3Pipeline)
    pipeline.set_progress_bar_config(disable=True)
    with quiet():
        assert pipeline("a cat", num_inference_steps=1, height=16, width=16).images[0].size == (16, 16)


def test_a_run_is_judged_and_mixed(run: Any, tmp_path: Path) -> None:
    shown = runs.call("mix", str(run.folder), "--weights", ".5", "--output", str(tmp_path / "half.safetensors"))
    assert (shown.code, shown.err) == (0, "")
    half, full = load_file(tmp_path / "half.safetensors"), load_file(run.weights)
    assert half.keys() == full.keys()
    name = next(name for name in full if ".lora_B." in name)
    torch.testing.assert_close(half[name], full[name] / 2)
    scores = run.evaluate(evaluation={"count": 2, "steps": 2}, device="cpu")
    assert {"darkness"} <= set(scores)


# ---- memory


@pytest.mark.parametrize("lora", [LoRA(rank=2), None], ids=["LoRA", "full"])
@pytest.mark.parametrize("model", ["short", "whole"])
def test_a_small_model_really_keeps_what_was_estimated(model: str, lora: LoRA | None, request: Any) -> None:
    folder = request.getfixturevalue(model)
    policy: Any = load(folder, lora=lora)
    rows = policy.encode(["a cat"] * 6)
    texts = [rows.positive_rows(name) for name in policy.reads]
    real = really_saved(policy.pipeline().transformer, lambda: policy._call(noise(policy, 6), torch.zeros(6), *texts))
    guess = estimate(Setup(folder, lora, micro_batch=3), cuda=False)
    assert guess.of("saved activations") == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [({}, 2.085e9), (MEDIUM_35, 2.47e9), (LARGE_35, 8.147e9)],  # "2", "2.5" and "8.1 billion" in their model cards
    ids=["3 medium", "3.5 medium", "3.5 large"],
)
def test_the_weights_of_a_large_model(changes: dict[str, Any], numbers: float) -> None:
    """With the table of positions, which is a buffer: 0.23 of the 2.47 billion numbers of 3.5 medium."""
    made = metering.network(json.dumps(JOINT | changes), LoRA(), "bf16")
    frozen = [one for one in (*made.parameters(), *made.buffers()) if not one.requires_grad]
    assert sum(one.numel() for one in frozen) == pytest.approx(numbers, rel=0.002)
    vae = {"block_out_channels": [8, 8, 8, 8], "down_block_types": ["DownEncoderBlock2D"] * 4, "norm_num_groups": 4}
    vae |= {"up_block_types": ["UpDecoderBlock2D"] * 4, "latent_channels": 16}
    few = changes | {"num_layers": 2, "dual_attention_layers": changes.get("dual_attention_layers", [])[:1]}
    setup = Setup({"transformer": JOINT | few, "vae": vae}, LoRA(), mixed_precision="bf16", height=256, width=256)
    found = estimate(setup)
    assert found.of("network") == 2 * (sum(one.numel() for one in frozen) - rest(JOINT | changes, JOINT | few))
    assert 1 <= fit(found.needed, setup, most=2).setup.micro_batch <= 2


def rest(whole: dict[str, Any], few: dict[str, Any]) -> int:
    """Numbers that the one has and the other has not."""
    with torch.device("meta"), quiet():
        large, small = (SD3Transformer2DModel.from_config(config) for config in (whole, few))
    return sum(p.numel() for p in large.parameters()) - sum(p.numel() for p in small.parameters())


def test_the_estimate_counts_what_the_model_has(short: str, whole: str, tmp_path: Path) -> None:
    for folder in (short, whole):
        policy: Any = load(folder, lora=LoRA())
        pipeline, found = policy.pipeline(), estimate(Setup(folder, LoRA(), micro_batch=2), cuda=False)
        network = pipeline.transformer
        kept = [one for one in (*network.parameters(), *network.buffers()) if not one.requires_grad]
        frozen = sum(one.nbytes for one in kept)
        assert (found.of("network"), found.of("trained weights")) == (
            frozen,
            sum(p.nbytes for p in policy.parameters()),
        )
        encoders = [one for name, one in pipeline.components.items() if name.startswith("text_encoder") and one]
        assert found.of("text encoder") == sum(p.nbytes for one in encoders for p in one.parameters())
    left_out = tmp_path / "left-out"  # its files are there, and the index says that it is not used
    shutil.copytree(whole, left_out)
    index = json.loads((left_out / "model_index.json").read_text())
    none = {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (left_out / "model_index.json").write_text(json.dumps(index | none))
    assert estimate(Setup(str(left_out), LoRA()), cuda=False) == estimate(Setup(short, LoRA()), cuda=False)
    saved = [estimate(Setup(folder, LoRA()), cuda=False).of("saved activations") for folder in (short, whole)]
    assert saved[1] > 4 * saved[0]  # 268 of text instead of 13, beside 16 of the picture
    room = estimate(Setup(short, LoRA(), micro_batch=5), cuda=False).needed
    assert fit(room, Setup(short, LoRA()), most=9, cuda=False).setup.micro_batch >= 5

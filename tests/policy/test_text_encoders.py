"""Text encoders that are trained: read anew by the weights in use, to the same bits with a gradient and without."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import tiny
import tiny_flow
import tiny_flux
import tiny_xl
from family_runs import PROMPTS, noise, ours, same, stirred, without_gradient
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load as load_as_is
from tastemaker.policy.load import quiet

LORA = LoRA(rank=2, alpha=3.0, text_encoders=True)
MADE: dict[str, Callable[[Path], Path]] = {
    "sd": lambda folder: tiny.save(folder, text={"num_hidden_layers": 2}),
    "sdxl": tiny_xl.save,
    "sd3": tiny_flow.save,
    "sd3-t5": lambda folder: tiny_flow.save(folder, t5=True),
    "flux": tiny_flux.save,
}
SETS = ("base", "old", "ema")
FAMILIES = list(MADE)
PARTS = {name: ("text_encoder",) if name in ("sd", "flux") else ("text_encoder", "text_encoder_2") for name in MADE}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The folder of a tiny model of each family."""
    return {name: str(make(tmp_path_factory.mktemp("texts") / name)) for name, make in MADE.items()}


def load(model: str, **settings: Any) -> Any:
    """With small pictures: FLUX's own are of 1024 pixels."""
    return load_as_is(model, resolution=16, **settings)


def plain(model: str) -> Any:
    """The diffusers pipeline; one with a UNet draws by DDIM, as chains here do."""
    index = diffusers.DiffusionPipeline.load_config(model)
    left = {name: None for name in ("text_encoder_3", "tokenizer_3") if index.get(name) == [None, None]}
    with quiet():
        pipeline = getattr(diffusers, index["_class_name"]).from_pretrained(model, use_safetensors=True, **left)
        if "unet" in index:
            pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(policy: Any, pipeline: Any, x: torch.Tensor) -> torch.Tensor:
    """Where the pipeline's own chain ends."""
    pipeline.check_inputs = lambda *_, **__: None  # it wants multiples of 8 pixels, whatever the VAE's factor
    sides = {"height": 2 * x.shape[2], "width": 2 * x.shape[3]}
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"} | policy._asked(x)
    with quiet(), torch.no_grad():
        found = policy._drawn(pipeline(PROMPTS, **sides, **settings).images, x)
    del pipeline.check_inputs
    return found


def of_encoders(policy: Any) -> dict[str, torch.Tensor]:
    return {name: p for name, p in policy.named_parameters().items() if name.startswith("text_encoder")}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_that_is_trained_has_a_gradient(models: dict[str, str], family: str) -> None:
    policy = load(models[family], lora=LORA)
    names = of_encoders(policy)
    assert {name.partition(".")[0] for name in names} == set(PARTS[family])
    assert all(".text_model.encoder.layers." in name for name in names)
    alone, both = load(models[family], lora=LoRA(rank=2)).state(), policy.state()
    assert all(torch.equal(both[name], tensor) for name, tensor in alone.items())  # names and starts are as without
    assert {name.removeprefix("current/") for name in both.keys() - alone.keys()} == names.keys()
    assert not without_gradient(policy, 2.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_set_reads_texts_by_its_own_encoders(models: dict[str, str], family: str) -> None:
    policy, untuned = load(models[family], lora=LORA, sets=SETS), load(models[family], lora=LoRA(rank=2))
    x = noise(policy)
    fresh = ours(untuned, x, 2, 3.0)
    assert torch.equal(ours(policy, x, 2, 3.0), fresh)  # at the start
    stirred(policy)
    first = ours(policy, x, 2, 3.0)
    policy.blend("old", keep=0.0)
    stirred(policy)
    second = ours(policy, x, 2, 3.0)
    assert not same(first, fresh) and not same(second, first)
    with policy.using("base"):
        assert torch.equal(ours(policy, x, 2, 3.0), fresh)
    with policy.using("old"):
        assert torch.equal(ours(policy, x, 2, 3.0), first)
    assert torch.equal(ours(policy, x, 2, 3.0), second)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_text_is_read_to_the_same_bits_with_a_gradient_and_in_any_company(
    models: dict[str, str], family: str, precision: str
) -> None:
    policy: Any = stirred(load(models[family], lora=LORA, mixed_precision=precision))
    rows, other = policy.encode(["a red cat", "sun", "two dogs", "sun"]), "" if family == "flux" else "two dogs"
    negative = policy.encode(["sun", ""], other)
    with torch.no_grad():
        kept = policy._table(rows, True)
    live, alone = policy._table(rows.take([1, 3, 0]), True), policy._table(negative, True)
    for name in policy.reads:
        assert torch.equal(live.positive_rows(name), kept.positive_rows(name)[[1, 3, 0]])
        assert torch.equal(live.negative[name], kept.negative[name])
        assert torch.equal(alone.positive_rows(name)[0], kept.positive_rows(name)[1])
        assert torch.equal(alone.negative[name][0], (kept if other else alone).positive_rows(name)[2 if other else 1])
    assert live.positive_rows("pooled" if family == "flux" else "text").requires_grad


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_what_was_read_is_kept_until_a_number_of_its_set_changes(models: dict[str, str], family: str) -> None:
    policy: Any = stirred(load(models[family], lora=LORA, sets=SETS))
    read, encode = [], policy._encode_live
    policy._encode_live = lambda text: read.append((policy._weights.active, text)) or encode(text)
    words = policy.encode(["a cat", "a dog", "a cat"], "fog")

    @torch.no_grad()
    def asked(rows: list[int], guidance: float = 1.0) -> list[tuple[str, str]]:
        read.clear()
        policy.predict(noise(policy, len(rows)), 0, policy.schedule(2), words.take(rows), guidance)
        return list(read)

    assert asked([0, 2]) == [("current", "a cat")] and asked([2]) == []
    assert asked([1], 2.0) == [("current", "a dog"), ("current", "fog")] and asked([0, 1], 2.0) == []
    with policy.using("base"):
        assert asked([0]) == [("base", "a cat")]
    with policy.using("old"):
        assert asked([0]) == [("old", "a cat")]
    next(iter(of_encoders(policy).values())).data[0, 0] += 1e-3  # as optimizers of other packages write
    assert asked([0]) == [("current", "a cat")] and asked([0]) == []
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-3)
    policy.predict(noise(policy), 0, policy.schedule(2), words.take([0, 1]), 1.0).x0.square().mean().backward()
    optimizer.step()
    assert asked([0]) == [("current", "a cat")]
    policy.blend("ema", 0.5)
    for name, wanted in {"base": [], "old": [], "ema": [("ema", "a cat")]}.items():
        with policy.using(name):
            assert asked([0]) == wanted
    policy.blend("ema", 0.5)
    with policy.using("ema"):
        assert asked([0]) == [("ema", "a cat")]


def test_the_gradient_is_that_of_the_pipeline_and_of_plain_autograd(models: dict[str, str]) -> None:
    """In fp64. There the change of every layer is written into its weights, whose gradient is then taken."""
    policy: Any = stirred(load(models["sd"], lora=LORA))
    x, schedule = noise(policy), policy.schedule(3)
    plainly = plain(models["sd"])
    unet, encoder = plainly.unet.double(), plainly.text_encoder.double()
    weights = {}
    for name, a in policy.named_parameters().items():
        if ".lora_A." not in name:
            continue
        b, layer = policy.named_parameters()[name.replace("lora_A", "lora_B")], name.split(".lora_A.")[0]
        inside = layer.startswith("text_encoder.")
        own = layer.removeprefix("text_encoder." if hasattr(encoder, "text_model") else "text_encoder.text_model.")
        module = (encoder if inside else unet).get_submodule(own)
        change = LORA.scale * b.detach().double() @ a.detach().double()
        module.weight.data += change
        weights[layer] = module.weight if inside else None
    texts = plainly.encode_prompt(PROMPTS, "cpu", 1, True, negative_prompt=["fog"] * 2)
    eps = unet(torch.cat([x, x]).double(), schedule.t[1], torch.cat([texts[1], texts[0]]), return_dict=False)[0]
    away, toward = eps.chunk(2)
    wanted_eps = away + 3.0 * (toward - away)
    wanted_eps.square().sum().backward()
    for module in (policy._denoiser, policy._pipeline.text_encoder):
        module.double()
    call = policy._call
    policy._call = lambda x, t, *texts: call(x.double(), t, *texts)
    found = policy.predict(x, 1, schedule, policy.encode(PROMPTS, "fog"), 3.0).eps
    assert (found - wanted_eps).abs().max() < 1e-4
    found.square().sum().backward()
    checked = 0
    for layer, weight in weights.items():
        if weight is None:
            continue
        a, b = (policy.named_parameters()[f"{layer}.lora_{part}.weight"] for part in "AB")
        for own, wanted in ((a, LORA.scale * b.T @ weight.grad), (b, LORA.scale * weight.grad @ a.T)):
            assert (own.grad - wanted).abs().max() <= 1e-6 * wanted.abs().max(), layer
            checked += 1
    assert checked == 16


def test_layers_and_texts_that_are_computed_twice_drop_the_same(models: dict[str, str]) -> None:
    gradients = []
    for checkpointing in (False, True):
        lora = LoRA(rank=2, text_encoders=True, dropout=0.5)
        policy = stirred(load(models["sd"], lora=lora, gradient_checkpointing=checkpointing))
        words = policy.encode(PROMPTS, "fog")
        with policy.dropping(4):
            policy.predict(noise(policy), 0, policy.schedule(2), words, 3.0).x0.square().mean().backward()
        gradients.append([parameter.grad for parameter in policy.parameters()])
        with torch.no_grad():
            kept, off = (policy._table(words, False).table["text"] for _ in range(2))
            with policy.dropping(4):
                assert torch.equal(policy._table(words, False).table["text"], off) and torch.equal(kept, off)
        with policy.dropping(4):
            assert not torch.allclose(policy._table(words, False).table["text"], off, atol=1e-3)
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7) and one.any()


@pytest.mark.parametrize("family", ["sd3-t5", "flux"])
def test_t5_reads_a_text_once_and_leaves_while_the_others_stay(models: dict[str, str], family: str) -> None:
    policy: Any = load(models[family], lora=LORA)
    pipeline, done = policy._pipeline, []
    t5 = pipeline.text_encoder_3 if family == "sd3-t5" else pipeline.text_encoder_2
    t5.register_forward_hook(lambda *_: done.append("t5"))
    for part in PARTS[family]:
        getattr(pipeline, part).to = lambda *_: pytest.fail("it stays")
    move = t5.to
    t5.to = lambda place: done.append(str(place)) or move(place)
    words = policy.encode(["a cat", "a dog", "a cat"])
    assert done == ["cpu", *["t5"] * 3, "cpu"]  # with the empty text of guidance
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            policy.predict(noise(policy, 3), 0, policy.schedule(2), words, 3.0)
    policy.encode(["a dog"])
    assert len(done) == 5


def test_a_text_that_is_cut_off_is_said_once(models: dict[str, str]) -> None:
    policy = load(models["sd"], lora=LORA)
    with pytest.warns(UserWarning, match="1 of 2 prompts are longer than the 16 tokens"):
        words = policy.encode(["a" * 40])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy.predict(noise(policy, 1), 0, policy.schedule(2), words, 1.0)
        policy.encode(["a" * 40])


def test_an_encoder_of_another_kind_is_refused(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tastemaker.policy.encoders.KINDS", ("CLIPTextModelWithProjection",))
    with pytest.raises(ValueError, match=r"^--lora.text_encoders: the text_encoder of --model .* is a CLIPTextModel"):
        load(models["sd"], lora=LORA)

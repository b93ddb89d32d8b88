"""Runs that train text encoders, and the files that they leave: here, in diffusers, in kohya's spelling, mixed."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import family_runs
import runs
import tastemaker
import tastemaker as tm
import tiny
import tiny_xl
from family_runs import noise, ours, same, stirred
from policy.test_text_encoders import LORA, MADE, drawn, load, of_encoders, plain
from tastemaker.evaluation.mixing import layers
from tastemaker.exports.diffusers import LORA as FILE
from tastemaker.exports.diffusers import save
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import quiet
from tastemaker.policy.lora_file import named_for_file
from tastemaker.process.samplers import DDIM
from tastemaker.subjects import Part, adapter_of, lora_of, of_flags, policy_of
from thinning import slow_but

LEARNS = {"sdxl": "ddpo", "sd3": "flow_grpo", "sd3-t5": "diffusion_nft", "flux": "draft"}


@pytest.mark.parametrize("family", slow_but(LEARNS, {"flux", "sd3-t5"}))
def test_a_run_learns_and_its_file_draws_what_it_learned(family: str, tmp_path: Path) -> None:
    model = str(MADE[family](tmp_path / "model"))
    steps: Any = DDIM(1.0) if family == "sdxl" else tm.FlowSDE()
    asked: dict[str, Any] = {"guidance": 2.0, "lora": LORA, "noise": steps}
    run = family_runs.trained(model, LEARNS[family], tmp_path / "run", **asked, resolution=16)
    written = set(load_file(run.weights))
    assert {name for name in written if name.startswith("text_encoder")} == names(family)
    policy = load(model, lora=lora_of(str(run.weights)))
    moved = [name for name, p in of_encoders(policy).items() if ".lora_B." in name and p.any()]
    assert len(moved) == len(of_encoders(policy)) / 2
    x, pipeline = noise(policy), plain(model)
    wanted = ours(policy, x, 2, 3.0)
    assert not same(drawn(policy, pipeline, x), wanted)
    with quiet():
        pipeline.load_lora_weights(run.folder / "lora")
    assert same(drawn(policy, pipeline, x), wanted)
    live, live.scheduler = policy.pipeline(), pipeline.scheduler
    assert same(drawn(policy, live, x), wanted)


def names(family: str, first: int = 0) -> set[str]:
    """Frozen: with `text_model`, which older releases need and newer ones pass over."""
    downs = ("lora_linear_layer.down", "lora_linear_layer.up") if family in ("sd", "sdxl") else ("lora_A", "lora_B")
    counts = {"sdxl": (1, 2), "sd": (2,), "flux": (2,)}.get(family, (2, 2))  # SDXL reads one of the first's two
    return {
        f"text_encoder{'_2' * k}.text_model.encoder.layers.{layer}.self_attn.{target}.{down}.weight"
        for k, count in enumerate(counts)
        for layer in range(first, count)
        for target in ("q_proj", "k_proj", "v_proj", "out_proj")
        for down in downs
    }


def test_ddpo_begins_with_ratios_of_1_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    words = ("--lora.text_encoders", "--no-alarms", "--iterations", "1")
    runs.train(runs.words(tmp_path / "whole", *words))
    first, second = runs.metrics(tmp_path / "whole")[0]["updates"]
    assert first["log_ratio"] == first["mismatch"] == 0.0 < second["log_ratio"]
    written = load_file(tmp_path / "whole" / FILE)
    assert {name for name in written if name.startswith("text_encoder")} == names("sd") - names("sd", first=1)
    ups = [name for name in written if name.startswith("text_encoder.") and ".up." in name]
    assert len(ups) == 4 and all(written[name].any() for name in ups)
    with runs.tripping("SIGTERM", 7, tmp_path / "calls"):
        assert "stopped in" in runs.call(*runs.words(tmp_path / "cut", *words)).out
    runs.train(runs.words(tmp_path / "cut", *words, "--resume_from_checkpoint", "latest"))
    assert runs.weights(tmp_path / "cut") == runs.weights(tmp_path / "whole")
    assert runs.metrics(tmp_path / "cut") == runs.metrics(tmp_path / "whole")


def test_the_built_in_model_learns_to_read(tmp_path: Path) -> None:
    more = ("--model", "shapes", "--reward", "shapes_alignment", "--lora.text_encoders", "--no-alarms")
    few = "--iterations 1 --algorithm.images 2 --algorithm.updates 1 --algorithm.steps 2 --evaluation.count 1"
    few = [*few.split(), "--evaluation.steps", "1"]
    runs.train(["train", "reinforce", *more, *few, "--device", "cpu", "--output_dir", str(tmp_path / "run")])
    assert any(name.startswith("text_encoder.") for name in runs.weights(tmp_path / "run"))


def with_mlp(adapter: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As kohya's scripts train them: the encoder's other linear layers too."""
    layer = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    width = next(t.shape[1] for name, t in adapter.items() if name.startswith("text_encoder.") and "lora_A" in name)
    random = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, width, generator=random), torch.randn(2 * width, 2, generator=random)
    found = {**adapter, f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}
    if any(name.startswith("text_encoder_2.") for name in adapter):  # and of SDXL's first the last one, without effect
        old, new = (
            "text_encoder.text_model.encoder.layers.0.self_attn",
            "text_encoder.text_model.encoder.layers.1.self_attn",
        )
        found |= {name.replace(old, new): 2 * tensor for name, tensor in adapter.items() if name.startswith(old)}
    return found


@pytest.mark.parametrize("family", slow_but(["sd", "sdxl"], {"sd"}))
def test_kohyas_spelling_is_read_here_and_by_diffusers(family: str, tmp_path: Path) -> None:
    make = (lambda place: tiny_xl.save(place, unet={"layers_per_block": 2})) if family == "sdxl" else MADE["sd"]
    model = str(make(tmp_path / "model"))
    policy = stirred(load(model, lora=LORA))
    adapter = with_mlp(adapter_of(str(save(policy, tmp_path)))[1])
    save_file(named_for_file(adapter, "unet"), tmp_path / "own.safetensors")
    made = tastemaker.export(tmp_path / "own.safetensors", format="kohya", output=tmp_path / "kohya.safetensors")
    starts = {name.partition("_text_model_")[0] for name in load_file(made)} - {"lora_unet"}
    assert {name for name in starts if name.startswith("lora_te")} == (
        {"lora_te"} if family == "sd" else {"lora_te1", "lora_te2"}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = load(model, lora=lora_of(str(made)))
        own = load(model, lora=LoRA(rank=2, text_encoders=True, file=str(tmp_path / "own.safetensors")))
    x, pipeline = noise(again), plain(model)
    wanted = ours(again, x, 2, 3.0)
    assert any(".mlp.fc1." in name for name in again.named_parameters()) and not same(ours(policy, x, 2, 3.0), wanted)
    assert same(ours(own, x, 2, 3.0), wanted)
    parts = [Part("a", lora_of(str(made)), 0.5)] * 2
    subject = replace(of_flags({"model": model}), mix=tuple(parts))
    assert same(ours(policy_of(subject, {"resolution": 16}), x, 2, 3.0), wanted)
    with quiet():
        pipeline.load_lora_weights(str(made))
    assert same(drawn(again, pipeline, x), wanted)


def test_factors_of_other_files_are_each_parts_own(tmp_path: Path) -> None:
    """kohya's alphas, and diffusers' metadata."""
    model = str(MADE["sd"](tmp_path / "model"))
    policy = stirred(load(model, lora=LORA))
    adapter = adapter_of(str(save(policy, tmp_path)))[1]
    kohya, halved = load_file(_kohya(tmp_path)), {}
    for name, tensor in kohya.items():
        alpha = 0.5 if name.startswith("lora_te") else 4.0
        factor = 2 / alpha if "lora_up" in name else 1.0
        halved[name] = torch.tensor(alpha) if name.endswith(".alpha") else tensor * factor
    save_file(halved, tmp_path / "other.safetensors")
    settings = '{"unet.r": 2, "unet.lora_alpha": 4, "text_encoder.r": 2, "text_encoder.lora_alpha": 1}'
    own = {n: t / (0.5 if n.startswith("text") else 2.0) if "lora_B" in n else t for n, t in adapter.items()}
    save_file(named_for_file(own, "unet"), tmp_path / "told.safetensors", metadata={"lora_adapter_metadata": settings})
    for name in ("other", "told"):
        found = adapter_of(str(tmp_path / f"{name}.safetensors"))[1]
        assert found.keys() == adapter.keys()
        assert all(torch.allclose(found[one], adapter[one], atol=1e-6) for one in adapter), name


def _kohya(folder: Path) -> Path:
    return tastemaker.export(folder / FILE, format="kohya", output=folder / "kohya.safetensors")


def test_mixes_take_the_encoders_along(tmp_path: Path) -> None:
    """With a weight of 0 they draw as the base, with 1 as the file, bit for bit."""
    tuned = stirred(load(runs.model(), lora=LORA))
    save(tuned, tmp_path)
    file = tmp_path / "mine.safetensors"
    save_file(named_for_file(with_mlp(adapter_of(str(tmp_path / FILE))[1]), "unet"), file)
    subject, x = of_flags({"model": runs.model(), "lora": str(file)}), noise(tuned)
    lora = subject.need_lora("--mix")
    found = {}
    for weight in (0.5, 1.0, 0.0):
        one = replace(subject, lora=None, mix=(Part("mine", lora, weight),))
        found[weight] = ours(policy_of(one, {}), x, 2, 3.0)
    single, base = ours(policy_of(subject, {}), x, 2, 3.0), ours(load(runs.model(), lora=LoRA()), x, 2, 3.0)
    assert torch.equal(found[1.0], single) and torch.equal(found[0.0], base)
    assert not same(found[0.5], single) and not same(found[0.5], base)
    alone = replace(lora, text_encoders=False, targets=LoRA().targets)
    halves = replace(subject, lora=None, mix=(Part("mine", alone, 0.5),) * 2)
    with pytest.warns(UserWarning, match=r"10 of its .* are left out"):
        whole = ours(policy_of(replace(subject, lora=alone), {}), x, 2, 3.0)
    assert same(ours(policy_of(halves, {}), x, 2, 3.0), whole) and not same(whole, single)
    for weight in (0.5, 1.0, 0.0):
        made = tastemaker.mix({file: weight}, output=tmp_path / f"{weight}.safetensors")
        assert torch.equal(ours(load(runs.model(), lora=lora_of(str(made))), x, 2, 3.0), found[weight])


def test_without_the_setting_a_files_encoders_are_left_out_and_it_is_said(tmp_path: Path) -> None:
    file = save(stirred(load(runs.model(), lora=LORA)), tmp_path)
    with pytest.warns(UserWarning, match=r"--lora .* 8 of its .* are left out, .* --lora.text_encoders takes in"):
        policy = load(runs.model(), lora=LoRA(rank=2, file=str(file)))
    assert not of_encoders(policy)
    told = lora_of({"name": str(file), "text_encoders": False})
    assert not told.text_encoders and told.targets == LoRA().targets and lora_of(str(file)).text_encoders


def test_a_projection_that_a_file_tunes_is_read(tmp_path: Path) -> None:
    model = str(MADE["sdxl"](tmp_path / "model"))
    adapter = adapter_of(str(save(stirred(load(model, lora=LORA)), tmp_path)))[1]
    a, b = torch.ones(2, tiny_xl.WIDTHS[1]), torch.ones(tiny_xl.WIDTHS[1], 2)
    more = {"text_encoder_2.text_projection.lora_A.weight": a, "text_encoder_2.text_projection.lora_B.weight": b}
    peft = {name if name.startswith("text") else f"unet.{name}": t for name, t in (adapter | more).items()}
    save_file(peft, tmp_path / "x.safetensors")
    policy = load(model, lora=lora_of(str(tmp_path / "x.safetensors")))
    assert more.keys() <= policy.named_parameters().keys()
    pipeline, x = plain(model), noise(policy)
    with quiet():
        pipeline.load_lora_weights(str(tmp_path / "x.safetensors"))
    assert same(drawn(policy, pipeline, x), ours(policy, x, 2, 3.0))


def test_a_dora_reads_too(tmp_path: Path) -> None:
    model = str(MADE["sd"](tmp_path / "model"))
    policy = stirred(load(model, lora=LoRA(rank=2, alpha=3.0, text_encoders=True, dora=True)))
    x, pipeline, file = noise(policy), plain(model), save(policy, tmp_path)
    assert any(".lora_magnitude_vector." in name for name in of_encoders(policy))
    with quiet():
        pipeline.load_lora_weights(file.parent)
    wanted = ours(policy, x, 2, 3.0)
    assert same(drawn(policy, pipeline, x), wanted)
    assert same(ours(load(model, lora=lora_of(str(file))), x, 2, 3.0), wanted)


def test_layers_of_another_model_are_refused(tmp_path: Path) -> None:
    deep = load(str(tiny.save(tmp_path / "deep", text={"num_hidden_layers": 3})), lora=LORA)
    file = save(stirred(deep), tmp_path)
    with pytest.raises(
        ValueError, match=r"^--lora .*: it tunes the layer 'encoder.layers.1.* of the text_encoder, which"
    ):
        load(runs.model(), lora=lora_of(str(file)))


def test_more_layers_of_an_encoder_are_named_in_full(tmp_path: Path) -> None:
    layer = "text_encoder.text_model.encoder.layers.0.mlp.fc2"
    more = (*LoRA().targets, layer)
    policy = load(runs.model(), lora=LoRA(rank=2, text_encoders=True, targets=more))
    assert f"{layer}.lora_B.weight" in policy.named_parameters()
    with pytest.raises(ValueError, match=r"lora.targets names 'text_encoder.* that needs --lora.text_encoders"):
        LoRA(targets=more)
    with pytest.raises(ValueError, match="lora.targets names layers of text encoders alone: name one of the denoiser"):
        LoRA(text_encoders=True, targets=(layer,))
    with pytest.raises(ValueError, match=r"'text_encoder_2\.\S+' is no layer of the text encoders that are trained"):
        load(runs.model(), lora=LoRA(text_encoders=True, targets=(*more, layer.replace("encoder.", "encoder_2.", 1))))
    with pytest.raises(ValueError, match=r"lora.targets: there is no layer 'encoder.layers.9.mlp.fc2' in the text_enc"):
        load(runs.model(), lora=LoRA(text_encoders=True, targets=(*more, layer.replace("layers.0", "layers.9"))))


def test_kohyas_files_of_flux_are_read_whole(tmp_path: Path) -> None:
    model = str(MADE["flux"](tmp_path / "model"))
    policy = stirred(load(model, lora=LORA))
    adapter, written = adapter_of(str(save(policy, tmp_path)))[1], {}
    for layer, a, b in layers(adapter):
        start = "lora_te1_" if layer.startswith("text_encoder.") else "lora_transformer_"
        stem = start + layer.removeprefix("text_encoder.").replace(".", "_")
        written |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": 2 * b, f"{stem}.alpha": torch.tensor(1.0)}
    save_file(written, tmp_path / "kohya.safetensors")
    found = adapter_of(str(tmp_path / "kohya.safetensors"))[1]
    products = [{layer: b @ a for layer, a, b in layers(one)} for one in (adapter, found)]
    assert products[0].keys() == products[1].keys()
    assert all(torch.allclose(products[0][layer], products[1][layer], atol=1e-6) for layer in products[0])


def test_what_a_file_says_of_t5_is_left_out_and_it_is_said(tmp_path: Path) -> None:
    policy = stirred(load(str(MADE["flux"](tmp_path / "model")), lora=LORA))
    own, q = load_file(save(policy, tmp_path)), "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"
    more = {f"{q}.lora_A.weight": torch.ones(2, 8), f"{q}.lora_B.weight": torch.ones(8, 2)}
    save_file(own | more, tmp_path / "more.safetensors")
    with pytest.warns(UserWarning, match=r"2 of its \d+ tensors do not belong to the transformer or the text_encoder;"):
        found = adapter_of(str(tmp_path / "more.safetensors"))[1]
    assert found.keys() == policy.named_parameters().keys()

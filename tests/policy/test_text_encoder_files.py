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
from tastemaker.exports.diffusers import LORA as FILE
from tastemaker.exports.diffusers import save
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import quiet
from tastemaker.policy.lora_file import named_for_file
from tastemaker.process.samplers import DDIM
from tastemaker.subjects import Member, Part, _fitting, adapter_of, lora_of, mixed, of_flags, policy_of

LEARNS = {"sd": "draft", "sdxl": "ddpo", "sd3": "flow_grpo", "sd3-t5": "diffusion_nft", "flux": "draft"}
ATTENTION = "text_model.encoder.layers.0.self_attn"


@pytest.mark.parametrize("family", LEARNS)
def test_a_run_learns_and_its_file_draws_what_it_learned(family: str, tmp_path: Path) -> None:
    model = str(MADE[family](tmp_path / "model"))
    steps: Any = DDIM(1.0) if family in ("sd", "sdxl") else tm.FlowSDE()
    asked: dict[str, Any] = {"guidance": 2.0, "lora": LoRA(rank=2, text_encoders=True), "noise": steps}
    run = family_runs.trained(model, LEARNS[family], tmp_path / "run", **asked, resolution=16)
    policy = load(model, lora=lora_of(str(run.weights)))
    moved = [name for name, p in of_encoders(policy).items() if ".lora_B." in name and p.any()]
    assert len(moved) == len(of_encoders(policy)) / 2
    x, pipeline = noise(policy), plain(model)
    wanted = ours(policy, x, 2, 3.0)
    assert not same(drawn(policy, pipeline, x), wanted)
    with quiet():
        pipeline.load_lora_weights(run.folder / "lora")
    assert same(drawn(policy, pipeline, x), wanted)


def test_ddpo_begins_with_ratios_of_1_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    words = ("--lora.text_encoders", "--no-alarms")
    runs.train(runs.words(tmp_path / "whole", *words))
    for row in runs.metrics(tmp_path / "whole"):
        assert row["updates"][0]["log_ratio"] == row["updates"][0]["mismatch"] == 0.0 < row["updates"][1]["log_ratio"]
    written = load_file(tmp_path / "whole" / FILE)
    ups = [name for name in written if name.startswith("text_encoder.") and ".up." in name]
    assert len(ups) == 4 and all(written[name].any() for name in ups)
    with runs.tripping("SIGTERM", 7, tmp_path / "calls"):
        assert "stopped in" in runs.call(*runs.words(tmp_path / "cut", *words)).out
    runs.train(runs.words(tmp_path / "cut", *words, "--resume_from_checkpoint", "latest"))
    assert runs.weights(tmp_path / "cut") == runs.weights(tmp_path / "whole")
    assert runs.metrics(tmp_path / "cut") == runs.metrics(tmp_path / "whole")


def test_the_built_in_model_learns_to_read(tmp_path: Path) -> None:
    more = ("--model", "shapes", "--reward", "shapes_alignment", "--lora.text_encoders", "--no-alarms")
    few = "--iterations 1 --algorithm.images 2 --algorithm.updates 1 --algorithm.steps 2 --evaluation.count 1".split()
    runs.train(["train", "reinforce", *more, *few, "--device", "cpu", "--output_dir", str(tmp_path / "run")])
    assert any(name.startswith("text_encoder.") for name in runs.weights(tmp_path / "run"))


@pytest.mark.parametrize("family", LEARNS)
def test_the_names_are_those_of_diffusers_files(family: str, tmp_path: Path) -> None:
    """Frozen: with `text_model`, which older releases need and newer ones pass over."""
    written = set(load_file(save(load(str(MADE[family](tmp_path / "m")), lora=LORA), tmp_path)))
    downs = (
        ("lora_linear_layer.down", "lora_linear_layer.up") if family[:3] not in ("sd3", "flu") else ("lora_A", "lora_B")
    )
    first = {
        f"text_encoder.{ATTENTION}.{t}.{d}.weight" for t in ("q_proj", "k_proj", "v_proj", "out_proj") for d in downs
    }
    layers = {"sdxl": (1, 2), "sd": (2,), "flux": (2,)}.get(family, (2, 2))  # SDXL reads one of the first's two
    parts = [f"text_encoder{'_2' * k}" for k in range(len(layers))]
    wanted = {
        name.replace("text_encoder.", f"{part}.").replace("layers.0", f"layers.{layer}")
        for part, count in zip(parts, layers, strict=True)
        for layer in range(count)
        for name in first
    }
    assert {name for name in written if name.startswith("text_encoder")} == wanted


def with_mlp(adapter: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As kohya's scripts train them: the encoder's other linear layers too."""
    layer = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    width = next(t.shape[1] for name, t in adapter.items() if name.startswith("text_encoder.") and "lora_A" in name)
    random = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, width, generator=random), torch.randn(2 * width, 2, generator=random)
    return {**adapter, f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}


@pytest.mark.parametrize("family", ["sd", "sdxl"])
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
        own = load(model, lora=lora_of(str(tmp_path / "own.safetensors")))
        whole = load(model, lora=LoRA(rank=2, text_encoders=True, file=str(made)))
    x, pipeline = noise(again), plain(model)
    wanted = ours(again, x, 2, 3.0)
    assert any(".mlp.fc1." in name for name in again.named_parameters()) and not same(ours(policy, x, 2, 3.0), wanted)
    assert same(ours(own, x, 2, 3.0), wanted) and same(ours(whole, x, 2, 3.0), wanted)
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


def test_mixes_take_the_encoders_along_and_go_from_the_base_to_the_tuned_bit_for_bit(tmp_path: Path) -> None:
    model = str(MADE["sd"](tmp_path / "model"))
    tuned = stirred(load(model, lora=LORA))
    file = save(tuned, tmp_path)
    single = load(model, lora=lora_of(str(file)))
    x, words = noise(single), {1.0: single, 0.0: load(model, lora=LoRA())}
    for weight, other in words.items():
        made = tastemaker.mix({file: weight}, output=tmp_path / f"{weight}.safetensors")
        found = load(model, lora=lora_of(str(made)))
        assert torch.equal(ours(found, x, 2, 3.0), ours(other, x, 2, 3.0))
    base = load(model, lora=LoRA(rank=2))
    half = _fitting(mixed([Member("x", with_mlp(adapter_of(str(file))[1]), 0.5)]), LoRA())
    named = load(model, lora=half).named_parameters()
    assert any(".mlp.fc1." in name for name in named) and half.text_encoders
    assert not same(ours(single, x, 2, 3.0), ours(base, x, 2, 3.0))


def test_samples_of_a_file_and_of_mixes_read_by_its_encoders(tmp_path: Path) -> None:
    """The commands; `base` and a weight of 0 draw the same, and 1 is the file itself."""
    tuned = stirred(load(runs.model(), lora=LORA))
    save(tuned, tmp_path)
    adapter = with_mlp(adapter_of(str(tmp_path / FILE))[1])
    save_file(named_for_file(adapter, "unet"), tmp_path / "mine.safetensors")
    flags = {"model": runs.model(), "lora": str(tmp_path / "mine.safetensors")}
    subject = of_flags(flags)
    lora = subject.need_lora("--mix")
    x = noise(tuned)
    drawn_by = {}
    for weight in (0.5, 1.0, 0.0):
        one = replace(subject, lora=None, mix=(Part("mine", lora, weight),))
        drawn_by[weight] = ours(policy_of(one, {}), x, 2, 3.0)
    assert torch.equal(drawn_by[1.0], ours(policy_of(subject, {}), x, 2, 3.0))
    assert torch.equal(drawn_by[0.0], ours(load(runs.model(), lora=LoRA()), x, 2, 3.0))
    assert not same(drawn_by[0.5], drawn_by[1.0]) and not same(drawn_by[0.5], drawn_by[0.0])


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

"""Files in kohya's spelling: names held against a frozen list and diffusers' reader, pictures against diffusers'."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_unet_state_dict_to_peft
from full_size import JOINT, UNET_1, UNET_XL
from safetensors.torch import load_file
from torch import Tensor, nn

import runs
import tastemaker
import tiny
from tastemaker.evaluation.evaluate import Trial, draw_pictures
from tastemaker.exports.diffusers import LORA, save
from tastemaker.exports.kohya import named
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load, quiet
from tastemaker.policy.lora_file import named_for_file
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.prompts import Prompts
from tastemaker.subjects import lora_of

FROZEN = json.loads((Path(__file__).parents[1] / "fixtures" / "lora_names.json").read_text())
REAL: dict[str, dict[str, Any]] = {"sd15": UNET_1, "sdxl": UNET_XL, "sd3": JOINT}
KEY, TRIAL = Key(5, "evaluation"), Trial(Prompts.of(["a red cat", "two dogs"]), 4, 3.0, DDIM(0.0), 5)
TARGETS = ("to_q", "to_out.0", "ff.net.0.proj", "proj_in", "conv1", "conv_in", "conv", "time_emb_proj", "linear_1")


def layers_of(name: str) -> list[str]:
    """All layers that may be tuned, in the real network."""
    with torch.device("meta"), quiet():
        network = getattr(diffusers, REAL[name]["_class_name"]).from_config(REAL[name])
    return [layer for layer, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def adapter(layers: list[str]) -> dict[str, Tensor]:
    """In which every layer can be told by its numbers."""
    return {
        f"{layer}.lora_{part}.weight": torch.full((1, 1), float(k)) for k, layer in enumerate(layers) for part in "AB"
    }


def digest(names: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_names_are_the_frozen_ones_and_diffusers_reads_them_all(name: str) -> None:
    frozen, own = FROZEN[name], adapter(layers_of(name))
    written = named(own, "unet")
    stems = sorted({key.partition(".")[0] for key in written})
    assert set(written) == {f"{stem}.{part}" for stem in stems for part in FROZEN["parts"]}
    assert set(frozen["samples"]) <= set(stems) and digest(stems) == frozen["sha256"]
    # sd-scripts adapts the transformers alone, and says how many layers that makes
    assert sum(re.search(frozen["transformers"], stem) is not None for stem in stems) == frozen["modules"]
    kind = StableDiffusionXLPipeline if name == "sdxl" else StableDiffusionPipeline
    state, _ = kind.lora_state_dict(dict(written), unet_config=SimpleNamespace(layers_per_block=2))
    found = convert_unet_state_dict_to_peft({key.removeprefix("unet."): value for key, value in state.items()})
    assert found.keys() == own.keys() and all(found[key] is own[key] for key in own)


def test_the_names_of_a_transformer_are_those_that_comfyui_reads() -> None:
    """ComfyUI has no others for Stable Diffusion 3 that diffusers reads too, so there is no file in kohya's."""
    own, frozen = adapter(layers_of("sd3")), FROZEN["sd3"]
    names = list(named_for_file(own, "transformer"))
    assert set(frozen["samples"]) <= set(names) and digest(names) == frozen["sha256"]
    with pytest.raises(ValueError, match=r"kohya's names are those of UNets, .* tunes a transformer: ComfyUI reads it"):
        named(own, "transformer")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model whose UNet is SDXL's in what decides its names: two layers a block, two transformers in a place."""
    folder = tiny.save(tmp_path_factory.mktemp("deep") / "model")
    config = json.loads((folder / "unet" / "config.json").read_text())
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        deeper = {"layers_per_block": 2, "transformer_layers_per_block": 2}
        UNet2DConditionModel.from_config(config | deeper).save_pretrained(folder / "unet")
    return str(folder)


def ours(model: str, lora: str | None) -> Tensor:
    return draw_pictures(load(model, lora=lora_of(lora) if lora else None), TRIAL, KEY, TRIAL.prompts)


def theirs(model: str, file: Path, kind: Any) -> Tensor:
    """kind: the pipeline that reads the file, as its `load_lora_weights` does."""
    with quiet():
        pipe = StableDiffusionPipeline.from_pretrained(model, use_safetensors=True)
        state, alphas = kind.lora_state_dict(str(file), unet_config=pipe.unet.config)
        kind.load_lora_into_unet(state, alphas, pipe.unet)
    pipe.set_progress_bar_config(disable=True)
    start = KEY.noise("x0", 0, TRIAL.prompts.ids, (4, tiny.SIDE, tiny.SIDE))
    how = {"num_inference_steps": TRIAL.steps, "guidance_scale": TRIAL.guidance, "output_type": "pt"}
    images: Tensor = pipe(list(TRIAL.prompts), latents=start, **how).images
    return images


@pytest.mark.parametrize("kind", [StableDiffusionPipeline, StableDiffusionXLPipeline])
def test_diffusers_and_we_show_the_same_pictures_with_it(kind: Any, deep: str, tmp_path: Path) -> None:
    counted = kind is StableDiffusionXLPipeline
    model = deep if counted else runs.model()
    policy = load(model, lora=LoRA(rank=3, alpha=7.0, rslora=True, targets=TARGETS))
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    file = save(policy, tmp_path)
    expected = draw_pictures(policy, TRIAL, KEY, TRIAL.prompts)
    made = tastemaker.export(file, format="kohya", output=tmp_path / "kohya.safetensors")
    written = load_file(made)
    assert {float(value) for name, value in written.items() if name.endswith(".alpha")} == {3.0}
    assert any("input_blocks_2_1" in name for name in written) == counted
    assert (expected - ours(model, None)).abs().max() > 0.02
    assert (expected - theirs(model, made, kind)).abs().max() < 1e-4
    assert (expected - ours(model, str(made))).abs().max() < 1e-4
    back = load_file(tastemaker.export(made, format="diffusers", output=tmp_path / "back"))
    assert back.keys() == load_file(file).keys()
    assert all(torch.equal(value, back[name]) for name, value in load_file(file).items())


def test_a_dora_is_refused_with_the_reason() -> None:
    own = adapter(["mid_block.attentions.0.proj_in"])
    with pytest.raises(ValueError, match="a DoRA has no file in kohya's spelling that shows the same pictures"):
        named(own | {"mid_block.attentions.0.proj_in.lora_magnitude_vector.weight": torch.ones(1)}, "unet")


def test_a_run_is_exported_beside_its_own_file(tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs.plain(), tmp_path / "run"))
    before = (run / LORA).read_bytes()
    ran = runs.call("export", str(run), "--format", "kohya")
    assert (ran.code, ran.out, ran.err) == (0, f"  {run}/lora/kohya.safetensors\n", "")
    assert (run / LORA).read_bytes() == before
    a, b = load_file(run / LORA), load_file(run / "lora" / "kohya.safetensors")
    stem = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert torch.equal(a[f"{stem}.lora.up.weight"], b[f"lora_unet_{stem[5:].replace('.', '_')}.lora_up.weight"])
    assert runs.call("export", str(run), "--format", "kohya").code == 2
    assert runs.call("export", str(run), "--format", "kohya", "--overwrite").code == 0
    run_again = lora_of(str(run))  # the run's own file is still the one that its folder stands for
    assert run_again.file == str(run) and run_again.rank == 4


MISTAKES = [
    ("export", "export takes one LoRA, and then flags; found none."),
    ("export a b --format kohya", "export takes one LoRA, and then flags; found a and b."),
    ("export a", "export needs --format, one of kohya, diffusers."),
    ("export a --format koyha", "--format is 'koyha'; it is one of kohya, diffusers.  Did you mean `kohya`?"),
    ("export a --fromat kohya", "--fromat is not a flag of tastemaker export.  Did you mean `--format`?"),
    ("export a --format kohya", "a is no run's folder, so it is to be said where the file goes: give --output."),
    ("export a --format kohya --output x", "a: no LoRA file in safetensors format could be read there"),
    ("export shapes --format kohya --output x", "shapes is a whole model, and a LoRA is needed."),
    ("export --format kohya --overwrite a", "--overwrite takes no value, found 'a': write it behind the plain words."),
]


@pytest.mark.parametrize(("line", "said"), MISTAKES)
def test_a_mistake_is_one_message(line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = runs.call(*line.split())
    assert (ran.code, ran.out) == (2, "") and ran.err.startswith(f"tastemaker: {said}"), ran.err
    assert ran.err.count("\n") == 1 and list(tmp_path.iterdir()) == []

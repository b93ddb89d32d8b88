import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

import tiny
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.families import FAMILIES
from tastemaker.policy.load import BUILT_IN, HALVES, configs, find, folder, half, load


def test_loading_and_drawing_are_silent(model, capfd):
    policy = load(model, lora=LoRA())
    with pytest.warns(UserWarning, match="longer than the 16 tokens"):
        policy.encode(["a prompt much too long for this model"])
    assert capfd.readouterr() == ("", "")


def test_names_and_families_cost_no_import():
    program = (
        "import sys; import tastemaker.policy.load, tastemaker.exports\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)


def test_a_built_in_name_is_resolved_to_its_folder(model, monkeypatch):
    assets = ModuleType("tastemaker.shapes.assets")
    assets.folder = lambda: Path(model)
    monkeypatch.setitem(sys.modules, "tastemaker.shapes.assets", assets)
    name = next(iter(BUILT_IN))
    assert folder(name) == Path(model)
    assert load(name, lora=LoRA()).latent_shape == (4, tiny.SIDE, tiny.SIDE)
    assert folder(model) == Path(model) and folder("owner/name") is None


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_built_in_name_wins_over_what_lies_in_the_working_folder(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = next(iter(BUILT_IN))
    Path(name).mkdir() if kind == "folder" else Path(name).write_text("a list of shapes")
    assert (find(name).source, find(name).single) == (str(folder(name)), None)
    assert configs(name) == folder(name)
    with pytest.raises(ValueError, match="no safetensors file|has no model_index.json"):
        find(f"./{name}")


@pytest.mark.parametrize("model", ["no/such/folder", "./here", "shape", "/nowhere", "C:\\models\\sd"])
def test_a_missing_folder_is_one_clear_error(model):
    with pytest.raises(ValueError, match=r"^--model .*: no such folder. Give a built-in model \(shapes, shapes-flow\)"):
        load(model, lora=None)


def test_a_hub_id_without_network_is_one_clear_error(monkeypatch, capfd):
    def unreachable(*_, **__):
        raise ConnectionError("Name or service not known\nand more")

    def not_cached(*_, local_files_only, **__):
        assert local_files_only  # or it would try again and again
        raise LocalEntryNotFoundError("no file")

    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", not_cached)
    with pytest.raises(ValueError, match=r"^--model nobody/nothing: .*hub \(Name or service not known\)"):
        load("nobody/nothing", lora=None)
    assert capfd.readouterr() == ("", "")


def test_folders_that_are_no_pipeline_of_a_known_family(tmp_path):
    with pytest.raises(ValueError, match=r"--model .* has no model_index.json"):
        load(str(tmp_path), lora=None)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load(str(tmp_path), lora=None)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "PaintPipeline"}))
    with pytest.raises(ValueError, match=f"is a PaintPipeline, Tastemaker knows {', '.join(FAMILIES)}"):
        load(str(tmp_path), lora=None)
    refiner = {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True}
    (tmp_path / "model_index.json").write_text(json.dumps(refiner))
    with pytest.raises(ValueError, match=f"--model {tmp_path} is a refiner: it is told an aesthetic score"):
        load(str(tmp_path), lora=None)


def test_old_folders_with_a_safety_checker_load_without_it_and_without_advice(tmp_path, capfd):
    folder = tiny.save(tmp_path)
    index, scheduler = folder / "model_index.json", folder / "scheduler" / "scheduler_config.json"
    listed = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    index.write_text(json.dumps(json.loads(index.read_text()) | listed))
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"steps_offset": 0, "clip_sample": True}))
    policy = load(str(folder), lora=LoRA())
    assert policy.pipeline().safety_checker is None
    assert policy.schedule(10).t[-1] == 1  # as diffusers mends it
    assert capfd.readouterr() == ("", "")


def test_pickled_weights_are_never_read(tmp_path):
    folder = tiny.save(tmp_path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save({"a": torch.ones(1)}, weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"--model .* could not be loaded: .*safetensors"):
        load(str(folder), lora=None)


def test_a_variant_that_is_not_there(model):
    with pytest.raises(ValueError, match="--variant fp16 could not be loaded"):
        load(model, lora=None, variant="fp16")


def test_sizes_are_pixels_of_the_picture(model):
    policy = load(model, lora=None, resolution=24, width=8)
    assert policy.latent_shape == (4, 12, 4)
    x0 = policy.predict(torch.randn(1, 4, 12, 4), 0, policy.schedule(2), policy.encode(["sun"]), 2.0).x0
    assert policy.decode(x0).shape == (1, 3, 24, 8)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"resolution": 17}, r"--resolution 17 .* multiples of 2 pixels. Nearest: 16 or 18"),
        ({"resolution": 16, "height": 21}, r"--height 21 .* Nearest: 20 or 22. \(--resolution sets both"),
        ({"width": 1}, r"--width 1 .* Nearest: 2 or 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(model, sizes, message):
    with pytest.raises(ValueError, match=message):
        load(model, lora=None, **sizes)


def test_halves_are_torchs():
    assert {name: half(name) for name in HALVES} == {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def test_an_unknown_precision_is_refused(model):
    with pytest.raises(ValueError, match="--mixed_precision is 'half', it must be one of no, fp16, bf16"):
        load(model, lora=None, mixed_precision="half")

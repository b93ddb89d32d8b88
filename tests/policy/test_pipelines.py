"""The safety checker: not loaded for training, and untouched in what is exported."""

import filecmp
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

import runs
import tiny
from hub_cache import publish
from tastemaker.exports.diffusers import save
from tastemaker.policy import pipelines
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import find, load, quiet

PARTS = ("safety_checker", "feature_extractor")
SMALL = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tiny safety checker, as 1.x has them."""
    folder = tiny.save(tmp_path_factory.mktemp("checked") / "model")
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        vision = {**SMALL, "image_size": 8, "patch_size": 4}
        config = CLIPConfig(text_config={**SMALL, "vocab_size": 8}, vision_config=vision, projection_dim=8)
        checker = StableDiffusionSafetyChecker(config)
        with torch.no_grad():
            for parameter in checker.parameters():
                parameter.copy_(torch.randn(parameter.shape))
        processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
        plain = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        whole = StableDiffusionPipeline(
            **{**plain.components, "safety_checker": checker, "feature_extractor": processor},
            requires_safety_checker=True,
        )
        shutil.rmtree(folder)
        whole.save_pretrained(folder)
    return folder


def listed(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "model_index.json").read_text())
    return {name: found.get(name) for name in (*PARTS, "requires_safety_checker")}


def check(folder: Path, base: Path) -> None:
    """The exported folder has the base's safety checker, and plain diffusers draws with it."""
    assert listed(folder) == listed(base)
    with quiet():
        theirs, ours = (StableDiffusionPipeline.from_pretrained(place) for place in (base, folder))
    assert isinstance(ours.safety_checker, StableDiffusionSafetyChecker) and ours.config.requires_safety_checker is True
    mine, other = (pipe.safety_checker.state_dict() for pipe in (ours, theirs))
    assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
    assert ours.feature_extractor.to_dict() == theirs.feature_extractor.to_dict()
    ours.set_progress_bar_config(disable=True)
    with quiet():
        drawn = ours("a cat", num_inference_steps=1, generator=torch.Generator().manual_seed(0))
    assert len(drawn.nsfw_content_detected) == 1


def test_a_run_without_lora_leaves_a_pipeline_with_its_bases_safety_checker(checked: Path, tmp_path: Path) -> None:
    policy = load(str(checked), lora=None)
    assert policy.pipeline().safety_checker is None and policy.pipeline().feature_extractor is None
    runs.train(runs.small(tmp_path, "--model", str(checked), "--no-lora"))
    check(tmp_path / "pipeline", checked)
    for name in PARTS:
        files = sorted(path.name for path in (checked / name).iterdir())
        same, *others = filecmp.cmpfiles(checked / name, tmp_path / "pipeline" / name, files, shallow=False)
        assert same == files and others == [[], []]
        assert files == sorted(path.name for path in (tmp_path / "pipeline" / name).iterdir())


def test_from_the_hub_too_with_the_variant_that_is_there(checked: Path, cache: Path, tmp_path: Path) -> None:
    """The one file of a variant gets its plain name, as the tuned network has it; without one it is not touched."""
    with quiet():
        half = StableDiffusionPipeline.from_pretrained(checked)
        half.save_pretrained(tmp_path / "half", variant="fp16")
    snapshot = publish(cache, "owner/name", tmp_path / "half")
    policy = load("owner/name", lora=None, variant="fp16")
    check(save(policy, tmp_path), checked)
    shutil.copyfile(checked / "safety_checker" / "model.safetensors", snapshot / "safety_checker" / "model.safetensors")
    (snapshot / "safety_checker" / "model.fp16.safetensors").write_bytes(b"another")
    check(save(policy, tmp_path), checked)


def test_a_safety_checker_that_is_not_to_be_had_is_missed_aloud(checked: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(checked, tmp_path / "base"))
    policy = load(str(base), lora=None)
    (base / "safety_checker" / "model.safetensors").rename(base / "safety_checker" / "pytorch_model.bin")
    said = r"^safety_checker of --model .* could not be copied \(it has no weights as safetensors\): .* is without it"
    with pytest.warns(UserWarning, match=said):
        folder = save(policy, tmp_path)
    assert not (folder / "safety_checker").exists() and (folder / "feature_extractor").is_dir()
    assert listed(folder) == {**listed(base), "safety_checker": [None, None], "requires_safety_checker": False}
    with quiet():
        assert StableDiffusionPipeline.from_pretrained(folder).safety_checker is None


def test_a_base_without_one_gets_none(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base")
    folder = save(load(str(base), lora=None), tmp_path)
    assert listed(folder) == listed(base) and not (folder / "safety_checker").exists()
    assert {path.name for path in folder.iterdir()} == {path.name for path in base.iterdir()}


def test_the_plain_pipeline_is_as_its_owner_publishes_it(checked: Path) -> None:
    found = pipelines.plain(find(str(checked)), torch.float32)
    ours = load(str(checked), lora=LoRA()).pipeline().unet
    assert isinstance(found.safety_checker, StableDiffusionSafetyChecker)
    assert {name.replace(".base_layer", "") for name in ours.state_dict() if ".lora_" not in name} == set(
        found.unet.state_dict()
    )


@pytest.fixture
def trained(checked: Path, cache: Path) -> Path:
    """The cache as training leaves it: what it does not load it has not downloaded."""
    snapshot = publish(cache, "owner/name", checked)
    for name in PARTS:
        shutil.rmtree(snapshot / name)
    return snapshot


@pytest.mark.parametrize("lost", ["both", "weights"])
def test_the_plain_pipeline_misses_a_safety_checker_aloud(lost: str, checked: Path, trained: Path) -> None:
    load("owner/name", lora=LoRA())
    if lost == "weights":
        ignored = shutil.ignore_patterns("*.safetensors")
        for name in PARTS:
            shutil.copytree(checked / name, trained / name, ignore=ignored)
    with pytest.warns(UserWarning, match=r"^the safety checker of --model owner/name could not be loaded \(.+\): left"):
        found = pipelines.plain(find("owner/name"), torch.float32)
    assert found.safety_checker is None and found.config.requires_safety_checker is False
    found.set_progress_bar_config(disable=True)
    assert len(found("a cat", num_inference_steps=1).images) == 1


def test_a_plain_pipeline_that_is_not_to_be_had_is_one_clear_error(trained: Path) -> None:
    (trained / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^--model owner/name could not be loaded: .* Needed: the weights of unet"):
        pipelines.plain(find("owner/name"), torch.float32)


def test_the_plain_pipeline_is_of_one_precision_and_shows_its_bars(checked: Path) -> None:
    found = pipelines.plain(find(str(checked)), torch.bfloat16)
    networks = [part for part in found.components.values() if isinstance(part, torch.nn.Module)]
    assert len(networks) == 4 and {network.dtype for network in networks} == {torch.bfloat16}
    assert not found.progress_bar(total=1).disable

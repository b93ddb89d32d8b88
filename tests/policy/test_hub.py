"""Hub ids: revisions and variants in the local cache, and models that have moved. Nothing here has a network."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import tiny
from hub_cache import publish
from tastemaker.policy import hub
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import configs, find, load


def weights(policy):
    return policy.pipeline().unet.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another tiny model of the same kind."""
    return tiny.save(tmp_path_factory.mktemp("other"), seed=1)


def test_a_revision_is_a_branch_a_tag_or_a_commit(model, other, cache):
    publish(cache, "owner/name", Path(model))
    snapshot = publish(cache, "owner/name", other, revision="v2")
    expected = weights(load(model, lora=None)), weights(load(str(other), lora=None))
    assert not same(*expected)
    assert same(weights(load("owner/name", lora=None)), expected[0])
    for revision in ("v2", snapshot.name):
        assert same(weights(load("owner/name", revision=revision, lora=None)), expected[1])
    with pytest.raises(ValueError, match=r"^--model owner/name: neither .* in the local cache, nor"):
        load("owner/name", revision="v3", lora=None)


def test_a_variant_is_read_from_a_folder_and_from_the_cache(other, cache, tmp_path):
    """Only the variant's files are there, and its weights are half precision, which training starts from in fp32."""
    pipeline = StableDiffusionPipeline.from_pretrained(other, safety_checker=None)
    pipeline.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    names = {path.name for path in (tmp_path / "half").rglob("*.safetensors")}
    assert names == {"diffusion_pytorch_model.fp16.safetensors", "model.fp16.safetensors"}
    publish(cache, "owner/name", tmp_path / "half")
    expected = weights(load(str(other), lora=None))
    for place in (str(tmp_path / "half"), "owner/name"):
        found = weights(load(place, variant="fp16", lora=None))
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}
        assert all(torch.equal(tensor, expected[name].half().float()) for name, tensor in found.items())
        with pytest.raises(ValueError, match=rf"--model {place} could not be loaded"):
            load(place, lora=None)


def test_configurations_are_found_wherever_the_model_lies(model, cache):
    snapshot = publish(cache, "owner/name", Path(model), only="*/config.json")
    assert configs(model) == Path(model) and configs("owner/name") == snapshot
    with pytest.raises(ValueError, match=r"^--model owner/else: its config files are neither here nor to be had"):
        configs("owner/else")


MOVED = "runwayml/stable-diffusion-v1-5"


def test_a_model_that_has_moved_is_found_and_said_once(model, cache, capfd):
    hub._say_moved.cache_clear()
    publish(cache, "stable-diffusion-v1-5/stable-diffusion-v1-5", Path(model))
    assert find(MOVED).source == "stable-diffusion-v1-5/stable-diffusion-v1-5" and find(MOVED).model == MOVED
    assert configs(MOVED) == configs("stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert same(weights(load(MOVED, lora=LoRA())), weights(load(model, lora=LoRA())))
    printed, said = capfd.readouterr()
    assert printed == "" and said == (
        "runwayml/stable-diffusion-v1-5 is no longer on the hub; its copy "
        "stable-diffusion-v1-5/stable-diffusion-v1-5 is used instead.\n"
    )


def test_a_model_that_has_moved_stays_where_the_cache_holds_it(model, cache, capfd):
    hub._say_moved.cache_clear()
    publish(cache, MOVED, Path(model))
    assert find(MOVED).source == MOVED
    assert capfd.readouterr() == ("", "")
    assert find(MOVED, "main").source == MOVED
    with pytest.raises(ValueError, match=rf"^--model {MOVED}: neither a folder here, nor in the local cache"):
        find(MOVED, "fp16")


def test_the_notice_comes_from_one_process(model, cache, capfd, monkeypatch):
    hub._say_moved.cache_clear()
    monkeypatch.setenv("RANK", "1")
    publish(cache, "stable-diffusion-v1-5/stable-diffusion-v1-5", Path(model))
    find(MOVED)
    assert capfd.readouterr() == ("", "")
    hub._say_moved.cache_clear()


def test_an_id_of_another_family_is_told_before_its_weights_are_read(model, cache):
    snapshot = publish(cache, "owner/name", Path(model), only="model_index.json")
    index = json.loads((snapshot / "model_index.json").read_text())
    (snapshot / "model_index.json").write_text(json.dumps(index | {"_class_name": "PaintPipeline"}))
    with pytest.raises(ValueError, match="--model owner/name is a PaintPipeline"):
        load("owner/name", lora=None)

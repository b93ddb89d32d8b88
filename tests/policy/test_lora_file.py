import dataclasses
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import runs
import tiny
from tastemaker.exports.diffusers import save
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load, quiet
from tastemaker.policy.lora_file import read
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM
from tastemaker.subjects import lora_of

TARGETS = ("to_q", "to_out.0", "ff.net.0.proj", "proj_in", "conv1")
PROMPTS = ["a red cat", "two dogs"]
STEPS, GUIDANCE = 5, 4.0
DORA = LoRA(rank=2, alpha=3.0, rslora=True, dora=True, targets=TARGETS)


def start(policy):
    return Key(0, "evaluation").noise("x", 0, [0, 1], policy.latent_shape)


@torch.no_grad()
def our_pictures(policy):
    schedule, conditioning, x = policy.schedule(STEPS), policy.encode(PROMPTS), start(policy)
    for i in range(len(schedule)):
        prediction = policy.predict(x, i, schedule, conditioning, GUIDANCE)
        x = DDIM(eta=0.0).transition(prediction, x, i, schedule).mean
    return policy.decode(x)


def their_pictures(pipe, policy):
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "eta": 0.0, "output_type": "pt"}
    return pipe(PROMPTS, latents=start(policy), **settings).images


def plain(folder, lora=None):
    with quiet():
        pipe = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True)
        if lora:
            pipe.load_lora_weights(str(lora))
    return pipe


def tuned(model, lora=None, **settings):
    policy = load(model, lora=lora, **settings)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * (0.2 if lora else 0.02))
    return policy


@pytest.mark.parametrize(
    ("family", "lora"),
    [("model", LoRA()), ("model", LoRA(alpha=8.0)), ("v_model", LoRA(alpha=1.0)), ("model", LoRA(rslora=True))],
)
def test_diffusers_shows_our_pictures(request, tmp_path, family, lora):
    folder = request.getfixturevalue(family)
    policy = tuned(folder, lora)
    ours = our_pictures(policy)
    with policy.using("base"):
        base = our_pictures(policy)
    assert (ours - base).abs().max() > 0.02
    assert (base - their_pictures(plain(folder), policy)).abs().max() < 1e-4
    file = save(policy, tmp_path)
    assert file == tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    assert (ours - their_pictures(plain(folder, file), policy)).abs().max() < 1e-4
    assert (ours - their_pictures(policy.pipeline(), policy)).abs().max() < 1e-4


def test_convolutions_and_other_layers_are_exported_too(model, tmp_path):
    policy = tuned(model, LoRA(alpha=2.0, targets=("to_q", "ff.net.0.proj", "proj_in", "conv1", "time_emb_proj")))
    ours = our_pictures(policy)
    assert (ours - their_pictures(plain(model, save(policy, tmp_path)), policy)).abs().max() < 1e-4


def test_the_file_has_the_names_that_other_programs_look_for(model, tmp_path):
    file = save(tuned(model, LoRA(targets=("to_q", "to_out.0"))), tmp_path)
    layers = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn{}.to_{}.lora.{}.weight"
    names = {layers.format(n, layer, part) for n in (1, 2) for layer in ("q", "out.0") for part in ("down", "up")}
    with safe_open(file, "pt") as opened:
        assert names <= set(opened.keys())
        assert all(key.startswith("unet.") and key.endswith((".down.weight", ".up.weight")) for key in opened.keys())
        assert "alpha / rank" in opened.metadata()["scale"]
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_another_set_is_exported_from_inside_using(model, tmp_path):
    policy = tuned(model, LoRA(), sets=("base", "ema"))
    policy.blend("ema", keep=0.5)
    with policy.using("ema"):
        ours, file = our_pictures(policy), save(policy, tmp_path)
    assert (ours - their_pictures(plain(model, file), policy)).abs().max() < 1e-4
    assert (ours - our_pictures(policy)).abs().max() > 1e-2


def test_without_lora_a_pipeline_is_written_and_replaced(model, tmp_path):
    policy = tuned(model)
    for size in (0.0, 0.01):
        with torch.no_grad():
            policy.parameters()[0].add_(size)
        folder = save(policy, tmp_path)
    assert folder == tmp_path / "pipeline"
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]
    assert (our_pictures(policy) - their_pictures(plain(folder), policy)).abs().max() < 1e-4
    assert torch.equal(our_pictures(load(str(folder), lora=LoRA())), our_pictures(policy))


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A policy and its LoRA file (rank 2, alpha 6)."""
    policy = tuned(model, LoRA(rank=2, alpha=6.0, targets=TARGETS))
    return policy, save(policy, tmp_path_factory.mktemp("finished"))


@pytest.mark.parametrize("lora", [LoRA(rank=2, targets=TARGETS), LoRA(rank=5, alpha=3.0, targets=(*TARGETS, "to_k"))])
def test_training_goes_on_from_a_file(model, finished, lora):
    policy, file = finished
    again = load(model, lora=dataclasses.replace(lora, file=str(file)), sets=("base", "old"))
    assert torch.allclose(our_pictures(again), our_pictures(policy), atol=1e-5)
    with again.using("old"):
        assert torch.allclose(our_pictures(again), our_pictures(policy), atol=1e-5)
    with again.using("base"), policy.using("base"):
        assert torch.equal(our_pictures(again), our_pictures(policy))
    half = load(model, lora=dataclasses.replace(lora, file=str(file.parent)), mixed_precision="bf16")
    assert all(torch.equal(a, b) for a, b in zip(half.parameters(), again.parameters(), strict=True))


def test_a_dora_is_shown_by_diffusers_and_begins_a_run(model, finished, tmp_path):
    policy = tuned(model, DORA)
    ours, file = our_pictures(policy), save(policy, tmp_path)
    assert (ours - their_pictures(plain(model, file), policy)).abs().max() < 1e-4
    again = load(model, lora=dataclasses.replace(DORA, rank=3, rslora=False, file=str(file)), sets=("base", "old"))
    assert torch.allclose(our_pictures(again), ours, atol=1e-5)
    with again.using("old"):
        assert torch.allclose(our_pictures(again), ours, atol=1e-5)
    with pytest.raises(ValueError, match=r"^--lora .*: it is a DoRA, .* Give --lora.dora\."):
        load(model, lora=LoRA(rank=2, targets=TARGETS, file=str(file)))
    chosen = lora_of(str(file))  # as `sample --lora FILE` reads it
    assert (chosen.dora, chosen.rank) == (True, 2)
    other, file = finished  # a plain LoRA: the lengths begin as those of what it makes of the base
    again = load(model, lora=dataclasses.replace(DORA, file=str(file)))
    assert torch.allclose(our_pictures(again), our_pictures(other), atol=1e-5)


def test_a_dora_that_diffusers_saves_begins_a_run(model, tmp_path):
    """Its names of the lengths are without `.weight`."""
    with quiet():
        network = UNet2DConditionModel.from_pretrained(model, subfolder="unet", use_safetensors=True)
    network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], use_dora=True))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.add_(0.1 if "lora_" in name else 0.0)
    network.save_lora_adapter(tmp_path)
    found = read(str(tmp_path), StableDiffusionPipeline, "unet")
    own = {name.replace(".default", ""): p.detach() for name, p in network.named_parameters() if "lora_" in name}
    assert same(found, own) and any(name.endswith("lora_magnitude_vector.weight") for name in found)


def kohya(tensors):
    """The same adapter in the spelling of kohya's scripts, with factors alpha / 2 that its loader must apply."""
    written = {}
    for name, tensor in tensors.items():
        layer, _, part = name.removeprefix("unet.").partition(".lora.")
        stem, alpha = "lora_unet_" + layer.replace(".", "_"), 1.0 if layer.endswith("to_q") else 3.0
        written[f"{stem}.lora_{part}"] = tensor * (2 / alpha if part.startswith("up") else 1.0)
        written[f"{stem}.alpha"] = torch.tensor(alpha)
    return written


def peft_spelling(tensors):
    return {n.replace("lora.down", "lora_A").replace("lora.up", "lora_B"): t.clone() for n, t in tensors.items()}


def test_files_of_other_programs_begin_a_run(model, finished, tmp_path):
    policy, file = finished
    tensors, ours = load_file(file), our_pictures(policy)
    save_file(kohya(tensors), tmp_path / "kohya.safetensors")
    save_file(peft_spelling(tensors), tmp_path / "peft.safetensors")
    quarter = {n: t / 4 if "lora_B" in n else t for n, t in peft_spelling(tensors).items()}
    settings = '{"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {}, "unet.use_rslora": false}'
    save_file(quarter, tmp_path / "settings.safetensors", metadata={"lora_adapter_metadata": settings})
    for name in ("kohya", "peft", "settings"):
        again = load(model, lora=LoRA(rank=2, targets=TARGETS, file=str(tmp_path / f"{name}.safetensors")))
        assert torch.allclose(our_pictures(again), ours, atol=1e-5), name


def peft_network(model):
    """The finished adapter's network and alpha / rank = 3, in peft's hands."""
    with quiet():
        return UNet2DConditionModel.from_pretrained(model, subfolder="unet", use_safetensors=True), LoraConfig(
            r=2, lora_alpha=6, target_modules=list(TARGETS)
        )


def fill(network, tensors):
    """The finished adapter's tensors, whose scale is baked in, into a peft network that scales itself."""
    own = {name.replace(".default", ""): parameter for name, parameter in network.named_parameters()}
    for name, tensor in peft_spelling(tensors).items():
        place = next(own[key] for key in own if key.endswith(name.removeprefix("unet.")))
        with torch.no_grad():
            place.copy_(tensor / 3 if "lora_B" in name else tensor)


def test_adapters_that_diffusers_and_peft_save_of_a_network_alone_begin_a_run(model, finished, tmp_path):
    """Names without `unet.`; alpha is in the file's metadata, in adapter_config.json beside it, or a tensor a layer."""
    _, file = finished
    tensors = load_file(file)
    network, config = peft_network(model)
    network.add_adapter(config)
    fill(network, tensors)
    network.save_lora_adapter(tmp_path / "diffusers")
    network, config = peft_network(model)
    network = get_peft_model(network, config)
    fill(network, tensors)
    network.save_pretrained(tmp_path / "peft")
    third = {n: t / 3 if "lora_B" in n else t for n, t in peft_spelling(tensors).items()}
    third |= {n.replace("lora_A.weight", "alpha"): torch.tensor(6.0) for n in third if "lora_A" in n}
    save_file(third, tmp_path / "alpha.safetensors")
    places = ["diffusers", "diffusers/pytorch_lora_weights.safetensors"]
    places += ["peft", "peft/adapter_model.safetensors", "alpha.safetensors"]
    expected = read(str(file), StableDiffusionPipeline, "unet")
    for place in places:
        found = read(str(tmp_path / place), StableDiffusionPipeline, "unet")
        assert found.keys() == expected.keys(), place
        assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in found), place


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("model.diffusion_model.input_blocks.0.0.weight",), "a whole model: give it as --model"),
        (("lora_unet_x.lora_down.weight", "lora_unet_x.dora_scale"), "a DoRA in kohya's spelling"),
        (("lora_unet_x.hada_w1_a", "lora_unet_x.hada_w1_b"), "a LoHa or LoKr"),
        (("lora_unet_x.lokr_w1",), "a LoHa or LoKr"),
    ],
)
def test_what_is_no_lora_is_told_by_its_keys(tmp_path, names, said):
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "x.safetensors")
    for place in (tmp_path, tmp_path / "x.safetensors"):
        with pytest.raises(ValueError, match=rf"^--lora {place} is {said}"):
            read(str(place), StableDiffusionPipeline, "unet")
    cut = (tmp_path / "x.safetensors").read_bytes()[:-1]
    (tmp_path / "x.safetensors").write_bytes(cut)
    with pytest.raises(ValueError, match=rf"^--lora {tmp_path}: x.safetensors is cut off"):
        read(str(tmp_path), StableDiffusionPipeline, "unet")


def test_a_run_begins_where_the_one_ended_whose_file_it_is_given(tmp_path):
    """Its first evaluation is the other's last, picture by picture."""
    first, _ = runs.finished()
    runs.train(runs.words(tmp_path / "run", "--lora", str(first / runs.LORA), "--iterations", "1"))
    before, after = (row["values"]["brightness"] for row in runs.rows(tmp_path / "run", "evaluations"))
    base, tuned = (row["values"]["brightness"] for row in runs.rows(first, "evaluations"))
    assert before == pytest.approx(tuned, abs=1e-6) and before != pytest.approx(base, abs=1e-4)
    assert after != pytest.approx(before, abs=1e-4)
    for shown in sorted((tmp_path / "run" / "samples" / "0").glob("evaluation-*.webp")):
        assert shown.read_bytes() == (first / "samples" / "2" / shown.name).read_bytes()
    assert runs.settings(tmp_path / "run")["lora"]["file"] == str(first / runs.LORA)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_config_of_pefts_is_about_pefts_own_file_alone(finished, tmp_path):
    """Ours lies in the folder of somebody's adapter, or of one that peft made after it."""
    _, file = finished
    expected = read(str(file), StableDiffusionPipeline, "unet")
    shutil.copyfile(file, tmp_path / file.name)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 16, "r": 2}')
    for place in (tmp_path / file.name, tmp_path):
        assert same(read(str(place), StableDiffusionPipeline, "unet"), expected)
    save_file(peft_spelling(load_file(file)), tmp_path / "adapter_model.safetensors")
    assert same(read(str(tmp_path), StableDiffusionPipeline, "unet"), expected)
    scaled = read(str(tmp_path / "adapter_model.safetensors"), StableDiffusionPipeline, "unet")
    assert all(torch.equal(t, expected[n] * (8 if ".lora_B." in n else 1)) for n, t in scaled.items())


def test_a_folder_with_several_files_is_asked_which(finished, tmp_path):
    for name in ("one", "two"):
        shutil.copyfile(finished[1], tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"--lora .* holds 2 .safetensors files \(one.*, two.*\): name one of them"):
        read(str(tmp_path), StableDiffusionPipeline, "unet")


def test_a_file_in_the_home_folder_is_found(finished, tmp_path, monkeypatch):
    """`--lora=~/x.safetensors` reaches the program as it is typed."""
    shutil.copytree(finished[1].parent, tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = read(str(finished[1]), StableDiffusionPipeline, "unet")
    for place in (f"~/mine/{finished[1].name}", "~/mine"):
        assert same(read(place, StableDiffusionPipeline, "unet"), expected)
    with pytest.raises(ValueError, match="^--lora ~/nowhere.safetensors: no LoRA file"):
        read("~/nowhere.safetensors", StableDiffusionPipeline, "unet")


def test_a_file_that_does_not_fit_is_refused(model, v_model, finished, tmp_path):
    _, file = finished
    with pytest.raises(ValueError, match=r"--lora .*: it is of rank 2, and --lora.rank is 1. Give --lora.rank 2 or"):
        load(model, lora=LoRA(rank=1, targets=TARGETS, file=str(file)))
    with pytest.raises(ValueError, match=r"--lora .*gets no adapter here. lora.targets is to_q:"):
        load(model, lora=LoRA(targets=("to_q",), file=str(file)))
    with pytest.raises(ValueError, match=r"--lora nowhere: no LoRA file"):
        load(model, lora=LoRA(file="nowhere"))
    pickled = tmp_path / "pytorch_lora_weights.bin"
    torch.save({"unet.x": torch.ones(1)}, pickled)
    for place in (tmp_path, pickled):
        with pytest.raises(ValueError, match=r"no LoRA file in safetensors format"):
            load(model, lora=LoRA(file=str(place)))
    save_file({"text_encoder.x.lora_A.weight": torch.ones(2, 2)}, tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match=r"tunes no layer of the unet"):
        load(model, lora=LoRA(file=str(tmp_path / "text.safetensors")))
    layer = next(name.removesuffix("down.weight") for name in load_file(file) if name.endswith("to_q.lora.down.weight"))
    wide = {f"{layer}{part}.weight": torch.ones(shape) for part, shape in (("down", (5, 16)), ("up", (16, 5)))}
    save_file(load_file(file) | wide, tmp_path / "wide.safetensors")  # one layer of a higher rank than the others
    with pytest.raises(ValueError, match=r"of rank 5, and --lora.rank is 1. Give --lora.rank 5 or more"):
        load(model, lora=LoRA(rank=1, targets=TARGETS, file=str(tmp_path / "wide.safetensors")))


def test_a_file_that_tunes_the_text_encoder_too_is_read_with_a_warning(model, finished, tmp_path):
    policy, file = finished
    text = "text_encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight"
    save_file(load_file(file) | {text: torch.ones(2, tiny.WIDTH)}, tmp_path / "both.safetensors")
    with pytest.warns(UserWarning, match="1 of its .* tensors do not belong to the unet"):
        again = load(model, lora=LoRA(rank=2, targets=TARGETS, file=str(tmp_path / "both.safetensors")))
    assert torch.allclose(our_pictures(again), our_pictures(policy), atol=1e-5)

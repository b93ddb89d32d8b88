"""`tastemaker mix`: one LoRA file, the same through this program's loader and diffusers' own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import runs
import tastemaker
from tastemaker.evaluation.evaluate import Trial, draw_pictures
from tastemaker.evaluation.mixing import Member, mixed, reduced
from tastemaker.exports.diffusers import save
from tastemaker.flags import joined
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load, quiet
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.prompts import Prompts
from tastemaker.subjects import adapter_of, lora_of

KEY, STEPS, GUIDANCE = Key(5, "evaluation"), 4, 3.0
PROMPTS = Prompts.of(["a red cat", "two dogs"])
NAME = "pytorch_lora_weights.safetensors"


def made(folder: Path, rank: int, targets: tuple[str, ...], dora: bool = False) -> Path:
    """The LoRA file of a model tuned by chance."""
    policy = load(runs.model(), lora=LoRA(rank=rank, alpha=2.0 * rank, targets=targets, dora=dora))
    random = torch.Generator().manual_seed(rank)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=random))
    return save(policy, folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of other ranks, and of layers that they share in part: attention in both, convolutions and linear ones in one."""
    home = tmp_path_factory.mktemp("loras")
    one = made(home / "one", 2, ("to_q", "conv1", "proj_in"))
    return one, made(home / "two", 3, ("to_q", "to_out.0", "ff.net.0.proj"))


def ours(lora: str | None) -> Tensor:
    policy = load(runs.model(), lora=lora_of(lora) if lora else None)
    return draw_pictures(policy, Trial(PROMPTS, STEPS, GUIDANCE, DDIM(0.0), 5), KEY, PROMPTS)


def theirs(file: Path | None) -> Tensor:
    with quiet():
        pipe = StableDiffusionPipeline.from_pretrained(runs.model(), use_safetensors=True)
        if file:
            pipe.load_lora_weights(str(file))
    pipe.set_progress_bar_config(disable=True)
    x = KEY.noise("x0", 0, PROMPTS.ids, (4, 8, 8))
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "eta": 0.0, "output_type": "pt"}
    return pipe(list(PROMPTS), latents=x, **settings).images


def mix(*words: str) -> str:
    return runs.train(["mix", *words]).out


def test_a_mix_is_one_file_and_shows_the_same_in_diffusers(files: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = map(str, files)
    out = mix(one, two, "--weights", "-.4", "1.2", "--output", str(tmp_path / "mix"))
    file = tmp_path / "mix" / NAME
    assert out == f"  -0.4 {one} + 1.2 {two}: 32 layers, rank 5\n  {file}\n" and os.listdir(file.parent) == [NAME]
    drawn = ours(str(file.parent))
    assert (drawn - theirs(file)).abs().max() < 1e-4
    apart = [(drawn - ours(other)).abs().max() for other in (None, one, two)]
    assert min(apart) > 0.02, apart
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["mix"] == "-0.4 one + 1.2 two"
        assert all(re.match(r"unet\..*\.lora\.(up|down)\.weight$", key) for key in opened.keys())
    weights = {one: -0.4, two: 1.2}
    again = tastemaker.mix(weights, output=tmp_path / "again.safetensors")
    assert again.read_bytes() == file.read_bytes()


def test_the_network_changes_by_the_sum_of_the_changes(files: tuple[Path, Path], tmp_path: Path) -> None:
    """The weights that diffusers computes with, against those of each file alone."""

    def fused(file: Path | None) -> dict[str, Tensor]:
        with quiet():
            pipe = StableDiffusionPipeline.from_pretrained(runs.model(), use_safetensors=True)
            if file:
                pipe.load_lora_weights(str(file))
                pipe.fuse_lora()
                pipe.unload_lora_weights()
        return {name: tensor.double() for name, tensor in pipe.unet.state_dict().items()}

    tastemaker.mix({files[0]: 0.5, files[1]: 0.25, "base": 0.25}, output=tmp_path / "mix.safetensors")
    base, one, two, both = map(fused, (None, *files, tmp_path / "mix.safetensors"))
    for name, tensor in both.items():
        expected = base[name] + 0.5 * (one[name] - base[name]) + 0.25 * (two[name] - base[name])
        assert torch.allclose(tensor, expected, atol=1e-6), name


def test_weight_1_is_the_lora_and_weight_0_the_base_bit_for_bit(files: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = map(str, files)
    mix(one, two, "base", "--weights", "1", "0", "3", "--output", str(tmp_path / "same"))
    same, before = load_file(tmp_path / "same" / NAME), load_file(one)
    assert same.keys() == before.keys() and all(torch.equal(same[name], before[name]) for name in same)
    assert torch.equal(ours(str(tmp_path / "same")), ours(one))
    mix(one, two, "--weights", "0", "0", "--output", str(tmp_path / "none.safetensors"))
    assert torch.equal(ours(str(tmp_path / "none.safetensors")), ours(None))
    assert (theirs(tmp_path / "none.safetensors") - theirs(None)).abs().max() < 1e-6


def test_a_dora_is_not_mixed_and_the_reason_is_told(files: tuple[Path, Path], tmp_path: Path) -> None:
    dora = made(tmp_path, 2, ("to_q",), dora=True)
    ran = runs.call("mix", str(dora), str(files[0]), "--weights", ".5", ".5", "--output", str(tmp_path / "mix"))
    assert ran.code == 2 and ran.err.startswith(f"tastemaker: {dora} is a DoRA: it stretches the rows"), ran.err
    assert not (tmp_path / "mix").exists()
    assert torch.allclose(ours(str(dora)), theirs(dora), atol=1e-4)  # alone it is drawn with


def test_a_lower_rank_tells_its_error(files: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = map(str, files)
    out = mix(one, two, "--weights=.5", ".5", "--rank", "2", "--output", str(tmp_path))
    _, lost = reduced(mixed([Member(word, adapter_of(word)[1], 0.5) for word in (one, two)]), 2)
    said = re.search(r"rank 2\n  relative error (\S+); (\S+) in the worst layer, (\S+)\n", out)
    assert said and said[3] == lost.layer and 0 < lost.total < lost.worst < 1
    assert float(said[1]) == pytest.approx(lost.total, rel=5e-3)
    assert float(said[2]) == pytest.approx(lost.worst, rel=5e-3)
    assert (ours(str(tmp_path)) - theirs(tmp_path / NAME)).abs().max() < 1e-4


def test_a_run_is_named_by_its_folder(files: tuple[Path, Path], tmp_path: Path) -> None:
    run = runs.plain()
    assert "rank 6\n" in mix(
        str(run), str(files[0].parent), "base", "--weights", ".5,.25", ".25", "--output", str(tmp_path)
    )
    mix(str(run), "--weights", ".5", "--output", str(tmp_path / "half"))
    half, whole = load_file(tmp_path / "half" / NAME), load_file(run / runs.LORA)
    assert half.keys() == whole.keys()
    assert all(torch.equal(half[n], t * (0.5 if ".up." in n else 1)) for n, t in whole.items())


MISTAKES = [
    ("mix {one} {two} --weights .5 --output x", "there are 2 LoRAs ({one}, {two}) and 1 --weights: one for each"),
    ("mix {one} --weights .5 .5 --output x", "there are 1 LoRAs ({one}) and 2 --weights: one for each"),
    ("mix {one} --weights nan --output x", "--weights: nan is not a finite number."),
    ("mix {one} --weights .5,half --output x", "--weights: 'half' is not a number. Write them with spaces"),
    ("mix {one} --weights --output x", "--weights needs a value."),
    ("mix {one} --output x", "mix needs --weights."),
    ("mix {one} --weights 1", "mix needs --output."),
    ("mix {one} --wieghts 1 --output x", "--wieghts is not a flag of tastemaker mix.  Did you mean `--weights`?"),
    ("mix base base --weights 1 0 --output x", "there is nothing but `base` to mix"),
    ("mix {one} --weights 1 --output x --rank 0", "--rank is 0; it is positive."),
    ("mix --weights 1 --output x --overwrite {one}", "--overwrite takes no value, found '{one}'"),
    ("mix {one} --weights 1 --output {home}/two", "--output {home}/two: {home}/two/" + NAME + " is there already."),
    ("mix {one} --weights 1 --output {home}/text/x", "--output {home}/text/x: give FILE.safetensors, or a folder"),
    ("mix shapes --weights 1 --output x", "shapes is a whole model, and a LoRA is needed. The untuned model is called"),
    ("mix {model} --weights 1 --output x", "{model} is a whole model, and a LoRA is needed."),
    ("mix {home}/no.safetensors --weights 1 --output x", "{home}/no.safetensors: no LoRA file in safetensors format"),
    ("mix {home}/text --weights 1 --output x", "{home}/text: no LoRA file in safetensors format could be read"),
    (
        "mix {one} {home}/wide.safetensors --weights 1 1 --output x",
        "{one} and {home}/wide.safetensors are LoRAs of dif",
    ),
]


@pytest.mark.parametrize(("line", "said"), MISTAKES)
def test_a_mistake_is_one_message_and_leaves_nothing(
    files: tuple[Path, Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    said: str,
) -> None:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.chdir(tmp_path)
    (home / "text").write_text("mine")
    (home / "two").mkdir()
    (home / "two" / NAME).write_text("mine")
    wide = {n: torch.cat([t, t], 1) if ".down." in n else t for n, t in load_file(files[0]).items()}
    save_file(wide, home / "wide.safetensors")

    def filled(text: str) -> str:
        names = {"one": files[0], "two": files[1], "home": home, "model": runs.model()}
        return re.sub(r"\{(\w+)\}", lambda name: str(names[name[1]]), text)

    ran = runs.call(*filled(line).split())
    assert (ran.code, ran.out) == (2, "") and ran.err.startswith(f"tastemaker: {filled(said)}"), ran.err
    assert ran.err.count("\n") == 1 and list(tmp_path.iterdir()) == []
    assert (home / "two" / NAME).read_text() == "mine"


def test_what_is_there_is_replaced_whole_and_when_asked_for(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (str(files[0]), "--weights", "1", "--output", str(tmp_path), "--overwrite")
    (tmp_path / NAME).write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert runs.call("mix", *asked).code == 2
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(NAME, "old")]
    mix(*asked)
    assert len(load_file(tmp_path / NAME)) == len(load_file(files[0]))


def test_runs_of_different_models_are_told_of(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Their shapes fit, as those of Stable Diffusion 1.4 and 1.5 do."""
    other = tmp_path / "other"
    config = (runs.plain() / "config.yaml").read_text().replace(runs.model(), "somebody/fine-tuned")
    for path in ("lora", "evaluations.jsonl"):
        other.mkdir(exist_ok=True)
        (other / path).symlink_to(runs.plain() / path)
    (other / "config.yaml").write_text(config)
    with pytest.warns(UserWarning, match="tuned different base models: .*plain of .*, .*other of somebody/fine-tuned"):
        tastemaker.mix({runs.plain(): 0.5, other: 0.5}, output=tmp_path / "mix")


def test_numbers_behind_a_flag_are_its_values() -> None:
    line = "a --mix 0 .25 -1 --seed 3 b --mix=.5 1,2 c"
    assert joined(line.split(), "--mix") == ["a", "--mix=0,.25,-1", "--seed", "3", "b", "--mix=.5,1,2", "c"]
    assert joined(["--mix", "--seed"], "--mix") == ["--mix", "--seed"]

"""`shapes-flow`: its export is a whole model but for the autoencoder, which it shares with `shapes`."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file
from torch import nn

import runs
from tastemaker import config
from tastemaker.memory import Setup, estimate
from tastemaker.policy import load as loading
from tastemaker.policy import pipelines
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import elsewhere, find, load, quiet
from tastemaker.shapes import assets, captions, export, flow, flow_training, gates, models

SAYS = "tastemaker_flow.json"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """assets/flow of a checkpoint as pretraining leaves it, whose average is not its weights; nothing is trained."""
    home = tmp_path_factory.mktemp("flow")
    words = models.tokenizer(home / "words")
    torch.manual_seed(0)
    net, texts = flow.transformer(), nn.ModuleList(flow.text_encoders(words))
    modules = nn.ModuleDict({"transformer": net, "texts": texts})
    shadow = [torch.randn(p.shape) * 0.05 for p in modules.parameters()]
    torch.save({"modules": modules.state_dict(), "shadow": shadow, "step": 3, "seconds": 9.0}, home / "paths.pt")
    export.main(["flow", "--folder", str(home), "--assets", str(home / "assets")])
    return home / "assets" / "flow"


@pytest.fixture
def named(exported: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the built-in model, which is the exported one meanwhile."""
    monkeypatch.setattr(assets, "flow", lambda: exported)
    return "shapes-flow"


def test_the_export_is_small_half_precision_and_tells_no_paths(exported: Path) -> None:
    files = {path.relative_to(exported).as_posix(): path for path in exported.rglob("*") if path.is_file()}
    parts = {"transformer", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"}
    assert {path.name for path in exported.iterdir()} == parts | {"model_index.json", "tastemaker.json", assets.SUMS}
    assert sum(path.stat().st_size for path in files.values()) <= 7_000_000
    for name, path in files.items():
        if name.endswith(".safetensors"):
            assert {t.dtype for t in load_file(path).values() if t.is_floating_point()} == {torch.float16}
        elif name.endswith("config.json") or name == "model_index.json":
            assert "_name_or_path" not in path.read_text() and str(exported.parent) not in path.read_text()
    for name, width in zip(("text_encoder", "text_encoder_2"), flow.WIDTHS, strict=True):
        keys = load_file(exported / name / "model.safetensors")
        assert {key.partition(".")[0] for key in keys} == {"text_model", "text_projection"}
        assert keys["text_projection.weight"].shape == (width, width)
        assert {"vocab.json", "merges.txt", "tokenizer.json"} <= set(map(str, _names(exported / "tokenizer")))
    assert json.loads(files["model_index.json"].read_text())["vae"] == ["diffusers", "AutoencoderKL"]
    sums = json.loads(files[assets.SUMS].read_text())
    assert sums == {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in files.items() if n != assets.SUMS}


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_it_is_the_average_of_the_weights(exported: Path) -> None:
    state = torch.load(exported.parents[1] / "paths.pt", weights_only=True)
    words = models.tokenizer(exported.parents[1] / "words")
    modules = nn.ModuleDict({"transformer": flow.transformer(), "texts": nn.ModuleList(flow.text_encoders(words))})
    found = load_file(exported / "transformer" / "diffusion_pytorch_model.safetensors")
    wanted = dict(zip((name for name, _ in modules.named_parameters()), state["shadow"], strict=True))
    for name, tensor in found.items():
        if name != "pos_embed.pos_embed":
            assert torch.equal(tensor, wanted[f"transformer.{name}"].half()), name


def test_the_sums_are_checked_and_what_is_missing_is_told(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(assets, "flow", assets.flow.__wrapped__)
    with pytest.raises(ValueError, match=r"the built-in model is incomplete: .*SHA256SUMS.json is missing. Install"):
        load("shapes-flow", lora=None)
    shutil.copytree(exported, tmp_path / "flow")
    assert loading.folder("shapes-flow") == tmp_path / "flow"
    (tmp_path / "flow" / "transformer" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="the built-in model is damaged: .*config.json is not as released"):
        loading.folder("shapes-flow")


def test_it_takes_its_autoencoder_from_shapes(named: str, exported: Path, tmp_path: Path) -> None:
    assert find(named).elsewhere == elsewhere(exported) == {"vae": assets.folder() / "vae"}
    policy, other = load(named, lora=None), load("shapes", lora=None)
    assert policy.latent_shape == models.LATENT_SHAPE
    x0 = torch.randn(2, *models.LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(policy.decode(x0), other.decode(x0))
    policy.save_pipeline(tmp_path / "whole")
    assert (tmp_path / "whole" / "vae" / "diffusion_pytorch_model.safetensors").is_file()
    assert not (tmp_path / "whole" / "tastemaker.json").exists()
    with quiet():  # plain diffusers needs nothing else
        StableDiffusion3Pipeline.from_pretrained(tmp_path / "whole", text_encoder_3=None, tokenizer_3=None)
    drawn: Any = pipelines.plain(find(named), torch.float32)  # as a model card has it
    assert torch.equal(drawn.vae.post_quant_conv.weight, policy.pipeline().vae.post_quant_conv.weight)
    schedule = policy.schedule(4)
    with torch.no_grad():
        one, two = (
            p.predict(x0, 0, schedule, p.encode(["a red circle"] * 2), 3.0).x0
            for p in (policy, load(str(tmp_path / "whole"), lora=None))
        )
    assert torch.equal(one, two)


def test_a_part_of_a_model_that_is_not_built_in_is_refused(exported: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(exported, tmp_path / "m"))
    (home / "tastemaker.json").write_text(json.dumps({"parts": {"vae": "../other"}}))
    with pytest.raises(ValueError, match=r"tastemaker.json: parts.vae is '../other', it is one of shapes, shapes-flow"):
        find(str(home))


def test_its_memory_is_known_and_its_settings_are_those_of_shapes(named: str, exported: Path) -> None:
    found: Any = estimate(Setup(named, LoRA()), cuda=False)
    vae = load_file(assets.folder() / "vae" / "diffusion_pytorch_model.safetensors")
    assert found.of("decoder") == sum(4 * tensor.numel() for tensor in vae.values())
    said, others = config.model_defaults(exported), config.model_defaults(assets.folder())
    assert said["defaults"] == others["defaults"] and said["algorithms"].keys() == others["algorithms"].keys()
    resolved = config.resolve("ddpo", {"model": named, "reward": "jpeg_compressibility"}, said)
    assert resolved.origin["algorithm.images"] == "model" and resolved.run.prompts == "shapes"


def test_it_trains_by_its_name_and_the_gate_judges_it(
    named: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = "--algorithm.images 4 --algorithm.updates 1 --algorithm.steps 4 --iterations 1 --evaluation.count 2"
    few += " --evaluation.images_per_prompt 1 --evaluation.steps 1 --device cpu --lr_warmup_steps 0"
    words = f"train ddpo --model {named} --reward brightness --held_out_rewards brightness {few}"
    runs.train([*words.split(), "--output_dir", str(tmp_path / "r")])
    assert (tmp_path / "r" / runs.LORA).is_file()
    for how in (["--model", named], ["--folder", str(exported)]):
        gates.main(["base", "--count", "8", "--steps", "1", *how])
        assert json.loads(capsys.readouterr().out)["pictures"] == 8


@pytest.mark.parametrize(
    ("parts", "entry", "said"),
    [
        ({"vae": "shapes"}, ["os", "PathLike"], "its model_index.json has vae from 'os', not from diffusers or transf"),
        ({"vae": "mine"}, ["diffusers", "AutoencoderKL"], "parts.vae is 'mine', it is one of shapes"),
        ({"../vae": "shapes"}, ["diffusers", "AutoencoderKL"], r"parts\.\.\./vae: shapes has no part of that name"),
    ],
)
def test_a_shared_part_is_a_built_in_models_own(
    exported: Path, tmp_path: Path, parts: dict[str, str], entry: list[str], said: str
) -> None:
    """What a model's files name is neither imported nor looked for elsewhere."""
    home = Path(shutil.copytree(exported, tmp_path / "model"))
    index, says = (json.loads((home / name).read_text()) for name in ("model_index.json", "tastemaker.json"))
    (home / "model_index.json").write_text(json.dumps(index | {"vae": entry}))
    (home / "tastemaker.json").write_text(json.dumps(says | {"parts": parts}))
    with pytest.raises(ValueError, match=said):
        load(str(home), lora=None)


def test_the_committed_weights_draw_the_world() -> None:
    """A small part of gate 2, which docs/shapes.md has whole: every second caption of one object, once."""
    assert (assets.flow() / "tastemaker.json").read_text() == (Path(assets.__file__).parents[1] / SAYS).read_text()
    texts = [text for text in captions.everything() if (read := captions.read(text)) and read[0] == 1][::2]
    draw = gates._drawer("shapes-flow", steps=20, guidance=3.0, eta=0.0, seed=0)
    with torch.no_grad():
        found = gates.base_gate(draw(texts, 0), texts)
    assert found["pictures"] == 20 and found["colour"] >= 95 and found["shape, single objects"] >= 90


@pytest.mark.parametrize("algorithm", sorted(config.algorithms()))
def test_every_algorithm_has_settings_for_it(algorithm: str) -> None:
    asked = {"model": "shapes-flow", "reward": "jpeg_compressibility"}
    resolved = config.resolve(algorithm, asked, config.model_defaults(assets.flow()))
    schedule = load("shapes-flow", lora=None).schedule(resolved.algorithm.steps)
    assert resolved.algorithm.items(schedule) > 0 and resolved.origin["algorithm.iterations"] == "model"


def test_its_own_chains_lead_where_the_velocity_does() -> None:
    """With the velocity of a world of one picture a chain is a straight line to it, at any guidance."""
    picture = torch.randn(1, *models.LATENT_SHAPE, generator=torch.Generator().manual_seed(1))

    def velocity(x: torch.Tensor, s: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return (x - picture) / s.view(-1, 1, 1, 1)

    own = flow_training.OwnPaths(velocity, torch.zeros(8, dtype=torch.long))
    g = torch.Generator().manual_seed(0)
    own.walk(torch.arange(32).view(4, 8) + 1, g)
    starts = [(x - (1 - s.view(-1, 1, 1, 1)) * picture) / s.view(-1, 1, 1, 1) for x, s, _ in own.places]
    for noise in starts[1:]:
        assert torch.allclose(noise, starts[0], atol=1e-3)
    assert abs(float(starts[0].std()) - 1) < 0.05
    x, s, tokens = own.draw(50, g)
    assert x.shape == (50, *models.LATENT_SHAPE) and 0.01 < float(s.min()) < float(s.max()) < 0.94
    empty = (tokens == 0).all(1)
    assert 5 < int(empty.sum()) < 25 and set(tokens[~empty][:, 0].tolist()) == {1, 9, 17, 25}
    for _ in range(4):
        own.walk(torch.ones(4, 8, dtype=torch.long), g)
    assert len(own.places) <= own.KEPT * own.STEPS and (own.draw(9, g)[2] <= 1).all()  # the first are forgotten

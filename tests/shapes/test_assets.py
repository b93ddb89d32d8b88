"""The built-in model: whole, as released, in the layout that every diffusers program loads."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tastemaker import config
from tastemaker.policy.load import load
from tastemaker.shapes import assets, captions, models
from tastemaker.shapes.drawing import SIZE


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small stand-in for the assets; `assets.folder` looks there, and forgets it afterwards."""
    base = tmp_path / "base"
    (base / "unet").mkdir(parents=True)
    (base / "unet" / "weights").write_bytes(b"weights")
    sums = {"unet/weights": hashlib.sha256(b"weights").hexdigest()}
    (tmp_path / assets.SUMS).write_text(json.dumps(sums))
    monkeypatch.setattr(assets, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(assets, "folder", assets.folder.__wrapped__)
    return base


def test_the_sums_are_checked(fresh: Path) -> None:
    assert assets.folder() == fresh
    (fresh / "unet" / "weights").write_bytes(b"weighty")
    with pytest.raises(ValueError, match="the built-in model is damaged: .*weights is not as released"):
        assets.folder()
    shutil.rmtree(fresh / "unet")
    with pytest.raises(ValueError, match="the built-in model is incomplete: .*weights is missing"):
        assets.folder()


def test_a_judge_with_one_other_byte_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(assets.judge().parent, tmp_path / "judge")
    monkeypatch.setattr(assets, "__file__", str(tmp_path / "__init__.py"))
    file = tmp_path / "judge" / assets.JUDGE
    assert assets.judge.__wrapped__() == file
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    with pytest.raises(ValueError, match="the built-in judge is damaged: .*safetensors is not as released"):
        assets.judge.__wrapped__()
    file.unlink()
    with pytest.raises(ValueError, match="the built-in judge is incomplete: .*safetensors is missing"):
        assets.judge.__wrapped__()


def test_every_file_is_released_small_and_half_precision() -> None:
    base = assets.folder()
    files = {path.relative_to(base).as_posix(): path for path in base.rglob("*") if path.is_file()}
    assert set(files) == set(json.loads((base.parent / assets.SUMS).read_text()))
    assert sum(path.stat().st_size for path in files.values()) <= 12_000_000
    weights = [path for name, path in files.items() if name.endswith(".safetensors")]
    assert len(weights) == 3 and not [name for name in files if name.endswith((".bin", ".pt", ".ckpt"))]
    for path in weights:
        assert {t.dtype for t in load_file(path).values() if t.is_floating_point()} == {torch.float16}
    assert json.loads(files["vae/config.json"].read_text())["shift_factor"] == 0.0


def test_it_is_a_policy_of_this_world() -> None:
    policy = load("shapes", lora=None)
    assert policy.latent_shape == models.LATENT_SHAPE
    text = list(captions.heldout()[:2])
    x = torch.randn(2, *models.LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = policy.predict(x, 0, policy.schedule(10), policy.encode(text), 3.0)
        images = policy.decode(found.x0)
    assert images.shape == (2, 3, SIZE, SIZE) and found.eps.isfinite().all()


def test_one_token_a_word_whatever_reads_the_vocabulary(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    words = models.tokenizer(tmp_path)
    assert {"vocab.json", "merges.txt", "tokenizer.json"} <= {path.name for path in tmp_path.iterdir()}
    again = CLIPTokenizer.from_pretrained(tmp_path)
    for text in captions.everything():
        ids = words(text).input_ids
        assert len(ids) == len(text.split()) + 2 <= models.TEXT_LENGTH and again(text).input_ids == ids
    assert len(words("a zebra").input_ids) > 4  # other words fall apart into letters


def test_the_model_brings_the_settings_of_the_demo() -> None:
    said = config.model_defaults(assets.folder())
    found = config.resolve("ddpo", {"model": "shapes", "reward": "jpeg_compressibility"}, said)
    assert found.run.prompts == "shapes" and found.run.evaluation.prompts == "shapes_heldout"
    assert found.origin["algorithm.images"] == "model" and found.origin["algorithm.advantage_limit"] == "paper"


def test_what_the_model_says_of_itself_is_what_the_package_says_of_it() -> None:
    """An export copies it; a change of one alone would never be read."""
    home = assets.folder()
    assert (home / "tastemaker.json").read_bytes() == (home.parents[1] / "tastemaker.json").read_bytes()

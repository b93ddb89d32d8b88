"""What is in files, prompts and weights, in a few letters: it changes with any of it, and with nothing else."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import runs
from tastemaker import fingerprint, shards
from tastemaker.fingerprint import of_files, of_package, of_prompts, of_weights
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load
from tastemaker.prompts.sources import source


def judge(images: Any, prompts: Any) -> Any:
    return images.mean((1, 2, 3))


def test_files_of_rewards_and_prompts_wherever_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "weights").write_bytes(b"1")
    (tmp_path / "head" / "reward.json").write_text("{}")
    settings: dict[str, Any] = {
        "reward": {"sum": [{"name": "a.py:f", "weight": 1.0}, {"name": "brightness", "weight": 2.0}]},
        "held_out_rewards": ["colour:1,head:0.5", {"name": "isolated", "reward": "a.py:g"}],
        "prompts": "a.py:p",
        "evaluation": {"prompts": ["a cat, a dog", "a cow"]},
    }
    found = of_files(settings)
    assert found.keys() == {"a.py (reward)", "head (held_out_rewards)", "a.py (held_out_rewards)", "a.py (prompts)"}
    assert of_files(settings) == found
    (tmp_path / "a.py").write_text("x = 2\n")
    changed = of_files(settings)
    assert {name for name in found if found[name] != changed[name]} == {name for name in found if "a.py" in name}
    (tmp_path / "head" / "more").write_bytes(b"")
    assert of_files(settings)["head (held_out_rewards)"] != found["head (held_out_rewards)"]
    assert of_files({"reward": "brightness", "prompts": ["a" * 9000], "evaluation": None}) == {}
    for function in (judge, partial(judge, prompts=None)):
        assert of_files({"reward": function}).keys() == {"test_fingerprint.py (reward)"}


TEXTS = [
    "a" * 300,
    "~nobody_of_this_name/x",
    "~",
    "a\0b",
    "a" * 300 + ".py:f",
    "~nobody/x.py:f",
    "/root/x.py:f",
    "",
    ".",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_is_no_path_is_none(text: str) -> None:
    """Of a few hundred letters the disk says that the name is too long, and no error of one process ends the others."""
    settings = {"reward": {"name": "vlm", "question": text}, "held_out_rewards": [], "prompts": text}
    assert of_files(settings) == {}


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "score.py").write_text(folder)
    settings = {"held_out_rewards": [f"{tmp_path}/{folder}/score.py:f" for folder in "ab"]}
    found = of_files(settings)
    assert found.keys() == {"score.py (held_out_rewards)", "score.py (held_out_rewards), number 2"}
    assert len(set(found.values())) == 2
    (tmp_path / "a" / "score.py").write_text("c")
    assert of_files(settings) != found


def test_folders_that_are_no_trained_rewards_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "0.png").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    settings = {"reward": "pictures", "prompts": {"path": str(tmp_path / "pictures")}}
    assert of_files(settings) == {}
    (tmp_path / "pictures" / "reward.json").write_text("{}")
    assert of_files(settings).keys() == {"pictures (reward)", "pictures (prompts)"}


def test_large_folders_count_by_names_and_sizes_and_what_vanishes_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = tmp_path / "head"
    head.mkdir()
    (head / "reward.json").write_text("{}")
    (head / "weights").write_bytes(b"12")
    settings = {"reward": str(head)}
    read = of_files(settings)
    (head / "weights").write_bytes(b"21")
    assert of_files(settings) != read
    monkeypatch.setattr(fingerprint, "ROOM", 3)
    sizes = of_files(settings)
    (head / "weights").write_bytes(b"12")
    assert of_files(settings) == sizes != read
    (head / "weights").write_bytes(b"123")
    assert of_files(settings) != sizes
    monkeypatch.setattr(fingerprint, "ROOM", 2**20)

    def lost(*_: Any, **__: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "open", lost)
    assert set(of_files(settings)) == {"head (reward)"}
    monkeypatch.setattr(Path, "rglob", lost)
    assert set(of_files(settings).values()) == {fingerprint.UNREADABLE}


def test_every_prompt_and_its_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"a {k}" for k in range(2500)]
    found = {
        of_prompts(source(texts)),
        of_prompts(source([*texts[:-1], "another"])),
        of_prompts(source(list(reversed(texts)))),
        of_prompts(source([(text, {"count": 1}) for text in texts])),
        of_prompts(source([(text, object()) for text in texts])),
    }
    assert len(found) == 5 and "" not in found
    assert of_prompts(source([(text, object()) for text in texts])) in found  # no address is in it
    assert of_prompts(source(lambda: "a cat")) == ""
    monkeypatch.setattr(fingerprint, "MOST", 10)
    assert of_prompts(source(texts)) == ""


def test_the_text_of_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert of_package() == of_package()
    monkeypatch.setattr(fingerprint, "PACKAGE", tmp_path)
    (tmp_path / "a.py").write_text("ab")
    first = of_package()
    (tmp_path / "a.pyc").write_text("not compared")
    assert of_package() == first
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert of_package() != first


@pytest.mark.parametrize("few", [2**30, 0], ids=["bits", "sums"])
@pytest.mark.parametrize("part", ["trained", "unet", "vae", "text_encoder"])
def test_one_bit_of_one_weight(part: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "FEW", few)
    policy: Any = load(runs.model(), lora=LoRA(rank=2), sets=("base", "ema"))
    before = of_weights(policy)
    assert of_weights(load(runs.model(), lora=LoRA(rank=2))) == before  # type: ignore[arg-type]
    tensors = policy.named_parameters() if part == "trained" else policy.frozen()[part]
    tensor = next(one for name, one in sorted(tensors.items()) if one.dtype == torch.float32 and one.numel() > 1)
    tensor.data.flatten().view(torch.int32)[1] ^= 1
    after = of_weights(policy)
    (changed,) = (name for name in before if before[name] != after[name])
    assert changed == ("trained weights" if part == "trained" else f"frozen {part}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (7, 5), (64, 3)])
def test_the_sum_is_of_the_bits_wherever_they_lie(
    dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = torch.randint(0, 2, shape).to(dtype) * 1
    tensor = tensor.to(dtype)
    whole = shards.bits(tensor)
    assert shards.bits(tensor.clone()) == whole
    if tensor.ndim == 2:  # another layout of the same numbers, and a place that is not one of eight bytes
        assert shards.bits(tensor.t().contiguous().t()) == whole
        assert shards.bits(torch.cat([tensor[:1], tensor])[1:]) == whole
    monkeypatch.setattr(shards, "CHUNK", 16)
    assert shards.bits(tensor) % 2**64 == whole % 2**64

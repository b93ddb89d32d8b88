"""Weights of reward networks: where they are found, what a file may hold, what is said where they are not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

import fake_hub
import hub_cache
from tastemaker.rewards import weights
from tastemaker.rewards.weights import Published, filled, find, read, source, weights_in

COMMIT = "c" * 40
JUDGE = Published("owner/judge", 1234, COMMIT)


def make() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5), nn.Linear(2, 1))
    network.register_buffer("places", torch.arange(4), persistent=False)
    return network


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return make().state_dict()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "judge"
    home.mkdir()
    save_file(state(), home / "model.safetensors")
    (home / "config.json").write_text("{}")
    return home


# ---- where they lie


def test_a_folder_and_a_file_are_themselves(folder: Path, cache: Path) -> None:
    for path in (folder, folder / "model.safetensors"):
        assert find(source(str(path), JUDGE), reward="judge") == path


def test_another_model_is_not_pinned_to_the_published_commit() -> None:
    assert source("owner/judge", JUDGE) == JUDGE
    assert source("owner/judge", JUDGE, "main").revision == "main"
    assert source("other/judge", JUDGE)[:3] == ("other/judge", 0, None)


def test_what_the_cache_holds_is_not_asked_for(folder: Path, cache: Path) -> None:
    (folder / "extra.bin").write_text("not read")
    home = hub_cache.publish(cache, "owner/judge", folder, revision="main")
    assert find(JUDGE._replace(revision=None), reward="judge") == home
    assert find(JUDGE._replace(revision=home.name), reward="judge") == home
    (home / "config.json").unlink()
    with pytest.raises(ValueError, match=r"^reward `judge` needs owner/judge \(1234 MB\), which is neither on"):
        find(JUDGE._replace(revision=None), reward="judge")


def test_offline_the_message_says_what_how_large_and_what_to_do(cache: Path) -> None:
    with pytest.raises(ValueError) as caught:
        find(JUDGE, reward="judge", setting="model")
    said = str(caught.value)
    for part in ("judge", "1234 MB", "Needed: model.safetensors or pytorch_model.bin, config.json.", "HF_HUB_OFFLINE"):
        assert part in said
    assert f"`hf download owner/judge --revision {COMMIT}`" in said and "--reward.model PATH" in said
    assert "\n" not in said


@pytest.mark.parametrize("model", ["no/such/folder", "missing.safetensors", "a/missing.pt", "plain", "../up"])
def test_what_is_neither_a_path_nor_an_id(model: str, cache: Path) -> None:
    with pytest.raises(ValueError, match=r"^model is '.*': there is no such file or folder, nor is it a hub id"):
        find(source(model, JUDGE), reward="judge")


def test_a_refusal_is_told_without_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with fake_hub.running(monkeypatch) as hub:
        hub.refuse["/api/models/"] = 403
        with pytest.raises(ValueError, match="reward `judge` needs owner/judge") as caught:
            find(JUDGE, reward="judge")
        assert fake_hub.TOKEN not in str(caught.value)
        hub.refuse.clear()  # it answers, and has no files
        with pytest.raises(ValueError, match=r"it holds no model\.safetensors or pytorch_model\.bin, no config\.json"):
            find(JUDGE, reward="judge")
    assert weights._reason(ValueError(f"Bearer {fake_hub.TOKEN}, no\nmore")) == "Bearer hf_..., no"


def test_a_download_takes_one_file_of_weights_and_what_is_beside_it(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = ["pytorch_model.bin", "model.safetensors", "config.json", "vocab.json", "optimizer.bin"]
    asked: list[tuple[str, str]] = []

    def answer(name: str, **about: Any) -> SimpleNamespace:
        assert about["revision"] == COMMIT and about["timeout"] > 0
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in held])

    def download(name: str, file: str, *, revision: str | None) -> str:
        asked.append((file, str(revision)))
        return str(tmp_path / "snapshot" / file)

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=answer))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    wanted = JUDGE._replace(welcome=("vocab.json", "merges.txt"))
    assert find(wanted, reward="judge") == tmp_path / "snapshot"
    assert asked == [(file, COMMIT) for file in ("model.safetensors", "config.json", "vocab.json")]


def test_a_name_that_comes_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.BUILT_IN, "small", "tastemaker.shapes.assets:folder")
    assert (find(source("small", JUDGE), reward="judge") / "model_index.json").is_file()


# ---- what is in a file


def test_the_weights_of_a_folder(folder: Path) -> None:
    assert weights_in(folder, reward="judge").name == "model.safetensors"
    assert weights_in(folder / "model.safetensors", reward="judge") == folder / "model.safetensors"
    (folder / "model.safetensors").rename(folder / "head.pth")
    assert weights_in(folder, reward="judge").name == "head.pth"
    (folder / "other.pt").touch()
    with pytest.raises(ValueError, match=r"holds head\.pth, other\.pt\. Needed is model\.safetensors or pytorch_"):
        weights_in(folder, reward="judge")
    assert weights_in(folder, ("other.pt",), reward="judge").name == "other.pt"


@pytest.mark.parametrize("wrap", [dict, lambda held: {"state_dict": held, "epoch": 3}], ids=["plain", "checkpoint"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_files_of_torch_are_read_without_pickle(wrap: Any, prefix: str, tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    torch.save(wrap({prefix + name: value for name, value in state().items()}), file)
    found = read(file, reward="judge")
    assert found.keys() == state().keys() and all(torch.equal(found[name], value) for name, value in state().items())


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return print, ("it ran",)

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "text.safetensors").write_text("words")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, said in (("evil.pt", "is no file of weights"), ("text.safetensors", "is no file"), ("list.pt", "other")):
        with pytest.raises(ValueError, match=f"^reward `judge`: .*{said}"):
            read(tmp_path / name, reward="judge")


def test_a_network_is_filled_frozen_and_whole(tmp_path: Path) -> None:
    held = state() | {"more": torch.ones(1)}
    network = filled(make, held, file=tmp_path, reward="judge", dtype=torch.bfloat16)
    assert not network.training and not any(weight.requires_grad for weight in network.parameters())
    assert network.state_dict().keys() == state().keys()
    assert torch.equal(network[0].weight, held["0.weight"].bfloat16())  # type: ignore[index]
    assert network.get_buffer("places").tolist() == [0, 1, 2, 3]


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(tmp_path: Path) -> None:
    held = state()
    held["2.weight"] = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"2\.weight in .* is \[3, 2\], needed is \[1, 2\]"):
        filled(make, held, file=tmp_path, reward="judge", dtype=torch.float32)
    del held["0.bias"]
    with pytest.raises(ValueError, match=r"holds no 0\.bias"):
        filled(make, held, file=tmp_path, reward="judge", dtype=torch.float32)

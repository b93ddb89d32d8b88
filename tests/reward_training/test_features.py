"""Each picture is looked at once, by its content; what was seen is kept, and a kill costs little."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tiny_clip
from tastemaker.reward_training import features
from tastemaker.reward_training.features import Cache, Eye, Rows, look, marks_of, read
from tastemaker.rewards.head import Looking


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Eye:
    return Eye(str(tiny_clip.write(tmp_path_factory.mktemp("clip"))))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = []
    for number, picture in enumerate(tiny_clip.pictures(40, 48, 9)):
        found.append(tmp_path / f"{number}.png")
        Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(found[-1])
    return found


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures the network was shown, call by call."""
    counts: list[int] = []
    whole = Looking.look_at

    def counted(self: Looking, pixels: torch.Tensor) -> Any:
        counts.append(len(pixels))
        return whole(self, pixels)

    monkeypatch.setattr(Looking, "look_at", counted)
    return counts


def looked(files: list[Path], network: Eye, cache: str) -> features.Table:
    return look(files, marks_of(files), network, Cache(cache, network.mark))


def test_what_is_seen_is_what_the_network_gives(files: list[Path], network: Eye) -> None:
    found = looked(files, network, "")
    pictures = tiny_clip.pictures(40, 48, 9)
    assert torch.allclose(found.held["picture"], network.see(pictures), atol=1e-6)
    hidden = network.network.vision_model(pixel_values=network.prepared(pictures)).last_hidden_state
    assert torch.allclose(found.held["tokens"], hidden[:, 1:].mean(1), atol=1e-6)
    assert found.which.tolist() == list(range(9))


def test_pictures_of_other_sizes_stand_beside_each_other(tmp_path: Path, files: list[Path], network: Eye) -> None:
    Image.open(files[0]).resize((91, 33)).save(tmp_path / "wide.png")
    Image.open(files[1]).convert("L").save(tmp_path / "grey.png")
    assert len(looked([*files, tmp_path / "wide.png", tmp_path / "grey.png"], network, "").held["picture"]) == 11


def test_the_same_content_is_looked_at_once(files: list[Path], network: Eye, tmp_path: Path, looks: list[int]) -> None:
    twin = tmp_path / "twin.png"
    twin.write_bytes(files[3].read_bytes())
    found = looked([*files, twin], network, "")
    assert sum(looks) == 9 and int(found.which[9]) == 3


def test_what_was_seen_is_kept_by_content(files: list[Path], network: Eye, tmp_path: Path, looks: list[int]) -> None:
    cache = str(tmp_path / "cache")
    first = looked(files, network, cache)
    files[0].rename(tmp_path / "another name.png")
    second = looked([tmp_path / "another name.png", *files[1:]], network, cache)
    assert sum(looks) == 9 and torch.equal(first.held["tokens"], second.held["tokens"])
    (tmp_path / "another name.png").write_bytes(files[1].read_bytes())  # other content under the same name
    third = looked([tmp_path / "another name.png", *files[1:]], network, cache)
    assert sum(looks) == 9 and third.which.tolist()[:2] == [0, 0]


def test_another_network_or_way_to_resize_is_looked_at_anew(
    files: list[Path], network: Eye, tmp_path: Path, looks: list[int]
) -> None:
    cache = str(tmp_path / "cache")
    looked(files, network, cache)
    looked(files, Eye(network.model, preprocess="bilinear"), cache)
    assert sum(looks) == 18 and len(list((tmp_path / "cache").iterdir())) == 2


def test_a_damaged_file_counts_as_none(files: list[Path], network: Eye, tmp_path: Path, looks: list[int]) -> None:
    cache = tmp_path / "cache"
    first = looked(files, network, str(cache))
    (held,) = cache.glob("*/*.safetensors")
    held.write_bytes(held.read_bytes()[:100])
    with pytest.warns(UserWarning, match="is damaged and passed over"):
        second = looked(files, network, str(cache))
    assert sum(looks) == 18 and torch.equal(first.held["picture"], second.held["picture"])


def test_a_kill_costs_one_file_at_most_and_changes_no_bit(
    files: list[Path], network: Eye, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: list[int]
) -> None:
    monkeypatch.setattr(features, "BATCH", 2)
    monkeypatch.setattr(features, "SHARD", 4)
    straight = looked(files, network, "")
    looks.clear()
    whole = features.Cache.keep

    def killed(self: Cache, marks: Any, held: Any) -> None:
        if sum(looks) > 4:
            raise KeyboardInterrupt
        whole(self, marks, held)

    monkeypatch.setattr(features.Cache, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        looked(files, network, str(tmp_path / "cache"))
    monkeypatch.setattr(features.Cache, "keep", whole)
    looks.clear()
    again = looked(files, network, str(tmp_path / "cache"))
    assert sum(looks) == 5
    assert torch.equal(again.held["picture"], straight.held["picture"]) and torch.equal(
        again.held["tokens"], straight.held["tokens"]
    )


def test_a_full_disk_costs_time_alone(files: list[Path], network: Eye, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="what was seen is not kept"):
        found = looked(files, network, str(tmp_path / "cache"))
    assert len(found.held["picture"]) == 9


def test_a_broken_picture_is_named(tmp_path: Path, files: list[Path], network: Eye) -> None:
    files[4].write_bytes(files[4].read_bytes()[:60])
    with pytest.raises(ValueError, match=r"4\.png is no picture that can be read"):
        looked(files, network, "")


def test_texts_are_read_once_and_kept(network: Eye, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(str(tmp_path), network.mark)
    found = read(["a cat", "a dog", "a cat"], network, cache)
    assert found.held["words"].shape[0] == 2 and found.which.tolist() == [0, 1, 0]
    assert torch.allclose(found.held["words"], network.read(["a cat", "a dog"]))
    monkeypatch.setattr(Eye, "read", None)
    assert torch.equal(read(["a dog"], network, cache).held["words"], found.held["words"][1:])


def test_a_network_is_its_weights_its_config_and_how_pictures_are_resized(network: Eye, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(network.model, folder)
    assert Eye(str(folder)).mark == network.mark
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "quick_gelu"
    (folder / "config.json").write_text(json.dumps(config))
    assert len({Eye(str(folder)).mark, network.mark, Eye(network.model, preprocess="bilinear").mark}) == 3


def test_parts_of_a_row(files: list[Path], network: Eye) -> None:
    table, words = looked(files[:3], network, ""), ["a cat", "a dog", "a bird"]
    parts = ("picture", "tokens", "words", "cosine")
    made = Rows(parts, table, table.which, read(words, network, Cache("", "")))
    found, wide = made(torch.arange(3)), table.held["picture"].shape[1]
    assert found.shape == (3, 2 * wide + 32 + 1) == (len(made), made.width)
    assert torch.equal(found[:, :wide], table.held["picture"])
    assert torch.equal(found[:, wide : wide + 32], table.held["tokens"])
    assert torch.allclose(found[:, -1], found[:, wide + 32 : -1].sum(1), atol=1e-6)
    assert torch.allclose(found[:, -1], network.cosine(tiny_clip.pictures(40, 48, 9)[:3], words), atol=1e-6)
    assert torch.equal(made(torch.tensor([2, 0])), found[[2, 0]])

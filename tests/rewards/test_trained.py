"""Trained rewards: what their folder says is what they score, with a gradient, and nothing else is taken for one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import runs
import tastemaker as tm
import tiny_clip
from labelled import drawn, votes
from tastemaker import cli
from tastemaker.build import plain
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import named
from tastemaker.rewards.head import Head, Looking, rows
from tastemaker.rewards.reward import check
from tastemaker.rewards.server import identity
from tastemaker.rewards.trained import Trained

TEXTS = ["a red circle", "two blue squares", "a green star", "a red circle"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("labels")
    taught = tm.train_reward(
        "preference", data=votes(place, 80), model="shapes", epochs=30, cache="", output_dir=place / "my taste"
    )
    return taught.folder


@pytest.fixture
def pictures() -> torch.Tensor:
    return drawn(80)[0][:4]


def test_its_score_is_the_head_of_what_is_seen(folder: Path, pictures: torch.Tensor) -> None:
    eye = Looking("shapes")
    state = load_file(folder / "head.safetensors")
    state.pop("probe")
    with torch.no_grad():
        wanted = Head.of(state)(rows(["picture", "tokens", "cosine"], eye.look(pictures), eye.read(TEXTS)))
        found = named(str(folder))(pictures, TEXTS).value
    assert torch.allclose(found, wanted, atol=1e-6) and float(found.std()) > 0.1


def test_it_keeps_the_contract(folder: Path, pictures: torch.Tensor) -> None:
    reward = named(str(folder))
    check(reward, pictures, Prompts.of(TEXTS))
    assert reward.name == "my taste"
    one_by_one = torch.cat([reward(pictures[k : k + 1], TEXTS[k : k + 1]).value for k in range(4)])
    assert torch.allclose(one_by_one, reward(pictures, TEXTS).value, atol=1e-5)


def test_its_gradient_is_that_of_finite_differences(folder: Path, pictures: torch.Tensor) -> None:
    reward = Trained(folder=str(folder))
    reward.network.double()
    x = pictures[:1].double().clamp(0.1, 0.9).requires_grad_()
    reward(x, TEXTS[:1]).sum().backward()
    along = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        up, down = (reward(x + step * along, TEXTS[:1]) for step in (1e-4, -1e-4))
    assert float((x.grad * along).sum()) == pytest.approx(float((up - down) / 2e-4), rel=2e-3)


def test_without_parts_that_read_there_is_no_half_that_reads(tmp_path: Path) -> None:
    data = votes(tmp_path, 60)
    taught = tm.train_reward("preference", data=data, model="shapes", features=("tokens",), epochs=3, cache="",
                             output_dir=tmp_path / "r")  # fmt: skip
    reward = Trained(folder=str(taught.folder))
    assert not hasattr(reward.network, "text_model")
    assert torch.equal(reward(drawn(60)[0][:2], ["x", "y"]), reward(drawn(60)[0][:2], ["", "z"]))


def test_what_is_served_changes_with_the_head(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "my taste"
    shutil.copytree(folder, other)
    state = load_file(other / "head.safetensors")
    save_file({**state, "layers.0.weight": state["layers.0.weight"] + 1e-3}, other / "head.safetensors")
    assert identity(named(str(folder))).weights != identity(named(str(other))).weights


def test_it_stands_in_sums_and_takes_settings(folder: Path, pictures: torch.Tensor) -> None:
    alone = named(str(folder))(pictures, TEXTS).value
    both = named(f"{folder}:2,brightness:1")(pictures, TEXTS)
    assert torch.allclose(both.parts["my taste"], alone) and both.parts.keys() == {"my taste", "brightness"}
    coarse = named({"name": str(folder), "dtype": "bfloat16"})(pictures, TEXTS).value
    assert torch.allclose(coarse, alone, atol=0.3) and not torch.equal(coarse, alone)
    with pytest.raises(ValueError, match=r"--reward\.tokens is not a setting of my taste"):
        named({"name": str(folder), "tokens": "x"}, key="--reward")


def test_a_run_is_trained_on_it_and_goes_on(folder: Path, tmp_path: Path) -> None:
    few = runs.small(tmp_path / "run", "--algorithm.updates", "1", "--iterations", "1")
    argv = ["train", "draft", *few[2:], "--reward", str(folder), "--held_out_rewards", f"({folder}:1,brightness:1)"]
    assert runs.train(argv).code == 0
    assert runs.settings(tmp_path / "run")["reward"] == str(folder)
    (row,) = runs.metrics(tmp_path / "run")
    assert row["reward"]["std"] > 0 and any(name.startswith("held_out.") for name in row["watch"]), sorted(row["watch"])
    again = runs.train([*argv, "--iterations", "2", "--resume_from_checkpoint", "latest"])
    assert again.code == 0 and len(runs.metrics(tmp_path / "run")) == 2


def test_a_path_is_a_folder(folder: Path, pictures: torch.Tensor) -> None:
    assert torch.equal(named(folder)(pictures, TEXTS).value, named(str(folder))(pictures, TEXTS).value)
    assert plain({"reward": folder}) == {"reward": str(folder)}


def test_explain_says_what_a_folder_is(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["explain", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "preference, of 40 labels" in told and "validation, accuracy" in told and "picture, tokens, cosine" in told
    assert cli.main(["explain", str(tmp_path)]) == 2
    assert "holds no reward.json" in capsys.readouterr().err


def test_one_that_is_trained_anew_is_another_judge(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "r")
    before = repr(Trained(folder=str(tmp_path / "r")))
    state = load_file(tmp_path / "r" / "head.safetensors")
    save_file({**state, "middle": state["middle"] + 1}, tmp_path / "r" / "head.safetensors")
    assert repr(Trained(folder=str(tmp_path / "r"))) != before


def test_a_network_is_found_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = votes(tmp_path / "data", 60)
    tiny_clip.write(tmp_path / "clip")
    monkeypatch.chdir(tmp_path)
    tm.train_reward("preference", data=data, model="clip", cache="", epochs=3, output_dir="r", features="tokens")
    monkeypatch.chdir("/")
    reward = Trained(folder=str(tmp_path / "r"))
    assert reward(torch.rand(2, 3, 40, 40), ["", ""]).shape == (2,)
    shutil.move(tmp_path / "clip", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"r looks through .*clip: .* Say where it is: --reward\.model\."):
        _ = Trained(folder=str(tmp_path / "r")).network
    moved = Trained(folder=str(tmp_path / "r"), model=str(tmp_path / "elsewhere"))
    assert torch.isfinite(moved(torch.rand(2, 3, 40, 40), ["", ""])).all()


def test_another_network_is_refused(folder: Path, tmp_path: Path) -> None:
    reward = Trained(folder=str(folder), model=str(tiny_clip.write(tmp_path / "clip")))
    with pytest.raises(ValueError, match="does not see what the network saw that .* was trained on .shapes."):
        _ = reward.network


def test_folders_that_are_none(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"reward: .* holds no reward\.json"):
        named(str(tmp_path))
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "head.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no head\.safetensors: its training has not ended"):
        Trained(folder=str(broken))
    save_file({"x": torch.ones(1)}, broken / "head.safetensors")
    with pytest.raises(ValueError, match="is no head of a reward"):
        _ = Trained(folder=str(broken)).network
    card = json.loads((broken / "reward.json").read_text())
    for wrong in ({**card, "schema": 9}, {**card, "features": ["smell"]}, {"kind": "regression"}, []):
        (broken / "reward.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"reward\.json"):
            Trained(folder=str(broken))
    with pytest.raises(ValueError, match=r"or the folder of one that `train-reward` made"):
        named("my_taste")

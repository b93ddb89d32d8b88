"""Pretraining's own parts: the descent and its resume, and captions that miscount."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from tastemaker.shapes import assets, material, pretrain
from tastemaker.shapes.descent import Fit, Matrices
from tastemaker.shapes.judge import Network, places
from tastemaker.shapes.material import MISCOUNTED, drawn, miscounted
from tastemaker.shapes.weather import weathered


def network() -> nn.ModuleDict:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    return nn.ModuleDict({"conv": conv, "linear": nn.Linear(8, 2)})


def loss(modules: nn.ModuleDict, step: int) -> Tensor:
    x = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(step))
    found: Tensor = modules["linear"](modules["conv"](x).mean((2, 3))).square().mean()
    return found


def test_matrices_are_torchs_muon_on_the_flattened_weights() -> None:
    conv = network()["conv"]
    gradient = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    flat = nn.Parameter(conv.weight.detach().permute(0, 2, 3, 1).reshape(8, -1).clone())
    flat.grad = gradient.permute(0, 2, 3, 1).reshape(8, -1)
    torch.optim.Muon([flat], lr=0.1, weight_decay=1e-2).step()
    before = conv.weight.detach().clone()
    conv.weight.grad = gradient.to(memory_format=torch.channels_last)
    Matrices([conv.weight], 0.1).step()
    torch.testing.assert_close(conv.weight.detach(), flat.detach().reshape(8, 3, 3, 3).permute(0, 3, 1, 2))
    assert (conv.weight.detach() - before).abs().max() > 1e-2


def test_a_weight_without_a_matrix_view_is_refused() -> None:
    with pytest.raises(ValueError, match="channels_last"):
        Matrices([nn.Conv2d(3, 8, 3).weight], 0.1)


def fit(folder: Path, steps: int, stop: int | None = None) -> list[Tensor]:
    """Trains for `steps`; with `stop` the process is taken to die at that step and to begin again."""
    for attempt in range(1 + (stop is not None)):
        modules = network()
        one = Fit("toy", folder, modules, steps, 1e-2, matrices=lambda name, weight: weight.ndim == 4)

        def counted(step: int, modules: nn.ModuleDict = modules, dies: bool = attempt == 0) -> Tensor:
            if dies and step == stop:
                raise KeyboardInterrupt
            return loss(modules, step)

        try:
            one.run(counted)
        except KeyboardInterrupt:
            continue
    return [p.detach() for p in modules.parameters()]


def test_a_fit_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, killed = fit(tmp_path / "whole", 220), fit(tmp_path / "killed", 220, stop=150)
    assert all(torch.equal(a, b) for a, b in zip(whole, killed, strict=True))
    start = list(network().parameters())
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(whole, start, strict=True))


def test_three_captions_in_ten_of_several_objects_miscount() -> None:
    rng = random.Random(0)
    assert {miscounted(1, rng) for _ in range(100)} == {1}
    said = [miscounted(3, rng) for _ in range(4000)]
    assert set(said) == {2, 3, 4} and abs(sum(n != 3 for n in said) / 4000 - MISCOUNTED) < 0.03
    assert abs(said.count(2) - said.count(4)) < 150


# ---- the judge


def trained(folder: Path, steps: int) -> bytes:
    """The file of a judge trained by the command on four pictures, two a step."""
    pretrain.main(["judge", "--folder", str(folder), "--steps", str(steps), "--batch", "2", "--pictures", "4"])
    return (folder / "judge" / assets.JUDGE).read_bytes()


def test_the_judge_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """After one step the rate of two steps is the same; what is drawn of dropout and weather goes by the step."""
    whole = trained(tmp_path / "whole", 2)
    torch.rand(5)
    first = trained(tmp_path / "stopped", 1)
    torch.rand(3)
    assert first != whole and trained(tmp_path / "stopped", 2) == whole
    sums = json.loads((tmp_path / "whole" / "judge" / assets.SUMS).read_text())
    assert sums == {assets.JUDGE: hashlib.sha256(whole).hexdigest()}
    weights = load(whole)
    assert weights.keys() == Network().state_dict().keys()
    assert {weight.dtype for weight in weights.values()} == {torch.float16}


def test_the_judge_sees_what_is_drawn_and_what_the_autoencoder_makes_of_it(tmp_path: Path) -> None:
    shown, wanted = pretrain._shown(tmp_path, 12)
    pictures, scenes = drawn(12, material.SEED + 2, progress=False)
    rows = [places((scene.count, scene.colour, scene.shape)) for scene in scenes]
    assert shown.shape == (24, 64, 64, 3) and wanted.tolist() == rows + rows
    assert torch.equal(shown[:12], pictures)
    apart = (shown[12:].float() - pictures.float()).abs().mean((1, 2, 3))
    assert 0 < apart.min() and apart.max() < 25  # the same picture, through the autoencoder


def test_weather_is_a_function_of_its_generator_and_leaves_the_order() -> None:
    pixels, _ = drawn(10, 3, progress=False)
    images = pixels.permute(0, 3, 1, 2).float() / 255
    one, again, other = (weathered(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other) and one.shape == images.shape
    assert one.min() >= 0 and one.max() <= 1
    torch.testing.assert_close(one * 255, (one * 255).round(), atol=1e-4, rtol=0)
    assert (one - images).abs().mean((1, 2, 3)).min() > 0.005
    grey = torch.linspace(0.1, 0.9, 5)[:, None, None, None].expand(5, 3, 64, 64)
    tones = weathered(grey, torch.Generator().manual_seed(3)).mean((1, 2, 3))
    assert ((tones - 0.1) / 0.2).round().tolist() == [0, 1, 2, 3, 4]

"""The wheel holds all that the package holds, recipes, weights and prompt lists too, and runs without a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from house.syntax import ROOT

SMALL = "--algorithm.images 8 --algorithm.updates 1 --algorithm.steps 2 --evaluation.count 4 --evaluation.steps 2"


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("wheel")
    tree = tmp_path / "tree"
    tree.mkdir()
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "-w", tmp_path, tree)
    (made,) = tmp_path.glob("tastemaker-*.whl")
    return made


def test_the_wheel_is_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("tastemaker/")}
        scripts = archive.read(f"{wheel.name.removesuffix('-py3-none-any.whl')}.dist-info/entry_points.txt").decode()
    source = ROOT / "src"
    files = (path for path in (source / "tastemaker").rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert held == {str(path.relative_to(source)) for path in files}
    assert "tastemaker = tastemaker.cli:main" in scripts


@pytest.mark.slow
def test_installed_elsewhere_it_trains_the_built_in_model(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel)
    elsewhere = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(site)}}
    found = run(sys.executable, "-c", "import tastemaker; print(tastemaker.__file__)", **elsewhere)
    assert Path(found.strip()).is_relative_to(site)
    words = f"train ddpo --model shapes --reward jpeg_compressibility --iterations 1 {SMALL}"
    run(site / "bin" / "tastemaker", *words.split(), **elsewhere)
    assert (tmp_path / "runs/ddpo-shapes-jpeg_compressibility-1/lora/pytorch_lora_weights.safetensors").is_file()

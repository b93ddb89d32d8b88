"""The wheel holds everything that the package holds: recipes, weights and prompt lists too."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from house.syntax import ROOT


def test_the_wheel_is_the_package(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path)]
    done = subprocess.run([*pip, str(tree)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("tastemaker-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("tastemaker/")}
        scripts = archive.read(f"{wheel.name.removesuffix('-py3-none-any.whl')}.dist-info/entry_points.txt").decode()
    source = tree / "src"
    assert held == {str(path.relative_to(source)) for path in (source / "tastemaker").rglob("*") if path.is_file()}
    assert "tastemaker = tastemaker.cli:main" in scripts

"""What the first systems say of their training, tried on the built-in world: docs/lessons.md.

    python benchmarks/lessons.py                        # makes the sweeps' runs that are missing, then plots and page
    python benchmarks/lessons.py --lesson clip,decay    # only these
    python benchmarks/lessons.py --table                # makes no run: collects what has ended, writes plots and page

A lesson is one sweep or a few, by the commands in the recipes' headers, in FOLDER/NAME. A sweep that has ended is
copied into results/lessons.jsonl, and everything on the page comes from there.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import machine
from lessons_plots import plots
from lessons_report import told
from lessons_runs import LESSONS, Lesson, title
from PIL import Image

from tastemaker import config
from tastemaker.reports.pictures import grid
from tastemaker.training.lines import read_lines

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
PICTURES = "images/lessons"  # beside the page


def command(recipe: str, folder: Path) -> list[str]:
    """The sweep of a recipe: the line `Run:` of its header, in its folder."""
    header = config.recipes()[recipe].read_text(encoding="utf-8")
    found = re.search(r"^# Run: tastemaker (sweep .*)$", header, re.MULTILINE)
    assert found is not None, recipe
    return [*shlex.split(found[1]), "--output_dir", str(home(recipe, folder))]


def home(recipe: str, folder: Path) -> Path:
    """Where the sweep of `lesson_clip` is: FOLDER/clip."""
    return folder / recipe.removeprefix("lesson_")


def make(lesson: Lesson, folder: Path, more: Sequence[str]) -> int:
    """Runs the sweeps of a lesson, each a process of its own; what is there is not made again."""
    ended = 0
    for recipe in lesson.recipes:
        done = subprocess.run([sys.executable, "-m", "tastemaker", *command(recipe, folder), *more], check=False)
        ended |= done.returncode not in (0, 1)  # 1: a run broke, which is told of in the table
    return int(ended)


def collect(lesson: Lesson, folder: Path) -> list[dict[str, Any]]:
    """The runs of a lesson's sweeps, as far as the sweeps have ended: their curves in numbers."""
    found = []
    for recipe in lesson.recipes:
        record = home(recipe, folder) / "sweep.json"
        if not record.is_file():
            continue
        for run in json.loads(record.read_text(encoding="utf-8"))["runs"]:
            judged = read_lines(record.parent / run["folder"] / "evaluations.jsonl")
            rows = [_point(point, row, lesson) for point, row in zip(run["curve"], judged, strict=True)]
            own = {name: run[name] for name in ("variant", "seed", "broke")}
            found.append({"recipe": recipe} | own | {"curve": rows})
    return found


def sheet(lesson: Lesson, own: Sequence[Mapping[str, Any]], folder: Path, path: Path) -> Path:
    """Pictures of one prompt, a row a variant of seed 0, with the same noise; what is there stays where no run is."""
    firsts = {title(one): home(one["recipe"], folder) / _folder(one["variant"]) / "seed-0" for one in own}
    if all(run.is_dir() for run in firsts.values()):
        out = folder / path.stem
        asked = ["--evaluation.prompts", f"text:{lesson.prompt}", "--evaluation.count", "1", "--output", str(out)]
        words = ["evaluate", *map(str, firsts.values()), *asked, "--evaluation.images_per_prompt", "8"]
        subprocess.run([sys.executable, "-m", "tastemaker", *words], check=True, stdout=subprocess.DEVNULL)
        judged = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["rows"]
        places = [out / "images" / re.sub(r"[^\w.-]+", "-", row["name"]) for row in judged]
        rows = [[_picture(place / f"{b}.png") for b in range(8)] for place in places]
        grid(rows, titles=["base", *firsts], path=path, edge=128)
    return path


def _folder(variant: str) -> str:
    """Of a sweep's variant."""
    return re.sub(r"[^\w.=+-]+", "-", variant)


def _picture(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB")


def _point(point: Mapping[str, Any], row: Mapping[str, Any], lesson: Lesson) -> dict[str, Any]:
    """An evaluation: the change in standard deviations with its interval over prompts, the oracle, what was spent."""
    reward = lesson.judge or next(iter(row["reward"]))
    change, oracle = row["change"][reward], point["scores"]
    unit = change["deviations"] / change["mean"] if change["mean"] and change["deviations"] else 0.0  # SD a kB
    found = {name: point[name] for name in ("iteration", "queries", "rows", "seconds", "reward", "diversity")}
    found |= {"sd": change["deviations"]} | {name: _times(change[name], unit) for name in ("low", "high")}
    found |= {name: oracle[f"shapes_alignment.{name}"] for name in ("count", "colour", "shape")}
    if lesson.judge:  # the sweep's own number is that of the reward that was trained on
        found["reward"] = row["reward"][reward]["mean"]
    return found | ({"values": [_short(value) for value in row["values"][reward]]} if lesson.values else {})


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def fill(page: str, name: str, text: str) -> str:
    """The page with `text` between the marks of a lesson. Errors: ValueError where it has none."""
    first, last = f"<!-- {name}: written by make lessons -->", f"<!-- end of {name} -->"
    before, sign, rest = page.partition(first)
    _, other, after = rest.partition(last)
    if not (sign and other):
        raise ValueError(f"the page has no lines {first} and {last}: put them where the lesson's numbers belong.")
    return f"{before}{first}\n{text.strip()}\n{last}{after}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lesson", default=",".join(LESSONS), help=f"with commas: {', '.join(LESSONS)}")
    parser.add_argument("--folder", type=Path, default=Path("runs/lessons"), help="where the sweeps are")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "lessons.jsonl")
    parser.add_argument("--page", type=Path, default=DOCS / "lessons.md", help="plots go to images/lessons beside it")
    parser.add_argument("--table", action="store_true", help="make no run")
    parser.add_argument("--iterations", type=int, help="another number than the recipes', for trials")
    asked = parser.parse_args(argv)
    more = ["--iterations", str(asked.iterations)] if asked.iterations else []
    names = asked.lesson.split(",")
    if unknown := set(names) - set(LESSONS):
        parser.error(f"--lesson {', '.join(sorted(unknown))} is none of {', '.join(LESSONS)}")
    failed = 0
    for name in names:
        failed |= 0 if asked.table else make(LESSONS[name], asked.folder, more)
        write(name, asked.folder, asked.results, asked.page)
    return failed


def write(name: str, folder: Path, results: Path, page: Path) -> None:
    """Collects a lesson, then writes its plots and its part of the page; nothing where no sweep of it has ended."""
    there = read_lines(results)
    if runs := collect(LESSONS[name], folder):
        there = [one for one in there if one["lesson"] != name]
        there += [{"lesson": name, "machine": machine()} | run for run in runs]
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text("".join(json.dumps(one) + "\n" for one in there), encoding="utf-8")
    own = [one for one in there if one["lesson"] == name]
    if {one["recipe"] for one in own} < set(LESSONS[name].recipes):
        print(f"{name}: not all of its sweeps have ended")
        return
    pictures = page.parent / PICTURES
    pictures.mkdir(parents=True, exist_ok=True)
    drawn = plots(name, own, pictures)
    if LESSONS[name].prompt:
        drawn.append(sheet(LESSONS[name], own, folder, pictures / f"{name}_grid.png"))
    text = told(name, own, [f"{PICTURES}/{path.name}" for path in drawn if path.is_file()])
    page.write_text(fill(page.read_text(encoding="utf-8"), name, text), encoding="utf-8")
    print(f"{text}\n")


if __name__ == "__main__":
    raise SystemExit(main())

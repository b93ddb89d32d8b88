"""`tastemaker evaluate WHAT ...`: models side by side on fixed prompts and noise."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tastemaker import flags
from tastemaker.flags import joined

USAGE = """tastemaker evaluate WHAT [WHAT ...] [--rewards NAME,NAME] [--evaluation.count 64] [--output WHERE]

  WHAT           a folder that `train` left, a LoRA file (with --model), or a model: a built-in one, a folder, a hub id.
                 The base of what was tuned is judged too. Runs that differ in their seed alone are summed up.
  --model        the base model of LoRA files
  --run, --lora  one run, one LoRA file, instead of words
  --rewards      what to judge by (default: the first run's reward and its held-out rewards)
  --mix          0 .25 .5 .75 1: in the place of a run, its base with so much of its change; of two runs A and B
                 what lies between them, (1 - w) A + w B
  --anneal       linear,power:2,step:.6,base,tuned: in its place, base and tuned model drawing together by these rules
  --evaluation.prompts   a set, a file, a list; `train` are the training prompts, which are taken only when asked for
  --evaluation.count --evaluation.images_per_prompt --evaluation.steps --evaluation.guidance
  --evaluation.sampler   `deterministic` (default) or `train`: the chain that drew the training pictures
  --lpips_weights        of the distance that diversity is measured by: auto, download, off, or a path
  --output       FILE.json, FILE.csv, or a folder: both, a grid, every picture, verdicts that are not made twice; and a
                 plot of reward against diversity for --mix and --anneal (--evaluation.images_per_prompt 2 or more)
  --report_to    also tell the run's trackers: tensorboard, wandb, trackio
  --seed --device --mixed_precision
"""
FLAGS = {"run", "model", "lora", "device", "mixed_precision", "seed", "rewards", "evaluation", "output", "report_to"}
FLAGS |= {"lpips_weights", "mix", "anneal"}


def main(argv: Sequence[str]) -> int:
    """Judge all on the same prompts and noise, and print the paired changes."""
    words, tree, wanted = flags.parse(joined(argv, "--mix"))
    if wanted:
        print(USAGE, end="")
        return 0
    flags.refuse("evaluate", tree, values=FLAGS)
    from rich.console import Console

    from tastemaker.judging import compared

    output, runs = _output(tree), _runs(words, tree)
    found = compared(words, tree, output=output if output is not None and not output.suffix else None)
    console = Console(highlight=False, width=max(120, shutil.get_terminal_size((120, 24)).columns))
    console.print(found.heading(), soft_wrap=True)
    for table in found.shown():
        console.print()
        console.print(table)
    _write(found, output)
    _tell(found, runs, tree)
    return 0


def _output(tree: Mapping[str, Any]) -> Path | None:
    """Where the numbers go; refused before any work where that cannot be."""
    if "output" not in tree:
        return None
    output = Path(str(tree["output"])).expanduser()
    if output.suffix not in ("", ".json", ".csv") or not output.suffix and output.is_file():
        raise ValueError(f"--output {output}: give FILE.json, FILE.csv, or a folder.")
    if not output.parent.is_dir():
        raise ValueError(f"--output {output}: there is no folder {output.parent}.")
    return output


def _runs(words: Sequence[str], tree: Mapping[str, Any]) -> list[Any]:
    """The runs whose trackers are told."""
    if "report_to" not in tree:
        return []
    from tastemaker.reports import trackers
    from tastemaker.subjects import of_words

    if {"mix", "anneal"} & tree.keys():
        raise ValueError("--report_to tells of the runs themselves: leave it out with --mix and --anneal.")
    trackers.need(str(tree["report_to"]).split(","))
    runs = [one for one in of_words(words, tree) if one.file and one.is_tuned]
    if not runs:
        raise ValueError("--report_to goes on with a run's trackers: name the run's folder, or leave it out.")
    return runs


def _write(found: Any, output: Path | None) -> None:
    from tastemaker.folder import write_text

    if output is None:
        return
    if output.suffix:
        write_text(output, found.csv() if output.suffix == ".csv" else found.json())
    print(f"\n  {output}")


def _tell(found: Any, runs: Sequence[Any], tree: Mapping[str, Any]) -> None:
    from tastemaker.reports import trackers

    rows = {row.name: row.scores for row in found.rows}
    for run in runs:
        running = trackers.start(str(tree["report_to"]).split(","), run.file.parent, run.tree)
        running.comparison(rows[run.name])
        running.finish()

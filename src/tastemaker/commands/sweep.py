"""`tastemaker sweep NAME --over SETTING=A,B,C --seeds 3`: variants side by side."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tastemaker import flags

USAGE = """tastemaker sweep NAME --over SETTING=VALUE,VALUE [--seeds 3] [--output_dir FOLDER] [flags of train]

  NAME           an algorithm or a recipe, as for `train`
  --over         a setting and its values: algorithm.clip=1e-5,1e-4; several with semicolons, then all combinations:
                 'algorithm.clip=1e-5,1e-4;lora.rank=4,16'; with | one and then the other: 'algorithm.k=1|lora.rank=16';
                 lora=on,off is with and without LoRA
  --seeds        runs of every variant, with the seeds 0, 1, ... (default 1)
  --output_dir   FOLDER/VARIANT/seed-K are the runs (default runs/sweep-NAME)

The same command makes only what is missing, and goes on with what was stopped. FOLDER gets sweep.json, plots of the
reward against iterations, reward queries, network rows and diversity, and a grid of the same prompts and noise.
"""


def main(argv: Sequence[str]) -> int:
    """Make what is missing, then show all; 1 where a run broke, 0 too where it was stopped with a checkpoint."""
    words, tree, wanted = flags.parse(argv)
    if wanted:
        print(USAGE, end="")
        return 0
    found = flags.target([word for word in argv if word not in flags.HELP], command="sweep")
    if found is None:
        return 0
    name, tree = found
    over, seeds = tree.pop("over", None), tree.pop("seeds", "1")
    if not isinstance(over, str):
        raise ValueError("--over is missing: write --over SETTING=VALUE,VALUE, such as algorithm.clip=1e-5,1e-4.")
    if not (isinstance(seeds, str) and seeds.isdecimal() and int(seeds) > 0):
        raise ValueError(f"--seeds is {seeds!r}; it is a whole number above 0.")
    place = Path(str(tree.pop("output_dir", f"runs/sweep-{Path(name).stem}"))).expanduser()
    return _sweep(name, tree, over, int(seeds), place)


def _sweep(name: str, tree: dict[str, Any], over: str, seeds: int, place: Path) -> int:
    from rich.console import Console

    from tastemaker.sweep_report import show, table
    from tastemaker.sweeping import Stopped, Sweep

    for key in ("seed", "overwrite", "resume_from_checkpoint", "dry_run", "push_to_hub", "hub_model_id"):
        if key in tree:
            raise ValueError(f"--{key} has no meaning for a sweep, which has runs of its own: leave it out.")
    try:
        made = Sweep(name, tree, over, seeds, place).make()
    except Stopped as stopped:
        print(stopped)
        return 0
    paths = show(Path(name).stem, made, place)
    console = Console(highlight=False, width=max(140, shutil.get_terminal_size((140, 24)).columns))
    console.print()
    console.print(table(made))
    print()
    for path in paths:
        print(f"  {path}")
    broke = [one for one in made if one.broke]
    for one in broke:
        print(f"tastemaker: {one.variant}, seed {one.seed} broke: {one.broke}", file=sys.stderr)
    return 1 if broke else 0

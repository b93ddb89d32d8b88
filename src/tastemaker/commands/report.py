"""`tastemaker report RUN [RUN ...]`: a page to look at, of one run or of several."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from tastemaker import flags
from tastemaker.layers import Switch

USAGE = """tastemaker report RUN [RUN ...] [--output FILE.html] [--open]

  RUN       a folder that `train` left, ended or not, or that of a sweep: all of its runs
  --output  where to write it (default: report.html in the run's folder; of several runs comparison.html beside them)
  --open    show it in the browser

  One file that holds all it shows and asks for nothing on the network. `train` writes a run's at every evaluation and
  at its end; `tastemaker live RUN` shows it while training runs.
"""


def main(argv: Sequence[str]) -> int:
    """Write the page and print where it is."""
    words, tree, wanted = flags.parse(argv)
    if wanted:
        print(USAGE, end="")
        return 0
    flags.refuse("report", tree, values=("output",), switches=("open",))
    if not words:
        raise ValueError("report takes the folder of a run, or several; found none.")
    path = _written(words, tree.get("output"))
    print(path)
    if tree.get("open") is Switch.ON:
        webbrowser.open(path.resolve().as_uri())
    return 0


def _written(words: Sequence[str], output: str | None) -> Path:
    from tastemaker import reporting

    path = Path(output).expanduser() if output else None
    if path and path.suffix not in (".html", ".htm"):
        raise ValueError(f"--output {path}: give FILE.html.")
    runs = reporting.runs_of(words)
    return reporting.write(runs[0], path) if len(runs) == 1 else reporting.write_comparison(runs, path)

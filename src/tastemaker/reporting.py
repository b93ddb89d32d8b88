"""Reports of runs, written beside them: what `train`, `tastemaker report` and `tastemaker live` share."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tastemaker import __version__, manual
from tastemaker.folder import CONFIG, write_text
from tastemaker.reports import citation, comparison_report, report
from tastemaker.reports.records import Records, named

REPORT, COMPARISON = "report.html", "comparison.html"
SHARE = 0.01  # of a run's time that its report may take while it goes


def write(folder: str | Path, path: Path | None = None) -> Path:
    """The report of one run, in its folder where no path is given. Errors: ValueError when no run was begun there."""
    records = Records.read(folder)
    path = path or records.folder / REPORT
    _write(path, report.render(records, beside=report.seen_from(records.folder, path), papers=_papers(records)))
    return path


def write_comparison(folders: Sequence[str | Path], path: Path | None = None) -> Path:
    """One report of several runs, in the folder that all of them lie in where no path is given."""
    runs = [Records.read(folder) for folder in folders]
    path = path or Path(os.path.commonpath([run.folder.resolve().parent for run in runs])) / COMPARISON
    papers = [entry for run in runs for entry in _papers(run)[:-1]]
    _write(path, comparison_report.render(runs, papers=[*papers, citation.software(__version__)]))
    return path


def live(folder: Path, state: str) -> str:
    """The page that `tastemaker live` serves; it asks whether the state is still the same."""
    records = Records.read(folder)
    return report.render(records, beside=report.seen_from(records.folder, records.folder / REPORT),
                         papers=_papers(records), live=state)  # fmt: skip


class Beside:
    """The report of a run under way. What goes wrong with it is told, and stops nothing that was learned."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.took, self.ended = 0.0, time.monotonic()

    def renew(self) -> None:
        """Writes it anew, unless that would take more than a hundredth of the time since it was written last."""
        if self.took <= SHARE * (time.monotonic() - self.ended):
            self.write()

    def write(self) -> Path | None:
        """Writes it anew; its path, or None where it could not be written."""
        start = time.monotonic()
        try:
            return write(self.folder)
        except Exception as error:  # a page is not worth a run
            print(f"{self.folder / REPORT} was not written: {type(error).__name__}: {error}", file=sys.stderr)
            return None
        finally:
            self.ended = time.monotonic()
            self.took = self.ended - start


def runs_of(words: Sequence[str]) -> list[Path]:
    """The runs' folders that a command line names; of a sweep's folder all of its runs."""
    found: list[Path] = []
    for word in words:
        place = Path(word).expanduser()
        inside = sorted(file.parent for file in place.glob(f"*/seed-*/{CONFIG}"))
        found += inside if (place / "sweep.json").is_file() and inside else [place]
    return list(dict.fromkeys(found))


def _write(path: Path, text: str) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {path.parent}.")
    write_text(path, text)


def _papers(records: Records) -> list[str]:
    """BibTeX of the algorithm's paper, and of this software in the version that began the run."""
    version = records.starts[-1].get("versions", {}).get("tastemaker", __version__) if records.starts else __version__
    return [*manual.citations(named(records.settings.get("algorithm"))), citation.software(str(version))]

"""All that a run's folder says, read for the report: of a run that has ended, was killed, or is still under way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tastemaker.reports import origins, secrets
from tastemaker.reports.rows import read_lines
from tastemaker.reports.starts import STARTS

CONFIG = "config.yaml"
LONGEST = 300  # letters of a prompt that are shown


class Setting(NamedTuple):
    """A setting of the run, its value as YAML writes it, and who set it."""

    path: str
    value: str
    origin: str

    @property
    def chosen(self) -> bool:
        """Whether somebody chose it for this run: by a flag, an argument or a recipe."""
        return self.origin not in ("", "default", "paper", "model")


@dataclass(frozen=True)
class Records:
    """A run by its files. Rows are those of the jsonl files, unchanged."""

    folder: Path
    settings: Mapping[str, Any]  # without what looks like a key
    listed: tuple[Setting, ...]  # the same, one by one
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    alarms: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    best: Mapping[str, Any]  # the best checkpoint by a held-out measure; empty where there is none

    @classmethod
    def read(cls, folder: str | Path) -> Records:
        """The run of a folder. Errors: ValueError when none was begun there, or its config.yaml cannot be read."""
        home = Path(folder).expanduser()
        file = home / CONFIG
        if not file.is_file():
            raise ValueError(f"{home} holds no {CONFIG}: name a folder that `tastemaker train` left.")
        text = file.read_text(encoding="utf-8", errors="replace")
        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{file} is not YAML: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{file} holds no settings: name a folder that `tastemaker train` left.")
        notes = origins.origins(origins.lines(text))
        settings = secrets.cleaned(found)
        kinds = ("metrics", "evaluations", "samples", "alarms")
        rows = {kind: _of_iterations(read_lines(home / f"{kind}.jsonl")) for kind in kinds}
        listed = tuple(_listed(settings, notes))
        return cls(home, settings, listed, **rows, starts=read_lines(home / STARTS), best=_best(home / "best.json"))

    @property
    def name(self) -> str:
        """The folder's own name; of a sweep's `seed-0` with the folders above it."""
        parts = self.folder.resolve().parts
        return "/".join(parts[-3:] if parts[-1].startswith("seed-") else parts[-1:])

    @property
    def asked(self) -> int:
        """The iterations that were asked for; 0 where the settings do not say."""
        found = self.part("algorithm").get("iterations")
        return found if isinstance(found, int) else 0

    @property
    def ended(self) -> bool:
        """Whether the run came to its end and was judged there."""
        return bool(self.evaluations) and bool(self.asked) and self.evaluations[-1]["iteration"] >= self.asked

    @property
    def reward(self) -> str:
        """What the run was trained on, as its evaluations call it."""
        for row in self.evaluations:
            if row.get("reward"):
                return str(next(iter(row["reward"])))
        return named(self.settings.get("reward")) or "reward"

    def part(self, key: str) -> Mapping[str, Any]:
        """A setting that has settings of its own."""
        found = self.settings.get(key)
        return found if isinstance(found, Mapping) else {}


def named(setting: Any) -> str:
    """A part by its name: `ddim`, or `{name: ddim, eta: 1}`; of a sum its terms."""
    if isinstance(setting, Mapping):
        if isinstance(setting.get("sum"), list):
            return " + ".join(named(term) for term in setting["sum"])
        return str(setting.get("name") or "")
    if isinstance(setting, list):
        return f"a list of {len(setting)}"
    return "" if setting is None else str(setting)


def shown(text: Any, longest: int = LONGEST) -> str:
    """A text of the run as a page can hold it: no half characters, and its beginning where it is very long."""
    found = str(text).encode("utf-8", "replace").decode("utf-8")
    return found if len(found) <= longest else f"{found[:longest].rstrip()} … ({len(found):,} letters)"


def _of_iterations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if isinstance(row.get("iteration"), int)]


def _best(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or just being written
        return {}
    return found if isinstance(found, Mapping) else {}


def _listed(settings: Mapping[str, Any], notes: Mapping[str, str], above: str = "") -> list[Setting]:
    found = []
    for key, value in settings.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            found += _listed(value, notes, f"{path}.")
        elif path != "resolved":
            text = yaml.safe_dump([value], default_flow_style=True, width=10**6, allow_unicode=True).strip()[1:-1]
            found.append(Setting(shown(path), shown(text), shown(notes.get(path, ""))))
    return found

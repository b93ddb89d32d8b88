"""A run that has ended, as others may see it: its records with paths by their last part, and nothing secret."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from tastemaker.exports.diffusers import LORA, PIPELINE
from tastemaker.folder import CONFIG
from tastemaker.outcome import Run
from tastemaker.reports import origins, secrets
from tastemaker.reports.origins import Line
from tastemaker.training.lines import SCHEMA

PATH = re.compile(r"(/|~|\.{1,2}[/\\]|\\\\|[A-Za-z]:[/\\]|file:)\S")  # how a path begins and nothing else does
TAIL = re.compile(r"(?<=\w)[:#][^:#/\\]*$")  # `:function` of a file, `#column` of another


@dataclass(frozen=True)
class Finished:
    """What a run's files say, with `Public` already gone over all of it."""

    folder: Path
    weights: Path  # a LoRA file, or the folder of a pipeline
    settings: Mapping[str, Any]
    origins: Mapping[str, str]  # path of a setting -> who set it
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    config: str  # config.yaml

    @classmethod
    def read(cls, folder: str | Path) -> Finished:
        """The run of a folder. Errors: ValueError when none was made there, or it has not ended."""
        run = Run.open(folder)
        home, settings = run.folder, run.settings
        # whose prompts they were stays here
        evaluations = [{k: v for k, v in row.items() if k not in ("texts", "groups")} for row in run.evaluations()]
        weights = home / (PIPELINE if settings["lora"] is None else LORA)
        asked = int(settings["algorithm"]["iterations"])
        made = evaluations[-1]["iteration"] if evaluations else 0
        if made < asked or not weights.exists():
            file, where = (shlex.quote(str(path)) for path in (home / CONFIG, home))
            raise ValueError(
                f"the run in {home} has not ended: it is judged after {made} of {asked} iterations, and only a whole "
                f"run is shared. Go on with `tastemaker train {file} --output_dir {where} "
                "--resume_from_checkpoint latest`."
            )
        public, lines = Public(home, settings), origins.lines((home / CONFIG).read_text(encoding="utf-8"))
        return cls(
            home,
            weights,
            public.value(settings),
            origins.origins(lines),
            public.value(run.metrics()),
            public.value(evaluations),
            public.config(lines, settings),
        )

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    def lines(self, kind: str) -> bytes:
        """`metrics` or `evaluations` as a jsonl file."""
        rows = {"metrics": self.metrics, "evaluations": self.evaluations}[kind]
        return "".join(json.dumps(row) + "\n" for row in ({"schema": SCHEMA, "kind": kind}, *rows)).encode()


class Public:
    """Shortens a run's texts: a path to its last part, wherever it stands; what looks like a key is taken out."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        # A relative path was one from where the run was started: mostly here, or a folder above the run's.
        self.starts = (Path.cwd(), *folder.resolve().parents)
        paths = {text for text in _texts(settings) if self._is_path(text)}
        inside = "|".join(re.escape(path) for path in sorted(paths, key=len, reverse=True))
        self.mentioned = re.compile(rf"(?<![\w/])({inside})(?![\w/])" if paths else "(?!)")

    def value(self, found: Any) -> Any:
        """The same data with its texts shortened and its secrets taken out."""
        return secrets.cleaned(found, self.text)

    def text(self, found: str) -> str:
        """A text, in which paths of the settings may be mentioned."""
        short = _last(found) if self._is_path(found) else self.mentioned.sub(lambda path: _last(path[0]), found)
        return secrets.text(short)

    def config(self, lines: list[Line], settings: Mapping[str, Any]) -> str:
        """config.yaml with its values shortened and the origins behind them kept."""
        texts: list[str] = []
        above: list[str] = []
        for line in lines:
            above = [*above[: line.depth], line.key]  # what is named a secret further up makes one of what is below
            short = self.value(reduce(lambda inner, name: {name: inner}, reversed(above), line.value))
            for _ in above:
                ((key, short),) = short.items()
            text = line.text
            if short != line.value:
                dumped = yaml.safe_dump([short], default_flow_style=True, width=10**6, allow_unicode=True)
                text = f"{'  ' * line.depth}{key}: {dumped.strip()[1:-1]}" + (f"  # {line.note}" if line.note else "")
            texts.append(text + "\n")
        # Where it is not as we write it, one setting a line: the values without the origins.
        return "".join(texts) if lines else yaml.safe_dump(self.value(settings), sort_keys=False, allow_unicode=True)

    def _is_path(self, text: str) -> bool:
        if PATH.match(text):
            return True
        bare = TAIL.sub("", text)
        return re.search(r"[/\\]", bare) is not None and any(_there(start, bare) for start in self.starts)


def _there(start: Path, text: str) -> bool:
    try:
        return (start / text).exists()
    except (OSError, ValueError):  # a prompt of a page's length, or with a zero in it, is no file's name
        return False


def _last(path: str) -> str:
    """The last part of a path; `file.py:function` of a function's."""
    tail = TAIL.search(path)
    bare = path[: tail.start()] if tail else path
    return (PureWindowsPath(bare).name or secrets.REMOVED) + (tail[0] if tail else "")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield value

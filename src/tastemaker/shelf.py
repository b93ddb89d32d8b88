"""The folder of an evaluation: its numbers, its pictures, and verdicts that need not be made again."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from tastemaker.comparison import Table, front
from tastemaker.evaluation.evaluate import Verdict
from tastemaker.folder import write_text
from tastemaker.policy.load import folder as model_folder
from tastemaker.reports.pictures import grid
from tastemaker.rewards.combine import Sum
from tastemaker.rewards.reward import NamedReward
from tastemaker.subjects import OF_MODEL, Subject
from tastemaker.training.samples import SAMPLES, list_pictures

if TYPE_CHECKING:
    from tastemaker.judging import Bench

ACROSS = 8  # pictures of a model in the grid, each of another prompt where there are several
FRONT = "diversity.svg"
SCHEMA = 1


@dataclass
class Shelf:
    """Keeps nothing where there is no folder.

    folder: evaluation.json, evaluation.csv, grid.png, images/<model>/<id>.png with their prompts in samples.jsonl,
    verdicts/<digest>.json; diversity.svg of mixes and annealed models.
    """

    folder: Path | None
    metric: str = ""  # of the diversity in the verdicts that were found

    def find(self, subject: Subject, bench: Bench) -> Verdict | None:
        """The verdict that was made before: of the same weights, by the same trial and judges."""
        path = self._path(subject, bench)
        if path is None or not path.is_file():
            return None
        kept = json.loads(path.read_text(encoding="utf-8"))
        files = [self._image(subject, b) for b in kept["ids"]]
        mark = self._mark(subject)
        if not all(file.is_file() for file in (*files, mark)) or mark.read_text(encoding="utf-8") != path.stem:
            return None
        if self.metric and kept["metric"] != self.metric:  # distances of two metrics are not compared
            return None
        self.metric = kept["metric"]
        if not self._image(subject, 0).with_name(SAMPLES).is_file():  # of an earlier version
            self._list(subject, bench, kept["ids"])
        values = {name: torch.tensor([_number(v) for v in found]) for name, found in kept["values"].items()}
        diversity = {int(group): _number(value) for group, value in kept["diversity"].items()}
        return Verdict(values, [_read(file) for file in files], tuple(kept["ids"]), diversity)

    def keep(self, subject: Subject, bench: Bench, verdict: Verdict, metric: str) -> None:
        """Writes the pictures, then the verdict."""
        path = self._path(subject, bench)
        if path is None:
            return
        mark = self._mark(subject)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.unlink(missing_ok=True)  # those that are there may be of another verdict
        for b, picture in zip(verdict.ids, verdict.pictures, strict=True):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(self._image(subject, b))
        self._list(subject, bench, verdict.ids)
        write_text(mark, path.stem)
        found = {
            "schema": SCHEMA,
            "model": subject.name,
            "metric": metric,
            "ids": list(verdict.ids),
            "values": {name: [_plain(v) for v in values.tolist()] for name, values in verdict.values.items()},
            "diversity": {str(group): _plain(value) for group, value in verdict.diversity.items()},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(found))

    def show(self, table: Table, bench: Bench, verdicts: Mapping[str, Verdict]) -> None:
        """The numbers as JSON and CSV, and a grid: a row a model, a column a prompt, the same noise in each; of one
        prompt alone, several pictures."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "evaluation.json", table.json())
        write_text(self.folder / "evaluation.csv", table.csv())
        if chart := front(table):
            write_text(self.folder / FRONT, chart)
        groups = bench.trial.prompts.groups
        first = {group: b for b, group in reversed([*enumerate(groups)])}
        firsts = list(range(len(groups)) if len(first) == 1 else sorted(first.values()))[:ACROSS]
        scores = next(iter(bench.judges)).name
        rows, notes = [], []
        for verdict in verdicts.values():
            rows.append([verdict.pictures[b].float() / 255 for b in firsts])
            notes.append([f"{float(verdict.values[scores][b]):.3g}" for b in firsts])
        captions = [bench.trial.prompts.texts[b] for b in firsts]
        grid(rows, captions, list(verdicts), self.folder / "grid.png", notes=notes)

    def _list(self, subject: Subject, bench: Bench, ids: Sequence[int]) -> None:
        """Says beside a model's pictures what they show."""
        texts = dict(zip(bench.trial.prompts.ids, bench.trial.prompts.texts, strict=True))
        list_pictures(self._image(subject, 0).parent, ((b, texts[b], f"{b}.png") for b in ids))

    def _image(self, subject: Subject, b: int) -> Path:
        assert self.folder is not None
        return self.folder / "images" / re.sub(r"[^\w.-]+", "-", subject.name) / f"{b}.png"

    def _mark(self, subject: Subject) -> Path:
        """Says of which verdict a model's pictures are: the last one that was made of it."""
        return self._image(subject, 0).with_name("verdict.txt")

    def _path(self, subject: Subject, bench: Bench) -> Path | None:
        if self.folder is None:
            return None
        trial = bench.trial
        asked = [trial.steps, trial.guidance, repr(trial.sampler), trial.seed, trial.batch, trial.negative]
        parts = [
            SCHEMA,
            subject.name,
            [str(subject.tree.get(key)) for key in (*OF_MODEL, "mixed_precision")],
            list(_weights(subject.plain)),
            asked,
            [list(trial.prompts.texts), list(trial.prompts.groups), repr(trial.prompts.metadata)],
            [list(_judge(judge)) for judge in bench.judges],
            bench.settings.lpips_weights,
        ]
        one = subject.plain
        if one.mix or one.anneal:
            parts.append([[part.weight for part in one.mix or ()], str(one.anneal)])
        digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()
        return self.folder / "verdicts" / f"{digest}.json"


def _weights(subject: Subject) -> Iterator[tuple[str, int, int]]:
    """Files of the model that is judged, with their sizes and times: a model that was trained again is another one."""
    tuned = subject.tuned
    loras = [subject.lora, *(part.lora for part in subject.mix or ())]
    places = [Path(lora.file).expanduser() for lora in loras if lora and lora.file]
    home = model_folder(str(tuned["model"])) or Path(str(tuned["model"])).expanduser()
    for place in [*places, home]:
        for file in sorted(place.rglob("*.safetensors")) if place.is_dir() else [place] if place.is_file() else []:
            yield file.name, file.stat().st_size, file.stat().st_mtime_ns


def _judge(judge: NamedReward) -> Iterator[Any]:
    """What a judge is known by; of a sum, what every term is."""
    yield from (judge.name, _source(judge.function), _settings(judge.function))
    if isinstance(judge.function, Sum):
        yield from (list(_judge(term)) for term in judge.function.terms)


def _settings(function: Any) -> str:
    """What a judge was given: a function's bound arguments, an object's fields."""
    return repr(function if is_dataclass(function) else getattr(function, "keywords", {}))


def _source(function: Any) -> str:
    """What a judge is made of, as far as can be told: its text."""
    function = getattr(function, "func", function)
    try:
        return inspect.getsource(function if inspect.isroutine(function) else type(function))
    except (OSError, TypeError):  # typed into an interpreter, or not written in Python
        return repr(type(function))


def _read(file: Path) -> torch.Tensor:
    with Image.open(file) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None

"""Which pictures a report holds, and how: at most 800, small enough that the page stays below 20 MB."""

from __future__ import annotations

import io
import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from tastemaker.reports.charts import spread
from tastemaker.reports.records import Records

MOST = 800  # pictures in one report
BYTES = 11_000_000  # of all pictures together; base64 makes a third more of it
TINY = 128  # pixels: pictures up to this size are shown with their pixels as squares
SIZES = ((512, 82), (384, 80), (320, 78), (256, 76), (192, 72), (128, 68), (96, 60), (64, 50))  # edge and quality
DENSITY = 0.15  # bytes a pixel that a photograph takes at least
RANKS = ("best", "median", "worst")


class Picture(NamedTuple):
    """A picture in the page, with its row of samples.jsonl."""

    row: Mapping[str, Any]
    source: str  # a data address
    size: tuple[int, int]


class Training(NamedTuple):
    """Of one iteration's kept training pictures those that are shown, by rank."""

    iteration: int
    kept: int
    pictures: dict[str, Picture]


class Embedded(NamedTuple):
    """The pictures of a report. `left_out` says in words what is not there."""

    strips: dict[int, dict[int, Picture]]  # of the evaluations: id -> iteration -> picture
    training: list[Training]
    shown: int
    kept: int
    left_out: str

    @property
    def evaluated(self) -> list[int]:
        """The iterations of which there are evaluation pictures."""
        return sorted({iteration for strip in self.strips.values() for iteration in strip})

    @property
    def tiny(self) -> bool:
        """Whether pictures are so small that their pixels are shown as squares."""
        found = [one for strip in self.strips.values() for one in strip.values()]
        found += [one for group in self.training for one in group.pictures.values()]
        return bool(found) and max(max(one.size) for one in found) <= TINY


def embed(records: Records, most: int = MOST, size: int = BYTES) -> Embedded:
    """All evaluation strips, then of every iteration the best, the median and the worst, until `most` are reached.

    Where there are more, iterations are left out evenly, never the first or the last.
    """
    evaluations = _by_iteration(row for row in records.samples if row.get("kind") == "evaluation")
    trained = _by_iteration(row for row in records.samples if row.get("kind") != "evaluation")
    each = max((len(rows) for rows in evaluations.values()), default=1)
    judged = spread(sorted(evaluations), max(2, most // each))
    strips = [row for iteration in judged for row in evaluations[iteration]][:most]
    room = (most - len(strips)) // len(RANKS)
    shown = spread(sorted(trained), room) if room > 1 else []
    ranked = {iteration: _ranked(trained[iteration]) for iteration in shown}
    chosen = [*strips, *(row for group in ranked.values() for row in group.values())]
    encoder = Encoder(records.folder, size // max(1, len(chosen)))
    made: dict[int, dict[int, Picture]] = {}
    for row in strips:
        if picture := encoder(row):
            made.setdefault(row["id"], {})[row["iteration"]] = picture
    groups = []
    for iteration, group in ranked.items():
        pictures = {rank: picture for rank, row in group.items() if (picture := encoder(row))}
        if pictures:
            groups.append(Training(iteration, len(trained[iteration]), pictures))
    count = sum(map(len, made.values())) + sum(len(group.pictures) for group in groups)
    words = _left_out(records, count, encoder, (len(evaluations), len(judged)), (len(trained), len(shown)))
    return Embedded(made, groups, count, len(records.samples), words)


def _by_iteration(rows: Iterable[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    found: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        if isinstance(row.get("id"), int):
            found.setdefault(row["iteration"], []).append(row)
    return found


def _ranked(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Best, median and worst by reward; fewer of fewer pictures. What has no score comes last."""
    order = sorted(rows, key=lambda row: math.inf if row.get("reward") is None else -row["reward"])
    scored = [row for row in order if row.get("reward") is not None] or order
    places = {"best": 0, "median": (len(scored) - 1) // 2, "worst": len(scored) - 1}
    found: dict[str, Mapping[str, Any]] = {}
    for rank in ("best", "worst", "median"):
        if all(scored[places[rank]] is not row for row in found.values()):
            found[rank] = scored[places[rank]]
    return {rank: found[rank] for rank in RANKS if rank in found}


class Encoder:
    """Pictures as data addresses: files that are small as they are, others smaller until they fit their share."""

    def __init__(self, folder: Path, share: int) -> None:
        self.folder, self.share = folder.resolve(), share
        self.missing = self.shrunk = 0

    def __call__(self, row: Mapping[str, Any]) -> Picture | None:
        """The picture of a row of samples.jsonl; None where there is no such file, which is counted."""
        try:
            file = (self.folder / str(row.get("file"))).resolve()
            if not file.is_relative_to(self.folder):
                raise ValueError("a picture of another folder")
            data = file.read_bytes()
            with Image.open(io.BytesIO(data)) as picture:
                return self._encoded(row, picture, data)
        except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
            self.missing += 1
            return None

    def _encoded(self, row: Mapping[str, Any], picture: Image.Image, data: bytes) -> Picture:
        size, kind = picture.size, (picture.format or "").lower()
        if len(data) <= self.share and kind in ("webp", "png", "jpeg"):
            picture.load()  # a broken file is told apart here
            return Picture(row, _address(data, kind), size)
        self.shrunk += 1
        whole = picture.convert("RGB")
        likely = math.sqrt(self.share / DENSITY)  # larger ones need not be tried
        for edge, quality in [size for size in SIZES if size[0] <= max(likely, SIZES[-1][0])]:
            small = whole.copy()
            small.thumbnail((edge, edge), Image.Resampling.LANCZOS)
            held = io.BytesIO()
            small.save(held, "webp", quality=quality, method=2)
            if held.tell() <= self.share:
                break
        return Picture(row, _address(held.getvalue(), "webp"), small.size)


def _address(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{b64encode(data).decode()}"


def _left_out(records: Records, count: int, encoder: Encoder, judged: tuple[int, int], trained: tuple[int, int]) -> str:
    if not records.samples:
        return "This run kept no pictures."
    said = [f"{count:,} of the {len(records.samples):,} pictures that the run kept are in this page"]
    said.append("those of the evaluations, and of every iteration the best, the median and the worst training picture")
    words = [": ".join(said) + "."]
    for (there, shown), what in ((judged, "evaluations"), (trained, "iterations")):
        if shown < there:
            words.append(f"Of {there:,} {what} {shown:,} are shown, evenly from the first to the last.")
    if encoder.shrunk:
        words.append(f"{encoder.shrunk:,} are shown smaller than they were drawn.")
    if encoder.missing:
        words.append(f"{encoder.missing:,} have no readable file in samples/.")
    return " ".join(words)

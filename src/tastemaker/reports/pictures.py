"""Rows of pictures with titles and captions: before and after, best and worst, one look at a run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from PIL import Image, ImageDraw, ImageFont


class Pixels(Protocol):
    """A picture as a tensor [3,H,W] in [0,1], by what is asked of it: this package does not load torch."""

    def detach(self) -> Any: ...


Picture = Image.Image | Pixels
Resampling = Literal["lanczos", "nearest"]

EDGE = 192  # pixels: small pictures grow by a whole factor up to about this, large ones shrink to twice this
_GAP, _MARGIN = 10, 24  # pixels between pictures, and around them
_PAPER, _INK, _GREY = (255, 255, 255), (17, 24, 39), (75, 85, 99)
_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}
_LINES = 3  # a caption has at most so many


class _Words(NamedTuple):
    """A text broken into lines, with its font."""

    lines: tuple[str, ...]
    font: Any
    height: int  # of one line

    @property
    def size(self) -> tuple[int, int]:
        return max((math.ceil(self.font.getlength(line)) for line in self.lines), default=0), self.height * len(
            self.lines
        )


class _Row(NamedTuple):
    """One row of a grid: its title, its pictures, and what stands below each."""

    title: _Words
    cells: list[Image.Image]
    notes: list[_Words]

    @property
    def height(self) -> int:
        return max((cell.height for cell in self.cells), default=0)

    @property
    def depth(self) -> int:
        return max((words.size[1] + 8 for words in self.notes), default=0)


def grid(
    rows: Sequence[Sequence[Picture]],
    captions: Sequence[str] | Sequence[Sequence[str]] = (),
    titles: Sequence[str] = (),
    path: str | Path | None = None,
    *,
    notes: Sequence[Sequence[str]] = (),
    edge: int = EDGE,
    resampling: Resampling = "lanczos",
) -> Image.Image:
    """Rows of pictures under each other; written to `path` too when one is given.

    `titles` stand left of the rows; `captions` above the columns, one each (the prompts of before and after); `notes`
    below the pictures, one list a row (their scores). Captions given as one list a row are notes.
    Pictures are PIL images, or tensors [3,H,W] in [0,1].
    Errors: ValueError where there is nothing to show, or where titles, captions or notes do not fit the rows.
    """
    above, below = _captions([len(row) for row in rows], captions, titles, notes)
    cells = [[_sized(_image(picture), edge, resampling) for picture in row] for row in rows]
    wide = max(cell.width for row in cells for cell in row)
    small = max(12, min(16, wide // 11))  # the size of the letters
    tops = [_words(text, small, wide) for text in above]
    lines = [
        _Row(_words(title, small + 4, 7 * small), row, [_words(text, small, wide) for text in texts])
        for title, row, texts in zip(titles or [""] * len(cells), cells, below or [[]] * len(cells), strict=True)
    ]
    left = _MARGIN + (max(row.title.size[0] for row in lines) + 18 if any(titles) else 0)
    down = _MARGIN + max((words.size[1] + 6 for words in tops), default=0)
    right = left + max(map(len, cells)) * (wide + _GAP) - _GAP
    bottom = down + sum(row.height + row.depth + _GAP for row in lines) - _GAP
    sheet = Image.new("RGB", (right + _MARGIN, bottom + _MARGIN), _PAPER)
    for k, words in enumerate(tops):  # their last lines stand side by side, just above the pictures
        _write(sheet, words, (left + k * (wide + _GAP), down - 6 - words.size[1]), _GREY, wide)
    for row in lines:
        _draw(sheet, row, (left, down), wide)
        down += row.height + row.depth + _GAP
    if path is not None:
        sheet.save(path)
    return sheet


def strip(
    pictures: Sequence[Picture],
    captions: Sequence[str] = (),
    path: str | Path | None = None,
    *,
    edge: int = EDGE,
    resampling: Resampling = "lanczos",
) -> Image.Image:
    """One row of pictures, each with its caption below."""
    return grid([pictures], (), (), path, notes=[captions] if captions else (), edge=edge, resampling=resampling)


def save(picture: Picture, path: str | Path) -> None:
    """One picture as a file that keeps its pixels."""
    _image(picture).save(path, lossless=True)


def _captions(
    counts: list[int], captions: Sequence[Any], titles: Sequence[str], notes: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Captions above the columns, and notes below the pictures."""
    if not any(counts):
        raise ValueError("there is no picture to show: give at least one row with one picture.")
    if titles and len(titles) != len(counts):
        raise ValueError(f"{len(titles)} titles for {len(counts)} rows of pictures: give one a row, or none.")
    if captions and not isinstance(captions[0], str):
        if notes:
            raise ValueError(
                "captions, one list a row, stand where notes stand: give captions one a column, or no notes."
            )
        captions, notes = (), captions
    if captions and len(captions) != max(counts):
        raise ValueError(f"{len(captions)} captions for {max(counts)} columns of pictures: give one a column.")
    if notes and [len(row) for row in notes] != counts:
        raise ValueError(f"rows of {[len(row) for row in notes]} texts below rows of {counts} pictures: give one each.")
    return list(captions), [list(row) for row in notes]


def _image(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    pixels = picture.detach()
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"a picture is a tensor [3,H,W] in [0, 1], found the shape {list(pixels.shape)}.")
    levels = (pixels.float().nan_to_num() * 255).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().cpu()
    return Image.frombytes("RGB", (levels.shape[1], levels.shape[0]), levels.numpy().tobytes())


def _sized(picture: Image.Image, edge: int, resampling: Resampling) -> Image.Image:
    """Grown by a whole factor, so that every pixel stays as large as its neighbour; shrunk only when very large."""
    longest = max(picture.size)
    factor = max(1, round(edge / longest)) if longest <= 2 * edge else 2 * edge / longest
    if factor == 1:
        return picture
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, _FILTERS[resampling] if factor > 1 else Image.Resampling.LANCZOS)


def _words(text: str, size: int, room: int) -> _Words:
    """A text in lines no wider than `room` pixels; what does not fit into the last line ends in an ellipsis."""
    font = ImageFont.load_default(size=size)
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > _LINES:
        lines[_LINES - 1 :] = [lines[_LINES - 1] + " ..."]
    return _Words(tuple(_cut(line, font, room) for line in lines), font, round(1.3 * size))


def _cut(line: str, font: Any, room: int) -> str:
    if font.getlength(line) <= room:
        return line
    while line and font.getlength(line + "...") > room:
        line = line[:-1]
    return line.rstrip(" .") + "..."


def _draw(sheet: Image.Image, row: _Row, at: tuple[int, int], wide: int) -> None:
    """A row of pictures from `at` to the right, each in the middle of its cell."""
    _write(sheet, row.title, (_MARGIN, at[1] + (row.height - row.title.size[1]) // 2), _INK)
    for k, cell in enumerate(row.cells):
        left = at[0] + k * (wide + _GAP)
        sheet.paste(cell, (left + (wide - cell.width) // 2, at[1] + (row.height - cell.height) // 2))
        for words in row.notes[k : k + 1]:
            _write(sheet, words, (left, at[1] + row.height + 4), _GREY, wide)


def _write(
    sheet: Image.Image, words: _Words, at: tuple[int, int], ink: tuple[int, int, int], room: int | None = None
) -> None:
    """Lines from `at` downwards; in the middle of `room` pixels where it is given."""
    draw = ImageDraw.Draw(sheet)
    for k, line in enumerate(words.lines):
        shift = 0 if room is None else max(0, (room - words.font.getlength(line)) / 2)
        draw.text((at[0] + shift, at[1] + k * words.height), line, font=words.font, fill=ink)

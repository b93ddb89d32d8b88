import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tastemaker.reports.plot import HEIGHT, WIDTH, Series, line_chart

NAN = math.nan
SVG = "{http://www.w3.org/2000/svg}"


def chart(*series: Series) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart(series, title="title", x="iteration", y="reward"))


def texts(svg: ElementTree.Element, kind: str) -> list[str]:
    return [node.text or "" for node in svg.iter(f"{SVG}text") if node.get("class") == kind]


def ticks(svg: ElementTree.Element, anchor: str) -> list[str]:
    return [
        n.text or "" for n in svg.iter(f"{SVG}text") if n.get("class") == "tm-tick" and n.get("text-anchor") == anchor
    ]


def paths(svg: ElementTree.Element, kind: str) -> list[list[tuple[float, float]]]:
    """Corners of the paths of one kind, the legend's (which are drawn relatively) left out."""
    out = []
    for node in svg.iter(f"{SVG}path"):
        if (node.get("class") or "").startswith(kind) and "h" not in (d := node.get("d") or ""):
            out.append([(float(a), float(b)) for a, b in re.findall(r"([\d.-]+) ([\d.-]+)", d)])
    return out


def test_a_line_goes_through_its_points_at_scale() -> None:
    svg = chart(Series("", [0, 10, 20], [1.0, 3.0, 2.0]))
    (line,) = paths(svg, "tm-line")
    (a0, b0), (a1, b1), (a2, b2) = line
    assert a1 - a0 == pytest.approx(a2 - a1, abs=0.02)
    assert b0 - b1 == pytest.approx(2 * (b0 - b2), abs=0.02)  # up is up, and to scale
    assert b1 < b2 < b0
    dots = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in svg.iter(f"{SVG}circle")]
    assert dots == line
    assert ticks(svg, "end") == ["1.0", "1.5", "2.0", "2.5", "3.0"]
    assert all(0 < a < WIDTH and 0 < b < HEIGHT for a, b in line)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([0.0, 1.0], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([1.83, 2.63], ["1.8", "2.0", "2.2", "2.4", "2.6", "2.8"]),
        ([-0.3, 0.81], ["−0.50", "−0.25", "0.00", "0.25", "0.50", "0.75", "1.00"]),
        ([0, 12500], ["0", "2,500", "5,000", "7,500", "10,000", "12,500"]),
        ([1e-5, 5e-5], ["1e−5", "2e−5", "3e−5", "4e−5", "5e−5"]),
        ([0, 5e8], ["0", "1e8", "2e8", "3e8", "4e8", "5e8"]),
        ([3.0, 3.0], ["2.6", "2.8", "3.0", "3.2", "3.4"]),
        ([0.0, 0.0], ["−0.6", "−0.4", "−0.2", "0.0", "0.2", "0.4", "0.6"]),
        ([7.0, 7.0 + 1e-12], ["6.0", "6.5", "7.0", "7.5", "8.0"]),  # rounding noise is no change
    ],
)
def test_ticks_stand_at_round_numbers(numbers: list[float], expected: list[str]) -> None:
    assert ticks(chart(Series("", [0, 1], numbers)), "end") == expected


@pytest.mark.parametrize(
    ("last", "expected"), [(1, "0 1"), (3, "0 1 2 3"), (7, "0 1 2 3 4 5 6 7"), (20, "0 5 10 15 20")]
)
def test_counted_things_have_whole_ticks(last: int, expected: str) -> None:
    assert ticks(chart(Series("", range(last + 1), [float(k) for k in range(last + 1)])), "middle") == expected.split()


def test_the_band_surrounds_the_line_and_fits() -> None:
    svg = chart(Series("", [0, 1, 2], [1.0, 2.0, 3.0], [0.5, 1.5, 2.5], [1.5, 2.5, 3.9]))
    (band,), (line,) = paths(svg, "tm-band"), paths(svg, "tm-line")
    assert len(band) == 6
    assert [a for a, _ in band] == [a for a, _ in line] + [a for a, _ in reversed(line)]
    for (_, low), (_, high), (_, middle) in zip(band[:3], reversed(band[3:]), line, strict=True):
        assert high < middle < low
    assert ticks(svg, "end")[0] == "0" and ticks(svg, "end")[-1] == "4"


def test_what_was_not_measured_is_a_gap() -> None:
    svg = chart(
        Series("", [0, 1, 2, 3, 4], [1.0, 2.0, NAN, 2.0, 1.0], [NAN, 1.0, 1.0, 1.0, 0.0], [2.0, 3.0, 4.0, 3.0, 2.0])
    )
    assert [len(line) for line in paths(svg, "tm-line")] == [2, 2]
    assert [len(band) for band in paths(svg, "tm-band")] == [8]
    assert "nan" not in ElementTree.tostring(svg).decode().lower()


@pytest.mark.parametrize("series", [(), (Series("a", [], []),), (Series("a", [0, 1], [NAN, math.inf]),)])
def test_nothing_to_draw_says_so(series: tuple[Series, ...]) -> None:
    assert "nothing measured yet" in texts(chart(*series), "tm-words")
    assert "nothing measured yet" not in texts(chart(Series("a", [3], [1.0])), "tm-words")


def test_words_are_escaped_and_cut() -> None:
    name = 'a <b> & "c" \x00\x07'
    text = line_chart([Series(name, [0], [1.0])], title="</svg>" + "long " * 90, x="<x>", y="y & z")
    svg = ElementTree.fromstring(text)
    assert {'a <b> & "c" ', "<x>", "y & z"} <= set(texts(svg, "tm-words"))
    (title,) = texts(svg, "tm-title")
    assert title.startswith("</svg>long") and title.endswith("…")
    assert len(title) < 80


def test_the_legend_names_every_series_in_its_colour_and_wraps() -> None:
    many = [Series(f"series number {k}", [0, 1], [k, k + 1.0]) for k in range(9)]
    svg = chart(*many)
    names = [n for n in svg.iter(f"{SVG}text") if (n.text or "").startswith("series")]
    assert [n.text for n in names] == [one.name for one in many]
    rows = sorted({float(n.get("y", "")) for n in names})
    assert len(rows) > 1
    highest = min(b for line in paths(svg, "tm-line") for _, b in line)
    assert rows[-1] < highest  # the drawing makes room for it
    marks = [
        re.sub(r".*tm-s(\d).*", r"\1", n.get("class") or "")
        for n in svg.iter(f"{SVG}path")
        if "h18" in (n.get("d") or "")
    ]
    assert marks == [str(k % 6) for k in range(9)]
    dashed = [bool(n.get("stroke-dasharray")) for n in svg.iter(f"{SVG}path") if "h18" in (n.get("d") or "")]
    assert dashed == [False] * 6 + [True] * 3  # a colour used again is told apart


def test_many_points_are_a_line_with_its_end() -> None:
    svg = chart(Series("", range(500), [math.sin(k / 50) for k in range(500)]))
    assert len(paths(svg, "tm-line")[0]) == 500
    assert len(list(svg.iter(f"{SVG}circle"))) == 1


def test_points_have_their_texts_beside_them() -> None:
    svg = chart(Series("a", [0, 1, 2], [0, 1, math.nan], labels=["first", "", "lost"]))
    said = ["".join(n.itertext()) for n in svg.iter(f"{SVG}text")]
    assert "first" in said and "lost" not in said
    with pytest.raises(ValueError, match="'a' has 2 x and 1 labels"):
        chart(Series("a", [0, 1], [0, 1], labels=["one"]))


def test_is_written_and_says_the_same_again(tmp_path: Path) -> None:
    series = [Series("a", [0, 1], [1, 2])]
    text = line_chart(series, title="t", x="x", y="y", path=tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").read_text(encoding="utf-8") == text == line_chart(series, title="t", x="x", y="y")
    assert "prefers-color-scheme: dark" in text and 'class="tm-paper"' in text  # its own background, either way


def test_refuses_columns_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="'a' has 2 x and 1 y"):
        chart(Series("a", [0, 1], [1.0]))
    with pytest.raises(ValueError, match="'a' has 1 x and 2 high"):
        chart(Series("a", [0], [1.0], [1.0], [1.0, 2.0]))
    with pytest.raises(ValueError, match="one end of its interval"):
        chart(Series("a", [0], [1.0], [1.0]))

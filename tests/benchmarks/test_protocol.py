"""The learning table: when a row learns, what it says of what is missing, when a run has crossed a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import protocol
import pytest
import queries
from protocol import crossing, page, table, verdict
from rows import Row

from tastemaker.evaluation.statistics import over_seeds

ROW = Row("mine", "short", "ddpo", "jpeg_compressibility", {"iterations": 7})


def point(sd: float, rows: int = 0, **oracle: float) -> dict[str, Any]:
    read = {f"oracle_{name}": oracle.get(name, 1.0) for name in ("count", "colour", "shape")}
    return {"sd": sd, "rows_forward": rows, "rows_backward": rows // 2, "diversity": 0.125 - rows / 1e5} | read


def run(sd: float, seed: int = 0, *, low: float | None = None, control: bool = False, **more: Any) -> dict[str, Any]:
    change = {"sd": sd, "mean": sd / 2, "low": sd / 4 if low is None else low, "high": sd}
    spent = {"iterations": 7, "queries": 1234, "rows_forward": 5678, "rows_backward": 2839, "seconds": 61.0}
    curve = [point(0.0), point(sd, 5000, count=0.5, colour=0.75)]
    own = {"row": "mine", "seed": seed, "control": control, "threads": 1, "change": change, "curve": curve}
    return own | {"reward": [-3.0, -3.0 + sd]} | spent | more


def three(*sds: float, **more: Any) -> list[dict[str, Any]]:
    return [run(sd, seed, **more) for seed, sd in enumerate(sds)]


@pytest.mark.parametrize(
    ("runs", "control", "said"),
    [
        (three(1.0, 1.1, 1.2), three(0.0, 0.1, -0.1, control=True), "learns"),
        (three(1.0, 1.1, 1.2), [], "learns"),
        (three(1.0, 1.1, -0.1, low=0.1), [], "a seed went down; not clear of zero over seeds"),
        ([*three(1.0, 1.1), run(1.2, 2, low=-0.01)], [], "learns (2 of 3 runs are clear of zero by themselves)"),
        ([run(1.0, low=-0.01)], [], "a run is not clear of zero (1 seed)"),
        (three(0.1, 1.1, 2.4), [], "not clear of zero over seeds"),  # each seed goes up, but they do not agree
        (
            three(1.0, 1.1, 1.2),
            three(0.8, 0.9, 1.0, control=True),
            "not clear of the control; the control is not near zero (+0.90)",
        ),
        (three(1.0, 1.1, 1.2), [run(9.0, control=True)], "learns"),  # one control has no interval
        ([run(1.0)], [], "learns (1 seed)"),
        (three(1.0, 1.1), [], "learns (2 seeds)"),
    ],
)
def test_a_row_learns_or_says_why_not(runs: list[Any], control: list[Any], said: str) -> None:
    assert verdict(runs, control) == said


def test_the_table_has_the_numbers_of_the_lines_and_says_what_is_missing() -> None:
    runs = three(1.0, 1.1, 1.5)
    runs[1]["curve"][0].pop("diversity")  # a line that was written before it was measured
    cells = [cell.strip() for cell in table([ROW], runs).splitlines()[2].split("|")[1:-1]]
    found = over_seeds([1.0, 1.1, 1.5])
    assert cells == [
        "mine",
        "3 + 0",
        "7",
        "1,234",
        "5,678 / 2,839",
        "61 of 90 (1 threads)",
        f"+1.20 [{found.low:+.2f}, {found.high:+.2f}] (+1.00 +1.10 +1.50)",
        "-",
        "100.0 -> 50.0",
        "100.0 -> 75.0",
        "100.0 -> 100.0",
        "-",
        "learns, controls still to be run",
    ]
    whole = table([ROW], three(1.0, 1.1, 1.5)).splitlines()[2]
    assert "| 0.125 -> 0.075 |" in whole
    head, line, empty = (table([ROW], []).splitlines()[k] for k in (0, 1, 2))
    assert head.count("|") == line.count("|") == empty.count("|") == 14
    assert empty == "| mine | 0 + 0 |" + " - |" * 10 + " not run yet |"


def test_the_page_lists_the_runs_and_controls_that_are_missing() -> None:
    told = page([ROW], [run(1.0, 0), run(1.0, 2), run(0.0, 1, control=True)])
    assert told.startswith(protocol.PAGE) and "| mine | 2 + 1 |" in told
    assert told.endswith("- mine: runs of seed 1\n- mine: controls of seed 0, 2\n")
    whole = page([ROW], [*three(1.0, 1.0, 1.1), *three(0.0, 0.1, 0.0, control=True)])
    assert "Still to be run" not in whole
    bare = Row("mine", "long", "ddpo", "r", control=False, seeds=1)
    assert "Still to be run" not in page([bare], [run(1.0)])


def test_a_crossing_lies_on_the_line_between_two_evaluations() -> None:
    curve = [point(0.0), point(0.4, 1000), point(1.2, 3000), point(0.2, 4000)]
    assert crossing({"curve": curve}) == (pytest.approx(2000), pytest.approx(1000), 2)
    assert crossing({"curve": curve}, 0.2) == (pytest.approx(500), pytest.approx(250), 1)
    assert crossing({"curve": curve}, 1.2) == (pytest.approx(3000), pytest.approx(1500), 2)
    assert crossing({"curve": curve}, 1.21) is None


def test_the_fast_rows_are_compared_by_the_rows_until_the_same_change() -> None:
    slow, fast = Row("ddpo-64x20", "fast", "ddpo", "r"), Row("shapes_ddpo_fast", "fast", "shapes_ddpo_fast", "r")
    runs = [run(1.6, row=one.name, curve=[point(0.0), point(1.6, n)]) for one, n in ((slow, 8000), (fast, 2000))]
    told = table([slow, fast], runs)
    assert "ddpo-64x20: 0.8 SD after 4,000 rows forward, 2,000 of them backward too (1 seed)" in told
    assert told.endswith("fast: 0.25 of the rows forward, 0.25 of those backward (goal 0.50) - yes")
    never = run(0.5, 1, row=fast.name, curve=[point(0.0), point(0.5, 2000)])
    told = table([slow, fast], [*runs, never])
    assert "shapes_ddpo_fast: 1 of 2 runs never reached 0.8 SD" in told and "fast: 0.25" not in told


def test_the_demo_has_goals_of_its_own() -> None:
    row = Row("demo", "demo", "ddpo", "r")
    runs = [run(1.0, seed, row="demo", curve=[point(0.0), point(1.0, colour=0.97)]) for seed in range(3)]
    told = table([row], [*runs, run(0.3, row="demo", control=True)])
    assert "demo: JPEG size -33.3 % (goal -15) - yes" in told
    assert "demo: oracle, worst seed, in points: colour -3.0, shape -0.0 - yes" in told
    assert "the control moved 0.30 SD, 30% of it (goal below 25 %) - NO" in told


def test_queries_to_the_level_of_ddpo_lie_on_the_curve() -> None:
    rows = [Row("draft-quick", "queries", "draft", "jpeg_proxy", judge="jpeg_compressibility")]
    slow = [{"iteration": k} | point(sd) for k, sd in ((0, 0.0), (20, 1.0), (40, 2.0))]
    level = run(2.0, row="ddpo-2560", iterations=40, queries=2560, curve=slow)
    height = 2500 / 64 / 20  # 2,500 queries lie between the last two evaluations
    fast = [{"iteration": k} | point(sd, colour=colour) for k, sd, colour in ((0, 0.0, 1.0), (8, 2 * height, 0.92))]
    quick = run(2 * height, row="draft-quick", iterations=8, queries=128, curve=fast)
    told = table(rows, [level, quick])
    said = f"queries to {height:+.2f} SD: draft-quick: 64 (64), 39.1 x fewer than DDPO; oracle there"
    assert f"queries: after 2,500 queries ddpo-2560 stands at {height:+.2f} SD" in told and said in told
    assert f"queries to {height:+.2f} SD: ddpo-2560: 2500 (2500), 1.0 x fewer than DDPO" in told
    assert (
        "queries to +0.80 SD: draft-quick: 26 (26), 39.1 x fewer than DDPO" in told
        and told.endswith("- yes")
        and "- NO" not in told
    )
    never = run(0.1, 1, row="draft-quick", iterations=8, queries=128, curve=[*fast[:1], {"iteration": 8} | point(0.1)])
    assert " SD: draft-quick: 1 of 2 runs never reached it - NO" in table(rows, [level, quick, never])
    fast[1] |= {"changes": {"jpeg_compressibility": 0.9}}  # of a run that is judged by something else
    assert f"{height:+.2f} SD: draft-quick: 1 of 1 runs never" in table(rows, [level, quick])
    assert "queries" not in table(rows, [quick]).split("verdict |")[1]


def test_the_chart_shows_rows_that_were_run(tmp_path: Path) -> None:
    curve = [{"iteration": k} | point(sd) for k, sd in ((0, 0.0), (20, 1.0), (40, 2.0))]
    runs = [run(2.0, seed, row="ddpo-2560", iterations=40, queries=2560, curve=curve) for seed in (0, 1)]
    assert queries.chart(["draft-quick"], runs, tmp_path / "queries.svg")
    text = (tmp_path / "queries.svg").read_text()
    assert "ddpo: reward queries, power of ten 3.40824, change, SD of the base 2" in text and "draft" not in text
    assert not queries.chart(["draft-quick"], [], tmp_path / "none.svg") and not (tmp_path / "none.svg").exists()
    rows = [Row("draft-quick", "queries", "draft", "jpeg_proxy")]
    assert "images/queries.svg" in page(rows, runs) and "images/queries.svg" not in page([ROW], runs)

"""The lessons: numbers come from the sweeps' files, verdicts by their rules, and the page is written between marks."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lessons
import pytest
from lessons_plots import plots
from lessons_report import fallen, told
from lessons_runs import LESSONS, NO, OPEN, YES, by_title, way

from tastemaker import config
from tastemaker.evaluation.statistics import over_seeds

MARKS = "before\n<!-- {0}: written by make lessons -->\nold\n<!-- end of {0} -->\nafter\n"


def point(iteration: int, sd: float | None, **more: Any) -> dict[str, Any]:
    ends = {"low": sd and sd - 0.1, "high": sd and sd + 0.1}
    read = {"count": 0.75, "colour": 1.0, "shape": 1.0, "diversity": 0.1, "reward": -3.0}
    spent = {"queries": 32 * iteration, "rows": 960 * iteration, "seconds": 3.0 * iteration}
    return {"iteration": iteration, "sd": sd} | ends | read | spent | more


def run(recipe: str, variant: str, seed: int, *sds: float | None, broke: str = "", **last: Any) -> dict[str, Any]:
    curve = [point(10 * k, sd) for k, sd in enumerate((0.0, *sds))]
    curve[-1] |= last
    return {"recipe": recipe, "variant": variant, "seed": seed, "broke": broke, "curve": curve}


def seeds(recipe: str, variant: str, *ends: float, **last: Any) -> list[dict[str, Any]]:
    return [run(recipe, variant, seed, sd / 2, sd, **last) for seed, sd in enumerate(ends)]


def verdicts(name: str, runs: Sequence[dict[str, Any]]) -> list[str]:
    return re.findall(r"^- (.*)$", told(name, runs, []), re.MULTILINE)


def prompts(few: Sequence[float], every: Sequence[float]) -> list[dict[str, Any]]:
    return [one for n, ends in ((4, few), (120, every)) for one in seeds("lesson_prompts", f"count={n}", *ends)]


@pytest.mark.parametrize(
    ("few", "every", "said"),
    [
        ((1.0, 1.1, 1.2), (0.5, 0.61, 0.7), [YES, YES, YES]),
        ((0.5, 0.61, 0.7), (1.0, 1.1, 1.2), [YES, NO, NO]),
        ((1.0, 1.1, 1.2), (1.2, 0.9, 1.1), [YES, OPEN, OPEN]),
        ((0.1, 1.1, -0.2), (1.0, 1.1, 1.2), [OPEN, OPEN, OPEN]),
        ((-1.0, -1.1, -1.2), (1.0, 1.1, 1.2), [NO, NO, NO]),
    ],
)
def test_a_difference_appears_where_its_interval_is_clear_of_zero(
    few: Sequence[float], every: Sequence[float], said: list[str]
) -> None:
    assert [
        next(word for word in (YES, NO, OPEN) if word in line) for line in verdicts("prompts", prompts(few, every))
    ] == said


def test_seeds_are_paired() -> None:
    """Seeds that differ by much more than the variants do, by the same in both."""
    line = verdicts("prompts", prompts((1.1, 2.12, 3.1), (1.0, 2.0, 3.0)))[2]
    found = over_seeds([0.1, 0.12, 0.1])
    assert YES in line and f"(+0.11 [{found.low:+.2f}, {found.high:+.2f}] SD)" in line


def rates(**works: dict[str, float | None]) -> list[dict[str, Any]]:
    """Runs of both kinds at three rates: the oracle's colour at the end, None for a run that broke."""
    runs = []
    for kind, switch in (("lora", "on"), ("whole", "off")):
        for rate, colour in works[kind].items():
            more = {"broke": "the loss is not finite"} if colour is None else {"colour": colour}
            runs.append(run("lesson_lora", f"lora={switch}, learning_rate={rate}", 0, 1.0, **more))  # type: ignore[arg-type]
    return runs


def test_a_rate_works_where_no_run_breaks_stays_or_leaves_its_prompts() -> None:
    good = {"1e-5": 1.0, "1e-4": 0.951, "1e-3": 0.949}
    bad = {"1e-5": 1.0, "1e-4": 0.94, "1e-3": None}
    said = verdicts("lora", rates(lora=good, whole=bad))
    assert said[0].endswith(f"{YES}.") and f"(1e-5 against 1e-5, 1e-4): {YES}" in said[1]
    said = verdicts("lora", rates(lora=bad, whole=good))
    assert f"(1e-5, 1e-4 against 1e-5): {NO}" in said[1]
    flat = [
        one | {"curve": [*one["curve"][:-1], one["curve"][-1] | {"low": -0.01}]} for one in rates(lora=good, whole=bad)
    ]
    assert "(none against none)" in verdicts("lora", flat)[1]
    assert "| whole network, 1e-3 | 1, 1 broke | - | - |" in told("lora", rates(lora=good, whole=bad), [])


def long(variant: str, *rewards: Sequence[float]) -> dict[str, Any]:
    """A run with these pictures' rewards at its evaluations, in units of the base's spread."""
    base = sum(rewards[0]) / len(rewards[0])
    curve = [point(10 * k, sum(row) / len(row) - base, values=list(row)) for k, row in enumerate(rewards)]
    return {"recipe": "lesson_decay", "variant": f"lr_scheduler={variant}", "seed": 0, "broke": "", "curve": curve}


BASE = [-3.0 - 0.01 * k for k in range(40)]
BEST = [-1.0 - 0.01 * k for k in range(40)]
FEW_FELL = [*(value - 12.0 for value in BEST[:3]), *BEST[3:]]
ALL_FELL = [value - 0.9 for value in BEST]


def test_the_share_of_a_fall_that_outliers_account_for() -> None:
    found = fallen(long("constant", BASE, BEST, FEW_FELL, [value - 0.2 for value in BEST]))
    assert found is not None and (found.best["iteration"], found.worst["iteration"]) == (10, 20)
    assert found.depth == pytest.approx(0.9) and found.low.sum() == 3
    assert found.share == pytest.approx(1) and found.half == pytest.approx(2 / 40)
    # everybody loses the same; the fence lies at -1.2925 - 1.5 x 0.195, below which the lower 3 of 40 end
    even = fallen(long("constant", BASE, BEST, ALL_FELL))
    assert even is not None and even.half == pytest.approx(20 / 40)
    assert even.low.sum() == sum(value - 0.9 < -1.2925 - 1.5 * 0.195 for value in BEST)
    assert fallen(long("constant", BASE, BEST)) is None


@pytest.mark.parametrize(
    ("constant", "decaying", "said"),
    [
        (FEW_FELL, BEST, [YES, YES, YES]),
        (ALL_FELL, ALL_FELL, [YES, NO, NO]),
        ([value - 0.4 for value in BEST], BEST, [NO, OPEN]),
    ],
)
def test_a_fall_its_outliers_and_what_mends_it(constant: list[float], decaying: list[float], said: list[str]) -> None:
    lines = verdicts("decay", [long("constant", BASE, BEST, constant), long("linear", BASE, BEST, decaying)])[2:]
    assert [next(word for word in (YES, NO, OPEN) if word in line) for line in lines] == said


def clips() -> list[dict[str, Any]]:
    ends = {"1e-5": (0.5, 0.6, 0.7), "1e-4": (1.0, 1.11, 1.2), "1e-3": (2.0, 2.1, 2.21)}
    runs = [one for clip, found in ends.items() for one in seeds("lesson_clip", f"clip={clip}", *found)]
    return runs + seeds("lesson_reinforce", "learning_rate=3e-3", 0.2, 0.9, 1.7)


def test_clips_are_compared_with_the_published_one() -> None:
    below, above, score = verdicts("clip", clips())
    assert YES in below and NO in above and OPEN in score and "at 3e-3" in score
    assert list(by_title(clips())) == ["DDPO, clip 1e-5", "DDPO, clip 1e-4", "DDPO, clip 1e-3", "REINFORCE, 3e-3"]
    assert math.isnan(way(run("lesson_clip", "clip=1e-4", 0, 1.0, broke="nan"))) and way(clips()[0]) == 0.375


def steps(count: float) -> list[dict[str, Any]]:
    """Rising by 1 at one step and less at more; the whole chain costs most, and loses `count` of the count."""
    ends = {"1": (1.0, 1.1, 1.2), "2": (0.8, 0.9, 1.02), "5": (1.0, 1.12, 1.2), "10": (0.4, 0.5, 0.61)}
    runs = [one for k, found in ends.items() for one in seeds("lesson_steps", f"k={k}", *found)]
    for one in runs:
        seconds, points = (600.0, 0.75 - count - one["seed"] / 1e3) if one["variant"] == "k=10" else (60.0, 0.7)
        one["curve"][-1] |= {"seconds": seconds, "count": points}
    return runs + seeds("lesson_uniform", "truncation=uniform", 0.9, 1.0, 1.1)


def test_steps_with_a_graph_are_compared_by_the_minute_by_reward_and_by_count() -> None:
    minute, two, five, ten, one, whole = verdicts("steps", steps(0.2))
    assert YES in minute and "(+1.05 [" in minute  # 1.1 a minute against 0.05
    assert YES in two and OPEN in five and YES in ten
    assert YES in one and "(+5.00 [" in one and YES in whole and "(+20." in whole and whole.endswith("points).")
    assert NO in verdicts("steps", steps(-0.1))[-1]
    assert list(by_title(steps(0))) == ["DRaFT, k=1", "DRaFT, k=2", "DRaFT, k=5", "DRaFT, k=10", "AlignProp"]


def held(**left: float) -> list[dict[str, Any]]:
    """Runs that kept so much diversity of 0.1: by kl, with the bonus, with dropout."""
    names = {"kl=0": "none", "kl=.003": "little", "kl=.03": "much"}
    runs = [one for name, key in names.items() for one in seeds("lesson_kl", name, 1, 1.1, 1.2, diversity=left[key])]
    for name in ("diversity=10", "reward_dropout=true"):
        runs += seeds("lesson_remedies", name, 1, 1.1, 1.2, diversity=left["other"])
    runs += seeds("lesson_kl_ddpo", "learning_rate=3e-3", 1, 1.1, 1.2)
    for one in runs:
        one["curve"][-1]["diversity"] += one["seed"] / 1e4
    return runs


def test_what_holds_a_run_is_told_by_the_diversity_that_is_left() -> None:
    left, none, little, much, bonus, dropout, _ = verdicts("kl", held(none=0.02, little=0.04, much=0.09, other=0.02))
    assert "DRaFT 20%, DRaFT+, kl .003 40%" in left and "DDPO, 3e-3 100%" in left
    assert YES in none and YES in little and YES in much and "+0.70 [" in much and "DRaFT+, kl .03 keeps" in much
    assert OPEN in bonus and OPEN in dropout and "A bonus for diversity keeps" in bonus
    rules = verdicts("kl", held(none=0.09, little=0.09, much=0.02, other=0.095))
    assert NO in rules[1] and NO in rules[2] and NO in rules[3] and OPEN in rules[6]


def test_a_measure_stops_a_run_before_it_has_lost_too_much() -> None:
    runs = held(none=0.02, little=0.04, much=0.09, other=0.02)
    for one in runs[:3]:
        one["curve"][1] |= {"colour": 0.96}
        one["curve"][2] |= {"colour": 0.7, "shape": 0.94}
    assert verdicts("kl", runs)[-1] == (
        "3 of 3 runs go on to lose more than 5 points of colour or shape. Stopped before that (iteration 10, 10, 10) "
        "they stand at +0.55 SD; going on costs 30 points."
    )
    runs[0]["curve"][2] |= {"colour": 0.96, "shape": 1.0}
    assert verdicts("kl", runs)[-1].startswith("2 of 3 runs go on") and "+0.57 SD" in verdicts("kl", runs)[-1]


def test_plots_show_every_variant(tmp_path: Path) -> None:
    pair = [long("constant", BASE, BEST, FEW_FELL), long("linear", BASE, BEST, BEST)]
    some = {"prompts": prompts((1, 1, 2), (1, 2, 2)), "clip": clips(), "decay": pair}
    some |= {"steps": steps(0.1), "kl": held(none=0.02, little=0.04, much=0.09, other=0.02)}
    some["lora"] = rates(lora={"1e-5": 1.0, "1e-4": 0.9}, whole={"1e-5": 1.0, "1e-4": None})
    for name, runs in some.items():
        for path in plots(name, runs, tmp_path):
            text = "".join(ElementTree.parse(path).getroot().itertext())
            if name not in ("lora", "decay"):
                assert all(one in text for one in by_title(runs))
    assert "decaying to zero" in (tmp_path / "decay.svg").read_text()
    drawn = (tmp_path / "decay_histogram.svg").read_text()
    assert "outliers of iteration 20" in drawn and drawn.count("outliers of iteration 20: ") == 3
    assert (tmp_path / "lora.svg").read_text().count("broke, or lost over 5 points of colour or shape: ") == 2


def sweep(folder: Path, recipe: str, variants: Sequence[str]) -> None:
    """What `tastemaker sweep` leaves, as far as it is read: two evaluations of two pictures."""
    made = []
    for variant in variants:
        home = lessons.home(recipe, folder) / variant / "seed-0"
        home.mkdir(parents=True)
        oracle = {f"shapes_alignment.{name}": 0.5 for name in ("count", "colour", "shape")}
        curve, rows = [], []
        for iteration, mean in ((0, -3.0), (7, -2.5)):
            spent = {"queries": iteration * 32, "rows": iteration * 960, "seconds": iteration * 3.0}
            curve.append({"iteration": iteration, "reward": mean, "diversity": 0.1, "scores": oracle} | spent)
            change = {"mean": mean + 3.0, "low": (mean + 3) / 2, "high": mean + 3, "deviations": 2 * (mean + 3)}
            values = {"jpeg_compressibility": [mean - 0.123456, None], "shapes_alignment": [1.0, 1.0]}
            rows.append(
                {"reward": {"jpeg_compressibility": {}}, "change": {"jpeg_compressibility": change}, "values": values}
            )
        (home / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        made.append({"variant": variant, "seed": 0, "folder": f"{variant}/seed-0", "broke": "", "curve": curve})
    (lessons.home(recipe, folder) / "sweep.json").write_text(json.dumps({"runs": made}))


def test_sweeps_that_have_ended_are_collected_and_the_page_filled(tmp_path: Path) -> None:
    page, results = tmp_path / "lessons.md", tmp_path / "results" / "lessons.jsonl"
    page.write_text(MARKS.format("prompts") + MARKS.format("clip"))
    asked = ["--table", "--folder", str(tmp_path), "--results", str(results), "--page", str(page)]
    sweep(tmp_path, "lesson_prompts", ["count=4", "count=120"])
    sweep(tmp_path, "lesson_clip", ["clip=1e-5", "clip=1e-4", "clip=1e-3"])
    assert lessons.main([*asked, "--lesson", "prompts,clip"]) == 0
    found = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(one["lesson"], one["variant"]) for one in found[:2]] == [("prompts", "count=4"), ("prompts", "count=120")]
    last = found[0]["curve"][1]
    assert (last["sd"], last["low"], last["high"], last["iteration"], last["count"]) == (1.0, 0.5, 1.0, 7, 0.5)
    assert "values" not in last and found[0]["machine"]["torch"]
    text = page.read_text()
    assert "| 4 prompts | 1 | +1.00 [+0.50, +1.00] over prompts | +1.00 | 50.0 |" in text
    assert "images/lessons/prompts.svg" in text and (tmp_path / "images" / "lessons" / "prompts.svg").is_file()
    assert text.startswith("before\n") and text.count("after\n") == 2
    assert text.endswith(MARKS.format("clip"))  # its second sweep has not ended
    sweep(tmp_path, "lesson_reinforce", ["learning_rate=3e-3"])
    assert lessons.main([*asked, "--lesson", "clip"]) == 0 and "| REINFORCE, 3e-3 | 1 |" in page.read_text()
    assert lessons.main([*asked, "--lesson", "prompts,clip"]) == 0
    assert len(results.read_text().splitlines()) == 6  # the same runs again are no new lines


def test_pictures_rewards_are_kept_where_a_lesson_looks_at_them(tmp_path: Path) -> None:
    sweep(tmp_path, "lesson_decay", ["lr_scheduler=constant"])
    (found,) = lessons.collect(LESSONS["decay"], tmp_path)
    assert found["curve"][0]["values"] == [-3.1235, None] and found["curve"][0]["low"] == 0


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="<!-- prompts: written by make lessons -->"):
        lessons.fill("nothing", "prompts", "text")


def test_every_lesson_has_its_place_on_the_page_and_its_command(tmp_path: Path) -> None:
    text = (lessons.DOCS / "lessons.md").read_text()
    for name, lesson in LESSONS.items():
        lessons.fill(text, name, "")
        for recipe in lesson.recipes:
            words = lessons.command(recipe, tmp_path)
            assert words[:2] == ["sweep", recipe] and words[-1] == str(tmp_path / recipe.removeprefix("lesson_"))
            header = config.recipes()[recipe].read_text()
            (shown,) = re.findall(r"^# Run: (.*)$", header, re.MULTILINE)
            assert f"`{shown}`" in text

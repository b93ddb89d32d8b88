"""The report in a real browser: it draws, sorts, enlarges and steps, and runs nothing that a run's texts bring."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

import report_runs
from chromium import Chromium
from tastemaker import reporting
from tastemaker.reports import live
from tastemaker.reports.records import Records

pytestmark = pytest.mark.browser


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return report_runs.make(tmp_path / "run", alarms=True)


@pytest.fixture
def page(browser: Chromium, run: Path) -> Chromium:
    browser.look(1240, 900)
    browser.open(reporting.write(run).as_uri())
    return browser


def column(browser: Chromium, place: int) -> list[Any]:
    rows = f"[...document.querySelectorAll('#prompt-table tbody tr')].map(row => row.cells[{place}])"
    values: list[Any] = browser.js(
        f"{rows}.map(c => c.querySelector('data') ? +c.querySelector('data').value : c.textContent)"
    )
    return values


def viewer(browser: Chromium) -> dict[str, Any]:
    found: dict[str, Any] = browser.js(
        "({open: document.getElementById('viewer').open, where: document.getElementById('viewer-where').textContent,"
        "prompt: document.getElementById('viewer-prompt').textContent,"
        "seen: document.getElementById('viewer-image').naturalWidth,"
        "source: document.getElementById('viewer-image').src})"
    )
    return found


def test_pictures_and_curves_are_seen_and_nothing_is_wrong(page: Chromium) -> None:
    broken = page.js(
        "Promise.all([...document.querySelectorAll('img[src]')].map(async one => {"
        "try { one.loading = 'eager'; await one.decode();"
        "return one.naturalWidth > 0 && one.getBoundingClientRect().width > 20 }"
        "catch { return false } })).then(all => [all.length, all.filter(one => !one).length])"
    )
    assert broken == [6 + 9 + 18, 0]
    charts = page.js(
        "[...document.querySelectorAll('svg.chart')].filter(one => one.getClientRects().length).map(one => {"
        "const mark = one.querySelector('.line, rect'); const box = mark ? mark.getBoundingClientRect() : {width: 0};"
        "return one.getBoundingClientRect().width > 200 && box.width > 0"
        " && getComputedStyle(one.querySelector('text')).fill !== 'rgb(0, 0, 0)' })"
    )
    assert len(charts) > 12 and all(charts)
    assert page.wrong == [] and [one for one in page.asked if not one.startswith(("file:", "data:"))] == []


def test_sorting(page: Chromium) -> None:
    first = column(page, 4)
    page.click("#prompt-table th:nth-child(5) button")
    assert column(page, 4) == sorted(first)
    page.click("#prompt-table th:nth-child(5) button")
    assert column(page, 4) == sorted(first, reverse=True)
    assert page.js("document.querySelector('#prompt-table th:nth-child(5)').ariaSort") == "descending"
    page.js("document.querySelector('#prompt-table th button').focus()")
    page.press("Enter")
    assert column(page, 0) == sorted(column(page, 0))
    assert page.wrong == []


def test_searching(page: Chromium) -> None:
    page.js("document.getElementById('search').focus()")
    page("Input.insertText", text="BLUE two")
    seen = page.js(
        "[...document.querySelectorAll('[data-prompt]')].filter(one => one.getClientRects().length)"
        ".map(one => one.dataset.prompt)"
    )
    assert len(seen) == 4 and set(seen) == {"two blue squares"}  # before and after, a strip, two rows of the table
    assert page.js("document.getElementById('found').textContent") == "2 prompts"


def test_enlarging_and_stepping(page: Chromium) -> None:
    page.click(".pair .open")
    first = viewer(page)
    assert first["open"] and first["seen"] == 16 and first["prompt"] == "a red circle"
    assert first["where"].startswith("iteration 0")
    page.press("ArrowRight")
    second = viewer(page)
    assert second["where"].startswith("iteration 3") and second["source"] != first["source"]
    page.press("ArrowRight", "ArrowRight")
    assert viewer(page)["where"].startswith("iteration 6")  # the last one stays
    page.press("ArrowDown")
    assert viewer(page)["prompt"] == "two blue squares" and viewer(page)["where"].startswith("iteration 6")
    page.press("ArrowLeft", "ArrowUp")
    third = viewer(page)
    assert third["prompt"] == "a red circle" and third["source"] == second["source"]
    page.click("#viewer-back")
    assert viewer(page)["source"] == first["source"]
    slider = "document.getElementById('viewer-slider')"
    page.js(f"{slider}.value = 2; {slider}.dispatchEvent(new Event('input'))")
    assert viewer(page)["where"].startswith("iteration 6")
    page.press("Escape")
    assert not viewer(page)["open"] and page.js("document.activeElement.dataset.strip") == "e0"
    page.press("Enter")  # the keyboard opens it again
    assert viewer(page)["open"]
    assert page.wrong == []


def test_reading_a_curve(page: Chromium, run: Path) -> None:
    rows = Records.read(run).metrics
    page.js("document.querySelector('figure[data-chart=reward-0]').focus()")
    page.press("ArrowRight")
    readout = "document.querySelector('figure[data-chart=reward-0] .readout').textContent"
    page.wait(f"{readout}.startsWith('iteration 6')")  # a browser shows what was pressed with its next frame
    assert "evaluation on animals_heldout" in page.js(readout)
    page.press("ArrowLeft")
    page.wait(f"{readout}.startsWith('iteration 5')")
    text = page.js(readout)
    assert float(text.split()[-1].replace("−", "-")) == pytest.approx(rows[5]["reward"]["mean"], rel=1e-3)
    page.point("figure[data-chart=reward-0] .broad svg", 0.06)
    page.wait(f"{readout}.startsWith('iteration 0')")
    assert page.js("document.querySelectorAll('.cursor').length") == 1


@pytest.mark.parametrize(("width", "dark"), [(360, False), (1240, True), (800, False)])
def test_every_window_and_theme(page: Chromium, width: int, dark: bool) -> None:
    page.look(width, 800, dark=dark)
    assert page.js("document.documentElement.scrollWidth") <= width
    ground = page.js("getComputedStyle(document.body).backgroundColor")
    assert (sum(json.loads(f"[{ground[4:-1]}]")) < 200) == dark
    page.click(".pair .open")
    assert page.js("document.getElementById('viewer').getBoundingClientRect().width") <= width
    assert page.js("document.getElementById('viewer-image').getBoundingClientRect().width") > 100
    page.press("Escape")


def test_texts_of_a_run_run_nothing(browser: Chromium, tmp_path: Path) -> None:
    """In prompts, scores, alarms, settings, commands and the folder's name."""
    bad = report_runs.HOSTILE
    folder = report_runs.make(tmp_path / "<img src=x onerror=hacked=1>", prompts=bad, alarms=True)
    for kind in ("alarms", "starts", "evaluations", "metrics", "samples"):
        file = folder / f"{kind}.jsonl"
        text = file.read_text()
        for calm in (
            "other",
            "parting",
            "the reward rises",
            "tastemaker train",
            "held-out",
            "animals_heldout",
            "part/of",
        ):
            text = text.replace(calm, json.dumps(bad[0] + bad[1])[1:-1])
        file.write_text(text)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("shapes  ", f"'{bad[1]}'  ").replace("recipe mine", bad[0]))
    browser.look(1240, 900)
    browser.open(reporting.write(folder).as_uri())
    assert browser.js("typeof window.hacked") == "undefined" and browser.wrong == []
    for name in ("e0", "e2", "e4", "e6", "e8", "e10"):
        browser.click(f".pair .open[data-strip={name}]")
        assert viewer(browser)["open"] and viewer(browser)["seen"] == 16
        browser.press("Escape")
    browser.click(".pair .open")
    assert viewer(browser)["prompt"] == bad[0]
    browser.press("Escape")
    browser.js("document.querySelectorAll('figure[data-chart]').forEach(one => one.focus())")
    browser.js("document.querySelectorAll('*').forEach(one => one.dispatchEvent(new MouseEvent('mouseover')))")
    assert browser.js("typeof window.hacked") == "undefined" and browser.wrong == []
    assert [one for one in browser.asked if not one.startswith(("file:", "data:"))] == []
    assert browser.js("document.querySelectorAll('script').length") == 2


def test_what_is_injected_all_the_same_does_not_run(page: Chromium) -> None:
    """The policy of the page: no script but its own, and no connection."""
    with pytest.raises(AssertionError, match="Trusted"):
        page.js("document.querySelector('h1').setAttribute('onclick', 'window.hacked = 1')")
    with pytest.raises(AssertionError, match="TrustedHTML|Trusted"):
        page.js("document.querySelector('h1').innerHTML = '<img src=x onerror=hacked=1>'")
    page.click("h1")
    with pytest.raises(AssertionError):
        page.js("fetch('https://127.0.0.1:9/')")
    assert page.js("typeof window.hacked") == "undefined"
    assert any("Content Security Policy" in one for one in page.wrong)


def test_states_of_a_run(browser: Chromium, tmp_path: Path) -> None:
    empty = report_runs.make(tmp_path / "empty")
    for kind in ("metrics", "evaluations", "samples", "starts"):
        (empty / f"{kind}.jsonl").unlink()
    nothing = report_runs.without_numbers(tmp_path / "nan")
    for folder, said in ((empty, "Nothing has been measured yet."), (nothing, "no clear change")):
        browser.open(reporting.write(folder).as_uri())
        assert said in browser.js("document.body.innerText") and browser.wrong == []


def test_a_comparison(browser: Chromium, tmp_path: Path) -> None:
    folders = [report_runs.make(tmp_path / name, iterations=count) for name, count in (("a", 6), ("b", 3))]
    browser.look(1240, 900)
    browser.open(reporting.write_comparison(folders).as_uri())
    browser.click("#pictures .open")
    assert viewer(browser)["where"] == "base" and viewer(browser)["seen"] == 16
    browser.press("ArrowRight", "ArrowRight")
    assert viewer(browser)["where"] == "b, iteration 3"
    browser.press("Escape")
    browser.click("#scores th:nth-child(5) button")
    assert browser.js("document.querySelector('#scores th:nth-child(5)').ariaSort") == "ascending"
    assert browser.wrong == []


def test_a_live_page_renews_itself(browser: Chromium, run: Path) -> None:
    with live.bound(run, lambda state: reporting.live(run, state), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            server.rest = 0.0
            browser.open(server.address)
            assert "6 of 6" in browser.js("document.body.innerText")
            assert browser.js("fetch('/samples/0/evaluation-0.webp').then(one => one.status)") == 200
            rows = Records.read(run).metrics
            report_runs.write(run, "metrics", [*rows, {**rows[-1], "iteration": 6}])
            browser.wait("document.body && document.body.innerText.includes('7 of 6')")
            assert browser.wrong == []
        finally:
            browser.open("about:blank")
            server.shutdown()
            thread.join()

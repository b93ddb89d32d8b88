"""The page of votes in a real browser: keys, clicks and taps, undo, every window, and nothing lost on the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import report_runs
from chromium import Chromium
from tastemaker.voting.server import Voting, bound
from tastemaker.voting.session import Session
from votables import picture, sampled

pytestmark = pytest.mark.browser

TEXTS = [f"prompt {k}" for k in range(3)]
Serve = Callable[..., Voting]


@pytest.fixture
def serve(browser: Chromium) -> Iterator[Serve]:
    """A session's server; ended with the test."""
    with ExitStack() as ended:

        def start(*places: Path, port: int = 0, **more: Any) -> Voting:
            session = ended.enter_context(Session.open(places, **more))
            server = bound(session, port)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            ended.callback(end, server)
            return server

        yield start
        browser.open("about:blank")


def end(server: Voting) -> None:
    server.shutdown()
    server.server_close()
    server.session.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sampled(tmp_path / "s", TEXTS * 3)  # 9 pairs


def go(browser: Chromium, server: Voting, width: int = 1240, height: int = 900, *, dark: bool = False) -> Chromium:
    browser.look(width, height, dark=dark)
    browser.open(server.address)
    browser.wait("free")
    return browser


def cast(browser: Chromium, *keys: str) -> None:
    """Presses keys, each when the page takes a vote."""
    for key in keys:
        before = browser.js("votes.length")
        browser.press(key)
        browser.wait(f"votes.length === {before + 1} && (free || shown === null)")


def text(browser: Chromium, name: str) -> str:
    found: str = browser.js(f"document.getElementById('{name}').innerText")
    return found


def votes(server: Voting) -> list[str]:
    lines = server.session.output.read_text().splitlines()
    return [json.loads(line)["vote"] for line in lines]


def clean(browser: Chromium, server: Voting) -> None:
    """No error in the console, no request elsewhere."""
    assert browser.wrong == []
    assert [one for one in browser.asked if not one.startswith((server.address, "data:"))] == []


def test_keys(browser: Chromium, serve: Serve, folder: Path) -> None:
    server = serve(folder)
    go(browser, server)
    pair = server.session.pairs[0]
    assert text(browser, "prompt") == pair.prompt and text(browser, "place") == "1 of 9"
    cast(browser, "ArrowLeft", "ArrowRight", "ArrowDown", "a", "d", "t")
    assert votes(server) == ["left", "right", "tie"] * 2 and text(browser, "place") == "7 of 9"
    assert browser.js("document.getElementById('bar').value") == 6
    first = json.loads(server.session.output.read_text().splitlines()[0])
    assert (first["winner"], first["pair"]) == (pair.left.name, 0) and 0 < first["seconds"] < 30
    for key, modifiers in (("ArrowLeft", 2), ("a", 1)):  # the browser's own commands stay its own
        browser("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, modifiers=modifiers)
        browser("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)
    assert len(votes(server)) == 6
    clean(browser, server)


def test_the_pictures_seen_are_those_voted_on(browser: Chromium, serve: Serve, folder: Path) -> None:
    server = serve(folder)
    go(browser, server)
    for k in range(3):
        seen = browser.js(
            "Promise.all([...document.querySelectorAll('.card img')].map(async one => {"
            "const made = new OffscreenCanvas(1, 1).getContext('2d'); made.drawImage(one, 0, 0);"
            "return made.getImageData(0, 0, 1, 1).data[0] }))"
        )
        pair = server.session.pairs[k]
        assert seen == [int(pair.left.stem), int(pair.right.stem)]  # a picture's shade is its number
        assert browser.js("document.querySelectorAll('.card img.tiny').length") == 2
        assert browser.js("document.querySelector('#left img').alt") == f"Left picture: {pair.prompt}"
        cast(browser, "ArrowRight")


def test_clicks_and_buttons(browser: Chromium, serve: Serve, folder: Path) -> None:
    server = serve(folder)
    go(browser, server)
    for k, selector in enumerate(("#right", "#left", ".choices [data-vote=tie]", ".choices [data-vote=left]")):
        browser.click(selector)
        browser.wait(f"votes.length === {k + 1} && free")
        assert browser.js("document.activeElement === document.body")
    assert votes(server) == ["right", "left", "tie", "left"]
    browser.click("#undo")
    browser.wait("votes.length === 3 && free")
    browser.js("document.querySelector('.choices [data-vote=tie]').focus()")
    browser.press("Enter")  # the keyboard alone, by its focus
    browser.wait("votes.length === 4 && free")
    assert votes(server) == ["right", "left", "tie", "tie"]
    clean(browser, server)


def test_a_choice_is_marked_and_counts_once(browser: Chromium, serve: Serve, folder: Path) -> None:
    server = serve(folder)
    go(browser, server)
    browser.js("MARKED")
    browser.press("ArrowLeft", "ArrowRight", "ArrowRight")  # while the first is under way
    marked = browser.js("[document.querySelector('#left').className, document.querySelector('#right').className]")
    assert marked in (["card chosen", "card other"], ["card", "card"])  # the latter on a slow machine
    browser.wait("votes.length === 1 && free")
    assert votes(server) == ["left"] and browser.js("document.querySelectorAll('.chosen, .other').length") == 0


def test_undo_and_reload(browser: Chromium, serve: Serve, folder: Path) -> None:
    server = serve(folder)
    go(browser, server)
    assert browser.js("document.getElementById('undo').disabled")
    prompts = [text(browser, "prompt")]
    cast(browser, "ArrowLeft")
    prompts.append(text(browser, "prompt"))
    cast(browser, "ArrowLeft")
    browser.press("u")
    browser.wait("votes.length === 1 && free")
    assert text(browser, "prompt") == prompts[1] and text(browser, "place") == "2 of 9" and len(votes(server)) == 1
    go(browser, server)  # goes on where it was
    assert text(browser, "prompt") == prompts[1] and text(browser, "place") == "2 of 9"
    browser.press("Backspace")
    browser.wait("votes.length === 0 && free")
    browser.press("u")  # nothing to take back
    assert text(browser, "prompt") == prompts[0] and votes(server) == []
    clean(browser, server)


def test_the_end(browser: Chromium, serve: Serve, folder: Path) -> None:
    server = serve(folder, count=4)
    go(browser, server)
    cast(browser, "ArrowLeft", "ArrowLeft", "ArrowDown", "ArrowRight")
    assert text(browser, "done") == "All 4 pairs have a vote" and text(browser, "place") == "4 of 4"
    assert [text(browser, name) for name in ("votes", "ties", "share")] == ["4", "1", "67 %"]
    assert float(text(browser, "seconds")) >= 0
    assert browser.js("document.getElementById('ballot').hidden && !document.getElementById('end').hidden")
    browser.look(390, 844, dark=True)
    assert browser.js("document.documentElement.scrollWidth") <= 390
    browser.press("u")
    browser.wait("votes.length === 3 && free")
    assert browser.js("document.getElementById('end').hidden") and text(browser, "place") == "4 of 4"
    cast(browser, "ArrowLeft")
    assert text(browser, "share") == "100 %"
    clean(browser, server)


SIZES = [(16, 16), (32, 18), (9, 18)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("width", "height", "dark"), [(390, 844, False), (844, 390, True), (1240, 900, True)])
def test_every_window_shows_all_without_scrolling(
    browser: Chromium, serve: Serve, tmp_path: Path, size: tuple[int, int], width: int, height: int, dark: bool
) -> None:
    server = serve(sampled(tmp_path / "s", ["a red fox in the snow, " * 4] * 2, size=size))
    go(browser, server, width, height, dark=dark)
    assert browser.js("document.documentElement.scrollWidth") <= width
    boxes = browser.js(
        "[...document.querySelectorAll('#left, #right, .choices button, #prompt, #undo')].map(one => {"
        "const box = one.getBoundingClientRect(); return [box.left, box.top, box.right, box.bottom] })"
    )
    assert len(boxes) == 7 and all(x >= 0 and y >= 0 and r <= width and b <= height for x, y, r, b in boxes)
    cards = [(r - x, b - y) for x, y, r, b in browser.js(
        "['left', 'right'].map(one => document.getElementById(one).getBoundingClientRect())"
        ".map(box => [box.left, box.top, box.right, box.bottom])"
    )]  # fmt: skip
    assert all(w / h == pytest.approx(size[0] / size[1], rel=0.02) and w > 80 and h > 80 for w, h in cards)
    ground = browser.js("getComputedStyle(document.body).backgroundColor")
    assert (sum(json.loads(f"[{ground[4:-1]}]")) < 200) == dark


def test_prompts_run_nothing(browser: Chromium, serve: Serve, tmp_path: Path) -> None:
    bad = [one.replace("\0", "").replace("\ud800", "") for one in report_runs.HOSTILE]
    server = serve(sampled(tmp_path / "s", [*bad, *bad]))
    go(browser, server)
    seen = set()
    for _ in server.session.pairs:
        seen.add(browser.js("document.getElementById('prompt').textContent"))
        cast(browser, "ArrowLeft")
    assert seen == {one.strip() for one in bad} and browser.js("typeof window.hacked") == "undefined"
    clean(browser, server)


def test_a_server_that_is_gone_is_told_and_the_vote_is_kept(browser: Chromium, serve: Serve, folder: Path) -> None:
    server = serve(folder)
    go(browser, server)
    cast(browser, "ArrowLeft")
    port = server.server_address[1]
    token, page, policy = server.token, server.page, server.policy
    end(server)
    browser.press("ArrowRight")
    browser.wait("!document.getElementById('alert').hidden")
    assert "does not answer" in text(browser, "said") and "not saved yet" in text(browser, "said")
    browser.press("ArrowLeft")  # no second vote meanwhile
    assert browser.js("[pending.vote, votes.length]") == ["right", 1]
    again = serve(folder, port=port)
    again.token, again.page, again.policy = token, page, policy  # the same session, as if it had slept
    browser.press("Enter")  # the button has the focus
    browser.wait("votes.length === 2 && free")
    assert votes(again) == ["left", "right"] and browser.js("document.getElementById('alert').hidden")


def test_a_session_that_began_anew_asks_for_a_reload(browser: Chromium, serve: Serve, folder: Path) -> None:
    server = serve(folder)
    go(browser, server)
    end(server)
    again = serve(folder, port=server.server_address[1])
    browser.press("ArrowRight")
    browser.wait("!document.getElementById('alert').hidden")
    assert "does not count yet" in text(browser, "said") and text(browser, "again") == "Reload"
    browser.click("#again")
    browser.wait("typeof free === 'boolean' && free")
    cast(browser, "ArrowLeft")
    assert votes(again) == ["left"]


def test_a_vote_that_is_refused_may_be_taken_back(browser: Chromium, serve: Serve, folder: Path) -> None:
    server = serve(folder)
    go(browser, server)
    true = server.session._file.add

    def full(row: Any) -> None:
        raise OSError(28, "No space left on device")

    server.session._file.add = full  # type: ignore[method-assign]
    browser.press("ArrowRight")
    browser.wait("!document.getElementById('alert').hidden")
    assert text(browser, "said") == (
        "the file of votes cannot be written: No space left on device. Your vote is not saved yet."
    )
    server.session._file.add = true  # type: ignore[method-assign]
    browser.press("u")
    browser.wait("free")
    cast(browser, "ArrowLeft")
    assert votes(server) == ["left"] and browser.js("document.getElementById('alert').hidden")


def test_another_page_that_voted_first_is_followed(browser: Chromium, serve: Serve, folder: Path) -> None:
    server = serve(folder)
    go(browser, server)
    server.session.cast(server.session.pairs[0], "tie")
    browser.press("ArrowLeft")
    browser.wait("votes.length === 1 && free")
    assert votes(server) == ["tie"] and text(browser, "place") == "2 of 9"


def test_a_picture_that_is_damaged_is_passed_over(browser: Chromium, serve: Serve, tmp_path: Path) -> None:
    folder = sampled(tmp_path / "s", ["a cat", "a dog"] * 2)
    picture(folder / "0.png", 0)
    server = serve(folder)
    server.session.pairs[0].right.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    browser.look(1240, 900)
    browser.open(server.address)
    browser.wait("!document.getElementById('alert').hidden")
    assert text(browser, "said") == "The right picture cannot be shown: its file is damaged or gone."
    browser.press("ArrowLeft")
    assert votes(server) == []
    browser.press("Enter")
    browser.wait("free")
    cast(browser, "ArrowLeft")
    assert text(browser, "done") == "1 of 2 pairs have a vote" and "Passed over" in text(browser, "passed")


def test_of_two_places_the_page_tells_nothing(browser: Chromium, serve: Serve, tmp_path: Path) -> None:
    a, b = sampled(tmp_path / "alpha", TEXTS), sampled(tmp_path / "beta", TEXTS, first=9)
    server = serve(a, b)
    go(browser, server)
    cast(browser, "ArrowLeft", "ArrowRight", "ArrowLeft")
    whole = browser.js("document.documentElement.outerHTML") + str(browser.asked)
    assert "alpha" not in whole and "beta" not in whole and "3 pairs" in text(browser, "done")
    clean(browser, server)

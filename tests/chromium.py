"""A headless Chromium for tests of pages, through its own protocol over a pipe: nothing to install but the browser."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 40.0  # for one answer
FLAGS = ("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
         "--hide-scrollbars", "--mute-audio")  # fmt: skip
# The browser reads commands from file 3 and writes answers to file 4.
PLUG = """import fcntl, os, sys
taken = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 64) for one in sys.argv[1:3]]
os.dup2(taken[0], 3); os.dup2(taken[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])"""
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27, "Enter": 13, "Tab": 9,
        "Backspace": 8, "a": 65, "d": 68, "t": 84, "u": 85}  # fmt: skip


class Navigated(Exception):
    """The page was left while it was asked something."""


class Chromium:
    """One browser with one page in it. `wrong` gathers what a user would see as an error in the console."""

    def __init__(self, profile: Path) -> None:
        found = next((path for name in NAMES if (path := shutil.which(name))), None)
        if found is None:
            pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
        reads, self.commands = os.pipe()
        self.answers, writes = os.pipe()
        plugged = [sys.executable, "-c", PLUG, str(reads), str(writes), found, *FLAGS, f"--user-data-dir={profile}"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(plugged, pass_fds=(reads, writes), **quiet)  # type: ignore[call-overload]
        os.close(reads)
        os.close(writes)
        self.made, self.held, self.session = 0, b"", ""
        self.wrong: list[str] = []
        self.asked: list[str] = []  # addresses that the page wanted
        self.loaded = 0
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Log", "Network"):
            self(f"{part}.enable")

    def __call__(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol and its result."""
        self.made += 1
        message = {"id": self.made, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            for found in self._messages():
                if found.get("id") == self.made:
                    if "navigated" in found.get("error", {}).get("message", ""):
                        raise Navigated
                    assert "error" not in found, (method, found["error"])
                    return found["result"]
        raise TimeoutError(f"{method} was not answered in {SECONDS} seconds")

    def _messages(self) -> Iterator[dict[str, Any]]:
        """What has come; events are noted on the way."""
        if not select.select([self.answers], [], [], 0.2)[0]:
            return
        data = os.read(self.answers, 2**20)
        assert data, "the browser has ended"
        *whole, self.held = (self.held + data).split(b"\0")
        for text in whole:
            found = json.loads(text)
            self._note(found.get("method", ""), found.get("params", {}))
            yield found

    def _note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self.loaded += 1
        elif event == "Runtime.exceptionThrown":
            self.wrong.append(str(told["exceptionDetails"]))
        elif event == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.wrong.append(told["entry"]["text"])
        elif event == "Runtime.consoleAPICalled":
            self.wrong.append(str(told["args"]))
        elif event == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])

    def open(self, address: str) -> None:
        """Go there, and wait until it is loaded."""
        before, self.wrong, self.asked = self.loaded, [], []
        self("Page.navigate", url=address)
        until = time.monotonic() + SECONDS
        while self.loaded == before and time.monotonic() < until:
            list(self._messages())
        assert self.loaded > before, f"{address} did not load"

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        told = self("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until an expression is true, over pages that come and go meanwhile."""
        until = time.monotonic() + SECONDS
        while not self._holds(expression):
            assert time.monotonic() < until, f"not in {SECONDS} seconds: {expression}"
            time.sleep(0.1)

    def _holds(self, expression: str) -> bool:
        try:
            return bool(self.js(expression))
        except Navigated:
            return False

    def press(self, *keys: str) -> None:
        """Keys of the keyboard, one after the other."""
        for key in keys:
            told = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
            text = {"text": "\r"} if key == "Enter" else {}
            self("Input.dispatchKeyEvent", type="keyDown", **told, **text)
            self("Input.dispatchKeyEvent", type="keyUp", **told)

    def click(self, selector: str) -> None:
        """The middle of an element, brought into view."""
        x, y = self.place(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def point(self, selector: str, across: float = 0.5) -> None:
        """Move the pointer over an element."""
        x, y = self.place(selector, across)
        self("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def place(self, selector: str, across: float = 0.5) -> tuple[float, float]:
        """Where an element is, `across` of its width."""
        x, y = self.js(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            'one.scrollIntoView({block: "center", behavior: "instant"}); const box = one.getBoundingClientRect();'
            f"return [box.left + box.width * {across}, box.top + box.height / 2]; }})()"
        )
        return x, y

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """The window's size and the reader's theme."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[theme])

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(OSError, AssertionError, TimeoutError):
            self.session = ""
            self("Browser.close")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for file in (self.commands, self.answers):
            os.close(file)

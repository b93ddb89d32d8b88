"""`tastemaker report` and `tastemaker live`: what they take, where the page goes, what they refuse."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path
from typing import Any

import pytest

import report_runs
from runs import call
from tastemaker.reports import live


def test_of_one_run_it_lies_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", shown.append)
    folder = report_runs.make(tmp_path / "run", iterations=2, every=1)
    ran = call("report", str(folder), "--open")
    assert (ran.code, ran.out) == (0, f"{folder / 'report.html'}\n")
    assert shown == [(folder / "report.html").as_uri()]
    assert 'href="' not in (folder / "report.html").read_text()
    other = tmp_path / "elsewhere.html"
    assert call("report", str(folder), "--output", str(other)).code == 0
    assert '"link":"run/samples/0/evaluation-0.webp"' in other.read_text()
    assert '"link":"./samples/0/evaluation-0.webp"' in (folder / "report.html").read_text()


def test_of_several_it_lies_beside_them(tmp_path: Path) -> None:
    folders = [str(report_runs.make(tmp_path / name / "run", iterations=2, every=1)) for name in ("a", "b")]
    ran = call("report", *folders)
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'comparison.html'}\n")
    text = (tmp_path / "comparison.html").read_text()
    assert "<h1>2 runs</h1>" in text and "a/run" in text and text.count("data:image/webp") == 3 * 3


def test_of_a_sweep_it_has_all_runs(tmp_path: Path) -> None:
    for variant in ("clip=1", "clip=2"):
        for seed in (0, 1):
            report_runs.make(tmp_path / "sweep" / variant / f"seed-{seed}", iterations=2, every=1, seed=seed)
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    assert call("report", str(tmp_path / "sweep"), "--output", str(tmp_path / "s.html")).code == 0
    text = (tmp_path / "s.html").read_text()
    assert "<h1>4 runs</h1>" in text
    assert "Not shown, for want of pictures or for another seed: clip=1/seed-1, clip=2/seed-1." in text


def test_runs_of_other_rewards_are_not_ranked(tmp_path: Path) -> None:
    folders = [report_runs.make(tmp_path / name, iterations=2, every=1) for name in ("a", "b")]
    file = folders[1] / "evaluations.jsonl"
    file.write_text(file.read_text().replace('"taste"', '"beauty"'))
    call("report", *map(str, folders))
    assert "trained on 2 rewards: their changes do not compare" in (tmp_path / "comparison.html").read_text()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["report"], "found none"),
        (["report", "RUN", "--opem"], "Did you mean `--open`?"),
        (["report", "--open", "RUN"], "write it behind the plain words"),
        (["report", "RUN", "--output"], "needs a value"),
        (["report", "RUN", "--output", "x.pdf"], "give FILE.html"),
        (["report", "RUN", "--output", "no/x.html"], "there is no folder no"),
        (["report", "nothing"], "holds no config.yaml"),
        (["live"], "found none"),
        (["live", "RUN", "RUN"], "takes the folder of one run"),
        (["live", "RUN", "--port", "x"], "whole number below 65536"),
        (["live", "RUN", "--port", "70000"], "whole number below 65536"),
        (["live", "RUN", "--prot", "1"], "Did you mean `--port`?"),
        (["live", "nothing"], "holds no config.yaml"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, argv: list[str], said: str) -> None:
    run = report_runs.make(tmp_path / "run", iterations=1, every=1)
    ran = call(*(str(run) if word == "RUN" else word for word in argv))
    assert ran.code == 2 and said in ran.err


@pytest.mark.parametrize("command", ["report", "live"])
def test_help(command: str) -> None:
    assert call(command, "--help").out.startswith(f"tastemaker {command} RUN")


def test_live_says_where_and_ends_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, shown = report_runs.make(tmp_path / "run", iterations=1, every=1), []

    def serve(server: live.Live, *more: Any) -> None:
        assert b"Tastemaker run" in server.current()[1]
        raise KeyboardInterrupt

    monkeypatch.setattr(live.Live, "serve_forever", serve)
    monkeypatch.setattr(webbrowser, "open", shown.append)
    ran = call("live", str(run), "--open")
    assert ran.code == 0 and ran.out.startswith("http://127.0.0.1:") and shown == [ran.out.split()[0]]


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    import subprocess

    run = report_runs.make(tmp_path / "run", iterations=1, every=1)
    code = f"import sys; from tastemaker import reporting; reporting.write({str(run)!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"

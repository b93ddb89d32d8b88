"""The report of a run: its numbers are those of the files, whatever state the run is in, and its texts are texts."""

from __future__ import annotations

import json
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import report_runs
import runs
from tastemaker import reporting
from tastemaker.reports import embedding, report
from tastemaker.reports.numbers import written
from tastemaker.reports.records import Records


class Page(HTMLParser):
    """What a page shows: its numbers, pictures, data, and every element with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.numbers: list[tuple[float, str, str]] = []  # value, of, as it is read
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.inside = ""
        self.raw = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.elements.append((tag, found))
        self.inside = "json" if found.get("type") == "application/json" else tag
        if tag == "data":
            self.numbers.append((float(found["value"]), found.get("data-of", ""), ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, text: str) -> None:
        if self.inside == "json":
            self.raw += text
        elif self.inside == "data":
            value, of, _ = self.numbers[-1]
            self.numbers[-1] = (value, of, text)
            self.texts.append(text)
        elif self.inside not in ("script", "style"):
            self.texts.append(text)

    @property
    def data(self) -> Any:
        return json.loads(self.raw)

    @property
    def pictures(self) -> list[dict[str, str]]:
        return [found for tag, found in self.elements if tag == "img" and found.get("src")]

    @property
    def words(self) -> str:
        return " ".join("".join(self.texts).split())


def page(folder: Path) -> Page:
    return Page(reporting.write(folder).read_text(encoding="utf-8"))


class Files:
    """The run's files, asked for a number by where the report says it stands."""

    def __init__(self, folder: Path) -> None:
        records = Records.read(folder)
        self.rows: dict[str, Any] = {"metrics": records.metrics, "evaluations": records.evaluations}
        self.samples = {
            (row["iteration"], "evaluation" if row["kind"] == "evaluation" else "training", row["id"]): row
            for row in records.samples
        }
        self.others: dict[str, Any] = {"alarms": records.alarms, "best": records.best}

    def number(self, of: str) -> float | None:
        file, *keys = (key.replace("~1", "/").replace("~0", "~") for key in of[1:].split("/"))
        if file == "samples":
            found: Any = self.samples[int(keys[0]), keys[1], int(keys[2])]
            keys = keys[3:]
        elif file in self.others:
            found = self.others[file]
        else:
            found = next(row for row in self.rows[file] if row["iteration"] == int(keys[0]))
            keys = keys[1:]
        for key in keys:
            found = found[int(key)] if isinstance(found, list) else found[key]
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_runs.make(tmp_path_factory.mktemp("report") / "run", alarms=True)


def test_every_number_is_that_of_the_files(run: Path) -> None:
    found, files = page(run), Files(run)
    placed = [one for one in found.numbers if one[1]]
    assert len(placed) > 60
    for value, of, text in placed:
        assert files.number(of) == value, of
        read = float(text.replace("−", "-").replace(",", "").rstrip("% SD"))
        assert read == pytest.approx(value * (100 if text.endswith("%") else 1), rel=0.006, abs=0.0051), (of, text)
    assert "/best/kept/1/value" in {of for _, of, _ in placed}
    assert {of.split("/")[1] for _, of, _ in placed} == {"metrics", "evaluations", "samples", "alarms", "best"}


def test_a_real_run_writes_one_and_says_where() -> None:
    folder, ran = runs.finished()
    path = folder / "report.html"
    lines = [line.strip() for line in ran.out.splitlines()]
    assert str(path) in lines and lines.index(str(path)) == lines.index(str(folder / "curve.svg")) + 1
    found, files = Page(path.read_text(encoding="utf-8")), Files(folder)
    assert found.pictures and all(files.number(of) == value for value, of, _ in found.numbers if of)
    for row in Records.read(folder).metrics:
        assert sum(row["reward"]["histogram"]) == row["images"] and len(row["reward"]["histogram"]) == 20
    (start,) = Records.read(folder).starts
    assert start["device"] == "cpu" and start["versions"]["torch"] and start["resumed"] is None
    first, *others = Records.read(folder).evaluations
    assert len(first["groups"]) == first["pictures"] and len(first["texts"]) == len(set(first["groups"]))
    assert not any("texts" in row for row in others)


def test_a_report_that_breaks_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beside = reporting.Beside(tmp_path)
    assert beside.write() is None
    assert "report.html was not written: ValueError" in capsys.readouterr().err


def test_while_training_it_takes_a_hundredth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = reporting.Beside(report_runs.make(tmp_path / "run", iterations=1, every=1))
    beside.renew()
    path = tmp_path / "run" / "report.html"
    path.unlink()
    beside.took = 3600.0
    beside.renew()
    assert not path.exists()
    beside.ended -= 360_001
    beside.renew()
    assert path.exists()


def test_every_curve_is_that_of_the_files(run: Path) -> None:
    found, files, points = page(run).data, Files(run), 0
    for chart in found["charts"].values():
        for line in chart["lines"]:
            for k, x in enumerate(line["x"]):
                of = line["of"].replace("{x}", str(x))
                assert files.number(of) == line["y"][k], of
                points += 1
                for end in ("low", "high"):
                    if end in line and of.endswith("/mean") and of.startswith("/evaluations"):
                        assert files.number(of.removesuffix("mean") + end) == line[end][k]
    assert points > 100


def test_what_enlarging_tells_is_that_of_the_files(run: Path) -> None:
    found, files = page(run).data, Files(run)
    steps = [step for strip in found["strips"].values() for step in strip["steps"]]
    assert len(steps) == 3 * 3 + 3 * 6
    for step in steps:
        scores = dict(step["scores"])
        assert files.number(f"{step['of']}/reward") == scores.pop("taste")
        assert scores == {"part/of ~it": files.number(f"{step['of']}/parts/part~1of ~0it")}
        assert (run / step["link"]).is_file()


def test_what_was_worked_out_is_right(run: Path) -> None:
    rows, shown = Records.read(run), page(run)
    words = shown.words
    total = sum(row["seconds"]["total"] for row in rows.metrics)
    assert f"time{total:.0f} s" in words and "drawing7.5 s" in words
    unplaced = [value for value, of, _ in shown.numbers if not of]
    assert {6 * 16, 6 * 1234, 6 * 567, 0} <= set(unplaced)
    base, last = (row["values"]["taste"] for row in (rows.evaluations[0], rows.evaluations[-1]))
    for b in range(3):  # prompts of two pictures each
        before, after = (sum(values[2 * b : 2 * b + 2]) / 2 for values in (base, last))
        assert {before, after, after - before} <= set(unplaced)


def test_the_answer_stands_first(run: Path) -> None:
    words = page(run).words
    assert words.index("alarm The reward rose (+1.25 SD)") < words.index("Before and after")
    assert "diversity fell with it. Alarms: parting." in words
    assert "parting iteration 4: the reward rises and other falls" in words
    assert "(measured 0.312, threshold 0.200)" in words and "The run was stopped." in words
    assert "Best checkpoint: checkpoints/best, after iteration 3, by held_out.other" in words


def test_settings_have_their_origins_and_no_secrets(run: Path) -> None:
    found = page(run)
    assert "held_out_rewards[other]recipe mine" in found.words
    assert "abcdef0123456789" not in reporting.write(run).read_text()
    assert "tastemaker train ddpo --seed 0" in found.words and "@inproceedings{black2024training" in found.words


def test_it_is_one_file_that_runs_its_own_script_alone(run: Path) -> None:
    found = page(run)
    policy = next(a["content"] for tag, a in found.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "unsafe" not in policy and "connect-src 'none'" in policy
    for tag, attributes in found.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        assert tag not in ("link", "iframe", "object", "base")
        assert all(attributes.get(name, "data:").startswith("data:") for name in ("src", "href")), attributes


def test_a_killed_run_has_a_report(tmp_path: Path) -> None:
    folder = report_runs.make(tmp_path / "run")
    for kind in ("metrics", "evaluations", "samples"):
        file = folder / f"{kind}.jsonl"
        file.write_bytes(file.read_bytes()[:-40])
    found = page(folder)
    assert "5 of 6" in found.words and len(found.pictures) > 20


def test_a_run_that_just_began_has_a_report(tmp_path: Path) -> None:
    folder = report_runs.make(tmp_path / "run")
    for kind in ("metrics", "evaluations", "samples", "starts"):
        (folder / f"{kind}.jsonl").unlink()
    words = page(folder).words
    assert "Nothing has been measured yet." in words and "0 of 6" in words and "did not write down" in words
    report_runs.write(folder, "evaluations", [])
    report_runs.write(folder, "metrics", [])
    assert "Nothing has been measured yet." in page(folder).words


def test_a_run_without_any_score_has_a_report(tmp_path: Path) -> None:
    found = page(report_runs.without_numbers(tmp_path / "run"))
    assert "The reward shows no clear change" in found.words and ": NaN" not in found.raw and "96" in found.words


def test_an_older_run_has_a_report(tmp_path: Path) -> None:
    """Without alarms, histograms, prompts of the evaluations, starts and pictures."""
    folder = report_runs.make(tmp_path / "run")
    for kind, gone in (("metrics", ("watch", "memory")), ("evaluations", ("texts", "groups", "diversity"))):
        rows = [json.loads(line) for line in (folder / f"{kind}.jsonl").read_text().splitlines()[1:]]
        for row in rows:
            for key in gone:
                row.pop(key, None)
            row["reward"].pop("histogram", None)
        report_runs.write(folder, kind, rows)
    (folder / "samples.jsonl").unlink()
    found = page(folder)
    assert "This run kept no pictures." in found.words and found.pictures == []


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.yaml"):
        reporting.write(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="not YAML"):
        reporting.write(tmp_path)


def test_texts_of_a_run_are_texts(tmp_path: Path) -> None:
    folder = report_runs.make(tmp_path / "run", prompts=report_runs.HOSTILE)
    text = reporting.write(folder).read_text(encoding="utf-8")
    found = Page(text)
    assert [tag for tag, _ in found.elements].count("script") == 2
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    assert all(attributes.get("src", "data:").startswith("data:") for _, attributes in found.elements)
    prompts = {step["prompt"] for strip in found.data["strips"].values() for step in strip["steps"]}
    assert report_runs.HOSTILE[0] in prompts and report_runs.HOSTILE[1] in prompts
    assert "(10,000 letters)" in text and len(text) < 500_000


def test_pictures_of_other_places_stay_where_they_are(tmp_path: Path) -> None:
    folder = report_runs.make(tmp_path / "run", iterations=1, every=1)
    outside = tmp_path / "outside.png"
    report_runs.noise(random.Random(0), 8).save(outside)
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()[1:]]
    for row, file in zip(rows, (str(outside), "../outside.png", "config.yaml", "none.webp"), strict=False):
        row["file"] = file
    report_runs.write(folder, "samples", rows)
    found = page(folder)
    assert "4 have no readable file" in found.words
    assert not any("image/png" in picture["src"] for picture in found.pictures)


def test_ten_thousand_pictures_make_a_page_below_its_size(tmp_path: Path) -> None:
    """Rows share files here; the page does not know."""
    folder = report_runs.make(tmp_path / "run", iterations=625, every=125, prompts=("p",), size=8)
    rng = random.Random(0)
    held = [report_runs.sample(folder, 10**6, b, "training", "p", rng, 64) for b in range(3)]
    rows = [
        {**held[b % 3], "iteration": k, "id": b, "prompt": f"{k}-{b} " + "<" * 400}
        for k in range(625)
        for b in range(16)
    ]
    evaluations = [
        {**held[0], "iteration": k, "id": b, "kind": "evaluation"} for k in (0, 125, 250, 500, 625) for b in range(8)
    ]
    report_runs.write(folder, "samples", [*rows, *evaluations])
    path = reporting.write(folder)
    found = Page(path.read_text(encoding="utf-8"))
    shown = len(found.pictures) - 2 * report.HEADLINE  # which stand there twice
    assert 700 < shown and len(found.pictures) <= embedding.MOST and path.stat().st_size < 20_000_000
    assert f"{shown} of the 10,040 pictures" in found.words and "Of 625 iterations 248 are shown" in found.words
    assert "1,000 of" in found.words  # prompts


def test_large_pictures_are_shown_smaller(tmp_path: Path) -> None:
    folder = report_runs.make(tmp_path / "run", iterations=1, every=1, prompts=("p",), size=200)
    found = embedding.embed(Records.read(folder), size=6 * 12_000)
    pictures = [one for strip in found.strips.values() for one in strip.values()]
    pictures += [one for group in found.training for one in group.pictures.values()]
    assert len(pictures) == found.shown == 5 and "5 are shown smaller" in found.left_out
    assert sum(len(one.source) for one in pictures) < 4 / 3 * 6 * 12_000 + 500


def test_ranks_are_by_reward_and_distinct() -> None:
    rows = [{"id": b, "reward": value} for b, value in enumerate((0.5, None, 3.0, -1.0))]
    found = {rank: row["id"] for rank, row in embedding._ranked(rows).items()}
    assert found == {"best": 2, "median": 0, "worst": 3}
    assert {rank: row["id"] for rank, row in embedding._ranked(rows[:1]).items()} == {"best": 0}
    assert {rank: row["id"] for rank, row in embedding._ranked(rows[1:2]).items()} == {"best": 1}


def test_no_text_ends_the_data() -> None:
    text = report.as_json({"a": "</script><!-- & ]]>", "b": [float("nan"), float("inf"), 1.5]})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a": "</script><!-- & ]]>", "b": [None, None, 1.5]}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.0, "0"), (1.0, "1"), (-1234567.0, "−1.23e6"), (0.12345, "0.123"), (1.9, "1.90"), (3e-7, "3e−7"),
     (12345.6, "12,346"), (123.45, "123.5"), (None, "–"), (float("nan"), "–")],
)  # fmt: skip
def test_numbers_are_written_short(value: float | None, text: str) -> None:
    assert written(value) == text

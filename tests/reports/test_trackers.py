"""Trackers: refused before anything is written, told of everything, let go when they fail."""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tastemaker.comparison import Score
from tastemaker.reports import backends, trackers
from tastemaker.reports.trackers import PACKAGES, Trackers, flattened, need, start

SETTINGS = {"algorithm": {"name": "a", "clip": 2e-4}, "held_out_rewards": ["x", "y"], "lora": None, "seed": 3}
NAN = math.nan
KEY = "hf_" + "x" * 34


@pytest.fixture(autouse=True)
def state() -> Iterator[None]:
    """accelerate's, as it was before the test: absent, in a process that has made no Accelerator."""
    yield
    PartialState._reset_state()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder with two pictures."""
    home = tmp_path / "first"
    (home / "samples").mkdir(parents=True)
    for name, level in (("best", 255), ("worst", 64)):
        Image.new("RGB", (16, 16), (level, 0, 0)).save(home / "samples" / f"{name}.webp", lossless=True)
    return home


def samples(*rewards: float | None) -> list[dict[str, Any]]:
    """Rows of samples.jsonl."""
    names = ("best", "worst")
    return [
        {"prompt": f"a {names[k % 2]} cat", "reward": reward, "file": f"samples/{names[k % 2]}.webp"}
        for k, reward in enumerate(rewards)
    ]


def row(iteration: int) -> dict[str, Any]:
    """A row of metrics.jsonl, as record.py makes it."""
    return {
        "iteration": iteration,
        "seconds": {"total": 2.0, "reward": 0.5},
        "queries": 4,
        "network_calls": {"rows_forward": 40, "rows_backward": 20},
        "images": 4,
        "reward": {"mean": 0.5 + iteration, "std": 0.1, "min": 0.0, "max": 1.0, "failed": 1, "parts": {"half": 0.25}},
        "held_out": {"taste": 0.75, "silent": NAN},
        "updates": [{"loss": 1.0, "grad_norm": NAN, "mismatch": 0.5}, {"loss": 3.0, "grad_norm": 4.0}],
        "memory": {},
    }


EVALUATION = {
    "iteration": 3,
    "prompts": "cats",
    "pictures": 4,
    "reward": {"taste": {"mean": 2.0, "low": 1.5, "high": 2.5}, "other": {"mean": 1.0, "low": 0.5, "high": 1.5}},
    "change": {"taste": {"mean": 0.5, "low": 0.25, "high": 0.75, "deviations": NAN, "wins": 0.9}},
    "values": {"taste": [1.0, 2.0]},
}
ITERATION = {
    "seconds/total": 2.0,
    "seconds/reward": 0.5,
    "queries": 4,
    "network_calls/rows_forward": 40,
    "network_calls/rows_backward": 20,
    "images": 4,
    "reward/mean": 0.5,
    "reward/std": 0.1,
    "reward/min": 0.0,
    "reward/max": 1.0,
    "reward/failed": 1,
    "reward/parts/half": 0.25,
    "held_out/taste": 0.75,
    "update/loss": 2.0,
    "update/grad_norm": 4.0,
    "update/mismatch": 0.5,
}
JUDGED = {
    "evaluation/taste/mean": 2.0,
    "evaluation/taste/low": 1.5,
    "evaluation/taste/high": 2.5,
    "evaluation/taste/change": 0.5,
    "evaluation/taste/change_low": 0.25,
    "evaluation/taste/change_high": 0.75,
    "evaluation/taste/wins": 0.9,
    "evaluation/other/mean": 1.0,
    "evaluation/other/low": 0.5,
    "evaluation/other/high": 1.5,
}


class Told:
    """A tracker that remembers what it was told, and fails where it is made to."""

    def __init__(self, broken: bool = False) -> None:
        self.broken, self.logged, self.finished = broken, [], 0

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        if self.broken:
            raise ConnectionError("no route")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


# ---- before anything is written


def test_all_that_accelerate_has_a_tracker_for_can_be_named() -> None:
    assert set(PACKAGES) == set(LOGGER_TYPE_TO_CLASS)


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError) as caught:
        need(["wandb"])
    message = "--report_to wandb: the package wandb is not installed: pip install 'tastemaker[wandb]'"
    assert str(caught.value) == message
    with pytest.raises(ValueError, match=r"report_to mlflow: .* is not installed: pip install mlflow$"):
        need(["mlflow"], key="report_to")
    with pytest.raises(ValueError, match=r"--report_to all: no tracker is installed: pip install 'tastemaker\[tens"):
        need(["all"])
    need([])
    need(["none"])


def test_an_unknown_name_is_refused_with_the_near_one() -> None:
    with pytest.raises(ValueError, match=r"--report_to tensorbord: there is no such tracker.  Did you mean `tensorb"):
        need(["tensorboard", "tensorbord"])
    with pytest.raises(ValueError, match=r"--report_to none: there is no such tracker"):
        need(["tensorboard", "none"])


def test_the_folder_of_an_earlier_run_is_not_taken_for_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B leaves ./wandb behind, which Python would import as a package without code."""
    (tmp_path / "aim").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "aim", raising=False)
    with pytest.raises(ValueError, match="package aim is not installed"):
        need(["aim"])


def test_asking_for_a_tracker_and_having_none_import_nothing_of_it() -> None:
    code = """
import sys
from pathlib import Path
from tastemaker.reports.trackers import need, start
need(["tensorboard"])
running = start([], Path("there is none"), {})
running.evaluation({"iteration": 0, "reward": {}, "change": {}}, [])
running.finish()
print([name for name in ("tensorboard", "accelerate", "torch", "numpy", "wandb") if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


# ---- names and values


def test_settings_become_plain_values_and_secrets_stay_here() -> None:
    reward = {
        "name": "remote",
        "api_key": "k",
        "Token": "t",
        "url": "http://jane:pw@host",
        "headers": [f"Bearer {KEY}"],
    }
    tree = {**SETTINGS, "reward": reward, "credentials": {"user": "jane"}, "path": Path("x"), "on": True}
    assert flattened(tree) == {
        "algorithm.name": "a",
        "algorithm.clip": 2e-4,
        "held_out_rewards": '["x", "y"]',
        "lora": "none",
        "seed": 3,
        "reward.name": "remote",
        "reward.api_key": "(removed)",
        "reward.Token": "(removed)",
        "reward.url": "http://(removed)@host",
        "reward.headers": '["Bearer (removed)"]',
        "credentials.user": "(removed)",
        "path": "x",
        "on": True,
    }


def test_an_iteration_is_told_under_the_names_that_are_documented(folder: Path) -> None:
    told = Told()
    Trackers(folder, {"mlflow": told}).iteration(row(0), [0.0, 1.0, NAN], samples(1.0))
    assert told.logged == [(0, ITERATION)]


def test_an_evaluation_and_a_comparison_are_told_under_the_names_that_are_documented(folder: Path) -> None:
    told = Told()
    running = Trackers(folder, {"mlflow": told})
    running.evaluation(EVALUATION, samples(1.0))
    score = Score(2.0, 1.0, 3.0, 1.0, 0.5, 1.5, NAN, 0.75, 0.5, 1.0)
    running.comparison({"taste": score})
    scores = {name: value for name, value in asdict(score).items() if name != "deviations"}
    assert told.logged == [(3, JUDGED), (None, {f"evaluate/taste/{k}": v for k, v in scores.items()})]


# ---- TensorBoard, the real one


def events(folder: Path) -> EventAccumulator:
    """All that the run's folder holds for TensorBoard; `store_init_configuration` has folders of its own below it."""
    found = EventAccumulator(str(folder / "trackers" / "tensorboard"), {"images": 0, "histograms": 0, "scalars": 0})
    return found.Reload()


def scalars(found: EventAccumulator, step: int) -> dict[str, float]:
    named = {
        tag: [event.value for event in found.Scalars(tag) if event.step == step] for tag in found.Tags()["scalars"]
    }
    return {tag: values[-1] for tag, values in named.items() if values}


def test_tensorboard_holds_numbers_the_histogram_and_the_captioned_grid(folder: Path) -> None:
    running = start(["tensorboard"], folder, SETTINGS)
    assert [tracker.name for tracker in running.raw] == ["tensorboard"]
    running.iteration(row(0), [0.0, 0.25, 1.0, NAN], samples(1.0, NAN))
    running.evaluation(EVALUATION, samples(2.0))
    running.iteration(row(3), [NAN], [])  # nothing was scored
    running.finish()
    assert running.raw == []
    found = events(folder)
    assert scalars(found, 0) == pytest.approx(ITERATION)
    assert scalars(found, 3) == pytest.approx({**ITERATION, **JUDGED, "reward/mean": 3.5})
    (histogram,) = found.Histograms("reward/histogram")
    value = histogram.histogram_value
    assert (histogram.step, value.num, value.min, value.max, value.sum) == (0, 3, 0.0, 1.0, 1.25)
    assert set(found.Tags()["images"]) == {"samples", "evaluation/samples"}
    (grid,), (judged,) = found.Images("samples"), found.Images("evaluation/samples")
    assert (grid.step, judged.step) == (0, 3)
    (folder / "grid.png").write_bytes(grid.encoded_image_string)
    with Image.open(folder / "grid.png") as picture:
        reds = {colour for _, colour in picture.getcolors(10**6) if colour[1:] == (0, 0)}
        assert {(255, 0, 0), (64, 0, 0)} <= reds and picture.size == (grid.width, grid.height)
        bare = trackers.grid([[Image.new("RGB", (16, 16))] * 2])
        assert (picture.width, picture.height > bare.height) == (bare.width, True)  # there are captions below


def test_a_resumed_run_goes_on_at_its_step(folder: Path) -> None:
    for iterations in ((0, 1), (1, 2)):  # the second was not in the checkpoint: it is made again
        running = start(["tensorboard"], folder, SETTINGS)
        for iteration in iterations:
            running.iteration(row(iteration), [1.0], [])
        running.finish()
    found = events(folder)
    assert sorted(event.step for event in found.Scalars("queries")) == [0, 1, 1, 2]  # files of one second, in any order
    assert json.loads((folder / "trackers" / "runs.json").read_text()) == {"tensorboard": "first"}
    home = folder / "trackers" / "tensorboard"
    assert len(list(home.glob("*/hparams.yml"))) == 1  # the settings are stored once
    assert "algorithm.clip: 0.0002" in next(home.glob("*/hparams.yml")).read_text()


@pytest.mark.parametrize("text", ['{"tensorboard": "fir', "", "[1]", '{"wandb": 1}', "\xff"])
def test_a_broken_list_of_runs_is_an_empty_one(folder: Path, text: str) -> None:
    file = folder / "trackers" / "runs.json"
    file.parent.mkdir()
    file.write_bytes(text.encode("latin-1"))
    with pytest.warns(RuntimeWarning, match=r"runs\.json cannot be read .*, so the trackers begin new runs") as said:
        start(["tensorboard"], folder, SETTINGS).finish()
    assert said[0].filename == __file__ and json.loads(file.read_text()) == {"tensorboard": "first"}


def test_the_list_of_runs_is_written_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(["tensorboard"], folder, SETTINGS).finish()
    file, write = folder / "trackers" / "runs.json", Path.write_text

    def interrupted(path: Path, text: str, **how: Any) -> int:
        write(path, text[:9], **how)
        raise OSError(28, "No space left on device")

    before = file.read_text()
    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(OSError, match="No space"):
        start(["tensorboard"], folder, SETTINGS)
    assert file.read_text() == before


def test_every_tracker_that_names_its_runs_is_asked_for_the_same_one_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What accelerate's classes are given; they hand it to the packages as it is. ClearML would reuse a name's task."""
    asked: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    theirs = SimpleNamespace(hash="h", id="i", get_key=lambda: "k", info=SimpleNamespace(run_id="r"))

    def made(name: str) -> Any:
        def tracker(**settings: Any) -> Any:
            stored: dict[str, Any] = {}
            asked.append((name, settings, stored))
            told = Told()
            told.start, told.tracker, told.store_init_configuration = lambda: None, theirs, stored.update
            return told

        return tracker

    names = ["aim", "clearml", "comet_ml", "mlflow", "swanlab"]
    for name in names:
        monkeypatch.setitem(backends.LOGGER_TYPE_TO_CLASS, name, made(name))
    for _ in range(2):
        start(names, folder, SETTINGS).finish()
    first, again = ({name: settings for name, settings, _ in half} for half in (asked[:5], asked[5:]))
    assert [bool(stored) for *_, stored in asked] == [True] * 5 + [False] * 5
    by = {"aim": "run_hash", "comet_ml": "experiment_key", "mlflow": "run_id", "swanlab": "id"}
    assert {name: (first[name][key], again[name][key]) for name, key in by.items()} == {
        "aim": (None, "h"), "comet_ml": (None, "k"), "mlflow": (None, "r"), "swanlab": (None, "i")
    }  # fmt: skip
    asks = ("reuse_last_task_id", "continue_last_task")
    assert [[half["clearml"][key] for key in asks] for half in (first, again)] == [[False, False], ["i", 0]]


def test_trackers_do_not_see_the_keys_of_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], str | None]] = []

    def begin(*_: Any) -> tuple[Any, str]:
        seen.append((sys.argv, os.environ.get("SWANLAB_PROBE_RUNTIME")))
        return Told(), "first"

    monkeypatch.setattr(backends, "_begin", begin)
    monkeypatch.delenv("SWANLAB_PROBE_RUNTIME", raising=False)
    for words in (["train", "--seed", "3"], ["train", "--x.api_key", "k", f"--y={KEY}"]):
        monkeypatch.setattr(sys, "argv", words)
        start(["swanlab"], folder, SETTINGS)
        assert sys.argv is words and "SWANLAB_PROBE_RUNTIME" not in os.environ
    assert seen == [
        (["train", "--seed", "3"], None),
        (["train", "--x.api_key", "(removed)", "--y=(removed)"], "false"),
    ]


def test_captions_are_prompt_and_reward_and_many_pictures_are_thinned(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries: list[trackers.Entry] = []
    monkeypatch.setattr(backends, "send", lambda name, tracker, entry: entries.append(entry))
    drawn: list[Any] = []
    monkeypatch.setattr(trackers, "grid", lambda rows, notes: drawn.append((rows, notes)))
    long = {**samples(0.123456)[0], "prompt": "a cat " * 20}
    running = Trackers(folder, {"wandb": Told()})
    running.iteration(row(0), [], [*samples(1.0, NAN, None), long])
    running.iteration(row(1), [], samples(*range(100)))
    captions = [caption for _, caption in entries[0].pictures["samples"]]
    nothing = ["a worst cat | no score", "a best cat | no score"]
    assert captions == ["a best cat | 1", *nothing, f"{'a cat ' * 20} | 0.1235"]
    assert entries[0].histograms == {}
    rows, notes = drawn[0]
    assert [len(one) for one in rows] == [4] and notes[0][:3] == captions[:3]
    assert notes[0][3].endswith("... | 0.1235") and len(notes[0][3]) < 60
    rows, notes = drawn[1]
    assert [len(one) for one in rows] == [8, 8, 8, 1]
    assert notes[0][:3] == ["a best cat | 0", "a best cat | 4", "a best cat | 8"]


@pytest.mark.parametrize("name", ["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab"])
def test_accelerates_other_trackers_are_given_numbers_and_where_it_can_the_grid(folder: Path, name: str) -> None:
    class Shown(Told):
        def log_images(self, values: dict[str, Any], step: int | None) -> None:
            self.logged.append((step, values))

    told = Shown()
    Trackers(folder, {name: told}).iteration(row(0), [1.0], samples(1.0))
    *pictures, numbers = told.logged
    assert numbers == (0, ITERATION) and len(pictures) == (name in backends.GRIDS)
    arguments = backends._arguments(name, folder, None)
    signature = inspect.signature(LOGGER_TYPE_TO_CLASS[name].__init__)
    assert hasattr(LOGGER_TYPE_TO_CLASS[name], "log_images") == (name in backends.GRIDS)
    signature.bind(None, **arguments)


# ---- none, and those that fail


def test_without_trackers_nothing_is_read_or_written(tmp_path: Path) -> None:
    for names in ([], ["none"]):
        running = start(names, tmp_path, SETTINGS)
        assert running.raw == []
        running.iteration(row(0), [1.0], [{"file": "there is none"}])
        running.evaluation(EVALUATION, [{"file": "there is none"}])
        running.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_lost_tracker_is_named_once_and_the_others_go_on(folder: Path) -> None:
    lost, well = Told(broken=True), Told()
    running = Trackers(folder, {"swanlab": lost, "mlflow": well})
    with pytest.warns(
        RuntimeWarning, match=r"tracker swanlab was lost \(ConnectionError: no route\). It is given nothing"
    ) as said:
        running.evaluation(EVALUATION, [])
        running.iteration(row(0), [], [])
    assert len(said) == 1 and running.raw == [well] and len(well.logged) == 2
    running.finish()
    assert (lost.finished, well.finished) == (0, 1)


def test_a_reason_is_said_without_the_key_in_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*_: Any) -> tuple[Any, str]:
        raise RuntimeError(f"{KEY} is not valid")

    monkeypatch.setattr(backends, "begin", begin)
    with pytest.raises(ValueError, match=r"wandb did not start: RuntimeError: \(removed\) is not valid$"):
        start(["wandb"], folder, SETTINGS)


def test_a_mistake_of_ours_is_not_taken_for_a_lost_tracker(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Trackers(folder, {"mlflow": Told()}).iteration(
            row(0), [], [{"prompt": "a", "reward": 1.0, "file": "gone.webp"}]
        )


def test_a_full_disk_under_tensorboard_ends_no_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = start(["tensorboard"], folder, SETTINGS)

    def full(*args: Any, **settings: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(running.raw[0].tracker.file_writer, "flush", full)
    monkeypatch.setattr(running.raw[0].tracker, "flush", full)
    with pytest.warns(RuntimeWarning, match=r"tracker tensorboard was lost \(OSError: .*No space left on device\)"):
        running.iteration(row(0), [1.0], [])
    running.iteration(row(1), [1.0], [])
    assert running.raw == []


def test_one_that_does_not_start_is_an_error_and_leaves_none_running(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Told()

    def begin(name: str, *rest: Any) -> tuple[Any, str]:
        if name == "wandb":
            raise RuntimeError("api_key not configured: run wandb login")
        return first, "first"

    monkeypatch.setattr(backends, "begin", begin)
    with pytest.raises(ValueError, match=r"^--report_to wandb did not start: RuntimeError: api_key not configured"):
        start(["tensorboard", "wandb"], folder, SETTINGS)
    assert first.finished == 1


# ---- W&B and trackio; where they are installed, they are not replaced


def absent(name: str) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed: this looks at how one is called that is not")


class Run(Told):
    """What `wandb.init` and `trackio.init` return."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings, self.step, self.metrics = settings, 5 if settings["resume"] == "allow" else 0, []
        self.name = settings["name"]

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        if step is not None and step < self.step:
            return  # as W&B does
        super().log(values, step)
        self.step = self.step + 1 if step is None else step

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Run]]:
    """The runs that were begun with the two packages' names."""
    begun: dict[str, list[Run]] = {"wandb": [], "trackio": []}
    for name, runs in begun.items():
        absent(name)
        module = ModuleType(name)
        made = SimpleNamespace(
            init=lambda runs=runs, **settings: runs.append(Run(**settings)) or runs[-1],
            Image=lambda picture, caption: (picture.size, caption),
            Histogram=list,
        )
        module.__dict__.update(vars(made))
        monkeypatch.setitem(sys.modules, name, module)
    for variable in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    return begun


def test_wandb_is_given_everything_at_once_and_goes_on_with_its_run(folder: Path, fake: dict[str, list[Run]]) -> None:
    running = start(["wandb"], folder, SETTINGS)
    (first,) = fake["wandb"]
    said = first.settings
    assert (said["project"], said["name"], said["resume"]) == ("tastemaker", "first", None)
    assert said["dir"] == str(folder / "trackers") and said["config"]["algorithm.clip"] == 2e-4
    assert first.metrics == [("iteration", None), ("*", "iteration")]
    running.iteration(row(2), [0.0, 1.0, NAN], samples(1.0, 0.5))
    pictures = [((16, 16), "a best cat | 1"), ((16, 16), "a worst cat | 0.5")]
    expected = {**ITERATION, "reward/mean": 2.5, "iteration": 2, "reward/histogram": [0.0, 1.0], "samples": pictures}
    assert first.logged == [(2, expected)]
    running.finish()
    assert first.finished == 1
    again = start(["wandb"], folder, SETTINGS)
    second = fake["wandb"][-1]
    assert (second.settings["id"], second.settings["resume"]) == (said["id"], "allow")
    for iteration in (3, 4):  # W&B holds these already; what is logged at their steps would be dropped
        again.iteration(row(iteration), [], [])
    again.raw[0].log({"mine": 1.0}, step=4)  # as a function of the user's does
    again.iteration(row(9), [], [])
    assert [(step, values["iteration"]) for step, values in second.logged] == [(None, 3), (None, 4), (None, 4), (9, 9)]


def test_wandbs_own_variables_mean_what_they_mean_everywhere(
    folder: Path, fake: dict[str, list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in (("WANDB_PROJECT", "ours"), ("WANDB_NAME", "third"), ("WANDB_RUN_ID", "abc")):
        monkeypatch.setenv(variable, value)
    start(["wandb"], folder, SETTINGS)
    said = fake["wandb"][0].settings
    assert (said["project"], said["name"], said["id"]) == ("ours", "third", "abc")


def test_trackio_is_given_a_grid_and_goes_on_with_its_run(folder: Path, fake: dict[str, list[Run]]) -> None:
    running = start(["trackio"], folder, SETTINGS)
    running.iteration(row(1), [0.0, 1.0], samples(1.0, 0.5))
    (first,) = fake["trackio"]
    said = first.settings
    assert (said["project"], said["name"], said["resume"]) == ("tastemaker", "first", "never")
    assert said["config"]["lora"] == "none"
    ((step, values),) = first.logged
    size, caption = values["samples"]
    assert step == 1 and values["reward/histogram"] == [0.0, 1.0] and values["reward/mean"] == 1.5
    assert size[0] > 32 and caption == "a best cat | 1\na worst cat | 0.5"
    start(["trackio"], folder, SETTINGS)
    assert fake["trackio"][-1].settings["resume"] == "allow"


def test_all_are_those_that_are_installed(folder: Path, fake: dict[str, list[Run]]) -> None:
    need(["all"])
    running = start(["all"], folder, SETTINGS)
    assert {"tensorboard", "wandb", "trackio"} <= {tracker.name for tracker in running.raw}
    running.finish()

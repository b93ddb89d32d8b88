"""Tiny runs through the command line, in this process: what tests of commands, folders and interruptions share."""

from __future__ import annotations

import atexit
import functools
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from safetensors.torch import load_file

import tiny
from tastemaker import cli
from tastemaker.training.lines import read_lines

PROMPTS = ("a cat", "a dog", "a cow", "a hen", "a fox", "an owl", "a bee", "bad luck")
LORA = Path("lora") / "pytorch_lora_weights.safetensors"

# TRIP is "SIGNAL,n,file": the n-th call of the reward sends its own process that signal, once, for calls are counted in
# the file over all processes; "raise,n,file" raises from the n-th call on instead.
REWARDS = '''
import os, signal
from pathlib import Path

def choices():
    return "a cat", {"winner": "winner.png", "loser": "loser.png"}
import torch
from tastemaker.rewards.reward import Scores

def trip():
    kind, at, file = os.environ["TRIP"].split(",")
    with open(file, "ab") as calls:
        calls.write(b".")
    made = Path(file).stat().st_size
    if kind == "raise" and made >= int(at):
        raise ConnectionError("the judge is down")
    if kind != "raise" and made == int(at):
        os.kill(os.getpid(), getattr(signal, kind))

def brightness(images, prompts):
    """The mean of all pixels."""
    if "TRIP" in os.environ:
        trip()
    return images.mean((1, 2, 3))

def redness(images, prompts):
    return images[:, 0].mean((1, 2)), {"green": images[:, 1].mean((1, 2)), "blue": images[:, 2].mean((1, 2))}

def squeamish(images, prompts):
    """No score for bad luck."""
    bad = ["bad" in text for text in prompts]
    value = images.mean((1, 2, 3)).masked_fill(torch.tensor(bad), float("nan"))
    return Scores(value, {}, tuple("I do not judge that" if one else None for one in bad))

def matrix(images, prompts):
    return images.mean((2, 3))

def column(images, prompts):
    return images.mean((1, 2, 3))[:, None]

def single(images, prompts):
    return images.mean()

def short(images, prompts):
    return images.mean((1, 2, 3))[1:]

def nothing(images, prompts):
    images.mean((1, 2, 3))

def nan(images, prompts):
    return images.mean((1, 2, 3)) / 0 * 0

def ranks(images, prompts):
    return torch.arange(len(images)).float()

def broken(images, prompts):
    raise RuntimeError("no weights")

def spoils(images, prompts):
    return images.mul_(255).mean((1, 2, 3))

not_a_function = 3
'''


class Ran(NamedTuple):
    """One command: its exit code and what it wrote."""

    code: int
    out: str
    err: str


@functools.cache
def home() -> Path:
    """A folder of this process, with prompts.txt and rewards.py in it."""
    made = Path(tempfile.mkdtemp(prefix="tastemaker-tests-"))
    atexit.register(shutil.rmtree, made, True)
    (made / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    (made / "rewards.py").write_text(REWARDS)
    return made


@functools.cache
def model() -> str:
    """The folder of a tiny model, one for all tests of this process."""
    return str(tiny.save(home() / "tiny-model"))


def reward(name: str) -> str:
    return f"{home() / 'rewards.py'}:{name}"


def call(*argv: str) -> Ran:
    """A command in this process."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = cli.main(argv)
    return Ran(code, out.getvalue(), err.getvalue())


def words(folder: Path | None, *more: str) -> list[str]:
    """A run of 2 iterations of 2 updates on 4 pictures; of a flag given twice the last counts.

    The reward's calls: 1-3 try it out, 4-5 are the base's evaluation, 6-7 and 8-9 the iterations, 10-11 the last one.
    """
    more = more if "--no-alarms" in more else ("--alarms.strips", "0", *more)  # tests of the strips turn them on
    where = [] if folder is None else ["--output_dir", str(folder)]
    settings = {
        "model": model(),
        "reward": reward("brightness"),
        "prompts": str(home() / "prompts.txt"),
        "device": "cpu",
        "iterations": "2",
        "learning_rate": "1e-2",
        "checkpointing_steps": "1",
        "algorithm.images": "4",
        "algorithm.updates": "2",
        "algorithm.steps": "3",
        "algorithm.guidance": "2",
        "plan.micro_batch": "3",
        "plan.sampling_batch": "2",
        "evaluation.count": "4",
    }
    return ["train", "ddpo", *(word for key, value in settings.items() for word in (f"--{key}", value)), *where, *more]


def small(folder: Path, *more: str) -> list[str]:
    """One iteration of one update on 2 pictures, judged by one: where only one switch is looked at."""
    few = "--iterations 1 --algorithm.images 2 --algorithm.updates 1 --algorithm.steps 2 --evaluation.count 1"
    return words(folder, *few.split(), *more)


def train(argv: list[str]) -> Ran:
    """A run that ends well."""
    ran = call(*argv)
    assert (ran.code, ran.err) == (0, ""), ran.err
    return ran


@functools.cache
def finished() -> tuple[Path, Ran]:
    """The folder of the run of `words`, and what it printed: made once, looked at by many."""
    folder = home() / "finished"
    return folder, train(words(folder))


@functools.cache
def plain() -> Path:
    """The folder of the run of `small`."""
    train(small(home() / "plain"))
    return home() / "plain"


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return read_lines(folder / f"{name}.jsonl")


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What a run says of its iterations, without the time it took."""
    clock = ("seconds", "memory")
    return [{key: value for key, value in row.items() if key not in clock} for row in rows(folder, "metrics")]


def weights(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """The bits of a run's LoRA file, by tensor."""
    found = load_file(folder / LORA)
    return {name: (str(t.dtype), list(t.shape), t.numpy().tobytes()) for name, t in found.items()}


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
    return found


def origins(folder: Path) -> dict[str, str]:
    """`key: value` -> what config.yaml says behind it."""
    lines = (folder / "config.yaml").read_text().splitlines()
    pairs = (line.partition("  # ") for line in lines)
    return {text.strip(): note for text, _, note in pairs}


@contextmanager
def tripping(kind: str, at: int, file: Path) -> Iterator[None]:
    """The reward `brightness` fails or is hit by a signal at its call `at`."""
    os.environ["TRIP"] = f"{kind},{at},{file}"
    try:
        yield
    finally:
        del os.environ["TRIP"]

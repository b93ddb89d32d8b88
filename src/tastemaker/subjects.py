"""What `sample` and `evaluate` work on: runs, models, LoRA files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from tastemaker import config, devices
from tastemaker.build import Where, build
from tastemaker.folder import CONFIG
from tastemaker.outcome import Run
from tastemaker.policy.load import BUILT_IN, load
from tastemaker.policy.load import folder as model_folder
from tastemaker.policy.policy import Exportable
from tastemaker.policy.weights import LoRA

BASE = "base"  # the word for the untuned model, which is judged anyway
OF_MODEL = ("model", "revision", "variant", "resolution", "height", "width")  # settings that make a base model


@dataclass(frozen=True)
class Subject:
    """What is drawn with and judged: a run, or a bare model with or without a LoRA."""

    name: str  # in tables, and of folders
    tree: Mapping[str, Any]  # the run's settings, or the model's defaults
    file: Path | None = None  # the run's config.yaml
    lora: LoRA | None = None
    pipeline: Path | None = None  # the tuned model, where it is more than a LoRA

    @property
    def is_tuned(self) -> bool:
        """Whether there is a base model beside it."""
        return self.lora is not None or self.pipeline is not None

    @property
    def tuned(self) -> Mapping[str, Any]:
        """The settings with the tuned model in the place of the base, where it is one of its own."""
        own = {"model": str(self.pipeline), "revision": None, "variant": None} if self.pipeline else {}
        return {**self.tree, **own}

    @property
    def base(self) -> Subject:
        """The untuned model."""
        model = str(self.tree["model"])
        name = model if model in BUILT_IN else Path(model).name
        return Subject(name, self.tree, self.file)

    @property
    def model(self) -> tuple[Any, ...]:
        """What makes two base models the same one."""
        return tuple(self.tree.get(key) for key in OF_MODEL)


def of_flags(flags: Mapping[str, Any]) -> Subject:
    """What `--run`, or `--model` and `--lora`, name."""
    if "run" in flags:
        for key in ("model", "lora"):
            if key in flags:
                raise ValueError(f"--{key} has no effect beside --run, which has one of its own: give one of them.")
        return of_run(Path(str(flags["run"])).expanduser(), "--run ")
    if "model" not in flags:
        raise ValueError("there is neither --run nor --model: name one.")
    found = of_model(str(flags["model"]))
    if "lora" not in flags:
        return found
    adapter = lora_of(flags["lora"])
    return replace(found, name=Path(str(adapter.file)).stem, lora=adapter)


def of_words(words: Sequence[str], flags: Mapping[str, Any]) -> list[Subject]:
    """Runs' folders, LoRA files beside `--model`, models, and `base`, in the order in which they were named.

    Errors: ValueError for a word that is none of these.
    """
    found = [of_flags(flags)] if {"run", "lora"} & flags.keys() or not words else []
    for word in words:
        path = Path(word).expanduser()
        if word == BASE:
            found += [of_model(str(flags["model"]))] if "model" in flags else []
        elif (path / CONFIG).is_file() or path.is_dir() and not (path / "model_index.json").is_file():
            found.append(of_run(path))
        elif path.suffix == ".safetensors" and "model" in flags:
            found.append(of_flags({"model": flags["model"], "lora": word}))
        else:
            found.append(of_model(word))
    if not found:
        raise ValueError("`base` is the base of what? Name a run, or the model with --model.")
    return _renamed(found)


def _renamed(found: list[Subject]) -> list[Subject]:
    """Names that are equal get a number."""
    names: list[str] = []
    for one in found:
        count = sum(name.partition(" #")[0] == one.name for name in names)
        names.append(f"{one.name} #{count + 1}" if count else one.name)
    return [replace(one, name=name) for one, name in zip(found, names, strict=True)]


def of_model(model: str) -> Subject:
    """A bare model with the defaults that it brings."""
    home = model_folder(model)
    defaults = config.model_defaults(home).get("defaults", {}) if home else {}
    shared = {key: defaults[key] for key in config.SHARED if key in defaults}
    return Subject(model if model in BUILT_IN else Path(model).name, {**defaults, "model": model, "algorithm": shared})


def of_run(home: Path, flag: str = "") -> Subject:
    """A run that has ended, from its folder."""
    file = home / CONFIG
    if not file.is_file():
        raise ValueError(f"{flag}{home} holds no {CONFIG}: name a folder that `tastemaker train` left.")
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    left = Run.open(home).weights
    if left is None:
        raise ValueError(f"{flag}{home}: the run has not ended; go on with --resume_from_checkpoint latest.")
    if tree["lora"] is None:
        return Subject(home.resolve().name, tree, file, pipeline=left)
    lora = replace(build(LoRA, tree["lora"], Where("lora")), file=str(left))
    return Subject(home.resolve().name, tree, file, lora)


def lora_of(found: Any) -> LoRA:
    """`--lora FILE`, with `--lora.rank` and the other settings beside it."""
    settings = dict(found) if isinstance(found, Mapping) else {"name": found}
    if "name" not in settings:
        raise ValueError("--lora.KEY has no effect without a file: give --lora FILE too.")
    settings["file"] = settings.pop("name")
    return cast(LoRA, build(LoRA, settings, Where("--lora", "lora")))


def policy_of(tree: Mapping[str, Any], flags: Mapping[str, Any], lora: LoRA | None) -> Exportable:
    size = whole(flags, "resolution", 0) if "resolution" in flags else tree.get("resolution")
    return load(
        str(tree["model"]),
        lora=lora,
        device=torch.device(devices.pick(str(flags.get("device", "auto")))),
        mixed_precision=str(flags.get("mixed_precision", tree.get("mixed_precision", "no"))),
        resolution=size,
        height=None if "resolution" in flags else tree.get("height"),
        width=None if "resolution" in flags else tree.get("width"),
        revision=tree.get("revision"),
        variant=tree.get("variant"),
        sets=("base",) if lora else (),  # of a whole network that would be a copy
    )


def whole(flags: Mapping[str, Any], name: str, default: int) -> int:
    try:
        value = int(flags.get(name, default))
    except (TypeError, ValueError) as error:
        raise ValueError(f"--{name} is {flags[name]!r}; it is a whole number.") from error
    if value < (0 if name == "seed" else 1):
        raise ValueError(f"--{name} is {value}; it is positive.")
    return value


def number(flags: Mapping[str, Any], name: str, default: float) -> float:
    try:
        return float(flags.get(name, default))
    except (TypeError, ValueError) as error:
        raise ValueError(f"--{name} is {flags[name]!r}; it is a number.") from error

"""Pictures and judgements outside training: what `tastemaker sample` and `tastemaker evaluate` do."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import yaml

from tastemaker import config, devices
from tastemaker.build import Where, build, suggest
from tastemaker.evaluation.evaluate import Change, Trial, Verdict, compare, draw_pictures, judge, trial_prompts
from tastemaker.exports.diffusers import LORA, PIPELINE
from tastemaker.folder import CONFIG, write_text
from tastemaker.layers import Switch
from tastemaker.planning import trial_of
from tastemaker.policy.load import folder as model_folder
from tastemaker.policy.load import load
from tastemaker.policy.policy import Exportable
from tastemaker.policy.weights import LoRA
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.prompts import PromptSource
from tastemaker.prompts.sources import source
from tastemaker.reports import trackers
from tastemaker.reports.pictures import grid, save
from tastemaker.results import sentences
from tastemaker.rewards import TABLE as REWARDS
from tastemaker.rewards import named
from tastemaker.rewards.reward import NamedReward
from tastemaker.training.record import Bars

# The flags of the two commands.
MODEL = {"run", "model", "lora", "device", "mixed_precision", "seed"}
SAMPLE = MODEL | {"prompts", "count", "steps", "guidance", "resolution", "output_dir", "negative_prompt"}
EVALUATE = MODEL | {"rewards", "evaluation", "output", "report_to"}


@dataclass(frozen=True)
class Subject:
    """What is drawn with and judged: a run, or a bare model with or without a LoRA."""

    tree: Mapping[str, Any]  # the run's settings, or the model's defaults
    file: Path | None = None  # the run's config.yaml
    lora: LoRA | None = None
    pipeline: Path | None = None  # the tuned model, where it is more than a LoRA

    @property
    def tuned(self) -> Mapping[str, Any]:
        """The settings with the tuned model in the place of the base, where it is one of its own."""
        own = {"model": str(self.pipeline), "revision": None, "variant": None} if self.pipeline else {}
        return {**self.tree, **own}


def sample(flags: Mapping[str, Any]) -> list[Path]:
    """Pictures of `--prompts`, singly and as a grid; returns the grid's path last."""
    _refuse_unknown("sample", flags, SAMPLE)
    subject = _subject(flags)
    tree, defaults = subject.tree, subject.tree.get("algorithm", {})
    prompts = flags.get("prompts") or tree.get("prompts")
    if not prompts:
        raise ValueError("there are no --prompts: name a set, a text file, or write --prompts 'text:a red circle'.")
    single = isinstance(prompts, str) and prompts.startswith("text:")
    chosen = source([prompts.removeprefix("text:")] if single else prompts, key="--prompts")
    seed, count = _whole(flags, "seed", 0), _whole(flags, "count", 8)
    trial = Trial(
        trial_prompts(chosen, count, 1, seed),
        _whole(flags, "steps", int(defaults.get("steps", 50))),
        _number(flags, "guidance", float(defaults.get("guidance", 7.5))),
        DDIM(eta=0.0),
        seed,
        min(count, 16),
        str(flags.get("negative_prompt", tree.get("negative_prompt", ""))),
    )
    if "negative_prompt" in flags and trial.guidance <= 1:
        raise ValueError(f"--negative_prompt has no effect at --guidance {trial.guidance}, which is none.")
    policy = _policy(subject.tuned, flags, subject.lora)
    return _draw(policy, trial, _made(Path(str(flags.get("output_dir", "samples"))).expanduser()))


def _draw(policy: Exportable, trial: Trial, output: Path) -> list[Path]:
    bars, pictures = Bars(), []
    bars.begin("sampling", len(trial.prompts))
    for part in trial.prompts.split(trial.batch):
        pictures += list(draw_pictures(policy, trial, Key(trial.seed, "evaluation"), part).cpu())
        bars.advance(len(part))
    bars.end()
    for b, picture in enumerate(pictures):
        save(picture, output / f"{b}.png")
    sheet = output / "grid.png"
    rows = [pictures[k : k + 8] for k in range(0, len(pictures), 8)]
    texts = trial.prompts.texts
    grid(rows, path=sheet, notes=[texts[k : k + 8] for k in range(0, len(texts), 8)])
    return [sheet]


class Comparison(NamedTuple):
    """A tuned model against its base."""

    changes: dict[str, Change]  # by score
    pictures: int  # of each of the two
    prompts: str  # what they are pictures of


def evaluate(flags: Mapping[str, Any]) -> list[str]:
    """A tuned model against its base; returns the lines to print."""
    output = Path(str(flags["output"])).expanduser() if "output" in flags else None
    if output is not None and not output.parent.is_dir():
        raise ValueError(f"--output {output}: there is no folder {output.parent}.")
    names = str(flags.get("report_to", "none")).split(",")
    trackers.need(names)
    if "report_to" in flags and "run" not in flags:
        raise ValueError("--report_to goes on with a run's trackers: name the run's folder, or leave it out.")
    found = compared(flags)
    if "report_to" in flags:
        home = Path(str(flags["run"])).expanduser()
        running = trackers.start(names, home, _run_of(home).tree)
        running.comparison(found.changes)
        running.finish()
    if output is not None:
        write_text(output, json.dumps({name: _plain(change) for name, change in found.changes.items()}, indent=1))
    return sentences(*found)


def compared(
    flags: Mapping[str, Any], judges: Sequence[NamedReward] = (), prompts: PromptSource | None = None
) -> Comparison:
    """What the flags of `tastemaker evaluate` ask for, with Python's own judges and prompts in the place of names."""
    _refuse_unknown("evaluate", flags, EVALUATE)
    subject = _subject(flags)
    if not (subject.lora or subject.pipeline):
        raise ValueError("there is nothing to compare with the base model: give --run FOLDER or --lora FILE.")
    resolved = _resolved(subject, flags)
    run = resolved.run
    judges = judges or [named(spec, key="--rewards") for spec in _rewards(flags, run)]
    asked = run.evaluation.prompts
    if prompts is None or "prompts" in flags.get("evaluation", {}):
        key = "--run" if asked is None else "--evaluation.prompts"
        prompts = source(run.prompts if asked is None else asked, key=key)
    trial, prompts_name, _ = trial_of(run, resolved.algorithm, prompts, 32)
    base, tuned = _verdicts(subject, flags, judges, trial)
    changes = compare(base.values, tuned.values, trial.prompts, trial.seed)
    return Comparison(changes, len(trial.prompts), prompts_name)


def _verdicts(
    subject: Subject, flags: Mapping[str, Any], judges: Sequence[NamedReward], trial: Trial
) -> tuple[Verdict, Verdict]:
    """Of the base and of the tuned model. Two whole models are loaded one after the other, never both."""
    bars = Bars()
    if subject.pipeline:
        both = subject.tree, subject.tuned
        base, tuned = (judge(_policy(tree, flags, None), judges, trial, progress=bars) for tree in both)
    else:
        policy = _policy(subject.tree, flags, subject.lora)
        with policy.using("base"):
            base = judge(policy, judges, trial, progress=bars)
        tuned = judge(policy, judges, trial, progress=bars)
    bars.end()
    return base, tuned


def _plain(value: Any) -> Any:
    """Named tuples as mappings; JSON has no NaN: it becomes null."""
    if isinstance(value, tuple):
        return {key: _plain(part) for key, part in zip(value._fields, value, strict=True)}  # type: ignore[attr-defined]
    return None if math.isnan(value) else value


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output_dir {folder} cannot be made: {error.strerror}. Name another folder.") from error
    return folder


def _rewards(flags: Mapping[str, Any], run: Any) -> list[Any]:
    if "rewards" in flags:
        return str(flags["rewards"]).split(",")
    return [run.reward, *(name for name in run.held_out_rewards if name != run.reward)]


def _subject(flags: Mapping[str, Any]) -> Subject:
    """What `--run`, or `--model` and `--lora`, name."""
    if "run" in flags:
        for key in ("model", "lora"):
            if key in flags:
                raise ValueError(f"--{key} has no effect beside --run, which has one of its own: give one of them.")
        return _run_of(Path(str(flags["run"])).expanduser())
    if "model" not in flags:
        raise ValueError("there is neither --run nor --model: name one.")
    model = str(flags["model"])
    home_of = model_folder(model)
    defaults = config.model_defaults(home_of).get("defaults", {}) if home_of else {}
    shared = {key: defaults[key] for key in config.SHARED if key in defaults}
    tree = {**defaults, "model": model, "algorithm": shared}
    return Subject(tree, lora=_lora(flags["lora"]) if "lora" in flags else None)


def _run_of(home: Path) -> Subject:
    """A run that has ended, from its folder."""
    file = home / CONFIG
    if not file.is_file():
        raise ValueError(f"--run {home} holds no {CONFIG}: name a folder that `tastemaker train` left.")
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    left = home / (PIPELINE if tree["lora"] is None else LORA)
    if not left.exists():
        raise ValueError(f"--run {home} holds no {left.relative_to(home)}: the run has not ended.")
    if tree["lora"] is None:
        return Subject(tree, file, pipeline=left)
    return Subject(tree, file, replace(build(LoRA, tree["lora"], Where("lora")), file=str(left)))


def _lora(found: Any) -> LoRA:
    """`--lora FILE`, with `--lora.rank` and the other settings beside it."""
    settings = dict(found) if isinstance(found, Mapping) else {"name": found}
    if "name" not in settings:
        raise ValueError("--lora.KEY has no effect without a file: give --lora FILE too.")
    settings["file"] = settings.pop("name")
    return cast(LoRA, build(LoRA, settings, Where("--lora", "lora")))


def _resolved(subject: Subject, flags: Mapping[str, Any]) -> config.Resolved:
    """The run's own settings, or the model's, with the flags over them."""
    over = {key: flags[key] for key in ("seed", "device", "mixed_precision") if key in flags}
    asked = flags.get("evaluation", {})
    if not isinstance(asked, Mapping):
        raise ValueError(f"--evaluation is a group of settings, --evaluation.KEY; found {asked!r}.")
    if subject.file:
        return config.resolve(str(subject.file), {**over, "evaluation": asked}, {})
    values = {key: value for key, value in subject.tree.items() if key not in config.SHARED}
    values["evaluation"] = {**(values.get("evaluation") or {}), **asked}
    values["prompts"] = values.get("prompts") or values["evaluation"].get("prompts")
    if not values["prompts"]:
        raise ValueError("there are no prompts to judge by: give --evaluation.prompts, a set or a text file.")
    return config.resolve(next(iter(config.algorithms())), {"reward": next(iter(REWARDS)), **values, **over}, {})


def _policy(tree: Mapping[str, Any], flags: Mapping[str, Any], lora: LoRA | None) -> Exportable:
    size = _whole(flags, "resolution", 0) if "resolution" in flags else tree.get("resolution")
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


def _whole(flags: Mapping[str, Any], name: str, default: int) -> int:
    try:
        value = int(flags.get(name, default))
    except (TypeError, ValueError) as error:
        raise ValueError(f"--{name} is {flags[name]!r}; it is a whole number.") from error
    if value < (0 if name == "seed" else 1):
        raise ValueError(f"--{name} is {value}; it is positive.")
    return value


def _number(flags: Mapping[str, Any], name: str, default: float) -> float:
    try:
        return float(flags.get(name, default))
    except (TypeError, ValueError) as error:
        raise ValueError(f"--{name} is {flags[name]!r}; it is a number.") from error


def _refuse_unknown(command: str, flags: Mapping[str, Any], known: set[str]) -> None:
    for key, value in flags.items():
        if key not in known:
            near = suggest(key, sorted(known))
            guess = f"  Did you mean `--{near}`?" if near else ""
            raise ValueError(f"--{key} is not a flag of tastemaker {command}.{guess}  (tastemaker {command} --help)")
        if isinstance(value, Switch):
            raise ValueError(f"--{key} needs a value.")

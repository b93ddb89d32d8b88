"""Pictures and judgements outside training: what `tastemaker sample` and `tastemaker evaluate` do."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from tastemaker import config
from tastemaker.build import Where, attribute, build, plain, suggest
from tastemaker.evaluation.evaluate import Trial, compare, draw_pictures, judge, trial_prompts
from tastemaker.folder import CONFIG, write_text
from tastemaker.layers import Switch
from tastemaker.planning import trial_of
from tastemaker.policy.load import folder as model_folder
from tastemaker.policy.load import load
from tastemaker.policy.policy import Exportable
from tastemaker.policy.weights import LoRA
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.sources import source
from tastemaker.reports.pictures import grid, save
from tastemaker.results import sentences
from tastemaker.rewards import TABLE as REWARDS
from tastemaker.rewards import named
from tastemaker.run import pick_device
from tastemaker.training.record import Bars

LORA = Path("lora") / "pytorch_lora_weights.safetensors"


def sample(flags: Mapping[str, Any]) -> list[Path]:
    """Pictures of `--prompts`, singly and as a grid; returns the grid's path last."""
    known = {"model", "run", "lora", "prompts", "count", "seed", "steps", "guidance", "resolution", "output_dir"}
    known |= {"negative_prompt", "device", "mixed_precision"}
    _refuse_unknown("sample", flags, known)
    tree, lora = _subject(flags)
    defaults = tree.get("algorithm", {})
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
    policy = _policy(tree, flags, lora)
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


def evaluate(flags: Mapping[str, Any]) -> list[str]:
    """A tuned model against its base; returns the lines to print."""
    known = {"run", "model", "lora", "rewards", "evaluation", "output", "device", "mixed_precision", "seed"}
    _refuse_unknown("evaluate", flags, known)
    tree, lora = _subject(flags)
    if lora is None:
        raise ValueError("there is nothing to compare with the base model: give --run FOLDER or --lora FILE.")
    resolved = _resolved(tree, flags)
    run = resolved.run
    judges = [named(spec, key="--rewards") for spec in _rewards(flags, run)]
    own = run.evaluation.prompts is None
    judged = source(run.prompts, key="--run") if own else source(run.evaluation.prompts, key="--evaluation.prompts")
    trial, prompts_name, _ = trial_of(run, resolved.algorithm, judged, 32)
    output = Path(str(flags["output"])).expanduser() if "output" in flags else None
    if output is not None and not output.parent.is_dir():
        raise ValueError(f"--output {output}: there is no folder {output.parent}.")
    policy = _policy(tree, flags, lora)
    bars = Bars()
    with policy.using("base"):
        base = judge(policy, judges, trial, progress=bars)
    tuned = judge(policy, judges, trial, progress=bars)
    bars.end()
    changes = compare(base.values, tuned.values, trial.prompts, trial.seed)
    if output is not None:
        write_text(output, json.dumps({name: _plain(found) for name, found in changes.items()}, indent=1))
    return sentences(changes, len(trial.prompts), prompts_name)


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
    return list(dict.fromkeys([run.reward, *run.held_out_rewards]))


def _subject(flags: Mapping[str, Any]) -> tuple[dict[str, Any], LoRA | None]:
    """The settings tree of a run, or of a bare model; and the LoRA to load."""
    if "run" in flags:
        for key in ("model", "lora"):
            if key in flags:
                raise ValueError(f"--{key} has no effect beside --run, which has one of its own: give one of them.")
        home = Path(str(flags["run"])).expanduser()
        if not (home / CONFIG).is_file():
            raise ValueError(f"--run {home} holds no {CONFIG}: name a folder that `tastemaker train` left.")
        tree = yaml.safe_load((home / CONFIG).read_text(encoding="utf-8"))
        if not (home / LORA).is_file():
            raise ValueError(f"--run {home} holds no {LORA}: the run has not ended, or was made without LoRA.")
        return tree, replace(build(LoRA, tree["lora"], Where("lora")), file=str(home / LORA))
    if "model" not in flags:
        raise ValueError("there is neither --run nor --model: name one.")
    model = str(flags["model"])
    home_of = model_folder(model)
    defaults = config.model_defaults(home_of).get("defaults", {}) if home_of else {}
    shared = {key: defaults[key] for key in config.SHARED if key in defaults}
    tree = {"model": model, **defaults, "algorithm": shared}
    return tree, _lora(flags["lora"]) if "lora" in flags else None


def _lora(found: Any) -> LoRA:
    """`--lora FILE`, with `--lora.rank` and the other settings beside it."""
    settings = dict(found) if isinstance(found, Mapping) else {"name": found}
    if "name" not in settings:
        raise ValueError("--lora.KEY has no effect without a file: give --lora FILE too.")
    settings["file"] = settings.pop("name")
    return cast(LoRA, build(LoRA, settings, Where("--lora", "lora")))


def _resolved(tree: dict[str, Any], flags: Mapping[str, Any]) -> config.Resolved:
    """The run's own settings with the flags' `evaluation` over them."""
    values = {key: value for key, value in tree.items() if key not in config.SHARED}
    algorithm = dict(values.pop("algorithm", {}))
    name = str(algorithm.pop("name", next(iter(config.algorithms()))))
    defaults = plain(attribute(config.algorithms()[name])())
    # a run's file states every setting; some are refused beside others when somebody states them
    chosen = {key: value for key, value in algorithm.items() if key not in defaults or value != defaults[key]}
    over = {key: flags[key] for key in ("seed", "device", "mixed_precision") if key in flags}
    if not isinstance(flags.get("evaluation", {}), Mapping):
        raise ValueError(f"--evaluation is a group of settings, --evaluation.KEY; found {flags['evaluation']!r}.")
    evaluation = {**(values.get("evaluation") or {}), **dict(flags.get("evaluation", {}))}
    asked = {**values, **over, "evaluation": evaluation, "algorithm": chosen}
    asked.setdefault("reward", next(iter(REWARDS)))
    if not asked.get("prompts") and not evaluation.get("prompts"):
        raise ValueError("there are no prompts to judge by: give --evaluation.prompts, a set or a text file.")
    asked["prompts"] = asked.get("prompts") or evaluation["prompts"]
    return config.resolve(name, asked, {})


def _policy(tree: Mapping[str, Any], flags: Mapping[str, Any], lora: LoRA | None) -> Exportable:
    size = _whole(flags, "resolution", 0) if "resolution" in flags else tree.get("resolution")
    return load(
        str(tree["model"]),
        lora=lora,
        device=torch.device(pick_device(str(flags.get("device", "auto")))),
        mixed_precision=str(flags.get("mixed_precision", tree.get("mixed_precision", "no"))),
        resolution=size,
        height=None if "resolution" in flags else tree.get("height"),
        width=None if "resolution" in flags else tree.get("width"),
        revision=tree.get("revision"),
        variant=tree.get("variant"),
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

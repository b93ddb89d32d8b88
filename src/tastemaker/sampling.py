"""Pictures and judgements outside training: what `tastemaker sample` and `tastemaker evaluate` do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from tastemaker import config
from tastemaker.build import Where, build
from tastemaker.evaluation.evaluate import Trial, compare, draw_pictures, judge, trial_prompts
from tastemaker.folder import CONFIG, write_text
from tastemaker.policy.load import folder as model_folder
from tastemaker.policy.load import load
from tastemaker.policy.policy import Exportable
from tastemaker.policy.weights import LoRA
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.sources import source
from tastemaker.reports.pictures import grid, save
from tastemaker.results import sentences
from tastemaker.rewards import named
from tastemaker.run import pick_device, trial_of
from tastemaker.training.record import Bars

LORA = Path("lora") / "pytorch_lora_weights.safetensors"


def sample(flags: Mapping[str, Any]) -> list[Path]:
    """Pictures of `--prompts`, singly and as a grid; returns the grid's path last."""
    known = {"model", "run", "lora", "prompts", "count", "seed", "steps", "guidance", "resolution", "output_dir"}
    known |= {"negative_prompt", "device", "mixed_precision"}
    _refuse_unknown(flags, known)
    tree, lora = _subject(flags)
    policy = _policy(tree, flags, lora)
    defaults = tree.get("algorithm", {})
    prompts = str(flags.get("prompts") or tree.get("prompts") or "")
    if not prompts:
        raise ValueError("there are no --prompts: name a set, a text file, or write --prompts 'text:a red circle'.")
    chosen = source([prompts.removeprefix("text:")] if prompts.startswith("text:") else prompts, key="--prompts")
    seed, count = _whole(flags, "seed", 0), _whole(flags, "count", 8)
    trial = Trial(
        trial_prompts(chosen, count, 1, seed),
        _whole(flags, "steps", int(defaults.get("steps", 50))),
        float(flags.get("guidance", defaults.get("guidance", 7.5))),
        DDIM(eta=0.0),
        seed,
        min(count, 16),
        str(flags.get("negative_prompt", tree.get("negative_prompt", ""))),
    )
    return _draw(policy, trial, Path(str(flags.get("output_dir", "samples"))))


def _draw(policy: Exportable, trial: Trial, output: Path) -> list[Path]:
    output.mkdir(parents=True, exist_ok=True)
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
    _refuse_unknown(flags, known)
    tree, lora = _subject(flags)
    if lora is None:
        raise ValueError("there is nothing to compare with the base model: give --run FOLDER or --lora FILE.")
    resolved = _resolved(tree, flags)
    run = resolved.run
    judges = [named(spec, key="--rewards") for spec in _rewards(flags, run)]
    policy = _policy(tree, flags, lora)
    prompts = source(run.prompts, key="--prompts")
    trial, prompts_name, _ = trial_of(run, resolved.algorithm, prompts, 32)
    bars = Bars()
    with policy.using("base"):
        base = judge(policy, judges, trial, progress=bars)
    tuned = judge(policy, judges, trial, progress=bars)
    bars.end()
    changes = compare(base.values, tuned.values, trial.prompts, trial.seed)
    if "output" in flags:
        numbers = {name: {k: v for k, v in found._asdict().items()} for name, found in changes.items()}
        write_text(Path(str(flags["output"])), json.dumps(numbers, indent=1))
    return sentences(changes, len(trial.prompts), prompts_name)


def _rewards(flags: Mapping[str, Any], run: Any) -> list[Any]:
    if "rewards" in flags:
        return str(flags["rewards"]).split(",")
    return list(dict.fromkeys([run.reward, *run.held_out_rewards]))


def _subject(flags: Mapping[str, Any]) -> tuple[dict[str, Any], LoRA | None]:
    """The settings tree of a run, or of a bare model; and the LoRA to load."""
    if "run" in flags:
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
    return tree, LoRA(file=str(flags["lora"])) if "lora" in flags else None


def _resolved(tree: dict[str, Any], flags: Mapping[str, Any]) -> config.Resolved:
    """The run's own settings with the flags' `evaluation` over them."""
    values = {key: value for key, value in tree.items() if key not in config.SHARED}
    algorithm = {"name": next(iter(config.algorithms())), **values.pop("algorithm", {})}
    name = str(algorithm.pop("name"))
    over = {key: flags[key] for key in ("seed", "device", "mixed_precision") if key in flags}
    evaluation = {**(values.get("evaluation") or {}), **dict(flags.get("evaluation", {}))}
    asked = {**values, **over, "evaluation": evaluation, "algorithm": algorithm}
    asked.setdefault("reward", "jpeg_compressibility")
    return config.resolve(name, asked, {})


def _policy(tree: Mapping[str, Any], flags: Mapping[str, Any], lora: LoRA | None) -> Exportable:
    size = flags.get("resolution", tree.get("resolution"))
    return load(
        str(tree["model"]),
        lora=lora,
        device=torch.device(pick_device(str(flags.get("device", "auto")))),
        mixed_precision=str(flags.get("mixed_precision", tree.get("mixed_precision", "no"))),
        resolution=None if size is None else int(size),
        height=tree.get("height"),
        width=tree.get("width"),
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


def _refuse_unknown(flags: Mapping[str, Any], known: set[str]) -> None:
    for key in flags:
        if key not in known:
            raise Where().unknown(f"--{key}", [f"--{name}" for name in sorted(known)], {})

"""Pictures of a model or a run: what `tastemaker sample` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tastemaker.evaluation.evaluate import Trial, draw_pictures, trial_prompts
from tastemaker.evaluation.guidance import rule
from tastemaker.flags import refuse
from tastemaker.folder import CONFIG
from tastemaker.policy.policy import Policy
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.sources import source
from tastemaker.reports.pictures import grid, save
from tastemaker.subjects import Subject, number, of_flags, policy_of, whole
from tastemaker.training.record import Bars
from tastemaker.training.samples import list_pictures

FLAGS = {"run", "model", "lora", "device", "mixed_precision", "seed", "prompts", "count", "steps", "guidance"}
FLAGS |= {"resolution", "output_dir", "negative_prompt", "anneal"}


def sample(flags: Mapping[str, Any]) -> list[Path]:
    """Pictures of `--prompts`, singly and as a grid, with their prompts in samples.jsonl; returns the grid's path."""
    refuse("sample", flags, values=FLAGS)
    subject = _annealed(of_flags(flags), flags)
    tree, defaults = subject.tree, subject.tree.get("algorithm", {})
    prompts = flags.get("prompts", tree.get("prompts"))
    if not prompts:
        raise ValueError("there are no --prompts: name a set, a text file, or write --prompts 'text:a red circle'.")
    chosen = source(prompts, key="--prompts")
    seed, count = whole(flags, "seed", 0), whole(flags, "count", 8)
    trial = Trial(
        trial_prompts(chosen, count, 1, seed),
        whole(flags, "steps", int(defaults.get("steps", 50))),
        number(flags, "guidance", float(defaults.get("guidance", 7.5))),
        DDIM(eta=0.0),
        seed,
        min(count, 16),
        str(flags.get("negative_prompt", tree.get("negative_prompt", ""))),
    )
    if "negative_prompt" in flags and trial.guidance <= 1:
        raise ValueError(f"--negative_prompt has no effect at --guidance {trial.guidance}, which is none.")
    subject.check_guidance({"--guidance": trial.guidance}, {"--negative_prompt": trial.negative})
    policy = policy_of(subject, flags)
    return _draw(policy, trial, _made(Path(str(flags.get("output_dir", "samples"))).expanduser()))


def _annealed(subject: Subject, flags: Mapping[str, Any]) -> Subject:
    if "anneal" not in flags:
        return subject
    by = rule(str(flags["anneal"]))
    if not subject.is_tuned:
        raise ValueError("--anneal without a tuned model: give --run FOLDER, or --lora FILE beside --model.")
    subject.need_lora("--anneal")
    return replace(subject, anneal=by)


def _draw(policy: Policy, trial: Trial, output: Path) -> list[Path]:
    bars, pictures = Bars(), []
    bars.begin("sampling", len(trial.prompts))
    for part in trial.prompts.split(trial.batch):
        pictures += list(draw_pictures(policy, trial, Key(trial.seed, "evaluation"), part).cpu())
        bars.advance(len(part))
    bars.end()
    for b, picture in enumerate(pictures):
        save(picture, output / f"{b}.png")
    texts = trial.prompts.texts
    if not (output / CONFIG).is_file():  # a run's own list is of its own pictures
        list_pictures(output, ((b, text, f"{b}.png") for b, text in enumerate(texts)))
    sheet = output / "grid.png"
    rows = [pictures[k : k + 8] for k in range(0, len(pictures), 8)]
    grid(rows, path=sheet, notes=[texts[k : k + 8] for k in range(0, len(texts), 8)])
    return [sheet]


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output_dir {folder} cannot be made: {error.strerror}. Name another folder.") from error
    return folder

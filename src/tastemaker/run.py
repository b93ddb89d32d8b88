"""The composition root: names become objects, the folder is claimed, and training begins. `tm.train` and
`tastemaker train` both end here."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tastemaker import config, folder, planning
from tastemaker.evaluation.evaluate import Trial, judge, trial_prompts
from tastemaker.exports import diffusers as export
from tastemaker.plan import Plan
from tastemaker.policy.load import folder as model_folder
from tastemaker.policy.load import load
from tastemaker.policy.policy import Exportable
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM, Sampler
from tastemaker.prompts.prompts import PromptSource
from tastemaker.prompts.sources import source
from tastemaker.results import Results, sentences
from tastemaker.rewards import named
from tastemaker.rewards.recorded import Recorded
from tastemaker.rewards.reward import NamedReward, check
from tastemaker.settings import RunSettings
from tastemaker.training.checkpoint import Checkpoint, Checkpoints
from tastemaker.training.optimizer import Optimizer, OptimizerSettings
from tastemaker.training.record import Record
from tastemaker.training.stopping import Stopping
from tastemaker.training.trainer import Run
from tastemaker.world import World

TRIED = 4  # pictures on which the reward's contract is checked


@dataclass(frozen=True)
class Finished:
    """What a run left behind."""

    folder: Path
    done: bool  # False when it was asked to stop; the same command with resume_from_checkpoint goes on
    weights: Path | None  # what `load_lora_weights` or `from_pretrained` wants


def train(*, algorithm: Any = "ddpo", **settings: Any) -> Finished:
    """Fine-tune a model on a reward; every setting of a run is a keyword (`tastemaker explain ddpo` lists them).

    algorithm: its name, a recipe's name or path, or an object such as `tm.DDPO(clip=2e-4)`.
    model, reward, prompts: names, or a folder, a function `(images [B,3,H,W] in [0,1], prompts) -> [B]`, a list.
    Errors: ValueError naming the setting.
    """
    return launch(algorithm, settings, spelling="argument")


def launch(target: Any, flags: dict[str, Any], *, spelling: str) -> Finished:
    """Resolves, plans, prints, and trains. Nothing is written before everything that can be checked has been."""
    asked = config.asked(target, flags)
    model = asked.get("model")
    home = model_folder(model) if isinstance(model, str) else None
    resolved = config.resolve(target, flags, config.model_defaults(home) if home else {}, spelling=spelling)
    run = resolved.run
    world = World.here(run.device)
    reward = named(run.reward, key="--reward" if spelling == "flag" else "reward")
    held_out = [named(spec, key="held_out_rewards") for spec in run.held_out_rewards]
    prompts = source(run.prompts, key="--prompts" if spelling == "flag" else "prompts")
    stem = f"{resolved.name}-{run.model}-{reward.name}"
    resume = run.resume_from_checkpoint is not None
    chosen = folder.choose(run.output_dir, stem, resume=resume, overwrite=run.overwrite) if world.rank == 0 else None
    output = Path(world.broadcast_text(str(chosen) if chosen else None))
    device = torch.device(pick_device(run.device))
    policy = load_policy(run, device, resolved.algorithm.sets)
    plan = planning.solve(resolved.algorithm, run, policy.schedule(resolved.algorithm.steps), world.size)
    if world.rank == 0:
        planning.show(plan, resolved.tree, resolved.origin, [f"\n[bold]{output}[/bold] on {device}"])
    if run.dry_run:
        return Finished(output, False, None)
    _try_reward(policy, reward, prompts, run)
    with folder.claimed(output, overwrite=run.overwrite) if world.rank == 0 else nullcontext():
        world.barrier()
        start = _checkpoint(output, run, world)
        if world.rank == 0:
            folder.write_text(output / folder.CONFIG, config.as_yaml(resolved.tree, resolved.origin))
        return _train(resolved, policy, [Recorded(reward), *held_out], prompts, plan, world, output, start)


def pick_device(name: str) -> str:
    """`auto` is the first of cuda, mps, xpu that is there, else cpu; another name must be there."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": hasattr(torch, "xpu") and torch.xpu.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(kind for kind, found in there.items() if found)
    if not there[name]:
        found = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise ValueError(f"--device {name} is not there; found: {found}.")
    return name


def load_policy(run: RunSettings, device: torch.device, sets: tuple[str, ...] = ("base",)) -> Exportable:
    """The policy that the settings describe."""
    assert run.model is not None
    return load(
        run.model,
        lora=run.lora,
        device=device,
        mixed_precision=run.mixed_precision,
        resolution=run.resolution,
        height=run.height,
        width=run.width,
        gradient_checkpointing=run.gradient_checkpointing,
        revision=run.revision,
        variant=run.variant,
        sets=(*sets, "ema") if run.ema is not None else sets,
        seed=run.seed,
    )


def trial_of(run: RunSettings, algorithm: Any, prompts: PromptSource, batch: int) -> tuple[Trial, str, str]:
    """How models are judged, the name of its prompts, and that of its sampler."""
    asked = run.evaluation
    chosen = prompts if asked.prompts is None else source(asked.prompts, key="evaluation.prompts")
    sampler: Sampler = DDIM(eta=0.0)
    if asked.sampler == "train":
        sampler = algorithm.training_sampler
    elif not isinstance(asked.sampler, str):
        sampler = asked.sampler
    trial = Trial(
        trial_prompts(chosen, asked.count, asked.images_per_prompt, run.seed),
        algorithm.steps if asked.steps is None else asked.steps,
        algorithm.guidance if asked.guidance is None else asked.guidance,
        sampler,
        run.seed,
        batch,
        run.negative_prompt,
    )
    name = getattr(chosen, "name", "prompts") + (" (the training prompts)" if asked.prompts is None else "")
    return trial, name, asked.sampler if isinstance(asked.sampler, str) else repr(sampler)


def _try_reward(policy: Exportable, reward: NamedReward, prompts: PromptSource, run: RunSettings) -> None:
    """The reward's contract, on pictures of a four-step chain."""
    drawn = prompts.draw(Key(run.seed, "check").random("prompts"), TRIED)
    trial = Trial(drawn, 4, 1.0, DDIM(eta=0.0), run.seed, TRIED)
    images: list[torch.Tensor] = []

    def keep(pictures: torch.Tensor, prompts: Any) -> torch.Tensor:
        images.append(pictures)
        return torch.zeros(len(pictures))

    judge(policy, [NamedReward("check", keep, False)], trial)
    check(reward, images[0], drawn)


def _checkpoint(output: Path, run: RunSettings, world: World) -> Checkpoint | None:
    if run.resume_from_checkpoint is None:
        return None
    if run.resume_from_checkpoint != "latest":
        return Checkpoints.open(run.resume_from_checkpoint)
    found = Checkpoints(output / "checkpoints", world=world).latest()
    if world.rank == 0:
        print(f"resuming from {found.path}" if found else f"no checkpoint in {output}: starting from the beginning")
    return found


def _train(
    resolved: config.Resolved,
    policy: Exportable,
    rewards: list[Any],
    prompts: PromptSource,
    plan: Plan,
    world: World,
    output: Path,
    start: Checkpoint | None,
) -> Finished:
    run, algorithm, reward = resolved.run, resolved.algorithm, rewards[0]
    judges = [reward.reward, *(one for one in rewards[1:] if one.name != reward.name)]
    trial, prompts_name, sampler = trial_of(run, algorithm, prompts, plan.sampling_batch)
    writes = world.rank == 0
    results = Results(output, trial, prompts_name, sampler, write=writes)
    results.rewind(start.cursor.iteration if start else 0)
    record = Record(output, iterations=plan.iterations, write=writes, samples=run.save_samples)
    final: dict[str, Any] = {}

    def evaluate(iteration: int) -> None:
        with policy.using("ema") if run.ema is not None and iteration else nullcontext():
            verdict = judge(policy, judges, trial, world=world, progress=record.progress)
        record.progress.end()
        final["changes"] = results.add(iteration, verdict)

    with Stopping(world):
        done = Run(
            algorithm=algorithm,
            policy=policy,
            reward=reward,
            source=prompts,
            optimizer=_optimizer(resolved, policy, plan),
            plan=plan,
            world=world,
            record=record,
            checkpoints=Checkpoints(output / "checkpoints", limit=run.checkpoints_total_limit, world=world),
            evaluate=evaluate,
            seed=run.seed,
            negative=run.negative_prompt,
            max_failed=run.max_failed,
        ).train(start)
    if not done or not writes:
        if writes:
            print("stopped; the same command with --resume_from_checkpoint latest goes on")
        return Finished(output, done, None)
    with policy.using("ema") if run.ema is not None else nullcontext():
        weights = export.save(policy, output)
    shown = [results.before_after(), results.curve(reward.name), weights]
    print("\n".join(["", *sentences(final["changes"], len(trial.prompts), prompts_name), ""]))
    print("\n".join(f"  {path}" for path in shown if path))
    return Finished(output, True, weights)


def _optimizer(resolved: config.Resolved, policy: Exportable, plan: Plan) -> Optimizer:
    run, algorithm = resolved.run, resolved.algorithm
    settings = OptimizerSettings(
        learning_rate=algorithm.learning_rate,
        weight_decay=algorithm.weight_decay,
        max_grad_norm=run.max_grad_norm,
        schedule=run.lr_scheduler,
        warmup_steps=run.lr_warmup_steps,
        use_8bit=run.use_8bit_adam,
        ema=run.ema,
    )
    return Optimizer(
        policy.named_parameters(),
        settings,
        total_updates=plan.optimizer_steps,
        scaler=run.mixed_precision == "fp16",
        average=partial(policy.blend, "ema") if run.ema is not None else None,
    )

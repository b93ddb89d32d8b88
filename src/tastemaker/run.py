"""The composition root: names become objects, the folder is claimed, and training begins. `tm.train` and
`tastemaker train` both end here."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tastemaker import config, fitting, folder, planning
from tastemaker.evaluation.evaluate import Trial, draw_pictures, judge
from tastemaker.exports import diffusers as export
from tastemaker.plan import Plan
from tastemaker.policy.load import BUILT_IN, load
from tastemaker.policy.load import folder as model_folder
from tastemaker.policy.policy import Exportable
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.prompts import PromptSource
from tastemaker.prompts.sources import source
from tastemaker.results import Results
from tastemaker.rewards import named
from tastemaker.rewards.recorded import Recorded
from tastemaker.rewards.reward import NamedReward, check
from tastemaker.settings import RunSettings
from tastemaker.training.checkpoint import Checkpoint, Checkpoints, Cursor
from tastemaker.training.optimizer import Optimizer, OptimizerSettings
from tastemaker.training.record import Record
from tastemaker.training.stopping import Stopping
from tastemaker.training.trainer import Run
from tastemaker.world import World

TRIED = 4  # pictures on which the reward's contract is checked
ONCE = ("overwrite", "resume_from_checkpoint", "dry_run")  # what a command is asked for once is no part of its run


@dataclass(frozen=True)
class Finished:
    """What a run left behind."""

    folder: Path
    done: bool  # False when it was asked to stop; the same command with resume_from_checkpoint goes on
    weights: Path | None  # what `load_lora_weights` or `from_pretrained` wants


@dataclass(frozen=True)
class Parts:
    """What a run is made of, all of it checked before anything is written."""

    resolved: config.Resolved
    world: World
    policy: Exportable
    optimizer: Optimizer
    reward: Recorded
    held_out: list[NamedReward]
    prompts: PromptSource
    judged: PromptSource  # the prompts of evaluations
    plan: Plan
    output: Path


def train(*, algorithm: Any, **settings: Any) -> Finished:
    """Fine-tune a model on a reward; every setting of a run is a keyword (`tastemaker explain ddpo` lists them).

    algorithm: its name, a recipe's name or path, or an object such as `tm.DDPO(clip=2e-4)`.
    model, reward, prompts: names, or a folder, a function `(images [B,3,H,W] in [0,1], prompts) -> [B]`, a list.
    Errors: ValueError naming the setting.
    """
    return launch(algorithm, settings, spelling="argument")


def launch(target: Any, flags: dict[str, Any], *, spelling: str) -> Finished:
    """Resolves, plans, prints, and trains. Nothing is written before everything that can be checked has been."""
    model = config.asked(target, flags).get("model")
    home = model_folder(model) if isinstance(model, str) else None
    resolved = config.resolve(target, flags, config.model_defaults(home) if home else {}, spelling=spelling)
    run, dashes = resolved.run, "--" if spelling == "flag" else ""
    world = World.here(run.device)
    reward = named(run.reward, key=_spelled("reward", resolved, dashes))
    held_out = [named(spec, key=f"{dashes}held_out_rewards") for spec in run.held_out_rewards]
    prompts = source(run.prompts, key=_spelled("prompts", resolved, dashes))
    judged = planning.judged_prompts(run, prompts, key=f"{dashes}evaluation.prompts")
    chosen = _folder(resolved, home, reward.name) if world.rank == 0 else None
    output = Path(world.broadcast_text(str(chosen) if chosen else None))
    planning.refuse_idle(resolved, home, dashes)
    if run.resume_from_checkpoint is not None:
        planning.refuse_change(resolved, output / folder.CONFIG, dashes)
    device = torch.device(pick_device(run.device))
    fitted, limit, words = fitting.within(resolved, device)
    policy = load_policy(fitted, device, resolved.algorithm.sets)
    plan = planning.solve(resolved.algorithm, fitted, policy.schedule(resolved.algorithm.steps), world.size, limit)
    resolved = fitting.decided(resolved, fitted, plan)
    optimizer = _optimizer(resolved, policy, plan)
    if world.rank == 0:
        needed = fitting.table(resolved, fitted, plan, device)
        planning.show(plan, resolved.tree, resolved.origin, needed, [*words, f"\n[bold]{output}[/bold] on {device}"])
    if run.dry_run:
        return Finished(output, False, None)
    _try_rewards(policy, reward, held_out, prompts, run)
    start = _named_checkpoint(run)
    with folder.claimed(output, overwrite=run.overwrite) if world.rank == 0 else nullcontext():
        world.barrier()
        start = start or _last_checkpoint(output, run, world)
        if world.rank == 0:
            lasting = {key: value for key, value in resolved.tree.items() if key not in ONCE}
            folder.write_text(output / folder.CONFIG, config.as_yaml(lasting, resolved.origin))
        parts = Parts(resolved, world, policy, optimizer, Recorded(reward), held_out, prompts, judged, plan, output)
        return _train(parts, start)


def _spelled(name: str, resolved: config.Resolved, dashes: str) -> str:
    """A setting as errors name it: with its recipe where that says it, as a flag or argument otherwise."""
    origin = resolved.origin.get(name, "")
    return f"{origin}: {name}" if origin.startswith("recipe ") else f"{dashes}{name}"


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
        vae_slicing=run.vae_slicing,
        revision=run.revision,
        variant=run.variant,
        sets=(*sets, "ema") if run.ema is not None else sets,
        seed=run.seed,
    )


def _folder(resolved: config.Resolved, home: Path | None, reward: str) -> Path:
    """The run's folder; a model that lies in a folder gives it that folder's name."""
    run = resolved.run
    model = home.resolve().name if home and run.model not in BUILT_IN else run.model
    resume = run.resume_from_checkpoint is not None
    return folder.choose(run.output_dir, f"{resolved.name}-{model}-{reward}", resume=resume, overwrite=run.overwrite)


def _try_rewards(
    policy: Exportable, reward: NamedReward, held_out: list[NamedReward], prompts: PromptSource, run: RunSettings
) -> None:
    """The reward's contract, on pictures of a four-step chain; of held-out rewards only that they answer."""
    drawn = prompts.draw(Key(run.seed, "check").random("prompts"), TRIED)
    trial = Trial(drawn, 4, 1.0, DDIM(eta=0.0), run.seed, TRIED)
    images = draw_pictures(policy, trial, Key(run.seed, "evaluation"), drawn)
    check(reward, images, drawn)
    for one in held_out:  # a judge of the training prompts' world may have no score for them, but it has to answer
        try:
            with torch.no_grad():
                one(images, drawn)
        except Exception as error:
            raise ValueError(f"held-out reward `{one.name}` failed: {type(error).__name__}: {error}") from error


def _named_checkpoint(run: RunSettings) -> Checkpoint | None:
    """The checkpoint of an explicit path."""
    path = run.resume_from_checkpoint
    return None if path in (None, "latest") else Checkpoints.open(str(path))


def _last_checkpoint(output: Path, run: RunSettings, world: World) -> Checkpoint | None:
    """The newest whole checkpoint of the folder, where `latest` asks for it."""
    if run.resume_from_checkpoint is None:
        return None
    found = Checkpoints(output / "checkpoints", world=world).latest()
    if world.rank == 0:
        print(f"resuming from {found.path}" if found else f"no checkpoint in {output}: starting from the beginning")
    return found


def _train(parts: Parts, start: Checkpoint | None) -> Finished:
    run, algorithm = parts.resolved.run, parts.resolved.algorithm
    policy, reward, plan, world, output = parts.policy, parts.reward, parts.plan, parts.world, parts.output
    writes = world.rank == 0
    judges = [reward.reward, *(one for one in parts.held_out if one.name != reward.name)]
    trial, prompts_name, sampler = planning.trial_of(run, algorithm, parts.judged, plan.sampling_batch)
    results = Results(output, trial, prompts_name, sampler, write=writes)
    results.rewind(start.cursor if start else Cursor(0, 0))
    record = Record(output, iterations=plan.iterations, write=writes, samples=run.save_samples)

    def evaluate(iteration: int) -> None:
        with policy.using("ema") if run.ema is not None and iteration else nullcontext():
            verdict = judge(policy, judges, trial, world=world, progress=record.progress)
        record.progress.end()
        results.add(iteration, verdict)
        record.judged({one.name: float(verdict.values[one.name].double().nanmean()) for one in judges})

    with Stopping(world):
        done = Run(
            algorithm=algorithm,
            policy=policy,
            reward=reward,
            source=parts.prompts,
            optimizer=parts.optimizer,
            plan=plan,
            world=world,
            record=record,
            checkpoints=Checkpoints(output / "checkpoints", limit=run.checkpoints_total_limit, world=world),
            evaluate=evaluate,
            seed=run.seed,
            negative=run.negative_prompt,
            max_failed=run.max_failed,
        ).train(start)
    if writes and not done:
        print("stopped; the same command with --resume_from_checkpoint latest goes on")
    weights = _show(policy, results, run, reward.name) if writes and done else None
    return Finished(output, done, weights)


def _show(policy: Exportable, results: Results, run: RunSettings, reward: str) -> Path:
    """Exports the weights, draws the pictures and the curve, and says what came out."""
    with policy.using("ema") if run.ema is not None else nullcontext():
        weights = export.save(policy, results.folder)
    print("\n".join(["", *results.sentences(), ""]))
    for path in (results.before_after(), results.curve(reward), weights):
        if path:
            print(f"  {path}")
    return weights


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

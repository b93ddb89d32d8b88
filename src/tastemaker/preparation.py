"""From what a user wrote to all that a run is made of, checked: before anything is written."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tastemaker import config, devices, fitting, folder, keeping, planning, provision, refusals
from tastemaker.evaluation.diversity import Metric, metric_for
from tastemaker.evaluation.evaluate import Trial, draw_pictures
from tastemaker.plan import Plan
from tastemaker.policy.facts import guiding_of
from tastemaker.policy.families import Guiding
from tastemaker.policy.load import BUILT_IN, load
from tastemaker.policy.load import folder as model_folder
from tastemaker.policy.policy import Exportable
from tastemaker.process.noise import Key
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.prompts import PromptSource
from tastemaker.prompts.sources import source
from tastemaker.rewards import gradient, named
from tastemaker.rewards.combine import apart
from tastemaker.rewards.recorded import Recorded
from tastemaker.rewards.reward import NamedReward, check, load_networks
from tastemaker.settings import RunSettings
from tastemaker.training.optimizer import Optimizer, OptimizerSettings
from tastemaker.training.record import Bars
from tastemaker.world import World

TRIED = 4  # pictures on which the reward's contract is checked


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    resolved: config.Resolved
    dashes: str  # what stands before a setting's name where it was typed: two dashes on a command line
    world: World
    policy: Exportable
    optimizer: Optimizer
    reward: Recorded
    held_out: list[NamedReward]
    prompts: PromptSource
    judged: PromptSource  # the prompts of evaluations
    plan: Plan
    output: Path
    metric: Metric | None = None  # of diversity, where a prompt has several pictures
    best_by: str = ""  # the number by which the best checkpoints are kept, where any are

    @property
    def run(self) -> RunSettings:
        return self.resolved.run

    @property
    def judges(self) -> list[NamedReward]:
        """The reward, and those that nothing trains on."""
        return [self.reward.reward, *self.held_out]


@dataclass(frozen=True)
class Wanted:
    """What a user wrote, with every name looked up, checked as far as that goes without the model."""

    resolved: config.Resolved
    dashes: str
    home: Path | None  # the model's folder, where it is one
    device: torch.device
    reward: NamedReward
    prompts: PromptSource
    guiding: Guiding

    def naming(self) -> AbstractContextManager[None]:
        """Errors of the algorithm inside name its settings as they were typed."""
        return self.resolved.where.naming(self.resolved.algorithm)


def prepare(target: Any, flags: dict[str, Any], *, spelling: str) -> Parts:
    """Resolves, refuses, loads, plans, and prints the plan. Errors: ValueError that names the setting as typed."""
    wanted = read(target, flags, spelling=spelling)
    resolved, run, dashes, device = wanted.resolved, wanted.resolved.run, wanted.dashes, wanted.device
    world = World.here(str(device))
    refusals.refuse_sharding(run, world, device, dashes)
    held_out = _held_out(run, wanted.reward, f"{dashes}held_out_rewards")
    read_by_alarms(run, held_out, dashes)
    keeping.by(run, held_out, None, dashes)
    judged = planning.judged_prompts(run, wanted.prompts, key=f"{dashes}evaluation.prompts")
    chosen = _folder(resolved, wanted.home, wanted.reward.name) if world.rank == 0 else None
    output = Path(world.broadcast_text(str(chosen) if chosen else None))
    refusals.refuse(resolved, output, dashes)
    if not run.dry_run:
        load_networks([wanted.reward, *held_out])  # what they lack is told of before gigabytes are fetched
    with wanted.naming():
        fitted, limit, words = fitting.within(resolved, device, world.size)
    if world.rank == 0:
        planning.announce(provision.needs(resolved, fitted, device, output, world.size))
    policy, plan, optimizer = make(wanted, fitted, limit, world)
    resolved = fitting.decided(resolved, fitted, plan)
    if world.rank == 0:
        needed = fitting.table(resolved, fitted, plan, device)
        planning.show(plan, resolved.tree, resolved.origin, needed, [*words, f"\n[bold]{output}[/bold] on {device}"])
    reward, prompts = Recorded(wanted.reward), wanted.prompts
    parts = Parts(resolved, dashes, world, policy, optimizer, reward, held_out, prompts, judged, plan, output)
    return parts if run.dry_run else _tried(parts)


def read(target: Any, flags: dict[str, Any], *, spelling: str) -> Wanted:
    """Resolves and refuses. Errors: ValueError that names the setting as typed."""
    model = config.asked(target, flags).get("model")
    home = model_folder(model) if isinstance(model, str) else None
    resolved = config.resolve(target, flags, config.brought(model), spelling=spelling)
    run, algorithm, dashes = resolved.run, resolved.algorithm, "--" if spelling == "flag" else ""
    device = torch.device(devices.pick(run.device))
    refusals.refuse_reward(resolved, dashes)
    reward = named(run.reward, key=refusals.spelled("reward", resolved, dashes))
    refusals.refuse_comparison(resolved, reward, dashes)
    with resolved.where.naming(algorithm):
        algorithm.check_reward(reward)
    prompts = source(run.prompts, key=refusals.spelled("prompts", resolved, dashes))
    drawn = prompts.draw(Key(run.seed, "check").random("prompts"), TRIED)
    with resolved.where.naming(algorithm):
        algorithm.check_prompts(drawn)
    guiding = guiding_of(str(run.model), run.revision, run.variant)
    planning.refuse_guidance(resolved, guiding, dashes)
    planning.refuse_idle(resolved, home, dashes)
    return Wanted(resolved, dashes, home, device, reward, prompts, guiding)


def make(wanted: Wanted, fitted: RunSettings, limit: int | None, world: World) -> tuple[Exportable, Plan, Optimizer]:
    """The model, the plan for `limit` items a call at most, and the optimizer; `fitted` is what `--fit` left of the
    settings."""
    resolved = wanted.resolved
    policy = load_policy(fitted, wanted.device, resolved.algorithm.sets, world if fitted.fsdp else None)
    with wanted.naming():
        schedule = policy.schedule(resolved.algorithm.steps)
        plan = planning.solve(resolved.algorithm, fitted, schedule, world.size, limit)
    plan = replace(plan, guiding_rows=wanted.guiding.rows)
    return policy, plan, _optimizer(resolved, policy, plan)


def _held_out(run: RunSettings, reward: NamedReward, key: str) -> list[NamedReward]:
    """The rewards that are recorded alone, by names of their own; the one that is trained on is recorded anyway."""
    found = [named(spec, key=key) for spec in run.held_out_rewards if spec != run.reward]
    for one in found:
        if one.comparison is not None and one.comparison.standardise is not None:
            raise ValueError(
                f"{key}: `standardise` of `{one.name}` has no effect on a reward that nothing trains on: what is "
                "recorded is the plain weighted sum, and every term. Leave it out."
            )
    return apart([reward, *found])[1:]


def read_by_alarms(run: RunSettings, held_out: list[NamedReward], dashes: str = "") -> list[str]:
    """The names of the held-out rewards that alarms may read: oracles are what alarms are judged by."""
    names = [one.name for one in held_out if not one.oracle]
    if run.alarms is not None and run.alarms.best not in (None, *names):
        raise ValueError(
            f"{dashes}alarms.best is {run.alarms.best!r}; it is one of {dashes}held_out_rewards that is no oracle: "
            f"{', '.join(names) or 'none is given'}."
        )
    if run.alarms is not None and "parting" in run.stop_on and not names:
        raise ValueError(
            f"{dashes}stop_on is 'parting', but there is no held-out reward to part from: give one that is no oracle "
            f"with {dashes}held_out_rewards."
        )
    return names


def load_policy(
    run: RunSettings, device: torch.device, sets: tuple[str, ...] = ("base",), together: World | None = None
) -> Exportable:
    """The policy that the settings describe; `together`: the processes over which its weights are cut."""
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
        vae_tiling=run.vae_tiling,
        attention_backend=run.attention_backend,
        compile=run.compile,
        cpu_offload=run.cpu_offload,
        quantise=run.quantise,
        revision=run.revision,
        variant=run.variant,
        sets=(*sets, "ema") if run.ema is not None else sets,
        seed=run.seed,
        together=together,
    )


def _folder(resolved: config.Resolved, home: Path | None, reward: str) -> Path:
    """The run's folder; a model that lies in a folder or a file gives it that name."""
    run = resolved.run
    model = str(run.model)
    if model not in BUILT_IN and (home or model.endswith(".safetensors")):
        model = (home or Path(model)).resolve().name.removesuffix(".safetensors")
    resume = run.resume_from_checkpoint is not None
    return folder.choose(run.output_dir, f"{resolved.name}-{model}-{reward}", resume=resume, overwrite=run.overwrite)


def _tried(parts: Parts) -> Parts:
    """With the metric of diversity, once the judges were tried on pictures of a four-step chain.

    The reward has to keep its contract; held-out rewards have to answer.
    """
    run = parts.run
    drawn = parts.prompts.draw(Key(run.seed, "check").random("prompts"), TRIED)
    trial = Trial(drawn, 4, 1.0, DDIM(eta=0.0), run.seed, TRIED)
    key, calls = Key(run.seed, "evaluation"), drawn.split(parts.plan.sampling_batch)
    images = torch.cat([draw_pictures(parts.policy, trial, key, some) for some in calls])
    named_parts = check(parts.reward.reward, images, drawn)
    parts = replace(parts, best_by=keeping.by(run, parts.held_out, named_parts, parts.dashes))
    if parts.resolved.algorithm.differentiates:
        by = refusals.name_of(parts.resolved)
        gradient.needs_gradient(parts.reward.reward, images, drawn, algorithm=by, others=refusals.undemanding())
    for one in parts.held_out:  # a judge of another world may have no score for these, but it has to answer
        try:
            with torch.no_grad():
                one(images, drawn)
        except Exception as error:
            raise ValueError(f"held-out reward `{one.name}` failed: {type(error).__name__}: {error}") from error
    if run.evaluation.images_per_prompt == 1:
        return parts
    judges, size = [*parts.held_out, parts.reward.reward], min(images.shape[-2:])
    metric = metric_for(run.lpips_weights, judges, size=size, device=parts.policy.device, progress=Bars())
    if metric.note and parts.world.rank == 0:
        print(metric.note)
    return replace(parts, metric=metric)


def _optimizer(resolved: config.Resolved, policy: Exportable, plan: Plan) -> Optimizer:
    run, algorithm = resolved.run, resolved.algorithm
    settings = OptimizerSettings(
        learning_rate=algorithm.learning_rate,
        weight_decay=algorithm.weight_decay,
        betas=(run.adam_beta1, run.adam_beta2),
        eps=run.adam_epsilon,
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

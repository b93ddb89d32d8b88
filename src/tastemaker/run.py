"""The composition root: a run is prepared, its folder claimed, and training begins. `tm.train` and `tastemaker train`
both end here."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tastemaker import agreement, config, folder, planning, provision, reporting
from tastemaker.evaluation.alarms import Rules
from tastemaker.evaluation.checking import Check
from tastemaker.evaluation.evaluate import Trial, judge, some, trial_prompts
from tastemaker.evaluation.watch import Watch
from tastemaker.exports import diffusers as export
from tastemaker.exports import hub
from tastemaker.outcome import Run
from tastemaker.preparation import Parts, prepare, read_by_alarms
from tastemaker.process.samplers import DDIM
from tastemaker.reports import starts, trackers
from tastemaker.results import Results
from tastemaker.settings import RunSettings
from tastemaker.training.best import Best, forget_after, listed
from tastemaker.training.checkpoint import Checkpoint, Checkpoints, Cursor
from tastemaker.training.footing import switches
from tastemaker.training.hook import OnSamples
from tastemaker.training.lines import Lines
from tastemaker.training.merit import WINDOW, Merit
from tastemaker.training.record import Record
from tastemaker.training.stopping import Stopping
from tastemaker.training.trainer import Training
from tastemaker.training.watching import Watching
from tastemaker.world import World

STRIPS = 4  # prompts, of two pictures each, by which the watch measures diversity where training draws one a prompt
ONCE = ("overwrite", "resume_from_checkpoint", "dry_run")  # what a command is asked for once is no part of its run


def train(*, algorithm: Any, on_samples: OnSamples | None = None, **settings: Any) -> Run:
    """Fine-tune a model on a reward; every setting of a run is a keyword (`tastemaker explain ddpo` lists them).

    algorithm: its name, a recipe's name or path, or an object such as `tm.DDPO(clip=2e-4)`.
    model, reward, prompts: names, or a folder, a function `(images [B,3,H,W] in [0,1], prompts) -> [B]`, a list.
    on_samples: called after every iteration, on rank 0, with (batches, iteration, trackers): its pictures as they were
        scored, `[(images [B,3,H,W], prompts, metadata, rewards [B], info {part: [B]}), ...]`, one entry a sampling
        call, and accelerate's trackers, an empty list where `report_to` names none.
    Errors: ValueError naming the setting.
    """
    return launch(algorithm, settings, spelling="argument", on_samples=on_samples)


def launch(target: Any, flags: dict[str, Any], *, spelling: str, on_samples: OnSamples | None = None) -> Run:
    """Prepares and trains. Nothing is written before everything that can be checked has been."""
    if on_samples is not None and not callable(on_samples):
        raise ValueError(f"on_samples is {on_samples!r}; it is a function of (batches, iteration, trackers).")
    parts = prepare(target, flags, spelling=spelling)
    run, world, output = parts.run, parts.world, parts.output
    agreement.check(world, parts.resolved.tree, parts.prompts, parts.policy)
    if run.dry_run:
        if world.rank == 0:
            print("dry run: nothing was started")
        return Run(output, False, None)
    if not run.overwrite:
        provision.check_room(
            output, parts.policy, moments=2 if run.use_8bit_adam else 8, key=f"{parts.dashes}output_dir"
        )
    start, new = _named_checkpoint(run), not output.exists()
    with folder.claimed(output) if world.rank == 0 else nullcontext():
        world.barrier()
        start = start or _last_checkpoint(output, run, world)
        running = _begun(parts, new)
        if world.rank == 0:
            _note_start(parts, start)
        try:
            return _train(parts, start, running, on_samples)
        finally:
            running.finish()


def _note_start(parts: Parts, start: Checkpoint | None) -> None:
    """A line of starts.jsonl: the command, versions, what computes."""
    found = starts.start(
        sys.argv,
        device=str(parts.policy.device),
        processes=parts.world.size,
        resumed=str(start.path) if start else None,
    )
    Lines(parts.output / starts.STARTS, "starts", write=True).add(found)


def _begun(parts: Parts, new: bool) -> trackers.Trackers:
    """Trackers are begun, then the folder is emptied if that was asked for, and config.yaml written; by rank 0.

    Where a tracker does not begin, all is left as it was, on every rank: `new` is whether this run made the folder.
    """
    running, error = trackers.Trackers(parts.output, {}), ""
    if parts.world.rank == 0:
        try:
            running = _tracked(parts)
        except ValueError as found:
            error = str(found)
            if new:
                shutil.rmtree(parts.output.resolve())
    if error := parts.world.broadcast_text(error):
        raise ValueError(error)
    return running


def _tracked(parts: Parts) -> trackers.Trackers:
    run, output = parts.run, parts.output
    lasting = {key: value for key, value in parts.resolved.tree.items() if key not in ONCE}
    home, aside = output / trackers.HOME, output / f".{trackers.HOME}.old"
    before = home.exists()
    if run.overwrite and before:  # the old run's: a new one does not go on there
        home.rename(aside)
    try:
        running = trackers.start(run.report_to, output, lasting, key=f"{parts.dashes}report_to")
    except ValueError:
        if run.overwrite or not before:
            shutil.rmtree(home, ignore_errors=True)
        if aside.exists():
            aside.rename(home)
        raise
    if run.overwrite:
        folder.empty(output, but=home.name)
    folder.write_text(output / folder.CONFIG, config.as_yaml(lasting, parts.resolved.origin))
    if "tensorboard" in running.alive:
        print(f"to watch: tensorboard --logdir {home}")
    return running


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


def _train(parts: Parts, start: Checkpoint | None, running: trackers.Trackers, on_samples: OnSamples | None) -> Run:
    run, algorithm = parts.run, parts.resolved.algorithm
    policy, reward, plan, world, output = parts.policy, parts.reward, parts.plan, parts.world, parts.output
    writes = world.rank == 0
    trial, prompts_name, sampler = planning.trial_of(run, algorithm, parts.judged, plan.sampling_batch)
    metric = parts.metric.name if parts.metric else ""
    results = Results(output, trial, prompts_name, sampler, metric=metric, write=writes, trackers=running)
    results.rewind(start.cursor if start else Cursor(0, 0))
    record = _record(parts, trial, running, on_samples)
    page = reporting.Beside(output)

    with Stopping(world):
        training = Training(
            algorithm=algorithm,
            policy=policy,
            reward=reward,
            source=parts.prompts,
            optimizer=parts.optimizer,
            plan=plan,
            world=world,
            record=record,
            checkpoints=Checkpoints(output / "checkpoints", limit=run.checkpoints_total_limit, world=world),
            evaluate=_evaluation(parts, trial, results, record, page),
            seed=run.seed,
            negative=run.negative_prompt,
            max_failed=run.max_failed,
            best=_best(parts, start),
            switches=switches(parts.resolved.tree),
        )
        done = training.train(start)
    if done:
        return _ended(parts, results)
    if training.stopped:
        return _alarmed(parts, training.stopped)
    if writes:
        page.write()
        print(f"stopped in {output}; the same command with --resume_from_checkpoint latest goes on")
    return Run(output, False, None, tuple(parts.judges), parts.judged)


def _best(parts: Parts, start: Checkpoint | None) -> Best | None:
    """What keeps the best checkpoints; where none are kept, those that are listed already stay as far as they go."""
    run = parts.run
    if parts.best_by:
        merit = Merit(parts.best_by, run.alarms.window if run.alarms is not None else WINDOW)
        return Best(parts.output, parts.world, merit, run.best_checkpoints)
    if parts.world.rank == 0:
        forget_after(parts.output, start.cursor.iteration if start else 0)
    return None


def _record(parts: Parts, trial: Trial, running: trackers.Trackers, on_samples: OnSamples | None) -> Record:
    """What is written down, and who watches."""
    watching = _watching(parts, trial)
    parts.reward.seen = watching.watcher.see if watching is not None else None
    return Record(
        parts.output,
        iterations=parts.plan.iterations,
        write=parts.world.rank == 0,
        samples=parts.run.save_samples,
        trackers=running,
        on_samples=on_samples,
        watching=watching,
    )


def _watching(parts: Parts, trial: Trial) -> Watching | None:
    """The watch over a run, where alarms are on."""
    run, alarms = parts.run, parts.run.alarms
    if alarms is None:
        return None
    plan, reads = parts.plan, read_by_alarms(run, parts.held_out)
    drawn = replace(trial, steps=plan.steps, sampler=DDIM(eta=0.0), batch=plan.sampling_batch)
    seen = trial_prompts(parts.judged, STRIPS, 2, run.seed)
    strips = replace(drawn, prompts=seen, guidance=plan.guidance, batch=min(plan.sampling_batch, len(seen)))
    check = Check(some(drawn, alarms.checks), parts.reward.reward, [one for one in parts.held_out if one.name in reads])
    watch = Watch(alarms, parts.resolved.algorithm.training_sampler, parts.held_out, strips, check)
    rules = partial(Rules, alarms, reads, trained=not parts.reward.oracle)
    return Watching(
        parts.output, watch, rules, stop_on=run.stop_on, iterations=plan.iterations, write=parts.world.rank == 0
    )


def _alarmed(parts: Parts, why: str) -> Run:
    """An alarm stopped the run: the weights as they are, and why; no evaluation is made of them."""
    weights = parts.output / (export.LORA if parts.run.lora else export.PIPELINE)
    _export(parts)
    if parts.world.rank == 0:
        print(f"stopped by an alarm, {why}\n  {weights}\n  {reporting.Beside(parts.output).write()}")
        for row in listed(parts.output):
            print(f"  {parts.output / row['checkpoint']}  the best by {row['by']}, {row['value']:.4g}")
        print("the same command with --resume_from_checkpoint latest goes on, past this alarm")
    parts.world.barrier()
    return Run(parts.output, False, weights, tuple(parts.judges), parts.judged)


def _ended(parts: Parts, results: Results) -> Run:
    """Weights, pictures and the push, by rank 0; every rank returns when the files are there."""
    run, output, world = parts.run, parts.output, parts.world
    weights = output / (export.LORA if run.lora else export.PIPELINE)
    _export(parts)
    if world.rank == 0:
        _show(results, parts.reward.name, weights)
    world.barrier()
    if world.rank == 0 and run.push_to_hub:
        pushed = hub.push(output, run.hub_model_id)
        print(pushed.message, file=sys.stdout if pushed.url else sys.stderr)
    return Run(output, True, weights, tuple(parts.judges), parts.judged)


def _evaluation(
    parts: Parts, trial: Trial, results: Results, record: Record, page: reporting.Beside
) -> Callable[[int], None]:
    """Judges the policy as it is, before the iteration of that number, and writes it down."""
    policy, average = parts.policy, parts.run.ema is not None

    def evaluate(iteration: int) -> None:
        with policy.using("ema") if average and iteration else nullcontext():
            verdict = judge(
                policy, parts.judges, trial, metric=parts.metric, world=parts.world, progress=record.progress
            )
        record.progress.end()
        results.add(iteration, verdict)
        if record.write and iteration < parts.plan.iterations:  # the end writes it once more
            page.renew()
        record.judged({one.name: float(verdict.values[one.name].double().nanmean()) for one in parts.judges})

    return evaluate


def _export(parts: Parts) -> None:
    """The weights for other programs, written by rank 0."""
    policy = parts.policy
    with policy.using("ema") if parts.run.ema is not None else nullcontext(), policy.gathered():
        if parts.world.rank == 0:
            export.save(policy, parts.output)


def _show(results: Results, reward: str, weights: Path) -> None:
    """Draws the pictures and the curve, and says what came out."""
    print("\n".join(["", *results.sentences(), ""]))
    for path in (results.before_after(), results.curve(reward), reporting.Beside(results.folder).write(), weights):
        if path:
            print(f"  {path}")

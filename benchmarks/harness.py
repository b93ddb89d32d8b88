"""What the benchmarks share: a training run that pauses between iterations, and the network's rows on their own."""

from __future__ import annotations

import copy
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import tastemaker
from tastemaker import config, devices, memory, planning
from tastemaker.build import attribute
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.policy import Exportable
from tastemaker.preparation import load_policy
from tastemaker.prompts.sources import source
from tastemaker.rewards import named
from tastemaker.rewards.recorded import Recorded
from tastemaker.training.checkpoint import Checkpoints
from tastemaker.training.lines import read_lines
from tastemaker.training.optimizer import Optimizer, OptimizerSettings
from tastemaker.training.record import METRICS, Record
from tastemaker.training.trainer import Training
from tastemaker.world import World

HERE = Path(__file__).parent
RESULTS = HERE / "results"
HALVES = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}
BATCHES = (16, 32, 64, 128, 256)  # rows a call that are tried for the network alone
GRADIENTS = ("draft", "alignprop", "refl", "drtune", "grad_copy")  # algorithms that differentiate the reward
CHAIN = "draft_chain"  # DRaFT through every step


def machine(device: str = "cpu") -> dict[str, Any]:
    """Where and with what a number was measured."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "tastemaker": tastemaker.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        **({"gpu": gpu} if gpu else {}),
    }


def _cpu() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    try:
        asked = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(asked, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_result(name: str, found: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """One JSON line in <folder>/<date>-<name>.json; a second measurement of the day is a second line."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found['machine']['date']}-{name}.json"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    return path


def algorithm_of(name: str, settings: Mapping[str, Any]) -> Any:
    """The algorithm of this name, or CHAIN, with these settings."""
    more = {"k": settings["steps"]} if name == CHAIN else {}
    made = attribute(config.algorithms()["draft" if name == CHAIN else name])
    return made(**settings, **more)


def reward_for(algorithm: Any) -> str:
    """A reward that costs next to nothing."""
    return "brightness" if algorithm.differentiates else "jpeg_compressibility"


def training(
    algorithm: Any, settings: Mapping[str, Any], folder: Path, between: Callable[[int], None]
) -> tuple[Training, Exportable]:
    """A run as `tastemaker.train` composes it, with `between` in the place of evaluation, and its policy.

    `between(k)` is called before iteration k and once more after the last, so what lies between two calls is all that
    an iteration costs a user: drawing, decoding, scoring, learning, metrics and the pictures that are kept. The only
    checkpoint is that of the last iteration, which a benchmark of time should not count.
    The model's own defaults are left aside: a benchmark says everything itself.
    """
    own = {"evaluation": {"every": 1}, "checkpointing_steps": 0}
    resolved = config.resolve(algorithm, {**settings, **own}, {}, spelling="argument")
    run, algorithm = resolved.run, resolved.algorithm
    policy = load_policy(run, torch.device(devices.pick(run.device)), algorithm.sets)
    plan = planning.solve(algorithm, run, policy.schedule(algorithm.steps), 1)
    steps = OptimizerSettings(
        learning_rate=algorithm.learning_rate, weight_decay=algorithm.weight_decay, max_grad_norm=run.max_grad_norm
    )
    world = World()
    made = Training(
        algorithm=algorithm,
        policy=policy,
        reward=Recorded(named(run.reward)),
        source=source(run.prompts),
        optimizer=Optimizer(
            policy.named_parameters(), steps, total_updates=plan.optimizer_steps, scaler=run.mixed_precision == "fp16"
        ),
        plan=plan,
        world=world,
        record=Record(folder, iterations=plan.iterations, samples=run.save_samples),
        checkpoints=Checkpoints(folder / "checkpoints", world=world),
        evaluate=between,
        seed=run.seed,
    )
    return made, policy


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl so far."""
    return read_lines(folder / METRICS)


def estimate(run: Training, model: str, precision: str, checkpointing: bool, *, cuda: bool = True) -> memory.Memory:
    """What the plan says of a run's memory before anything is loaded."""
    setup = memory.Setup(
        model=model,
        lora=LoRA(),
        mixed_precision=precision,
        guided=run.plan.guidance > 1,
        micro_batch=run.plan.micro_batch,
        sampling_batch=run.plan.sampling_batch,
        gradient_checkpointing=checkpointing,
        depth=run.algorithm.calls(range(run.plan.steps)).depth,
        differentiates=run.algorithm.differentiates,
    )
    return memory.estimate(setup, cuda=cuda)


@dataclass(frozen=True)
class Network:
    """The denoiser with its adapter, and nothing around it: no chain, no loss, no decoding.

    It computes on the policy's own weights, or on a copy of them in another memory layout.
    """

    unet: Any
    layout: torch.memory_format
    shape: tuple[int, ...]  # of one latent
    text: tuple[int, ...]  # (tokens, width)
    time: float
    device: torch.device
    half: torch.dtype | None

    @classmethod
    def of(cls, policy: Exportable, precision: str = "no") -> Network:
        """The policy's network as it is. Its text encoder goes to the device."""
        text = policy.encode([""]).positive_rows("text").shape[1:]
        layout = torch.channels_last if policy.device.type != "cpu" else torch.contiguous_format
        t = float(policy.schedule(20).t[10])
        unet = policy.pipeline().unet
        return cls(unet, layout, policy.latent_shape, tuple(text), t, policy.device, HALVES[precision])

    def copied(self, layout: torch.memory_format) -> Network:
        """The same weights again in this layout."""
        return replace(self, unet=copy.deepcopy(self.unet).to(memory_format=layout), layout=layout)

    def seconds(self, batch: int, calls: int, *, learn: bool, through: bool = False) -> float:
        """So many calls of `batch` rows, forward, or forward and backward into the adapter; `through`, into x too."""
        x = torch.randn(batch, *self.shape, device=self.device).contiguous(memory_format=self.layout)
        x.requires_grad_(through)
        t = torch.full((batch,), self.time, device=self.device)
        text = torch.randn(batch, *self.text, device=self.device)
        self._wait()
        began = time.perf_counter()
        for _ in range(calls):
            autocast = torch.autocast(self.device.type, self.half, enabled=self.half is not None, cache_enabled=False)
            with torch.set_grad_enabled(learn), autocast:
                output = self.unet(x, t, text, return_dict=False)[0]
            if learn:
                output.float().square().mean().backward()
        self._wait()
        taken = time.perf_counter() - began
        self.unet.zero_grad(set_to_none=True)
        return taken

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Rows:
    """So many rows of one kind in the calls that were found fastest."""

    network: Network
    batch: int
    rows: int
    learn: bool
    through: bool = False  # the gradient goes on to what the network sees

    def seconds(self) -> float:
        calls = self.rows // self.batch
        return self.network.seconds(self.batch, calls, learn=self.learn, through=self.through)

    def __str__(self) -> str:
        kind = f"forward-backward{' to the input' * self.through}" if self.learn else "forward"
        return f"{self.rows} rows {kind}, {self.batch} a call, {str(self.network.layout).removeprefix('torch.')}"


def fastest(
    networks: Sequence[Network], rows: int, *, learn: bool, batches: Iterable[int] = BATCHES, tries: int = 3
) -> Rows:
    """Every layout and every size of calls that divides the rows, tried; the best of some tries counts."""
    found: list[tuple[float, Rows]] = []
    for network in networks:
        for batch in batches:
            if rows % batch:
                continue
            calls = max(1, 128 // batch)
            network.seconds(batch, 1, learn=learn)
            best = min(network.seconds(batch, calls, learn=learn) for _ in range(tries)) / (calls * batch)
            found.append((best, Rows(network, batch, rows, learn)))
            print(f"  {best * 1000:7.3f} ms a row: {found[-1][1]}", flush=True)
    if not found:
        raise ValueError(f"{rows} rows cannot be cut into equal calls of {', '.join(map(str, batches))}.")
    return min(found, key=lambda pair: pair[0])[1]

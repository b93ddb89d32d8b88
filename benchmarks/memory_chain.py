"""What differentiating the chain needs of memory:  python benchmarks/memory_chain.py

Three iterations of 32 pictures x 20 steps with guidance and LoRA, once for each way of climbing the same reward (mean
brightness): plain autograd through the whole chain, as ten lines of diffusers do it, and ours. Each is a process of its
own, and what counts is the peak above what was there when everything was loaded: resident memory on a CPU, on a GPU
what torch allocated. Beside it is what the plan estimates for the same; the seconds are those of the second iteration.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import CHAIN, RESULTS, algorithm_of, estimate, machine, metrics, reward_for, training, write_result

from tastemaker.policy.load import folder as model_folder
from tastemaker.policy.load import quiet

STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")
GUIDANCE, RATE = 3.0, 3e-4
ITERATIONS = 3  # the first fills caches, the last writes our checkpoint: the second one is timed


class Case(NamedTuple):
    """One way; `items` pictures go through one call together, none is what the plan chooses."""

    name: str
    algorithm: str | None = None  # none is plain autograd
    items: int | None = None
    checkpointing: bool = False
    k: int = 0  # of draft, where it is not 1


class Size(NamedTuple):
    """What all cases share."""

    model: str  # a folder
    device: str
    images: int
    steps: int


def cases(images: int, part: int) -> list[Case]:
    return [
        Case("plain autograd, the whole chain", items=images),
        Case("plain autograd, the whole chain, in parts", items=part),
        Case("draft k=2", "draft", part, k=2),
        Case("draft k=5", "draft", part, k=5),
        Case("draft k=T", CHAIN, part),
        Case("draft k=T, gradient checkpointing", CHAIN, part, True),
        Case("alignprop uniform", "alignprop", part),
        Case("draft k=1", "draft"),
        Case("grad_copy", "grad_copy"),
    ]


class Peak:
    """Stands between iterations: the most memory above that of the first call, and seconds of each."""

    def __init__(self, device: str) -> None:
        self.device, self.base, self.began = torch.device(device), 0, 0.0
        self.seconds: list[float] = []

    def __call__(self, k: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if k:
            self.seconds.append(time.perf_counter() - self.began)
        else:
            self.base = self._begin()
        self.began = time.perf_counter()

    def _begin(self) -> int:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device)
        ctypes.CDLL(None).malloc_trim(0)  # what loading has freed is not room for what is measured
        REFERENCES.write_text("5", encoding="ascii")  # the high-water mark begins here
        return _resident("VmRSS")

    @property
    def bytes(self) -> int:
        cuda = self.device.type == "cuda"
        most = torch.cuda.max_memory_allocated(self.device) if cuda else _resident("VmHWM")
        return most - self.base


def _resident(name: str) -> int:
    """Bytes of a line of this process's status."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def measure(case: Case, size: Size) -> dict[str, Any]:
    """One case, in a process of its own."""
    peak = Peak(size.device)
    found = (_plain if case.algorithm is None else _ours)(case, size, peak)
    return {**case._asdict(), "peak": peak.bytes, "seconds": peak.seconds[1], **found}


def _ours(case: Case, size: Size, peak: Peak) -> dict[str, Any]:
    assert case.algorithm is not None
    made = {"guidance": GUIDANCE, "learning_rate": RATE, "iterations": ITERATIONS}
    made |= {"k": case.k} if case.k else {}
    algorithm = algorithm_of(case.algorithm, made | {"images": size.images, "steps": size.steps, "updates": 1})
    settings = {
        "model": size.model,
        "reward": reward_for(algorithm),
        "prompts": "shapes",
        "device": size.device,
        "gradient_checkpointing": case.checkpointing,
        "plan": {"micro_batch": case.items},
    }
    with tempfile.TemporaryDirectory() as place:
        run, _ = training(algorithm, settings, Path(place), peak)
        run.train()
        rows = metrics(Path(place))[-1]["network_calls"]
    said = estimate(run, size.model, "no", case.checkpointing, cuda=False)
    phases = {line.when for line in said.lines} - {"always"}
    return {"items": run.plan.micro_batch, "estimate": max(map(said.during, phases)), "rows": rows}


def _plain(case: Case, size: Size, peak: Peak) -> dict[str, Any]:
    """The chain as a user of diffusers would write it."""
    with quiet():
        from diffusers import DDIMScheduler, StableDiffusionPipeline
        from peft import LoraConfig

        pipe = StableDiffusionPipeline.from_pretrained(size.model, dtype=torch.float32).to(size.device)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.requires_grad_(False).eval()
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    adam = torch.optim.AdamW([p for p in pipe.unet.parameters() if p.requires_grad], lr=RATE)
    peak(0)
    for k in range(ITERATIONS):
        _climb(pipe, adam, size, case.items or size.images)
        peak(k + 1)
    return {"estimate": None, "rows": None}


def _climb(pipe: Any, adam: Any, size: Size, items: int) -> None:
    """One iteration of plain autograd."""
    with torch.no_grad():
        both = pipe.encode_prompt("a red circle", size.device, items, True)[:2]
    text = torch.cat([both[1], both[0]])
    side = pipe.unet.config.sample_size
    pipe.scheduler.set_timesteps(size.steps)
    for _ in range(0, size.images, items):
        x = torch.randn(items, pipe.unet.config.in_channels, side, side, device=size.device)
        for t in pipe.scheduler.timesteps:
            away, toward = pipe.unet(torch.cat([x, x]), t, text, return_dict=False)[0].chunk(2)
            x = pipe.scheduler.step(away + GUIDANCE * (toward - away), t, x).prev_sample
        pictures = pipe.vae.decode(x / pipe.vae.config.scaling_factor, return_dict=False)[0] / 2 + 0.5
        (-pictures.clamp(0, 1).mean() * items / size.images).backward()
    adam.step()
    adam.zero_grad()


def table(found: list[dict[str, Any]]) -> None:
    """Every case beside plain autograd."""
    plain, images = found[0]["peak"], "pictures a call"
    print(f"\n{'':44}{images}   peak MB   of plain   estimate MB   seconds")
    for one in found:
        said = f"{one['estimate'] / 1e6:11.0f}" if one["estimate"] else f"{'':11}"
        share = f"{one['peak'] / plain:8.1%}"
        print(f"{one['name']:44}{one['items']:15}{one['peak'] / 1e6:10.0f}   {share}   {said} {one['seconds']:9.2f}")


def alone(what: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """In a fresh process: memory of one case must not count for the next."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(what, *given).result()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--part", type=int, default=8, help="pictures a call where parts are made; divides --images")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args(argv)
    if asked.device == "cpu" and not sys.platform.startswith("linux"):
        parser.error("peaks of resident memory are read from /proc, which only Linux has.")
    if asked.images % asked.part:
        parser.error(f"--part {asked.part} does not divide --images {asked.images}.")
    model = model_folder(asked.model)
    if model is None:
        parser.error(f"--model {asked.model}: a built-in model or a folder is needed.")
    size = Size(str(model), asked.device, asked.images, asked.steps)
    found = []
    for case in cases(asked.images, asked.part):
        found.append(alone(measure, case, size))
        print(f"{case.name}: {found[-1]['peak'] / 1e6:.0f} MB, {found[-1]['seconds']:.2f} s", flush=True)
    table(found)
    result = {"benchmark": "memory_chain", **size._asdict(), "model": asked.model, "cases": found}
    print(write_result("memory-chain", result | {"machine": machine(asked.device)}, asked.results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

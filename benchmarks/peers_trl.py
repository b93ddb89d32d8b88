"""One DDPO iteration against TRL's, in pairs:  python benchmarks/peers_trl.py --trl ENV/bin/python

TRL is run in an environment of its own, never in the project's:

    python3 -m venv ENV
    ENV/bin/pip install "torch==2.13.0" "trl==0.22.2" "diffusers==0.35.2" "transformers==4.57.6" "peft<0.18" \
        "accelerate<1.12" pillow

Two processes live as long as the benchmark, each holding the same model folder; on a word through a pipe one of them
does one iteration (64 images x 20 steps with guidance, JPEG reward, two updates) while the other waits. They alternate,
and who begins alternates too. Both have all cores and choose their own number of threads.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

GOAL = 1.00
HERE = Path(__file__).resolve().parent


# ---- the two sides, each in its own process


def protocol() -> Callable[[dict[str, Any]], None]:
    """How a worker answers: JSON lines on what was its stdout. Whatever else is printed goes to stderr from now on.

    An answer returns when the next word has come; the end of the words ends the process.
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(found: dict[str, Any]) -> None:
        out.write(json.dumps(found) + "\n")
        out.flush()
        if not sys.stdin.readline():
            raise SystemExit(0)

    return answer


def work_ours(asked: argparse.Namespace) -> None:
    """Our iterations, one a word."""
    answer = protocol()
    from harness import machine, metrics, training

    from tastemaker.algorithms.ddpo import DDPO

    folder = Path(asked.folder)
    settings = {
        "model": asked.model,
        "reward": "jpeg_compressibility",
        "prompts": json.loads((folder / "prompts.json").read_text(encoding="utf-8")),
        "device": "cpu",
    }
    algorithm = DDPO(
        images=asked.images,
        steps=asked.steps,
        updates=2,
        guidance=3.0,
        learning_rate=1e-3,
        iterations=asked.iterations,
    )
    began = 0.0

    def between(k: int) -> None:
        nonlocal began
        seconds = time.perf_counter() - began
        if k:
            answer({"seconds": seconds, "reward": metrics(folder / "ours")[-1]["reward"]["mean"]})
        else:
            answer({"ready": machine()})
        began = time.perf_counter()

    (folder / "ours").mkdir()
    run, _ = training(algorithm, settings, folder / "ours", between)
    run.train()


def work_trl(asked: argparse.Namespace) -> None:
    """TRL's iterations, one a word. Runs in TRL's environment, without ours."""
    answer = protocol()
    import accelerate
    import diffusers
    import torch
    import transformers
    import trl

    accelerate.PartialState()  # TRL's own warning about missing LoRA weights goes through a logger that needs it
    folder = Path(asked.folder)
    prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    rewards: list[float] = []

    def judge(images: Any, texts: Any, metadata: Any) -> tuple[Any, dict[str, Any]]:
        sizes = torch.tensor([-kilobytes(image) for image in images])
        rewards.extend(sizes.tolist())
        return sizes, {}

    pipeline = trl.DefaultDDPOStableDiffusionPipeline(asked.model, use_lora=True)
    config = trl.DDPOConfig(
        num_epochs=asked.iterations,
        save_freq=10**9,  # its default fails at the first save
        mixed_precision="no",
        sample_num_steps=asked.steps,
        sample_guidance_scale=3.0,
        sample_batch_size=asked.images // 2,
        sample_num_batches_per_epoch=2,
        train_batch_size=asked.images // 4,
        train_gradient_accumulation_steps=2,
        train_learning_rate=1e-3,
        train_cfg=True,
        seed=0,
        log_with=None,
        project_kwargs={"project_dir": str(folder / "trl")},
    )
    random.seed(0)
    trainer = trl.DDPOTrainer(config, judge, lambda: (random.choice(prompts), {}), pipeline)
    trainer.accelerator.log = lambda *values, **words: None  # without a tracker it has nowhere to write to
    pipeline.set_progress_bar_config(disable=True)
    dtypes = {str(p.dtype) for p in [*pipeline.unet.parameters(), *pipeline.vae.parameters()]}
    assert dtypes == {"torch.float32"}, dtypes
    versions = {module.__name__: module.__version__ for module in (torch, trl, diffusers, transformers, accelerate)}
    answer({"ready": {**versions, "threads": torch.get_num_threads()}})
    step = 0
    for epoch in range(asked.iterations):
        began, first = time.perf_counter(), len(rewards)
        step = trainer.step(epoch, step)
        answer({"seconds": time.perf_counter() - began, "reward": statistics.mean(rewards[first:])})


def kilobytes(image: Any) -> float:
    """What a picture `[3,H,W]` in [0, 1] takes as a JPEG, quality 95: the reward of both sides."""
    from PIL import Image

    buffer = io.BytesIO()
    levels = (image.float() * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(levels).save(buffer, format="JPEG", quality=95)
    return buffer.tell() / 1000


# ---- the one who compares


class Worker:
    """One side: a process that does an iteration on a word."""

    def __init__(self, name: str, python: str, arguments: Sequence[str], folder: Path) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        command = [python, str(HERE / "peers_trl.py"), "--worker", name, *arguments]
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8"
            )
        self.ready = self._answer()["ready"]

    def iteration(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            tail = self.log.read_text(encoding="utf-8").splitlines()[-15:]
            raise SystemExit("\n".join([f"{self.name} ended:", *tail]))
        found: dict[str, Any] = json.loads(line)
        return found


def alternate(ours: Worker, trl: Worker, pairs: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of iterations, ours and theirs; first one of each that does not count."""
    for worker in (ours, trl):
        print(f"warm-up of {worker.name}: {worker.iteration()['seconds']:.2f} s", flush=True)
    found = []
    for k in range(pairs):
        order = (ours, trl) if k % 2 == 0 else (trl, ours)
        done = {worker.name: worker.iteration() for worker in order}
        found.append((done["ours"], done["trl"]))
        a, b = (done[name]["seconds"] for name in ("ours", "trl"))
        print(f"  ours {a:6.2f} s   TRL {b:6.2f} s   ratio {a / b:.3f}", flush=True)
    return found


def compare(asked: argparse.Namespace) -> int:
    from harness import RESULTS, machine, write_result

    from tastemaker.policy.load import folder as model_folder
    from tastemaker.shapes.captions import train

    model = model_folder(asked.model)
    if model is None:
        raise SystemExit(f"--model {asked.model}: a built-in model or a folder is needed, TRL reads it from there.")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "prompts.json").write_text(json.dumps(train()), encoding="utf-8")
        arguments = [
            "--model",
            str(model),
            "--folder",
            place,
            "--images",
            str(asked.images),
            "--steps",
            str(asked.steps),
        ]
        # the first is a warm-up; the last, which would write our checkpoint, is never asked for
        arguments += ["--iterations", str(asked.pairs + 2)]
        workers = [
            Worker(name, python, arguments, folder) for name, python in (("ours", sys.executable), ("trl", asked.trl))
        ]
        found = alternate(*workers, pairs=asked.pairs)
        for worker in workers:
            worker.end()
    ratios = [ours["seconds"] / trl["seconds"] for ours, trl in found]
    ratio = statistics.median(ratios)
    sides = {name: [pair[k] for pair in found] for k, name in enumerate(("ours", "trl"))}
    for name, done in sides.items():
        first, last = (statistics.mean(one["reward"] for one in part) for part in (done[:4], done[-4:]))
        median = statistics.median(one["seconds"] for one in done)
        print(f"{name}: median {median:.2f} s; training reward {first:.3f} -> {last:.3f} (first and last four)")
    print(f"median ratio ours / TRL {ratio:.3f} (goal: at most {GOAL:.2f})")
    result = {
        "benchmark": "peers-trl",
        "model": asked.model,
        "images": asked.images,
        "steps": asked.steps,
        "ratio": ratio,
    }
    result |= {"ratios": ratios, **sides, "versions": {worker.name: worker.ready for worker in workers}}
    print(write_result("peers-trl", result | {"machine": machine()}, asked.results or RESULTS))
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", help="the python of TRL's environment")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--images", type=int, default=64, help="a multiple of 4")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--results", type=Path)
    for internal in ("--worker", "--folder"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    parser.add_argument("--iterations", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.worker:
        {"ours": work_ours, "trl": work_trl}[asked.worker](asked)
        return 0
    if not asked.trl:
        parser.error("--trl is needed: the python of an environment with TRL, made as the text above says.")
    return compare(asked)


if __name__ == "__main__":
    raise SystemExit(main())

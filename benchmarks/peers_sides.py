"""The two sides of `peers_trl.py`, each in a process of its own:  PYTHON benchmarks/peers_sides.py ours|trl SETTINGS

Ours runs in the project's environment, TRL's in its own, without ours. What had to be worked around in TRL 0.22.2, all
of it from the outside:

1. `accelerate.PartialState()` has to exist first: TRL warns through a logger that needs it (about missing LoRA weights,
   about a missing image hook).
2. `save_freq` is put out of reach: with the default the first save fails, for want of a folder.
3. `Accelerator.log` is replaced: without a tracker it has nowhere to write to.
4. AlignProp: its config offers `mixed_precision="none"`, which accelerate refuses; "no" is what is meant. Its loss is
   10 - mean reward whatever the reward is, and its step sizes are Adam's, so that is left as it is. The range in which
   its coin is tossed is one of 50 steps by default; here it is one of the steps that there are.
"""

from __future__ import annotations

import io
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Settings(NamedTuple):
    """What both sides are told; travels as JSON."""

    trainer: str  # ddpo or alignprop
    model: str  # the folder
    folder: str  # with prompts.json in it
    images: int
    steps: int
    iterations: int
    truncation: str  # of alignprop: per_step or fixed


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


# ---- ours


def our_algorithm(asked: Settings) -> Any:
    from tastemaker.algorithms.alignprop import AlignProp
    from tastemaker.algorithms.ddpo import DDPO
    from tastemaker.process.samplers import DDIM
    from tastemaker.process.truncation import Fixed, PerStep

    if asked.trainer == "ddpo":
        return DDPO(
            images=asked.images,
            steps=asked.steps,
            updates=2,
            guidance=3.0,
            learning_rate=1e-3,
            iterations=asked.iterations,
        )
    return AlignProp(
        images=asked.images,
        steps=asked.steps,
        updates=1,
        guidance=3.0,
        learning_rate=1e-3,
        weight_decay=1e-4,
        coefficient=1.0,
        iterations=asked.iterations,
        truncation=PerStep() if asked.truncation == "per_step" else Fixed(1),
        sampler=DDIM(eta=1.0),
    )


def work_ours(asked: Settings) -> None:
    """Our iterations, one a word."""
    answer = protocol()
    from harness import machine, metrics, reward_for, training

    folder = Path(asked.folder)
    algorithm = our_algorithm(asked)
    settings = {
        "model": asked.model,
        "reward": reward_for(algorithm),
        "prompts": json.loads((folder / "prompts.json").read_text(encoding="utf-8")),
        "device": "cpu",
    }
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


# ---- TRL's


def work_trl(asked: Settings) -> None:
    """TRL's iterations, one a word."""
    answer = protocol()
    import accelerate
    import diffusers
    import torch
    import transformers
    import trl

    accelerate.PartialState()
    prompts = json.loads((Path(asked.folder) / "prompts.json").read_text(encoding="utf-8"))
    rewards: list[float] = []

    def judge(images: Any, texts: Any, metadata: Any) -> Any:
        scores = compressibility(images) if asked.trainer == "ddpo" else brightness(images)
        rewards.extend(scores.tolist())
        return (scores, {}) if asked.trainer == "ddpo" else (scores, None)

    pipeline = trl.DefaultDDPOStableDiffusionPipeline(asked.model, use_lora=True)
    random.seed(0)
    config, trainer = (
        (ddpo_config, trl.DDPOTrainer) if asked.trainer == "ddpo" else (align_config, trl.AlignPropTrainer)
    )
    made = trainer(config(asked), judge, lambda: (random.choice(prompts), {}), pipeline)
    made.accelerator.log = lambda *values, **words: None
    pipeline.set_progress_bar_config(disable=True)
    dtypes = {str(p.dtype) for p in [*pipeline.unet.parameters(), *pipeline.vae.parameters()]}
    assert dtypes == {"torch.float32"}, dtypes
    versions = {module.__name__: module.__version__ for module in (torch, trl, diffusers, transformers, accelerate)}
    answer({"ready": {**versions, "threads": torch.get_num_threads()}})
    step = 0
    for epoch in range(asked.iterations):
        began, first = time.perf_counter(), len(rewards)
        step = made.step(epoch, step)
        answer({"seconds": time.perf_counter() - began, "reward": statistics.mean(rewards[first:])})


def ddpo_config(asked: Settings) -> Any:
    """Two updates of half the pictures, in calls of a quarter."""
    import trl

    return trl.DDPOConfig(
        num_epochs=asked.iterations,
        save_freq=10**9,
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
        project_kwargs={"project_dir": str(Path(asked.folder) / "trl")},
    )


def align_config(asked: Settings) -> Any:
    """One update of all the pictures, in two parts."""
    import trl

    return trl.AlignPropConfig(
        num_epochs=asked.iterations,
        save_freq=10**9,
        mixed_precision="no",
        sample_num_steps=asked.steps,
        sample_guidance_scale=3.0,
        sample_eta=1.0,
        train_batch_size=asked.images // 2,
        train_gradient_accumulation_steps=2,
        train_learning_rate=1e-3,
        truncated_backprop_rand=asked.truncation == "per_step",
        truncated_rand_backprop_minmax=(0, asked.steps),
        truncated_backprop_timestep=asked.steps - 1,
        seed=0,
        log_with=None,
        project_kwargs={"project_dir": str(Path(asked.folder) / "trl")},
    )


def compressibility(images: Any) -> Any:
    """[B] minus the kilobytes of pictures [B,3,H,W] in [0, 1] as JPEG, quality 95: our reward of that name."""
    import torch
    from PIL import Image

    sizes = []
    for image in images:
        buffer = io.BytesIO()
        levels = (image.float() * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        Image.fromarray(levels).save(buffer, format="JPEG", quality=95)
        sizes.append(-buffer.tell() / 1000)
    return torch.tensor(sizes)


def brightness(images: Any) -> Any:
    """[B] mean luma of pictures [B,3,H,W] in [0, 1], with its graph: our reward of that name."""
    return images.float().mean((2, 3)) @ images.new_tensor((0.299, 0.587, 0.114))


if __name__ == "__main__":
    {"ours": work_ours, "trl": work_trl}[sys.argv[1]](Settings(**json.loads(sys.argv[2])))

"""Memory and speed of Stable Diffusion 1.5's size on a GPU:  python benchmarks/memory_gpu.py

A pipeline of SD 1.5's architecture (UNet of 860 M parameters, 512 x 512) with random weights is written to a temporary
folder in half precision (2.1 GB) and goes through DDPO iterations with LoRA at micro_batch 1, in bf16 and in fp16, with
and without gradient checkpointing, each case in a process of its own. Beside each other: the peak that torch measures
and the one that `tastemaker.memory` estimates, seconds of an iteration and of its network rows alone, and `mismatch`,
the largest log-ratio before the first update. Random weights need the same memory and time as trained ones.

`--algorithm draft,alignprop,...` takes algorithms that differentiate the reward instead, in bf16 with and without
gradient checkpointing; draft_chain is DRaFT through all steps. Every step that is differentiated keeps its activations:
a case that has more of them than the GPU has room for says so and goes by.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import string
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import (
    CHAIN,
    GRADIENTS,
    RESULTS,
    Network,
    algorithm_of,
    estimate,
    fastest,
    machine,
    metrics,
    reward_for,
    training,
    write_result,
)

from tastemaker.policy.load import quiet

WITHIN, PUBLISHED = 0.20, 10e9  # of the estimate; bytes that ddpo-pytorch's README names for LoRA, fp16, batch 1
STEPS, IMAGES, UPDATES, ITERATIONS = 10, 8, 2, 3  # the first iteration does not count as time
SD15: dict[str, Any] = {  # https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5, unet/config.json
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "norm_num_groups": 32,
}
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
SMALL: dict[str, dict[str, Any]] = {  # to try this file on a machine without a GPU
    "unet": {"sample_size": 8, "block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 32},
    "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "sample_size": 64},
    "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
}


class Case(NamedTuple):
    """One row of the result."""

    precision: str
    checkpointing: bool
    algorithm: str

    def __str__(self) -> str:
        return f"{self.algorithm}, {self.precision}{', gradient checkpointing' if self.checkpointing else ''}"


def cases(algorithms: Sequence[str]) -> list[Case]:
    """Both half precisions of DDPO, one of all others: how many calls are held at once makes their difference."""
    precisions = {name: ("bf16", "fp16") if name == "ddpo" else ("bf16",) for name in algorithms}
    return [Case(one, again, name) for name in algorithms for one in precisions[name] for again in (False, True)]


def save(folder: Path, device: str, small: bool = False) -> int:
    """Writes the random pipeline; the number of the UNet's parameters."""
    with quiet():  # they give advice when they are imported
        from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [
        *string.ascii_lowercase,
        *(f"{c}</w>" for c in string.ascii_lowercase),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    words = CLIPTokenizer(vocab={t: n for n, t in enumerate(letters)}, merges=[], model_max_length=77)
    encoder = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    encoder |= {"num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu"}
    encoder |= {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    encoder |= {"pad_token_id": words.pad_token_id} | (SMALL["text"] if small else {})
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(**(SD15 | (SMALL["unet"] if small else {})))
        vae = AutoencoderKL(**(VAE | (SMALL["vae"] if small else {})))
        text = CLIPTextModel(CLIPTextConfig(**encoder))
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text,
        tokenizer=words,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with quiet():
        pipeline.to(dtype=torch.float16)
        pipeline.save_pretrained(folder, safe_serialization=True)
    return sum(p.numel() for p in unet.parameters())


class Between:
    """Stands between the iterations: seconds, and the peak of memory from the first iteration on."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.began = device, 0.0
        self.seconds: list[float] = []
        self.peaks: list[int] = []

    def __call__(self, k: int) -> None:
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize(self.device)
        if k:
            self.seconds.append(time.perf_counter() - self.began)
            self.peaks.append(torch.cuda.max_memory_allocated(self.device) if cuda else 0)
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        self.began = time.perf_counter()


def measure(folder: Path, case: Case, device: str, steps: int) -> dict[str, Any]:
    """One case, in a process of its own."""
    updates = UPDATES if case.algorithm == "ddpo" else 1
    made = {"images": IMAGES, "steps": steps, "updates": updates, "guidance": 5.0, "iterations": ITERATIONS}
    algorithm = algorithm_of(case.algorithm, made)
    settings = {
        "model": str(folder),
        "reward": reward_for(algorithm),
        "prompts": ["a cat", "a dog", "a bird", "a fish"],
        "device": device,
        "mixed_precision": case.precision,
        "gradient_checkpointing": case.checkpointing,
        "plan": {"micro_batch": 1, "sampling_batch": 1},
    }
    between = Between(torch.device(device))
    with tempfile.TemporaryDirectory() as place:
        run, policy = training(algorithm, settings, Path(place), between)
        memory = estimate(run, str(folder), case.precision, case.checkpointing)
        lines = [line._asdict() for line in memory.lines]
        found = {"case": str(case), "estimate": {"peak": memory.peak, "needed": memory.needed, "lines": lines}}
        try:
            run.train()
        except ValueError as error:
            if "out of memory" not in str(error):
                raise
            return found | {"failed": str(error)}
        rows = metrics(Path(place))
    best = min(range(1, ITERATIONS), key=lambda k: between.seconds[k])
    found |= {"peak": max(between.peaks), "seconds": between.seconds[best], "images": IMAGES}
    found |= {"skipped": sum(update["skipped"] for row in rows for update in row["updates"])}
    found |= {"metrics": [row["seconds"] for row in rows]}
    calls = rows[best]["network_calls"]
    drawn = {"forward": calls["rows_forward"] - calls["rows_backward"], "both": calls["rows_backward"]}
    if not algorithm.differentiates:
        found["mismatch"], found["clip"] = max(row["updates"][0]["mismatch"] for row in rows), algorithm.clip
        found["renewed"] = rows[0]["network_calls"]["rows_forward"] > run.plan.sampling_rows + run.plan.learning_rows
        drawn = {"forward": run.plan.sampling_rows, "both": run.plan.learning_rows}
    alone = network_alone(Network.of(policy, case.precision), **drawn)  # now: it takes the text encoder to the device
    over = {name: found["seconds"] / one["seconds"] for name, one in alone.items()}
    return found | {"rows": drawn, "alone": alone, "over_network": over}


def network_alone(network: Network, *, forward: int, both: int) -> dict[str, Any]:
    """Seconds of so many rows in the run's calls, and in the best."""
    alone = {}
    for name, batches in (("same calls", (2,)), ("best calls", (2, 4, 8, 16))):
        kinds = [
            fastest([network], rows, learn=learn, batches=batches)
            for rows, learn in ((forward, False), (both, True))
            if rows
        ]
        alone[name] = {"seconds": sum(kind.seconds() for kind in kinds), "calls": list(map(str, kinds))}
    return alone


def show(found: dict[str, Any]) -> bool:
    """One case in words; whether its peak is as estimated and, where that is published, below what is."""
    expected = found["estimate"]["peak"]
    print(f"\n{found['case']}")
    if "failed" in found:
        print(f"  {found['failed']}\n  estimate {expected / 1e9:.2f} GB")
        return expected > torch.cuda.get_device_properties(0).total_memory
    peak, near, below = found["peak"], True, True
    if peak:
        near = abs(peak / expected - 1) <= WITHIN
        print(f"  peak {peak / 1e9:.2f} GB, estimate {expected / 1e9:.2f} GB ({peak / expected:.2f} of it)", end="")
        print(f" - {'yes' if near else 'NO'}")
        if "clip" in found:
            below = peak < PUBLISHED
            print(f"  below {PUBLISHED / 1e9:.0f} GB - {'yes' if below else 'NO'}")
    else:
        print(f"  no GPU, so no peak; estimate {expected / 1e9:.2f} GB")
    same, best = found["over_network"].values()
    print(
        f"  an iteration {found['seconds']:.2f} s, {found['seconds'] / found['images']:.2f} s an image: {same:.2f} x ",
        end="",
    )
    print(f"its rows alone, {best:.2f} x them in the best calls; {found['skipped']:.0f} updates skipped")
    if "clip" in found:
        print(f"  mismatch {found['mismatch']:.1e}, a clip of {found['clip']:.0e}")
    if found.get("renewed"):
        print("  old log-probabilities were taken again in the layout of learning")
    return near and below


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny network on the CPU, to try this file")
    parser.add_argument("--algorithm", default="ddpo", help="some of ddpo, draft_chain, " + ", ".join(GRADIENTS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args(argv)
    algorithms = asked.algorithm.split(",")
    if unknown := set(algorithms) - {"ddpo", CHAIN, *GRADIENTS}:
        parser.error(f"--algorithm {', '.join(sorted(unknown))}: known are ddpo, {CHAIN}, {', '.join(GRADIENTS)}.")
    device, steps = ("cpu", 5) if asked.small else ("cuda", STEPS)
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --small tries the file on the CPU.")
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        count = save(Path(place), device, asked.small)
        print(f"UNet of {count / 1e6:.0f} M parameters", flush=True)
        if device == "cuda":
            torch.cuda.empty_cache()
        found, good = [], True
        for case in cases(algorithms):
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:  # memory of one case must not count for the next
                found.append(pool.submit(measure, Path(place), case, device, steps).result())
            good &= show(found[-1])
    result = {"benchmark": "memory_gpu", "unet": count, "steps": steps, "images": IMAGES}
    if asked.small:
        print(json.dumps(result | {"cases": len(found)}))
    else:
        print(write_result("memory-gpu", result | {"cases": found, "machine": machine(device)}, asked.results))
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""What each of two ranks does in test_sharding.py with tiny pipelines: `tastemaker train` with sharded weights."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

import tiny
import tiny_flux
from tastemaker import cli


class Command(NamedTuple):
    """A run, and how near it comes to that of one process."""

    model: str
    words: str
    close: float = 1e-6
    drift: float = 0.05


COMMANDS = {
    "policy-gradient": Command(
        "sd",
        "ddpo --reward jpeg_compressibility --held_out_rewards brightness --algorithm.guidance 2 "
        "--evaluation.images_per_prompt 2",
    ),
    "reward-gradient": Command(
        "flux",
        "draft --reward brightness --held_out_rewards colour --algorithm.guidance 3.5 --algorithm.k 2 "
        "--gradient_checkpointing --resolution 16",
    ),
    "bf16": Command(
        "sd",
        "diffusion_nft --reward brightness --held_out_rewards colour --algorithm.per_prompt 2 --algorithm.levels 2 "
        "--mixed_precision bf16",
        close=3e-4,
        drift=0.3,  # in one process another micro-batch moves it by 14 %, and fp32 by 13
    ),
}
SLOPES = {"policy-gradient": 1e-4, "reward-gradient": 1e-4, "bf16": 0.03}  # how far AdamW's first moments may be apart
STOPPED = Command(
    "sd",
    "ddpo --reward jpeg_compressibility --held_out_rewards brightness --stop_on drift --alarms.drift 1e-12 "
    "--iterations 4 --algorithm.guidance 1",
)
COMMON = (
    "--no-lora --device cpu --algorithm.images 4 --algorithm.updates 1 --algorithm.steps 2 --evaluation.count 3 "
    "--ema 0.9 --learning_rate 1e-4"
)


def model(kind: str, home: Path) -> Path:
    with FileLock(f"{home / kind}.lock"):
        if not (home / kind).exists():
            (tiny.save if kind == "sd" else tiny_flux.save)(home / kind)
    return home / kind


def trained(name: str, home: Path, output: Path, *more: str, fsdp: bool) -> int:
    command = COMMANDS.get(name, STOPPED)
    words = ["train", *command.words.split(), *COMMON.split(), "--model", str(model(command.model, home))]
    words += list(more) if "--iterations" in (*words, *more) else ["--iterations", "2"]
    prompts = home / "prompts.txt"
    if not prompts.exists():
        prompts.write_text("a cat\na dog\na cow\na hen\n")
    words += ["--prompts", str(prompts), "--output_dir", str(output), *(["--fsdp"] if fsdp else [])]
    return cli.main(words)


if __name__ == "__main__":
    warnings.simplefilter("error")
    folder = Path(sys.argv[1])
    for one in COMMANDS.values():
        model(one.model, folder)  # in a group of processes transformers writes on the first one alone
    found = {name: trained(name, folder, folder / name, fsdp=True) for name in (*COMMANDS, "stopped")}
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))

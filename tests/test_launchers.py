"""The commands that people start several processes with, as they type them: each makes the run that the others make."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import runs
from two_ranks import SOURCES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TRAIN = [
    *("-m", "tastemaker", "train", "ddpo", "--reward", "jpeg_compressibility", "--device", "cpu"),
    *("--algorithm.images", "4", "--algorithm.updates", "2", "--algorithm.steps", "2", "--algorithm.guidance", "1"),
    *("--algorithm.iterations", "2", "--learning_rate", "1e-2", "--evaluation.count", "3"),
    *("--prompts", "prompts.txt", "--lpips_weights", "off"),
]


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def commands(name: str) -> list[list[str]]:
    """What is typed, one command a machine."""
    torchrun, accelerate = "torch.distributed.run", "accelerate.commands.launch"
    if name == "alone":
        return [[]]
    if name == "torchrun":
        return [["-m", torchrun, "--standalone", "--nproc-per-node", "2"]]
    if name == "accelerate":  # as with two GPUs; `--cpu` starts one process, whatever it is asked for
        return [["-m", accelerate, "--multi_gpu", "--num_processes", "2", "--main_process_port", str(port())]]
    at = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port())]
    return [["-m", torchrun, *at, "--node-rank", str(node)] for node in range(2)]


def launched(name: str, folder: Path) -> Path:
    """The output folder of the run that this launcher made."""
    (folder / "prompts.txt").write_text("\n".join(["a cat", "a dog", "a cow", "a hen"]))
    paths = os.pathsep.join([*map(str, SOURCES), os.environ.get("PYTHONPATH", "")])
    given = ["--model", runs.model(), "--output_dir", name]
    processes = [
        subprocess.Popen(
            [sys.executable, *launcher, *TRAIN, *given],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for launcher in commands(name)
    ]
    try:
        output = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(output)
    return folder / name


def test_every_launcher_makes_the_same_run(tmp_path: Path) -> None:
    made = {name: launched(name, tmp_path) for name in ("alone", "torchrun", "accelerate", "machines")}
    weights = {name: load_file(folder / runs.LORA) for name, folder in made.items()}
    counted = {name: runs.rows(folder, "starts")[0]["processes"] for name, folder in made.items()}
    assert counted == {"alone": 1, "torchrun": 2, "accelerate": 2, "machines": 2}
    for name in ("accelerate", "machines"):
        for key, tensor in weights["torchrun"].items():
            assert tensor.equal(weights[name][key]), f"{name}: {key}"
    apart = torch.cat([(tensor - weights["torchrun"][key]).flatten() for key, tensor in weights["alone"].items()])
    assert apart.abs().mean() < 1e-5  # AdamW makes steps of the learning rate, 1e-2, of gradients that are rounding
    first, second = (runs.rows(made[name], "metrics")[0]["updates"][0] for name in ("alone", "torchrun"))
    assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-5)
    for folder in made.values():
        assert [row["images"] for row in runs.rows(folder, "metrics")] == [4, 4]
        assert [row["queries"] for row in runs.rows(folder, "metrics")] == [4, 4]

"""`tastemaker doctor`: versions, devices, and what is missing, with the line that installs it. For bug reports too.

With `--model` and `--algorithm` it looks at that model with the settings of that run instead.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version

from tastemaker import __version__, flags

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "peft", "accelerate", "safetensors", "huggingface_hub")

# extra -> (modules it brings, what for)
EXTRAS = {
    "tensorboard": (("tensorboard",), "tracking in TensorBoard"),
    "wandb": (("wandb",), "tracking in Weights & Biases"),
    "trackio": (("trackio",), "tracking in Trackio"),
    "serve": (("starlette", "uvicorn"), "serving rewards"),
    "data": (("datasets",), "prompts from hub data sets"),
    "memory": (("bitsandbytes",), "--use_8bit_adam"),
    "ocr": (("rapidocr", "onnxruntime"), "rewards that read text in pictures"),
    "dev": (("pytest", "ruff", "mypy", "hypothesis"), "this project's own tests"),
}

HELP = """tastemaker doctor: versions, devices, and what is missing; 1 when something here is broken

tastemaker doctor --model MODEL --algorithm NAME [settings of `tastemaker train`]: that model with the settings of that
run, on this device, under checks: pictures against diffusers, decoding, ratios, precision, gradients, weight sets.
A few pictures are drawn and nothing is written; 1 when something is wrong. NAME is an algorithm or a recipe; without
--reward it is brightness."""


def main(argv: Sequence[str]) -> int:
    """Print the report, or what was found of a model; 1 when something is broken, 0 when at most extras are missing."""
    words, tree, wanted = flags.parse(argv)
    if wanted:
        print(HELP)
        return 0
    if words:
        raise ValueError(f"tastemaker doctor takes no words, only flags; found {' '.join(words)}.")
    if tree:
        from tastemaker.examination import examine  # late: torch, and the names were wrong without it too

        return examine(tree)
    return report()


def report() -> int:
    """What is installed here, and what computes; 1 when something is broken."""
    installed = {name: found for name in PACKAGES if (found := _version(name))}
    print(f"tastemaker {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print("  ".join(f"{name} {found}" for name, found in installed.items()))
    problems = [f"{name} is not installed" for name in PACKAGES if name not in (*installed, "torchvision")]
    problems += torchvision_problems(installed.get("torch"), installed.get("torchvision"))
    if "torch" in installed:
        print("\nDevices\n" + "\n".join(f"  {line}" for line in devices()))
    missing = missing_extras()
    if missing:
        print("\nNot installed, and not needed until you use it")
        print("\n".join(f"  {what:<36}pip install 'tastemaker[{extra}]'" for extra, what in missing.items()))
    print("\n" + "\n".join(f"PROBLEM: {problem}" for problem in problems) if problems else "\nNothing is wrong.")
    return 1 if problems else 0


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def torchvision_problems(torch: str | None, torchvision: str | None) -> list[str]:
    """We do not need torchvision, but one built for another torch breaks the import of peft and of transformers."""
    if torch is None or torchvision is None:
        return []
    advice = "pip uninstall torchvision (Tastemaker does not need it), or install the one that was built for this torch"
    for line in requires("torchvision") or ():
        wanted = re.fullmatch(r"torch\s*\(?==\s*([\w.]+)\)?", line.partition(";")[0].strip())
        if wanted and wanted[1] != torch.partition("+")[0]:
            return [f"torchvision {torchvision} is for torch {wanted[1]}, and torch is {torch}: {advice}"]
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # whatever a binary of another build does; the message is the report
        return [f"torchvision {torchvision} cannot be imported beside torch {torch} ({error}): {advice}"]
    return []


def devices() -> list[str]:
    """What torch can compute on here, one line each."""
    import torch

    lines = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        precision = "bf16 and fp16" if torch.cuda.is_bf16_supported() else "fp16"
        lines.append(f"cuda:{index}  {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {precision}")
    if torch.backends.mps.is_available():
        lines.append("mps")
    lines += [f"xpu:{index}" for index in range(torch.xpu.device_count())]
    return [*lines, f"cpu  {torch.get_num_threads()} threads"]


def missing_extras() -> dict[str, str]:
    """Extra -> what it is for, of those with a module that is not here."""
    return {
        extra: what
        for extra, (modules, what) in EXTRAS.items()
        if any(module not in sys.modules and importlib.util.find_spec(module) is None for module in modules)
    }

"""LoRAs as commands name them: which one a word means, and where a new file goes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tastemaker.evaluation.mixing import Adapter
from tastemaker.folder import CONFIG
from tastemaker.policy.hub import INDEX
from tastemaker.policy.load import BUILT_IN
from tastemaker.policy.lora_file import DIFFUSERS
from tastemaker.subjects import adapter_of, of_run


class Lora(NamedTuple):
    """A LoRA that a word named."""

    component: str  # of its family: "unet" or "transformer"
    adapter: Adapter
    model: str  # the base model, where it is a run's


def find(word: str, command: str, hint: str = "") -> Lora:
    """The LoRA of a run's folder, or of what `--lora` takes. hint: what else to say of a whole model.

    Errors: ValueError, naming the command where the run tuned the whole network, or if it is no LoRA.
    """
    home, model = Path(word).expanduser(), ""
    if (home / CONFIG).is_file():
        run = of_run(home)
        word, model = str(run.need_lora(command).file), str(run.tree["model"])
    elif word in BUILT_IN or (home / INDEX).is_file():
        raise ValueError(f"{word} is a whole model, and a LoRA is needed.{hint}")
    try:
        return Lora(*adapter_of(word), model)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("--lora ")) from error


def place(output: Path, overwrite: bool) -> Path:
    """Where a new file goes. Errors: ValueError, before any work, where it cannot or is there already."""
    file = output if output.suffix == ".safetensors" else output / DIFFUSERS
    there = next(path for path in file.absolute().parents if path.exists())
    if file.is_dir() or not there.is_dir():
        raise ValueError(f"--output {output}: give FILE.safetensors, or a folder for {DIFFUSERS}.")
    if file.exists() and not overwrite:
        raise ValueError(f"--output {output}: {file} is there already. Name another, or give --overwrite.")
    return file

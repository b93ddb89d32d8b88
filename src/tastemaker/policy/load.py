"""From what the user typed as `--model` to a policy. Light: the family's file, and diffusers with it, comes late."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from tastemaker.policy import single_file
from tastemaker.policy.families import FAMILIES, resolve
from tastemaker.policy.hub import INDEX, fetch, present_id, reason, refusals, silence
from tastemaker.policy.single_file import SingleFile

if TYPE_CHECKING:
    import torch

    from tastemaker.policy.adapter import LoRA
    from tastemaker.policy.policy import Exportable
    from tastemaker.policy.sharding import Together

BUILT_IN = {"shapes": "tastemaker.shapes.assets:folder", "shapes-flow": "tastemaker.shapes.assets:flow"}
"""Models that come with the package: name -> function that gives their folder."""

SAYS = "tastemaker.json"  # in a model's folder: settings it goes well with, and parts it shares with another

TILE = 512  # pixels of the longest side of a tile, where the VAE works in tiles

HALVES = {"no": None, "fp16": "float16", "bf16": "bfloat16"}
"""`--mixed_precision` -> torch's name of the half-precision dtype; None is fp32 throughout."""


class Files(NamedTuple):
    """Where a model lies."""

    model: str  # as the user typed it
    source: str  # a folder, a hub id as it is called today, or a file
    contents: Mapping[str, Any]  # its model_index.json
    revision: str | None = None
    variant: str | None = None
    cached: bool = False  # the hub did not answer; its files are in the local cache
    single: SingleFile | None = None  # all of the model in one file
    elsewhere: Mapping[str, Path] = MappingProxyType({})  # parts that do not lie in its folder -> their own


class Size(NamedTuple):
    """What was asked for, in pixels: the sides by themselves, else both by the resolution, else the model's own."""

    resolution: int | None
    height: int | None
    width: int | None


@dataclass(frozen=True)
class Request:
    """Everything a family needs to make a policy."""

    files: Files
    size: Size
    lora: LoRA | None
    device: torch.device
    mixed_precision: str
    gradient_checkpointing: bool
    vae_slicing: bool
    vae_tiling: bool
    attention_backend: str | None
    compile: bool
    cpu_offload: bool
    quantise: str | None
    sets: tuple[str, ...]
    seed: int
    together: Together | None = None


def load(
    model: str,
    *,
    lora: LoRA | None,
    device: str | torch.device = "cpu",
    mixed_precision: str = "no",
    resolution: int | None = None,
    height: int | None = None,
    width: int | None = None,
    gradient_checkpointing: bool = False,
    vae_slicing: bool = False,
    vae_tiling: bool = False,
    attention_backend: str | None = None,
    compile: bool = False,
    cpu_offload: bool = False,
    quantise: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    sets: tuple[str, ...] = ("base",),
    seed: int = 0,
    together: Together | None = None,
) -> Exportable:
    """The policy of a built-in name, a folder in diffusers layout, a .safetensors file or a hub id.

    `lora=None` is full tuning; `together`: the processes over which its weights are cut.

    Raises ValueError, naming the flag, when the model is not there, is of an unknown family, or the sizes do not fit.
    """
    import torch

    if mixed_precision not in HALVES:
        raise ValueError(f"--mixed_precision is {mixed_precision!r}, it must be one of {', '.join(HALVES)}.")
    files = find(model, revision, variant)
    switches = (gradient_checkpointing, vae_slicing, vae_tiling, attention_backend, compile, cpu_offload, quantise)
    size, place = Size(resolution, height, width), torch.device(device)
    request = Request(files, size, lora, place, mixed_precision, *switches, sets, seed, together)
    return _family(files)(request)


def half(mixed_precision: str) -> torch.dtype | None:
    """The dtype of networks that `--mixed_precision` makes half; None where all is fp32."""
    import torch

    name = HALVES[mixed_precision]
    found: torch.dtype | None = getattr(torch, name) if name else None
    return found


def folder(model: str) -> Path | None:
    """The local folder of a built-in name or path, None for what can only be a hub id."""
    if model in BUILT_IN:
        return Path(resolve(BUILT_IN[model])())
    path = Path(model).expanduser()
    return path if path.is_dir() else None


@contextmanager
def quiet() -> Iterator[None]:
    """No bars, notices and advice of diffusers and transformers inside; download bars stay. The old settings return."""
    from diffusers.utils import logging as diffusers_log
    from huggingface_hub import utils
    from transformers.utils import logging as transformers_log

    logs: tuple[Any, ...] = (diffusers_log, transformers_log)
    hub: Any = utils
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    downloads = not hub.are_progress_bars_disabled()
    try:
        for log in logs:
            log.set_verbosity_error()
            log.disable_progress_bar()
        if downloads:
            hub.enable_progress_bars()  # transformers switches them off with its own
        yield
    finally:
        for log, (verbosity, bars) in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()


def family_name(files: Files) -> str:
    """The class of its pipeline. Errors: ValueError if it is none of `FAMILIES`."""
    name = files.contents.get("_class_name")
    if files.contents.get("requires_aesthetics_score"):
        raise ValueError(
            f"--model {files.model} is a refiner: it is told an aesthetic score, and goes on from pictures of another "
            "model. Give that one, as stabilityai/stable-diffusion-xl-base-1.0."
        )
    if name not in FAMILIES:
        raise ValueError(f"--model {files.model} is a {name}, Tastemaker knows {', '.join(FAMILIES)}.")
    return str(name)


def _family(files: Files) -> Callable[[Request], Exportable]:
    name = family_name(files)
    with quiet():  # importing diffusers' pipelines gives advice too
        family: Callable[[Request], Exportable] = resolve(FAMILIES[name])
    return family


def find(model: str, revision: str | None = None, variant: str | None = None) -> Files:
    """Where a model lies and what it is. Errors: ValueError naming the flag if it is not to be had."""
    if (path := _file(model)) is not None:
        for flag, value in (("revision", revision), ("variant", variant)):
            if value is not None:
                raise ValueError(f"--{flag} {value} has no effect on a model in one file ({model}): leave it out.")
        single = single_file.find(model, path)
        return Files(model, str(path), _read(model, single.configs / INDEX), single=single)
    if (place := folder(model)) is not None:
        if not (place / INDEX).is_file():
            raise ValueError(_not_a_model(model, place))
        index = _read(model, place / INDEX)
        return Files(model, str(place), index, revision, variant, elsewhere=elsewhere(place))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model.startswith("."):
        raise ValueError(f"--model {model}: no such folder. {_choices()}")
    return _from_hub(model, revision, variant)


def elsewhere(place: Path) -> dict[str, Path]:
    """Parts that a model shares with a built-in one, as its tastemaker.json says: name -> that one's folder.

    `shapes-flow` has the autoencoder of `shapes`, which the package holds once.
    """
    file = place / SAYS
    shared = _read(str(place), file).get("parts", {}) if file.is_file() else {}
    found = {}
    for name, model in shared.items():
        if model not in BUILT_IN:
            raise ValueError(f"{file}: parts.{name} is {model!r}, it is one of {', '.join(BUILT_IN)}.")
        home = folder(model)
        assert home is not None
        if not isinstance(_read(model, home / INDEX).get(name), list):
            raise ValueError(f"{file}: parts.{name}: {model} has no part of that name.")
        found[name] = home / name
    return found


def configs(model: str, revision: str | None = None) -> Path:
    """A folder with the model's config files, as `<part>/config.json`; a hub id's are fetched, a few kB.

    Errors: ValueError naming the flag if they are not to be had.
    """
    if (path := _file(model)) is not None:
        return single_file.find(model, path).configs
    if (place := folder(model)) is not None:
        return place
    name = present_id(model, revision)
    try:
        return fetch(name, ["*/config.json"], revision)
    except refusals() as error:
        why = silence(name, revision) or reason(error)  # why the hub is silent says more than that the cache is empty
        raise ValueError(
            f"--model {model}: its config files are neither here nor to be had from the hub ({why}). {_choices()}"
        ) from error


def _file(model: str) -> Path | None:
    """The file of a model in one file; a built-in name is itself, whatever lies in the working folder."""
    return None if model in BUILT_IN else single_file.named(model)


def _not_a_model(model: str, place: Path) -> str:
    files = sorted(path.name for path in place.glob("*.safetensors"))
    which = f" A model in one file is named itself: --model {place / files[0]}." if files else ""
    return (
        f"--model {model}: the folder {place} has no {INDEX}. Needed: a folder in diffusers layout, "
        f"as `pipeline.save_pretrained(folder)` writes it.{which}"
    )


def _from_hub(model: str, revision: str | None, variant: str | None) -> Files:
    from huggingface_hub import hf_hub_download

    name = present_id(model, revision)
    silent = silence(name, revision)
    try:
        path = hf_hub_download(name, INDEX, revision=revision, local_files_only=bool(silent))
    except refusals() as error:
        raise ValueError(
            f"--model {model}: neither a folder here, nor in the local cache, nor to be had from the hub "
            f"({silent or reason(error)}). {_choices()}"
        ) from error
    return Files(model, name, _read(model, Path(path)), revision, variant, cached=bool(silent))


def _choices() -> str:
    names = ", ".join(BUILT_IN)
    return (
        f"Give a built-in model ({names}), a folder in diffusers layout, a .safetensors file, or a hub id such as "
        "owner/name (that needs the network, and HF_TOKEN where its owner asks for consent)."
    )


def _read(model: str, path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--model {model}: {path} is not JSON ({error}). Save or download the model again.") from error
    if not isinstance(index, dict):
        raise ValueError(f"--model {model}: {path} holds no JSON object. Save or download the model again.")
    return index

"""Pipelines of diffusers: how they are read from folders, the hub and single files, and written.

The safety checker, where a family has one, is not loaded for training, which looks at pictures through the reward
alone. It is the base's own, so what is written has it again, copied file by file.
"""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from torch import Tensor, nn

from tastemaker.policy.hub import INDEX, fetch, reason, refusals
from tastemaker.policy.load import Files, family_name, quiet

NETWORKS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
LIBRARIES = ("diffusers", "transformers")
UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def read(files: Files, dtypes: Mapping[str, torch.dtype], bits: Any = None) -> DiffusionPipeline:
    """The pipeline on the CPU, each network in its dtype; `bits`, diffusers' quantisation config, puts some on a GPU.

    Errors: ValueError if its weights are not to be had.
    """
    quantised = {} if bits is None else {"quantization_config": bits}
    pipeline = _loaded(files, dtypes, {**_unchecked(files), **quantised})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plain(files: Files, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline as its owner publishes it, with its safety checker where it has one; all of it in one dtype.

    Training needs no safety checker, so one that cannot be had now is left out with a warning. Errors: as `read`.
    """
    dtypes, instead = {"default": dtype}, _unchecked(files)
    if not instead:
        return _loaded(files, dtypes, {})
    try:
        return _made(files, dtypes, {})
    except refusals() as error:
        why = reason(error)
    pipeline = _loaded(files, dtypes, instead)
    warnings.warn(f"the safety checker of --model {files.model} could not be loaded ({why}): left out.", stacklevel=2)
    return pipeline


def _kind(files: Files) -> Any:
    """The pipeline's class."""
    with quiet():  # importing it gives advice
        return getattr(diffusers, family_name(files))


def _unchecked(files: Files) -> dict[str, Any]:
    """`UNCHECKED`, where the family has a safety checker."""
    known = inspect.signature(_kind(files).__init__).parameters
    return UNCHECKED if "safety_checker" in known else {}


def _loaded(files: Files, dtypes: Mapping[str, torch.dtype], instead: Mapping[str, Any]) -> DiffusionPipeline:
    try:
        return _made(files, dtypes, instead)
    except refusals() as error:
        what = f" --variant {files.variant}" if files.variant else ""
        *names, last = _networks(files)
        raise ValueError(
            f"--model {files.model}{what} could not be loaded: {reason(error)} Needed: the weights of "
            f"{', '.join(names)} and {last} as safetensors files (pickled .bin files are never read)."
        ) from error


def _networks(files: Files) -> list[str]:
    """The names of the model's networks."""
    return [name for name in NETWORKS if _is_part(files.contents.get(name))] or list(NETWORKS)


def _made(files: Files, dtypes: Mapping[str, torch.dtype], instead: Mapping[str, Any]) -> DiffusionPipeline:
    """instead: by name, parts that are not loaded, and what stands in their place."""
    with quiet(), warnings.catch_warnings():
        # Old scheduler files are mended by diffusers with a note for their authors, not for our users.
        warnings.simplefilter("ignore", FutureWarning)
        if files.single:
            return _from_file(files, dtypes)
        _check_folders(files, instead)
        others = {name: _network(files.contents[name], place, dtypes, name) for name, place in files.elsewhere.items()}
        pipeline: DiffusionPipeline = _kind(files).from_pretrained(
            files.source,
            revision=files.revision,
            variant=files.variant,
            local_files_only=files.cached,
            use_safetensors=True,
            dtype=dict(dtypes),
            **{**dict.fromkeys(without(files)), **others, **instead},
        )
        return pipeline


def _check_folders(files: Files, instead: Mapping[str, Any]) -> None:
    """Errors: ValueError naming what a local model lists and does not have."""
    place = Path(files.source)
    listed = [name for name, entry in files.contents.items() if _is_part(entry)]
    lacks = [n for n in listed if n not in {*instead, *files.elsewhere} and not (place / n).is_dir()]
    if place.is_dir() and lacks:
        raise ValueError(
            f"its {INDEX} lists {' and '.join(lacks)}, and there is no folder {place / lacks[0]}: put it there, or "
            "write [null, null] for what the model can do without, as Stable Diffusion 3 can without text_encoder_3 "
            "and tokenizer_3."
        )


def parts(files: Files) -> list[str]:
    """The parts that training loads from the model's own place."""
    left = {*_unchecked(files), *files.elsewhere}
    return [name for name, entry in files.contents.items() if _is_part(entry) and name not in left]


def without(files: Files) -> list[str]:
    """The parts of its family that this model does without; `from_pretrained` wants each given as None."""
    known = inspect.signature(_kind(files).__init__).parameters.values()
    return [one.name for one in known if one.default is one.empty and files.contents.get(one.name) == [None, None]]


def _network(entry: Any, place: Path, dtypes: Mapping[str, torch.dtype], name: str) -> Any:
    """A network that does not lie in the model's own folder; entry: its line of model_index.json.

    Errors: ValueError for a class of any other library than these two: what a model's file names is not imported.
    """
    if entry[0] not in LIBRARIES:
        raise ValueError(f"its {INDEX} has {name} from {entry[0]!r}, not from {' or '.join(LIBRARIES)}.")
    kind = getattr(importlib.import_module(entry[0]), entry[1])
    return kind.from_pretrained(place, use_safetensors=True, dtype=dtypes.get(name, dtypes["default"]))


def _from_file(files: Files, dtypes: Mapping[str, torch.dtype]) -> DiffusionPipeline:
    assert files.single is not None
    try:
        pipeline: Any = _kind(files).from_single_file(
            files.source,
            config=str(files.single.configs),
            local_files_only=True,
            dtype=torch.float32,
            **_unchecked(files),
        )
        for name in _networks(files):
            network = getattr(pipeline, name)
            network.to("cpu", dtypes.get(name, dtypes["default"]))
    except (SingleFileComponentError, NotImplementedError, AttributeError, KeyError) as error:
        # diffusers looks for nothing that is missing; it falls over it, or leaves a tensor without content, which `to`
        # does then.
        raise ValueError(
            f"its tensors are not those of a model with the configurations in {files.single.configs}."
        ) from error
    if files.single.prediction:
        pipeline.scheduler.register_to_config(prediction_type=files.single.prediction)
    made: DiffusionPipeline = pipeline
    return made


def write(pipeline: Any, files: Files, folder: Path) -> None:
    """The pipeline in diffusers layout, with the parts of its base that were not loaded.

    A part that cannot be had any more is left out with a warning.
    """
    with quiet():
        pipeline.save_pretrained(folder, safe_serialization=True)
    if files.single:
        return  # what a file has is loaded
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    for name, entry in files.contents.items():
        if not _is_part(entry) or _is_part(index.get(name)):
            continue
        try:
            _copy(_part(files, name), folder / name, files.variant)
        except refusals() as error:
            shutil.rmtree(folder / name, ignore_errors=True)
            warnings.warn(
                f"{name} of --model {files.model} could not be copied ({reason(error)}): {folder} is without it.",
                stacklevel=2,
            )
        else:
            index[name] = entry
    if _is_part(index.get("safety_checker")):
        index["requires_safety_checker"] = files.contents.get("requires_safety_checker", True)  # diffusers' default
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def frozen(pipeline: DiffusionPipeline, trained: Iterable[nn.Parameter]) -> dict[str, dict[str, Tensor]]:
    """The tensors of its networks that are not trained, by part and name."""
    passed = {id(parameter) for parameter in trained}
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    return {
        name: {key: t for key, t in part.state_dict(keep_vars=True).items() if id(t) not in passed}
        for name, part in networks.items()
    }


def _is_part(entry: Any) -> bool:
    """Whether an entry of model_index.json is [library, class]; a part that is not there is [null, null]."""
    return isinstance(entry, list) and len(entry) == 2 and None not in entry


def _part(files: Files, name: str) -> Path:
    """The base's own folder of a part; the hub is asked for what was not needed until now."""
    place = Path(files.source)
    if not place.is_dir():
        weights = ["model.safetensors", "diffusion_pytorch_model.safetensors", "*-of-*.safetensors"]
        weights += [f"*.{files.variant}.safetensors"] if files.variant else []
        patterns = [f"{name}/{file}" for file in ("*.json", "*.txt", *weights)]
        place = fetch(files.source, patterns, files.revision)
    return place / name


def _copy(source: Path, target: Path, variant: str | None) -> None:
    """Configurations, and weights under their plain names. Errors: OSError if a network's weights are not there."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.suffix in (".json", ".txt"):
            shutil.copyfile(path, target / path.name)
    weights = {path.name: path for path in source.glob("*.safetensors")}
    for name, path in weights.items():
        plain = f"{name.partition('.')[0]}.safetensors"
        if name == plain or (plain not in weights and name == plain.replace(".", f".{variant}.", 1)):
            shutil.copyfile(path, target / plain)
    if (target / "config.json").is_file() and not any(target.glob("*.safetensors")):
        raise FileNotFoundError("it has no weights as safetensors")

"""What `sample` and `evaluate` work on: runs, models, LoRA files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import yaml

from tastemaker import config, devices
from tastemaker.build import Where, attribute, build
from tastemaker.evaluation.guidance import Annealed, Rule
from tastemaker.evaluation.mixing import Adapter, Member, is_dora, layers, mixed, rank_of
from tastemaker.folder import CONFIG
from tastemaker.outcome import Run
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.encoders import PARTS, is_encoders, tunes_encoders
from tastemaker.policy.facts import guiding_of
from tastemaker.policy.families import FAMILIES
from tastemaker.policy.hub import INDEX
from tastemaker.policy.load import BUILT_IN, load, quiet
from tastemaker.policy.lora_file import DIFFUSERS, read
from tastemaker.policy.policy import Exportable, Policy

BASE = "base"  # the word for the untuned model, which is judged anyway
OF_MODEL = ("model", "revision", "variant", "resolution", "height", "width")  # settings that make a base model


class Part(NamedTuple):
    """A LoRA of a mix."""

    name: str
    lora: LoRA
    weight: float


@dataclass(frozen=True)
class Subject:
    """What is drawn with and judged: a run, or a bare model with or without a LoRA."""

    name: str  # in tables, and of folders
    tree: Mapping[str, Any]  # the run's settings, or the model's defaults
    file: Path | None = None  # the run's config.yaml
    lora: LoRA | None = None
    pipeline: Path | None = None  # the tuned model, where it is more than a LoRA
    mix: tuple[Part, ...] | None = None  # LoRAs by their weights, in the place of one
    anneal: Rule | None = None  # how base and tuned model draw together

    @property
    def is_tuned(self) -> bool:
        """Whether there is a base model beside it."""
        return self.lora is not None or self.pipeline is not None or self.mix is not None

    @property
    def plain(self) -> Subject:
        """The simplest subject that draws the same: without weights of 0, without rules that always say 0 or 1."""
        parts = tuple(part for part in self.mix or () if part.weight)
        if self.anneal == Rule("base") or (self.mix is not None and not parts):
            return self.base
        one = replace(self, anneal=None if self.anneal == Rule("tuned") else self.anneal)
        if len(parts) == 1 and parts[0].weight == 1.0:
            return replace(one, mix=None, lora=parts[0].lora)
        return replace(one, mix=parts or None)

    @property
    def drawing(self) -> tuple[Any, ...]:
        """What its pictures are made by: equal for two subjects, their pictures are."""
        one = self.plain
        return (*one.model, one.tree.get("mixed_precision"), one.pipeline, one.lora, one.mix, one.anneal)

    @property
    def tuned(self) -> Mapping[str, Any]:
        """The settings with the tuned model in the place of the base, where it is one of its own."""
        own = {"model": str(self.pipeline), "revision": None, "variant": None} if self.pipeline else {}
        return {**self.tree, **own}

    @property
    def base(self) -> Subject:
        """The untuned model."""
        model = str(self.tree["model"])
        name = model if model in BUILT_IN else Path(model).name
        return Subject(name, self.tree, self.file)

    def check_guidance(self, guidance: Mapping[str, float], negative: Mapping[str, str]) -> None:
        """Errors: ValueError for guidance, by the name of its setting, that the model has no use for."""
        model, revision, variant = (self.tree.get(key) for key in ("model", "revision", "variant"))
        guiding_of(str(model), revision, variant).check(str(model), guidance, negative)

    def need_lora(self, flag: str) -> LoRA:
        """Its LoRA. Errors: ValueError, naming the flag that needs one, where it tuned the whole network."""
        if self.lora is None:
            raise ValueError(
                f"{flag}: {self.name} tuned the whole network (--no-lora). Needed: a LoRA, whose change can be weighed "
                "and switched off."
            )
        return self.lora

    @property
    def model(self) -> tuple[Any, ...]:
        """What makes two base models the same one."""
        return tuple(self.tree.get(key) for key in OF_MODEL)


def of_flags(flags: Mapping[str, Any]) -> Subject:
    """What `--run`, or `--model` and `--lora`, name."""
    if "run" in flags:
        for key in ("model", "lora"):
            if key in flags:
                raise ValueError(f"--{key} has no effect beside --run, which has one of its own: give one of them.")
        return of_run(Path(str(flags["run"])).expanduser(), "--run ")
    if "model" not in flags:
        raise ValueError("there is neither --run nor --model: name one.")
    found = of_model(str(flags["model"]))
    if "lora" not in flags:
        return found
    adapter = lora_of(flags["lora"])
    return replace(found, name=lora_name(str(adapter.file)), lora=adapter)


def lora_name(place: str) -> str:
    """What a LoRA is called: its file's name, or where that is everybody's, its folder's."""
    path = Path(place).expanduser().absolute()
    for usual in (DIFFUSERS, "lora"):
        path = path.parent if path.name == usual else path
    return path.stem if path.suffix == ".safetensors" else path.name


def of_words(words: Sequence[str], flags: Mapping[str, Any]) -> list[Subject]:
    """Runs' folders, LoRA files beside `--model`, models, and `base`, in the order in which they were named.

    Errors: ValueError for a word that is none of these.
    """
    found = [of_flags(flags)] if {"run", "lora"} & flags.keys() or not words else []
    for word in words:
        path = Path(word).expanduser()
        if word == BASE:
            found += [of_model(str(flags["model"]))] if "model" in flags else []
        elif "model" in flags and _is_lora(path):
            found.append(of_flags({"model": flags["model"], "lora": word}))
        elif (path / CONFIG).is_file() or path.is_dir() and not (path / INDEX).is_file():
            found.append(of_run(path))
        else:
            found.append(of_model(word))
    if not found:
        raise ValueError("`base` is the base of what? Name a run, or the model with --model.")
    return renamed(found)


def _is_lora(path: Path) -> bool:
    """A file, or a folder that holds one and is neither a run nor a model."""
    other = any((path / name).is_file() for name in (CONFIG, INDEX))
    return path.suffix == ".safetensors" or not other and any(path.glob("*.safetensors"))


def renamed(found: Sequence[Subject]) -> list[Subject]:
    """Names that are equal get their folder's name before them, as runs of a sweep have; then a number."""
    names: list[str] = []
    for one in found:
        alike = {_placed(other) for other in found if other.name == one.name and other.file}
        own = _placed(one) if one.file and len(alike) > 1 else one.name
        count = sum(name.partition(" #")[0] == own for name in names)
        names.append(f"{own} #{count + 1}" if count else own)
    return [replace(one, name=name) for one, name in zip(found, names, strict=True)]


def _placed(run: Subject) -> str:
    """`clip=1e-3/seed-0`: a run with the folder that it lies in."""
    assert run.file is not None
    return f"{run.file.resolve().parent.parent.name}/{run.name}"


def of_model(model: str) -> Subject:
    """A bare model with the defaults that it brings."""
    defaults = config.brought(model).get("defaults", {})
    usual = {"guidance": guiding_of(model).usual}
    shared = {key: value for key, value in {**usual, **defaults}.items() if key in config.SHARED and value is not None}
    return Subject(model if model in BUILT_IN else Path(model).name, {**defaults, "model": model, "algorithm": shared})


def of_run(home: Path, flag: str = "") -> Subject:
    """A run that has ended, from its folder."""
    file = home / CONFIG
    if not file.is_file():
        raise ValueError(f"{flag}{home} holds no {CONFIG}: name a folder that `tastemaker train` left.")
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    left = Run.open(home).weights
    if left is None:
        raise ValueError(f"{flag}{home}: the run has not ended; go on with --resume_from_checkpoint latest.")
    if tree["lora"] is None:
        return Subject(home.resolve().name, tree, file, pipeline=left)
    lora = replace(build(LoRA, tree["lora"], Where("lora")), file=str(left))
    return Subject(home.resolve().name, tree, file, lora)


def lora_of(found: Any) -> LoRA:
    """`--lora FILE`, with `--lora.rank` and the other settings beside it."""
    settings = dict(found) if isinstance(found, Mapping) else {"name": found}
    if "name" not in settings:
        raise ValueError("--lora.KEY has no effect without a file: give --lora FILE too.")
    settings["file"] = settings.pop("name")
    lora = cast(LoRA, build(LoRA, settings, Where("--lora", "lora")))
    if "text_encoders" not in settings:
        lora = replace(lora, text_encoders=tunes_encoders(adapter_of(str(lora.file))[1]))
    return lora if {"rank", "targets"} & settings.keys() else _fitting(_adapter(lora), lora)


def _adapter(lora: LoRA) -> Adapter:
    """The tensors of its file that it takes in."""
    found = adapter_of(str(lora.file))[1].items()
    return {name: tensor for name, tensor in found if lora.text_encoders or not is_encoders(name)}


def adapter_of(file: str) -> tuple[str, Adapter]:
    """The component of its family that a LoRA tunes ("unet"), and its tensors, those of text encoders too, whichever
    family knows its names. Errors: ValueError where no family does.
    """
    wrong: list[ValueError] = []
    for pipeline, entry in FAMILIES.items():
        with quiet():  # importing diffusers' pipelines gives advice
            component, kind = attribute(f"{entry.partition(':')[0]}:COMPONENT"), attribute(f"diffusers:{pipeline}")
        try:
            return component, read(file, kind, component, PARTS)
        except ValueError as error:
            wrong.append(error)
    raise wrong[0]


def _fitting(adapter: Adapter, lora: LoRA) -> LoRA:
    """The same with the adapter's rank and kind, and its layers where the usual ones are not all of them."""
    names = tuple(layer for layer, _, _ in layers(adapter))
    ends = tuple(f".{target}" for target in lora.targets)
    own, more = (tuple(name for name in names if is_encoders(name) == of) for of in (False, True))
    targets = (*(lora.targets if all(name.endswith(ends) for name in own) else own), *more)
    dora, texts = lora.dora or is_dora(adapter), lora.text_encoders or tunes_encoders(names)
    return replace(lora, rank=rank_of(adapter), dora=dora, targets=targets, text_encoders=texts)


def policy_of(subject: Subject, flags: Mapping[str, Any]) -> Policy:
    """The model that a subject is."""
    one = subject.plain
    assert not (one.anneal and one.pipeline), "there is no base in a policy of the whole network"
    policy = _mixture(one, flags) if one.mix else _loaded(one.tuned, flags, one.lora)
    return Annealed(policy, one.anneal) if one.anneal else policy


def _mixture(subject: Subject, flags: Mapping[str, Any]) -> Exportable:
    """The model with the mix of its LoRAs, which no file holds."""
    adapter = mixed([Member(part.name, _adapter(part.lora), part.weight) for part in subject.mix or ()])
    policy = _loaded(subject.tree, flags, _fitting(adapter, LoRA()))
    # Of encoders, layers that this model has not are refused by then, and those without influence are left out.
    if left := sorted(name for name in adapter.keys() - policy.named_parameters().keys() if not is_encoders(name)):
        raise ValueError(
            f"{subject.name}: --model {subject.tree['model']} has no layer for {left[0]!r}. Use the model that the "
            "LoRAs were made for."
        )
    for name, parameter in policy.named_parameters().items():
        value = adapter.get(name, torch.zeros_like(parameter))
        if value.shape != parameter.shape:
            raise ValueError(
                f"{subject.name}: {name!r} is {list(value.shape)}, in --model {subject.tree['model']} it is "
                f"{list(parameter.shape)}. Use the model that the LoRAs were made for."
            )
        parameter.data.copy_(value)
    return policy


def _loaded(tree: Mapping[str, Any], flags: Mapping[str, Any], lora: LoRA | None) -> Exportable:
    size = whole(flags, "resolution", 0) if "resolution" in flags else tree.get("resolution")
    return load(
        str(tree["model"]),
        lora=lora,
        device=torch.device(devices.pick(str(flags.get("device", "auto")))),
        mixed_precision=str(flags.get("mixed_precision", tree.get("mixed_precision", "no"))),
        resolution=size,
        height=None if "resolution" in flags else tree.get("height"),
        width=None if "resolution" in flags else tree.get("width"),
        revision=tree.get("revision"),
        variant=tree.get("variant"),
        sets=("base",) if lora else (),  # of a whole network that would be a copy
    )


def whole(flags: Mapping[str, Any], name: str, default: int) -> int:
    try:
        value = int(flags.get(name, default))
    except (TypeError, ValueError) as error:
        raise ValueError(f"--{name} is {flags[name]!r}; it is a whole number.") from error
    if value < (0 if name == "seed" else 1):
        raise ValueError(f"--{name} is {value}; it is positive.")
    return value


def number(flags: Mapping[str, Any], name: str, default: float) -> float:
    try:
        return float(flags.get(name, default))
    except (TypeError, ValueError) as error:
        raise ValueError(f"--{name} is {flags[name]!r}; it is a number.") from error

"""Layers of settings, model < recipe < flags, laid over each other with the origin of every value kept.

A layer is a tree of plain values with dotted paths: `algorithm.sampler.eta`. Where a part is chosen by name, the tree
holds the name alone (`ddim`) or `{name: ddim, eta: 0.5}`; a layer above may change a setting and keep the name, and one
that changes the name drops the settings of the old one.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import yaml

# Short names, in flags and in recipes, of settings that have a path; with the names diffusers' scripts and TRL use.
SHORT = {
    "iterations": "algorithm.iterations",
    "learning_rate": "algorithm.learning_rate",
    "pretrained_model_name_or_path": "model",
    "model_name_or_path": "model",
    "rank": "lora.rank",
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
}

# Other tools' names of our settings, for the suggestion.
ELSEWHERE = {
    "clip_range": "algorithm.clip",
    "train_clip_range": "algorithm.clip",
    "num_inference_steps": "algorithm.steps",
    "sample_num_steps": "algorithm.steps",
    "sample_eta": "algorithm.sampler.eta",
    "guidance_scale": "algorithm.guidance",
    "sample_guidance_scale": "algorithm.guidance",
    "adam_weight_decay": "algorithm.weight_decay",
    "max_train_steps": "iterations",
    "num_epochs": "iterations",
    "num_train_epochs": "iterations",
    "train_batch_size": "plan.micro_batch",
    "sample_batch_size": "plan.sampling_batch",
    "logdir": "output_dir",
    "num_checkpoint_limit": "checkpoints_total_limit",
    "save_freq": "checkpointing_steps",
    "resume_from": "resume_from_checkpoint",
    "enable_xformers_memory_efficient_attention": "attention_backend xformers",
    "attn_implementation": "attention_backend",
    "enable_vae_slicing": "vae_slicing",
    "enable_vae_tiling": "vae_tiling",
    "enable_slicing": "vae_slicing",
    "enable_tiling": "vae_tiling",
    "torch_compile": "compile",
    "offload": "cpu_offload",
    "enable_model_cpu_offload": "cpu_offload",
    "load_in_8bit": "quantise 8bit",
    "load_in_4bit": "quantise 4bit",
    "bnb_quantization_config_path": "quantise",
    "train_use_8bit_adam": "use_8bit_adam",
}

RESOLVED = "resolved"  # the key of a file that states every setting


class Switch(Enum):
    """A flag without a value: `--overwrite`, `--no-lora`."""

    ON = "on"
    OFF = "off"


class Mark(NamedTuple):
    """Who set a value, and how they spelled its key: `--lora.rank`, `aesthetic.yaml:14: lora.rank`.

    A part that has settings of its own was set by nobody (`origin` is empty), only spelled; its settings have origins.
    """

    origin: str
    spelled: str


class Layer(NamedTuple):
    """One origin's values, and the spelling of every path in them."""

    origin: str
    tree: dict[str, Any]
    spelled: dict[str, str]
    resolved: bool = False  # it states every setting, chosen or not, as a run's config.yaml does


def layer(origin: str, values: Mapping[str, Any], spell: Callable[[str], str]) -> Layer:
    """A layer from the values as they were written: short names become paths, `lora: FILE` a setting of LoRA."""
    tree = _copy(values)
    spelled = {path: spell(path) for path in paths(tree)}
    for short, path in SHORT.items():
        if short not in tree:
            continue
        if path in spelled:
            raise ValueError(f"{spelled[short]} is `{path}` by another name, and both are given: give one of them.")
        put(tree, path, tree.pop(short))
        spelled[path] = spelled.pop(short)
    if isinstance(tree.get("algorithm"), str):
        tree["algorithm"] = {"name": tree["algorithm"]}
    lora = tree.get("lora")
    if isinstance(lora, str) and lora not in ("none", "null"):
        tree["lora"] = {"file": lora}
    elif isinstance(lora, dict) and "name" in lora:
        lora["file"] = lora.pop("name")
    return Layer(origin, tree, spelled)


def read_recipe(path: Path, name: str) -> Layer:
    """A recipe file. Errors name the file and the line."""
    place = os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(f"{place}: a recipe is a mapping from settings to values, such as `algorithm: NAME`.")
        lines = dict(_lines(node, place))  # first: constructing merges `<<` into the nodes
        values = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{place}:{line}: not YAML: {error.problem}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{place}: not a text in UTF-8: {error}.") from error
    except OSError as error:
        raise ValueError(f"{place} cannot be read: {error.strerror}.") from error
    resolved = values.pop(RESOLVED, False) is True
    made = layer(f"recipe {name}", values, lambda path: f"{place}:{lines.get(path, 1)}: {path}")
    return made._replace(resolved=resolved)


def _lines(node: yaml.MappingNode, place: str, prefix: str = "") -> Iterator[tuple[str, int]]:
    seen = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if key.tag != "tag:yaml.org,2002:str":
            raise ValueError(
                f"{place}:{line}: found the key {key.value!r}, which YAML does not read as a text: quote it."
            )
        if key.value in seen:  # PyYAML would silently take the last
            raise ValueError(f"{place}:{line}: {prefix}{key.value} is given twice.")
        seen.add(key.value)
        yield prefix + key.value, line
        if isinstance(value, yaml.MappingNode):
            yield from _lines(value, place, f"{prefix}{key.value}.")


def stack(layers: Sequence[Layer]) -> tuple[dict[str, Any], dict[str, Mark]]:
    """All layers as one tree, later ones on top, and who set each path of it."""
    tree: dict[str, Any] = {}
    marks: dict[str, Mark] = {}
    for one in layers:
        _lay(tree, one.tree, one, marks, "")
    return tree, marks


def _lay(tree: dict[str, Any], values: Mapping[str, Any], one: Layer, marks: dict[str, Mark], prefix: str) -> None:
    for key, value in values.items():
        path = prefix + key
        mark = Mark(one.origin, one.spelled.get(path, path))
        below = tree.get(key)
        if isinstance(value, str) and isinstance(below, dict) and "sum" not in below:
            value = {"name": value}
        if not isinstance(value, Mapping):
            _forget(marks, path)
            tree[key] = value
            marks[path] = mark
            continue
        if isinstance(below, str):
            marks[f"{path}.name"], below = marks[path], {"name": below}
        if not isinstance(below, dict) or _renamed(below, value):
            _forget(marks, path)
            below = {}
        tree[key] = below
        marks[path] = mark._replace(origin="")
        _lay(below, value, one, marks, f"{path}.")


def leave_open(
    tree: dict[str, Any], marks: dict[str, Mark], defaults: Mapping[str, Any], origin: str, prefix: str = ""
) -> None:
    """Takes out of a tree, once it is stacked, what a resolved recipe says only because it says everything: defaults.

    Nobody chose them; a setting that somebody chose may be refused beside others, or bind. `origin` is the recipe's.
    """
    for key, value in list(tree.items()):
        path, default = prefix + key, defaults.get(key)
        own = [at for at in marks if f"{at}.".startswith(f"{path}.")]
        if key in defaults and value == default and {marks[at].origin for at in own} <= {"", origin}:
            del tree[key]
            for at in own:
                del marks[at]
        elif isinstance(value, dict) and isinstance(default, Mapping) and "name" not in default:
            leave_open(value, marks, default, origin, f"{path}.")


def _renamed(below: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    """Whether a value says anew what a part is: another name, or another sum of rewards."""
    was, becomes = ({key: part[key] for key in ("name", "sum") if key in part} for part in (below, value))
    return bool(was) and bool(becomes) and was != becomes


def _forget(marks: dict[str, Mark], path: str) -> None:
    for below in [other for other in marks if other.startswith(f"{path}.")]:
        del marks[below]


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path; a name that is already on the way stays as the part's name."""
    *folders, last = path.split(".")
    for k, folder in enumerate(folders):
        below = tree.setdefault(folder, {})
        if isinstance(below, Switch):
            part = ".".join(folders[: k + 1])
            no = "no-" if below is Switch.OFF else ""
            raise ValueError(f"--{path} sets a part of `{part}`, which --{no}{part} switches: take one of them out.")
        if not isinstance(below, dict):
            below = tree[folder] = {"name": below}
        tree = below
    if isinstance(tree.get(last), dict) and not isinstance(value, Mapping):
        if isinstance(value, Switch):
            raise ValueError(f"--{path} is switched, and a part of it is set by another flag: give one of them.")
        tree[last]["name"] = value
    else:
        tree[last] = value


def paths(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every path of a tree, parts before their settings."""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from paths(value, f"{prefix}{key}.")


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}

"""`tastemaker mix A B --weights .3 .7 --output WHERE`: a weighted sum of LoRAs as one LoRA file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tastemaker import flags
from tastemaker.layers import Switch

if TYPE_CHECKING:
    from tastemaker.evaluation.mixing import Lost, Member

USAGE = """tastemaker mix LORA [LORA ...] --weights .3 .7 --output FILE_OR_FOLDER [--rank R]

  LORA         a folder that `train` left, or what --lora takes: a .safetensors file, a folder that holds one, a hub id;
               or `base`, the untuned model, which changes nothing
  --weights    a number for each: the mix is base + the sum of weight x change. They need not sum to 1: .5 of one LoRA
               is half of it; above 1 and below 0 it goes beyond
  --output     FILE.safetensors, or a folder, for a file pytorch_lora_weights.safetensors in it
  --rank       of the mix, by singular values, and what that leaves out is told; without it the mix is exact and its
               rank the sum of the ranks
  --overwrite  a file that is there
"""
FLAGS = {"weights", "output", "rank"}
BASE = "base"


class Mixed(NamedTuple):
    """What was written."""

    file: Path
    layers: int
    rank: int
    lost: Lost


def main(argv: Sequence[str]) -> int:
    """Write the file and say what is in it."""
    words, tree, wanted = flags.parse(flags.joined(argv, "--weights"))
    if wanted:
        print(USAGE, end="")
        return 0
    from tastemaker.evaluation.mixing import numbers
    from tastemaker.subjects import whole

    flags.refuse("mix", tree, values=FLAGS, switches=("overwrite",))
    for flag in ("weights", "output"):
        if flag not in tree:
            raise ValueError(f"mix needs --{flag}.  (tastemaker mix --help)")
    weights = numbers(str(tree["weights"]), "--weights")
    if len(words) != len(weights):
        raise ValueError(
            f"there are {len(words)} LoRAs ({', '.join(words)}) and {len(weights)} --weights: one for each."
        )
    rank = whole(tree, "rank", 1) if "rank" in tree else None
    loras = list(zip(words, weights, strict=True))
    made = _mix(loras, Path(str(tree["output"])), rank=rank, overwrite=tree.get("overwrite") is Switch.ON)
    print(f"  {' + '.join(f'{weight:g} {word}' for word, weight in loras)}: {made.layers} layers, rank {made.rank}")
    if made.lost.layer:
        print(f"  relative error {made.lost.total:.3g}; {made.lost.worst:.3g} in the worst layer, {made.lost.layer}")
    print(f"  {made.file}")
    return 0


def mix(
    loras: Mapping[str | Path, float], *, output: str | Path, rank: int | None = None, overwrite: bool = False
) -> Path:
    """A weighted sum of LoRAs as one LoRA file, `mix({"runs/a": .3, "runs/b": .7}, output="mixes/ab")`; its path.

    loras: runs' folders, LoRA files, their folders or hub ids, or "base", with their weights: any finite numbers.
    output: a .safetensors file, or a folder.
    rank: of the result, by singular values; None is the sum of the ranks, and exact.
    Errors: ValueError where something is no LoRA, they were made for different models, or the file is there already.
    """
    return _mix(list(loras.items()), Path(output), rank=rank, overwrite=overwrite).file


def _mix(loras: Sequence[tuple[str | Path, float]], output: Path, *, rank: int | None, overwrite: bool) -> Mixed:
    from tastemaker.evaluation.mixing import Lost, layers, mixed, rank_of, reduced
    from tastemaker.exports.diffusers import write_lora
    from tastemaker.exports.loras import place
    from tastemaker.policy.lora_file import named_for_file
    from tastemaker.subjects import lora_name

    file = place(output.expanduser(), overwrite)
    component, members = _members(loras)
    adapter, lost = mixed(members), Lost(0.0, 0.0, "")
    if rank is not None:
        adapter, lost = reduced(adapter, rank)
    what = " + ".join(f"{one.weight:g} {lora_name(one.name)}" for one in members)
    write_lora(file, named_for_file(adapter, component), {"mix": what})
    return Mixed(file, len(list(layers(adapter))), rank_of(adapter), lost)


def _members(loras: Sequence[tuple[str | Path, float]]) -> tuple[str, list[Member]]:
    """The LoRAs with their tensors, and the component that they tune."""
    from tastemaker.evaluation.mixing import Member
    from tastemaker.exports.loras import find

    components: dict[str, str] = {}
    models: dict[str, str] = {}
    members = []
    for lora, weight in loras:
        word = str(lora)
        if word == BASE:
            members.append(Member(BASE, {}, weight))
            continue
        component, adapter, model = find(word, "mix", " The untuned model is called `base` here.")
        components[component] = word
        models |= {model: word} if model else {}
        members.append(Member(word, adapter, weight))
    if len(components) > 1:
        told = ", ".join(f"{word} tunes the {component}" for component, word in components.items())
        raise ValueError(f"these are LoRAs of different kinds of models: {told}.")
    if len(models) > 1:
        told = ", ".join(f"{word} of {model}" for model, word in models.items())
        warnings.warn(f"the runs tuned different base models: {told}. Of which is the mix?", stacklevel=4)
    return next(iter(components), ""), members

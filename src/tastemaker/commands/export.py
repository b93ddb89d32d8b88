"""`tastemaker export RUN --format kohya`: a LoRA in the spelling of other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tastemaker import flags
from tastemaker.build import attribute, suggest
from tastemaker.layers import Switch

USAGE = """tastemaker export LORA --format kohya [--output FILE_OR_FOLDER]

  LORA         a folder that `train` left, or what --lora takes: a .safetensors file, a folder that holds one, a hub id
  --format     kohya: of UNets (Stable Diffusion 1, 2, XL), for ComfyUI, A1111, Forge and kohya's scripts
               diffusers: as `train` leaves it; ComfyUI reads that of transformers (Stable Diffusion 3, FLUX)
  --output     FILE.safetensors, or a folder, for a file pytorch_lora_weights.safetensors in it; of a run's folder
               RUN/lora/FORMAT.safetensors is taken without it
  --overwrite  a file that is there
"""
FLAGS = {"format", "output"}

# name -> (adapter, component) -> the tensors of the file
FORMATS = {"kohya": "tastemaker.exports.kohya:named", "diffusers": "tastemaker.policy.lora_file:named_for_file"}


def main(argv: Sequence[str]) -> int:
    """Write the file and say where."""
    words, tree, wanted = flags.parse(argv)
    if wanted:
        print(USAGE, end="")
        return 0
    flags.refuse("export", tree, values=FLAGS, switches=("overwrite",))
    if len(words) != 1:
        raise ValueError(f"export takes one LoRA, and then flags; found {' and '.join(words) or 'none'}.")
    if "format" not in tree:
        raise ValueError(f"export needs --format, one of {', '.join(FORMATS)}.")
    output = str(tree["output"]) if "output" in tree else None
    file = export(words[0], format=str(tree["format"]), output=output, overwrite=tree.get("overwrite") is Switch.ON)
    print(f"  {file}")
    return 0


def export(lora: str | Path, *, format: str, output: str | Path | None = None, overwrite: bool = False) -> Path:
    """A LoRA as a file of another program, `export("runs/first", format="kohya")`; its path.

    lora: a run's folder, a LoRA file, its folder or a hub id. format: "kohya" or "diffusers".
    output: a .safetensors file, or a folder; None is a file in the run's own folder.
    Errors: ValueError where it is no LoRA, the format cannot say what it does, or the file is there already.
    """
    if format not in FORMATS:
        guess = f"  Did you mean `{near}`?" if (near := suggest(format, FORMATS)) else ""
        raise ValueError(f"--format is {format!r}; it is one of {', '.join(FORMATS)}.{guess}")
    from tastemaker.exports.diffusers import LORA, SCALE, write_lora
    from tastemaker.exports.loras import find, place
    from tastemaker.folder import CONFIG

    home = Path(lora).expanduser()
    if output is None and not (home / CONFIG).is_file():
        raise ValueError(f"{lora} is no run's folder, so it is to be said where the file goes: give --output.")
    file = place(Path(output).expanduser() if output else (home / LORA).with_name(f"{format}.safetensors"), overwrite)
    found = find(str(lora), "export")
    write_lora(file, attribute(FORMATS[format])(found.adapter, found.component), {"scale": SCALE})
    return file

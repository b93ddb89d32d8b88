"""The tuned model for other programs: a LoRA file, or without LoRA a folder in diffusers layout."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tastemaker.policy.policy import Exportable

LORA = "lora/pytorch_lora_weights.safetensors"
PIPELINE = "pipeline"
# In a file's metadata. Loaders that drop it take alpha = rank: with the factor inside the weights that is right.
SCALE = "alpha / rank is inside lora.up; load with strength 1"


def save(policy: Exportable, output_dir: Path) -> Path:
    """Write the current weights below `output_dir`; returns what `load_lora_weights` or `from_pretrained` wants.

    Under `policy.using("ema")` it writes that set instead. What stood there before is replaced only when the new files
    are complete.
    """
    tensors = policy.lora_tensors()
    if tensors is None:
        return _save_pipeline(policy, Path(output_dir) / PIPELINE)
    write_lora(Path(output_dir) / LORA, tensors, {"scale": SCALE})
    return Path(output_dir) / LORA


def write_lora(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """A LoRA file, whole or not at all; notes: more of its metadata."""
    from safetensors.torch import save as to_bytes

    path.parent.mkdir(parents=True, exist_ok=True)
    arranged = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    partial = path.with_name(f".{path.name}.partial")
    try:
        file = to_bytes(arranged, metadata={"format": "pt", "software": "tastemaker", **notes})
        partial.write_bytes(_sorted_header(file))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _sorted_header(file: bytes) -> bytes:
    """The same safetensors file with its header's keys sorted: as it is written, metadata is in an order of chance.

    8 bytes with the header's length, little-endian; the header, JSON filled up with spaces to whole 8 bytes; the data.
    """
    size = int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + file[8 + size :]


def _save_pipeline(policy: Exportable, folder: Path) -> Path:
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    policy.save_pipeline(partial)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder

"""The LoRA file's bytes depend on its content alone. (That other programs read it: policy/test_lora_file.py.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tastemaker.exports.diffusers import save


class Adapted:
    """All that is asked of a policy for its LoRA file."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def lora_tensors(self) -> dict[str, torch.Tensor]:
        return self.tensors


def test_the_same_tensors_make_the_same_bytes(tmp_path: Path) -> None:
    """The library writes its header in the order of a hash that is another one at each call."""
    tensors = {f"unet.to_{name}.lora.up.weight": torch.randn(3, 2) for name in "kqv"}
    tensors["unet.conv.lora.down.weight"] = torch.randn(2, 4).bfloat16()
    turned: Any = Adapted(dict(reversed(tensors.items())))
    policy: Any = Adapted(tensors)
    found = {save(one, tmp_path / str(k)).read_bytes() for one in (policy, turned) for k in range(8)}
    assert len(found) == 1
    (written,) = found
    assert int.from_bytes(written[:8], "little") % 8 == 0
    file = save(policy, tmp_path)
    again = load_file(file)
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)
    with safe_open(file, "pt") as opened:
        assert set(opened.metadata()) == {"format", "software", "scale"} and opened.metadata()["format"] == "pt"
        assert torch.equal(opened.get_tensor("unet.to_q.lora.up.weight"), tensors["unet.to_q.lora.up.weight"])

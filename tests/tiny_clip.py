"""A CLIP of a few thousand weights that are a function of their names, in every layout that rewards read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CONTEXT, SIZE, WIDE = 16, 32, 24  # tokens of a text, pixels of a side, numbers of a vector
_HALF = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}
_IDS = {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
CONFIG: dict[str, Any] = {
    "model_type": "clip",
    "projection_dim": WIDE,
    "text_config": {**_HALF, **_IDS, "hidden_act": "gelu", "max_position_embeddings": CONTEXT},
    "vision_config": {**_HALF, "hidden_act": "gelu", "image_size": SIZE, "patch_size": 8},
}
PROMPTS = ("a red circle", "two blue squares on the left", "A RED circle", "a very long text that is cut off somewhere")


def values(name: str, shape: Sequence[int]) -> Tensor:
    """Numbers from -1 to 1 that depend on the name alone, on every machine and with every version of every package."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    return torch.from_numpy(np.random.RandomState(seed).uniform(-1, 1, tuple(shape))).float()


def weight(name: str, shape: Sequence[int]) -> Tensor:
    """A weight as networks have them: norms near 1, matrices by their width, the scale of a real CLIP."""
    if name == "logit_scale":
        return torch.tensor(math.log(100))
    if len(shape) == 1:
        norm = name.endswith("weight")
        return 0.1 * values(name, shape) + norm
    return values(name, shape) * math.sqrt(3 / math.prod(shape[1:]))


def state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    return {name: weight(name, shape) for name, shape in shapes.items()}


def pictures(height: int, width: int, count: int = 4) -> Tensor:
    """Smooth pictures [B,3,H,W] of 256 levels, each of another colour."""
    coarse = torch.stack([values(f"picture {row}", (3, 5, 5)) for row in range(count)])
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    return (255 * (0.5 + 0.5 * smooth)).round() / 255


def shapes(config: Mapping[str, Any] = CONFIG) -> dict[str, tuple[int, ...]]:
    """The names and shapes of transformers' CLIPModel."""
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in CLIPModel(CLIPConfig(**config)).state_dict().items()}


def tokenizer() -> Any:
    """CLIP's, with letters for words: 256 bytes, the same at the end of a word, start and end."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({word: number for number, word in enumerate(words)}, [])


def write(folder: Path, named: Mapping[str, Tensor] | None = None, file: str = "model.safetensors") -> Path:
    """The tiny CLIP as a folder with its config and its words."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    held = dict(state(shapes()) if named is None else named)
    if file.endswith(".safetensors"):
        save_file(held, folder / file)
    else:
        torch.save(held, folder / file)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer().save_pretrained(str(folder))
    return folder


HEAD = {
    f"layers.{number}.{kind}": shape
    for number, wide, narrow in ((0, WIDE, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1))
    for kind, shape in (("weight", (narrow, wide)), ("bias", (narrow,)))
}

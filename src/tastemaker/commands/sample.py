"""`tastemaker sample --model MODEL --prompts ...`: draw pictures with a model, a LoRA or a run."""

from __future__ import annotations

from collections.abc import Sequence

from tastemaker import flags

USAGE = """tastemaker sample (--model MODEL [--lora FILE] | --run FOLDER) --prompts PROMPTS [--count 8]

  --model     a built-in model, a hub id or a folder in diffusers layout
  --run       a folder that `train` left: its model with its LoRA, or the whole model that it tuned
  --lora      a LoRA file, such as FOLDER/lora/pytorch_lora_weights.safetensors
  --prompts   a prompt set, a file, hub:owner/name, file.py:function, or `text:a red circle`
  --anneal    from the base to the tuned model along the chain: linear, power:2, step:0.6 (the base up to that share)
  --count     pictures, the first prompts of the set in the seed's order (default 8)
  --seed --steps --guidance --resolution --negative_prompt --device --mixed_precision --output_dir (default: samples)
"""


def main(argv: Sequence[str]) -> int:
    """Draw, write the pictures singly and as a grid, and say where they are."""
    words, tree, wanted = flags.parse(argv)
    if wanted:
        print(USAGE, end="")
        return 0
    if words:
        raise ValueError(f"sample takes no plain words, found {words[0]!r}. Write --prompts 'text:{' '.join(words)}'.")
    from tastemaker.sampling import sample

    for path in sample(tree):
        print(f"  {path}")
    return 0

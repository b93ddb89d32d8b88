"""`tastemaker evaluate RUN ...`: a run's weights against its base model on fixed prompts and noise."""

from __future__ import annotations

from collections.abc import Sequence

from tastemaker import flags

USAGE = """tastemaker evaluate --run FOLDER [--rewards NAME,NAME] [--evaluation.count 64] [--output FILE.json]

  --run          a folder that `train` left
  --model, --lora  or a model and a LoRA file instead of a run
  --rewards      what to judge by (default: the run's reward and its held-out rewards)
  --evaluation.prompts --evaluation.count --evaluation.images_per_prompt --evaluation.steps --evaluation.guidance
  --evaluation.sampler   `deterministic` (default) or `train`: the chain that drew the training pictures
  --output       also write the numbers as JSON
  --report_to    also tell the run's trackers: tensorboard, wandb, trackio
"""


def main(argv: Sequence[str]) -> int:
    """Judge base and tuned model on the same prompts and noise, and print the paired changes."""
    words, tree, wanted = flags.parse(argv)
    if wanted:
        print(USAGE, end="")
        return 0
    if len(words) > 1:
        raise ValueError(f"evaluate takes one run, found {', '.join(words)}.")
    from tastemaker.sampling import evaluate

    print("\n".join(evaluate({**({"run": words[0]} if words else {}), **tree})))
    return 0

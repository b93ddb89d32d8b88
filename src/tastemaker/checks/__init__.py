"""What `tastemaker doctor --model ... --algorithm ...` looks at; `TABLE` is the checks, in the order they are made."""

# what it is about -> "module:function"; the function takes a `Case` and gives a `Finding`. The last two change weights,
# so they come last.
TABLE = {
    "prompts": "tastemaker.checks.texts:prompts",
    "decoding": "tastemaker.checks.decoding:decoding",
    "encoding": "tastemaker.checks.decoding:encoding",
    "reward": "tastemaker.checks.rewards:reward",
    "sampling": "tastemaker.checks.sampling:sampling",
    "first ratio": "tastemaker.checks.ratios:ratio",
    "log-probs": "tastemaker.checks.precision:arithmetic",
    "half precision": "tastemaker.checks.precision:network",
    "gradients": "tastemaker.checks.gradients:gradients",
    "weight sets": "tastemaker.checks.weights:exchanged",
}

"""`tastemaker train NAME ...`: fine-tune a model on a reward."""

from __future__ import annotations

from collections.abc import Sequence

from tastemaker import flags


def main(argv: Sequence[str]) -> int:
    """Train; 0 when it ended or was stopped with a checkpoint."""
    found = flags.target(argv, command="train")
    if found is None:
        return 0
    from tastemaker.run import launch  # late: the names were wrong without it too

    target, tree = found
    launch(target, tree, spelling="flag")
    return 0

"""`tastemaker push RUN`: put a finished run on the Hugging Face hub."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tastemaker import flags
from tastemaker.layers import Switch

USAGE = """tastemaker push RUN [--hub_model_id OWNER/NAME] [--private]

  RUN             a folder that `train` left, of a run that has ended
  --hub_model_id  where to put it (default: the folder's name, in the account of your token)
  --private       make it private; --no-private makes it public (default: as the account's settings say)

  Weights, model card, pictures and records go there in one commit; checkpoints, samples and logs do not. Paths are
  shortened to their last part. The token is that of `hf auth login`, or HF_TOKEN. The exit code is 1 when the hub
  refused or could not be reached: nothing is lost, and the same command tries again.
"""


def main(argv: Sequence[str]) -> int:
    """Push; 0 when the model is on the hub, 1 when it could not be put there."""
    words, tree, wanted = flags.parse(argv)
    if wanted:
        print(USAGE, end="")
        return 0
    _refuse_tokens(tree)
    flags.refuse("push", tree, values=("hub_model_id",), switches=("private",))
    name, private = tree.get("hub_model_id"), tree.get("private")
    if len(words) != 1:
        raise ValueError(f"push takes one run's folder, and then flags; found {' and '.join(words) or 'none'}.")
    from tastemaker.exports import hub  # late: it brings torch and the hub's library

    pushed = hub.push(words[0], name, private=None if private is None else private is Switch.ON)
    print(pushed.message, file=sys.stderr if pushed.url is None else sys.stdout)
    return 1 if pushed.url is None else 0


def _refuse_tokens(tree: dict[str, object]) -> None:
    for key in tree:
        if key.endswith("token"):
            raise ValueError(f"--{key}: a token is never a flag, for command lines are seen and kept: set HF_TOKEN.")

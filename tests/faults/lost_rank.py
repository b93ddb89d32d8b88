"""What each of two ranks does in test_processes.py when one of them is lost inside its second iteration.

lost_rank.py FOLDER KIND: rank 1 `dies` without a word, or `hangs` without end.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from faults.fault_ranks import SMALL
from tastemaker.process.prediction import Prediction
from tastemaker.world import World
from toy import Toy
from toy_runs import run_of

PATIENCE = 4  # seconds that a message may take


class Lost(Toy):
    """Is lost in a learning call of the second iteration."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.calls = kind, 0

    def predict(self, *given: Any) -> Prediction:
        self.calls += torch.is_grad_enabled()
        if self.calls == 2 * 4 + 2:
            if self.kind == "dies":
                os._exit(3)
            time.sleep(600)
        return super().predict(*given)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    world = World.here("cpu", timeout=timedelta(seconds=PATIENCE))
    policy = Lost(kind) if world.rank else Toy()
    run_of(folder, SMALL, policy, world=world, micro=5, save=1).train()

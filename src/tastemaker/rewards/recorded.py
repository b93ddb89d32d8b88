"""`Recorded`: a reward that counts what it is asked, for metrics from the first day."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tastemaker.rewards.comparison import Comparison
from tastemaker.rewards.reward import NamedReward, Scores, adapt


class Recorded:
    """Passes calls on, graph and all, and counts seconds and pictures asked: a call that is made once more because it
    raised was asked for twice.

    Safe to call from the scoring thread and the main thread.
    """

    def __init__(self, reward: Any) -> None:
        self.reward: NamedReward = adapt(reward)
        self.queries = 0
        self.seconds = 0.0
        self.seen: Callable[[Tensor, Sequence[str]], None] | None = None  # is shown all pictures before they are judged
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The reward's own name."""
        return self.reward.name

    @property
    def device(self) -> torch.device | None:
        """Where the reward's network lives, when it says so."""
        return self.reward.device

    @property
    def network(self) -> Any:
        """The reward's network, when it shows one."""
        return self.reward.network

    @property
    def oracle(self) -> bool:
        """Whether the reward calls itself the truth."""
        return self.reward.oracle

    @property
    def comparison(self) -> Comparison | None:
        """How pictures are weighed against the others of their iteration, when the reward says so."""
        return self.reward.comparison

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        if self.seen is not None:
            self.seen(images, prompts)
        began = time.perf_counter()
        try:
            return self.reward(images, prompts)
        finally:
            with self._lock:
                self.queries += len(images)
                self.seconds += time.perf_counter() - began

"""The controls of the learning protocol: a run's reward with the information removed, made by a wrapper around it."""

from __future__ import annotations

from typing import Any

CHECKED = 4  # pictures of the reward's contract check, which would find fault with a permuted reward


class Permuted:
    """The control: a reward whose numbers go to other pictures of the same scored batch. It knows nothing.

    Call k of a run is permuted by the key (seed, "control", k): calls come in order, because one thread scores.
    """

    def __init__(self, reward: Any, seed: int) -> None:
        self.name, self.reward, self.seed, self.calls = f"permuted_{reward.name}", reward, seed, 0

    def __call__(self, images: Any, prompts: Any) -> Any:
        from tastemaker.process.noise import Key

        value = self.reward(images, prompts).value
        if len(images) <= CHECKED:
            return value
        self.calls += 1
        return value[Key(self.seed, "control").permutation(len(images), "rewards", self.calls)]


class Signed:
    """The control of algorithms that differentiate the reward, whose mean over a batch no permutation changes: the
    gradients of half of a call's pictures, drawn by the key, are turned around; the scores stay.

    Half, and not a coin for each: pictures' gradients have much in common, and with more of one sign than of the other
    a step would go along it or against it. Of an odd number the last one's sign is that of the call's number.
    """

    def __init__(self, reward: Any, seed: int) -> None:
        self.name, self.reward, self.seed, self.calls = f"signed_{reward.name}", reward, seed, 0

    def __call__(self, images: Any, prompts: Any) -> Any:
        import torch

        from tastemaker.process.noise import Key

        value = self.reward(images, prompts).value
        self.calls += 1
        places = torch.as_tensor(Key(self.seed, "control").permutation(len(value), "signs", self.calls))
        signs = 1 - 2 * ((places + self.calls) % 2)
        return value.detach() + signs.to(value) * (value - value.detach())

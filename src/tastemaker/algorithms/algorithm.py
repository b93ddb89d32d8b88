"""`Algorithm`: a frozen dataclass of hyper-parameters that yields optimizer steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, Self

from tastemaker.iteration import Iteration, State, Update
from tastemaker.process.samplers import Sampler
from tastemaker.process.schedule import Schedule
from tastemaker.prompts.prompts import Prompts


class Calls(NamedTuple):
    """Network calls, guidance aside: without a graph to draw a picture, and with one for each of its items."""

    drawn: float  # on average
    learned: float  # on average
    depth: int  # with a graph, at most: so many calls' activations are held at once
    queries: int = 1  # how often a picture is judged
    taken: float = 1.0  # share of the pictures' items that are learned from; the others are left out


@dataclass(frozen=True)
class Algorithm(ABC):
    """What every paper states. Its values are the defaults; a model's, a recipe's and a user's lie over them."""

    citation: ClassVar[str]  # of the paper, or of several with an empty line between, in BibTeX
    sets: ClassVar[tuple[str, ...]] = ("base",)  # weight sets that `Policy.using` must know
    differentiates: ClassVar[bool] = False  # whether the reward is asked for its gradient, too
    given: ClassVar[frozenset[str]] = frozenset()  # shadowed by each object: the fields its maker passed

    images: int = 256  # pictures an iteration, over all devices
    per_prompt: int = 1  # pictures of one prompt; together they are a group
    updates: int = 4  # optimizer steps an iteration (and inner epoch), each on images / updates pictures
    steps: int = 50  # steps of the denoising chain
    guidance: float = 5.0  # classifier-free guidance, in sampling and in the loss; 1 switches it off
    iterations: int = 100  # rounds of drawing, scoring and learning
    learning_rate: float = 3e-4  # of AdamW, for a LoRA; without one the default is 1e-5
    weight_decay: float = 1e-4  # of AdamW

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        made = object.__new__(cls)
        names = [field.name for field in fields(cls) if field.init]
        object.__setattr__(made, "given", frozenset(names[: len(args)]) | frozenset(settings))
        return made

    def __post_init__(self) -> None:
        for name in ("images", "per_prompt", "updates", "steps", "iterations"):
            at_least(self, name, 1)
        for name in ("guidance", "weight_decay"):
            at_least(self, name, 0)
        positive(self, "learning_rate")

    @classmethod
    def settled(cls, stated: Mapping[str, Any]) -> frozenset[str]:
        """Names of fields that follow from values that somebody stated, so that a model has no say in them."""
        return frozenset()

    def begin(self) -> State:
        """The state before the first iteration: plain data, JSON and tensors."""
        return {}

    def check_reward(self, reward: Any) -> None:
        """Refuses a reward that settings of this algorithm would have no effect on."""
        return

    def check_prompts(self, prompts: Prompts) -> None:
        """Refuses prompts, some of the source's, that have not with them what is learned from."""
        return

    @abstractmethod
    def items(self, schedule: Schedule) -> int:
        """What one picture gives the loss in one epoch; a ValueError where the settings leave nothing to learn from."""

    def calls(self, schedule: Sized) -> Calls:
        """The network calls behind one picture of chains with so many steps.

        Here: those of algorithms which draw a whole chain without a graph, and learn from its steps one by one.
        """
        return Calls(drawn=len(schedule), learned=1, depth=1)

    @property
    def epochs(self) -> int:
        """How often the same pictures are learned from; more than once where an algorithm says so."""
        return 1

    @property
    def learning_guidance(self) -> float:
        """Classifier-free guidance of the predictions that are learned from."""
        return self.guidance

    @property
    @abstractmethod
    def training_sampler(self) -> Sampler:
        """How training pictures are drawn; an evaluation may ask for it."""

    @abstractmethod
    def iteration(self, it: Iteration) -> Iterator[Update]:
        """The optimizer steps of one iteration, one after the other."""


def at_least(algorithm: Algorithm, name: str, least: float) -> None:
    """Refuses a field below `least`."""
    value = getattr(algorithm, name)
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}.")


def positive(algorithm: Algorithm, *names: str) -> None:
    """Refuses fields that are not above 0."""
    for name in names:
        if not getattr(algorithm, name) > 0:
            raise ValueError(f"{name} is {getattr(algorithm, name)}; it must be positive.")


def share(algorithm: Algorithm, name: str) -> None:
    """Refuses a field that is no share of anything."""
    if not 0 < getattr(algorithm, name) <= 1:
        raise ValueError(f"{name} is {getattr(algorithm, name)}; it must be above 0 and at most 1.")


def one_of(algorithm: Algorithm, name: str, words: Sequence[str]) -> None:
    """Refuses a word that is none of these."""
    if getattr(algorithm, name) not in words:
        raise ValueError(f"{name} is {getattr(algorithm, name)!r}; it is one of {', '.join(words)}.")

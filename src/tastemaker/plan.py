"""Batch arithmetic, settled before any work starts: what one iteration makes, in which calls, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

ROW = 64  # groups that inner epochs permute as one, at most


@dataclass(frozen=True)
class Plan:
    """How many of everything; counts are over all devices unless they say otherwise.

    images, per_prompt, updates, inner_epochs, steps and guidance are the algorithm's; micro_batch (items in one
    training call), sampling_batch (pictures in one sampling call) and devices are the machine's.
    items: what one picture gives the loss in one epoch, for ratio algorithms its random steps.
    guiding_rows: network rows behind one guided prediction; the model says how many.
    drawn, learned: network calls, guidance aside, of a picture without a graph (all steps where nothing else is said),
    and of an item with one; on average. queries: how often a picture is judged.
    """

    iterations: int
    images: int
    per_prompt: int
    updates: int
    inner_epochs: int
    steps: int
    guidance: float
    items: int
    micro_batch: int
    sampling_batch: int
    devices: int = 1
    learning_guidance: float | None = None
    guiding_rows: int = 2
    drawn: float | None = None
    learned: float = 1.0
    queries: int = 1
    evaluate_every: int = 0
    save_every: int = 10

    def __post_init__(self) -> None:
        for name in ("iterations", "images", "per_prompt", "updates", "inner_epochs", "steps", "items"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.images % self.per_prompt:
            raise ValueError(
                f"{self.images} images do not make groups of {self.per_prompt} (per_prompt). {self._nearest()}"
            )
        if self.groups % self.updates:
            whole = f"{self.updates} updates of whole groups of {self.per_prompt} = {self.unit}"
            raise ValueError(f"{self.images} images do not make equal updates: {whole}. {self._nearest()}")
        if self.groups // self.updates < self.devices:
            raise ValueError(
                f"{self.groups // self.updates} groups an update cannot be shared by {self.devices} devices: "
                f"use images={self.unit * self.devices} or more, or fewer updates."
            )

    @property
    def unit(self) -> int:
        """Images must be a multiple of this."""
        return self.updates * self.per_prompt

    @property
    def groups(self) -> int:
        """Prompts an iteration; each gives per_prompt images."""
        return self.images // self.per_prompt

    @property
    def row(self) -> int:
        """Groups that stay together when inner epochs are permuted: devices that divide it have equal shares."""
        return gcd(self.groups // self.updates, ROW)

    @property
    def dealt(self) -> int:
        """Groups that are dealt to the devices together: a number of devices that divides it has equal shares."""
        return self.row if self.inner_epochs > 1 else self.groups // self.updates

    @property
    def effective_batch(self) -> int:
        """Images behind one optimizer step."""
        return self.images // self.updates

    @property
    def guided(self) -> int:
        """Network rows behind one prediction: 2 with classifier-free guidance, 1 without."""
        return self.guiding_rows if self.guidance > 1 else 1

    @property
    def learning_guided(self) -> int:
        """The same where it is learned from."""
        guidance = self.guidance if self.learning_guidance is None else self.learning_guidance
        return self.guiding_rows if guidance > 1 else 1

    @property
    def sampling_rows(self) -> int:
        """Network rows forward, to draw one iteration's pictures."""
        return round(self.images * (self.steps if self.drawn is None else self.drawn) * self.guided)

    @property
    def learning_rows(self) -> int:
        """Network rows forward and backward, to learn from one iteration."""
        return round(self.images * self.items * self.learned * self.inner_epochs * self.learning_guided)

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.iterations * self.updates * self.inner_epochs

    @property
    def reward_queries(self) -> int:
        """Pictures that the reward judges in the whole run, evaluations aside."""
        return self.images * self.queries * self.iterations

    def halvings(self) -> Iterator[int]:
        """Items of one training call: micro_batch, then half of it each time memory ran out, down to 1."""
        rows = self.micro_batch
        while rows >= 1:
            yield rows
            rows //= 2

    def evaluates(self, iteration: int) -> bool:
        """Whether the model is judged before this iteration; before the first always."""
        return iteration == 0 or (self.evaluate_every > 0 and iteration % self.evaluate_every == 0)

    def saves(self, iteration: int) -> bool:
        """Whether a checkpoint is written after this iteration, counted from 0."""
        return self.save_every > 0 and (iteration + 1) % self.save_every == 0

    def table(self) -> list[tuple[str, str, str]]:
        """Rows (quantity, number, how it comes about) for the terminal."""
        drawn = f" x {self.guided} for guidance" if self.guided > 1 else ""
        learned = f" x {self.learning_guided} for guidance" if self.learning_guided > 1 else ""
        each, behind = self.images // self.devices, self.effective_batch
        call = self.micro_batch * self.learning_guided
        epochs = self._epochs()
        calls = f" x {self.learned:.4g} calls" if self.learned != 1 else ""
        steps = self.steps if self.drawn is None else self.drawn
        return [
            ("images an iteration", f"{self.images}", f"{self.groups} prompts x {self.per_prompt}"),
            ("images a device", f"{each}", f"{self.devices} device{'s' * (self.devices > 1)}, {self._uneven()}"),
            ("updates an iteration", f"{self.updates * self.inner_epochs}", self._updates()),
            ("items an update", f"{behind * self.items}", f"{behind} images x {self.items}"),
            ("items a training call", f"{self.micro_batch}", f"micro_batch; {call} rows"),
            ("images a sampling call", f"{self.sampling_batch}", f"{self.sampling_batch * self.guided} rows"),
            ("rows forward to sample", f"{self.sampling_rows:,}", f"{self.images} x {steps:.4g} steps{drawn}"),
            (
                "rows to learn",
                f"{self.learning_rows:,}",
                f"{self.images} x {self.items} items{calls}{epochs}{learned}, both ways",
            ),
            ("reward queries in all", f"{self.reward_queries:,}", f"{self.iterations} iterations"),
            (
                "network rows in all",
                f"{self.iterations * (self.sampling_rows + self.learning_rows):,} forward",
                f"{self.iterations * self.learning_rows:,} of them backward too",
            ),
        ]

    def _updates(self) -> str:
        return f"{self.updates} updates of {self.effective_batch} images{self._epochs()}"

    def _epochs(self) -> str:
        return f" x {self.inner_epochs} inner epochs" if self.inner_epochs > 1 else ""

    def _uneven(self) -> str:
        return "equal shares" if self.dealt % self.devices == 0 else "UNEQUAL shares"

    def _nearest(self) -> str:
        below, above = self.images // self.unit * self.unit, -(-self.images // self.unit) * self.unit
        return f"Nearest: {f'{below} or ' if below else ''}{above} images."

"""What a run left behind, as `tm.train` returns it and `Run.open` finds it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tastemaker import devices
from tastemaker.exports.diffusers import LORA, PIPELINE
from tastemaker.folder import CONFIG
from tastemaker.results import EVALUATIONS
from tastemaker.rewards import named
from tastemaker.training.lines import read_lines
from tastemaker.training.record import METRICS

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from tastemaker.comparison import Score
    from tastemaker.prompts.prompts import PromptSource
    from tastemaker.rewards.reward import NamedReward


@dataclass(frozen=True)
class Run:
    """A run's folder and what can be asked of it."""

    folder: Path
    done: bool  # False when it was asked to stop; the same command with resume_from_checkpoint goes on
    weights: Path | None  # what `load_lora_weights` or `from_pretrained` wants; None until the run has ended
    rewards: tuple[NamedReward, ...] = field(default=(), repr=False)  # its judges, where they were Python objects
    judged: PromptSource | None = field(default=None, repr=False)  # the prompts of its evaluations, likewise

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """A run from its folder. Errors: ValueError when no run was made there."""
        home = Path(folder).expanduser()
        if not (home / CONFIG).is_file():
            raise ValueError(f"{home} holds no {CONFIG}: name a folder that `tastemaker train` left.")
        run = cls(home, False, None)
        judged, settings = run.evaluations(), run.settings
        weights = home / (PIPELINE if settings.get("lora") is None else LORA)
        ended = bool(judged) and judged[-1]["iteration"] >= settings["algorithm"]["iterations"] and weights.exists()
        return cls(home, True, weights) if ended else run

    @property
    def settings(self) -> dict[str, Any]:
        """config.yaml: every setting of the run."""
        found: dict[str, Any] = yaml.safe_load((self.folder / CONFIG).read_text(encoding="utf-8"))
        return found

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, one an iteration: reward, updates, seconds, queries, network rows."""
        return read_lines(self.folder / METRICS)

    def evaluations(self) -> list[dict[str, Any]]:
        """The rows of evaluations.jsonl; the first is of the base model."""
        return read_lines(self.folder / EVALUATIONS)

    def evaluate(
        self,
        rewards: Sequence[Any] | None = None,
        *,
        evaluation: Mapping[str, Any] | None = None,
        mix: float | None = None,
        anneal: str | None = None,
        device: str = "auto",
    ) -> dict[str, Score]:
        """Judge the tuned model against its base anew, on the same prompts and noise: its scores by name.

        A score has mean, low, high; change, change_low, change_high (paired, 95 %); deviations, wins.

        rewards: names, functions or objects; the run's own and its held-out rewards where none are given.
        evaluation: settings over those of the run's own evaluations, such as `{"count": 256, "prompts": [...]}`.
        mix: judges base + mix (tuned - base) in place of the tuned model; of a LoRA.
        anneal: judges the model that is drawn with by this rule along the chain (`linear`, `power:2`, `step:0.6`).
        """
        from tastemaker.judging import compared
        from tastemaker.rewards.combine import apart

        self._need_weights()
        judges = apart(self._judges() if rewards is None else [named(one, key="rewards") for one in rewards])
        if mix is not None and anneal is not None:
            raise ValueError("mix and anneal are judged one at a time: leave one of them out.")
        flags: dict[str, Any] = {"evaluation": dict(evaluation or {}), "device": device}
        flags |= {"mix": str(mix)} if mix is not None else {"anneal": anneal} if anneal is not None else {}
        found = compared([str(self.folder)], flags, judges=judges, prompts=self.judged)
        return found.rows[-1].scores

    def pipeline(self, device: str = "auto") -> DiffusionPipeline:
        """A plain diffusers pipeline with the tuned weights, e.g. `run.pipeline()(["squirrel", "crab"]).images`.

        The base model is loaded as its owner publishes it, with its own sampler and, where it has one, its safety
        checker. On an accelerator it is of the run's mixed precision, on a CPU fp32.
        """
        from tastemaker.exports.plain import load_plain

        self._need_weights()
        assert self.weights is not None
        return load_plain(self.settings, self.weights, devices.pick(device))

    def _judges(self) -> Sequence[NamedReward]:
        """The run's own; from a folder they are found by name."""
        settings = self.settings
        first, others = settings["reward"], settings["held_out_rewards"]
        names = [first, *(name for name in others if name != first)]
        try:
            return self.rewards or [named(name, key="reward") for name in names]
        except ValueError as error:
            raise ValueError(f"{error} An object of a Python program is given again with rewards=[...].") from error

    def _need_weights(self) -> None:
        if self.weights is None:
            raise ValueError(
                f"the run in {self.folder} has not ended, so it has no tuned weights yet: go on with "
                "resume_from_checkpoint='latest'."
            )

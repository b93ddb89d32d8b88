"""A weighted sum of rewards, which is a reward.

    value = sum over terms of weight * g(score)
    g(s) = s,   with `clip: [low, high]` min(max(s, low), high),   with `at_least: b` min(s - b, 0)

A term counts by its weight and by how much its own scores vary, unless all are standardised. What depends on other
pictures, `standardise` and `floor`, is no part of this value, for a call sees only some: it is done with all scores of
an iteration before they are learned from (`tastemaker.rewards.comparison`).
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import named
from tastemaker.rewards.comparison import Comparison, Rule
from tastemaker.rewards.reward import NamedReward, Scores
from tastemaker.rewards.terms import OPTIONS, reward_of, whole


@dataclass(frozen=True, eq=False)
class Sum:
    """A weighted sum: `Sum({"jpeg_proxy": 0.3, judge: 1})`, `Sum([(judge, 1), ({"name": "colour"}, -2)])`, or a text.

    A picture that a term has no score for has none. The terms' own scores are parts, by their names, and a term's parts
    are `name.part`; `name.counted` is g(score), and `name.holds` is 1 where `at_least` and `floor` hold, else 0.
    Graphs are kept, so the sum has a gradient where all its terms have one.
    Errors: ValueError for what is no reward, or no weight.
    """

    sum: Any  # as it was written; from then on dicts of name, weight and settings, which a recipe may hold
    standardise: str | None = None  # every term's scores within its `group` or the `iteration`; none leaves them alone
    key: InitVar[str] = "Sum"  # what errors call it
    terms: tuple[NamedReward, ...] = field(init=False, repr=False)

    def __post_init__(self, key: str) -> None:
        found, terms = self._read(key), []
        for k, one in enumerate(found["sum"]):
            spec = reward_of(one)
            at = f"{key}.sum[{k}]" if isinstance(spec, dict) else key
            term = named(spec, key=at)
            if term.comparison is not None:
                raise ValueError(f"{at}: `standardise` and `floor` are of the outermost sum alone.")
            terms.append(term)
        object.__setattr__(self, "sum", tuple(found["sum"]))
        object.__setattr__(self, "standardise", found.get("standardise"))
        object.__setattr__(self, "terms", tuple(apart(terms)))

    def _read(self, key: str) -> dict[str, Any]:
        if self.standardise is None:
            return whole(self.sum, key=key)
        return whole({"sum": whole(self.sum, key=key)["sum"], "standardise": self.standardise}, key=key)

    @property
    def weights(self) -> tuple[float, ...]:
        """One a term."""
        return tuple(one["weight"] for one in self.sum)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What is done with each term's score."""
        return tuple(Rule(**{name: one[name] for name in OPTIONS if name in one}) for one in self.sum)

    @property
    def comparison(self) -> Comparison | None:
        """What is done with the scores of an iteration together, where anything is."""
        if self.standardise is None and all(rule.floor is None for rule in self.rules):
            return None
        return Comparison(tuple(term.name for term in self.terms), self.rules, self.standardise)

    @property
    def name(self) -> str:
        """The terms' names between the signs of their weights; the weight too where there is but one term."""
        names = [re.sub(r"[^\w.+-]+", "-", term.name) for term in self.terms]
        if len(names) == 1:
            return {1.0: "", -1.0: "-"}.get(self.weights[0], f"{self.weights[0]:g}") + names[0]
        signed = ("-" if weight < 0 else "+" for weight in self.weights)
        return "".join(sign + name for sign, name in zip(signed, names, strict=True)).removeprefix("+")

    @property
    def device(self) -> torch.device | None:
        """That of the first term that says so."""
        return next((term.device for term in self.terms if term.device is not None), None)

    @property
    def oracle(self) -> bool:
        """Whether a term is one."""
        return any(term.oracle for term in self.terms)

    @property
    def network(self) -> torch.nn.Module | None:
        """The terms' networks together, where there are any."""
        found = [term.network for term in self.terms if term.network is not None]
        return torch.nn.ModuleList(found) if found else None

    def __call__(self, images: Tensor, prompts: Prompts) -> Scores:
        value: Tensor | None = None
        parts: dict[str, Tensor] = {}
        said: list[list[str]] = [[] for _ in prompts]
        for term, rule in zip(self.terms, self.rules, strict=True):
            scores = term(images, prompts)
            score = scores.value.to(images.device)
            own = rule.weight * rule.counted(score)
            value = own if value is None else value + own
            parts[term.name] = score.detach()
            parts |= {f"{term.name}.{part}": numbers.detach() for part, numbers in scores.parts.items()}
            parts |= {f"{term.name}.{part}": numbers for part, numbers in rule.parts(score.detach()).items()}
            for lines, note in zip(said, scores.notes, strict=bool(scores.notes)):
                lines += [] if note is None else [f"{term.name}: {note}"]
        assert value is not None
        return Scores(value, parts, _notes(said))


def apart(rewards: Iterable[NamedReward]) -> list[NamedReward]:
    """The rewards, with those of one name counted: `colour`, `colour_2`."""
    found, seen = list[NamedReward](), Counter[str]()
    for one in rewards:
        seen[one.name] += 1
        found.append(one if seen[one.name] == 1 else replace(one, name=f"{one.name}_{seen[one.name]}"))
    return found


def _notes(said: Sequence[Sequence[str]]) -> tuple[str | None, ...]:
    if not any(said):
        return ()
    return tuple("\n".join(lines) or None for lines in said)

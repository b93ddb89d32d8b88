"""A weighted sum of rewards, which is a reward.

    value = sum over terms of weight * score

Nothing is normalised: a term counts by its weight and by how much its own scores vary.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

import torch
from torch import Tensor

from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import named
from tastemaker.rewards.reward import NamedReward, Scores, adapt
from tastemaker.rewards.terms import read


@dataclass(frozen=True, eq=False)
class Sum:
    """A weighted sum: `Sum({"jpeg_proxy": 0.3, judge: 1})`, `Sum([(judge, 1), ({"name": "colour"}, -2)])`, or a text.

    A picture that a term has no score for has none. The terms' own scores are parts, by their names, and a term's parts
    are `name.part`. Graphs are kept, so the sum has a gradient where all its terms have one.
    Errors: ValueError for what is no reward, or no weight.
    """

    sum: Any  # as it was written; from then on dicts of name, weight and settings, which a recipe may hold
    key: InitVar[str] = "Sum"  # what errors call it
    terms: tuple[NamedReward, ...] = field(init=False, repr=False)

    def __post_init__(self, key: str) -> None:
        found, terms, seen = read(self.sum, key=key), [], Counter[str]()
        for k, one in enumerate(found):
            spec = {name: value for name, value in one.items() if name != "weight"}
            has_settings = len(spec) > 1
            term = named(spec if has_settings else spec["name"], key=f"{key}.sum[{k}]" if has_settings else key)
            seen[term.name] += 1
            terms.append(adapt(term, f"{term.name}_{seen[term.name]}") if seen[term.name] > 1 else term)
        object.__setattr__(self, "sum", tuple(found))
        object.__setattr__(self, "terms", tuple(terms))

    @property
    def weights(self) -> tuple[float, ...]:
        """One a term."""
        return tuple(one["weight"] for one in self.sum)

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
    def network(self) -> torch.nn.Module | None:
        """The terms' networks together, where there are any."""
        found = [term.network for term in self.terms if term.network is not None]
        return torch.nn.ModuleList(found) if found else None

    def __call__(self, images: Tensor, prompts: Prompts) -> Scores:
        value: Tensor | None = None
        parts: dict[str, Tensor] = {}
        said: list[list[str]] = [[] for _ in prompts]
        for term, weight in zip(self.terms, self.weights, strict=True):
            scores = term(images, prompts)
            own = weight * scores.value.to(images.device)
            value = own if value is None else value + own
            parts[term.name] = scores.value.detach()
            parts |= {f"{term.name}.{part}": numbers.detach() for part, numbers in scores.parts.items()}
            for lines, note in zip(said, scores.notes, strict=bool(scores.notes)):
                lines += [] if note is None else [f"{term.name}: {note}"]
        assert value is not None
        return Scores(value, parts, _notes(said))


def _notes(said: Sequence[Sequence[str]]) -> tuple[str | None, ...]:
    if not any(said):
        return ()
    return tuple("\n".join(lines) or None for lines in said)

"""What a reward is: one number a picture, whatever function or object it comes from.

A user's function takes `(images, prompts)` or `(images, prompts, metadata)` and returns `[B]`, alone or with an info
dict. `adapt` gives all of them one form, `check` tries the form once before work starts, `score` is the call that
never fails: a picture without a valid score is NaN, and so leaves the batch; it is never a 0.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import TABLE as TABLE
from tastemaker.rewards.comparison import Comparison


class Scores(NamedTuple):
    """One number a picture, and what it is made of.

    `value` [B] is NaN where a picture has no score; `parts` are named [B]; `notes`, when given, hold one text or None
    a picture: a judge's words, or why there is no score.
    """

    value: Tensor
    parts: dict[str, Tensor] = {}
    notes: tuple[str | None, ...] = ()


class ContractError(ValueError):
    """A reward, or its answer, is not of the form that is asked for; the message says which and what to do."""


class Reward(Protocol):
    """Judges pictures [B,3,H,W] in [0,1] on the policy's device; a picture's score depends on it and its row alone."""

    def __call__(self, images: Tensor, prompts: Prompts) -> Tensor | Scores: ...


@dataclass(frozen=True)
class NamedReward:
    """Any reward in the one form: `(images, prompts) -> Scores`, value [B] in fp32 (fp64 stays), with its graph."""

    name: str
    function: Callable[..., Any]
    takes_metadata: bool = False

    @property
    def device(self) -> torch.device | None:
        """Where the reward's network lives, when it says so; `auto` is where it went with the pictures."""
        device = getattr(self.function, "device", None)
        if device == "auto" and self.network is not None:
            device = next(self.network.parameters()).device
        return None if device is None else torch.device(device)

    @property
    def network(self) -> Any:
        """The reward's network, a torch module, when it shows one."""
        return getattr(self.function, "network", None)

    @property
    def comparison(self) -> Comparison | None:
        """How pictures are weighed against the others of their iteration, when the reward says so."""
        return getattr(self.function, "comparison", None)

    @property
    def oracle(self) -> bool:
        """Whether it calls itself the truth, `oracle = True`: alarms are judged by such a reward and never read it."""
        return bool(getattr(getattr(self.function, "func", self.function), "oracle", False))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        rows = prompts if isinstance(prompts, Prompts) else Prompts.of(prompts)
        if len(rows) != len(images):
            raise ContractError(f"reward `{self.name}` was given {len(images)} pictures and {len(rows)} prompts.")
        if self.takes_metadata:
            return _scores(self.function(images, rows.texts, rows.metadata), len(images), self.name)
        return _scores(self.function(images, rows), len(images), self.name)


def adapt(reward: Any, name: str | None = None) -> NamedReward:
    """One form for a function of two or three arguments or an object that is called like one.

    The third argument gets the metadata when it has no default or is called `metadata`. A function of two arguments
    gets `Prompts`, one of three gets a tuple of texts and a tuple of metadata, as the seed systems' rewards do.
    """
    if isinstance(reward, NamedReward):
        return reward if name is None else replace(reward, name=name)
    if inspect.isclass(reward):
        reward = reward()
    name = name or _name(reward)
    if not callable(reward):
        raise ContractError(
            f"reward: found a {type(reward).__name__}. Give a function (images, prompts) -> [B], an object that is "
            "called like one, `file.py:function` or one of " + ", ".join(TABLE) + "."
        )
    return NamedReward(name, reward, _takes_metadata(reward, name))


def load_networks(rewards: Sequence[NamedReward]) -> None:
    """Loads the networks of rewards that show one, now and not at the first picture. Errors: what loading raises."""
    for reward in rewards:
        _ = reward.network


def check(reward: Any, images: Tensor, prompts: Prompts) -> tuple[str, ...]:
    """Tries a reward on some pictures before training, so that a mistake costs seconds and not a run; its parts' names.

    Asks for one finite number a picture, the same whatever the order of the pictures and whether a picture comes alone;
    a reward that gives other numbers at a second call with the same pictures is random, and only its form is checked.
    Calls the reward three times, a fourth time in doubt. Errors: ValueError saying what was found and what to do.
    """
    judge, before = adapt(reward), images.detach().clone()
    if not before.isfinite().all():
        raise ValueError("the pictures to try the reward on hold NaN: the model makes them, not the reward.")
    with torch.no_grad():
        scores = _try(judge, images, prompts)
        value, names = _finite(judge, scores), tuple(scores.parts)
        if not torch.equal(before, images):
            raise ContractError(
                f"reward `{judge.name}` changes the pictures it is given, which are used again after it. "
                "Let it work on a copy: `images * 255` instead of `images *= 255`."
            )
        if len(images) < 2:
            return names
        backwards = list(range(len(images)))[::-1]
        order = _apart(value, _try(judge, images.flip(0), prompts.take(backwards)).value.flip(0))
        alone = _try(judge, images[:1], prompts.take([0])).value
        tolerance, company = _tolerance(value), _apart(value[:1], alone)
        if max(order, company) <= tolerance or _apart(value, _try(judge, images, prompts).value) > tolerance:
            return names
    if order > tolerance:
        raise ContractError(
            f"reward `{judge.name}` gave other scores when the same pictures came in another order (by up to "
            f"{order:.3g}). Score number k must belong to picture k and prompt k: look for a sort, a set, or threads "
            "that finish in any order."
        )
    raise ContractError(
        f"reward `{judge.name}` gave a picture {float(alone[0]):.4g} alone and {float(value[0]):.4g} among "
        f"{len(images)}. A score must not depend on the other pictures of a call, because calls are cut to fit the "
        "machine: leave ranking and whitening to the algorithm."
    )


def score(reward: Any, images: Tensor, prompts: Prompts) -> Scores:
    """Scores without a graph, on the CPU. NaN where the score is not finite; all NaN, with the traceback in `notes`,
    where the reward raised twice. Nothing that can be retried or masked stops a run here; the caller counts the NaN."""
    judge = adapt(reward)
    with torch.no_grad():
        try:
            value, parts, notes = _asked(judge, images, prompts)
        except Exception:
            return Scores(torch.full((len(images),), torch.nan), {}, (traceback.format_exc(),) * len(images))
        value = value.detach().cpu()
        value = torch.where(value.isfinite(), value, torch.nan)
        return Scores(value, {part: numbers.detach().cpu() for part, numbers in parts.items()}, notes)


def _asked(judge: NamedReward, images: Tensor, prompts: Prompts) -> Scores:
    """A judge's answer. One that raises is asked once more, for a remote one may have hiccups, and the notes say so."""
    try:
        return judge(images, prompts)
    except Exception as error:
        scores = judge(images, prompts)
        said = f"asked twice: the first call raised {type(error).__name__}: {error}"
        own = scores.notes or (None,) * len(images)
        return scores._replace(notes=tuple(said if note is None else f"{said}\n{note}" for note in own))


def _name(reward: Any) -> str:
    for name in (getattr(reward, "name", None), getattr(reward, "__name__", None)):
        if isinstance(name, str) and name:
            return "reward" if name == "<lambda>" else name
    inner = getattr(reward, "func", None)  # functools.partial
    return _name(inner) if callable(inner) else type(reward).__name__


def _takes_metadata(reward: Callable[..., Any], name: str) -> bool:
    try:
        parameters = list(inspect.signature(reward).parameters.values())
    except ValueError:  # written in C: it does not say
        return False
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in places if p.default is p.empty]
    rest = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    words = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if len(needed) > 3 or words or (len(places) < 2 and not rest):
        found = ", ".join(p.name for p in parameters) or "nothing"
        factory = " If it makes the reward, give what it returns." if not parameters else ""
        raise ContractError(
            f"reward `{name}` takes ({found}); it is called with (images, prompts) or (images, prompts, metadata)."
            + factory
        )
    return len(needed) == 3 or (len(places) > 2 and places[2].name in ("metadata", "prompt_metadata"))


def _scores(answer: Any, n: int, name: str) -> Scores:
    """What a reward returned, as `Scores` with value [n]; ValueError where it is anything else."""
    parts: Mapping[Any, Any] = {}
    notes: tuple[str | None, ...] = ()
    if isinstance(answer, Scores):
        answer, parts, notes = answer
    elif isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping):
        # Only what is numbers, one a picture, can be averaged and logged; the rest of an info dict is left aside.
        answer, parts = answer[0], {k: v for k, v in answer[1].items() if _is_row(v, n)}
    if len(notes) not in (0, n):
        raise ContractError(f"reward `{name}` gave {len(notes)} notes for {n} pictures: give one (or None) a picture.")
    value = _row(answer, n, f"reward `{name}` returned")
    return Scores(
        value, {str(k): _row(v, n, f"part `{k}` of reward `{name}` is") for k, v in parts.items()}, tuple(notes)
    )


def _row(found: Any, n: int, what: str) -> Tensor:
    """Numbers as a tensor [n], fp32 (fp64 tensors stay), with their graph."""
    need = f"needed is one number a picture, a tensor [{n}]"
    if found is None:
        raise ContractError(f"{what} None; {need}. Is a `return` missing?")
    if isinstance(found, Mapping):
        keys = ", ".join(map(str, list(found)[:5]))
        raise ContractError(
            f"{what} a dict with {keys or 'no keys'}; {need}. Return the number to maximise, or a pair (numbers, dict)."
        )
    row = _tensor(found)
    if row is None or row.is_complex():
        kind = type(found).__name__ if row is None else str(row.dtype)
        raise ContractError(f"{what} {found!r:.60} ({kind}); {need}.")
    if row.ndim == 0:
        raise ContractError(
            f"{what} a single number for {n} picture(s); {need}. Take out the `.mean()`, `.sum()` or `.squeeze()`."
        )
    if row.ndim == 2 and row.shape == (n, 1):
        raise ContractError(f"{what} the shape [{n}, 1]; {need}. Finish with `.squeeze(1)`.")
    if row.shape != (n,):
        raise ContractError(f"{what} the shape {list(row.shape)} for {n} picture(s); {need}.")
    return row if row.dtype is torch.float64 and isinstance(found, Tensor) else row.float()


def _tensor(found: Any) -> Tensor | None:
    if isinstance(found, Tensor):
        return found
    try:
        if isinstance(found, Sequence) and not isinstance(found, str) and any(isinstance(v, Tensor) for v in found):
            return torch.stack([torch.as_tensor(v) for v in found])
        if isinstance(found, Sequence) and not isinstance(found, str):  # None is how a service says "no score"
            found = [float("nan") if v is None else v for v in found]
        array = np.asarray(found)
        return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    except (TypeError, ValueError, RuntimeError):
        return None  # texts, objects, rows of unequal length


def _is_row(found: Any, n: int) -> bool:
    row = None if found is None or isinstance(found, (str, Mapping)) else _tensor(found)
    return row is not None and row.shape == (n,) and not row.is_complex()


def _try(judge: NamedReward, images: Tensor, prompts: Prompts) -> Scores:
    """A call whose failure is told in one sentence."""
    try:
        return judge(images, prompts)
    except ContractError:
        raise
    except Exception as error:
        raise ContractError(
            f"reward `{judge.name}` failed on pictures {list(images.shape)} in [0, 1]: {type(error).__name__}: {error}"
        ) from error


def _finite(judge: NamedReward, scores: Scores) -> Tensor:
    """The scores' value, where it is finite, or NaN for some pictures, which are left out; not for all of them."""
    value = scores.value
    if value.isinf().any() or not value.isfinite().any():
        rows = (~value.isfinite()).nonzero().flatten().tolist()
        raise ContractError(
            f"reward `{judge.name}` returned {value[rows[0]].item()} for {len(rows)} of {len(value)} pictures (rows "
            f"{rows[:5]}): scores are finite numbers. NaN leaves a picture out, but not all of them."
            + (f" The first note says: {scores.notes[rows[0]]}" if scores.notes and scores.notes[rows[0]] else "")
        )
    return value


def _apart(a: Tensor, b: Tensor) -> float:
    """Largest difference of two rows of scores; a score that only one of them has counts as infinite."""
    both = a.isfinite() & b.isfinite()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    return float((a - b)[both].abs().max()) if both.any() else 0.0


def _tolerance(value: Tensor) -> float:
    """Rounding of a half-precision network is allowed, a tenth of the scores' range too; a wrong order is far above."""
    scores = value[value.isfinite()]
    return float(0.1 * (scores.max() - scores.min()) + 1e-3 * scores.abs().max())

"""`Finding`: what a check says."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"
    NOT_APPLICABLE = "not applicable"


class Finding(NamedTuple):
    """One check's answer: what was measured, what it may be, and what to do where it is more."""

    verdict: Verdict
    measured: str = ""
    bound: str = ""
    advice: str = ""


def idle(why: str) -> Finding:
    """A check that has nothing to look at here."""
    return Finding(Verdict.NOT_APPLICABLE, advice=why)


def graded(value: float, *, good: float, bearable: float) -> Verdict:
    """By its size; what is no number is wrong."""
    if value <= good:
        return Verdict.OK
    return Verdict.WARNING if value <= bearable else Verdict.WRONG

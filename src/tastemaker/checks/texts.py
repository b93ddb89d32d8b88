"""Prompts that the model does not read to their end."""

from __future__ import annotations

from tastemaker.checks.case import Case
from tastemaker.checks.finding import Finding, Verdict
from tastemaker.policy import controls
from tastemaker.process.noise import Key

LOOKED_AT = 256


def prompts(case: Case) -> Finding:
    """How many of the prompts are longer than what the tokenizer keeps of them."""
    drawn = case.source.draw(Key(case.run.seed, 0).random("prompts"), LOOKED_AT)
    texts = list(dict.fromkeys([*drawn, *([case.run.negative_prompt] if case.run.negative_prompt else [])]))
    long, most = controls.too_long(case.policy, texts)
    measured, bound = f"{len(long)} of {len(texts)} cut off", f"{most} tokens each"
    if not long:
        return Finding(Verdict.OK, measured, bound)
    text = long[0] if len(long[0]) <= 60 else f"{long[0][:57]}..."
    return Finding(
        Verdict.WARNING,
        measured,
        bound,
        f"the model reads {most} tokens of a prompt; a reward that reads all of it asks for what the model was not "
        f"told. Shorten them. The first: {text!r}",
    )

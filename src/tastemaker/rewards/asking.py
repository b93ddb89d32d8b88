"""How a vision-language model is asked about a picture, and how its answers become a number: the modes of `vlm`.

    yes          p(yes) / (p(yes) + p(no)) of the answer's first token
    grade        grade / best, from an answer that is JSON of our schema and nothing else
    questions    share of the prompt's questions whose answer stands in the reply
    describe     BERTScore's recall of "The image contains PROMPT" in the reply (`tastemaker.rewards.bertscore`)

What cannot be read is no score, never a 0.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tastemaker.prompts.english import number, plural

MODES = ("describe", "yes", "grade", "questions")
TEXTS = {
    "describe": "Answer concisely: what is going on in this image?",
    "yes": "Does this image show the following? {prompt}\nAnswer with yes or no.",
    "grade": (
        "Grade how well this image shows the following: {prompt}\n"
        "0: nothing of it. {half}: the things are there, but their number, colours, places or doings are wrong. "
        "{best}: all of it, as it is said.\n"
        'Answer with JSON alone: {{"reason": one short sentence, "grade": a whole number from 0 to {best}}}'
    ),
    "questions": "{question} Answer briefly.",
}
REFERENCE = "The image contains {prompt}"
_ALIKE = 20  # of the first token's likeliest, so many are asked for: what most servers give at most
_WORD = re.compile(r"[\w'-]+")


class Unreadable(ValueError):
    """An answer, or a prompt, from which no score follows."""


class Reply(NamedTuple):
    """What a model said."""

    text: str
    first: dict[str, float] = {}  # log-probabilities of tokens that might have begun it, as far as they were given


class Verdict(NamedTuple):
    """What follows from the replies about one picture."""

    score: float
    parts: dict[str, float]
    note: str


def texts(mode: str, template: str, prompt: str, metadata: Any, best: int) -> list[str]:
    """What is asked about a picture, a text for each request. Errors: Unreadable for a prompt without questions."""
    template = template or TEXTS[mode]
    if mode != "questions":
        return [_filled(template, prompt=prompt, best=best, half=best // 2)]
    return [_filled(template, prompt=prompt, question=question) for question, _ in _pairs(metadata)]


def _filled(template: str, **words: Any) -> str:
    """A template with its words; braces of a prompt are not looked into."""
    named = re.compile("{(" + "|".join(words) + ")}|{{|}}")
    return named.sub(lambda found: str(words[found[1]]) if found[1] else found[0][0], template)


def _pairs(metadata: Any) -> list[tuple[str, str]]:
    said = metadata if isinstance(metadata, Mapping) else {}
    questions, answers = said.get("questions", ()), said.get("answers", ())
    good = all(isinstance(one, Sequence) and not isinstance(one, str) for one in (questions, answers))
    if not good or not questions or len(questions) != len(answers):
        raise Unreadable("the prompt's metadata hold no questions with an answer each")
    return [(str(question), str(answer)) for question, answer in zip(questions, answers, strict=True)]


def extras(mode: str, best: int, tokens: int) -> dict[str, Any]:
    """What a request says beside the picture and the question."""
    if mode == "yes":
        return {"max_tokens": 1, "logprobs": True, "top_logprobs": _ALIKE}
    if mode == "grade":
        grade = {"type": "integer", "minimum": 0, "maximum": best}
        schema = {
            "type": "object",
            "properties": {"reason": {"type": "string"}, "grade": grade},
            "required": ["reason", "grade"],
            "additionalProperties": False,
        }
        named = {"name": "grade", "strict": True, "schema": schema}
        return {"max_tokens": 4 * tokens, "response_format": {"type": "json_schema", "json_schema": named}}
    return {"max_tokens": tokens}


def verdict(mode: str, replies: Sequence[Reply], metadata: Any, best: int) -> Verdict:
    """What the replies make of a picture; a description's score is still to be found. Errors: Unreadable."""
    note = " | ".join(one.text for one in replies)
    if mode == "yes":
        return _yes(replies[0], note)
    if mode == "grade":
        grade, reason = graded(replies[0].text, best)
        return Verdict(grade / best, {"grade": float(grade)}, reason)
    if not all(one.text.strip() for one in replies):
        raise Unreadable("an empty answer")
    if mode == "questions":
        right = [stands(answer, one.text) for (_, answer), one in zip(_pairs(metadata), replies, strict=True)]
        return Verdict(sum(right) / len(right), {"all_right": float(all(right))}, note)
    return Verdict(math.nan, {}, note)


def _yes(reply: Reply, note: str) -> Verdict:
    p = {"yes": 0.0, "no": 0.0}
    for token, log in reply.first.items():
        word = token.strip(" \t\n\u2581\u0120\u010a\"'.").lower()  # tokenizers' own signs for spaces among them
        if word in p and log <= 0:
            p[word] += math.exp(log)
    sure = sum(p.values())
    if not reply.first:
        raise Unreadable("the server gave no probabilities of the first token (logprobs)")
    if not sure > 0:
        raise Unreadable(f"neither yes nor no is likely to begin the answer {reply.text!r:.60}")
    return Verdict(p["yes"] / sure, {"sure": min(sure, 1.0)}, note)


def graded(text: str, best: int) -> tuple[int, str]:
    """(grade, reason) of an answer: a JSON object with these two and nothing around it. Errors: Unreadable."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        found = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the answer is no JSON: {text!r:.100}") from error
    if not isinstance(found, dict) or set(found) != {"reason", "grade"}:
        raise Unreadable(f"the answer is not reason and grade: {text!r:.100}")
    grade, reason = found["grade"], found["reason"]
    if type(grade) is not int or not 0 <= grade <= best or not isinstance(reason, str):
        raise Unreadable(f"the grade is no whole number from 0 to {best}: {text!r:.100}")
    return grade, reason


def stands(answer: str, reply: str) -> bool:
    """Whether an answer stands in a reply, word by word: in any case, digits for number words, one or many of it."""
    wanted, found = _words(answer), _words(reply)
    ways = [wanted, [*wanted[:-1], plural(wanted[-1])]] if wanted else []
    return any(found[k : k + len(way)] == way for way in ways for k in range(len(found)))


_DIGITS = {str(n): number(n) for n in range(100)}


def _words(text: str) -> list[str]:
    return [_DIGITS.get(word, word) for word in _WORD.findall(text.casefold())]

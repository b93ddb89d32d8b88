"""What of a run's settings stays on this machine: keys and passwords, by the name of a setting or by their own look."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

REMOVED = "(removed)"
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # of a name: api_key, x-api-key, apiKey, API_KEY
# Whole words alone: a tokenizer, an author and keyframes are something else.
NAMING = re.compile(
    r"(api|access|account|auth|client|private|secret)?keys?|(api|access|auth|bearer|hf)?tokens?|secrets?|pwd?|"
    r"pass(w\w*|phrases?)?|o?auth|authori[sz]ations?|authentications?|credentials?|creds?|cookies?|bearer|jwt"
)
COUNTED = re.compile(r"(?<![a-z])(keys|tokens)(?![a-z])")  # `max_tokens: 7700` says how many
# In sentences a colon stands behind other words too (`the key: a story`), but not behind these.
HEADER = re.compile(r"\w+[-_.][\w.-]+|authori[sz]ation|passw\w*|apikey", re.IGNORECASE)

USER = re.compile(r"(?<=://)(?:[^\s/?#@:]*:(?!\d+/)[^\s@]*|[^\s/?#]*)(?=@)")  # in `host:80/a@b` there is none
QUERY = re.compile(r"(://[^\s?#]*)(\?[^\s#]*)?(#[^\s=]*=\S*)?")
GIVEN = re.compile(
    r"""([\w.-]+)(["']?\s*([=:])\s*["']?)(?!\(removed)((?:(?:Basic|Bearer|Token) +)?[^\s"',;&)}\]]+)""", re.IGNORECASE
)
# A word behind `bearer` or `basic` is one of a sentence, unless it has a digit or an upper-case letter inside.
SCHEME = re.compile(r"^(Bearer +)\S+$|\b((?i:bearer|basic|token) +)(?=\S*[\d=]|\S+[A-Z])[\w.~+/=-]{8,}")
KNOWN = re.compile(  # how the tokens of common services begin, and what W&B's is
    r"(?<![A-Za-z0-9])(?:(?:hf|api_org|gh[pousr]|github_pat|r8|npm|wandb_v\d)_\w{10,}|eyJ[\w-]{8,}\.[\w-]+\.[\w-]*|"
    r"(?:[srp]k|pypi|glpat|xapp|xox[a-z])-[\w-]{16,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[\w-]{30,}|"
    r"(?<=[Kk][Ee][Yy].)[0-9a-f]{40}(?![0-9a-f]))"
)


def named(key: object) -> bool:
    """Whether a setting of this name holds a secret."""
    return any(NAMING.fullmatch(word.lower()) for word in WORD.findall(str(key)))


def text(found: str) -> str:
    """A text without the keys in it: addresses lose user and query, `key=...` its value, known tokens all."""
    found = QUERY.sub(_without_query, USER.sub(REMOVED, found))
    found = SCHEME.sub(lambda one: f"{one[1] or one[2]}{REMOVED}", GIVEN.sub(_without_value, found))
    return KNOWN.sub(REMOVED, found)


def cleaned(found: Any, text: Callable[[str], str] = text, *, secret: bool = False) -> Any:
    """Settings with (removed) for every secret, all that is nested below its name included.

    found: mappings, lists and plain values; the same comes back. text: what becomes of a text that has no such name.
    Fractions, switches and small or counted numbers are no secrets under any name: scores may be called anything.
    """
    if isinstance(found, Mapping):
        return {_key(key, text): _part(key, part, text, secret) for key, part in found.items()}
    if isinstance(found, list | tuple):
        return [cleaned(part, text, secret=secret) for part in found]
    if secret:
        plain = found is None or found == "" or isinstance(found, bool | float) or _is_small(found)
        return found if plain else REMOVED
    return text(found) if isinstance(found, str) else found


def _part(key: object, part: Any, text: Callable[[str], str], secret: bool) -> Any:
    counted = isinstance(part, int) and COUNTED.search(str(key)) is not None
    return cleaned(part, text, secret=secret or named(key) and not counted)


def _key(key: Any, text: Callable[[str], str]) -> Any:
    return text(key) if isinstance(key, str) else key


def _is_small(found: Any) -> bool:
    return isinstance(found, int) and abs(found) < 1000


def _without_query(address: re.Match[str]) -> str:
    head, query, fragment = address.groups()
    return f"{head}{query and f'?{REMOVED}' or ''}{fragment and f'#{REMOVED}' or ''}"


def _without_value(given: re.Match[str]) -> str:
    name, between, mark, _ = given.groups()
    if not named(name) or mark == ":" and not HEADER.fullmatch(name):
        return given[0]
    return f"{name}{between}{REMOVED}"


def command(words: Sequence[str]) -> list[str]:
    """A command line without the secrets in it, the one behind a flag of such a name included."""
    flags = (word if word.startswith("-") and "=" not in word else "" for word in ("", *words))
    return [
        REMOVED if named(flag) and not word.startswith("-") else text(word)
        for flag, word in zip(flags, words, strict=False)
    ]

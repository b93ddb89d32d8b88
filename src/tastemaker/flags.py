"""Flags: `--dotted.path value` laid out as a tree. Types are checked where the tree meets its dataclasses."""

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from tastemaker.build import suggest
from tastemaker.layers import Switch, put

HELP = ("-h", "--help")


class Flags(NamedTuple):
    """What stood on a command line: its plain words, and its flags as a tree."""

    words: list[str]
    tree: dict[str, Any]
    help: bool


def parse(argv: Sequence[str]) -> Flags:
    """Read `--flag value`, `--flag=value`, `--flag`, `--no-flag`; underscores in names, dashes are accepted.

    A flag takes the next word as its value unless that begins with `--`, so plain words come before the flags.
    Of a flag given twice the last counts.
    """
    words: list[str] = []
    given: dict[str, str | Switch] = {}
    rest = list(argv)
    help_wanted = False
    while rest:
        word = rest.pop(0)
        if word in HELP:
            help_wanted = True
        elif not _is_flag(word):
            words.append(word)
        else:
            flag, sign, value = word[2:].partition("=")
            key = flag.replace("-", "_")
            if not all(key.split(".")):
                raise ValueError(f"{word} is not a flag: write --name value, or --part.name value.")
            if key.startswith("no_"):
                if sign:
                    raise ValueError(f"--{flag} takes no value: write --{flag}, or --{flag[3:]}={value}.")
                given.pop(key[3:], None)
                given[key[3:]] = Switch.OFF
            else:
                given.pop(key, None)
                given[key] = value if sign else rest.pop(0) if rest and not _is_flag(rest[0]) else Switch.ON
    tree: dict[str, Any] = {}
    for key, found in given.items():
        put(tree, key, found)
    return Flags(words, tree, help_wanted)


def refuse(
    command: str, tree: Mapping[str, Any], *, values: Collection[str] = (), switches: Collection[str] = ()
) -> None:
    """Errors: ValueError for a flag that is neither, a value that is missing, or one that a switch does not take."""
    for key, value in tree.items():
        if key not in values and key not in switches:
            near = suggest(key, sorted({*values, *switches}))
            guess = f"  Did you mean `--{near}`?" if near else ""
            raise ValueError(f"--{key} is not a flag of tastemaker {command}.{guess}  (tastemaker {command} --help)")
        if key in values and isinstance(value, Switch):
            raise ValueError(f"--{key} needs a value.")
        if key in switches and not isinstance(value, Switch):
            raise ValueError(f"--{key} takes no value, found {value!r}: write it behind the plain words.")


def _is_flag(word: str) -> bool:
    return word.startswith("--") or word in HELP  # a single dash begins a negative number


def joined(argv: Sequence[str], flag: str) -> list[str]:
    """The words with `--flag .3 .7` as `--flag=.3,.7`: behind it, numbers are its values."""
    words, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        name, sign, value = word.partition("=")
        if name == flag:
            values = [value] if sign else []
            while rest and _is_number(rest[0]):
                values.append(rest.pop(0))
            word = f"{flag}={','.join(values)}" if values else word
        words.append(word)
    return words


def target(argv: Sequence[str], *, command: str) -> tuple[str, dict[str, Any]] | None:
    """The algorithm or recipe that a command line names, and its flags; None when help was asked for and printed.

    A wrong name is found here, before anything heavy is imported.
    """
    from tastemaker import config

    words, tree, help_wanted = parse(argv)
    for word in words:
        config.find(word)
    if help_wanted:
        from tastemaker import manual

        sys.stdout.write(manual.usage(command, words))
        return None
    if len(words) != 1:
        found = " and ".join(f"`{word}`" for word in words) or "none"
        for flag, value in tree.items():
            if not words and isinstance(value, str) and value in (*config.algorithms(), *config.recipes()):
                found += f", because --{flag} took `{value}` for its value: write `{value}` first"
        raise ValueError(
            f"tastemaker {command} takes one algorithm or recipe, and then flags; found {found}.  "
            f"Algorithms: {', '.join(config.algorithms())}.  Recipes: {', '.join(config.recipes()) or 'none yet'}."
        )
    return words[0], tree


def _is_number(word: str) -> bool:
    try:
        return all(isinstance(float(part), float) for part in word.split(","))
    except ValueError:
        return False

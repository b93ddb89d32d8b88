"""What every setting means, read from the dataclasses themselves: type, default, and the sentence at each field."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import shutil
import textwrap
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from tastemaker import config
from tastemaker.build import attribute, options_of, plain, table_of, words


class Setting(NamedTuple):
    """One line of the manual."""

    path: str
    kind: str
    default: str
    sentence: str


def settings(kind: type, prefix: str = "") -> Iterator[Setting]:
    """The settings of a dataclass, parts after the part that has them."""
    hints, said = get_type_hints(kind), sentences(kind)
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        hint, path = hints[field.name], f"{prefix}{field.name}"
        default = field.default_factory() if callable(field.default_factory) else field.default
        yield Setting(path, words(hint), _default(default, hint), said.get(field.name, ""))
        parts = [part for part in options_of(hint) if isinstance(part, type) and dataclasses.is_dataclass(part)]
        for part in parts:
            yield from settings(part, f"{path}.")


def _default(value: Any, hint: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    if value is None:
        return "none"
    shown = plain(value, hint)
    if isinstance(shown, dict) and any(table_of(option) is not None for option in options_of(hint)):
        rest = ", ".join(f"{key} {part}" for key, part in shown.items() if key != "name")
        return f"{shown['name']} ({rest})" if rest else str(shown["name"])
    if isinstance(shown, dict):
        return ""
    if isinstance(shown, list):
        return ",".join(map(str, shown))
    return str(shown).lower() if isinstance(shown, bool) else repr(shown) if shown == "" else str(shown)


def sentences(kind: type) -> dict[str, str]:
    """Field -> its sentence: the comment behind it, or else the text below it, or the comment lines above it."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _sentences(base)
    return found


def _sentences(kind: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(kind))
    notes = {
        token.start[0]: (token.string.lstrip("# ").rstrip(), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node, after in zip(body.body, [*body.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        below = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
        if node.end_lineno in notes:
            text = [notes[node.end_lineno][0]]
        elif isinstance(below, str):
            text = below.split()
        else:
            text, line = [], node.lineno - 1
            while line in notes and notes[line][1]:
                text.insert(0, notes[line][0])
                line -= 1
        found[node.target.id] = " ".join(text)
    return found


def table(rows: Sequence[Setting], *, dashes: bool = False) -> str:
    """Settings as text, a sentence under each, as wide as the terminal."""
    width = min(120, shutil.get_terminal_size((100, 24)).columns)
    lines = []
    for row in rows:
        default = f"  [{row.default}]" if row.default else ""
        lines += _wrap(f"{'--' * dashes}{row.path}{default}  {row.kind}", width, "  ", "      ")
        lines += _wrap(row.sentence, width, "      ", "      ") if row.sentence else []
    return "\n".join(lines) + "\n"


def _wrap(text: str, width: int, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def headline(entry: str) -> str:
    """The first line of what "module:attribute", or "module", says of itself; it is read, and nothing imported."""
    module, _, name = entry.partition(":")
    found: ast.AST | None = _defined(module, name) if name else _read(module)
    said = ast.get_docstring(found) if isinstance(found, ast.Module | ast.FunctionDef | ast.ClassDef) else None
    return (said or "").partition("\n")[0]


def citations(algorithm: str) -> list[str]:
    """The entry of each of its papers in BibTeX, read from its class; none of what is the user's own."""
    module, _, name = config.algorithms().get(algorithm, "").partition(":")
    for line in getattr(_defined(module, name), "body", ()) if name else ():
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "citation":
            return str(ast.literal_eval(line.value)).split("\n\n")
    return []


def _defined(module: str, name: str) -> ast.AST | None:
    """The function or class of that name in a module's text."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    nodes = ast.walk(_read(module) or ast.Module([], []))
    return next((node for node in nodes if isinstance(node, kinds) and node.name == name), None)


@cache
def _read(module: str) -> ast.Module | None:
    spec = find_spec(module)
    return None if spec is None or spec.origin is None else ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def listing(rows: Mapping[str, str]) -> str:
    """Names and what they are, as wide as the terminal, the text beside the names."""
    width, edge = min(120, shutil.get_terminal_size((100, 24)).columns), 4 + max(map(len, rows), default=0)
    lines = [line for name, text in rows.items() for line in _wrap(text, width, f"  {name:<{edge - 2}}", " " * edge)]
    return "\n".join(lines) + "\n"


SHORT = """
Flags may be written with dashes (--dry-run). Short ones, for a setting with a long path:
  --iterations N      --algorithm.iterations      --learning_rate X   --algorithm.learning_rate
  --lora FILE         --lora.file                 --no-lora           the whole network is trained, not an adapter
"""


def usage(command: str, target: Sequence[str]) -> str:
    """The help of a command that takes an algorithm or recipe: the flags of the run, and of the algorithm if named."""
    from tastemaker.settings import RunSettings

    known = f"an algorithm ({', '.join(config.algorithms())}), a recipe ({', '.join(config.recipes()) or 'none yet'})"
    text = (
        f"tastemaker {command} NAME --flag value --flag=value --switch --no-switch\n\n"
        f"NAME is {known}, or a recipe's path.\n"
        f"{SHORT}\n"
        f"Of the run  [default]\n{table(list(settings(RunSettings)), dashes=True)}"
    )
    for name in target[:1]:
        algorithm = config.algorithm_of(name)
        rows = list(settings(attribute(config.algorithms()[algorithm]), "algorithm."))
        text += f"\nOf {algorithm}; --iterations and --learning_rate are short for two of these\n" + table(
            rows, dashes=True
        )
    if not target:
        text += f"\n`tastemaker {command} NAME --help` adds the settings of its algorithm.\n"
    return text

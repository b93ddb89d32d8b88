"""The house rules as functions of a syntax tree: each takes a source and returns what breaks the rule, or nothing."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "tastemaker"
Function = ast.FunctionDef | ast.AsyncFunctionDef
Scope = Function | ast.Lambda | ast.ClassDef


class Source(NamedTuple):
    """One module: its name below the package (`policy.sd`; a package's own file is `policy`), text and tree."""

    name: str
    text: str
    tree: ast.Module

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    def at(self, node: ast.AST, message: str) -> str:
        return f"{self.name}:{getattr(node, 'lineno', 1)}: {message}"


def source(name: str, text: str) -> Source:
    return Source(name, text, ast.parse(text))


@cache
def sources() -> tuple[Source, ...]:
    """Every module of the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found.append(source(name, path.read_text(encoding="utf-8")))
    return tuple(found)


def packages() -> set[str]:
    """Names of the packages below ours."""
    return {".".join(path.parent.relative_to(PACKAGE).parts) for path in PACKAGE.rglob("__init__.py")} - {""}


# ---- imports


def imports(one: Source, modules: Iterable[str]) -> Iterator[tuple[ast.AST, str]]:
    """(node, module) of every import, in functions too: ours as `tastemaker.policy.load`, others by their top name."""
    known = {f"tastemaker.{name}" for name in modules}
    for node in ast.walk(one.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            assert node.level == 0, f"{one.name}: relative import"
            names = [full if (full := f"{base}.{alias.name}") in known else base for alias in node.names]
        else:
            continue
        for name in dict.fromkeys(names):
            yield node, name if name.partition(".")[0] == "tastemaker" else name.partition(".")[0]


def outside(layers: dict[str, tuple[set[str], set[str]]], one: Source, modules: Iterable[str]) -> list[str]:
    """Imports that a module's layer does not allow. A layer: (our modules, with all below them; other packages)."""
    layer = next((part for part in _prefixes(one.name) if part in layers), None)
    if layer is None:
        return []
    ours, others = layers[layer]
    wrong = []
    for node, name in imports(one, modules):
        if name.startswith("tastemaker."):
            allowed = any(part in ours for part in _prefixes(name.removeprefix("tastemaker.")))
        else:
            allowed = name in others or name in sys.stdlib_module_names
        if not allowed:
            wrong.append(one.at(node, f"{layer} may not import {name}"))
    return wrong


def _prefixes(name: str) -> list[str]:
    """a.b.c, a.b, a"""
    parts = name.split(".")
    return [".".join(parts[:k]) for k in range(len(parts), 0, -1)]


# ---- size


def too_long(one: Source, *, file: int = 300, function: int = 40) -> list[str]:
    """Files and functions over the limits; a function counts from `def` to its last line, docstring included."""
    lines = len(one.text.splitlines())
    wrong = [f"{one.name}: {lines} lines; at most {file}"] if lines > file else []
    for node in ast.walk(one.tree):
        if isinstance(node, Function):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            wrong += [one.at(node, f"{node.name} has {lines} lines; at most {function}")] if lines > function else []
    return wrong


# ---- generators and autocast


def yields_under_with(one: Source) -> list[str]:
    """A generator that hands out while a context is entered leaks it (no-grad, say) into its caller."""
    wrong = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Yield | ast.YieldFrom) and inside:
            wrong.append(one.at(node, "yield under with"))
        if isinstance(node, Function) and any("contextmanager" in ast.unparse(d) for d in node.decorator_list):
            return
        below = False if isinstance(node, Scope) else inside or isinstance(node, ast.With | ast.AsyncWith)
        for child in ast.iter_child_nodes(node):
            visit(child, below)

    visit(one.tree, False)
    return wrong


def autocasts(one: Source) -> list[str]:
    """Autocast entered anywhere but in a policy's `predict`, or in a function that its module calls for it alone.

    An outer one keeps stale copies of the weights across an exchange.
    """
    uses = _uses(one)

    def for_predict(within: tuple[str, ...], seen: tuple[str, ...] = ()) -> bool:
        if "predict" in within or not within or within[-1] in seen:
            return "predict" in within
        callers = [around for name, _, around in uses if name == within[-1]]
        return bool(callers) and all(for_predict(around, (*seen, within[-1])) for around in callers)

    found = [(node, within) for name, node, within in uses if name == "autocast"]
    wrong = [node for node, within in found if not (one.top == "policy" and for_predict(within))]
    return [one.at(node, "autocast outside of a policy's predict") for node in wrong]


def _uses(one: Source) -> list[tuple[str, ast.AST, tuple[str, ...]]]:
    """(name, node, functions around it) of every name and attribute."""
    found = []

    def visit(node: ast.AST, within: tuple[str, ...]) -> None:
        if isinstance(node, Function):
            within = (*within, node.name)
        if isinstance(node, ast.Attribute | ast.Name):
            found.append((node.attr if isinstance(node, ast.Attribute) else node.id, node, within))
        for child in ast.iter_child_nodes(node):
            visit(child, within)

    visit(one.tree, ())
    return found


# ---- names


def named(one: Source, names: set[str]) -> list[str]:
    """Identifiers and whole strings that equal one of the names; docstrings are free."""
    free = {id(text) for text in _docstrings(one.tree)}
    wrong = []
    for node in ast.walk(one.tree):
        if isinstance(node, ast.Constant) and id(node) in free:
            continue
        wrong += [one.at(node, f"{name!r} is named") for name in _names(node) & names]
    return wrong


def _names(node: ast.AST) -> set[str]:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.Constant(value=str(name)):
            return {name}
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.keyword(arg=str(name)):
            return {name}
        case ast.alias(name=name, asname=other):
            return {name.rpartition(".")[2], other or ""}
        case ast.ImportFrom(module=str(name)):
            return set(name.split("."))
    return set()


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """The texts that stand alone as statements, at the head of a body or below a field."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


# ---- what loads code from data


def unsafe(one: Source) -> list[str]:
    """Pickle in its many forms, weights read with it, remote code, YAML that builds objects, eval."""
    banned = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    wrong = [one.at(node, f"{name} runs code from data") for node, name in imports(one, ()) if name in banned]
    for node in ast.walk(one.tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called == "torch.load" and given.get("weights_only") != "True":
            wrong.append(one.at(node, "torch.load without weights_only=True"))
        if given.get("trust_remote_code", "False") != "False" or given.get("allow_pickle", "False") != "False":
            wrong.append(one.at(node, "trust_remote_code or allow_pickle"))
        if called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load") and "SafeLoader" not in ast.unparse(node):
            wrong.append(one.at(node, f"{called}: yaml.safe_load"))
        if called in ("eval", "exec"):
            wrong.append(one.at(node, called))
    return wrong


# ---- tables


def literal(one: Source, name: str) -> dict[str, str]:
    """A literal dict at the top of a module, read without running it."""
    for node in one.tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
            found = ast.literal_eval(node.value)
            assert isinstance(found, dict)
            return found
    raise AssertionError(f"{one.name} has no literal {name}")


def table_names(table: dict[str, str]) -> set[str]:
    """Everything a table calls its entries: names, classes, modules."""
    names = set(table)
    for entry in table.values():
        module, _, attribute = entry.partition(":")
        names |= {attribute, module.rpartition(".")[2]}
    return names

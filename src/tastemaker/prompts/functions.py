"""Functions that users name on the command line (`path/to/file.py:function`), and the answer to a name nobody knows."""

import ast
import difflib
import functools
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


def is_function_spec(spec: str) -> bool:
    """Whether a text is written as `file.py:function` (or forgets the function)."""
    return spec.endswith(".py") or ".py:" in spec


def unknown(name: str, table: Iterable[str], *, key: str, kind: str, also: str) -> ValueError:
    """The error for a name that is not in a table: a suggestion where one is near, and three names that fit."""
    names = list(table)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    three = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
    guess = f" Did you mean `{near[0]}`?" if near else ""
    fit = ", ".join(f"`{one}`" for one in three)
    return ValueError(f"{key}: `{name}` is not the name of a {kind}.{guess} Names that fit: {fit}; or {also}.")


def load_function(spec: str, *, key: str) -> Callable[..., Any]:
    """The function or class that `path/to/file.py:name` names.

    A file is run once however many names are taken from it, and again after it was edited. Its folder goes to the end
    of `sys.path`, so it may import its neighbours but never hides an installed package.
    Errors: ValueError naming `key` for a missing file, a missing name, a file that fails, a name that cannot be called.
    """
    file, found, name = spec.rpartition(":")
    if not found or not file.endswith(".py"):
        file, name = spec, ""
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"{key}: {missing_file(path)}")
    if not name:
        raise ValueError(f"{key}: `{spec}` names a file, not a function in it: write `{spec}:NAME`.{_offer(path)}")
    module = _module(path, key)
    if name not in vars(module):
        near = difflib.get_close_matches(name, _definitions(path), n=1)
        guess = f" Did you mean `{near[0]}`?" if near else ""
        raise ValueError(f"{key}: {path} has no `{name}`.{guess}{_offer(path)}")
    function = vars(module)[name]
    if not callable(function):
        raise ValueError(f"{key}: `{name}` in {path} is a {type(function).__name__}, not a function.{_offer(path)}")
    return function  # type: ignore[no-any-return]


def bound(
    function: Callable[..., Any], settings: Mapping[str, Any], *, key: str, name: str, taken: int = 0
) -> Callable[..., Any]:
    """`function` with its arguments from a recipe or from flags, where they came as texts: read as the default's kind.

    taken: so many of the first arguments are the caller's, and no settings.

    Errors: ValueError with `key.SETTING` for an argument that the function has not, or a text that is no number.
    """
    if not settings:
        return function
    parameters = list(inspect.signature(function).parameters.values())[taken:]
    known = {one.name: one for one in parameters if one.kind in _BY_NAME}
    for setting in settings:
        if setting not in known:
            near = difflib.get_close_matches(setting, known, n=1)
            guess = f" Did you mean `{near[0]}`?" if near else ""
            has = f"It has {', '.join(known)}." if known else "It has none."
            raise ValueError(f"{key}.{setting} is not a setting of {name}.{guess} {has}")
    read = {one: _as(type(known[one].default), value, f"{key}.{one}") for one, value in settings.items()}
    return functools.partial(function, **read)


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_KINDS: dict[type, str] = {int: "a whole number", float: "a number", str: "a text"}


def _as(kind: type, value: Any, where: str) -> Any:
    if kind not in _KINDS or type(value) is kind:
        return value
    try:
        if isinstance(value, str) or (kind is float and type(value) is int):
            return kind(value)
    except ValueError:
        pass
    raise ValueError(f"{where} is {value!r}; it is {_KINDS[kind]}.")


def missing_file(path: Path) -> str:
    """What to say of a path that is no file: what stands there, where it was looked for, a near name."""
    if path.is_dir():
        return f"{path} is a folder: name a file in it."
    if not path.parent.is_dir():
        return f"{path} does not exist: there is no folder {path.parent} (looked from {Path.cwd()})."
    near = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1)
    guess = f" Did you mean `{path.parent / near[0]}`?" if near else " Check the path."
    return f"{path} does not exist (looked from {Path.cwd()}).{guess}"


def _definitions(path: Path) -> list[str]:
    """Public functions and classes of a file, read without running it; none when it cannot be parsed."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return []
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def _offer(path: Path) -> str:
    names = _definitions(path)
    return f" It defines: {', '.join(names)}." if names else f" {path.name} defines no public function."


def _module(path: Path, key: str) -> ModuleType:
    path = path.resolve()
    mark = hashlib.blake2b(f"{path}:{path.stat().st_mtime_ns}".encode(), digest_size=6).hexdigest()
    name = f"{path.stem}_{mark}"  # the mark keeps a user's `random.py` from standing in for the library's
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{key}: {path} could not be run: {type(error).__name__}: {error}") from error
    return module

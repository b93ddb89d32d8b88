"""Plain values to frozen dataclasses, and back: the only such code.

A field whose type is one of our Protocols takes a `name`, or `{name: ..., settings}`, from the literal `TABLE` of the
Protocol's module; every other field is read by pydantic, so that the text 3e-4 becomes a number.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from tastemaker.layers import Mark, Switch
from tastemaker.rewards.terms import split

Table = Mapping[str, str]  # name -> "module:attribute"
TEXTS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    NoneType: "none",
    Any: "any value",
}


class Where(NamedTuple):
    """Where in the settings we are: the dotted path, whose settings these are, and who wrote which of them."""

    path: str = ""
    owner: str = "run"
    marks: Mapping[str, Mark] = {}

    def at(self, key: str) -> Where:
        return self._replace(path=f"{self.path}.{key}" if self.path else key)

    def __str__(self) -> str:
        """The key as it was written; its path where nobody wrote it."""
        for path in (self.path, f"{self.path}.name"):
            if path in self.marks:
                return self.marks[path].spelled
        return self.path

    def unknown(self, key: str, names: Iterable[str], elsewhere: Mapping[str, str] | None = None) -> ValueError:
        """The error for a key that is no field, with the nearest one spelled as the key was."""
        written = str(self.at(key))
        near = (elsewhere or {}).get(key) or suggest(key, names, self.path)
        near = near and (f"--{near}" if written.startswith("--") else near.rpartition(".")[2] if self.path else near)
        guess = f"Did you mean `{near}`?  " if near else ""
        whose = "a run" if self.owner == "run" else self.owner
        return ValueError(
            f"{written} is not a setting of {whose}.  {guess}(`tastemaker explain {self.owner}` lists all)"
        )

    def blame(self, message: str, names: Iterable[str]) -> ValueError:
        """A range error of a dataclass, beginning with the field that it names, spelled as the user did."""
        known = set(names)
        named = next((word for word in re.findall(r"\w+", message) if word in known), None)
        if named is None:
            return ValueError(f"{self}: {message}" if str(self) else message)
        field = self.at(named)
        for written in (field.path, named):
            if message.startswith(f"{written} "):
                return ValueError(f"{field}{message.removeprefix(written)}")
        return ValueError(f"{field}: {message}")

    @contextmanager
    def naming(self, part: Any) -> Iterator[None]:
        """An error inside that begins with a setting of this part, or of a part of it, begins as the user wrote it."""
        try:
            yield
        except ValueError as error:
            name, _, rest = str(error).partition(" ")
            if (setting := self._setting(part, name)) is None:
                raise
            raise ValueError(f"{setting} {rest}") from error

    def _setting(self, part: Any, name: str) -> Where | None:
        """Where the part, or else a part of it, has a setting of this name."""
        own = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        if name in own:
            return self.at(name)
        inner = ((key, value) for key, value in own.items() if dataclasses.is_dataclass(value))
        found = (key for key, value in inner if name in {field.name for field in dataclasses.fields(value)})
        return next((self.at(key).at(name) for key in found), None)


def suggest(name: str, names: Iterable[str], path: str = "") -> str | None:
    """The nearest of the names, or one that is a part of this one (clip of clip_range), with the path before it."""
    known = list(names)
    near = difflib.get_close_matches(name, known, n=1) or sorted((k for k in known if k in name), key=len, reverse=True)
    return (f"{path}.{near[0]}" if path else near[0]) if near else None


def build(kind: type, values: Mapping[str, Any], where: Where = Where(), default: Any = None) -> Any:  # noqa: B008
    """A `kind`, a frozen dataclass, from plain values; the rest from `default`, an object of that kind, or its fields.

    Errors: ValueError with the key as the user wrote it, for a key that is no field (with the reason, if the kind has
    it in its `refused`), a value of another type, a field without default or value, and what `__post_init__` refuses.
    """
    hints = get_type_hints(kind)
    known = {field.name: field for field in dataclasses.fields(kind) if field.init}
    defaults = {name: _default(field) if default is None else getattr(default, name) for name, field in known.items()}
    # What equals the field's own default is not passed on: an algorithm takes note of what it is given.
    made = {name: value for name, value in defaults.items() if default is not None and value != _default(known[name])}
    for key, value in values.items():
        if reason := vars(kind).get("refused", {}).get(key):
            raise ValueError(f"{where.at(key)}: {reason}")
        if key not in known:
            raise where.unknown(key, known)
        made[key] = convert(hints[key], value, where.at(key), defaults[key])
    missing = [name for name in known if name not in made and defaults[name] is dataclasses.MISSING]
    if missing:
        raise ValueError(f"{where}: {where.owner} needs a value for {' and '.join(f'`{name}`' for name in missing)}.")
    try:
        return kind(**made)
    except ValueError as error:
        raise where.blame(str(error), known) from error


def convert(hint: Any, value: Any, where: Where, default: Any = None) -> Any:
    """A plain value as what the type hint says; objects that are already of that type pass."""
    options = options_of(hint)
    if value is Switch.ON and bool not in options:
        raise ValueError(f"{where} needs a value{'' if hint is Any else ': ' + words(hint)}.")
    if value is Switch.OFF and not {bool, NoneType} & set(options):
        raise ValueError(f"{where} cannot be switched off; it takes {words(hint)}.")
    if isinstance(value, Switch):
        return value is Switch.ON if bool in options else None
    if NoneType in options and (value is None or isinstance(value, str) and value in ("none", "null")):
        return None
    word = value["name"] if isinstance(value, Mapping) and value.keys() == {"name"} else value  # laid over a part
    if isinstance(word, str) and any(word in get_args(option) for option in options if get_origin(option) is Literal):
        return word
    for option in options:
        table = table_of(option)
        if table is not None:
            return choose(table, value, where, default) if isinstance(value, str | Mapping) else value
        if dataclasses.is_dataclass(option) and isinstance(option, type):
            if isinstance(value, option):
                return value
            if isinstance(value, Mapping) and not ("name" in value and "name" not in get_type_hints(option)):
                owner = where.path.rpartition(".")[2]
                return build(
                    option, value, where._replace(owner=owner), default if isinstance(default, option) else None
                )
            found = value["name"] if isinstance(value, Mapping) else value
            raise ValueError(f"{where} is a group of settings, {where.path}.KEY; found {found!r}.")
    return _leaf(hint, options, value, where)


def choose(table: Table, value: str | Mapping[str, Any], where: Where, default: Any = None) -> Any:
    """What a `name` or `{name: ..., settings}` of a table stands for; without a name, `default` with these settings."""
    settings = dict(value) if isinstance(value, Mapping) else {"name": value}
    own = entry_of(table, type(default))
    name = str(settings.pop("name", own or ""))
    if name not in table:
        near = suggest(name, table)
        guess = f"  Did you mean `{near}`?" if near else ""
        raise ValueError(f"{where} needs a name, one of {', '.join(table)}; found {name or settings!r}.{guess}")
    kind = attribute(table[name])
    return build(kind, settings, where._replace(owner=name), default if name == own else None)


def _leaf(hint: Any, options: tuple[Any, ...], value: Any, where: Where) -> Any:
    if Any in options:
        return value
    is_list = any(get_origin(option) in (tuple, list) for option in options)
    if is_list and isinstance(value, str):
        value = split(value)
    strange = isinstance(value, bool) and bool not in options  # pydantic would make 1 of it
    try:
        made = TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{where} needs {words(hint)}; found {value!r}.") from error
    if strange or (isinstance(made, float) and math.isnan(made)):
        raise ValueError(f"{where} needs {words(hint)}; found {value!r}.")
    return made


def options_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union; any other type alone."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def table_of(option: Any) -> Table | None:
    """The table of the parts that a Protocol's fields may name; None for whatever is not one of our Protocols."""
    if not getattr(option, "_is_protocol", False):
        return None
    return vars(sys.modules[option.__module__]).get("TABLE")


def entry_of(table: Table, kind: type) -> str | None:
    """The name under which a class stands in a table."""
    entry = f"{kind.__module__}:{kind.__qualname__}"
    return next((name for name, other in table.items() if other == entry), None)


def attribute(entry: str) -> Any:
    """The object that a table's "module:attribute" names."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def words(hint: Any) -> str:
    """A type hint in words: "a number or none"."""
    said = []
    for option in options_of(hint):
        if get_origin(option) is Literal:
            said.append("one of " + ", ".join(map(str, get_args(option))))
        elif get_origin(option) in (tuple, list):
            inner = [words(inner) for inner in get_args(option) if inner is not ...]
            said.append(f"a list of {' and '.join(dict.fromkeys(inner))} (with commas)")
        elif table_of(option) is not None:
            said.append("one of " + ", ".join(table_of(option) or ()))
        elif dataclasses.is_dataclass(option):
            said.append("settings")
        else:
            said.append(TEXTS.get(option, str(option)))
    return " or ".join(said)


def plain(value: Any, hint: Any = Any) -> Any:
    """A built value as plain data again, which `build` reads back; functions and foreign objects by their names."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        settings = {f.name: plain(getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(value) if f.init}
        tables = [table for table in map(table_of, options_of(hint)) if table is not None]
        return {"name": entry_of(tables[0], type(value)) or _name(type(value)), **settings} if tables else settings
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return _name(value)


def _name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}:{named.__qualname__}"


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default

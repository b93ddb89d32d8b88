"""docs/reliability.md tells of fifty faults, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from faults import mutations

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def functions(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_every_fault_has_its_row_and_its_test() -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, 51))
    assert [row for row in rows if not NAMED.search(row)] == []
    assert [(file, name) for file, name in NAMED.findall(PAGE) if name not in functions(TESTS / file)] == []


def test_every_mutation_has_its_place_and_its_test() -> None:
    """Without running them: the guard stands where the list says, once, and the test is there."""
    for one in mutations.MUTATIONS:
        assert mutations.mutated((mutations.PACKAGE / one.file).read_text(encoding="utf-8"), one)
        file, _, name = one.test.partition("::")
        assert name in functions(TESTS.parent / file), one.test
    assert f"takes {len(mutations.MUTATIONS)} guards out" in PAGE

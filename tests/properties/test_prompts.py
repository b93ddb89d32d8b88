"""Files of prompts: any text comes back as it was written; any bytes are prompts or a ValueError."""

from __future__ import annotations

import csv
import io
import json
import random
import tempfile
import warnings
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tastemaker.prompts.entries import fault
from tastemaker.prompts.sources import Listed, source

MODEST = settings(derandomize=True, deadline=None, max_examples=60, database=None)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
PROMPT = TEXT.filter(lambda text: fault(text) is None)
ENDS = "\n\r"


def read(ending: str, data: bytes) -> list[tuple[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # repeats
        path = Path(folder) / f"a.{ending}"
        path.write_bytes(data)
        found = source(str(path))
        assert isinstance(found, Listed)
        return [found.entries[k] for k in range(len(found.entries))]


@MODEST
@given(st.lists(PROMPT, min_size=1, max_size=4), st.booleans())
@example(["\ufeffa", "a\u2028b\x85c\x1c"], False)
def test_json_lines_hold_any_text(texts: list[str], ascii_: bool) -> None:
    rows = [{"prompt": text, "n": k, "text": text[::-1]} for k, text in enumerate(texts)]
    data = "".join(json.dumps(row, ensure_ascii=ascii_) + "\n" for row in rows).encode()
    assert read("jsonl", data) == [(text, {"n": k, "text": text[::-1]}) for k, text in enumerate(texts)]


@MODEST
@given(st.lists(PROMPT, min_size=1, max_size=4), st.sampled_from([("csv", ","), ("tsv", "\t")]))
def test_tables_hold_any_text_but_the_space_around_it(texts: list[str], kind: tuple[str, str]) -> None:
    """Ends of lines inside a cell are all one."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=kind[1], quoting=csv.QUOTE_ALL)
    writer.writerows([("prompt", "n"), *((text, k) for k, text in enumerate(texts))])
    expected = [(text.replace("\r\n", "\n").replace("\r", "\n").strip(), {"n": str(k)}) for k, text in enumerate(texts)]
    assert read(kind[0], out.getvalue().encode()) == expected


@MODEST
@given(st.lists(PROMPT.filter(lambda text: not set(ENDS) & set(text)), min_size=1, max_size=4), st.sampled_from("\n\r"))
def test_lines_hold_any_text_but_the_space_around_it(texts: list[str], end: str) -> None:
    data = end.join(texts).encode()
    if not data.startswith(b"\xef\xbb\xbf"):  # a byte order mark is none of the text
        assert read("txt", data) == [(text.strip(), None) for text in texts]


PIECES = st.sampled_from(
    [b'{"prompt":', b'"a"', b"}", b"prompt", b",", b"\n", b"\r", b"\t", b'"', b"\xef\xbb\xbf", b"[" * 99]
)
BYTES = st.binary(max_size=40) | st.lists(PIECES | st.binary(max_size=3), max_size=8).map(b"".join)


@settings(MODEST, max_examples=150)
@given(st.sampled_from(["txt", "jsonl", "csv", "tsv", "tar"]), BYTES)
@example("jsonl", b'{"prompt": 1e999}')
@example("jsonl", b'{"prompt": ' + b"9" * 5000 + b"}")
@example("csv", b'prompt\n"a" b\n')
def test_any_bytes_are_prompts_or_a_value_error(ending: str, data: bytes) -> None:
    try:
        found = read(ending, data)
    except ValueError as error:
        assert str(error).startswith("prompts: ") and f"a.{ending}" in str(error)
        return
    assert found and all(fault(text) is None for text, _ in found)


@MODEST
@given(st.lists(PROMPT, min_size=1, max_size=5, unique=True), st.integers(0, 12), st.integers(0, 2**32))
def test_a_draw_takes_every_prompt_before_any_a_second_time(texts: list[str], count: int, seed: int) -> None:
    drawn = source(texts).draw(random.Random(seed), count)
    times = [list(drawn).count(text) for text in texts]
    assert len(drawn) == count == sum(times) and max(times) - min(times) <= 1

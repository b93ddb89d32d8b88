"""Webdataset archives: members NAME.txt and NAME.json of a .tar make one sample of each NAME. Nothing is unpacked."""

import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

from tastemaker.prompts.entries import Entry, Rows, at, collect, json_column, json_row, split_row

MEMBER = 2**20  # bytes of one text; what is larger is none
TOTAL = 2**30  # bytes of all texts
Sample = dict[str, str]  # "txt" or "json" -> content


def read_tar(path: Path, column: str | None, key: str) -> Rows:
    """One prompt a sample, in the archive's order; other members (pictures) are passed over unread.

    The prompt is NAME.txt, the metadata NAME.json; without a .txt, or with a named column, the prompt is that key of
    NAME.json (`prompt`, `caption`, `text`, or its only text) and the rest is the metadata.
    """
    found = [(name, sample) for name, sample in _samples(path, key).items() if sample]
    json_alone = column is not None or not any("txt" in sample for _, sample in found)
    if json_alone and found:
        name, sample = found[0]
        with at(f"{key}: {path}:{name}"):
            column = json_column(_json(sample), column)
    return collect(found, lambda sample: _entry(sample, column), name=str(path), key=key)


def _entry(sample: Sample, column: str | None) -> Entry:
    if column is not None:
        return split_row(_json(sample), column)
    if "txt" not in sample:
        raise ValueError("there is no .txt beside the .json, as other samples have: give every sample one.")
    return sample["txt"].strip(), json_row(sample["json"]) if "json" in sample else {}


def _json(sample: Sample) -> dict[str, Any]:
    if "json" not in sample:
        raise ValueError("there is no .json with that name, where the prompt is looked for.")
    return json_row(sample["json"])


def _samples(path: Path, key: str) -> dict[str, Sample]:
    """Samples by name, a member's path up to the first dot of its last part."""
    found: dict[str, Sample] = {}
    total = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name, kind = _sample_and_kind(member.name)
                if not member.isfile() or not name or kind not in ("txt", "json"):
                    continue
                total += member.size
                with at(f"{key}: {path}:{member.name}"):
                    _refuse(member.size, total, kind in found.get(name, {}))
                    file = archive.extractfile(member)
                    assert file is not None
                    found.setdefault(name, {})[kind] = _decoded(file.read())
    except tarfile.TarError as error:
        raise ValueError(f"{key}: {path} is not a whole, uncompressed tar archive: {error}.") from error
    return found


def _sample_and_kind(member: str) -> tuple[str, str]:
    """("folder/0001", "txt") of folder/0001.txt; no name for hidden files."""
    path = PurePosixPath(member)
    name, _, kind = path.name.partition(".")
    return str(path.parent / name) if name else "", kind.lower()


def _refuse(size: int, total: int, twice: bool) -> None:
    if size > MEMBER:
        raise ValueError(f"{size:,} bytes are no prompt: at most {MEMBER:,} are read.")
    if total > TOTAL:
        raise ValueError(
            f"with this member the texts are larger than {TOTAL:,} bytes: use several runs, or a .txt file."
        )
    if twice:
        raise ValueError("the archive holds this member twice: name every sample differently.")


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {data[error.start]:#04x} is not UTF-8.") from error

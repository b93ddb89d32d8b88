"""What passes between a reward and its server: pictures there as one safetensors blob, scores back as JSON.

Request: `images` uint8 [B,H,W,3], 255 times the picture and rounded as PIL does, or float32 [B,3,H,W] in [0,1]; the
metadata's `request` is JSON {"protocol", "prompts", "ids", "groups", "metadata"}. Answer: {"protocol", "identity",
"ids", "scores", "valid", "notes", "parts", "dtype"}, a list each with one entry a picture; a picture without a score is
null and not valid. Nothing in either is code, a path or an address that somebody opens.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards.reward import Scores

PROTOCOL = 1
KIND = "application/octet-stream"
PIXELS = ("float32", "uint8")  # how a picture's numbers travel
_HEADER = 2**20  # bytes of a blob's header, prompts included
_PARTS = 100  # of a score, at most
_DTYPES = {"U8": (torch.uint8, 1), "F32": (torch.float32, 4)}


class Malformed(ValueError):
    """A request that is not one."""


class TooLarge(ValueError):
    """A request above a limit."""


@dataclass(frozen=True)
class Limits:
    """How much one request may bring."""

    rows: int = 256  # pictures
    pixels: int = 2048 * 2048  # of one picture
    bytes: int = 64 * 2**20  # of a body


class Identity(NamedTuple):
    """What a server judges by: scores of two identities are not compared."""

    name: str
    version: str
    weights: str
    settings: str = ""

    @property
    def digest(self) -> str:
        """Short enough to travel with every answer."""
        return hashlib.sha256(json.dumps(list(self)).encode()).hexdigest()[:16]


def packed(images: Tensor, prompts: Prompts, pixels: str) -> bytes:
    """The body of a request. Errors: ValueError where a prompt's metadata are not what JSON can say."""
    from safetensors.torch import save

    if pixels == "uint8":
        sent = (255 * images.detach().float()).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    else:
        sent = images.detach().float()
    request = {
        "protocol": PROTOCOL,
        "prompts": prompts.texts,
        "ids": prompts.ids,
        "groups": prompts.groups,
        "metadata": prompts.metadata,
    }
    try:
        text = json.dumps(request, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"prompts whose metadata JSON cannot say are not sent to a server: {error}") from error
    if not all(_is_plain(one) for one in prompts.metadata):
        raise ValueError("prompts whose metadata have keys that are no texts are not sent to a server: JSON has none.")
    return save({"images": sent.cpu().contiguous()}, metadata={"request": text})


def _is_plain(found: Any) -> bool:
    """Whether JSON keeps what it is, tuples aside, which become lists."""
    if isinstance(found, dict):
        return all(isinstance(key, str) and _is_plain(value) for key, value in found.items())
    return all(map(_is_plain, found)) if isinstance(found, list | tuple) else True


def unpacked(body: bytearray, limits: Limits) -> tuple[Tensor, Prompts]:
    """The pictures of a request, as they travelled, and its prompts; nothing is copied that is not yet known to fit.

    Errors: Malformed, TooLarge.
    """
    start = 8 + int.from_bytes(body[:8], "little")
    if len(body) < 8 or start > min(len(body), _HEADER):
        raise Malformed(f"the body is no safetensors blob with a header of at most {_HEADER} bytes")
    header = _object(body[8:start].decode("utf-8", "replace"), "header")
    if set(header) != {"images", "__metadata__"}:
        raise Malformed("the blob needs the tensor `images` and the metadata `request`, and nothing else")
    images = _images(header["images"], body, start, limits)
    said = header["__metadata__"]
    if not isinstance(said, dict) or not isinstance(said.get("request"), str):
        raise Malformed("the metadata hold no `request`")
    return images, _prompts(_object(said["request"], "request"), len(images))


def _images(entry: Any, body: bytearray, start: int, limits: Limits) -> Tensor:
    entry = entry if isinstance(entry, dict) else {}
    shape, kind = entry.get("shape"), entry.get("dtype")
    good = isinstance(shape, list) and len(shape) == 4 and all(type(n) is int and n > 0 for n in shape)
    if not good or kind not in _DTYPES or shape[1 if kind == "F32" else 3] != 3:
        raise Malformed("`images` is uint8 [B,H,W,3] or float32 [B,3,H,W]")
    dtype, size = _DTYPES[kind]
    rows, area = shape[0], math.prod(shape[1:]) // 3
    if rows > limits.rows or area > limits.pixels:
        raise TooLarge(f"at most {limits.rows} pictures of {limits.pixels} pixels are taken at a time")
    length = math.prod(shape) * size
    if entry.get("data_offsets") != [0, length] or len(body) - start != length:
        raise Malformed(f"`images` {shape} is {length} bytes, found are {len(body) - start}")
    where = memoryview(body)[start:]
    return torch.frombuffer(where if start % size == 0 else bytearray(where), dtype=dtype).reshape(shape)


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the {what} is no JSON") from error
    if not isinstance(found, dict):
        raise Malformed(f"the {what} is no JSON object")
    return found


def _prompts(said: dict[str, Any], n: int) -> Prompts:
    if said.get("protocol") != PROTOCOL:
        raise Malformed(f"this server speaks protocol {PROTOCOL}, the request {str(said.get('protocol'))[:20]}")
    texts, ids = said.get("prompts", []), said.get("ids", list(range(n)))
    groups, metadata = said.get("groups", ids), said.get("metadata", [None] * n)
    lists = (texts, ids, groups, metadata)
    if not all(isinstance(one, list) and len(one) == n for one in lists):
        raise Malformed(f"prompts, ids, groups and metadata are lists of {n}, one entry a picture")
    if not all(isinstance(one, str) for one in texts) or not all(type(one) is int for one in (*ids, *groups)):
        raise Malformed("prompts are texts, ids and groups whole numbers")
    if len(set(ids)) < n:
        raise Malformed("an id stands for two pictures")
    return Prompts(*(tuple(one) for one in lists))


def floats(images: Tensor) -> Tensor:
    """Pictures as they travelled, as rewards take them: float32 [B,3,H,W] in [0,1]."""
    return images.permute(0, 3, 1, 2).contiguous().float() / 255 if images.dtype is torch.uint8 else images


# ---- the answer


def answer(scores: Scores, ids: Sequence[int], identity: Identity) -> dict[str, Any]:
    """Scores as JSON's types; a float's shortest decimal form is read back as the same bits."""
    return {
        "protocol": PROTOCOL,
        "identity": identity.digest,
        "ids": list(ids),
        "scores": _numbers(scores.value),
        "valid": scores.value.isfinite().tolist(),
        "notes": list(scores.notes or (None,) * len(ids)),
        "parts": {name: _numbers(part) for name, part in scores.parts.items()},
        "dtype": str(scores.value.dtype).removeprefix("torch."),
    }


def _numbers(row: Tensor) -> list[float | None]:
    return [number if math.isfinite(number) else None for number in row.tolist()]


class Row(NamedTuple):
    """What an answer says of one picture."""

    score: float | None  # None: there is none, and asking again changes nothing
    note: str | None
    parts: dict[str, float]
    double: bool  # whether the score is one in fp64


def rows(said: dict[str, Any], wanted: Sequence[int]) -> dict[int, Row]:
    """The rows of an answer that can be used, by id: of what was asked, with a number or a word that there is none."""
    ids, scores = said.get("ids"), said.get("scores")
    if not isinstance(ids, list) or not isinstance(scores, list) or len(ids) != len(scores):
        return {}
    found: dict[int, Row] = {}
    if len(ids) > 2 * len(wanted):
        return {}
    twice = {one for one in wanted if ids.count(one) > 1}
    valid, notes, parts = said.get("valid"), said.get("notes"), said.get("parts")
    for k, (name, score) in enumerate(zip(ids, scores, strict=True)):
        if type(name) is not int or name not in wanted or name in twice:
            continue
        is_valid, note = _at(valid, k), _at(notes, k)
        text = note[:4000] if isinstance(note, str) else None
        named = parts.items() if isinstance(parts, dict) and len(parts) <= _PARTS else ()
        own = {part: float(one) if _is_number(one := _at(row, k)) else math.nan for part, row in named}
        if _is_number(score) and is_valid is not False:
            found[name] = Row(float(score), text, own, said.get("dtype") == "float64")
        elif score is None and is_valid is False:
            found[name] = Row(None, text, own, False)
    return found


def _at(row: Any, k: int) -> Any:
    return row[k] if isinstance(row, list) and k < len(row) else None


def _is_number(found: Any) -> bool:
    return type(found) in (int, float) and abs(found) < 2.0**1023  # beyond it an int is no float; NaN is not below

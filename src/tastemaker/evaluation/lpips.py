"""LPIPS: how different two pictures look.  Zhang et al. 2018, arXiv:1801.03924; version 0.1 on AlexNet.

With y_l(x) the output of AlexNet's l-th ReLU for picture x, at every place divided by its length over the channels,

    d(a, b) = sum_l mean over places of sum_c w_lc (y_lc(a) - y_lc(b))^2 .

The learned w are never negative, so d is the squared distance of the vectors sqrt(w_lc / places_l) y_lc: n pictures
cost n passes through the network, whatever pairs of them are compared.

Departs from richzhang/PerceptualSimilarity: pictures come in [0, 1] and are mapped to its [-1, 1] here.
"""

from __future__ import annotations

import hashlib
import math
import re
import uuid
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import torch
from torch import Tensor, nn

from tastemaker.iteration import Progress, Silence

SMALLEST = 31  # pixels; the second pooling has nothing left of less
_CHANNELS = (64, 192, 384, 256, 256)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of the colours in [-1, 1], about ImageNet's
_TINY = 1e-10  # added to a length, for places where every channel is 0


class LPIPS(nn.Module):
    """The network and its heads; parameters are called as in torchvision's AlexNet and in the lpips package."""

    def __init__(self) -> None:
        super().__init__()
        relu, pool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2), relu, pool,
            nn.Conv2d(64, 192, 5, padding=2), relu, pool,
            nn.Conv2d(192, 384, 3, padding=1), relu,
            nn.Conv2d(384, 256, 3, padding=1), relu,
            nn.Conv2d(256, 256, 3, padding=1), relu,
        )  # fmt: skip
        for layer, width in enumerate(_CHANNELS):
            head = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))  # in training 0 is a dropout
            self.add_module(f"lin{layer}", nn.ModuleDict({"model": head}))

    @property
    def heads(self) -> list[Tensor]:
        """w [1,C,1,1] of each layer."""
        return [self.get_parameter(f"lin{layer}.model.1.weight") for layer in range(len(_CHANNELS))]

    def maps(self, images: Tensor) -> list[Tensor]:
        """y [B,C,h,w] of each layer for pictures [B,3,H,W] in [0,1]. Errors: ValueError below 31 pixels."""
        if min(images.shape[-2:]) < SMALLEST:
            raise ValueError(f"LPIPS sees nothing in pictures of {list(images.shape[-2:])}: {SMALLEST} pixels or more.")
        shift, scale = (images.new_tensor(row, dtype=torch.float32).view(1, 3, 1, 1) for row in (_SHIFT, _SCALE))
        x, found = (2 * images.float() - 1 - shift) / scale, []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + _TINY))
        return found

    def vectors(self, images: Tensor) -> Tensor:
        """Vectors [B,D] of pictures [B,3,H,W] in [0,1] whose squared distances are LPIPS."""
        layers = zip(self.heads, self.maps(images), strict=True)
        return torch.cat([((w / math.prod(y.shape[2:])).sqrt() * y).flatten(1) for w, y in layers], 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS [B] of pictures [B,3,H,W] in [0,1] with their partners; 0 where they are the same."""
        layers = zip(self.heads, self.maps(a), self.maps(b), strict=True)
        return torch.stack([(w * (y - z).square()).sum(1).mean((1, 2)) for w, y, z in layers]).sum(0)


# ---- weights from files


class Source(NamedTuple):
    """A file of published weights."""

    name: str  # as the torch hub stores it
    url: str
    sha256: str


# AlexNet is torchvision's (BSD 3-clause, 233 MB, of which 10 are used), the heads are lpips' (BSD 2-clause, 6 kB).
SOURCES = (
    Source(
        "alexnet-owt-7be5be79.pth",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
    Source(
        "alex.pth",
        "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/alex.pth",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    ),
)
_SUFFIXES = {".safetensors", ".pth", ".pt", ".bin"}
# How state dicts of whole LPIPS modules (lpips, torchmetrics) spell the names that stand here.
_SPELLINGS = (
    (re.compile(r"(?:net\.)+slice\d\.(\d+)\."), r"features.\1."),
    (re.compile(r"net\.(lin\d\.)"), r"\1"),
)


def load(weights: str | Path) -> LPIPS:
    """LPIPS on the CPU, from a file with all of it or a folder with AlexNet's file and the heads', without gradients.

    Errors: ValueError that names the file and the first name that is missing, of another shape or no valid weight.
    """
    path = Path(weights).expanduser()
    read = {file: _read(file) for file in _files(path)}
    with torch.device("meta"):  # draws no random numbers
        net = LPIPS()
    state = {name: _checked(name, own.shape, read, path) for name, own in net.state_dict().items()}
    net.load_state_dict(state, assign=True)
    return net.eval().requires_grad_(False)


def _files(path: Path) -> list[Path]:
    """The files to read."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"--lpips_weights: there is no file or folder {path}. {_need()}")
    named = [path / source.name for source in SOURCES]
    if all(file.is_file() for file in named):
        return named
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if not 1 <= len(files) <= 2:
        held = ", ".join(file.name for file in files[:5]) or "no weights"
        raise ValueError(f"--lpips_weights: the folder {path} holds {held}. {_need()}")
    return files


def _need() -> str:
    return f"Needed is one file with all of LPIPS, or a folder with {' and '.join(source.name for source in SOURCES)}."


def _read(file: Path) -> dict[str, Tensor]:
    """What a file holds, by the names of this module."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            held = load_file(file)
        else:
            held = torch.load(file, map_location="cpu", weights_only=True)  # lpips' heads were saved from a GPU
    except Exception as error:  # the readers raise what they like at what is not theirs
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"--lpips_weights: {file} is no weights file: {reason}") from error
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise ValueError(f"--lpips_weights: {file} holds something other than named tensors. {_need()}")
    return {_spelled(str(name)): value for name, value in held.items()}


def _spelled(name: str) -> str:
    for theirs, ours in _SPELLINGS:
        if theirs.match(name):
            return theirs.sub(ours, name, count=1)
    return name


def _checked(name: str, shape: torch.Size, read: dict[Path, dict[str, Tensor]], path: Path) -> Tensor:
    """The tensor of that name, fp32."""
    file = next((file for file, held in read.items() if name in held), None)
    if file is None:
        raise ValueError(f"--lpips_weights: {path} holds no {name}. {_need()}")
    found = read[file][name]
    if found.shape != shape:
        raise ValueError(
            f"--lpips_weights: {name} in {file} is {list(found.shape)}, needed is {list(shape)}. {_need()}"
        )
    found = found.float()
    if not found.isfinite().all() or (name.startswith("lin") and (found < 0).any()):
        raise ValueError(
            f"--lpips_weights: {name} in {file} has values that no LPIPS has (NaN, or negative in a head)."
        )
    return found.contiguous()


# ---- weights from the network

_TIMEOUT = 10.0  # seconds without an answer, or without a byte
_MEGABYTE = 1 << 20


def missing() -> list[Source]:
    """The published files that the torch hub's folder lacks."""
    return [source for source in SOURCES if not (_folder() / source.name).is_file()]


def _folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def published(progress: Progress | None = None) -> LPIPS:
    """LPIPS with the published weights, from the torch hub's folder, into which what is missing is downloaded once.

    Errors: ValueError saying what could not be had, and why.
    """
    folder = _folder()
    for source in reversed(missing()):  # the small one first: no network shows early
        try:
            _download(source, folder, progress or Silence())
        except (OSError, HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise ValueError(f"--lpips_weights: {source.url} could not be downloaded: {reason}.") from error
    return load(folder)


def _download(source: Source, folder: Path, progress: Progress) -> None:
    """Writes a file whole and as published, or not at all. Errors: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    part, digest = folder / f"{source.name}.{uuid.uuid4().hex}.partial", hashlib.sha256()
    try:
        with urlopen(source.url, timeout=_TIMEOUT) as answer, part.open("xb") as file:
            progress.begin(f"downloading {source.name} (MB)", int(answer.headers["Content-Length"] or 0) // _MEGABYTE)
            while piece := answer.read(_MEGABYTE):
                file.write(piece)
                digest.update(piece)
                progress.advance(1)
        if digest.hexdigest() != source.sha256:
            raise OSError(f"its sha256 is {digest.hexdigest()}, not {source.sha256}")
        part.replace(folder / source.name)
    finally:
        part.unlink(missing_ok=True)

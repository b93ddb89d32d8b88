"""Pictures in files as policies take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

MOST = 64_000_000  # pixels of one file: more is no photograph, and may be a bomb


def read_pictures(files: Sequence[str], height: int, width: int) -> Tensor:
    """[B,3,height,width] in [0, 1]: turned as the camera says, scaled until it covers the size, cut at the middle.

    Errors: ValueError naming the file that is no picture, or too large.
    """
    return torch.stack([_read(file, height, width) for file in files])


def read_picture(file: str | BinaryIO, name: str) -> Image.Image:
    """A picture of three colours, turned as the camera says. Errors: ValueError for what is none, or too large."""
    try:
        with Image.open(file) as opened:
            if opened.width * opened.height > MOST:
                raise ValueError(f"{name} has {opened.width} x {opened.height} pixels; at most {MOST:,} are read.")
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"{name} is no picture that can be read: {error}") from error


def pixels(image: Image.Image) -> Tensor:
    """A picture as [3,H,W] in [0,1]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def _read(file: str, height: int, width: int) -> Tensor:
    image = read_picture(file, file)
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return pixels(image)

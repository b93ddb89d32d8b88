"""JPEG (in)compressibility: how few, or how many, bytes a picture takes.  Black et al. 2023, arXiv:2305.13301.

    size(image) = bytes of its JPEG at quality 95 / 1000   [kB];   incompressibility = size,   compressibility = -size

The numbers are those of kvablack/ddpo-pytorch@1958463 (`ddpo_pytorch/rewards.py`): rounded to 8 bits, PIL's encoder.
Departs from it: 1. encodes in threads (PIL releases the lock); 2. a picture with NaN pixels scores NaN, not a number.
"""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

QUALITY = 95


def incompressibility(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Kilobytes [B] of pictures [B,3,H,W] in [0,1]."""
    return _sizes(images)


def compressibility(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Minus the kilobytes [B] of pictures [B,3,H,W] in [0,1]."""
    return -_sizes(images)


def _sizes(images: Tensor) -> Tensor:
    # Half precision times 255 cannot hold the 8-bit levels.
    pictures = images.detach().to(torch.promote_types(images.dtype, torch.float32))
    valid = pictures.flatten(1).sum(1).isfinite().cpu()
    levels = (pictures.nan_to_num() * 255).round().clamp(0, 255).to(torch.uint8)
    arrays = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    workers = max(1, min(len(arrays), os.cpu_count() or 1))  # a share each: a task a picture costs more than a picture
    with ThreadPoolExecutor(workers) as pool:
        sizes = [size for share in pool.map(_kilobytes, np.array_split(arrays, workers)) for size in share]
    return torch.where(valid, torch.tensor(sizes, dtype=torch.float32), torch.nan)


def _kilobytes(levels: NDArray[np.uint8]) -> list[float]:
    """Kilobytes of each picture of [B,H,W,3]."""
    sizes = []
    for picture in levels:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="JPEG", quality=QUALITY)
        sizes.append(buffer.tell() / 1000)
    return sizes

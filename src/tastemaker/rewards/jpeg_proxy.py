"""The size of a JPEG file estimated in torch: `jpeg_compressibility` with a gradient to the picture.

As PIL does at quality 95: YCbCr, chroma at half the resolution (means of 2x2), 8x8 blocks, their DCT over the steps of
the standard tables, which gives q. Instead of rounding q and looking up what the file spends on it, smoothly

    b(q) = log2(1 + (2q)^4) / 4        the bits of a number: none below half a step, 1 at |q| = 1, 2 at 2, 3 at 4, ...

    8000 size = 8 * 623 + 2.16 sum of b over luma's AC + 2.45 over chroma's + 2.78 over the steps of DC + 59.3 MCUs

with the size in kB. An MCU is 16x16 pixels; 623 bytes is what PIL writes before the first block. The other bits, for
runs of zeros and the ends of blocks, go into these prices. A term for the zeros comes closer to the size (correlation
0.9996, not 0.9988), but pays for filling them: ten steps in pixels then save 4 % of a file instead of 8 %.

The prices are a least-squares fit to `jpeg_compressibility` of 600 drawn pictures of the Shapes world and of the
autoencoder's copies of 300 of them; a test repeats it.
"""

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

HEADER = 623  # bytes
BITS = (2.16, 2.45, 2.78, 59.3)  # of luma's b, chroma's b, b of the steps of DC, an MCU

# ITU-T T.81 Annex K, scaled to quality 95 as the IJG's library scales it: (10 step + 50) // 100.
LUMA = (
    *(2, 1, 1, 2, 2, 4, 5, 6, 1, 1, 1, 2, 3, 6, 6, 6, 1, 1, 2, 2, 4, 6, 7, 6, 1, 2, 2, 3, 5, 9, 8, 6),
    *(2, 2, 4, 6, 7, 11, 10, 8, 2, 4, 6, 6, 8, 10, 11, 9, 5, 6, 8, 9, 10, 12, 12, 10, 7, 9, 10, 10, 11, 10, 10, 10),
)
CHROMA = (
    *(2, 2, 2, 5, 10, 10, 10, 10, 2, 2, 3, 7, 10, 10, 10, 10, 2, 3, 6, 10, 10, 10, 10, 10, 5, 7, *[10] * 6),
    *[10] * 32,
)
YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def compressibility(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Minus the kilobytes [B] of pictures [B,3,H,W] in [0,1] as JPEG files, estimated with a gradient.

    `jpeg_compressibility` to within 0.04 kB on average for pictures of the Shapes world, 2 to 5 % for photographs;
    `jpeg_proxy:-1` is its opposite. The formula stands in tastemaker/rewards/jpeg_proxy.py.
    """
    found = counts(images)
    return -(8 * HEADER + found @ found.new_tensor(BITS)) / 8000


def counts(images: Tensor) -> Tensor:
    """What BITS are the prices of, [B,4], in pictures [B,3,H,W] in [0,1]."""
    pixels = 255 * images.to(torch.promote_types(images.dtype, torch.float32)).clamp(0, 1)
    height, width = (-(-side // 8) for side in pixels.shape[-2:])  # luma's blocks; chroma's are in whole MCUs
    whole = F.pad(pixels, (0, -pixels.shape[-1] % 16, 0, -pixels.shape[-2] % 16), mode="replicate")
    planes = torch.einsum("cd,bdhw->bchw", whole.new_tensor(YCBCR), whole)
    luma = _blocks(planes[:, :1, : 8 * height, : 8 * width] - 128, LUMA)
    chroma = _blocks(F.avg_pool2d(planes[:, 1:], 2), CHROMA)
    steps = _steps(luma[..., 0]) + _steps(chroma[..., 0])
    mcus = steps.new_full(steps.shape, chroma.shape[2] * chroma.shape[3])
    return torch.stack([_bits(luma[..., 1:]), _bits(chroma[..., 1:]), steps, mcus], 1)


def _blocks(planes: Tensor, table: tuple[int, ...]) -> Tensor:
    """q [B,C,h,w,64], DC first, of planes [B,C,8h,8w]."""
    tiles = planes.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4).flatten(4)
    return tiles @ _transform(table).to(tiles)


@cache
def _transform(table: tuple[int, ...]) -> Tensor:
    """[64 pixels, 64 coefficients]: the DCT over the table's steps, both row by row, fp64."""
    k = torch.arange(8, dtype=torch.float64)
    dct = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2
    dct[0] /= math.sqrt(2)
    return (torch.kron(dct, dct) / torch.tensor(table)[:, None]).T.contiguous()


def _bits(q: Tensor) -> Tensor:
    """Sum [B] of b over all q [B,...]."""
    return torch.log1p((2 * q).square().square()).flatten(1).sum(1) / (4 * math.log(2))


def _steps(dc: Tensor) -> Tensor:
    """Sum [B] of b over the differences of DC [B,C,h,w] from the block to the left; of the first ones, from above."""
    return _bits(dc.diff(dim=3)) + _bits(dc[..., :1].diff(dim=2))

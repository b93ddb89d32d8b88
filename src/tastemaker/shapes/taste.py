"""A taste, written down: what the aesthetic head on the built-in CLIP learned to guess. It reads no caption.

taste = 1 + 9 (full + vivid + centred + plain) / 4, from 1 to 10, each part from 0 to 1

Objects are the pixels of strong chroma, as for the oracle. `full` is the share of the picture that they cover, over
0.35; `vivid` their chroma, from 0.45 to 0.9; `centred` is 1 where the middle of them all is the picture's and 0 from 20
pixels away; `plain` is 1 where the background has one brightness and 0 where its deviation is 0.3 and more. So it likes
orange better than purple, four objects better than a small one, and no checkers, whatever was asked for.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tastemaker.rewards.reward import Scores
from tastemaker.shapes.drawing import SIZE

_CHROMA = 0.33  # objects lie above 0.45, backgrounds below 0.24
_LIGHT = (0.299, 0.587, 0.114)


def taste(images: Tensor, prompts: Sequence[str] = ()) -> Scores:
    """The project's taste in Shapes pictures [B], from 1 to 10, measured on their pixels: what `aesthetic` guesses.

    Full, vivid, centred objects on plain backgrounds; each of the parts is from 0 to 1. Reads no prompt.
    """
    x = torch.nan_to_num(images.detach().float()).clamp(0, 1)
    if x.shape[-2:] != (SIZE, SIZE):
        x = F.interpolate(x, (SIZE, SIZE), mode="area")
    chroma = x.amax(1) - x.amin(1)
    inside = chroma > _CHROMA
    free = F.max_pool2d(inside[:, None].float(), 13, 1, 6)[:, 0] == 0
    parts = {
        "full": inside.float().mean((1, 2)) / 0.35,
        "vivid": (_mean(chroma, inside) - 0.45) / 0.45,
        "centred": _centred(inside),
        "plain": 1 - _deviation(torch.einsum("bchw,c->bhw", x, x.new_tensor(_LIGHT)), free) / 0.3,
    }
    parts = {name: part.clamp(0, 1) for name, part in parts.items()}
    return Scores(1 + 9 * torch.stack(list(parts.values())).mean(0), parts)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Of values [B,H,W] where the mask is set; 0 where it nowhere is."""
    return (values * where).sum((1, 2)) / where.sum((1, 2)).clamp(min=1)


def _deviation(values: Tensor, where: Tensor) -> Tensor:
    apart = values - _mean(values, where)[:, None, None]
    return _mean(apart**2, where).sqrt()


def _centred(inside: Tensor) -> Tensor:
    """1 less the distance of the objects' middle from the picture's, in 20 pixels; 0 without objects."""
    along = torch.arange(SIZE, device=inside.device) - (SIZE - 1) / 2
    x, y = (_mean(place.expand(inside.shape), inside) for place in (along, along[:, None]))
    return (1 - torch.hypot(x, y) / 20) * inside.any(2).any(1)

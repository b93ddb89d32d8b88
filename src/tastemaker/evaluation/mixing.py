"""Weighted sums of LoRAs, linear in the change of the weights: W + sum_k w_k B_k A_k.

Weights of models tuned from one base can be averaged (Wortsman et al. 2022, arXiv:2203.05482); between models tuned on
different rewards, or between the base and one of them, that goes from one taste to the other (Rame et al. 2023,
arXiv:2306.04488).

Departs from AlignProp's soup (Prabhudesai et al. 2023, arXiv:2310.03739): 1. there both factors of a LoRA are scaled,
so a weight w changes the network by w^2, and two LoRAs leave products of one's B with the other's A. Here the factors
stand side by side, the weight in B alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tastemaker.policy.adapter import MAGNITUDE

Adapter = Mapping[str, Tensor]
"""`<layer>.lora_A.weight` [r, inputs, ...] and `<layer>.lora_B.weight` [outputs, r, ...], every scale inside B."""

A, B = ".lora_A.weight", ".lora_B.weight"


class Member(NamedTuple):
    """One LoRA of a mix; the base model has an adapter without layers."""

    name: str  # in messages
    adapter: Adapter
    weight: float


class Lost(NamedTuple):
    """What a lower rank leaves out: the relative error of the change, in Frobenius' norm."""

    total: float
    worst: float  # of one layer
    layer: str  # that layer


def numbers(text: str, key: str) -> list[float]:
    """Weights as they were typed, `.3,.7`. Errors: ValueError, naming the key, where one is not a finite number."""
    found = []
    for word in text.split(","):
        try:
            value = float(word)
        except ValueError as error:
            raise ValueError(f"{key}: {word!r} is not a number. Write them with spaces: {key} .3 .7") from error
        if not math.isfinite(value):
            raise ValueError(f"{key}: {word.strip()} is not a finite number.")
        found.append(value)
    return found


def mixed(members: Sequence[Member]) -> dict[str, Tensor]:
    """The adapter of sum_k w_k B_k A_k, exactly: the factors side by side. A layer that a member lacks is no change.

    Its rank is the sum of the ranks, less in layers that not all members have; those are filled up with zeros, for not
    every loader knows ranks of single layers. Members of weight 0 are left out; where nothing is left, it is an adapter
    of rank 1 that changes nothing. Errors: ValueError where a weight is not finite, layers do not fit together, or one
    is a DoRA.
    """
    for one in members:
        if not math.isfinite(one.weight):
            raise ValueError(f"the weight of {one.name} is {one.weight:g}; a weight is a finite number.")
        if is_dora(one.adapter):
            raise ValueError(
                f"{one.name} is a DoRA: it stretches the rows of whole weights too, so its change is no product of two "
                "narrow matrices and cannot be added to another's. Needed: LoRAs trained without --lora.dora."
            )
    if not any(one.adapter for one in members):
        raise ValueError("there is nothing but `base` to mix: name at least one LoRA.")
    summed = [one for one in members if one.adapter and one.weight]
    if not summed:
        still = next(one.adapter for one in members if one.adapter)
        return _even({layer: (torch.zeros_like(a[:1]), torch.zeros_like(b[:, :1])) for layer, a, b in layers(still)})
    found: dict[str, tuple[Tensor, Tensor]] = {}
    first: dict[str, str] = {}
    for one in summed:
        for layer, a, b in layers(one.adapter):
            b = b * one.weight
            if layer in found:
                a0, b0 = found[layer]
                _check_fit(layer, (first[layer], a0, b0), (one.name, a, b))
                a, b = torch.cat([a0, a]), torch.cat([b0, b], 1)
            found[layer] = a, b
            first.setdefault(layer, one.name)
    return _even(found)


def reduced(adapter: Adapter, rank: int) -> tuple[dict[str, Tensor], Lost]:
    """The nearest adapter of this rank, layer by layer, by singular values (Eckart and Young); computed in fp64.

    One whose rank is not above it stays as it is. Errors: ValueError for a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"--rank is {rank}; it is at least 1.")
    if rank >= rank_of(adapter):
        return dict(adapter), Lost(0.0, 0.0, "")
    found: dict[str, tuple[Tensor, Tensor]] = {}
    left: dict[str, float] = {}
    whole: dict[str, float] = {}
    for layer, a, b in layers(adapter):
        a0, b0 = a.double().flatten(1), b.double().flatten(1)
        up, right = torch.linalg.qr(b0), torch.linalg.qr(a0.T)
        u, s, v = torch.linalg.svd(up.R @ right.R.T)
        root = s[:rank].sqrt()
        a1 = (root[:, None] * v[: len(root)] @ right.Q.T).float()
        b1 = (up.Q @ u[:, : len(root)] * root).float()
        found[layer] = a1.view(-1, *a.shape[1:]), b1.view(len(b), -1, *b.shape[2:])
        whole[layer] = float(s.norm())
        left[layer] = _norm(torch.cat([a0, a1.double()]), torch.cat([b0, -b1.double()], 1))
    shares = {layer: left[layer] / whole[layer] if whole[layer] else 0.0 for layer in whole}
    worst = max(shares, key=lambda layer: shares[layer])
    total = math.hypot(*left.values()) / (math.hypot(*whole.values()) or 1.0)
    return _even(found), Lost(total, shares[worst], worst)


def layers(adapter: Adapter) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(layer, A, B) of every layer."""
    for name, a in adapter.items():
        if name.endswith(A):
            layer = name.removesuffix(A)
            yield layer, a, adapter[layer + B]


def is_dora(adapter: Adapter) -> bool:
    """Whether it has lengths of rows beside its factors."""
    return any(name.endswith(MAGNITUDE) for name in adapter)


def rank_of(adapter: Adapter) -> int:
    """The highest rank of its layers."""
    return max(len(a) for _, a, _ in layers(adapter))


def _even(found: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """An adapter of one rank: zeros behind the factors of layers with a lower one."""
    rank = max(len(a) for a, _ in found.values())
    adapter: dict[str, Tensor] = {}
    for layer, (a, b) in found.items():
        more = rank - len(a)
        adapter[layer + A] = torch.cat([a, a.new_zeros(more, *a.shape[1:])]) if more else a
        adapter[layer + B] = torch.cat([b, b.new_zeros(len(b), more, *b.shape[2:])], 1) if more else b
    return adapter


def _check_fit(layer: str, one: tuple[str, Tensor, Tensor], other: tuple[str, Tensor, Tensor]) -> None:
    (name, a0, b0), (name1, a1, b1) = one, other
    before, after = [[*b.shape[:1], *a.shape[1:]] for a, b in ((a0, b0), (a1, b1))]
    if before != after:
        raise ValueError(
            f"{name} and {name1} are LoRAs of different base models: the layer {layer} is {before} in one and {after} "
            "in the other. Only LoRAs of one base model can be mixed."
        )


def _norm(a: Tensor, b: Tensor) -> float:
    """Frobenius' norm of b a, without making it: a [r, n], b [m, r]."""
    return float((torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T).norm())

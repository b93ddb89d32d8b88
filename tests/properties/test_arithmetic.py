"""Plans, and how they cut the work: every picture and every item once, whatever the devices and the calls."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tastemaker.iteration import deal
from tastemaker.plan import Plan
from tastemaker.process.noise import Key
from tastemaker.prompts.sources import source
from tastemaker.training.trainer import cut
from tastemaker.world import World

MODEST = settings(derandomize=True, deadline=None, max_examples=60, database=None)
SMALL = st.integers(1, 6)


def plan(images: int, per_prompt: int, updates: int, **changes: int) -> Plan:
    counts = {
        "iterations": 2,
        "inner_epochs": 1,
        "steps": 3,
        "items": 3,
        "micro_batch": 4,
        "sampling_batch": 4,
    } | changes
    return Plan(images=images, per_prompt=per_prompt, updates=updates, guidance=2.0, **counts)


@MODEST
@given(SMALL, SMALL, SMALL, SMALL)
def test_devices_share_an_iteration_without_rest(rows: int, per_prompt: int, updates: int, devices: int) -> None:
    """Every group is dealt whole to one device, ids are those of all pictures, and no device has a group too many."""
    assume(rows >= devices)
    made = plan(rows * updates * per_prompt, per_prompt, updates, devices=devices)
    texts = source([f"p{k}" for k in range(5)])
    shares = [deal(texts, Key(3, 1), made, World(rank, devices))[0] for rank in range(devices)]
    assert sorted(b for share in shares for b in share.ids) == list(range(made.images))
    groups = [set(share.groups) for share in shares]
    assert sum(map(len, groups)) == made.groups == len(set().union(*groups))
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    alone = deal(texts, Key(3, 1), plan(made.images, per_prompt, updates), World())[0]
    told = {b: text for share in shares for b, text in zip(share.ids, share.texts, strict=True)}
    assert tuple(told[b] for b in alone.ids) == alone.texts
    assert all(b // per_prompt == group for share in shares for b, group in zip(share.ids, share.groups, strict=True))


@MODEST
@given(st.integers(1, 200), SMALL, SMALL, SMALL)
def test_counts_that_do_not_divide_are_refused_and_what_is_named_fits(
    images: int, per_prompt: int, updates: int, devices: int
) -> None:
    fits = images % (per_prompt * updates) == 0 and images // (per_prompt * updates) >= devices
    if fits:
        made = plan(images, per_prompt, updates, devices=devices)
        assert made.effective_batch * made.updates == made.images == made.groups * made.per_prompt
        assert made.row >= 1 and (made.groups // made.updates) % made.row == 0
        return
    with pytest.raises(ValueError) as no:
        plan(images, per_prompt, updates, devices=devices)
    if "Nearest: " in str(no.value):
        named = [int(word) for word in str(no.value).split("Nearest: ")[1].split() if word.isdecimal()]
        assert named and all(plan(count, per_prompt, updates).images == count for count in named)


class Items:
    """A batch whose items are their numbers."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: torch.Tensor) -> Items:
        return Items(self.values[rows])


@MODEST
@given(st.integers(0, 50), st.integers(1, 60))
def test_calls_have_equal_rows_and_cover_every_item_once(count: int, rows: int) -> None:
    parts = list(cut(Items(torch.arange(count)), rows))
    assert all(len(part) == rows and 1 <= own <= rows for part, own in parts)
    assert torch.cat([part.values[:own] for part, own in parts] or [torch.arange(0)]).tolist() == list(range(count))
    assert len(parts) == -(-count // rows)


@MODEST
@given(st.integers(1, 5000))
def test_halvings_go_down_to_one(micro: int) -> None:
    sizes = list(plan(8, 1, 1, micro_batch=micro).halvings())
    assert sizes[0] == micro and sizes[-1] == 1
    assert all(after == before // 2 for before, after in zip(sizes, sizes[1:], strict=False))

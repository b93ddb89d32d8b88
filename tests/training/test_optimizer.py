"""One optimizer step: its learning rate, clipping, skipping, scaling and averaging, and that it goes on exactly."""

import importlib.util
import math
import sys

import pytest
import torch
from torch import nn

from tastemaker.training.optimizer import Optimizer, OptimizerSettings, ema_keep


def named(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"up.lora_A": (4, 3), "up.lora_B": (3, 4), "norm": (5,), "scalar": ()}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def settings(learning_rate: float = 1e-2, **changes: object) -> OptimizerSettings:
    return OptimizerSettings(learning_rate, **changes)


def gradients(parameters: dict[str, nn.Parameter], update: int) -> torch.Tensor:
    """A loss whose gradient differs from update to update and depends on the weights."""
    generator = torch.Generator().manual_seed(100 + update)
    return sum((torch.randn(p.shape, generator=generator) * p + 0.1 * p**2).sum() for p in parameters.values())


def run(optimizer: Optimizer, parameters: dict[str, nn.Parameter], updates: range) -> list[dict[str, float]]:
    reports = []
    for update in updates:
        optimizer.zero_grad()
        optimizer.backward(gradients(parameters, update))
        reports.append(optimizer.step())
    return reports


def values(parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_steps_are_those_of_adamw_with_clipping() -> None:
    ours, theirs = named(), named()
    run(Optimizer(ours, settings(max_grad_norm=0.5, weight_decay=0.1), total_updates=4), ours, range(4))
    adam = torch.optim.AdamW(theirs.values(), lr=1e-2, weight_decay=0.1)
    for update in range(4):
        adam.zero_grad()
        gradients(theirs, update).backward()
        nn.utils.clip_grad_norm_(theirs.values(), 0.5)
        adam.step()
    assert same(values(ours), values(theirs))


def test_parts_of_an_update_add_up() -> None:
    whole, parts = named(), named()
    one = Optimizer(whole, settings(), total_updates=1)
    one.backward(gradients(whole, 0))
    two = Optimizer(parts, settings(), total_updates=1)
    for _ in range(2):
        two.backward(gradients(parts, 0) / 2)
    assert one.step()["grad_norm"] == pytest.approx(two.step()["grad_norm"], rel=1e-6)


def test_the_reported_norm_is_the_unclipped_one() -> None:
    parameters = named()
    optimizer = Optimizer(parameters, settings(max_grad_norm=0.25), total_updates=1)
    optimizer.backward(sum(3.0 * p.sum() for p in parameters.values()))
    count = sum(p.numel() for p in parameters.values())
    assert optimizer.step()["grad_norm"] == pytest.approx(3.0 * math.sqrt(count))
    clipped = math.sqrt(sum(float((p.grad**2).sum()) for p in parameters.values()))
    assert clipped == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0.5 - 0.5 * math.sqrt(0.5)]),
    ],
)
def test_the_learning_rate_warms_up_and_follows_its_schedule(schedule: str, expected: list[float]) -> None:
    parameters = named()
    optimizer = Optimizer(parameters, settings(schedule=schedule, warmup_steps=2), total_updates=6)
    reports = run(optimizer, parameters, range(6))
    assert [report["learning_rate"] / 1e-2 for report in reports] == pytest.approx(expected)


def test_no_update_of_a_run_has_learning_rate_zero() -> None:
    for schedule in ("linear", "cosine"):
        course = settings(schedule=schedule, warmup_steps=3)
        assert all(course.rate(update, 10) > 0 for update in range(10))
        assert course.rate(10, 10) == pytest.approx(0.0)
        assert course.rate(12, 10) >= 0  # a run that is longer than it was planned


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_skipped_and_changes_nothing(bad: float) -> None:
    parameters, untouched = named(), named()
    optimizer, other = (Optimizer(p, settings(), total_updates=9) for p in (parameters, untouched))
    run(optimizer, parameters, range(2))
    run(other, untouched, range(2))
    before, (moments, _) = values(parameters), optimizer.state()
    moments = {name: tensor.clone() for name, tensor in moments.items()}
    for skips in (1, 2):
        optimizer.zero_grad()
        optimizer.backward(gradients(parameters, 2))
        parameters["norm"].grad[3] = bad
        report = optimizer.step()
        assert report["skipped"] == 1.0 and not math.isfinite(report["grad_norm"])
        assert optimizer.consecutive_skips == optimizer.skipped == skips
    assert same(before, values(parameters)) and same(moments, optimizer.state()[0])
    run(optimizer, parameters, range(2, 3))
    run(other, untouched, range(2, 3))
    assert same(values(parameters), values(untouched))  # constant learning rate: as if the skipped ones had not been
    assert (optimizer.consecutive_skips, optimizer.skipped, optimizer.updates) == (0, 2, 5)


def resumed(first: Optimizer, parameters: dict[str, nn.Parameter], again: Optimizer) -> None:
    """Continue `first` as `again`, over the same weights in another order."""
    tensors, data = first.state()
    again.load_state({name: tensor.clone() for name, tensor in tensors.items()}, data)


def test_it_goes_on_exactly_where_another_left_off_whatever_the_order_of_the_names() -> None:
    course = settings(schedule="cosine", warmup_steps=2, max_grad_norm=0.7)
    straight = named()
    expected = run(Optimizer(straight, course, total_updates=8), straight, range(8))
    parameters = named()
    first = Optimizer(parameters, course, total_updates=8)
    run(first, parameters, range(5))
    moved = {name: nn.Parameter(parameters[name].detach().clone()) for name in reversed(parameters)}
    again = Optimizer(moved, course, total_updates=8)
    resumed(first, parameters, again)
    assert again.updates == 5
    reports = run(again, {name: moved[name] for name in parameters}, range(5, 8))
    assert same({name: moved[name].detach() for name in straight}, values(straight))
    assert [r["learning_rate"] for r in reports] == [r["learning_rate"] for r in expected[5:]]


def test_other_tensors_are_refused_by_name() -> None:
    parameters = named()
    optimizer = Optimizer(parameters, settings(), total_updates=8)
    run(optimizer, parameters, range(1))
    other = named()
    other["down.lora_A"] = other.pop("norm")
    with pytest.raises(ValueError, match=r"'down.lora_A' and 1 more .* --model and --lora"):
        Optimizer(other, settings(), total_updates=8).load_state(*optimizer.state())


@pytest.mark.parametrize("lost", ["exp_avg/norm", "exp_avg_sq/norm", "step/norm", ""])
def test_a_lost_moment_is_refused_by_name(lost: str) -> None:
    """AdamW would begin it at 0. An empty name is all of them."""
    parameters = named()
    optimizer = Optimizer(parameters, settings(), total_updates=8)
    optimizer.load_state(*optimizer.state())  # before the first step there are none
    run(optimizer, parameters, range(1))
    tensors, data = optimizer.state()
    left = {name: tensor for name, tensor in tensors.items() if lost and name != lost}
    with pytest.raises(ValueError, match=rf"the checkpoint's optimizer lacks '[\w./]*{lost}' and \d+ more"):
        Optimizer(named(), settings(), total_updates=8).load_state(left, data)


def test_moments_are_copied_not_shared() -> None:
    parameters, again = named(), named()
    optimizer, other = (Optimizer(p, settings(), total_updates=8) for p in (parameters, again))
    run(optimizer, parameters, range(1))
    other.load_state(*optimizer.state())
    before = {name: tensor.clone() for name, tensor in other.state()[0].items()}
    run(optimizer, parameters, range(1, 2))
    assert same(before, other.state()[0])


def test_moments_keep_the_weights_memory_format() -> None:
    weight = nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last))
    optimizer = Optimizer({"conv": weight}, settings(), total_updates=2)
    run(optimizer, {"conv": weight}, range(1))
    tensors, data = optimizer.state()
    again = Optimizer({"conv": weight}, settings(), total_updates=2)
    again.load_state({name: tensor.contiguous() for name, tensor in tensors.items()}, data)
    assert again.state()[0]["exp_avg/conv"].is_contiguous(memory_format=torch.channels_last)


class Average:
    """What a policy's set "ema" does with `blend`."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters, self.kept = parameters, values(parameters)

    def __call__(self, keep: float) -> None:
        for name, tensor in self.kept.items():
            tensor.mul_(keep).add_(self.parameters[name].detach(), alpha=1 - keep)


def test_the_moving_average_is_that_of_diffusers() -> None:
    from diffusers.training_utils import EMAModel

    parameters = named()
    average = Average(parameters)
    optimizer = Optimizer(parameters, settings(ema=0.3), total_updates=8, average=average)
    theirs = EMAModel(list(parameters.values()), decay=0.3)
    for update in range(8):
        run(optimizer, parameters, range(update, update + 1))
        theirs.step(list(parameters.values()))
        for ours, other in zip(average.kept.values(), theirs.shadow_params, strict=True):
            torch.testing.assert_close(ours, other)
    assert ema_keep(0.9999, 1) == pytest.approx(2 / 11) and ema_keep(0.3, 7) == 0.3


def test_the_moving_average_goes_on_and_passes_over_skipped_steps() -> None:
    parameters = named()
    kept: list[float] = []
    optimizer = Optimizer(parameters, settings(ema=0.9), total_updates=8, average=kept.append)
    run(optimizer, parameters, range(2))
    parameters["norm"].grad = torch.full((5,), float("nan"))
    optimizer.step()
    assert kept == pytest.approx([0.0, 2 / 11])
    again = Optimizer(parameters, settings(ema=0.9), total_updates=8, average=kept.append)
    again.load_state(*optimizer.state())
    run(again, parameters, range(1))
    assert kept[-1] == pytest.approx(3 / 12)


def test_loss_scaling_changes_neither_gradient_nor_norm_and_backs_off_on_overflow() -> None:
    plain, scaled = named(), named()
    reports = run(Optimizer(plain, settings(), total_updates=3), plain, range(3))
    optimizer = Optimizer(scaled, settings(), total_updates=9, scaler=True)
    assert [r["grad_norm"] for r in run(optimizer, scaled, range(3))] == [r["grad_norm"] for r in reports]
    assert same(values(plain), values(scaled))  # powers of two: not a bit differs
    before = optimizer.state()[1]["scaler"]["scale"]
    optimizer.zero_grad()
    optimizer.backward(gradients(scaled, 3))
    scaled["norm"].grad[0] = float("inf")
    assert optimizer.step()["skipped"] == 1.0
    assert optimizer.state()[1]["scaler"]["scale"] == before / 2
    again = Optimizer(scaled, settings(), total_updates=9, scaler=True)
    again.load_state(*optimizer.state())
    assert again.state()[1]["scaler"] == optimizer.state()[1]["scaler"]
    assert run(again, scaled, range(3, 4))[0]["skipped"] == 0.0


def test_trainable_tensors_in_half_precision_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match="fp32, weight is not"):
        Optimizer({"weight": nn.Parameter(torch.zeros(2, dtype=torch.float16))}, settings(), total_updates=1)


def test_8bit_adam_without_bitsandbytes_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r'pip install "tastemaker\[memory\]"'):
        Optimizer(named(), settings(use_8bit=True), total_updates=1)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="the extra `memory` is not installed")
@pytest.mark.filterwarnings("default")  # whatever its own dependencies have to say
def test_8bit_adam_goes_on_exactly() -> None:
    def weights() -> dict[str, nn.Parameter]:
        generator = torch.Generator().manual_seed(0)
        return {"large": nn.Parameter(torch.randn(96, 64, generator=generator)), "small": nn.Parameter(torch.ones(7))}

    course = settings(use_8bit=True)
    straight, parameters = weights(), weights()
    run(Optimizer(straight, course, total_updates=4), straight, range(4))
    first = Optimizer(parameters, course, total_updates=4)
    run(first, parameters, range(2))
    tensors, data = first.state()
    assert tensors["state1/large"].dtype == torch.uint8
    again = Optimizer(parameters, course, total_updates=4)
    again.load_state(tensors, data)
    run(again, parameters, range(2, 4))
    assert same(values(parameters), values(straight))
    with pytest.raises(ValueError, match="made with --use_8bit_adam and this run is without"):
        Optimizer(parameters, settings(), total_updates=4).load_state(tensors, data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"betas": (0.9, 1.0)}, "betas is"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0"),
        ({"schedule": "polynomial"}, "lr_scheduler is 'polynomial', it must be one of constant, linear, cosine"),
        ({"warmup_steps": -1}, "lr_warmup_steps is -1"),
        ({"ema": 1.0}, "ema is 1.0"),
    ],
)
def test_settings_out_of_range_are_refused_by_the_name_the_user_typed(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings(**change)

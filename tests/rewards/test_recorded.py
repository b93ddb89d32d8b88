import pytest
import torch
from torch import Tensor

from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards.recorded import Recorded
from tastemaker.rewards.reward import score


def brightness(images: Tensor, prompts: Prompts) -> Tensor:
    value = images.mean((1, 2, 3))
    return torch.where(value > 0.9, torch.nan, value)


def test_counts_pictures_and_seconds() -> None:
    reward = Recorded(brightness)
    images = torch.tensor([0.1, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    value = score(reward, images, Prompts.of(["a"] * 3)).value
    assert value.isnan().tolist() == [False, False, True] and reward.name == "brightness" and reward.device is None
    assert reward.queries == 3 and 0 < reward.seconds < 1
    score(reward, images[:2], Prompts.of(["a"] * 2))
    assert reward.queries == 5


def test_a_call_that_raises_counts_as_asked_each_time() -> None:
    reward = Recorded(lambda images, prompts: [0.0][7])
    assert score(reward, torch.zeros(3, 3, 2, 2), Prompts.of(["a"] * 3)).value.isnan().all()
    assert reward.queries == 2 * 3
    with pytest.raises(IndexError):
        reward(torch.zeros(2, 3, 2, 2), Prompts.of(["a"] * 2))
    assert reward.queries == 2 * 3 + 2


def test_keeps_the_graph() -> None:
    images = torch.full((2, 3, 2, 2), 0.5, requires_grad=True)
    Recorded(brightness)(images, Prompts.of(["a"] * 2)).value.sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0

"""TRL's three functions, as they are called there and as we call them: reward, and hook with its tracker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from tastemaker.training.hook import Batch


def reward_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """TRL's `(images, prompts, prompt_metadata) -> (rewards, reward_metadata)` as a reward of ours, by its own name.

    What stands beside the rewards is kept where it is a dict, of which we read what is one number a picture.
    """
    if not callable(function):
        raise ValueError(
            f"reward_function is a {type(function).__name__}; it is a function (images [B,3,H,W] in [0,1], prompts, "
            "prompt_metadata) -> (rewards [B], dict)."
        )

    def asked(images: Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]) -> Any:
        answer = function(images, prompts, metadata)
        if isinstance(answer, tuple) and len(answer) == 2:
            return answer if isinstance(answer[1], Mapping) else answer[0]
        return answer

    device = getattr(function, "device", None)
    if device is not None:
        asked.device = device  # type: ignore[attr-defined]  # where its network lives: it is asked in that thread
    return _called_as(function, asked)


def prompts_of(function: Callable[[], Any]) -> Callable[[], Any]:
    """TRL's `() -> (prompt, prompt_metadata)`; numpy's texts, as its examples draw them, become Python's."""
    if not callable(function):
        raise ValueError(f"prompt_function is a {type(function).__name__}; it is a function () -> (prompt, metadata).")

    def asked() -> Any:
        drawn = function()
        pair = isinstance(drawn, tuple | list) and len(drawn) == 2 and isinstance(drawn[0], str)
        return (str(drawn[0]), drawn[1]) if pair else drawn

    return _called_as(function, asked)


def _called_as(function: Callable[..., Any], asked: Callable[..., Any]) -> Callable[..., Any]:
    """`asked` by the name of the user's function; one made inside another goes by the outer one's: TRL's are `_fn`."""
    qualified = getattr(function, "__qualname__", type(function).__qualname__)
    asked.__module__ = getattr(function, "__module__", None) or type(function).__module__
    asked.__qualname__ = qualified
    asked.__name__ = qualified.partition(".<locals>")[0].rpartition(".")[2]
    return asked


class NoTracker:
    """In the place of accelerate's tracker where there is none: a hook that logs pictures runs, and logs nothing."""

    name = "none"

    def log(self, values: Mapping[str, Any], step: int | None = None, **settings: Any) -> None: ...

    def log_images(self, values: Mapping[str, Any], step: int | None = None, **settings: Any) -> None: ...

    def log_table(self, table_name: str, *columns: Any, step: int | None = None, **settings: Any) -> None: ...


def tracker_of(trackers: Sequence[Any]) -> Any:
    """The one that TRL hands to a hook: the first."""
    return trackers[0] if trackers else NoTracker()


def listed(batches: Sequence[Batch]) -> list[list[Any]]:
    """What TRL's DDPO hands over, a sampling batch: [images, prompts, prompt_metadata, rewards, reward_metadata]."""
    return [list(batch) for batch in batches]


def named(batch: Batch) -> dict[str, Any]:
    """What TRL's AlignProp hands to a hook, of its last batch."""
    images, prompts, metadata, rewards, _ = batch
    return {"images": images, "prompts": prompts, "prompt_metadata": metadata, "rewards": rewards}

"""What families that are flows share: the time grid of their scheduler."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from tastemaker.process.schedule import Schedule, from_sigmas


def scheduler(model: str, own: Any) -> FlowMatchEulerDiscreteScheduler:
    """The model's scheduler; what it has of noise of its own is left out, for the sampler decides on that.

    Errors: ValueError for another class, and for a flow that runs the other way.
    """
    if type(own) is not FlowMatchEulerDiscreteScheduler:
        raise ValueError(
            f"--model {model} has a {type(own).__name__}; known for a flow is the FlowMatchEulerDiscreteScheduler that "
            "its family is published with: put that one's scheduler_config.json into the model's folder scheduler/."
        )
    if own.config.invert_sigmas:
        raise ValueError(
            f"--model {model}: its scheduler has invert_sigmas, in which time runs the other way. Set it to false in "
            "scheduler_config.json if the model is of the family that its model_index.json says."
        )
    made: FlowMatchEulerDiscreteScheduler = FlowMatchEulerDiscreteScheduler.from_config(own.config)
    return made


def grid(
    own: FlowMatchEulerDiscreteScheduler,
    steps: int,
    *,
    patches: int,
    max_shift: float,
    sigmas: Sequence[float] | None = None,
) -> Schedule:
    """As the scheduler itself makes it: shift, its end, Karras' and other spacings are its own.

    patches: of the picture, by whose number a dynamic shift goes; max_shift: where the config names none; sigmas:
    before the shift, where the family's pipeline gives them.
    """
    config, extra = own.config, {}
    if config.use_dynamic_shifting:
        extra["mu"] = calculate_shift(
            patches,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", max_shift),
        )
    with warnings.catch_warnings():  # of a division by zero, whose result is refused below
        warnings.simplefilter("ignore", RuntimeWarning)
        own.set_timesteps(steps, sigmas=sigmas, **extra)
    return from_sigmas(own.timesteps, own.sigmas)

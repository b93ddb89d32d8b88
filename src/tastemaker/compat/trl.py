"""TRL's trainers of pictures. Their scripts run after one changed import:

    from tastemaker.compat import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

What differs from TRL, and why, is in docs/guides/coming_from.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tastemaker.compat import translation
from tastemaker.compat.callbacks import listed, named, prompts_of, reward_of, tracker_of
from tastemaker.compat.configs import AlignPropConfig, DDPOConfig
from tastemaker.compat.pipeline import DefaultDDPOStableDiffusionPipeline
from tastemaker.training.hook import Batch

if TYPE_CHECKING:
    from tastemaker.outcome import Run

__all__ = [
    "AlignPropConfig",
    "AlignPropTrainer",
    "DDPOConfig",
    "DDPOTrainer",
    "DefaultDDPOStableDiffusionPipeline",
    "settings",
]

Hook = Callable[[Any, int, Any], Any]
JUDGED = 64  # pictures of an evaluation, at most; TRL has none
# Of TRL's loop: neither to be called nor to be replaced in a subclass, for nothing here would call them.
INTERNAL = (
    *("step", "loss", "calculate_loss", "compute_rewards", "create_model_card", "accelerator", "autocast", "executor"),
    *("optimizer", "trainable_layers", "neg_prompt_embed", "stat_tracker", "num_train_timesteps", "first_epoch"),
    *("_generate_samples", "_train_batched_samples", "_setup_optimizer", "_save_model_hook", "_load_model_hook"),
)


def settings(
    config: DDPOConfig | AlignPropConfig,
    reward_function: Callable[..., Any],
    prompt_function: Callable[[], tuple[str, Any]],
    sd_pipeline: DefaultDDPOStableDiffusionPipeline,
) -> dict[str, Any]:
    """What TRL's trainer is made of as keywords of `tastemaker.train`.

    Prints which settings have no effect. Errors: ValueError naming the setting as TRL does.
    """
    if not isinstance(sd_pipeline, DefaultDDPOStableDiffusionPipeline):
        raise ValueError(
            f"sd_pipeline is a {type(sd_pipeline).__name__}; it is a DefaultDDPOStableDiffusionPipeline(NAME) of "
            "tastemaker.compat: a model is trained by its name, other samplers than DDIM are settings of "
            "tastemaker.DDPO."
        )
    found, made = sd_pipeline.found, translation.settings(config)
    if sd_pipeline.opened:
        translation.say(["the pipeline was opened: the model is loaded anew by its name, without changes made to it."])
    if not sd_pipeline.use_lora:
        made["lora"] = None
    elif found.lora:
        made["lora"] = {"file": str(found.lora)}
    if found.revision is not None:
        made["revision"] = found.revision
    # Said in full, or the model's own suggestions would be taken, whose prompts have no metadata of this function's.
    count = min(JUDGED, made["algorithm"].images)
    evaluation = {"prompts": None, "count": count, "images_per_prompt": 1, "steps": None, "guidance": None}
    return {
        **made,
        "model": found.model,
        "reward": reward_of(reward_function),
        "prompts": prompts_of(prompt_function),
        "held_out_rewards": (),
        "evaluation": evaluation,
    }


class Trainer:
    """What both trainers share.

    `settings` are the keywords that `train` gives to `tastemaker.train`: change them to say what TRL has no word for,
    such as `trainer.settings["ema"] = 0.99`.
    """

    config_class: ClassVar[type[DDPOConfig] | type[AlignPropConfig]]

    def __init__(
        self,
        config: Any,
        reward_function: Callable[..., Any],
        prompt_function: Callable[[], tuple[str, Any]],
        sd_pipeline: DefaultDDPOStableDiffusionPipeline,
        image_samples_hook: Hook | None = None,
    ) -> None:
        if not isinstance(config, self.config_class):
            raise ValueError(f"config is a {type(config).__name__}; it is a {self.config_class.__name__}.")
        self.config: Any = config
        self.reward_fn, self.prompt_fn = reward_function, prompt_function
        self.sd_pipeline, self.image_samples_callback = sd_pipeline, image_samples_hook
        self.settings = settings(config, reward_function, prompt_function, sd_pipeline)
        self.run: Run | None = None
        self._config = deepcopy(config)
        self._total = 0

    def __init_subclass__(cls) -> None:
        wrong = [name for name in INTERNAL if name in vars(cls)]
        if wrong:
            raise ValueError(
                f"{cls.__name__} replaces `{wrong[0]}` of TRL's training loop; the loop here is another and would "
                "never call it. Change the reward, or write an algorithm of your own (CONTRIBUTING.md)."
            )

    def train(self, epochs: int | None = None) -> None:
        """All epochs of the config, or so many; called again it goes on for as many more."""
        from tastemaker.run import train

        if self.config != self._config:
            raise ValueError(
                "the config was changed after the trainer was made, which has read it: make another trainer, or change "
                "trainer.settings."
            )
        if self.run is not None:
            self.settings |= {"output_dir": str(self.run.folder), "resume_from_checkpoint": "latest"}
        if self.run is None or self.run.done:
            self._total += self.config.num_epochs if epochs is None else epochs
        hook = self.image_samples_callback
        with _tf32(self.config.allow_tf32):
            told = None if hook is None else partial(self._tell, hook)
            self.run = train(**self.settings, iterations=self._total, on_samples=told)
        self.sd_pipeline.tuned(self.run)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """The model and `pytorch_lora_weights.safetensors`, for `load_lora_weights` and for the pipeline class."""
        if _first_process():
            self.sd_pipeline.save_pretrained(save_directory)

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """What TRL's example script calls at its end, and TRL lacks; none is `pretrained` in the run's folder."""
        home = self.run.folder / "pretrained" if output_dir is None and self.run else output_dir
        self.save_pretrained(home or "pretrained")

    def push_to_hub(self, repo_id: str | None = None, *, private: bool | None = None, token: str | None = None) -> Any:
        """The run on the hub: LoRA, card, curve, settings; the answer says where, or why it is not there.

        repo_id: owner/name, or a name in your own account; none is the run folder's name. A token is used for this call
        alone; without one it is that of `hf auth login` or HF_TOKEN.
        """
        from tastemaker.exports.hub import push

        if self.run is None:
            raise ValueError("push_to_hub: nothing has been trained: call trainer.train() first.")
        if not _first_process():
            return None
        with _token(token):
            pushed = push(self.run.folder, repo_id, private=private)
        print(pushed.message)
        return pushed

    def _tell(self, hook: Hook, batches: Sequence[Batch], iteration: int, trackers: Sequence[Any]) -> None:
        """Calls the hook as TRL's trainer of that name did."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        why = ": it belongs to TRL's training loop, and the loop here is another" if name in INTERNAL else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{why}")


class DDPOTrainer(Trainer):
    """TRL's trainer for DDPO (Black et al. 2023, arXiv:2305.13301), by `tastemaker.DDPO`."""

    config_class = DDPOConfig

    def _tell(self, hook: Hook, batches: Sequence[Batch], iteration: int, trackers: Sequence[Any]) -> None:
        """TRL's step counts optimizer steps, and is what it was when the pictures were drawn."""
        algorithm = self.settings["algorithm"]
        step = iteration * algorithm.updates * algorithm.inner_epochs
        hook(listed(batches), step, tracker_of(trackers))


class AlignPropTrainer(Trainer):
    """TRL's trainer for AlignProp (Prabhudesai et al. 2023, arXiv:2310.03739), by `tastemaker.AlignProp`.

    The reward is asked inside the loss, with gradients, on pictures on the model's device.
    """

    config_class = AlignPropConfig

    def _tell(self, hook: Hook, batches: Sequence[Batch], iteration: int, trackers: Sequence[Any]) -> None:
        """TRL's step counts optimizer steps, the one just made included."""
        if batches and (iteration + 1) % self.config.log_image_freq == 0:
            hook(named(batches[-1]), iteration + 1, tracker_of(trackers))


def _first_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """torch's switch for matrix products in fp32 on NVIDIA's cards; afterwards as it was before."""
    import torch

    if not (allowed and torch.cuda.is_available()):
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def _token(token: str | None) -> Iterator[None]:
    """HF_TOKEN inside, as it was before afterwards: written nowhere."""
    before = os.environ.get("HF_TOKEN")
    try:
        if token is not None:
            os.environ["HF_TOKEN"] = token
        yield
    finally:
        if token is not None:
            os.environ.pop("HF_TOKEN")
            if before is not None:
                os.environ["HF_TOKEN"] = before

"""TRL's pipeline object: the name of a model to train, and afterwards the tuned model to draw with."""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from tastemaker.folder import CONFIG
from tastemaker.policy import single_file
from tastemaker.policy.hub import INDEX, fetch, present_id, refusals
from tastemaker.policy.load import find, folder

if TYPE_CHECKING:
    from tastemaker.outcome import Run
    from tastemaker.policy.load import Files

LORA = "pytorch_lora_weights.safetensors"
PARTS = ("unet", "vae", "tokenizer", "scheduler", "text_encoder")
# Of TRL's training loop, which is another one here.
INTERNAL = ("scheduler_step", "rgb_with_grad", "autocast", "get_trainable_layers", "save_checkpoint", "load_checkpoint")


class Named(NamedTuple):
    """What a name stands for: a model, and a LoRA file that was found beside it."""

    model: str
    revision: str | None
    lora: Path | None


class DefaultDDPOStableDiffusionPipeline:
    """A model by its name: a built-in one, a folder in diffusers layout, a file or a hub id. Loaded when it is used.

    A LoRA file beside the model, as `save_pretrained` and `push_to_hub` leave one, is what training goes on from.
    `sd_pipeline`, calls and the parts (`unet`, `vae`, ...) are those of a plain diffusers pipeline: of the model as it
    is named, and after `train` of the tuned one.
    """

    def __init__(
        self, pretrained_model_name: str, *, pretrained_model_revision: str = "main", use_lora: bool = True
    ) -> None:
        self.pretrained_model = str(pretrained_model_name)
        self.pretrained_revision = pretrained_model_revision
        self._asked_for_lora = use_lora
        self._run: Run | None = None
        self._opened: Any = None
        self._bars: dict[str, Any] = {}

    @cached_property
    def found(self) -> Named:
        """What the name stands for; of a hub id the small files are fetched. Errors: ValueError for a lost file."""
        name = self.pretrained_model
        if (home := folder(name)) is not None:
            return _beside(home, Named(name, None, None))
        asked = Named(name, None if self.pretrained_revision == "main" else self.pretrained_revision, None)
        if single_file.named(name) is not None:
            return asked
        try:
            return _beside(fetch(present_id(name, asked.revision), [INDEX, LORA, CONFIG], asked.revision), asked)
        except refusals():
            return asked  # loading it says why

    @property
    def use_lora(self) -> bool:
        """A LoRA that is there already is trained on, whatever was asked for, as in TRL."""
        return self._asked_for_lora or self.found.lora is not None

    @property
    def opened(self) -> bool:
        """Whether somebody looked inside: what they changed there is not what is trained."""
        return self._opened is not None

    @property
    def sd_pipeline(self) -> Any:
        """The diffusers pipeline, with DDIM and without a safety checker, as TRL's."""
        if self._opened is None:
            from diffusers import DDIMScheduler

            made: Any = self._run.pipeline() if self._run else self._base()[0]
            if not self._run and (lora := self.found.lora):
                made.load_lora_weights(str(lora.parent), weight_name=lora.name)
            if "unet" not in made.components:
                raise ValueError(
                    f"{self.found.model} is a {type(made).__name__}; TRL's class is for Stable Diffusion 1.x and 2.x. "
                    "Train it with tm.train, and draw with `Run.pipeline()`."
                )
            made.scheduler = DDIMScheduler.from_config(made.scheduler.config)
            made.safety_checker = None
            made.set_progress_bar_config(**self._bars)
            self._opened = made
        return self._opened

    def tuned(self, run: Run) -> None:
        """From now on this is the result of a run."""
        self._run, self._opened = run, None

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Of drawing with it; training shows bars of its own."""
        self._bars |= settings
        if self._opened is not None:
            self._opened.set_progress_bar_config(**self._bars)

    def save_pretrained(self, output_dir: str | Path) -> None:
        """The base model in diffusers layout with the LoRA file beside it; without LoRA the tuned model.

        `load_lora_weights(output_dir)` reads it, and this class. Errors: ValueError before a training has ended.
        """
        if self._run is None or self._run.weights is None:
            raise ValueError(
                "save_pretrained: nothing has been trained with this pipeline: call trainer.train() first."
            )
        home, weights = Path(output_dir).expanduser(), self._run.weights
        if weights.is_dir():
            shutil.copytree(weights, home, dirs_exist_ok=True)
            return
        from tastemaker.policy.pipelines import write

        write(*self._base(), home)
        shutil.copyfile(weights, home / LORA)

    def _base(self) -> tuple[Any, Files]:
        """The model as it is named, on the CPU in fp32, and where it lies."""
        import torch

        from tastemaker.policy.pipelines import read

        files = find(self.found.model, self.found.revision)
        return read(files, {"default": torch.float32}), files

    def __call__(self, *prompts: Any, **settings: Any) -> Any:
        """Draws: diffusers' own call, with its own arguments; `.images` of the answer are the pictures."""
        return self.sd_pipeline(*prompts, **settings)

    def __getattr__(self, name: str) -> Any:
        if name in PARTS:
            return getattr(self.sd_pipeline, name)
        why = ": it belongs to TRL's training loop, and the loop here is another" if name in INTERNAL else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{why}")


def _beside(home: Path, asked: Named) -> Named:
    """The LoRA in a folder, and the model itself; where only the LoRA was pushed, the one its run was made with."""
    lora = home / LORA if (home / LORA).is_file() else None
    if lora and not (home / INDEX).is_file() and (home / CONFIG).is_file():
        settings = yaml.safe_load((home / CONFIG).read_text(encoding="utf-8"))
        return Named(str(settings["model"]), settings.get("revision"), lora)
    return asked._replace(lora=lora)

"""The settings of a run: all that no paper fixes. A field is a flag, a recipe's key and an argument of `train`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from tastemaker.evaluation.alarms import Alarms, check_stops
from tastemaker.policy.adapter import LoRA
from tastemaker.process.samplers import Sampler

UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}


def need(found: bool, message: str) -> None:
    """Raise the user's error unless a setting is as it has to be."""
    if not found:
        raise ValueError(message)


def amount(text: str) -> int:
    """Bytes of an amount of memory such as `12GB` (10^9) or `8 GiB` (2^30)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(\w+)", text.strip())
    unit = next((size for name, size in UNITS.items() if found and name.lower() == found[2].lower()), 0)
    size = int(float(found[1]) * unit) if found else 0
    need(size > 0, f"fit is {text!r}; it is an amount of memory such as 12GB ({', '.join(UNITS)}).")
    return size


@dataclass(frozen=True)
class Evaluation:
    """Pictures of fixed prompts from fixed noise, of the base and of the tuned model: the same for every algorithm."""

    prompts: Any = None  # a name, file or list; none is the training set's held-out one; `train` are the training's own
    count: int = 64  # prompts, the first of the source in its keyed order
    images_per_prompt: int = 1  # pictures of each prompt, from different noise
    steps: int | None = None  # length of the chain; none is the algorithm's `steps`
    guidance: float | None = None  # classifier-free guidance; none is the algorithm's `guidance`
    sampler: Sampler | Literal["deterministic", "train"] = "deterministic"  # `train` repeats the training chain
    every: int = 0  # iterations from one evaluation to the next; 0 is before the first and after the last alone

    def __post_init__(self) -> None:
        need(self.count >= 1, f"count is {self.count}; at least 1 prompt is needed.")
        need(self.images_per_prompt >= 1, f"images_per_prompt is {self.images_per_prompt}; at least 1 is needed.")
        need(self.steps is None or self.steps >= 1, f"steps is {self.steps}; a chain has at least 1 step.")
        need(self.guidance is None or self.guidance >= 0, f"guidance is {self.guidance}; it is 0 or more.")
        need(self.every >= 0, f"every is {self.every}; it is 0 or a number of iterations.")


@dataclass(frozen=True)
class PlanSettings:
    """What the machine dictates. Neither number changes what is learned, only memory and time."""

    micro_batch: int | None = None  # items (for policy gradients: transitions) in one training call; none is solved for
    sampling_batch: int | None = None  # pictures in one sampling call; none is solved for

    def __post_init__(self) -> None:
        need(self.micro_batch is None or self.micro_batch >= 1, f"micro_batch is {self.micro_batch}; it is 1 or more.")
        need(
            self.sampling_batch is None or self.sampling_batch >= 1,
            f"sampling_batch is {self.sampling_batch}; it is 1 or more.",
        )


@dataclass(frozen=True)
class RunSettings:
    """The flags of a run, beside `algorithm`."""

    model: str | None = None  # a built-in model, a hub id, a folder in diffusers layout, or a .safetensors file
    revision: str | None = None  # branch, tag or commit of a hub id
    variant: str | None = None  # variant of the weight files, such as fp16
    reward: Any = None  # a reward's name, `file.py:function`, a function, or a weighted sum: `jpeg_proxy:0.3,colour:1`
    lpips_weights: str = "auto"  # of the distance that diversity is measured by: auto, download, off, or their path
    held_out_rewards: tuple[Any, ...] = ()  # rewards that evaluations report beside it and nothing trains on
    prompts: Any = None  # a set, a file (.txt .jsonl .csv .tsv .tar), hub:owner/name, file.py:function, or a list
    negative_prompt: str = ""  # what guidance leads away from, in training, evaluation and `sample`
    output_dir: str | None = None  # where everything goes; none is runs/<algorithm>-<model>-<reward>-<k>
    overwrite: bool = False  # empty an existing output_dir first
    seed: int = 0  # a run is a function of its settings and this number
    device: Literal["auto", "cuda", "mps", "xpu", "cpu"] = "auto"  # `auto` is the first of these that is there
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"  # the network's; its default is `accelerate config`'s choice
    resolution: int | None = None  # pixels of a square picture; none is the model's own
    height: int | None = None  # pixels; none is `resolution`
    width: int | None = None  # pixels; none is `resolution`
    lora: LoRA | None = field(default_factory=LoRA)  # the adapter; `--no-lora` trains the whole network
    gradient_checkpointing: bool = False  # compute activations again in the backward pass instead of keeping them
    vae_slicing: bool = False  # decode one picture at a time
    vae_tiling: bool = False  # decode large pictures in overlapping tiles, which shows slightly other pictures
    attention_backend: str | None = None  # diffusers' name of a kernel: flash, xformers, ...; none is torch's choice
    compile: bool = False  # torch.compile of the blocks that the network repeats: slow to begin, then faster
    cpu_offload: bool = False  # the VAE visits the device for decoding alone
    fsdp: bool = False  # each of several processes keeps a part of the weights, where `--no-lora` trains all of them
    quantise: Literal["8bit", "4bit"] | None = None  # bits of the frozen network (pip install 'tastemaker[memory]')
    adam_beta1: float = 0.9  # AdamW's memory of the gradient
    adam_beta2: float = 0.999  # and of its square
    adam_epsilon: float = 1e-8  # added to the root of that before it divides
    use_8bit_adam: bool = False  # optimizer state in 8 bits (pip install 'tastemaker[memory]')
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"  # shape of the learning rate after warm-up
    lr_warmup_steps: int = 0  # optimizer steps in which the learning rate rises from 0
    max_grad_norm: float | None = 1.0  # gradients are scaled down to this norm; none leaves them alone
    ema: float | None = None  # decay of an average of the weights, which is what is evaluated and kept; none is off
    max_failed: float = 0.5  # share of an iteration's scores that may fail before the run stops with a checkpoint
    checkpointing_steps: int = 10  # iterations from one checkpoint to the next; 0 is after the last alone
    checkpoints_total_limit: int | None = None  # the newest ones that are kept; none keeps all
    best_checkpoints: int = 1  # the best ones by `best_metric` that are kept beside those; 0 keeps none
    best_metric: str | None = None  # reward, a part of it, or a held-out reward; none is what `alarms.best` says
    resume_from_checkpoint: str | None = None  # `latest`, or a checkpoint's folder
    save_samples: int | Literal["all"] = 16  # training pictures that are kept of an iteration
    stop_on: tuple[str, ...] = ()  # alarms that stop the run when they begin, such as parting,artifact; or any
    report_to: tuple[str, ...] = ()  # trackers: tensorboard, wandb, trackio, or another that accelerate knows
    push_to_hub: bool = False  # put the tuned weights, with a card, on the Hugging Face hub when the run has ended
    hub_model_id: str | None = None  # owner/name there; none is the run folder's name in your own account
    fit: str | None = None  # memory to stay within, such as 12GB: chooses micro_batch, checkpointing and slicing
    dry_run: bool = False  # resolve everything, print the plan, stop
    evaluation: Evaluation = field(default_factory=Evaluation)  # how a model is judged
    alarms: Alarms | None = field(default_factory=Alarms)  # the watch on reward hacking; `--no-alarms` is none
    plan: PlanSettings = field(default_factory=PlanSettings)  # rows of the network calls

    def __post_init__(self) -> None:
        for name in ("resolution", "height", "width"):
            value = getattr(self, name)
            need(value is None or value >= 8, f"{name} is {value} pixels; at least 8 are needed.")
        need(
            self.resolution is None or (self.height is None and self.width is None),
            "resolution is given beside height or width: give resolution for a square, or height and width.",
        )
        need(0 <= self.max_failed <= 1, f"max_failed is {self.max_failed}; it is a share between 0 and 1.")
        need(self.ema is None or 0 <= self.ema < 1, f"ema is {self.ema}; a decay is at least 0 and below 1.")
        need(
            self.max_grad_norm is None or self.max_grad_norm > 0,
            f"max_grad_norm is {self.max_grad_norm}; it is positive, or none.",
        )
        for name in ("adam_beta1", "adam_beta2"):
            need(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it is at least 0 and below 1.")
        need(self.adam_epsilon > 0, f"adam_epsilon is {self.adam_epsilon}; it is positive.")
        for name in ("lr_warmup_steps", "checkpointing_steps", "best_checkpoints"):
            need(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it is 0 or more.")
        self._check_kept()
        need(self.save_samples == "all" or self.save_samples >= 0, f"save_samples is {self.save_samples}; 0 or more.")
        need(
            not (self.overwrite and self.resume_from_checkpoint),
            "overwrite empties the folder that resume_from_checkpoint would read: give one of them.",
        )
        need(
            self.quantise is None or self.lora is not None,
            f"quantise is {self.quantise!r}, but without LoRA the whole network is trained: leave one of them out.",
        )
        if self.fsdp:
            _check_fsdp(self)
        if self.fit is not None:
            amount(self.fit)
        check_stops(self.stop_on, self.alarms)

    def _check_kept(self) -> None:
        """What is said of checkpoints that stay."""
        limit = self.checkpoints_total_limit
        need(
            limit is None or limit >= 2,
            f"checkpoints_total_limit is {limit}; at least 2 are kept, so that one is whole while the next is written.",
        )
        need(
            self.best_metric is None or self.best_checkpoints > 0,
            f"best_metric is {self.best_metric!r}, but best_checkpoints is 0: leave one of them out.",
        )
        need(
            self.best_metric is None or self.alarms is None or self.alarms.best is None,
            f"best_metric is {self.best_metric!r}, which alarms.best says too: leave one of them out.",
        )

    @property
    def fit_bytes(self) -> int | None:
        """`fit` in bytes."""
        return None if self.fit is None else amount(self.fit)


def _check_fsdp(run: RunSettings) -> None:
    """What goes with weights that are cut over processes, and what does not or was never tried."""
    need(
        run.lora is None,
        "fsdp has little to cut where a LoRA is trained, which is small: leave it out, or train the whole "
        "network: lora=None, on the command line --no-lora.",
    )
    for name in ("use_8bit_adam", "compile", "cpu_offload"):
        need(not getattr(run, name), f"fsdp does not go with {name}: leave one of them out.")
    need(
        run.mixed_precision != "fp16",
        "fsdp does not go with mixed_precision=fp16, whose scaled loss was not tried with it: use bf16, or no.",
    )

"""The rows of the learning table: what each runs, and with what its reward is judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

HELD_OUT = {"prompts": "shapes_heldout", "count": 32, "images_per_prompt": 4, "steps": 20, "guidance": 3.0}
SHORT = {"images": 32, "steps": 10, "guidance": 1.0, "learning_rate": 3e-3, "iterations": 40}
LONG = {"images": 64, "steps": 10, "guidance": 1.0, "updates": 4, "learning_rate": 2e-3, "iterations": 240}
LONG |= {"prompt_history": 32, "prompt_minimum": 8}  # captions of one object are always right, those of four seldom


@dataclass(frozen=True)
class Row:
    """One line of the table: a kind of run, over some seeds, with its control."""

    name: str
    group: str
    target: str  # an algorithm or a recipe
    reward: str
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the algorithm, over the model's defaults
    evaluation: Mapping[str, Any] = field(default_factory=lambda: HELD_OUT)
    seeds: int = 3
    control: bool = True
    judge: str = ""  # the reward whose change counts, where it is not the one that is trained on
    more: Mapping[str, Any] = field(default_factory=dict)  # of the run's settings, over the model's defaults
    beside: tuple[str, ...] = ()  # other rewards whose change is written down
    model: str = "shapes"
    seconds: float = 90.0  # that the training of one run may take on a machine of two cores

    @property
    def judged(self) -> str:
        """The reward whose change counts."""
        return self.judge or self.reward

    def settings(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """All that decides what a run does, as `tastemaker.train` takes it, with `target` and `fields`."""
        own = {"target": self.target, "fields": dict(self.fields), "reward": self.reward, "prompts": "shapes"}
        own |= {"judge": self.judge} if self.judge else {}
        own |= {"beside": self.beside} if self.beside else {}
        return own | {"evaluation": dict(self.evaluation), **self.more} | overrides


def _short(algorithm: str, reward: str, *, seeds: int = 3, **fields: Any) -> Row:
    fields = SHORT | fields
    return Row(f"{algorithm}-{reward.removeprefix('jpeg_')}", "short", algorithm, reward, fields, seeds=seeds)


MORE = HELD_OUT | {"images_per_prompt": 8}  # 256 pictures
# Reward gradients: every variant with the JPEG estimate, judged by real files, with the judge, and with both.
CLIMB = {"images": 16, "updates": 1, "steps": 10, "guidance": 1.0, "iterations": 8, "learning_rate": 5e-3}
GENTLE = {"images": 8, "iterations": 12, "learning_rate": 3e-3}  # at twice the rate colours shift before 0.8 SD
SLOW = {"images": 32, "iterations": 30, "learning_rate": 2e-3}  # objects that are missing take longer to appear
SUM = "jpeg_proxy:1,shapes_judge:1"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "draft": ("draft", {"k": 1, "learning_rate": 6e-3}),
    "draft_lv": ("draft", {"copies": 2}),
    "draft_plus": ("draft", {"k": 1, "kl": 0.01, "learning_rate": 6e-3}),
    "alignprop": ("alignprop", {}),
    "refl": ("refl", {}),
    "drtune": ("drtune", {"active": 5, "early": 2}),
    "grad_copy": ("grad_copy", {}),
}


def _gradient(variant: str) -> Iterator[Row]:
    algorithm, own = VARIANTS[variant]
    few = {"lr_warmup_steps": 0}  # eight updates leave no time to warm up
    often = HELD_OUT | {"every": {"draft": 3, "alignprop": 2}.get(variant, 4)}  # those two have a goal
    jpeg, alone = "jpeg_compressibility", CLIMB | own | (GENTLE if variant == "draft" else {})
    yield Row(f"{variant}-jpeg", "gradient", algorithm, "jpeg_proxy", alone, often, judge=jpeg, more=few)
    yield Row(f"{variant}-judge", "gradient", algorithm, "shapes_judge", CLIMB | own | SLOW)
    yield Row(
        f"{variant}-sum", "gradient", algorithm, SUM, CLIMB | own, HELD_OUT | {"every": 4}, more=few, beside=(jpeg,)
    )


# The forward process: 32 pictures an iteration, noised again at a few levels each; judged often, for they are quick.
# Three controls differ too much to tell runs from them: six seeds.
NOISED: dict[str, dict[str, Any]] = {
    "diffusion_nft": {"per_prompt": 1, "levels": 2, "kl": 0.0},
    "awm": {"per_prompt": 1, "levels": 2, "kl": 0.0},
    "ram": {"per_prompt": 1, "levels": 3, "strength": 2.0},
    "rwr": {"levels": 3, "inner_epochs": 1, "temperature": 0.5, "space": "velocity"},
    "diffusion_dpo": {
        "per_prompt": 4,
        "levels": 3,
        "beta": 100.0,
        "space": "velocity",
        "weight_decay": 1e-4,
        "iterations": 12,
    },
}


# Policy gradients with a hold or with groups, and on which models all of them are run.
HELD = {"images": 32, "updates": 4, "steps": 10, "guidance": 1.0, "learning_rate": 3e-3, "clip": 1e-3, "iterations": 20}
POLICY: dict[str, dict[str, Any]] = {
    "ddpo": {},
    "dpok": {"timestep_fraction": 1.0, "reward_weight": 1.0, "weight_decay": 1e-4},
    "flow_grpo": {"per_prompt": 4, "kl": 0.0, "advantage": "global"},
}
MODELS = {"shapes": ""}  # -> what their rows' names end in; a flow joins when its weights are in the package


def _both() -> Iterator[Row]:
    """The algorithms of the forward process and of transitions, on every built-in model."""
    more, jpeg = {"lr_warmup_steps": 0}, "jpeg_compressibility"
    for model, ending in MODELS.items():
        for algorithm in NOISED:
            yield _noised(algorithm, model, ending)
        for algorithm, own in POLICY.items():
            if algorithm == "ddpo" and model == "shapes":
                continue  # has its row among the short ones
            sampler = {"sampler": {"name": "ddim"}} if algorithm == "flow_grpo" and model == "shapes" else {}
            name, fields = f"{algorithm}-compressibility{ending}", HELD | own | sampler
            yield Row(name, "policy", algorithm, jpeg, fields, HELD_OUT | {"every": 5}, more=more, model=model)


def _noised(algorithm: str, model: str, ending: str) -> Row:
    fields = {"images": 32, "updates": 1, "steps": 10, "guidance": 1.0, "iterations": 8, "learning_rate": 3e-3}
    fields |= NOISED[algorithm]
    more = {"lr_warmup_steps": 0}
    own = HELD_OUT | {"every": 2}
    name = f"{algorithm}-compressibility{ending}"
    reward = "jpeg_compressibility"
    return Row(name, "forward", algorithm, reward, fields, own, seeds=6, more=more, model=model)


ROWS = (
    _short("ddpo", "jpeg_compressibility", updates=4),
    _short("ddpo", "jpeg_incompressibility", updates=4),
    # One step an iteration learns so much less that three seeds did not tell it from its control.
    _short("reinforce", "jpeg_compressibility", updates=1, learning_rate=1e-3, seeds=6),
    _short("reinforce", "jpeg_incompressibility", updates=1, learning_rate=1e-3),
    Row(
        "ddpo-alignment",
        "long",
        "ddpo",
        "shapes_alignment",
        LONG,
        MORE | {"every": 40},
        seeds=1,
        control=False,
        seconds=1500.0,
    ),
    # The level that reward gradients have to reach: the demo's settings after 2,560 queries.
    Row(
        "ddpo-2560",
        "queries",
        "ddpo",
        "jpeg_compressibility",
        {"iterations": 40},
        HELD_OUT | {"every": 10},
        control=False,
        seconds=640.0,
    ),
    Row("demo", "demo", "ddpo", "jpeg_compressibility", evaluation=MORE, seconds=480.0),
    Row(
        "ddpo-64x20",
        "fast",
        "ddpo",
        "jpeg_compressibility",
        {"steps": 20, "iterations": 24},
        MORE | {"every": 8},
        seeds=1,
        control=False,
        seconds=900.0,
    ),
    Row(
        "shapes_ddpo_fast",
        "fast",
        "shapes_ddpo_fast",
        "jpeg_compressibility",
        evaluation=MORE | {"every": 5},
        control=False,
        seconds=480.0,
    ),
    *_both(),
    *(row for variant in VARIANTS for row in _gradient(variant)),
)

"""The rows of the learning table: what each runs, and with what its reward is judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

NOW = {"lr_warmup_steps": 0}  # so few updates leave no time to warm up
HELD_OUT = {"prompts": "shapes_heldout", "count": 32, "images_per_prompt": 4, "steps": 20, "guidance": 3.0}
SHORT = {"images": 32, "steps": 10, "guidance": 1.0, "learning_rate": 3e-3, "iterations": 40}
GUIDED = {"guidance": 3.0, "learning_rate": 8e-3}
LONG = {"images": 64, "steps": 10, "guidance": 1.0, "updates": 4, "learning_rate": 2e-3, "iterations": 240}
LONG |= {"prompt_history": 32, "prompt_minimum": 8}  # captions of one object are always right, those of four seldom


@dataclass(frozen=True)
class Row:
    """One line of the table: a kind of run, over some seeds, with its control."""

    name: str
    group: str
    target: str  # an algorithm or a recipe
    reward: str  # empty: the recipe's
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
# Reward gradients: every variant with the JPEG estimate, judged by real files, with the judge, and with both. Adam
# makes a control's steps, whose gradients nearly cancel, as long as its run's: only many short ones lead it nowhere.
CLIMB = {"images": 16, "updates": 1, "steps": 10, "guidance": 1.0, "iterations": 8, "learning_rate": 5e-3}
PATIENT = {"iterations": 48, "learning_rate": 3e-4}
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
    jpeg, often = "jpeg_compressibility", HELD_OUT | {"every": 16}
    row = Row(f"{variant}-jpeg", "gradient", algorithm, "jpeg_proxy", CLIMB | own | PATIENT, often, judge=jpeg)
    yield replace(row, more=NOW, seeds=6 if variant == "alignprop" else 3)  # its gradient is the least steady
    yield Row(f"{variant}-judge", "gradient", algorithm, "shapes_judge", CLIMB | own | SLOW)
    yield Row(
        f"{variant}-sum", "gradient", algorithm, SUM, CLIMB | own, HELD_OUT | {"every": 4}, more=NOW, beside=(jpeg,)
    )


# The same in a few steps, against DDPO: how many pictures have to be scored.
GENTLE = {"images": 4, "iterations": 30, "learning_rate": 9e-4}  # in longer steps colours shift before DDPO's level


def _quick(variant: str) -> Row:
    algorithm, own = VARIANTS[variant]
    often = HELD_OUT | {"every": {"draft": 6, "alignprop": 2}.get(variant, 4)}  # those two have a goal
    fields = CLIMB | own | (GENTLE if variant == "draft" else {})
    row = Row(f"{variant}-quick", "queries", algorithm, "jpeg_proxy", fields, often, more=NOW, control=False)
    return replace(row, judge="jpeg_compressibility")


# The CLIP of the built-in world and the head on it, by values and by gradients; the oracle and the taste that the head
# guesses stand beside. Judged without guidance, where the base has more to learn about captions: that is nearly all
# counts, which are decided early in a chain and take many pictures. The gradient through a chain of five steps is
# steadier by far than through ten, or their last eight; such runs are judged as they are trained, by five steps.
CLIP = "model: shapes"
FREE = HELD_OUT | {"guidance": 1.0}
FIVE = FREE | {"steps": 5}
EARLY = {"k": 5, "images": 32, "updates": 1, "steps": 5, "guidance": 1.0, "learning_rate": 1.5e-4, "iterations": 60}
RATED = CLIMB | SLOW | {"k": 1}


def _clips() -> Iterator[Row]:
    for reward, algorithm, fields, evaluation, seeds, seconds in (  # six seeds where three did not suffice
        ("aesthetic", "ddpo", SHORT | {"updates": 4}, FREE, 6, 150.0),
        ("aesthetic", "draft", RATED, FREE, 3, 90.0),
        ("clip_score", "ddpo", LONG | {"iterations": 60}, FREE | {"images_per_prompt": 8, "every": 20}, 6, 500.0),
        ("clip_score", "draft", EARLY, FIVE | {"images_per_prompt": 8, "every": 20}, 6, 200.0),
    ):
        spec, name = f"{reward}{{{CLIP}}}", f"{algorithm}-{reward}"
        yield Row(name, "clip", algorithm, spec, fields, evaluation, seeds, beside=("shapes_taste",), seconds=seconds)


# The forward process: 32 pictures an iteration, noised again at a few levels each; judged often, for they are quick.
# Three controls differ too much to tell runs from them: six seeds. RWR, and DiffusionNFT on the flow, draw in 20 steps,
# and without noise: what imitates other chains learns what these leave out, and controls have smaller files too.
NOISED: dict[str, dict[str, Any]] = {
    "diffusion_nft": {
        "images": 64,
        "per_prompt": 1,
        "levels": 2,
        "kl": 0.0,
        "iterations": 12,
        "learning_rate": 1e-3,
    },
    "awm": {"per_prompt": 1, "levels": 2, "kl": 0.0},
    "ram": {"per_prompt": 1, "levels": 3, "strength": 2.0},
    "rwr": {
        "levels": 3,
        "inner_epochs": 1,
        "temperature": 0.5,
        "space": "velocity",
        "sampler": {"name": "ddim", "eta": 0.0},
        "steps": 20,
        "iterations": 24,
        "learning_rate": 6e-4,
    },
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


def _policies() -> Iterator[Row]:
    """Algorithms of transitions on `shapes`; ddpo's row is among the short ones."""
    for algorithm in ("dpok", "flow_grpo"):
        sampler = {"sampler": {"name": "ddim"}} if algorithm == "flow_grpo" else {}
        seeds = 6 if algorithm == "flow_grpo" else 3  # three did not tell it from its control
        yield replace(_policy(algorithm, HELD | POLICY[algorithm] | sampler), seeds=seeds)


def _policy(algorithm: str, fields: Mapping[str, Any], ending: str = "", model: str = "shapes") -> Row:
    name = f"{algorithm}-compressibility{ending}"
    often = HELD_OUT | {"every": 5}
    return Row(name, "policy", algorithm, "jpeg_compressibility", fields, often, more=NOW, model=model)


def _noised(algorithm: str, ending: str = "", model: str = "shapes", **own: Any) -> Row:
    fields = {"images": 32, "updates": 1, "steps": 10, "guidance": 1.0, "iterations": 8, "learning_rate": 3e-3}
    fields |= NOISED[algorithm] | own
    name, reward = f"{algorithm}-compressibility{ending}", "jpeg_compressibility"
    often = HELD_OUT | {"every": {"diffusion_nft": 4, "rwr": 8}.get(algorithm, 2)}
    return Row(name, "forward", algorithm, reward, fields, often, seeds=6, more=NOW, model=model)


# The flow: the same runs at rates of its own, from trials on seed 1 (RWR and DiffusionNFT: 0). Those of transitions are
# noisy in their first three steps alone, with twice the pictures, by a trial on seed 0: with noise in all steps seeds
# did not agree.
FLOW = "shapes-flow"
FIRST = {"name": "window", "inside": "flow_sde", "size": 3, "last": 2}
STEADY = {"images": 64, "learning_rate": 1.5e-3, "iterations": 10, "sampler": FIRST}
OTHERS = {"diffusion_nft": {"images": 32, "steps": 20, "learning_rate": 3e-3}, "rwr": {"learning_rate": 1.2e-3}}
SHIFTED = {"draft": {"images": 8, "iterations": 12}} | dict.fromkeys(
    ("alignprop", "refl"), PATIENT | {"learning_rate": 6e-4}
)
ONCE = {"steps": 10, "guidance": 1.0, "updates": 1, "learning_rate": 4e-3, "iterations": 12}  # of REINFORCE


def _flow() -> Iterator[Row]:
    for algorithm in NOISED:
        yield _noised(algorithm, "-flow", FLOW, **OTHERS.get(algorithm, {"learning_rate": 6e-3}))
    for algorithm, own in POLICY.items():
        yield _policy(algorithm, HELD | own | STEADY, "-flow", FLOW)
    yield _policy("reinforce", STEADY | ONCE, "-flow", FLOW)
    for variant in VARIANTS:
        row, own = _quick(variant), {"learning_rate": 3e-3} | SHIFTED.get(variant, {})
        seeds = 6 if variant == "draft_lv" else 3  # where three did not tell it from its control
        fields, often = {**row.fields, **own}, {"draft": 3, "alignprop": 16, "refl": 16}.get(variant, 4)
        row = replace(row, name=f"{variant}-jpeg-flow", group="gradient-flow", control=True, seeds=seeds, model=FLOW)
        yield replace(row, fields=fields, evaluation={**row.evaluation, "every": often})


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
    # The level that reward gradients have to reach: the demo's DDPO after 2,560 queries.
    Row(
        "ddpo-2560",
        "queries",
        "shapes_demo",
        "",
        evaluation=HELD_OUT | {"every": 2},
        control=False,
        judge="jpeg_compressibility",
        more={"iterations": 10},
        seconds=640.0,
    ),
    Row("demo", "demo", "shapes_demo", "", evaluation=MORE, judge="jpeg_compressibility", seconds=480.0),
    Row("bare", "bare", "ddpo", "jpeg_compressibility", evaluation=MORE, seconds=480.0),  # no second reward
    Row(
        "ddpo-64x20",
        "fast",
        "ddpo",
        "jpeg_compressibility",
        GUIDED | {"steps": 20, "iterations": 24},
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
    *_clips(),
    *(_noised(algorithm) for algorithm in NOISED),
    *_policies(),
    *(_quick(variant) for variant in VARIANTS),
    *(row for variant in VARIANTS for row in _gradient(variant)),
    *_flow(),
)

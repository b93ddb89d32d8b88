"""The algorithms, one file a paper; `TABLE` is where names are looked up."""

TABLE = {
    "ddpo": "tastemaker.algorithms.ddpo:DDPO",
    "reinforce": "tastemaker.algorithms.reinforce:REINFORCE",
    "draft": "tastemaker.algorithms.draft:DRaFT",
    "alignprop": "tastemaker.algorithms.alignprop:AlignProp",
    "refl": "tastemaker.algorithms.refl:ReFL",
    "drtune": "tastemaker.algorithms.drtune:DRTune",
    "grad_copy": "tastemaker.algorithms.grad_copy:GradCopy",
}
# What each asks of the reward (any, or a differentiable one) and of the rest: for `tastemaker explain`.
NEEDS = {
    "ddpo": "any reward; a sampler with random steps, such as ddim with eta above 0",
    "reinforce": "any reward; a sampler with random steps, such as ddim with eta above 0",
    "draft": "a differentiable reward",
    "alignprop": "a differentiable reward",
    "refl": "a differentiable reward",
    "drtune": "a differentiable reward",
    "grad_copy": "a differentiable reward",
}

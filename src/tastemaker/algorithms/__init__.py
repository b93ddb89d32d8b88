"""The algorithms, one file a paper; `TABLE` is where names are looked up."""

TABLE = {
    "ddpo": "tastemaker.algorithms.ddpo:DDPO",
    "reinforce": "tastemaker.algorithms.reinforce:REINFORCE",
}
# What each asks of the reward (any, or a differentiable one) and of the rest: for `tastemaker explain`.
NEEDS = {
    "ddpo": "any reward; a sampler with random steps, such as ddim with eta above 0",
    "reinforce": "any reward; a sampler with random steps, such as ddim with eta above 0",
}

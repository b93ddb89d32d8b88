"""The algorithms, one file a paper; `TABLE` is where names are looked up."""

TABLE = {
    "ddpo": "tastemaker.algorithms.ddpo:DDPO",
    "reinforce": "tastemaker.algorithms.reinforce:REINFORCE",
    "rwr": "tastemaker.algorithms.rwr:RWR",
    "diffusion_nft": "tastemaker.algorithms.diffusion_nft:DiffusionNFT",
    "awm": "tastemaker.algorithms.awm:AWM",
    "ram": "tastemaker.algorithms.ram:RAM",
    "diffusion_dpo": "tastemaker.algorithms.diffusion_dpo:DiffusionDPO",
    "dpok": "tastemaker.algorithms.dpok:DPOK",
    "flow_grpo": "tastemaker.algorithms.flow_grpo:FlowGRPO",
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
    "rwr": "any reward",
    "diffusion_nft": "any reward",
    "awm": "any reward",
    "ram": "any reward",
    "diffusion_dpo": "any reward; it finds the best and the worst of a prompt's pictures, unless pairs are given",
    "dpok": "any reward; a sampler with random steps, such as ddim with eta above 0",
    "flow_grpo": "any reward; a sampler with random steps, such as flow_sde; groups (per_prompt 2 or more)",
    "draft": "a differentiable reward",
    "alignprop": "a differentiable reward",
    "refl": "a differentiable reward",
    "drtune": "a differentiable reward",
    "grad_copy": "a differentiable reward",
}

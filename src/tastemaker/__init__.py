"""Tastemaker teaches text-to-image models a taste: fine-tuning on any reward, and a word when the reward is gamed."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# name -> "module:attribute" or "module", imported when it is asked for: `import tastemaker` costs no torch.
PUBLIC = {
    "train": "tastemaker.run:train",
    "mix": "tastemaker.commands.mix:mix",
    "export": "tastemaker.commands.export:export",
    "train_reward": "tastemaker.commands.train_reward:train_reward",
    "Run": "tastemaker.outcome:Run",
    "DDPO": "tastemaker.algorithms.ddpo:DDPO",
    "REINFORCE": "tastemaker.algorithms.reinforce:REINFORCE",
    "DPOK": "tastemaker.algorithms.dpok:DPOK",
    "FlowGRPO": "tastemaker.algorithms.flow_grpo:FlowGRPO",
    "DRaFT": "tastemaker.algorithms.draft:DRaFT",
    "AlignProp": "tastemaker.algorithms.alignprop:AlignProp",
    "ReFL": "tastemaker.algorithms.refl:ReFL",
    "DRTune": "tastemaker.algorithms.drtune:DRTune",
    "GradCopy": "tastemaker.algorithms.grad_copy:GradCopy",
    "DiffusionDPO": "tastemaker.algorithms.diffusion_dpo:DiffusionDPO",
    "RWR": "tastemaker.algorithms.rwr:RWR",
    "DiffusionNFT": "tastemaker.algorithms.diffusion_nft:DiffusionNFT",
    "AWM": "tastemaker.algorithms.awm:AWM",
    "RAM": "tastemaker.algorithms.ram:RAM",
    "DDIM": "tastemaker.process.samplers:DDIM",
    "FlowSDE": "tastemaker.process.flow_samplers:FlowSDE",
    "DanceSDE": "tastemaker.process.flow_samplers:DanceSDE",
    "CPS": "tastemaker.process.flow_samplers:CPS",
    "Window": "tastemaker.process.samplers:Window",
    "LoRA": "tastemaker.policy.adapter:LoRA",
    "Prompts": "tastemaker.prompts.prompts:Prompts",
    "prompts": "tastemaker.prompts",
    "rewards": "tastemaker.rewards",
}

__all__ = ["__version__", *PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = PUBLIC[name].partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})

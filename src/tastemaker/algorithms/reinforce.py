"""REINFORCE on the denoising chain (DDPO-SF).  Williams 1992; Black et al. 2023, arXiv:2305.13301, eq. 3.

With A the whitened reward, every picture is learned from once, by the score function

    grad E[r] = E sum_i A grad log p_theta(x[i+1] | x[i], c).

Departs from the paper's code as `ddpo` does. The gradient is that of the policy that drew the pictures, so `updates`
is 1: a second step on the same pictures would need the importance weights that are the other algorithm's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from tastemaker.algorithms.algorithm import Algorithm, positive
from tastemaker.algorithms.transitions import log_probs, random_steps
from tastemaker.credit import whiten
from tastemaker.iteration import Iteration, Loss, Update
from tastemaker.process.samplers import DDIM, Sampler
from tastemaker.process.schedule import Schedule
from tastemaker.rollout import Transitions, collect, placed


@dataclass(frozen=True)
class REINFORCE(Algorithm):
    """The settings of the score-function estimator."""

    citation = """@article{williams1992simple,
  title   = {Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning},
  author  = {Williams, Ronald J.},
  journal = {Machine Learning},
  volume  = {8},
  pages   = {229--256},
  year    = {1992},
  doi     = {10.1007/BF00992696}
}

@inproceedings{black2024training,
  title     = {Training Diffusion Models with Reinforcement Learning},
  author    = {Black, Kevin and Janner, Michael and Du, Yilun and Kostrikov, Ilya and Levine, Sergey},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2305.13301}
}"""

    updates: int = 1  # optimizer steps an iteration; more are off-policy without a correction, and refused
    advantage_limit: float = 5.0  # advantages are cut to +- this
    sampler: Sampler = field(default_factory=DDIM)  # draws the training pictures; needs random steps

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.updates != 1:
            raise ValueError(
                f"updates is {self.updates}, but the score function holds for the weights that drew the pictures: "
                "use updates=1, or ddpo, which corrects for the change."
            )
        positive(self, "advantage_limit")

    @property
    def training_sampler(self) -> Sampler:
        return self.sampler

    def items(self, schedule: Schedule) -> int:
        return random_steps(self.sampler, schedule)

    def iteration(self, it: Iteration) -> Iterator[Update]:
        sampler = placed(it, self.sampler)
        rollout = collect(it, sampler)
        A = it.over_all(whiten, rollout.reward).clamp(-self.advantage_limit, self.advantage_limit)
        for batch in rollout.credited(A).updates(it, 0):
            yield Update(batch.transitions(), partial(self.loss, it, sampler))

    def loss(self, it: Iteration, sampler: Sampler, pairs: Transitions) -> Loss:
        """-A log p of each transition; its gradient is the estimator."""
        new, old, A = log_probs(it, sampler, pairs, self.learning_guidance)
        return Loss(-A * new, {"log_ratio": (new - old).detach().abs()})

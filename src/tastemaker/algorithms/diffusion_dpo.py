"""Diffusion-DPO: preferences between two pictures of one prompt.  Wallace et al. 2023, arXiv:2311.12908.

Both pictures are noised to the same level with the same noise. With l = mean (eps_theta(x) - eps)^2,

    L = -log sigmoid(-beta / 2 [(l_winner - l_winner_base) - (l_loser - l_loser_base)]):

the network has to gain more, against its base, on the picture that was preferred.

Pairs are given with the prompts (offline), or are the best and the worst of each prompt's pictures by the reward,
drawn by the weights as they are (online).

Departs from the authors' code:
1. Noise levels are those of a sampling chain, not all of the model's thousand; `levels` of them a pair.
2. Pairs of pictures that score the same are left out.
3. The error of eps is asked of every kind of network; `space` makes it that of x0 or the velocity.
4. Captions are never left out, and pictures never turned round; there a fifth of the captions is empty, and half of
   the pictures are mirrored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tastemaker.algorithms.algorithm import Algorithm, Calls, at_least, one_of, positive
from tastemaker.algorithms.noising import SPACES, Noised, check, levels_of
from tastemaker.iteration import Iteration, Later, Loss, Update
from tastemaker.policy.pictures import read_pictures
from tastemaker.policy.policy import decode
from tastemaker.process.samplers import DDIM, Sampler
from tastemaker.process.schedule import Schedule
from tastemaker.prompts.prompts import Prompts
from tastemaker.rollout import Rollout, collect, placed
from tastemaker.surrogate import calls as cut
from tastemaker.surrogate import shares

ORIGINS = ("drawn", "given")


@dataclass(frozen=True)
class Pairs:
    """Items: two pictures of a prompt at one noise level; winners and losers share level and noise."""

    winner: Noised
    loser: Noised

    def __len__(self) -> int:
        return len(self.winner)

    def take(self, rows: Tensor) -> Pairs:
        return Pairs(self.winner.take(rows), self.loser.take(rows))


@dataclass(frozen=True)
class DiffusionDPO(Algorithm):
    """The settings of Diffusion-DPO; defaults of the authors' code for SD 1.5, for an iteration of 2,048 pairs."""

    citation = """@inproceedings{wallace2024diffusion,
  title     = {Diffusion Model Alignment Using Direct Preference Optimization},
  author    = {Wallace, Bram and Dang, Meihua and Rafailov, Rafael and Zhou, Linqi and Lou, Aaron and Purushwalkam,
               Senthil and Ermon, Stefano and Xiong, Caiming and Joty, Shafiq and Naik, Nikhil},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2024},
  note      = {arXiv:2311.12908}
}"""

    pairs: str = "drawn"  # the best and the worst of a prompt's pictures, or `given` with the prompts
    images: int = 2048  # pictures an iteration (pairs, where they are given), over all devices
    per_prompt: int = 2  # pictures of one prompt, of which the best and the worst are a pair; 1 where pairs are given
    updates: int = 1  # optimizer steps an iteration, each on its share of the pairs
    guidance: float = 1.0  # classifier-free guidance, in drawing and in the loss; 1 switches it off
    learning_rate: float = 1e-4  # of AdamW, for a LoRA; without one the default is 1e-5
    weight_decay: float = 1e-2  # of AdamW
    levels: int = 1  # noise levels each pair is learned from, spread over the chain
    beta: float = 5000.0  # how dear it is to leave the base: 2000 to 5000 for errors that are means over the latent
    space: str = "eps"  # the error that is squared: eps, x0 or velocity; of a flow x0 or velocity
    sampler: Sampler = field(default_factory=lambda: DDIM(eta=0.0))  # draws the training pictures

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "levels", 1)
        if self.pairs not in ORIGINS:
            raise ValueError(f"pairs is {self.pairs!r}; they are {' or '.join(ORIGINS)}.")
        positive(self, "beta")
        if self.pairs == "drawn" and self.per_prompt < 2:
            raise ValueError("per_prompt is 1, so no prompt has two pictures to compare: use 2 or more.")
        if self.pairs == "given":
            self._given()
        one_of(self, "space", SPACES)

    def _given(self) -> None:
        """Pairs come once, and none is drawn."""
        if "per_prompt" not in self.given:
            object.__setattr__(self, "per_prompt", 1)
        if self.per_prompt > 1:
            raise ValueError(f"per_prompt is {self.per_prompt}, but pairs that are given come once: leave it out.")
        if "sampler" in self.given:
            raise ValueError(
                "sampler has no effect with pairs=given, which draws nothing to learn from: leave it out, or use "
                "pairs=drawn."
            )

    @classmethod
    def settled(cls, stated: Mapping[str, Any]) -> frozenset[str]:
        return frozenset({"per_prompt", "sampler"} if stated.get("pairs") == "given" else ())

    @property
    def training_sampler(self) -> Sampler:
        return self.sampler

    def check_prompts(self, prompts: Prompts) -> None:
        if self.pairs == "given":
            for row in range(len(prompts)):
                _files(prompts, row)

    def items(self, schedule: Schedule) -> int:
        return check(self.levels, schedule, self.space)

    def calls(self, schedule: Sized) -> Calls:
        share = 2 / self.per_prompt  # of a prompt's pictures two are learned from, together
        drawn, queries = (len(schedule), 1) if self.pairs == "drawn" else (0, 0)
        return Calls(drawn=drawn + self.levels * share, learned=share, depth=2, queries=queries, taken=share / 2)

    def iteration(self, it: Iteration) -> Iterator[Update]:
        if self.pairs == "given":
            for prompts in shares(it):
                count = len(prompts) * self.levels
                yield Update(Later(count, partial(self.read, it, prompts)), partial(self.loss, it))
            return
        rollout = collect(it, placed(it, self.sampler))
        for batch in rollout.updates(it, 0):
            yield Update(self.noised(it, batch, *extremes(batch)), partial(self.loss, it))

    def read(self, it: Iteration, prompts: Prompts) -> Pairs:
        """The pairs of an update, from their files; winners and losers are neighbours of one rollout."""
        files = [_files(prompts, row) for row in range(len(prompts))]
        with torch.no_grad():
            one = decode(it.policy, torch.zeros(1, *it.policy.latent_shape, device=it.policy.device))
        height, width = one.shape[-2:]
        x0 = []
        for rows in cut(len(files), it.plan.sampling_batch):
            both = [name for row in rows.tolist() for name in files[row]]
            x0.append(it.policy.encode_images(read_pictures(both, height, width)).cpu())
            it.world.poll()
        twice = prompts.take([row for row in range(len(prompts)) for _ in range(2)])
        empty = torch.empty(0)
        latents = torch.cat(x0) if x0 else torch.empty(0, *it.policy.latent_shape)
        rollout = Rollout(twice, it.policy.encode(twice, it.negative), empty, empty, empty, empty, latents, empty, {})
        winner = torch.arange(len(prompts)) * 2
        return self.noised(it, rollout, winner, winner + 1)

    def noised(self, it: Iteration, rollout: Rollout, winner: Tensor, loser: Tensor) -> Pairs:
        """Pairs of rows, each at `levels` noise levels, drawn by the winner's id."""
        ids = [rollout.prompts.ids[row] for row in winner.tolist()]
        i = torch.tensor([levels_of(it, b, self.levels, 0) for b in ids], dtype=torch.long).reshape(-1)
        named = torch.tensor(ids, dtype=torch.long).repeat_interleave(self.levels)
        first = Noised(rollout, it.key, 0, winner.repeat_interleave(self.levels), i, named)
        return Pairs(first, replace(first, sample=loser.repeat_interleave(self.levels)))

    def loss(self, it: Iteration, pairs: Pairs) -> Loss:
        """What each pair costs."""
        both = [items.seen(it) for items in (pairs.winner, pairs.loser)]
        base = [seen.squares(seen.believed_by("base", self.guidance).x0 - seen.x0, self.space) for seen in both]
        new = [seen.squares(seen.believed(self.guidance).x0 - seen.x0, self.space) for seen in both]
        margin = (base[0] - new[0]) - (base[1] - new[1])
        right = (margin.detach() > 0).float()
        return Loss(-F.logsigmoid(self.beta / 2 * margin), {"margin": margin.detach(), "accuracy": right})


def extremes(rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Rows of the best and the worst picture of every prompt; none of a prompt whose scores are equal or failed."""
    best, worst = [], []
    groups = torch.tensor(rollout.prompts.groups)
    for group in torch.unique(groups).tolist():
        rows = ((groups == group) & rollout.reward.isfinite()).nonzero().flatten()
        if len(rows) and rollout.reward[rows].max() > rollout.reward[rows].min():
            best.append(int(rows[rollout.reward[rows].argmax()]))
            worst.append(int(rows[rollout.reward[rows].argmin()]))
    return torch.tensor(best, dtype=torch.long), torch.tensor(worst, dtype=torch.long)


def _files(prompts: Prompts, row: int) -> tuple[str, str]:
    found = prompts.metadata[row]
    if not isinstance(found, dict) or not {"winner", "loser"} <= found.keys():
        raise ValueError(
            f"pairs is `given`, but the prompt {prompts.texts[row]!r} has no winner and loser: use --prompts pairs "
            "--prompts.path FILE.jsonl, whose lines have prompt, winner and loser; or pairs=drawn."
        )
    return str(found["winner"]), str(found["loser"])

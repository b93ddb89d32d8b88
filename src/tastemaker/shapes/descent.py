"""One resumable training run of pretraining: optimizers, warm-up and cosine, an average of the weights, checkpoints."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm


class Matrices:
    """`torch.optim.Muon` over matrix views of linear and convolution weights (channels last), `[out, in * k * k]`."""

    def __init__(self, weights: list[nn.Parameter], learning_rate: float) -> None:
        self.weights = weights
        views = [nn.Parameter(_matrix(w.detach())) for w in weights]
        for view, weight in zip(views, weights, strict=True):
            if view.data_ptr() != weight.data_ptr():
                raise ValueError(f"a weight of shape {tuple(weight.shape)} has no matrix view; use channels_last")
        self.optimizer = torch.optim.Muon(views, lr=learning_rate, weight_decay=1e-2)

    def step(self) -> None:
        for view, weight in zip(self.optimizer.param_groups[0]["params"], self.weights, strict=True):
            view.grad = None if weight.grad is None else _matrix(weight.grad)
        self.optimizer.step()


def _matrix(weight: Tensor) -> Tensor:
    last = weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight
    return last.reshape(len(weight), -1)


@dataclass
class Fit:
    """AdamW, with Muon for the weights named by `matrices`; the average of the weights is the result."""

    name: str
    folder: Path
    modules: nn.ModuleDict
    steps: int
    learning_rate: float
    average: float = 0.999
    matrices: Callable[[str, Tensor], bool] = lambda name, weight: False
    matrix_rate: float = 0.03

    def __post_init__(self) -> None:
        named = [(n, p) for n, p in self.modules.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        of_matrices = [p for n, p in named if self.matrices(n, p)]
        others = [p for n, p in named if not self.matrices(n, p)]
        adam = torch.optim.AdamW(others, lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=1e-2)
        self.optimizers: list[tuple[float, torch.optim.Optimizer]] = [(self.learning_rate, adam)]
        self.muon = Matrices(of_matrices, self.matrix_rate) if of_matrices else None
        if self.muon:
            self.optimizers.append((self.matrix_rate, self.muon.optimizer))
        self.shadow = [p.detach().clone() for p in self.parameters]
        self.step, self.seconds = 0, 0.0
        self.file = self.folder / f"{self.name}.pt"
        if self.file.exists():
            self._resume()

    def run(self, loss: Callable[[int], Tensor]) -> None:
        """Descend to the last step; the modules then hold the average."""
        bar = tqdm(range(self.steps), initial=self.step, total=self.steps, desc=self.name)
        recent = 0.0
        while self.step < self.steps:
            start = time.perf_counter()
            value = self._descend(loss)
            self.step += 1
            self.seconds += time.perf_counter() - start
            recent = value if recent == 0 else 0.98 * recent + 0.02 * value
            bar.update()
            if self.step % 100 == 0 or self.step == self.steps:
                bar.set_postfix(loss=f"{recent:.4f}")
                self._save(recent)
        for p, s in zip(self.parameters, self.shadow, strict=True):
            p.data.copy_(s)

    def _descend(self, loss: Callable[[int], Tensor]) -> float:
        warm = min(1.0, (self.step + 1) / 100)
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for rate, optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * warm * max(cosine, 0.02)
        value = loss(self.step)
        self.modules.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizers[0][1].step()
        if self.muon:
            self.muon.step()
        keep = min(self.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - keep)
        return float(value.detach())

    def _save(self, recent: float) -> None:
        state = {
            "modules": self.modules.state_dict(),
            "optimizers": [optimizer.state_dict() for _, optimizer in self.optimizers],
            "shadow": self.shadow,
            "step": self.step,
            "seconds": self.seconds,
        }
        part = self.file.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.file)
        line = {"step": self.step, "loss": round(recent, 5), "seconds": round(self.seconds, 1)}
        with (self.folder / f"{self.name}.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def _resume(self) -> None:
        state = torch.load(self.file, weights_only=True)
        self.modules.load_state_dict(state["modules"])
        for (_, optimizer), saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.shadow = state["shadow"]
        self.step, self.seconds = state["step"], state["seconds"]


def averages(checkpoint: Path, modules: nn.Module) -> dict[str, Any]:
    """The modules get the average of the weights that a checkpoint of `Fit` holds, which is returned."""
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    modules.load_state_dict(state["modules"])
    trained = [p for p in modules.parameters() if p.requires_grad]
    with torch.no_grad():
        for p, average in zip(trained, state["shadow"], strict=True):
            p.copy_(average)
    return state

"""`Weights`: the trainable part of a model, and the named sets it can be exchanged for. The same for all families."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from tastemaker import shards
from tastemaker.dropping import dropping
from tastemaker.policy.adapter import LoRA, adapter_layers, attach, droppers
from tastemaker.policy.encoders import Encoder, check_targets, is_encoders, of_denoiser

CURRENT = "current"


class Weights:
    """One adapter, or with `lora=None` the whole network; and copies of it by name.

    `encoders`: text encoders that get adapters too; the names of their tensors begin with the part's.

    The set "base" is the untrained network: with an adapter it is the adapter switched off and costs nothing; in full
    tuning it is a kept copy. Every other set starts as a copy of the trainable tensors. A set is used by exchanging
    pointers, so the Parameter objects (and with them the optimizer's and a compiled graph's) stay the same.
    """

    def __init__(
        self,
        network: nn.Module,
        lora: LoRA | None = None,
        *,
        sets: tuple[str, ...] = ("base",),
        start: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        encoders: Sequence[Encoder] = (),
    ) -> None:
        trained = [network, *(encoder.network for encoder in encoders)]
        for one in trained:
            one.requires_grad_(False)
        self.lora, start = lora, start or {}
        if lora:
            check_targets(lora, encoders)
        own = {name: tensor for name, tensor in start.items() if not is_encoders(name)}
        self._named = attach(network, of_denoiser(lora), own, seed) if lora else dict(network.named_parameters())
        self._of_encoders: list[nn.Parameter] = []
        for encoder in encoders:
            assert lora is not None, "text encoders are trained by adapters alone"
            added = encoder.attach(lora, start, seed)
            self._named |= added
            self._of_encoders += added.values()
        for parameter in self._named.values():
            if parameter.dtype.itemsize < 4:
                parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        for one in trained:
            one.eval()  # its own dropout stays off: it would make the ratio of two probabilities random
        self._layers = [layer for one in trained for layer in adapter_layers(one)] if lora else []
        self._dropping = [module for one in trained for module in droppers(one)] if lora else []
        copied = [name for name in sets if not (lora and name == "base")]
        self._sets = {name: [p.detach().clone() for p in self.parameters()] for name in copied}
        self._active = CURRENT
        self._own: list[Tensor] = []

    @property
    def active(self) -> str:
        """The set in use."""
        return self._active

    def of_encoders(self) -> Tensor:
        """What the set in use makes of the text encoders: a copy of all their tensors, end to end; of the base none."""
        found = [] if self._active == "base" else [p.detach().flatten() for p in self._of_encoders]
        return torch.cat(found) if found else torch.empty(0)

    def parameters(self) -> list[nn.Parameter]:
        return list(self._named.values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._named)

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Compute with the named set, without gradients; afterwards, also after an exception, with the former again."""
        if name not in self._sets and not (self.lora and name == "base"):
            raise ValueError(f"weights {name!r} are not kept here: this policy was loaded with {self._names()}.")
        before = self._active
        with torch.no_grad():
            try:
                self._exchange(name)
                yield
            finally:
                self._exchange(before)

    def dropping(self, number: int) -> AbstractContextManager[None]:
        """Inside, where a gradient is made by the current weights, parts of the adapter's input are left out, drawn
        from the number. Without `lora.dropout` nothing changes."""
        return dropping(self._dropping, self.parameters()[0].device, number)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Around a call of the network: without a gradient, and so by no other set, nothing is dropped."""
        on = [] if torch.is_grad_enabled() else [module for module in self._dropping if module.training]
        for module in on:
            module.training = False
        try:
            yield
        finally:
            for module in on:
                module.training = True

    def blend(self, name: str, keep: float) -> None:
        """set <- keep set + (1 - keep) current; keep = 0 copies."""
        if name == "base" or name not in self._sets:
            raise ValueError(f"weights {name!r} cannot be blended into: this policy was loaded with {self._names()}.")
        if not 0.0 <= keep <= 1.0:
            raise ValueError(
                f"keep is {keep}, it must lie between 0 (copy the current weights) and 1 (change nothing)."
            )
        assert self._active == CURRENT, "blend inside using(): the current weights are exchanged"
        with torch.no_grad():
            for kept, parameter in zip(self._sets[name], self.parameters(), strict=True):
                there, here = shards.local(kept), shards.local(parameter)
                if keep == 0.0:
                    there.copy_(here)  # lerp would keep a NaN of the old content
                else:
                    there.lerp_(here, 1.0 - keep)

    def state(self) -> dict[str, Tensor]:
        """`current/<name>` and `<set>/<name>` -> tensor; "base" is not among them, the model's own files hold it.

        Where several processes hold parts of the weights, `World.whole` puts them together.
        """
        assert self._active == CURRENT, "state inside using(): the current weights are exchanged"
        tensors = {f"{CURRENT}/{name}": parameter.detach() for name, parameter in self._named.items()}
        for kept, values in self._sets.items():
            if kept != "base":
                tensors |= {f"{kept}/{name}": value for name, value in zip(self._named, values, strict=True)}
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors back in place, so that whoever holds the parameters sees the new values."""
        own = self.state()
        wrong = sorted(own.keys() ^ tensors.keys()) or [n for n in own if own[n].shape != tensors[n].shape]
        if wrong:
            raise ValueError(
                f"the checkpoint's weights do not fit this model and LoRA: {wrong[0]!r} and {len(wrong) - 1} more are "
                "missing, unknown or of another shape. Resume with the --model, --lora and algorithm it was made with."
            )
        with torch.no_grad():
            for name, tensor in own.items():
                shards.local(tensor).copy_(shards.cut(tensors[name], like=tensor))

    def adapter(self) -> dict[str, Tensor]:
        """The adapter by name, its factor baked into B: what a loader without any metadata shows is the same."""
        assert self.lora is not None
        scale = self.lora.scale
        return {n: p.detach() * scale if ".lora_B." in n else p.detach().clone() for n, p in self._named.items()}

    def _names(self) -> str:
        return ", ".join(sorted({*self._sets, "base"} if self.lora else self._sets)) or "no sets"

    def _exchange(self, name: str) -> None:
        if name == self._active:
            return
        if self._active == CURRENT:
            self._own = [parameter.data for parameter in self.parameters()]
        if self.lora and "base" in (name, self._active):
            for layer in self._layers:
                # Not layer.enable_adapters(): it also sets requires_grad of every tensor, 8 ms for 128 layers.
                layer._disable_adapters = name == "base"
        for parameter, data in zip(self.parameters(), self._sets.get(name, self._own), strict=True):
            parameter.data = data
        self._active = name

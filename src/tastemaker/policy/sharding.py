"""A network of which every process holds a part, by FSDP2: `fully_shard`, in place.

Before a block computes its weights are gathered, and afterwards they are let go; each gradient is summed over the
processes as soon as it is made, and each keeps its part. So every call of the network takes all processes, while what
they have to do is not equally much. Here every call is said first (`Together.call`, which is a `World`'s), and a
process that has nothing to compute fills in: it makes a call of one row of zeros, whose answer enters its loss with a
gradient of zeros.

All calls that keep a graph wait in `made` for their backward pass, and their outputs are in it whether the loss depends
on them or not: so it goes through the same blocks in the same order on every process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from tastemaker import shards
from tastemaker.policy.weights import CURRENT, Weights


class Together(Protocol):
    """All processes of a run, as far as a network that is cut over them needs to know."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def share(self, filler: Any) -> None: ...

    def call(self, number: int) -> None: ...

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


def blocks(network: nn.Module) -> list[nn.Module]:
    """What is gathered at once, inner ones first: the layers that the network says are not to be split.

    Else the members of its lists, else its own parts.
    """
    names = set(getattr(network, "_no_split_modules", None) or ())
    found = [one for one in network.modules() if type(one).__name__ in names and one is not network]
    lists = [one for one in network.modules() if isinstance(one, nn.ModuleList)]
    found = found or [member for one in lists for member in one] or list(network.children())
    return [one for one in reversed(found) if any(True for _ in one.parameters())]


def shard(network: nn.Module, device: torch.device, size: int) -> None:
    """Cuts the weights over all processes, in place, block by block: no device ever holds all of them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise ValueError(f"--fsdp needs a newer torch than {torch.__version__}; it was tried with 2.13.")
    mesh = init_device_mesh(device.type, (size,))
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    for one in (*blocks(network), network):
        fully_shard(one, mesh=mesh, reshard_after_forward=True)
        one.register_forward_hook(_apart, prepend=True)  # before FSDP2's own
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the loss is divided by the items of all processes already
            module.set_force_sum_reduction_for_comms(True)


def _apart(module: nn.Module, args: Any, output: Any) -> Any:
    """Outputs that are views are copied: FSDP2 hangs on to them, and loses them where a view is written to."""
    if not torch.is_grad_enabled():
        return output
    return tree_map(lambda one: one.clone() if isinstance(one, Tensor) and one._base is not None else one, output)


class ShardedWeights(Weights):
    """The weights of a sharded network, all of which is trained; its sets are cut as it is.

    FSDP2 keeps views of its own of the parameters, so a set is used by exchanging contents, not pointers.
    """

    @contextmanager
    def being(self, name: str) -> Iterator[None]:
        """Compute with the named set, or `CURRENT`, with or without gradients; afterwards with the former again."""
        before = self._active
        try:
            self._exchange(name)
            yield
        finally:
            self._exchange(before)

    def number(self) -> int:
        """The set in use, as all processes count them."""
        return [CURRENT, *self._sets].index(self._active)

    def name(self, number: int) -> str:
        """The set of that number."""
        return [CURRENT, *self._sets][number]

    @torch.no_grad()
    def _exchange(self, name: str) -> None:
        if name == self._active:
            return
        if self._active != CURRENT:  # whose place holds what is current
            self._swap(self._active)
        if name != CURRENT:
            self._swap(name)
        self._active = name
        device = shards.local(self.parameters()[0]).device
        if device.type == "cuda":  # FSDP2 gathers on other streams, which in a backward pass do not wait for this one
            torch.cuda.synchronize(device)

    def _swap(self, name: str) -> None:
        for parameter, kept in zip(self.parameters(), self._sets[name], strict=True):
            here, there = shards.local(parameter), shards.local(kept)
            before = here.clone()
            here.copy_(there)
            there.copy_(before)


class Calls:
    """The calls of a sharded network, made by all processes together.

    sets: as of `Weights`. example: one call of the network with one row, which leaves no trace. What a `World` asks of
    it: `Filler` there.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        together: Together,
        sets: tuple[str, ...],
        example: Callable[[], object],
    ) -> None:
        self._network, self._together, self._example = network, together, example
        self._kind: Any = type(network)  # of which it becomes a subclass
        whole = {name: shards.bits(parameter) for name, parameter in network.named_parameters()}
        shard(network, device, together.size)
        for name, parameter in network.named_parameters():
            shards.note(parameter, whole[name])  # by which processes find out that all began with the same
        self.weights = ShardedWeights(network, sets=sets)
        self._outputs: list[Tensor] = []
        self._filling = False
        self._own = 0  # of the outputs, those that were not made for others
        network.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True)
        network.register_forward_hook(self._after)
        together.share(self)

    @property
    def made(self) -> int:
        return len(self._outputs)

    def fill(self, call: int) -> None:
        set_, graph = divmod(call, 2)
        self._filling = True
        try:
            with self.weights.being(self.weights.name(set_)), torch.set_grad_enabled(bool(graph)):
                self._example()
        finally:
            self._filling = False

    def nothing(self) -> Tensor:
        outputs, self._outputs, self._own = self._outputs, [], 0
        if not outputs:
            return torch.zeros(())
        return torch.stack([output.flatten()[:0].sum() for output in outputs]).sum()  # no NaN of theirs gets in

    def join(self) -> None:
        if self._own:
            raise RuntimeError(
                "other processes go back through the network, and this one has called it with a graph and is at "
                "something else: a loss may not wait for other processes."
            )
        with self.weights.being(CURRENT), torch.enable_grad():
            torch.autograd.backward(self.nothing())

    def drop(self) -> None:
        self._outputs, self._own = [], 0

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Says that a call is made; with a graph, sees to it that it has one from its first input on.

        Where the backward pass leaves the network its outermost gradients are summed up: on all processes alike.
        """
        graph = torch.is_grad_enabled()
        if not self._filling:
            self._together.call(2 * self.weights.number() + graph)
        inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor) and one.is_floating_point()]
        if not graph or any(one.requires_grad for one in inputs):
            return args, kwargs
        first, seen = inputs[0], inputs[0].detach().requires_grad_()
        changed: tuple[Any, Any] = tree_map(lambda one: seen if one is first else one, (args, kwargs))
        return changed

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self._outputs.append(next(one for one in tree_leaves(output) if isinstance(one, Tensor)))
            self._own += not self._filling

    def told(self, call: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """The network's own call; running out of memory is an error of the user's, for half the rows is no way out."""
        try:
            return call(*inputs)
        except torch.OutOfMemoryError as error:
            raise ValueError(shards.NO_MEMORY) from error

    @contextmanager
    def gathered(self, pipeline: Any, component: str) -> Iterator[None]:
        """Inside, the pipeline has the network whole, on rank 0's CPU, and none elsewhere. A collective."""
        tensors = self._together.whole(self._network.state_dict())
        parts = vars(pipeline)  # assigned by its own way, a class would be noted as the pipeline's
        live = parts[component]
        parts[component] = None if self._together.rank else self._whole(tensors)
        try:
            yield
        finally:
            parts[component] = live

    def _whole(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """A network as it was before it was cut, of these tensors."""
        network: Any = self._network
        with torch.device("meta"):
            made: nn.Module = self._kind.from_config(network.config)
        made.load_state_dict(tensors, assign=True)
        return made

"""Evaluate a user's function in forward, and again in backward, under the same conditions.

The function's graph must end at tensors whose gradients come out right.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.checkpoint import get_device_states, set_device_states

Tensor = torch.Tensor
Edge = tuple[Node, int]  # an output of a node: where a tensor's gradient arrives


class Surroundings:
    """The present state of autocast and of torch's default random generators.

    The generators are those of the CPU and of the tensors' devices, where the device's module tells
    that it is in use (CUDA's does, MPS's does not).
    """

    def __init__(self, tensors: Sequence[Tensor]):
        devices = dict.fromkeys(x.device for x in tensors)
        kinds = dict.fromkeys(("cpu", *(device.type for device in devices)))
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in kinds
            if torch.amp.is_autocast_available(kind)
        ]
        self._kind = next((kind for kind in kinds if kind != "cpu"), "cuda")
        seeded = [
            x for x in devices if getattr(getattr(torch, x.type, None), "_initialized", False)
        ]
        self._examples = [torch.empty(0, device=device) for device in seeded]
        self._cpu = torch.get_rng_state()
        self._devices, self._states = get_device_states(*self._examples)
        self._drawn = True

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Restore autocast for the body, without its cache.

        Older torch would find casts in it that were made without gradients.
        """
        with ExitStack() as stack:
            for kind, dtype, enabled in self._autocast:
                stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
            yield

    def end(self) -> None:
        """Note that the function has run; if it drew nothing, `restored` keeps the generators.

        The generators are shared by all threads: resetting one after a replay would undo what other
        threads have drawn in the meantime.
        """
        states = (torch.get_rng_state(), *get_device_states(*self._examples)[1])
        self._drawn = not all(map(torch.equal, states, (self._cpu, *self._states)))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore autocast and the generators for the body; then put the generators back."""
        with ExitStack() as stack:
            stack.enter_context(self.autocast())
            if self._drawn:
                stack.enter_context(torch.random.fork_rng(self._devices, device_type=self._kind))
                torch.set_rng_state(self._cpu)
                set_device_states(self._devices, self._states, device_type=self._kind)
            yield


class Sources:
    """The tensors that a function may take gradients to, and where its graph must therefore end.

    Args:
        function: its name, for errors.
        tensors: the tensors; those that do not require grad, and repetitions, are left out.
        argument: the name of the argument that lists the tensors, for errors.

    """

    def __init__(self, function: str, tensors: Sequence[Tensor], argument: str):
        self.tensors, self._function, self._argument = tensors, function, argument
        self._places: dict[Edge, int] = {}
        for place, x in enumerate(tensors):
            if x.requires_grad:
                self._places.setdefault(_edge(x), place)
        computed = [edge for edge in self._places if not _is_leaf(edge[0])]
        self._outside = {node for node, _ in _upstream(computed)}
        self._allowed: set[int] = set()

    def reached(self, result: Tensor, own: Sequence[Tensor]) -> list[int]:
        """Return which of the tensors the graph of `result` ends at, by their places.

        Args:
            result: what was computed.
            own: leaves that the replay made itself, where the graph may end too.

        Raises:
            RuntimeError: it ends elsewhere, or where gradients would come out wrong.

        """
        if not result.requires_grad:
            return []
        ours = {_edge(x) for x in own if x.requires_grad}
        found = []
        for edge in _upstream([_edge(result)], ours | self._places.keys()):
            if edge in self._places:
                found.append(self._places[edge])
            elif edge not in ours and (_is_leaf(edge[0]) or edge[0] in self._outside):
                raise RuntimeError(
                    f"{self._function} reads a tensor of shape {_shape(edge)} that requires grad "
                    f"and is not in {self._argument}, so that its gradient would be missing: list "
                    f"there the tensor object that {self._function} reads, or detach it"
                )
        if not self._allowed.issuperset(found):
            self._allow(found)
        return sorted(found)

    def _allow(self, found: Sequence[int]) -> None:
        """Raise where autograd would count something twice if the tensors `found` were inputs."""
        edges = {edge for edge, place in self._places.items() if place in found}
        for place in found:
            x = self.tensors[place]
            if x._backward_hooks or x.retains_grad:
                raise RuntimeError(
                    f"{self._function} reads a tensor of shape {tuple(x.shape)} that has hooks "
                    "(register_hook, retain_grad), which would run in every replay as well: have "
                    f"it read a clone, listed in {self._argument}"
                )
        computed = [edge for edge in edges if not _is_leaf(edge[0])]
        for edge in _upstream([up for node, _ in computed for up in _inputs(node)]):
            if edge in edges:
                raise RuntimeError(
                    f"{self._function} reads a tensor of shape {_shape(edge)}, and another one "
                    "that was computed from it, whose gradients cannot be told apart: have it "
                    f"read a clone of the first, listed in {self._argument}"
                )
        self._allowed.update(found)


def _edge(x: Tensor) -> Edge:
    edge = get_gradient_edge(x)
    return edge.node, edge.output_nr


def _inputs(node: Node) -> list[Edge]:
    return [(up, output) for up, output in node.next_functions if up is not None]


def _is_leaf(node: Node) -> bool:
    return type(node).__name__ == "AccumulateGrad"


def _shape(edge: Edge) -> tuple[int, ...]:
    return tuple(edge[0]._input_metadata[edge[1]].shape)


def _upstream(edges: Sequence[Edge], ends: Collection[Edge] = ()) -> Iterator[Edge]:
    """Yield the edges and all edges that gradients go on to from them, up to `ends`."""
    pending, seen, passed = list(edges), set(), set()
    while pending:
        edge = pending.pop()
        if edge in seen:
            continue
        seen.add(edge)
        yield edge
        if edge not in ends and edge[0] not in passed:
            passed.add(edge[0])
            pending.extend(_inputs(edge[0]))

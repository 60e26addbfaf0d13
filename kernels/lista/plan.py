"""A planned call of the compiled kernel, for the parameters of a module.

For a single row, checking the parameters takes longer than computing the codes. A module therefore
keeps a plan of its last call, which is valid until one of the parameters changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray

from latent_kernels.kernels import _core
from latent_kernels.kernels.backends import backend
from latent_kernels.kernels.eager import plain
from latent_kernels.kernels.lista import cpp_cpu
from latent_kernels.kernels.lista.problem import Problem

Tensor = torch.Tensor
Registry = Mapping[str, Tensor | None]
_CPU = torch.device("cpu")


class Derived(NamedTuple):
    """A tensor to compute before each call: `function(*arguments, out=out)`.

    The function is NumPy's: torch may use threads that do not exist in a forked process.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    out: NDArray[Any]  # the memory of one of the call's tensors


class _Watched(NamedTuple):
    """A parameter, and its state when its values were checked."""

    registry: Registry  # where the module holds it: its parameters or its buffers
    name: str
    parameter: Tensor | None
    version: int
    address: int
    shape: torch.Size | None


def takes(x: object) -> bool:
    """Return whether a plan can serve x: a matrix in CPU memory that needs no gradient."""
    return (
        type(x) is Tensor
        and plain(x)
        and x.is_cpu
        and x.dim() == 2
        and x.is_contiguous()
        and not x.is_neg()
        and not (x.requires_grad and torch.is_grad_enabled())
        and backend("lista", _CPU) is cpp_cpu
    )


def readable(parameters: Iterable[Tensor], dtype: torch.dtype) -> bool:
    """Return whether the kernel for rows of `dtype` can read the parameters in place."""
    given = tuple(parameters)
    if dtype not in (torch.float32, torch.float64) or not plain(*given):
        return False
    return not any(
        t.is_inference()
        or not t.is_cpu
        or t.dtype is not dtype
        or not t.is_contiguous()
        or t.is_neg()
        for t in given
    )


class Plan:
    """A call of the compiled kernel with parameters that were checked, and that it reads in place.

    The plan holds strong references to the parameters. New values that torch is not told of
    (written through `.data`, by NumPy or by another process) are used, but not checked.
    """

    def __init__(
        self,
        asked: tuple[object, ...],
        watched: Iterable[tuple[Registry, str]],
        problem: Problem,
        derived: Iterable[Derived],
    ) -> None:
        """Plan the repetition of a call that has just run without an error.

        Args:
            asked: the other things that the call depended on; the caller compares them.
            watched: the registry and name of each parameter that must not change.
            problem: the call, of x, for which `takes` is true, and of parameters, for which
                `readable` is: the watched ones, slices of them, or tensors derived from them.
            derived: the tensors among these that are computed before each call.

        """
        self.asked = asked
        _, self._features, self._components = problem.sizes
        self._dtype, self._derived = problem.x.dtype, tuple(derived)
        self._memory = problem[2:]  # kept alive: the kernel has only the addresses
        self._kernel = cpp_cpu.plan(problem)
        self._watched = []
        for registry, name in watched:
            p = registry[name]
            state = (0, 0, None) if p is None else (p._version, p.data_ptr(), p.shape)
            self._watched.append(_Watched(registry, name, p, *state))

    def encode(self, x: Tensor) -> Tensor | None:
        """Return the codes of x, for which `takes` is true; None if the plan is not valid."""
        if x.dtype is not self._dtype or x.size(1) != self._features or not self._holds():
            return None
        for function, arguments, out in self._derived:
            function(*arguments, out=out)
        rows = x.size(0)
        z = x.new_empty((rows, self._components))
        _core.lista_forward(
            self._kernel,
            threads=torch.get_num_threads(),
            rows=rows,
            x=x.data_ptr(),
            initial=None,
            out=z.data_ptr(),
            with_tape=False,
            with_drive=False,
        )
        return z

    def _holds(self) -> bool:
        """Return whether no parameter has changed and none needs a gradient."""
        grad, dtype = torch.is_grad_enabled(), self._dtype
        for registry, name, p, version, address, shape in self._watched:
            if registry.get(name) is not p:
                return False
            if p is not None and (
                p._version != version
                or p.data_ptr() != address
                or (grad and p.requires_grad)
                or p.shape != shape
                or p.dtype is not dtype
                or not p.is_contiguous()
                or p.is_neg()
            ):
                return False
        return True

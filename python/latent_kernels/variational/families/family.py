"""The base class of the families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from latent_kernels import _checks
from latent_kernels.kernels.eager import plain, row_dtype
from latent_kernels.kernels.score import reference

Tensor = torch.Tensor
Self = TypeVar("Self", bound="Family")


def wide(x: Tensor) -> Tensor:
    """Return x in the dtype of computations and sums: float32 for half precision."""
    return x.to(row_dtype(x.dtype))


class Family:
    """The base of the families: a batch shape, a number of latent dimensions and parameters."""

    name: str
    names: tuple[str, ...]  # names of the parameters
    classes = 0

    parameters: tuple[Tensor, ...]
    batch_shape: tuple[int, ...]
    cols: int

    @property
    def device(self) -> torch.device:
        """The parameters' device."""
        return self.parameters[0].device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return self.parameters[0].dtype

    def __repr__(self) -> str:
        """Return the name, the parameters' shapes, their dtype and device."""
        shapes = (
            f"{name}: {tuple(x.shape)}" for name, x in zip(self.names, self.parameters, strict=True)
        )
        return f"{type(self).__name__}({', '.join(shapes)}, {self.dtype}, {self.device})"

    def expand(self: Self, batch_shape: Sequence[int]) -> Self:
        """Return the family with its parameters broadcast to another batch shape, as views.

        Args:
            batch_shape: the new leading dimensions; D (and K) stay.

        Raises:
            ValueError: the present batch shape does not broadcast to this one.

        Example:
            >>> import torch, latent_kernels as lk
            >>> q = lk.Bernoulli(torch.zeros(2))
            >>> q.expand((5, 3)).logits.shape
            torch.Size([5, 3, 2])

        """
        shape, own = tuple(batch_shape), len(self.batch_shape)
        if _checks.broadcast_shape(self.batch_shape, shape) != shape:
            raise ValueError(
                f"batch_shape must be one that {self.batch_shape} broadcasts to; got {shape}"
            )
        return type(self)(*(x.expand(*batch_shape, *x.shape[own:]) for x in self.parameters))

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """Return the family with parameters of another dtype or on another device.

        The arguments are those of `torch.Tensor.to`.

        Example:
            >>> import torch, latent_kernels as lk
            >>> lk.Bernoulli(torch.zeros(2)).to(torch.float64).dtype
            torch.float64

        """
        return type(self)(*(x.to(*args, **kwargs) for x in self.parameters))

    def _hold(self, *parameters: Tensor | float) -> None:
        """Check and store the parameters, and set batch_shape and cols from their shapes."""
        held: Any = parameters
        if _checks.alike(*held) is None:
            names = self.names
            held = tuple(_checks.parameters(dict(zip(names, parameters, strict=True)))[0])
            if len(held) > 1 and held[0].shape != held[1].shape:
                shape = _checks.broadcast(**dict(zip(names, held, strict=True)))
                held = tuple(x.expand(shape) for x in held)
        self.parameters = held
        shape = tuple(held[0].shape[:-1]) if self.classes else tuple(held[0].shape)
        self.batch_shape, self.cols = shape[:-1], shape[-1]

    def _samples_of(self, z: Tensor) -> Tensor:
        """Return checked samples, which end in q's shape, in the dtype of the computation."""
        shape = (*self.batch_shape, self.cols)
        if not isinstance(z, Tensor):
            raise TypeError(f"z must be a torch.Tensor; got {type(z).__name__}")
        if z.shape[-len(shape) :] != shape:
            raise ValueError(
                f"z must have shape [S, ..., D] ending in {shape}; got {tuple(z.shape)}"
            )
        first = self.parameters[0]
        if z.device != first.device:
            raise ValueError(f"z must be on the device of q, {self.device}; got {z.device}")
        if self.classes:
            if z.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
                raise TypeError(f"z must hold classes as integers; got {z.dtype}")
            return z.long()
        return z if z.dtype is first.dtype else z.to(first.dtype)

    def _same_family(self, name: str, other: object) -> None:
        """Check that `other` is of the same kind, with parameters that broadcast with these."""
        if not isinstance(other, type(self)):
            raise TypeError(f"{name} must be a {type(self).__name__}; got {type(other).__name__}")
        if other.classes != self.classes:
            raise ValueError(
                f"{name} must have {self.classes} classes, as q has; got {other.classes}"
            )
        _checks.device_of(name, other.parameters[0], "q", self.parameters[0])
        ours, theirs = (*self.batch_shape, self.cols), (*other.batch_shape, other.cols)
        if _checks.broadcast_shape(ours, theirs) is None:
            raise ValueError(
                f"{name} must have a shape that broadcasts with that of q, {ours}; got {theirs}"
            )

    def _refuse_outside(self, z: Tensor, inside: Tensor, support: str) -> None:
        """Raise for samples outside the support, where the check needs no synchronization."""
        if z.device.type == "cpu" and plain(z) and not bool(inside.all()):
            low, high = z[~inside].min().item(), z[~inside].max().item()
            raise ValueError(
                f"z must hold {support}; got {low}" + (f" to {high}" if high != low else "")
            )

    def score(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return the score: the gradient of log q(z) by each parameter.

        Args:
            z: samples [S, ..., D]; elements outside the support give NaN.

        Returns:
            A tensor [S, ..., D] for each parameter, in their order; [S, ..., D, K] for the logits
            of a Categorical.

        Example:
            >>> import torch, latent_kernels as lk
            >>> q = lk.Bernoulli(torch.zeros(2))
            >>> q.score(torch.tensor([[0.0, 1.0]]))  # z - sigmoid(logits)
            (tensor([[-0.5000,  0.5000]]),)

        """
        return reference.scores(self.name, self.parameters, self._samples_of(z))

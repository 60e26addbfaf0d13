"""Initial parameters of the encoders: a checked dictionary, a safe step length, thresholds >= 0."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from latent_kernels import _checks
from latent_kernels._checks import integer
from latent_kernels.kernels.eager import in_memory, plain, row_dtype
from latent_kernels.kernels.lista.values import finite

Tensor = torch.Tensor
Array = Tensor | NDArray[Any]
_CPU = torch.device("cpu")
_Self = TypeVar("_Self", bound="Thresholding")


class Placement(NamedTuple):
    """The device and the dtype of the parameters."""

    device: torch.device
    dtype: torch.dtype

    def of(self, value: Tensor, *shape: int) -> Tensor:
        """Return a contiguous copy, expanded to `shape` where one is given."""
        rounded = value.detach().to(dtype=self.dtype)
        if not bool(torch.isfinite(rounded).all()):
            raise ValueError(
                f"dictionary must be scaled so that {self.dtype} can hold the weights computed"
                " from it; got infinite weights"
            )
        moved = rounded.to(self.device)
        return (moved.expand(shape) if shape else moved).clone(
            memory_format=torch.contiguous_format
        )


def non_negative(name: str, value: object) -> float:
    """Check that the argument `name` is a finite number >= 0, and return it as a float."""
    number = _checks.as_float(value)
    if number is None:
        raise TypeError(f"{name} must be a number >= 0; got {value!r}")
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name} must be a finite number >= 0; got {value}")
    return number


def checked_dictionary(dictionary: Array, shape: tuple[int, int] | None = None) -> Tensor:
    """Return the dictionary as a tensor: [n_components, n_features], finite, not all zeros."""
    if isinstance(dictionary, np.ndarray):
        # torch warns of read-only arrays, such as memory-mapped ones.
        dictionary = torch.as_tensor(
            dictionary if dictionary.flags.writeable else dictionary.copy()
        )
    _checks.float_tensor("dictionary", dictionary)
    if dictionary.dim() != 2 or 0 in dictionary.shape:
        raise ValueError(
            f"dictionary must have shape [n_components, n_features]; got {tuple(dictionary.shape)}"
        )
    if shape is not None and tuple(dictionary.shape) != shape:
        raise ValueError(
            f"dictionary must have shape {shape} (n_components, n_features);"
            f" got {tuple(dictionary.shape)}"
        )
    dictionary = dictionary.detach()
    _check_finite(dictionary)
    if not bool(dictionary.any()):
        raise ValueError("dictionary must have a row that is not all zeros; got none")
    return dictionary


def _check_finite(dictionary: Tensor, where: str = "") -> None:
    if not bool(torch.isfinite(dictionary).all()):
        raise ValueError(f"dictionary must be finite{where}; got NaN or infinity")


def random_dictionary(n_components: int, n_features: int) -> Tensor:
    """Draw Gaussian rows of unit length from torch's default CPU generator."""
    return nn.functional.normalize(
        torch.randn(n_components, n_features, device=_CPU, dtype=torch.float64), dim=-1
    )


def shape_of(dictionary: Array) -> tuple[int, int]:
    """Check the dictionary, and return (n_components, n_features)."""
    n_components, n_features = checked_dictionary(dictionary).shape
    return n_components, n_features


def prepared(
    dictionary: Array | None,
    n_components: int,
    n_features: int,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Placement]:
    """Return the initial dictionary, in float64 on the CPU, and the placement of the parameters."""
    shape = (
        integer("n_components", n_components),
        integer("n_features", n_features),
    )
    if dictionary is None:
        given = random_dictionary(*shape)
        like = Placement(torch.get_default_device(), torch.get_default_dtype())
    else:
        given = checked_dictionary(dictionary, shape)
        like = Placement(given.device, given.dtype)
    placement = Placement(
        like.device if device is None else _checks.device(device),
        like.dtype if dtype is None else _checks.float_dtype("dtype", dtype),
    )
    # Rounded as the parameters will be, so that step lengths are safe for the values in use.
    rounded = given.to(_CPU, placement.dtype)
    _check_finite(rounded, f" in {placement.dtype}")
    lost = (given.to(_CPU).any(-1) & ~rounded.any(-1)).nonzero().flatten().tolist()
    if lost:
        raise ValueError(
            f"dictionary must not have rows that become all zeros in {placement.dtype};"
            f" got {len(lost)} of them, the first is row {lost[0]}: rescale it"
        )
    rounded = rounded.double()
    if not math.isfinite(float(squared_lengths(rounded).sum())):
        raise ValueError("dictionary must have rows whose squared lengths fit float64: rescale it")
    return rounded, placement


def squared_lengths(dictionary: Tensor) -> Tensor:
    """Return ||d_j||^2 to divide by: 1 for rows of zeros, whose codes are 0."""
    lengths = dictionary.square().sum(-1)
    if bool((dictionary.any(-1) & (lengths == 0)).any()):
        raise ValueError("dictionary must have rows whose squared lengths fit float64: rescale it")
    return torch.where(lengths > 0, lengths, torch.ones_like(lengths))


def lipschitz(dictionary: Tensor, dtype: torch.dtype) -> float:
    """Return an L that is above ||D||^2 by a few roundings of `dtype`.

    A gradient step of length 1 / L never overshoots.
    """
    gram = (
        dictionary.T @ dictionary
        if dictionary.size(0) > dictionary.size(1)
        else dictionary @ dictionary.T
    )
    return float(torch.linalg.eigvalsh(gram)[-1]) * (1 + 16 * torch.finfo(dtype).eps)


def reflected(x: Tensor) -> Tensor:
    """Return |x| with slope 1 at 0; with torch.abs, of slope 0, a threshold could not leave 0."""
    return torch.where(x < 0, -x, x)


class Thresholding(nn.Module):
    """A module with parameters that must not be negative, whatever optimizer trains them.

    In training mode `forward` uses their absolute values. `project_()` replaces the parameters by
    their absolute values, which changes no code. `eval()` and `load_state_dict` call it, so that
    `forward` in evaluation mode can use the parameters as they are; negative ones raise a
    ValueError there (on the CPU, in plain calls).
    """

    _non_negative: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_post_hook(_after_loading)  # type: ignore[no-untyped-call]

    def _feasible_values(self, name: str) -> Tensor:
        """Return the parameter `name` as `forward` uses it."""
        parameter: Tensor = getattr(self, name)
        if self.training:
            return reflected(parameter)
        if plain(parameter) and parameter.is_cpu:
            finite(name, in_memory(parameter).to(row_dtype(parameter.dtype)), least=0)
        return parameter

    @torch.no_grad()
    def project_(self: _Self) -> _Self:
        """Replace thresholds (step lengths, for "step") by their absolute values, in place.

        The codes do not change. A module that is trained in evaluation mode needs it after each
        step of the optimizer.

        Example:
            >>> import torch, latent_kernels as lk
            >>> encoder = lk.LISTA(3, 4, n_layers=2)
            >>> with torch.no_grad():
            ...     _ = encoder.threshold.sub_(1)  # as a large step of an optimizer
            ...
            >>> bool((encoder.project_().threshold >= 0).all())
            True

        """
        for name in self._non_negative:
            parameter = getattr(self, name)
            # Written only where needed: autograd refuses the backward pass after a write.
            if not parameter.is_meta and bool((parameter < 0).any()):
                parameter.abs_()
        return self

    def train(self: _Self, mode: bool = True) -> _Self:
        """Set the mode as torch.nn.Module does; `train(False)`, which is `eval()`, projects."""
        super().train(mode)
        return self if mode else self.project_()


def _after_loading(module: nn.Module, _: object) -> None:
    assert isinstance(module, Thresholding)
    module.project_()

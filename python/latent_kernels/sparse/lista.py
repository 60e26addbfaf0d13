"""Sparse encoders with a fixed number of layers: unrolled iterative soft-thresholding.

Codes are rows, [..., n_components], and a dictionary is [n_components, n_features], as in
scikit-learn. On the CPU one compiled call runs all layers and makes use of the sparsity of the
codes, forward and backward. `latent_kernels.LISTA` holds the parameters as a torch module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from latent_kernels import _checks
from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.lista.problem import ENCODE, Gradients

Tensor = torch.Tensor
_MOST_COLUMNS = 2**24  # positions in the lists of a tile are 32-bit numbers


def lista_encode(
    x: Tensor,
    weight: Tensor,
    recurrent: Tensor | None,
    threshold: Tensor | float,
    *,
    n_layers: int,
    bias: Tensor | None = None,
    step: Tensor | float | None = None,
    initial: Tensor | None = None,
    positive: bool = False,
    select: int | Sequence[int] | None = None,
) -> Tensor:
    r"""Return codes computed by T layers of soft-thresholding with a matrix between the layers.

    .. math::
        z_t = \mathrm{soft}(c + z_{t-1} S_t,\ \theta_t), \quad c = x W + b, \qquad z_t =
        \mathrm{soft}(z_{t-1} + \gamma_t (c + z_{t-1} S_t),\ \theta_t) \text{ where steps are given}

    with soft(u, theta) = sign(u) max(abs(u) - theta, 0). ISTA for 1/2 ||x - z D||^2 + alpha ||z||_1
    is W = D^T / L, S = I - D D^T / L, theta = alpha / L, or W = D^T, S = -D D^T, step = 1 / L, with
    L >= ||D||^2.

    The backward pass uses the sparsity, too: autograd keeps the inputs and, for each layer, the
    positions and values of the non-zero codes. Gradients are those of the formula wherever it is
    differentiable; entries that a threshold sets to 0 have gradient 0. Second derivatives are not
    implemented and raise an error. A row of x that is not finite gives codes that are not finite in
    that row only.

    Nothing is kept between calls: each checks the values of all weights. A `latent_kernels.LISTA`
    checks them once, until they change.

    Args:
        x: [..., m], float32, float64, bfloat16 or float16 (halves are computed in float32).
        weight: W [m, n].
        recurrent: S, [n, n] for all layers or [T, n, n]. The first layer does not use it where
            `initial` is None. It may be None where n_layers is 1 and `initial` is None.
        threshold: theta >= 0: a number, [n] for all layers, [T, 1] or [T, n].
        n_layers: T >= 1, the number of soft-thresholdings.
        bias: b [n].
        step: gamma: a number, or [T].
        initial: z_0 [..., n], with as many rows as x; None for zeros.
        positive: keep codes >= 0: max(u - theta, 0).
        select: support selection: how many of the largest entries of a row that are beyond the
            threshold pass without being reduced by it (with ties, all of them). A number for all
            layers, or one for each.

    Returns:
        z_T [..., n] in the dtype that the tensors promote to.

    Raises:
        TypeError, ValueError: an argument is wrong, or weights are not finite (on the CPU); the
            message names it.

    Source:
        Gregor and LeCun, "Learning fast approximations of sparse coding" (2010); Ablin et al.,
        "Learning step sizes for unfolded sparse coding" (2019).

    Example:
        >>> import torch, latent_kernels as lk
        >>> D, alpha = torch.eye(3), 1.0  # L = 1: one step of ISTA reaches the optimum
        >>> W, S = D.T, torch.eye(3) - D @ D.T
        >>> lk.lista_encode(torch.tensor([[3.0, -0.5, 0.0]]), W, S, alpha, n_layers=2)
        tensor([[2., 0., 0.]])

    """
    named = {"x": x, "weight": weight, "recurrent": recurrent, "bias": bias, "initial": initial}
    n_layers = _checks.integer("n_layers", n_layers)
    inputs, dtype = _prepare(named, threshold, step, n_layers, per_layer="recurrent")
    if recurrent is None and (n_layers > 1 or initial is not None):
        raise ValueError(
            "recurrent may be None only where n_layers is 1 and there is no initial code"
        )
    return _run(inputs, dtype, _options(n_layers, positive, select, weight.size(-1)))


def coupled_lista_encode(
    x: Tensor,
    dictionary: Tensor,
    weight: Tensor,
    threshold: Tensor | float,
    *,
    n_layers: int,
    step: Tensor | float | None = None,
    initial: Tensor | None = None,
    positive: bool = False,
    select: int | Sequence[int] | None = None,
) -> Tensor:
    r"""Return codes computed by T layers of soft-thresholding that correct the residual.

    This is the coupled form:

    .. math::
        z_t = \mathrm{soft}(z_{t-1} + \gamma_t (x - z_{t-1} D) W_t,\ \theta_t)

    ISTA is W = D^T, gamma = 1 / L, theta = alpha / L. `lista_encode` says what holds for both
    forms.

    Args:
        x: [..., m].
        dictionary: D [n, m].
        weight: W, [m, n] for all layers or [T, m, n].
        threshold: theta >= 0: a number, [n] for all layers, [T, 1] or [T, n].
        n_layers: T >= 1, the number of soft-thresholdings.
        step: gamma: a number, or [T]; None for 1.
        initial: z_0 [..., n], with as many rows as x; None for zeros.
        positive: keep codes >= 0.
        select: support selection: how many of the largest entries of a row that are beyond the
            threshold pass without being reduced by it (with ties, all of them). A number for all
            layers, or one for each.

    Returns:
        z_T [..., n] in the dtype that the tensors promote to.

    Raises:
        TypeError, ValueError: an argument is wrong, or weights are not finite (on the CPU); the
            message names it.

    Source:
        Chen, Liu, Wang, Yin, "Theoretical linear convergence of unfolded ISTA and its practical
        weights and thresholds" (2018); Liu et al., "ALISTA: analytic weights are as good as learned
        weights in LISTA" (2019).

    Example:
        >>> import torch, latent_kernels as lk
        >>> D = torch.eye(3)
        >>> lk.coupled_lista_encode(torch.tensor([[3.0, -0.5, 0.0]]), D, D.T, 1.0, n_layers=2)
        tensor([[2., 0., 0.]])

    """
    named = {"x": x, "weight": weight, "dictionary": dictionary, "initial": initial}
    n_layers = _checks.integer("n_layers", n_layers)
    inputs, dtype = _prepare(named, threshold, step, n_layers, per_layer="weight")
    return _run(inputs, dtype, _options(n_layers, positive, select, weight.size(-1)))


# --- checks ---------------------------------------------------------------------------------------


def _prepare(
    named: dict[str, Tensor | None],
    threshold: Tensor | float,
    step: Tensor | float | None,
    n_layers: int,
    *,
    per_layer: str,
) -> tuple[list[Any], torch.dtype]:
    """Check the arguments; return the inputs of the op, and the dtype of the result.

    The inputs have the dtype of the computation.
    """
    threshold = _of_layers("threshold", threshold)
    step = None if step is None else _of_layers("step", step)
    for name, tensor in named.items():
        if tensor is not None or name in ("x", "weight", "dictionary"):
            _checks.float_tensor(name, tensor)
    of_layers = {"threshold": threshold, "step": step}
    named.update({name: p for name, p in of_layers.items() if isinstance(p, Tensor)})
    dtype = _dtype(named)
    compute = row_dtype(dtype)
    x = named["x"]
    assert x is not None
    for name, value in of_layers.items():
        if isinstance(value, float):
            named[name] = torch.full((), value, dtype=compute, device=x.device)
    _shapes(named, n_layers, per_layer)
    for name, tensor in named.items():
        if tensor is not None and tensor.dtype != compute:
            named[name] = tensor.to(compute)
    return [named.get(name) for name in Gradients._fields], dtype


def _of_layers(name: str, value: object) -> Tensor | float:
    """Return a parameter of the layers, as a tensor or a float."""
    if isinstance(value, Tensor):
        if value.dtype not in _checks.FLOATS:
            raise TypeError(
                f"{name} must have dtype float32, float64, bfloat16 or float16; got {value.dtype}"
            )
        if value.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense (strided) tensor; got layout {value.layout}")
        return value
    number = _checks.as_float(value)
    if number is None:
        raise TypeError(f"{name} must be a number or a torch.Tensor; got {type(value).__name__}")
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite; got {value}")
    return number


def _dtype(named: dict[str, Tensor | None]) -> torch.dtype:
    """Check that the tensors are on one device; return the dtype that they promote to.

    Tensors without dimensions do not count, as in torch.
    """
    x = named["x"]
    assert x is not None
    dtype = x.dtype
    for name, tensor in named.items():
        if tensor is None or tensor is x:
            continue
        _checks.device_of(name, tensor, "x", x)
        if tensor.dtype != dtype and tensor.dim() > 0:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _shapes(named: dict[str, Tensor | None], n_layers: int, per_layer: str) -> None:
    """Check the shapes; the tensor called `per_layer` may have one matrix for each layer."""
    x, weight = named["x"], named["weight"]
    assert x is not None
    assert weight is not None
    m, n = x.size(-1), weight.size(-1)
    if max(m, n) > _MOST_COLUMNS:
        raise ValueError(f"x and weight must have at most 2^24 columns; got {m} and {n}")
    expected = {"weight": (m, n), "recurrent": (n, n), "dictionary": (n, m), "bias": (n,)}
    for name, shape in expected.items():
        tensor = named.get(name)
        if tensor is None:
            continue
        layered = name == per_layer and tensor.dim() == len(shape) + 1
        if tuple(tensor.shape) != ((n_layers,) if layered else ()) + shape:
            both = f" or {(n_layers, *shape)}" if name == per_layer else ""
            raise ValueError(
                f"{name} must have shape {shape}{both} beside x {tuple(x.shape)};"
                f" got {tuple(tensor.shape)}"
            )
    initial, threshold, step = named.get("initial"), named["threshold"], named.get("step")
    if initial is not None and tuple(initial.shape) != (*x.shape[:-1], n):
        raise ValueError(
            f"initial must have shape {(*x.shape[:-1], n)}; got {tuple(initial.shape)}"
        )
    assert threshold is not None
    if tuple(threshold.shape) not in ((), (n,), (n_layers, 1), (n_layers, n)):
        either = f"{(n,)}, {(n_layers, 1)} or {(n_layers, n)}"
        raise ValueError(
            f"threshold must be a number or have shape {either}; got {tuple(threshold.shape)}"
        )
    if step is not None and tuple(step.shape) not in ((), (n_layers,)):
        raise ValueError(
            f"step must be a number or have shape {(n_layers,)}; got {tuple(step.shape)}"
        )


def _options(
    n_layers: int, positive: bool, select: int | Sequence[int] | None, components: int
) -> tuple[Any, ...]:
    """Check the options that are not tensors; return those of the op."""
    positive = _checks.flag("positive", positive)
    if select is None:
        return n_layers, positive, None
    message = (
        f"select must be an int >= 0, or one for each of the {n_layers} layers; got {select!r}"
    )
    given = tuple(select) if isinstance(select, Sequence) else (select,) * n_layers
    counts = tuple(count for count in map(_checks.as_int, given) if count is not None)
    if len(counts) < len(given):
        raise TypeError(message)
    if len(counts) != n_layers or any(c < 0 for c in counts):
        raise ValueError(message)
    some = tuple(min(count, components) for count in counts) if any(counts) else None
    return n_layers, positive, some


# --- the call -------------------------------------------------------------------------------------


def _run(inputs: list[Any], dtype: torch.dtype, options: tuple[Any, ...]) -> Tensor:
    """Return the codes in the caller's dtype."""
    shape = tuple(inputs[0].shape)
    z: Tensor = ENCODE((shape[:-1], shape[-1:], (inputs[1].size(-1),)), inputs, options)
    return z if z.dtype == dtype else z.to(dtype)

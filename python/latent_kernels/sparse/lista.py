"""Sparse encoders of a fixed number of layers: unrolled iterative soft-thresholding.

Codes are rows, as everywhere here: [..., n_components], with scikit-learn's dictionary
[n_components, n_features]. On the CPU one compiled call runs all layers and uses that the codes are
sparse, forward and backward. `latent_kernels.LISTA` holds the parameters as a torch module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.autograd import forward_ad

from latent_kernels import _checks
from latent_kernels.kernels.backends import backend
from latent_kernels.kernels.eager import plain, row_dtype
from latent_kernels.kernels.lista import autograd
from latent_kernels.kernels.lista import ops as _ops  # noqa: F401  (registers the opaque ops)
from latent_kernels.kernels.lista.problem import Choices, Tensors
from latent_kernels.kernels.op import call

Tensor = torch.Tensor
_MOST_COLUMNS = 2**24  # places in the lists of a tile are 32-bit


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
    r"""Codes by T layers of soft-thresholding with a matrix between the layers.

    .. math::
        z_t = \mathrm{soft}(c + z_{t-1} S_t,\ \theta_t), \quad c = x W + b, \qquad z_t =
        \mathrm{soft}(z_{t-1} + \gamma_t (c + z_{t-1} S_t),\ \theta_t) \text{ where steps are given}

    with soft(u, theta) = sign(u) max(abs(u) - theta, 0). ISTA for 1/2 ||x - z D||^2 + alpha ||z||_1
    is W = D^T / L, S = I - D D^T / L, theta = alpha / L, or W = D^T, S = -D D^T, step = 1 / L, with
    L >= ||D||^2.

    The backward pass works on the non-zeros too: autograd keeps the inputs and, for each layer, the
    places and values of the non-zero codes. Gradients are those of almost every point: 0 for
    entries that a threshold holds at 0. Second derivatives are not implemented and raise.
    Non-finite x gives non-finite codes in its row only.

    Args: x: [..., m], float32, float64, bfloat16 or float16 (halves are computed in float32).
        weight: W [m, n]. recurrent: S, [n, n] for all layers or [T, n, n]; None where n_layers is 1
        and there is no initial code.
            Where `initial` is None the first layer does not use it.
        threshold: theta >= 0: a number, [n] for all layers, or [T, 1] or [T, n].
        n_layers: T >= 1, the number of soft-thresholdings.
        bias: b [n].
        step: gamma: a number, or [T].
        initial: z_0 [..., n], as many rows as x; None for zeros.
        positive: keep codes >= 0: max(u - theta, 0).
        select: support selection: for each layer (or all), how many of a row's largest entries
            beyond the threshold pass unthresholded (of equal ones, all).

    Returns:
        z_T [..., n] in the dtype that the tensors promote to.

    Raises: TypeError, ValueError: naming the argument that is wrong; weights that are not finite
        among them (on the CPU).

    Source: Gregor and LeCun, "Learning fast approximations of sparse coding" (2010); Ablin et al.,
    "Learning step sizes for unfolded sparse coding" (2019).

    """
    named = {"x": x, "weight": weight, "recurrent": recurrent, "bias": bias, "initial": initial}
    tensors, dtype = _prepare(named, threshold, step, n_layers, per_layer="recurrent")
    if recurrent is None and (n_layers > 1 or initial is not None):
        raise ValueError(
            "recurrent may be None only where n_layers is 1 and there is no initial code"
        )
    return _run(x, tensors, dtype, _choices(n_layers, positive, select))


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
    r"""Codes by T layers of soft-thresholding that correct the residual: the coupled form.

    .. math::
        z_t = \mathrm{soft}(z_{t-1} + \gamma_t (x - z_{t-1} D) W_t,\ \theta_t)

    ISTA is W = D^T, gamma = 1 / L, theta = alpha / L. See `lista_encode` for what is common to
    both.

    Args: x: [..., m]. dictionary: D [n, m]. weight: W, [m, n] for all layers or [T, m, n].
        threshold: theta >= 0: a number, [n] for all layers, or [T, 1] or [T, n]. n_layers: T >= 1,
        the number of soft-thresholdings. step: gamma: a number, or [T]; None for 1. initial: z_0
        [..., n], as many rows as x; None for zeros. positive: keep codes >= 0. select: support
        selection: for each layer (or all), how many of a row's largest entries beyond the threshold
            pass unthresholded (of equal ones, all).

    Returns:
        z_T [..., n] in the dtype that the tensors promote to.

    Raises: TypeError, ValueError: naming the argument that is wrong; weights that are not finite
        among them (on the CPU).

    Source: Chen, Liu, Wang, Yin, "Theoretical linear convergence of unfolded ISTA and its practical
    weights and thresholds" (2018); Liu et al., "ALISTA: analytic weights are as good as learned
    weights in LISTA" (2019).

    """
    named = {"x": x, "weight": weight, "dictionary": dictionary, "initial": initial}
    tensors, dtype = _prepare(named, threshold, step, n_layers, per_layer="weight")
    return _run(x, tensors, dtype, _choices(n_layers, positive, select))


# --- checks ---------------------------------------------------------------------------------------


def _prepare(
    named: dict[str, Tensor | None],
    threshold: Tensor | float,
    step: Tensor | float | None,
    n_layers: int,
    *,
    per_layer: str,
) -> tuple[Tensors, torch.dtype]:
    """The tensors in the dtype that is computed in, rows in two dimensions; and the result's dtype."""
    _layers(n_layers)
    _of_layers("threshold", threshold)
    if step is not None:
        _of_layers("step", step)
    for name, tensor in named.items():
        if tensor is not None or name in ("x", "weight", "dictionary"):
            _checks.float_tensor(name, tensor)
    named |= {
        name: p for name, p in (("threshold", threshold), ("step", step)) if isinstance(p, Tensor)
    }
    dtype = _dtype(named)
    compute = row_dtype(dtype)
    x = named["x"]
    assert x is not None
    for name, value in (("threshold", threshold), ("step", step)):
        if isinstance(value, (int, float)):
            named[name] = torch.full((), value, dtype=compute, device=x.device)
    _shapes(named, n_layers, per_layer)
    for name, tensor in named.items():
        if tensor is None:
            continue
        if name in ("x", "initial") and tensor.dim() != 2:
            tensor = tensor.reshape(math.prod(tensor.shape[:-1]), tensor.size(-1))
        named[name] = tensor if tensor.dtype == compute else tensor.to(compute)
    return Tensors(**named), dtype  # type: ignore[arg-type]


def _layers(n_layers: object) -> None:
    if isinstance(n_layers, bool) or not isinstance(n_layers, int):
        raise TypeError(f"n_layers must be an int >= 1; got {n_layers!r}")
    if n_layers < 1:
        raise ValueError(f"n_layers must be an int >= 1; got {n_layers}")


def _of_layers(name: str, value: object) -> None:
    """A parameter that may be a number."""
    if isinstance(value, Tensor):
        if value.dtype not in _checks.FLOATS:
            raise TypeError(
                f"{name} must have dtype float32, float64, bfloat16 or float16; got {value.dtype}"
            )
        if value.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense (strided) tensor; got layout {value.layout}")
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or a torch.Tensor; got {type(value).__name__}")
    elif not math.isfinite(value):
        raise ValueError(f"{name} must be finite; got {value}")


def _dtype(named: dict[str, Tensor | None]) -> torch.dtype:
    """The dtype that tensors on one device promote to; 0-d ones do not take part, as in torch."""
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
                f"{name} must have shape {shape}{both} beside x {tuple(x.shape)}; got {tuple(tensor.shape)}"
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


def _choices(n_layers: int, positive: bool, select: int | Sequence[int] | None) -> Choices:
    if not isinstance(positive, bool):
        raise TypeError(f"positive must be True or False; got {positive!r}")
    if select is None:
        return Choices(n_layers, positive)
    message = (
        f"select must be an int >= 0, or one for each of the {n_layers} layers; got {select!r}"
    )
    counts = (
        (select,) * n_layers
        if isinstance(select, int)
        else tuple(select)
        if isinstance(select, Sequence)
        else ()
    )
    if any(isinstance(c, bool) or not isinstance(c, int) for c in counts):
        raise TypeError(message)
    if len(counts) != n_layers or any(c < 0 for c in counts):
        raise ValueError(message)
    return Choices(n_layers, positive, counts if any(counts) else None)


# --- dispatch -------------------------------------------------------------------------------------


def _run(x: Tensor, tensors: Tensors, dtype: torch.dtype, choices: Choices) -> Tensor:
    """Return the codes in the caller's shape and dtype."""
    if choices.select is not None:
        choices = choices._replace(select=tuple(min(c, tensors.components) for c in choices.select))
    z = _encode(tensors, choices)
    if z.dtype != dtype:
        z = z.to(dtype)
    return z if x.dim() == 2 else z.reshape(*x.shape[:-1], tensors.components)


def _encode(tensors: Tensors, choices: Choices) -> Tensor:
    """Return the codes of rows."""
    z: Tensor
    if not plain(*tensors):
        z = call("lista_encode", *autograd.op_arguments(tensors, choices))
        return z
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if wanted or forward_ad._current_level >= 0:  # the Function says that it has no forward mode
        z = autograd.apply_lista(*tensors, choices)
        return z
    kernels = backend("lista", tensors.x.device)
    z = kernels.forward(autograd.checked_memory(tensors), choices)[0]
    return z

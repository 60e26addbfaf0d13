"""Sparse encoders of a fixed number of layers: unrolled iterative soft-thresholding.

Codes are rows, as everywhere here: [..., n_components], with scikit-learn's dictionary [n_components, n_features]. On the
CPU one compiled call runs all layers and uses that the codes are sparse, forward and backward. `latent_kernels.LISTA`
holds the parameters as a torch module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from latent_kernels import _checks
from latent_kernels._backends import backend, backend_name
from latent_kernels._eager import plain, row_dtype
from latent_kernels._ops import call
from latent_kernels.kernels.lista import autograd, ready, reference
from latent_kernels.kernels.lista import ops as _ops  # noqa: F401  (registers the opaque ops)
from latent_kernels.kernels.lista.problem import Choices, Tensors

Tensor = torch.Tensor


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
        z_t = \mathrm{soft}(c + z_{t-1} S_t,\ \theta_t), \quad c = x W + b, \qquad
        z_t = \mathrm{soft}(z_{t-1} + \gamma_t (c + z_{t-1} S_t),\ \theta_t) \text{ where steps are given}

    with soft(u, theta) = sign(u) max(abs(u) - theta, 0). ISTA for 1/2 ||x - z D||^2 + alpha ||z||_1 is W = D^T / L,
    S = I - D D^T / L, theta = alpha / L, or W = D^T, S = -D D^T, step = 1 / L, with L >= ||D||^2.

    The backward pass works on the non-zeros too: autograd keeps the inputs and, for each layer, the places and values of
    the non-zero codes. Gradients are those of almost every point: 0 for entries that a threshold holds at 0. Second
    derivatives are not implemented in the compiled form and raise. Non-finite x gives non-finite codes in its row only.

    Args:
        x: [..., m], float32, float64, bfloat16 or float16 (halves are computed in float32).
        weight: W [m, n].
        recurrent: S, [n, n] for all layers or [T, n, n]; None where n_layers is 1 and there is no initial code.
            Where `initial` is None the first layer does not use it.
        threshold: theta >= 0: a number, [n] for all layers, or [T, 1] or [T, n].
        n_layers: T >= 1, the number of soft-thresholdings.
        bias: b [n].
        step: gamma: a number, or [T].
        initial: z_0 [..., n], as many rows as x; None for zeros.
        positive: keep codes >= 0: max(u - theta, 0).
        select: support selection: for each layer (or all), how many of a row's largest entries beyond the threshold
            pass unthresholded.

    Returns:
        z_T [..., n] in the dtype that the tensors promote to.

    Raises:
        TypeError, ValueError: naming the argument that is wrong; weights that are not finite among them (on the CPU).

    Source: Gregor and LeCun, "Learning fast approximations of sparse coding" (2010); Ablin et al., "Learning step sizes
    for unfolded sparse coding" (2019).
    """
    parameters, asked = (weight, recurrent, threshold, bias, step), (n_layers, positive, select)
    if initial is None and (z := ready.encode(x, parameters, asked)) is not None:
        return z
    named = {"x": x, "weight": weight, "recurrent": recurrent, "bias": bias, "initial": initial}
    tensors, shape = _prepare(named, threshold, step, n_layers, per_layer="recurrent")
    if recurrent is None and (n_layers > 1 or initial is not None):
        raise ValueError("recurrent may be None only where n_layers is 1 and there is no initial code")
    choices = Choices(n_layers, positive, _selection(select, n_layers))
    return _encode(tensors, choices, shape, parameters, asked)


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

    ISTA is W = D^T, gamma = 1 / L, theta = alpha / L. See `lista_encode` for what is common to both.

    Args:
        x: [..., m].
        dictionary: D [n, m].
        weight: W, [m, n] for all layers or [T, m, n].
        threshold: theta >= 0: a number, [n] for all layers, or [T, 1] or [T, n].
        n_layers: T >= 1, the number of soft-thresholdings.
        step: gamma: a number, or [T]; None for 1.
        initial: z_0 [..., n], as many rows as x; None for zeros.
        positive: keep codes >= 0.
        select: support selection: for each layer (or all), how many of a row's largest entries beyond the threshold
            pass unthresholded.

    Returns:
        z_T [..., n] in the dtype that the tensors promote to.

    Raises:
        TypeError, ValueError: naming the argument that is wrong; weights that are not finite among them (on the CPU).

    Source: Chen, Liu, Wang, Yin, "Theoretical linear convergence of unfolded ISTA and its practical weights and
    thresholds" (2018); Liu et al., "ALISTA: analytic weights are as good as learned weights in LISTA" (2019).
    """
    parameters, asked = (dictionary, weight, threshold, step), (n_layers, positive, select)
    if initial is None and (z := ready.encode(x, parameters, asked)) is not None:
        return z
    named = {"x": x, "weight": weight, "dictionary": dictionary, "initial": initial}
    tensors, shape = _prepare(named, threshold, step, n_layers, per_layer="weight")
    choices = Choices(n_layers, positive, _selection(select, n_layers))
    return _encode(tensors, choices, shape, parameters, asked)


# --- checks -----------------------------------------------------------------------------------------------------------


def _prepare(
    named: dict[str, Tensor | None],
    threshold: Tensor | float,
    step: Tensor | float | None,
    n_layers: int,
    *,
    per_layer: str,
) -> tuple[Tensors, torch.Size]:
    """The tensors in the kernels' shapes and one dtype, and the leading shape of x."""
    _layers(n_layers)
    x, weight = named["x"], named["weight"]
    _checks.float_tensor("x", x)
    _checks.float_tensor("weight", weight)
    assert x is not None
    assert weight is not None
    named["threshold"] = _of_layers("threshold", threshold, x)
    named["step"] = None if step is None else _of_layers("step", step, x)
    _promote(named)
    x, weight = named["x"], named["weight"]
    assert x is not None
    assert weight is not None
    m, n = x.size(-1), weight.size(-1)
    expected = {"weight": (m, n), "recurrent": (n, n), "dictionary": (n, m), "bias": (n,)}
    for name, shape in expected.items():
        tensor = named.get(name)
        if tensor is None:
            continue
        layered = name == per_layer and tensor.dim() == len(shape) + 1
        if tuple(tensor.shape) != ((n_layers,) if layered else ()) + shape:
            both = f" or {(n_layers, *shape)}" if name == per_layer else ""
            raise ValueError(f"{name} must have shape {shape}{both} beside x {tuple(x.shape)}; got {tuple(tensor.shape)}")
    initial = named.get("initial")
    if initial is not None:
        if tuple(initial.shape) != (*x.shape[:-1], n):
            raise ValueError(f"initial must have shape {(*x.shape[:-1], n)}; got {tuple(initial.shape)}")
        named["initial"] = initial.reshape(-1, n)
    assert named["threshold"] is not None
    _threshold(named["threshold"], n_layers, n)
    if named["step"] is not None:
        _step(named["step"], n_layers)
    leading = x.shape[:-1]
    if x.dim() != 2:
        named["x"] = x.reshape(math.prod(leading), m)
    return Tensors(**named), leading  # type: ignore[arg-type]


def _layers(n_layers: object) -> None:
    if isinstance(n_layers, bool) or not isinstance(n_layers, int):
        raise TypeError(f"n_layers must be an int >= 1; got {n_layers!r}")
    if n_layers < 1:
        raise ValueError(f"n_layers must be an int >= 1; got {n_layers}")


def _of_layers(name: str, value: object, like: Tensor) -> Tensor:
    """A parameter that may be a number."""
    if isinstance(value, Tensor):
        if value.dtype not in _checks.FLOATS:
            raise TypeError(f"{name} must have dtype float32, float64, bfloat16 or float16; got {value.dtype}")
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or a torch.Tensor; got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite; got {value}")
    return torch.full((), value, dtype=row_dtype(like.dtype), device=like.device)


def _promote(named: dict[str, Tensor | None]) -> None:
    """One device, and the dtype that the tensors promote to; numbers and 0-d tensors do not take part."""
    x = named["x"]
    assert x is not None
    dtype = x.dtype
    for name, tensor in named.items():
        if tensor is None or tensor is x:
            continue
        if tensor.dtype not in _checks.FLOATS:
            raise TypeError(f"{name} must have dtype float32, float64, bfloat16 or float16; got {tensor.dtype}")
        _checks.device_of(name, tensor, "x", x)
        if tensor.dtype != dtype and tensor.dim() > 0:
            dtype = torch.promote_types(dtype, tensor.dtype)
    for name, tensor in named.items():
        if tensor is not None and tensor.dtype != dtype:
            named[name] = tensor.to(dtype)


def _threshold(threshold: Tensor, n_layers: int, n: int) -> None:
    shape = tuple(threshold.shape)
    if shape not in ((), (n,), (n_layers, 1), (n_layers, n)):
        raise ValueError(
            f"threshold must be a number or have shape {(n,)}, {(n_layers, 1)} or {(n_layers, n)}; got {shape}"
        )


def _step(step: Tensor, n_layers: int) -> None:
    if tuple(step.shape) not in ((), (n_layers,)):
        raise ValueError(f"step must be a number or have shape {(n_layers,)}; got {tuple(step.shape)}")


def _selection(select: int | Sequence[int] | None, n_layers: int) -> tuple[int, ...] | None:
    if select is None:
        return None
    counts = (select,) * n_layers if isinstance(select, int) else tuple(select)
    if len(counts) != n_layers or any(isinstance(c, bool) or not isinstance(c, int) or c < 0 for c in counts):
        raise ValueError(f"select must be an int >= 0, or one for each of the {n_layers} layers; got {select!r}")
    return counts if any(counts) else None


# --- dispatch ---------------------------------------------------------------------------------------------------------


def _encode(
    tensors: Tensors, choices: Choices, leading: torch.Size, parameters: tuple[object, ...], asked: tuple[object, ...]
) -> Tensor:
    dtype = tensors.x.dtype
    compute = row_dtype(dtype)
    if compute != dtype:
        tensors = Tensors(*(None if t is None else t.to(compute) for t in tensors))  # type: ignore[arg-type]
    if backend_name("lista", tensors.x.device) == "reference":
        z = reference.encode(tensors, choices)
    elif not plain(*tensors):
        z = call("lista_encode", *autograd.op_arguments(tensors, choices))
    elif torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        z = autograd.apply_lista(*tensors, choices)
    else:
        memory = autograd.checked(tensors)
        z = backend("lista", tensors.x.device).forward(memory, choices, False)[0]
        if compute == dtype:
            ready.remember(parameters, asked, memory, choices)
    if compute != dtype:
        z = z.to(dtype)
    return z if len(leading) == 1 else z.reshape(*leading, tensors.components)

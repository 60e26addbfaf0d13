"""Score-function gradients: the gradient of E_q f(z) from samples of q, with no gradient through f.

    grad E_q f(z) = E_q [(f(z) - b) grad log q(z)]        for any b that does not depend on z

Everything is one fused pass over z [S, ..., D]; the scores are never stored, and z itself need not
be: given the seed that drew it, it is drawn again.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from latent_kernels import _checks
from latent_kernels._checks import Seed
from latent_kernels.kernels.description import Dims
from latent_kernels.kernels.eager import SeedSource
from latent_kernels.kernels.score.problem import ESTIMATE, EXPECTATION
from latent_kernels.variational.families import Bernoulli, Family

Tensor = torch.Tensor
CONTROL_VARIATES = ("none", "leave_one_out", "optimal")


def score_function_expectation(
    q: Family,
    values: Tensor,
    z: Tensor | None = None,
    *,
    seed: Seed = None,
    offset: int = 0,
    control_variate: str | Tensor = "leave_one_out",
    folds: int = 2,
) -> Tensor:
    r"""Return the mean of f(z) over samples of q; its gradient is the score-function estimator.

    .. math::
        \hat f = \frac1S \sum_s f(z_s), \qquad
        \nabla \approx \frac1S \sum_s (f(z_s) - b_s)\, \nabla \log q(z_s)

    In backward q's parameters get the second expression, in which values are constants, and
    ``values`` get the ordinary gradient of a mean, for the parameters of a model that they depend
    on. In an ELBO, values = log p(x, z) - log q(z): detach log q there. Its own gradient has mean
    zero, so that the estimator stays unbiased with it, but becomes noisier.

    The control variate b_s is one of these:

    - "none": 0.
    - "leave_one_out": the mean of the other values (the default; needs S >= 2).
    - "optimal": for each parameter the coefficient of least variance, the sum of f times the
      squared score over that of the squared score, from the samples outside the fold of s, so that
      the estimator stays unbiased. Better than leave-one-out for many samples, not always for few.
      Needs S >= folds.
    - a tensor: a baseline of your own, broadcast to the shape of values; detached. It must not
      depend on z_s.

    Args:
        q: the family that z was drawn from.
        values: f(z), [S, ...] with q's batch shape; or [S, ..., D], a term f_d for each latent
            dimension, which alone multiplies the scores of that dimension (Rao-Blackwellised: f_d
            needs only the terms of f that depend on z_d).
        z: samples [S, ..., D] without gradient; or None, and the samples that q.sample drew with
            `seed` and `offset` are drawn again.
        seed: the int or 0-d int64 tensor that z was drawn with, where z is not given.
        offset: the first element's place in the noise stream, where z is not given.
        control_variate: see above.
        folds: the number of folds of "optimal".

    Returns:
        The mean of values over S, [...] or [..., D]; float32 for half-precision values.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. Samples outside q's
            support are found where z is read: in backward. On a GPU such rows give NaN instead.

    Source:
        Paisley, Blei and Jordan, "Variational Bayesian inference with stochastic search" (2012);
        Ranganath, Gerrish and Blei, "Black box variational inference" (2014); Kool, van Hoof and
        Welling, "Buy 4 REINFORCE samples, get a baseline for free!" (2019).

    Example:
        >>> import torch, latent_kernels as lk
        >>> logits = torch.zeros(3, 2, requires_grad=True)
        >>> q = lk.Bernoulli(logits)
        >>> z = q.sample(100, seed=0)
        >>> mean = lk.score_function_expectation(q, z.sum(-1), z)
        >>> mean.shape
        torch.Size([3])
        >>> mean.sum().backward()
        >>> bool((logits.grad > 0).all())  # a larger logit raises E[z]
        True

    """
    return _expectation(_checked(q, values, z, seed, offset, control_variate, folds))


def score_function_gradient(
    q: Family,
    values: Tensor,
    z: Tensor | None = None,
    *,
    seed: Seed = None,
    offset: int = 0,
    control_variate: str | Tensor = "leave_one_out",
    folds: int = 2,
    return_variance: bool = False,
) -> tuple[Tensor, ...]:
    r"""Return the score-function gradient of E_q f(z) itself, without autograd.

    .. math::
        \frac1S \sum_s (f(z_s) - b_s)\, \nabla \log q(z_s)

    `score_function_expectation` explains the estimator and its control variates b_s.

    Args:
        q: the family that z was drawn from.
        values: f(z), [S, ...] or [S, ..., D].
        z: samples [S, ..., D]; or None, and they are drawn again from `seed`.
        seed: the int or 0-d int64 tensor that z was drawn with, where z is not given.
        offset: the first element's place in the noise stream, where z is not given.
        control_variate: "none", "leave_one_out", "optimal" or a baseline.
        folds: the number of folds of "optimal".
        return_variance: also return the variance of each gradient, estimated from the same samples
            without bias, from S = 2 on; NaN where S is 1. (For "optimal", estimates below 0 become
            0. They are rare: in a small Bernoulli example 1% at S = 5, which adds 0.4% to the
            mean.)

    Returns:
        The gradient of each of q's parameters, in their order and shape; with `return_variance`,
        (gradients, variances), two such tuples, the variances in float32 for half-precision
        parameters.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Example:
        >>> import torch, latent_kernels as lk
        >>> q = lk.Bernoulli(torch.zeros(3, 2))
        >>> z = q.sample(100, seed=0)
        >>> values = z.sum(-1)
        >>> (gradient,), (variance,) = lk.score_function_gradient(
        ...     q, values, z, return_variance=True
        ... )
        >>> gradient.shape, variance.shape
        (torch.Size([3, 2]), torch.Size([3, 2]))
        >>> (again,) = lk.score_function_gradient(q, values, seed=0)  # draws z again from its seed
        >>> torch.equal(gradient, again)
        True

    """
    call = _checked(q, values, z, seed, offset, control_variate, folds)
    return _gradient(call, return_variance)


def disarm(
    q: Bernoulli, values: Tensor, z: Tensor | None = None, *, seed: Seed = None, offset: int = 0
) -> Tensor:
    r"""Return the mean of f(z) over antithetic pairs; its gradient is the DisARM estimator.

    .. math::
        \nabla_l \approx \frac1S \sum_s \tfrac12 (f(z_s) - f(z'_s)) (z_s - z'_s)\, \sigma(|l|)

    for a Bernoulli with logits l. It is unbiased; each pair costs two evaluations of f, and its
    samples come from one uniform. Where z = z' in a dimension, its term of the gradient is 0.

    Args:
        q: the Bernoulli that the pairs were drawn from.
        values: f of both samples, [2, S, ...] with q's batch shape, or [2, S, ..., D].
        z: pairs [2, S, ..., D] of `q.sample_antithetic`; or None, and they are drawn again from
            `seed` and `offset`.
        seed: the int or 0-d int64 tensor that the pairs were drawn with, where z is not given.
        offset: the first element's place in the noise stream, where z is not given.

    Returns:
        The mean of values over both samples of all pairs, [...] or [..., D]; float32 for
        half-precision values.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it; see
            `score_function_expectation`.

    Source:
        Dong, Mnih and Tucker, "DisARM: an antithetic gradient estimator for binary latent
        variables" (2020), equation 6; the same estimator as U2G of Yin, Ho, Yan, Qian and Zhou
        (2020).

    Example:
        >>> import torch, latent_kernels as lk
        >>> logits = torch.zeros(3, 2, requires_grad=True)
        >>> q = lk.Bernoulli(logits)
        >>> pairs = q.sample_antithetic(100, seed=0)
        >>> mean = lk.disarm(q, pairs.sum(-1), pairs)
        >>> mean.sum().backward()
        >>> mean.shape, logits.grad.shape
        (torch.Size([3]), torch.Size([3, 2]))

    """
    return _expectation(_checked_pairs(q, values, z, seed, offset))


def disarm_gradient(
    q: Bernoulli,
    values: Tensor,
    z: Tensor | None = None,
    *,
    seed: Seed = None,
    offset: int = 0,
    return_variance: bool = False,
) -> tuple[Tensor, ...]:
    r"""Return the DisARM gradient of E_q f(z) itself, without autograd.

    .. math::
        \frac1S \sum_s \tfrac12 (f(z_s) - f(z'_s)) (z_s - z'_s)\, \sigma(|l|)

    `disarm` explains the estimator.

    Args:
        q: the Bernoulli that the pairs were drawn from.
        values: f of both samples, [2, S, ...] or [2, S, ..., D].
        z: pairs [2, S, ..., D]; or None, and they are drawn again from `seed`.
        seed: the int or 0-d int64 tensor that the pairs were drawn with, where z is not given.
        offset: the first element's place in the noise stream, where z is not given.
        return_variance: also return the gradient's variance: the sample variance of the S pairs'
            terms, over S; NaN where S is 1.

    Returns:
        (gradient,) in the logits' shape; with `return_variance`, ((gradient,), (variance,)).

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Example:
        >>> import torch, latent_kernels as lk
        >>> q = lk.Bernoulli(torch.zeros(3, 2))
        >>> pairs = q.sample_antithetic(100, seed=0)
        >>> (gradient,) = lk.disarm_gradient(q, pairs, seed=0)  # f_d(z) = z_d
        >>> torch.allclose(gradient, torch.full((3, 2), 0.25))  # p (1 - p), without noise
        True

    """
    return _gradient(_checked_pairs(q, values, z, seed, offset), return_variance)


# --- the call of the op ---------------------------------------------------------------------------


# Arguments of both ops: dimensions, inputs, options, seed; see kernels/score/problem.py.
_Call = tuple[Dims, tuple[Tensor | None, ...], tuple[Any, ...], SeedSource]


def _expectation(call: _Call) -> Tensor:
    dims, inputs, options, seed = call
    mean: Tensor = EXPECTATION(dims, inputs, options, seed=seed)
    return mean


def _gradient(call: _Call, return_variance: bool) -> tuple[Any, ...]:
    dims, inputs, options, seed = call
    two = inputs[1] is not None
    wanted = (True, two, return_variance, return_variance and two)
    found = ESTIMATE(dims, inputs, options, seed=seed, wanted=wanted)
    count = 1 + two
    return (found[:count], found[2 : 2 + count]) if return_variance else found[:count]


# --- checks ---------------------------------------------------------------------------------------


def _checked(
    q: Family,
    values: Tensor,
    z: Tensor | None,
    seed: Seed,
    offset: int,
    control_variate: str | Tensor,
    folds: int,
) -> _Call:
    if not isinstance(q, Family):
        raise TypeError(
            f"q must be a DiagonalGaussian, Bernoulli or Categorical; got {type(q).__name__}"
        )
    samples, per_element = _value_shape(q, values, ("S",))
    z, source, offset = _samples(q, z, seed, offset, (samples,))
    baseline = None
    if isinstance(control_variate, Tensor):
        baseline, control = _baseline(control_variate, values), "none"
    elif control_variate in CONTROL_VARIATES:
        control = control_variate
    else:
        known = ", ".join(repr(name) for name in CONTROL_VARIATES)
        raise ValueError(f"control_variate must be {known} or a tensor; got {control_variate!r}")
    if control == "leave_one_out" and samples < 2:
        raise ValueError(
            "control_variate 'leave_one_out' takes the mean of the other values, of which there "
            "are none for S = 1: draw more samples, or use 'none' or a baseline of your own"
        )
    if control == "optimal":
        folds = _checks.integer("folds", folds, 2)
        if samples < folds:
            raise ValueError(
                "control_variate 'optimal' takes each fold's coefficient from the others: it "
                f"needs S >= folds = {folds} samples; got S = {samples}"
            )
    else:
        folds = 1
    of_baseline = (samples,) if baseline is not None and baseline.dim() == values.dim() else (1,)
    cols, classes = (q.cols,), (q.classes,) if q.classes else ()
    of_values = cols if per_element else ()
    dims = ((), (), (samples,), of_baseline, q.batch_shape, of_values, cols, classes)
    options = (offset, q.name, control, folds, per_element)
    return dims, (*_parameters(q), z, values, baseline), options, source


def _checked_pairs(
    q: Bernoulli, values: Tensor, z: Tensor | None, seed: Seed, offset: int
) -> _Call:
    if not isinstance(q, Bernoulli):
        raise TypeError(
            f"q must be a Bernoulli: DisARM is for binary variables; got {type(q).__name__}"
        )
    samples, per_element = _value_shape(q, values, ("2", "S"))
    z, source, offset = _samples(q, z, seed, offset, (2, samples))
    cols = (q.cols,)
    dims = ((), (2,), (samples,), (1,), q.batch_shape, cols if per_element else (), cols, ())
    options = (offset, "antithetic", "none", 1, per_element)
    return dims, (*_parameters(q), z, values, None), options, source


def _value_shape(q: Family, values: Tensor, leading: tuple[str, ...]) -> tuple[int, bool]:
    """Return S, and whether values have a term for each latent dimension."""
    _checks.float_tensor("values", values)
    before, batch = len(leading), q.batch_shape
    shape = values.shape
    after = shape[before:]
    if (
        len(shape) < before
        or (after != batch and after != (*batch, q.cols))
        or (before == 2 and shape[0] != 2)
    ):
        names = ", ".join(leading)
        wanted = f"[{names}, *{batch}] or [{names}, *{(*batch, q.cols)}]"
        raise ValueError(f"values must have shape {wanted}, as q has; got {tuple(values.shape)}")
    if values.device != q.device:
        raise ValueError(f"values must be on the device of q, {q.device}; got {values.device}")
    samples = shape[before - 1]
    if samples < 1:
        raise ValueError(f"values must hold at least one sample; got shape {tuple(values.shape)}")
    return samples, len(after) > len(batch)


def _samples(
    q: Family, z: Tensor | None, seed: Seed, offset: int, leading: tuple[int, ...]
) -> tuple[Tensor | None, SeedSource, int]:
    """Return z in the dtype of the kernels, or the seed and the offset that draw it."""
    shape = (*leading, *q.batch_shape, q.cols)
    if z is None:
        if seed is None:
            raise ValueError(
                "z or seed must be given: the samples that values were computed at, or the seed "
                "that they were drawn with"
            )
        count = math.prod(shape[-len(shape) + len(leading) - 1 :])
        return None, *_checks.stream(seed, offset, count, q.device)
    if seed is not None:
        raise ValueError(
            "z and seed are both given; one of them says which samples values were computed at"
        )
    z = q._samples_of(z)
    if z.shape != shape:
        raise ValueError(
            f"z must have shape {shape}, with as many samples as values; got {tuple(z.shape)}"
        )
    if z.requires_grad:
        raise ValueError(
            "z must not require grad: the estimator takes no gradient through samples; pass "
            "z.detach()"
        )
    return z, 0, 0


def _baseline(baseline: Tensor, values: Tensor) -> Tensor:
    """Return the baseline in the shape of values, or in that without the sample dimension."""
    _checks.device_of("control_variate", baseline, "values", values)
    shape = tuple(values.shape)
    if not baseline.is_floating_point():
        raise TypeError(f"control_variate as a tensor must be floating; got {baseline.dtype}")
    one = baseline.dim() < len(shape) or baseline.size(0) == 1
    whole = _checks.expand("control_variate", baseline, shape, "values")
    return whole[0] if one else whole


def _parameters(q: Family) -> tuple[Tensor, Tensor | None]:
    return q.parameters[0], q.parameters[1] if len(q.parameters) > 1 else None

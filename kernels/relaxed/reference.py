"""Relaxed samples in plain torch, with noise in NumPy: fixed operations, so that every backend
draws the same hard samples.

    x = ln u - ln(1 - u)        y = sigmoid((l - x) / tau)              (binary Concrete)
    g_k = -ln(-ln(1 - u_k))     y = softmax((l_k + g_k) / tau)          (Gumbel-softmax)

(Jang, Gu, Poole 2017; Maddison, Mnih, Teh 2017). Hard samples are [x < l] and the one-hot vector
of the largest l_k + g_k, with the gradient of the relaxed ones. Tests hold the compiled kernels
against these functions; devices without a compiled kernel run them.
"""

from __future__ import annotations

import numpy as np
import torch

from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.families.reference import logistic
from latent_kernels.kernels.noise import ops
from latent_kernels.kernels.noise import reference as noise
from latent_kernels.kernels.relaxed.problem import (
    Gradients,
    Outputs,
    Problem,
    classes_of,
    inverse_of,
)

Tensor = torch.Tensor
f32 = np.float32


def exponential(u: noise.Floats) -> noise.Floats:
    """Return -ln(1 - u), by the stream's ln; where 1 - u > sqrt(1/2) with f = -u itself, so that no
    digit of a small u is lost.
    """
    k, f = noise.parts(f32(1) - u)
    return -noise.ln_of_parts(k, np.where(k == 0, -u, f))


def _noise(problem: Problem) -> Tensor:
    """Return x, or -g, [G, S, N, D] or [G, S, N, D, K] in the dtype of the computation."""
    groups, samples, rows, *cells = problem.sizes
    sizes = groups, samples, rows, int(np.prod(cells))
    u = noise.of_groups("uniform", sizes, problem.seed, problem.offset)
    x = logistic(u) if classes_of(problem) is None else noise.ln(exponential(u))
    return torch.from_numpy(x.reshape(problem.sizes)).to(
        problem.logits.device, row_dtype(problem.logits.dtype)
    )


def _perturbed(problem: Problem) -> Tensor:
    """Return l - x, or l + g."""
    noise = _noise(problem)
    return _with_samples(problem).to(noise.dtype) - noise


def _with_samples(problem: Problem) -> Tensor:
    """Return the logits with an axis of samples."""
    groups, _, *shape = problem.sizes
    return problem.logits.detach().reshape(groups, 1, *shape)


def _relaxed(problem: Problem, t: Tensor) -> Tensor:
    """Return the relaxed samples from the perturbed logits."""
    if classes_of(problem) is None:
        return torch.sigmoid(t * inverse_of(problem))
    return torch.softmax((t - t.amax(-1, keepdim=True)) * inverse_of(problem), -1)


def _hard(problem: Problem, t: Tensor) -> Tensor:
    """Return the hard samples from the perturbed logits, NaN where these have none."""
    if classes_of(problem) is None:
        return torch.where(t.isnan(), t, (t > 0).to(t.dtype))
    most = t.amax(-1, keepdim=True)
    # The first of several that are equal; torch.argmax does not say which it takes.
    classes = torch.arange(t.size(-1), device=t.device)
    place = torch.where(t == most, classes, t.size(-1)).amin(-1, keepdim=True)
    return torch.where(most.isfinite(), (classes == place).to(t.dtype), torch.nan)


def _ln(u: Tensor, near: Tensor | None = None) -> Tensor:
    """Return the stream's ln u of float32 u in plain torch; ln(1 + near) where k = 0, if given."""
    mantissa, exponent = torch.frexp(u)
    low = mantissa < 0.7071067690849304  # sqrt(1/2) as the stream has it
    k = (exponent - low.to(exponent.dtype)).double()
    f = torch.where(low, 2 * mantissa, mantissa) - 1
    if near is not None:
        f = torch.where(k == 0, near, f)
    p = torch.full_like(f, noise.LN_P[-1])
    for c in noise.LN_P[-2::-1]:  # fma: the product is exact in float64
        p = (p.double() * f + c).float()
    series = (p.double() * (f * f) + f).float()
    return (k * float(noise.LN2) + series).float()


def formula(problem: Problem, wanted: Outputs) -> Outputs:
    """Return the samples, to be differentiated; hard ones have the derivatives of the relaxed."""
    groups, _, *shape = problem.sizes
    assert isinstance(problem.seed, Tensor)
    u = ops.uniforms(problem.sizes, problem.seed, problem.offset, problem.logits).float()
    logits, inverse = problem.logits.reshape(groups, 1, *shape), inverse_of(problem)
    if classes_of(problem) is None:
        t = logits - (_ln(u) - _ln(1 - u))
        y = torch.sigmoid(t * inverse)
    else:
        t = logits - _ln(-_ln(1 - u, -u))
        y = torch.softmax(t * inverse, -1)
    if problem.hard:
        y = _hard(problem, t.detach()) + (y - y.detach())
    return wanted._replace(y=y)


def forward(problem: Problem, outputs: Outputs) -> None:
    """Write relaxed or hard samples."""
    t = _perturbed(problem)
    y = _hard(problem, t) if problem.hard else _relaxed(problem, t)
    outputs.y.copy_(y.reshape(outputs.y.shape))


def backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write the gradient of the logits, summed over samples."""
    assert gradients.logits is not None
    dtype = row_dtype(problem.logits.dtype)
    g = upstream.y.reshape(problem.sizes).to(dtype)
    if problem.hard:
        y = _relaxed(problem, _perturbed(problem))
    else:
        y = upstream.kept_y.reshape(problem.sizes).to(dtype)
    if classes_of(problem) is None:
        terms = g * (y * (1 - y))
    else:
        terms = y * (g - (g * y).sum(-1, keepdim=True))
    total = terms.sum(1) * inverse_of(problem)
    gradients.logits.copy_(total.reshape(gradients.logits.shape))

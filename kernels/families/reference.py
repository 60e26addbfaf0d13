"""How discrete families are sampled, in NumPy: fixed float32 operations in a fixed order, so that
every backend draws the same values. See README.md for the rules.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from latent_kernels.kernels.families.problem import Classes, Problem, Samples, classes_of
from latent_kernels.kernels.noise import reference as noise

Tensor = torch.Tensor
Floats = npt.NDArray[np.float32]

f32 = np.float32
EXP_Q = [
    0.4999999403953552,
    0.16666515171527863,
    0.04166845604777336,
    0.008369418792426586,
    0.0013813144760206342,
]


def exp(x: Floats) -> Floats:
    """e^x = 2^n (1 + r + r^2 Q(r)), n = round(x / ln 2); the sequence of csrc/simd/math.hpp."""
    x = np.where(x < f32(-104), f32(-104), x)
    x = np.where(x > f32(89), f32(89), x)
    n = (x * f32(1.4426950216293335) + f32(12582912)) - f32(12582912)
    r = (x - n * f32(0.693359375)) - n * f32(-2.12194440e-4)
    p = (r * r) * noise.horner(EXP_Q, r) + r + f32(1)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        y: Floats = np.ldexp(p, np.nan_to_num(n).astype(np.int32))
    return y


def logistic(u: Floats) -> Floats:
    """ln u - ln(1 - u): u uniform on (0, 1) gives a standard logistic variable."""
    x: Floats = noise.ln(u) - noise.ln(f32(1) - u)
    return x


def cumulative(logits: Tensor) -> Floats:
    """Unnormalized cumulative probabilities [..., K]: c_k = c_(k-1) + e^(l_k - max l), summed in
    order of k.
    """
    values = logits.to("cpu", torch.float32).numpy()
    with np.errstate(invalid="ignore"):
        weights = exp(values - values.max(-1, keepdims=True))
    c = np.empty_like(weights)
    c[..., 0] = weights[..., 0]
    for k in range(1, values.shape[-1]):
        c[..., k] = c[..., k - 1] + weights[..., k]
    return c


def sample(problem: Problem, outputs: Samples | Classes) -> bool:
    """Write samples into `z`: a Bernoulli's 0 and 1, antithetic pairs of them, or classes.

    Return whether all elements have probabilities; class 0 is drawn for one that has none.
    """
    (groups, _, samples, rows, cols, _), logits, seed, offset, antithetic = problem
    logits = logits.detach()  # NumPy takes none that require a gradient
    classes, z = classes_of(problem, outputs), outputs.z
    u = noise.of_groups("uniform", (groups, samples, rows, cols), seed, offset)
    if classes:
        c = cumulative(logits).reshape(groups, 1, rows, cols, classes)
        below = c[..., :-1] <= (u * c[..., -1])[..., None]
        z.copy_(torch.from_numpy(below.sum(-1)).reshape(z.shape))
        return not bool(np.isnan(c[..., -1]).any())
    x = torch.from_numpy(logistic(u)).to(logits.device)
    logit = logits.reshape(groups, 1, rows, cols)
    logit = logit if logit.dtype == torch.float64 else logit.float()
    if antithetic:
        x, logit = torch.stack([x, -x], 1), logit.unsqueeze(1)
    ones = (x < logit).to(logit.dtype)
    z.copy_(torch.where(logit.isnan(), logit, ones).reshape(z.shape))
    return True

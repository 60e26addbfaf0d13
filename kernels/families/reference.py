"""How discrete families are sampled, in NumPy: fixed operations, rounded in a fixed order or exact,
so that every backend draws the same values. See README.md for the rules.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from latent_kernels.kernels.families.problem import (
    Classes,
    Problem,
    Samples,
    classes_of,
    unit_weight,
)
from latent_kernels.kernels.noise import reference as noise

Tensor = torch.Tensor
Floats = npt.NDArray[np.float32]

f32 = np.float32
EXP_P = [
    1.0,
    1.0,
    0.4999999403953552,
    0.1666652113199234,
    0.041668254882097244,
    0.008368662558495998,
    0.0013821459142491221,
]


def exp(x: Floats) -> Floats:
    """Return e^x = 2^n P(r), n = round(x / ln 2), by the operations of csrc/simd/math.hpp."""
    x = np.where(x < f32(-104), f32(-104), x)
    x = np.where(x > f32(89), f32(89), x)
    n = noise.fma(x, f32(1.4426950216293335), f32(12582912)) - f32(12582912)
    r = noise.fma(n, f32(2.12194440e-4), noise.fma(n, f32(-0.693359375), x))
    p = noise.horner(EXP_P, r)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        y: Floats = np.ldexp(p, np.nan_to_num(n).astype(np.int32))
    return y


def logistic(u: Floats) -> Floats:
    """Return ln u - ln(1 - u), a standard logistic variable for u uniform on (0, 1)."""
    x: Floats = noise.ln(u) - noise.ln(f32(1) - u)
    return x


def cumulative(logits: Tensor) -> tuple[npt.NDArray[np.uint64], bool]:
    """Return the cumulative weights [..., K] in fixed point, c_k = floor(2^B e^(l_0 - max l)) + ...
    + floor(2^B e^(l_k - max l)), and whether every element has such; class 0 is certain where not.
    """
    values = logits.to("cpu", torch.float32).numpy()
    largest = values.max(-1, keepdims=True)
    proper = np.isfinite(largest)
    with np.errstate(invalid="ignore"):
        weights = np.where(proper, exp(values - largest), 0)
        c = np.cumsum((weights * f32(unit_weight(values.shape[-1]))).astype(np.uint64), -1)
    return np.where(proper, c, np.uint64(1)), bool(proper.all())


def sample(problem: Problem, outputs: Samples | Classes) -> bool:
    """Write samples into `z`: a Bernoulli's 0 and 1, antithetic pairs of them, or classes.

    Return whether all elements have probabilities; class 0 is drawn for one that has none.
    """
    (groups, _, samples, rows, cols, _), logits, seed, offset, antithetic = problem
    logits = logits.detach()  # NumPy takes none that require a gradient
    classes, z = classes_of(problem, outputs), outputs.z
    sizes = groups, samples, rows, cols
    if classes:
        table, proper = cumulative(logits)
        c = table.reshape(groups, 1, rows, cols, classes)
        w = noise.of_groups("word", sizes, seed, offset).astype(np.uint64)
        total, low = c[..., -1], np.uint64(0xFFFFFFFF)
        # floor(w total / 2^32): the product has up to 94 bits
        threshold = (total >> np.uint64(32)) * w + ((total & low) * w >> np.uint64(32))
        below = c[..., :-1] <= threshold[..., None]
        z.copy_(torch.from_numpy(below.sum(-1)).reshape(z.shape))
        return proper
    x = torch.from_numpy(logistic(noise.of_groups("uniform", sizes, seed, offset))).to(
        logits.device
    )
    logit = logits.reshape(groups, 1, rows, cols)
    logit = logit if logit.dtype == torch.float64 else logit.float()
    if antithetic:
        x, logit = torch.stack([x, -x], 1), logit.unsqueeze(1)
    ones = (x < logit).to(logit.dtype)
    z.copy_(torch.where(logit.isnan(), logit, ones).reshape(z.shape))
    return True

"""Score-function gradients in plain torch, by the formulas: every score is computed, weighted and
averaged. README.md derives the variances.

    G = 1/S sum_s (f_s - b_s) s(z_s),   s(z) = grad log q(z)          (Paisley, Blei, Jordan 2012)

    none             b_s = 0, or the baseline given
    leave-one-out    b_s = mean of the other f                        (Kool, van Hoof, Welling 2019)
    optimal          b_s = a_j, for each parameter j: of the samples outside the fold of s,
                     a_j = sum f s_j^2 / sum s_j^2; their mean f where that is 0/0
    antithetic       of each pair 1/2 (f(z) - f(z')) (z - z') sigmoid(|l|)
                                                                      (Dong, Mnih, Tucker 2020)

Tests hold the compiled kernels against this; devices without one run it.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from latent_kernels.kernels.families import problem as discrete
from latent_kernels.kernels.families import reference as families
from latent_kernels.kernels.noise import reference as noise
from latent_kernels.kernels.score.problem import (
    Estimate,
    Problem,
    gradients_of,
    variances_of,
)

Tensor = torch.Tensor


def scores(family: str, parameters: tuple[Tensor, ...], z: Tensor) -> tuple[Tensor, ...]:
    """Return gradients of log q(z) by each of q's parameters; z has leading sample dimensions,
    parameters [..., D(, K)].

    NaN where z lies outside the family's support.
    """
    if family == "gaussian":
        mean, logvar = parameters
        t = (z - mean) * torch.exp(-0.5 * logvar)
        return t * torch.exp(-0.5 * logvar), 0.5 * (t * t - 1)
    (logits,) = parameters
    if family == "bernoulli":
        score = torch.where(
            z == 1, torch.sigmoid(-logits), -torch.sigmoid(logits)
        )  # keeps its digits at +-80
        return (torch.where((z == 0) | (z == 1), score, torch.nan),)
    classes = logits.size(-1)
    hot = (z.unsqueeze(-1) == torch.arange(classes, device=z.device)).to(logits.dtype)
    inside = (z >= 0) & (z < classes)
    return (torch.where(inside.unsqueeze(-1), hot - torch.softmax(logits, -1), torch.nan),)


def regenerate(problem: Problem) -> Tensor:
    """Return the z that `sample` and `rsample` draw from the problem's seed."""
    groups, samples, rows, cols, classes = problem.counts
    first, seed, offset = problem.first, problem.seed, problem.offset
    shape = (groups, samples, rows, cols)
    if problem.family == "gaussian":
        mean, logvar = (x.reshape(groups, 1, rows, cols) for x in problem.parameters)
        eps = torch.from_numpy(noise.of_groups("normal", shape, seed, offset)).to(
            mean.device, mean.dtype
        )
        return mean + torch.exp(0.5 * logvar) * eps
    pairs = problem.family == "antithetic"
    dtype = torch.int64 if classes else first.dtype
    z = torch.empty((groups, 2, *shape[1:]) if pairs else shape, dtype=dtype, device=first.device)
    sizes = (groups, 1 + pairs, samples, rows, cols, classes)
    families.sample(discrete.Problem(sizes, first, seed, offset, pairs), discrete.Samples(z))
    return z


class Terms(NamedTuple):
    """What a parameter's gradient and its variance are made of.

    each        the S terms (f_s - b_s) s(z_s), [G, S, N, D(, K)], whose mean is the gradient
    coupling    sum over pairs of folds k, l of (a_k - a_l)^2 B_k B_l; 0 except for "optimal"
    """

    each: Tensor
    coupling: Tensor | float = 0.0


def terms(problem: Problem) -> tuple[Terms, ...]:
    """Return the terms of each parameter."""
    groups, samples, rows, cols, classes = problem.counts
    z, baseline = problem.z, problem.baseline
    if z is None:
        z = regenerate(problem)
    pairs = (2,) if problem.family == "antithetic" else ()
    f = problem.values.reshape(groups, *pairs, samples, rows, cols if problem.per_element else 1)
    if problem.family == "antithetic":
        logits = problem.first.reshape(groups, 1, rows, cols)
        z = z.reshape(groups, 2, samples, rows, cols)
        inside = ((z == 0) | (z == 1)).all(1)
        difference = torch.where(inside, z[:, 0] - z[:, 1], torch.nan)
        return (Terms((0.5 * (f[:, 0] - f[:, 1])) * difference * torch.sigmoid(logits.abs())),)
    tail = (classes,) if classes else ()
    z = z.reshape(groups, samples, rows, cols)
    q = tuple(x.reshape(groups, 1, rows, cols, *tail) for x in problem.parameters)
    found = scores(problem.family, q, z)
    if classes:
        f = f.unsqueeze(-1)
    if problem.control == "none":
        if baseline is not None:
            f = f - baseline.reshape(groups, problem.sizes[3], *f.shape[2:])
        return tuple(Terms(f * s) for s in found)
    if problem.control == "leave_one_out":
        # b_s = (sum f - f_s) / (S - 1), so that f_s - b_s = (f_s - mean f) S / (S - 1)
        return tuple(Terms(_centred(f) * (samples / (samples - 1)) * s) for s in found)
    f = _centred(f)
    return tuple(_of_folds(problem, f, s) for s in found)


def _centred(f: Tensor) -> Tensor:
    """f less its mean over samples, twice: the first mean of huge values is off by a rounding of
    theirs.
    """
    f = f - f.mean(1, keepdim=True)
    return f - f.mean(1, keepdim=True)


def _of_folds(problem: Problem, f: Tensor, s: Tensor) -> Terms:
    """Return the terms, of each fold with the coefficient a of the samples outside it."""
    f = f.expand(torch.broadcast_shapes(f.shape, s.shape))
    samples, folds = f.size(1), problem.folds
    edges = [k * samples // folds for k in range(folds + 1)]
    each, coefficients, sums = [], [], []
    for begin, end in itertools.pairwise(edges):
        outside = torch.ones(samples, dtype=torch.bool, device=s.device)
        outside[begin:end] = False
        f_out, square = f[:, outside], s[:, outside] ** 2
        total = square.sum(1, keepdim=True)
        a = torch.where(
            total == 0, f_out.mean(1, keepdim=True), (f_out * square).sum(1, keepdim=True) / total
        )
        each.append((f[:, begin:end] - a) * s[:, begin:end])
        coefficients.append(a[:, 0])
        sums.append(s[:, begin:end].sum(1))
    coupling = sum(
        (a_k - a_l) ** 2 * b_k * b_l
        for (a_k, b_k), (a_l, b_l) in itertools.combinations(
            zip(coefficients, sums, strict=True), 2
        )
    )
    return Terms(torch.cat(each, 1), coupling)


def variance_of_mean(control: str, terms: Terms) -> Tensor:
    """Return the estimated variance of the mean of S terms; NaN for S = 1."""
    samples, mean = terms.each.size(1), terms.each.mean(1)
    square = ((terms.each - mean.unsqueeze(1)) ** 2).sum(1)
    if samples == 1:
        return torch.full_like(square, torch.nan)
    if control == "leave_one_out":
        return (square * ((samples - 1) / samples) + mean**2) / ((samples - 1) ** 2 + 1)
    return ((square - terms.coupling) / (samples * (samples - 1))).clamp(min=0)


def gradient(problem: Problem, upstream: Tensor | None, estimate: Estimate) -> bool:
    """Write the gradient of each parameter, times `upstream`, and its estimated variance."""
    groups, _, rows, cols, classes = problem.counts
    if problem.first.dtype in (torch.float16, torch.bfloat16):
        first, second, z = problem.first.float(), problem.second, problem.z
        problem = problem._replace(
            first=first,
            second=None if second is None else second.float(),
            z=z.float() if z is not None and z.is_floating_point() else z,
        )
    z = regenerate(problem) if problem.z is None else problem.z
    problem = problem._replace(z=z)
    inside = True
    if z.device.type == "cpu":
        if classes:
            inside = bool(((z >= 0) & (z < classes)).all())
        elif problem.family != "gaussian":
            inside = bool(((z == 0) | (z == 1) | z.isnan()).all())
    weight: Tensor | float = 1.0
    if upstream is not None:
        width = cols if problem.per_element else 1
        weight = upstream.reshape(groups, rows, width, *([1] if classes else []))
    variances = variances_of(estimate)
    for j, (term, out) in enumerate(zip(terms(problem), gradients_of(estimate), strict=True)):
        out.copy_((term.each.mean(1).to(problem.first.dtype) * weight).reshape(out.shape))
        if variances is not None:
            variances[j].copy_(variance_of_mean(problem.control, term).reshape(variances[j].shape))
    return inside

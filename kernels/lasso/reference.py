"""Lasso codes in plain torch, on any device. See README.md for the formulas."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from latent_kernels.kernels.lasso.problem import Outputs, Problem

Tensor = torch.Tensor

GAP_EVERY = 10  # iterations of ISTA and FISTA between looks at the gap


class Dictionary(NamedTuple):
    """A dictionary [K, F] and ||d_k||^2, [K]."""

    atoms: Tensor
    norms: Tensor


def prepare(dictionary: Tensor) -> Dictionary:
    """Return what depends on the dictionary alone."""
    return Dictionary(dictionary, dictionary.square().sum(-1))


def wide(x: Tensor) -> Tensor:
    """Return x in float64, where the device has it."""
    return x if x.device.type == "mps" else x.double()


def differ(least: float, largest: float) -> bool:
    """Return whether these squared norms differ so much that steps are scaled to each atom."""
    return largest > 16 * least


def curvature(dictionary: Tensor, scaled: bool) -> float:
    """Return an upper bound on the largest eigenvalue of D D^T, of unit atoms if `scaled`.

    That is the Lipschitz constant of the smooth part's gradient in the codes, times ||d_k|| if
    `scaled`. Rounded up to 12 bits, so that what LAPACK does with the last digits on other threads
    changes nothing.
    """
    d = wide(dictionary)
    if scaled:
        d = torch.nn.functional.normalize(d, eps=torch.finfo(d.dtype).tiny)
    gram = d @ d.T if d.size(0) <= d.size(1) else d.T @ d
    return rounded_up(float(torch.linalg.eigvalsh(gram.cpu())[-1]))


def rounded_up(eigenvalue: float) -> float:
    """Return `eigenvalue` with an allowance for rounding, rounded up to 12 bits."""
    fraction, exponent = math.frexp(eigenvalue * (1 + 1e-6))
    return math.ldexp(math.ceil(fraction * 4096) / 4096, exponent)


def soft(u: Tensor, threshold: Tensor, positive: bool) -> Tensor:
    """Return the proximal map of threshold * ||.||_1; over non-negative numbers if `positive`."""
    cut = torch.minimum(u, threshold) if positive else torch.clamp(u, -threshold, threshold)
    return u - cut


def duality_gap(x: Tensor, dictionary: Tensor, alpha: Tensor, z: Tensor, positive: bool) -> Tensor:
    """Return an upper bound [B] on the objective of codes z [B, K] above its minimum, in float64.

    At the dual point s r, r = x - z D, with s max |c| <= alpha for c = r D^T: 1/2 (1 - s)^2 ||r||^2
    + sum_k alpha |z_k| - s z_k c_k, and an allowance for rounding: see README.md.
    """
    x, d, alpha, z = wide(x), wide(dictionary), wide(alpha), wide(z)
    r = x - z @ d
    c = r @ d.T
    squared = r.square().sum(-1)
    unit = torch.finfo(d.dtype).eps * (sum(d.shape) + 16)
    norm, atom = squared.sqrt(), d.norm(dim=-1).amax()
    most = (c if positive else c.abs()).amax(-1).clamp(min=0) + unit * norm * atom
    best = torch.where(squared > 0, 1 + (z * c).sum(-1) / squared, 1.0)
    s = torch.where(best * most > alpha, alpha / most, best).clamp(min=0)
    penalty, along = alpha[:, None] * z.abs(), s[:, None] * z * c
    square, terms = 0.5 * (1 - s).square() * squared, (penalty - along).sum(-1).clamp(min=0)
    size = x.norm(dim=-1) + 2 * z.abs().sum(-1) * atom
    slack = size * (s.clamp(min=1) * norm + unit * size) + square + (penalty + along.abs()).sum(-1)
    gap: Tensor = square + terms + unit * slack
    return gap


def forward(problem: Problem, dictionary: Dictionary, outputs: Outputs) -> None:
    """Write the codes and their gap. A row stops where gap <= tol ||x||^2 / 2."""
    (rows, features, components), x, _, alpha, init, algorithm, max_iter, tol, positive = problem
    x, d, alpha = x.reshape(rows, features), dictionary.atoms, alpha.reshape(rows)
    codes, gap = outputs.codes.view(rows, components), outputs.gap.view(rows)
    codes.zero_() if init is None else codes.copy_(init.reshape(rows, components))
    target = tol * 0.5 * wide(x).square().sum(-1)
    step = _descent if algorithm == "cd" else _gradient
    gap.copy_(_round_up(duality_gap(x, d, alpha, codes, positive), gap))
    state: dict[str, object] = {"momentum": algorithm == "fista"}
    if algorithm != "cd":
        norms = dictionary.norms
        scaled = differ(float(norms.min()), float(norms.max()))
        state["norms"] = norms if scaled else torch.ones_like(norms)
        state["curvature"] = curvature(d, scaled)
    for i in range(1, max_iter + 1):
        is_open = ~(gap <= target)
        if not bool((is_open & gap.isfinite()).any()):
            break
        codes.copy_(torch.where(is_open[:, None], step(x, d, alpha, codes, positive, state), codes))
        if algorithm == "cd" or i % GAP_EVERY == 0 or i == max_iter:
            gap.copy_(_round_up(duality_gap(x, d, alpha, codes, positive), gap))
    lost = ~gap.isfinite()
    codes.masked_fill_(lost[:, None], math.nan)
    gap.masked_fill_(lost, math.nan)


def _round_up(value: Tensor, like: Tensor) -> Tensor:
    rounded = value.to(like.dtype)
    return torch.where(
        rounded < value, torch.nextafter(rounded, torch.full_like(rounded, math.inf)), rounded
    )


def _descent(
    x: Tensor,
    dictionary: Tensor,
    alpha: Tensor,
    z: Tensor,
    positive: bool,
    state: dict[str, object],
) -> Tensor:
    """One pass of coordinate descent: z_k <- soft(r . d_k + ||d_k||^2 z_k, alpha) / ||d_k||^2,
    with r updated.
    """
    z, threshold = z.clone(), alpha.to(x.dtype)
    r = x - z @ dictionary
    for k, d in enumerate(dictionary):
        norm = d @ d
        new = soft(r @ d + norm * z[:, k], threshold, positive) / norm
        new = torch.where(norm > 0, new, torch.zeros_like(new))
        r = r - (new - z[:, k])[:, None] * d
        z[:, k] = new
    return z


def _gradient(
    x: Tensor,
    dictionary: Tensor,
    alpha: Tensor,
    z: Tensor,
    positive: bool,
    state: dict[str, object],
) -> Tensor:
    """One iteration of ISTA or FISTA; `state` holds z_(t-1) and the momentum's t of each row.

    Its steps are 1 / L; or 1 / (L ||d_k||^2), those of the problem with all atoms at norm 1.
    """
    norms = state["norms"]
    assert isinstance(norms, Tensor)
    step = 1 / (float(state["curvature"]) * norms)  # type: ignore[arg-type]
    step = torch.where(norms > 0, step, 0)  # an atom of zeros, which only the CPU leaves out
    before = state.get("before", z)
    t = state.get("t", torch.ones_like(z[:, :1]))
    assert isinstance(before, Tensor)
    assert isinstance(t, Tensor)
    t_next = (1 + (1 + 4 * t * t).sqrt()) / 2
    y = z + (t - 1) / t_next * (z - before) if state["momentum"] else z
    slope = (y @ dictionary - x) @ dictionary.T
    new = soft(y - slope * step, (alpha[:, None] * step).to(x.dtype), positive)
    against = ((y - new) * norms * (new - z)).sum(-1, keepdim=True) > 0
    state["before"], state["t"] = z.clone(), torch.where(against, 1.0, t_next)
    return new

"""Orthogonal matching pursuit in plain torch, on any device. See README.md for the formulas."""

from __future__ import annotations

import math

import torch

from latent_kernels.kernels.lasso.reference import Dictionary, wide
from latent_kernels.kernels.lasso.reference import prepare as prepare
from latent_kernels.kernels.omp.problem import Outputs, Problem

Tensor = torch.Tensor


def forward(problem: Problem, dictionary: Dictionary, outputs: Outputs) -> None:
    """Write the codes: each row chooses an atom and solves least squares over its chosen ones."""
    _, given, _, most, tol = problem
    unit = torch.finfo(given.dtype).eps
    x, atoms = wide(given.reshape(problem.sizes[:2])), wide(dictionary.atoms)
    gram, correlations = atoms @ atoms.T, x @ atoms.T
    norms, squares = gram.diagonal(), x.square().sum(-1)
    codes = torch.zeros_like(correlations)
    chosen = torch.zeros(len(x), 0, dtype=torch.int64, device=x.device)
    is_open = squares > tol
    for _ in range(most):
        if not bool(is_open.any()):
            break
        q = ((x - codes @ atoms) @ atoms.T).scatter(1, chosen, 0)
        size, k = q.abs().max(dim=1)
        chosen = torch.cat([chosen, k[:, None]], dim=1)
        system = gram[chosen[:, :, None], chosen[:, None, :]]
        factor, failed = torch.linalg.cholesky_ex(system)
        # stop at rounding, and at an atom that the chosen ones make up
        is_open &= size.square() > (32 * unit) ** 2 * norms[k] * squares
        is_open &= (failed == 0) & (factor[:, -1, -1].square() > 16 * unit * norms[k])
        values = torch.cholesky_solve(correlations.gather(1, chosen)[:, :, None], factor)[:, :, 0]
        new = torch.zeros_like(codes).scatter(1, chosen, values)
        codes = torch.where(is_open[:, None], new, codes)
        is_open &= (x - codes @ atoms).square().sum(-1) > tol
    lost = ~(squares.isfinite() & codes.to(given.dtype).isfinite().all(-1))
    codes.masked_fill_(lost[:, None], math.nan)
    outputs.codes.copy_(codes.view(outputs.codes.shape))

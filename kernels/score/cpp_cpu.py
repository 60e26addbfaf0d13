"""Score-function gradients on the CPU, in C++ (csrc/score/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.noise.cpp_cpu import DTYPES, seeds
from latent_kernels.kernels.score.problem import (
    Estimate,
    Problem,
    gradients_of,
    variances_of,
)

Tensor = torch.Tensor

_FAMILIES = {family.name: family for family in _core.Family}
_CONTROLS = {control.name: control for control in _core.Control}


def _addresses(tensors: tuple[Tensor, ...] | None) -> tuple[int, ...]:
    return tuple([x.data_ptr() for x in tensors or ()])


def gradient(problem: Problem, upstream: Tensor | None, estimate: Estimate) -> bool:
    """Write gradients and variances; problem.py has the interface, reference.py the formulas."""
    groups, samples, rows, cols, classes = problem.counts
    z, values, baseline, dtype = problem.z, problem.values, problem.baseline, problem.first.dtype
    given = _core.ScoreProblem(
        family=_FAMILIES[problem.family],
        control=_CONTROLS[problem.control],
        dtype=DTYPES[dtype],
        groups=groups,
        samples=samples,
        rows=rows,
        cols=cols,
        classes=classes,
        folds=problem.folds,
        parameters=_addresses(problem.parameters),
        z=None if z is None else z.data_ptr(),
        seed=seeds(problem.seed),
        offset=problem.offset,
        per_element=problem.per_element,
        double_values=values.dtype == torch.float64 and dtype != torch.float64,
        values=values.data_ptr(),
        baseline=None if baseline is None else baseline.data_ptr(),
        baseline_sampled=baseline is not None and baseline.numel() == values.numel(),
        upstream=None if upstream is None else upstream.data_ptr(),
    )
    return _core.score_gradient(
        given,
        threads=torch.get_num_threads(),
        gradients=_addresses(gradients_of(estimate)),
        variances=_addresses(variances_of(estimate)),
    )

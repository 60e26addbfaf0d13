"""Score-function gradients on the CPU, in C++ (csrc/score/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.extension import DTYPES, seeds
from latent_kernels.kernels.score.problem import Estimate, Problem

Tensor = torch.Tensor

_FAMILIES = {family.name: family for family in _core.Family}
_CONTROLS = {control.name: control for control in _core.Control}


def _addresses(first: Tensor | None, second: Tensor | None) -> tuple[int, ...]:
    """Return the addresses of what each parameter has; there is no second without a first."""
    if first is None:
        return ()
    return (first.data_ptr(),) if second is None else (first.data_ptr(), second.data_ptr())


def gradient(problem: Problem, upstream: Tensor | None, estimate: Estimate) -> bool:
    """Write gradients and variances; problem.py has the interface, reference.py the formulas."""
    _, first, second, z, values, baseline, seed, offset, family, control, folds, split = problem
    groups, samples, rows, cols, classes = problem.counts
    given = _core.ScoreProblem(
        family=_FAMILIES[family],
        control=_CONTROLS[control],
        dtype=DTYPES[first.dtype],
        groups=groups,
        samples=samples,
        rows=rows,
        cols=cols,
        classes=classes,
        folds=folds,
        parameters=_addresses(first, second),
        z=None if z is None else z.data_ptr(),
        seed=seeds(seed),
        offset=offset,
        per_element=split,
        double_values=values.dtype is torch.float64 and first.dtype is not torch.float64,
        values=values.data_ptr(),
        baseline=None if baseline is None else baseline.data_ptr(),
        baseline_sampled=baseline is not None and baseline.numel() == values.numel(),
        upstream=None if upstream is None else upstream.data_ptr(),
    )
    return _core.score_gradient(
        given,
        threads=torch.get_num_threads(),
        gradients=_addresses(*estimate[:2]),
        variances=_addresses(*estimate[2:]),
    )

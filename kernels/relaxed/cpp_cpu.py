"""Relaxed samples on the CPU, in C++ (csrc/relaxed/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.extension import DTYPES, seeds
from latent_kernels.kernels.relaxed.problem import (
    Gradients,
    Outputs,
    Problem,
    classes_of,
    inverse_of,
)


def _problem(problem: Problem) -> _core.RelaxedProblem:
    (groups, samples, rows, *rest), logits = problem.sizes, problem.logits
    classes = classes_of(problem) or 1
    return _core.RelaxedProblem(
        dtype=DTYPES[logits.dtype],
        groups=groups,
        samples=samples,
        cells=rows * rest[0] * classes,
        classes=classes,
        inverse=inverse_of(problem),
        hard=problem.hard,
        logits=logits.data_ptr(),
        seed=seeds(problem.seed),
        offset=problem.offset,
    )


def forward(problem: Problem, outputs: Outputs) -> None:
    """Write relaxed samples; README.md has the rules."""
    binary = classes_of(problem) is None
    run = _core.relaxed_bernoulli_forward if binary else _core.relaxed_categorical_forward
    run(_problem(problem), threads=torch.get_num_threads(), y=outputs.y.data_ptr())


def backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write the gradient of the logits."""
    assert gradients.logits is not None
    binary = classes_of(problem) is None
    run = _core.relaxed_bernoulli_backward if binary else _core.relaxed_categorical_backward
    run(
        _problem(problem),
        threads=torch.get_num_threads(),
        y=None if problem.hard else upstream.kept_y.data_ptr(),
        of_y=upstream.y.data_ptr(),
        of_logits=gradients.logits.data_ptr(),
    )

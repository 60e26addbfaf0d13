"""Orthogonal matching pursuit on the CPU, in C++ (csrc/omp/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.extension import DTYPES
from latent_kernels.kernels.lasso.cpp_cpu import Dictionary
from latent_kernels.kernels.lasso.cpp_cpu import prepare as prepare
from latent_kernels.kernels.omp.problem import Outputs, Problem


def forward(problem: Problem, dictionary: Dictionary, outputs: Outputs) -> None:
    """Write the codes; every tensor contiguous and of one dtype."""
    (rows, features, components), x, _, most, tol = problem
    arguments = _core.OmpProblem(
        dtype=DTYPES[x.dtype],
        rows=rows,
        features=features,
        components=components,
        most=most,
        tolerance=tol,
        x=x.data_ptr(),
        panels=dictionary.panels.data_ptr(),
        gram=dictionary.gram.data_ptr(),
    )
    _core.omp_encode(arguments, threads=torch.get_num_threads(), codes=outputs.codes.data_ptr())

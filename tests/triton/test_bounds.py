"""The Triton kernels of the bounds, their PTX interpreted."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch

import latent_kernels as lk
from latent_kernels.kernels import backends
from latent_kernels.kernels.bounds import cpp_cpu
from tests.backends import TRITON, interpreted
from tests.bounds.checks import check, check_nearly_equal, problem, run

INF, NAN = math.inf, math.nan


@pytest.fixture
def kernels() -> ModuleType:
    from latent_kernels.kernels.bounds import triton_gpu

    return triton_gpu


@interpreted
@pytest.mark.parametrize("programs", [1, 7, 2048])
def test_chunks_of_samples(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, programs: int
) -> None:
    monkeypatch.setattr(kernels, "WANTED_PROGRAMS", programs)
    check(TRITON, *problem((2, 700, 5), torch.float32))


@interpreted
def test_hard_columns(kernels: ModuleType) -> None:
    """Infinite weights, weights of zero and NaN give what C++ gives, in their own rows only."""
    columns = torch.tensor(
        [
            [-INF, -INF, -INF, -INF],
            [INF, 0.0, 1.0, 2.0],
            [INF, INF, -INF, 0.0],
            [INF, NAN, 1.0, 0.0],
            [0.0, NAN, 1.0, 0.0],
            [-INF, 2.0, -INF, -INF],
            [-INF, 2.0, -INF, 1.0],
            [-INF, 2.0, 0.0, 1.0],
            [3e38, -3e38, 3e38, 1.0],
            [0.0, -5000.0, -5001.0, -5000.5],
            [0.0, 0.0, -1.0, -2.0],
        ]
    )
    log_w, gradient = columns.T.unsqueeze(0).contiguous(), torch.ones(1, len(columns))
    ours, theirs = run(kernels, log_w, gradient), run(cpp_cpu, log_w, gradient)
    for name in ("bound", "weights", "scaled"):
        assert torch.allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-7, equal_nan=True), name
    settled = ~theirs["bound"][0].isnan() & theirs["bound"][0].isfinite()
    assert torch.allclose(
        ours["signal"][0, :, settled],
        theirs["signal"][0, :, settled],
        rtol=1e-5,
        atol=1e-6,
        equal_nan=True,
    )
    assert ours["signal"][0, :, ~settled].isnan().any(0).all()


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_signal_of_nearly_equal_weights(kernels: ModuleType, dtype: torch.dtype) -> None:
    check_nearly_equal(kernels, -500.0, dtype)


@interpreted
def test_public_functions(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_KERNELS_BACKEND", "bounds=triton")
    backends.forget()
    log_w, log_q = (torch.randn(9, 5, requires_grad=True) for _ in range(2))
    bound = lk.importance_bound(log_w, estimator="vimco", log_q=log_q)
    found = [bound, *torch.autograd.grad(bound.sum(), [log_w, log_q]), lk.normalized_weights(log_w)]
    monkeypatch.setenv("LATENT_KERNELS_BACKEND", "bounds=cpp")
    backends.forget()
    bound = lk.importance_bound(log_w, estimator="vimco", log_q=log_q)
    for a, b in zip(
        found,
        [bound, *torch.autograd.grad(bound.sum(), [log_w, log_q]), lk.normalized_weights(log_w)],
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)

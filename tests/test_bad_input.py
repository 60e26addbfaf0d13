"""Bad input: an error that names the argument, what it was and what it may be."""

from __future__ import annotations

import pytest
import torch

import latent_kernels as lk

X = torch.zeros(4, 5)
BAD = [
    (lambda: lk.rsample_kl(torch.zeros(4, 20), torch.zeros(4, 10)), ValueError, r"mean and logvar .*\(4, 20\).*4, 10"),
    (lambda: lk.rsample_kl(X.long(), X), TypeError, r"mean must have dtype float32.*int64"),
    (lambda: lk.rsample_kl(X, X.bool()), TypeError, r"logvar must have dtype.*bool"),
    (lambda: lk.rsample_kl([1.0], X), TypeError, r"mean must be a torch.Tensor; got list"),
    (lambda: lk.rsample_kl(torch.tensor(1.0), X), ValueError, r"mean must have shape \[\.\.\., D\]"),
    (lambda: lk.rsample_kl(X, X, 0), ValueError, r"num_samples must be an int >= 1 or None; got 0"),
    (lambda: lk.rsample_kl(X, X, -3), ValueError, r"num_samples .* got -3"),
    (lambda: lk.rsample_kl(X, X, 2.0), TypeError, r"num_samples .* got 2\.0"),
    (lambda: lk.rsample_kl(X, X, True), TypeError, r"num_samples .* got True"),
    (lambda: lk.rsample_kl(X, X, seed=-1), ValueError, r"seed must lie in \[0, 2\^63\); got -1"),
    (lambda: lk.rsample_kl(X, X, seed=2**63), ValueError, r"seed must lie"),
    (lambda: lk.rsample_kl(X, X, seed=1.5), TypeError, r"seed must be an int.*got 1\.5"),
    (lambda: lk.rsample_kl(X, X, seed=torch.tensor([1])), TypeError, r"seed as a tensor must be 0-d int64"),
    (lambda: lk.rsample_kl(X, X, seed=torch.tensor(1.0)), TypeError, r"seed as a tensor must be 0-d int64.*float32"),
    (lambda: lk.rsample_kl(X, X, seed=torch.tensor(-5)), ValueError, r"seed must lie.*-5"),
    (lambda: lk.rsample_kl(X, X, seed=1, offset=-1), ValueError, r"offset must be >= 0.*got -1"),
    (lambda: lk.rsample_kl(X, X, seed=1, offset=2**63 - 5), ValueError, r"offset"),
    (lambda: lk.rsample_kl(X, X, seed=1, offset=0.5), TypeError, r"offset must be an int"),
    (lambda: lk.rsample_kl(X, X, prior_mean=torch.zeros(3)), ValueError, r"prior_mean must .*\(4, 5\); got \(3,\)"),
    (lambda: lk.rsample_kl(X, X, prior_logvar=torch.zeros(2, 4, 5)), ValueError, r"prior_logvar must broadcast"),
    (lambda: lk.gaussian_kl(X, X, prior_mean=X.int()), TypeError, r"prior_mean must have dtype"),
    (lambda: lk.gaussian_kl(X, X.to("meta")), ValueError, r"logvar must be on the device of mean, cpu; got meta"),
    (lambda: lk.gaussian_log_prob(X, torch.zeros(3), X), ValueError, r"z and mean and logvar must"),
    (lambda: lk.gaussian_log_prob(X.to_sparse(), X, X), TypeError, r"z must be a dense"),
    (lambda: lk.normal(-1, seed=1), ValueError, r"shape must be .*got -1"),
    (lambda: lk.normal((2, 1.5), seed=1), ValueError, r"shape must be"),
    (lambda: lk.normal(3, seed=1, dtype=torch.int32), TypeError, r"dtype must be .*int32"),
    (lambda: lk.normal(3.5, seed=1), ValueError, r"shape must be .*got 3\.5"),
    (lambda: lk.normal(3, seed=1, device="gpu"), ValueError, r"device must be .*'gpu'"),
    (lambda: lk.normal(0, seed=1, offset=2**63), ValueError, r"offset"),
    (lambda: lk.uniform(3, seed="a"), TypeError, r"seed must be an int"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]


def test_second_derivatives_are_refused() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    for output in (lk.rsample(x, x, seed=1), lk.gaussian_kl(x, x), lk.gaussian_log_prob(x, x, x)):
        (gradient,) = torch.autograd.grad((output**2).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives"):
            gradient.sum().backward()

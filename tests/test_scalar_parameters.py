"""Numbers and 0-d tensors as parameters: one value for all elements, gradients summed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import latent_kernels as lk
from tests.checks import DTYPES

Tensor = torch.Tensor
X, MEAN = torch.randn(3, 4, 5), torch.randn(4, 5)
# Functions of tensors of shape [..., D] and one parameter that may be anything that broadcasts.
CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gaussian_log_prob, mean": lambda x, p: lk.gaussian_log_prob(x, p, x[0]),
    "gaussian_log_prob, logvar": lambda x, p: lk.gaussian_log_prob(x, x, p),
    "gaussian_log_prob, z": lambda x, p: lk.gaussian_log_prob(p, x[0], x),
    "bernoulli_log_prob, logits": lambda x, p: lk.bernoulli_log_prob(x, p),
    "bernoulli_log_prob, integers": lambda x, p: lk.bernoulli_log_prob((x > 0).long(), p).float(),
    "gaussian_kl, mean": lambda x, p: lk.gaussian_kl(p, x),
    "gaussian_kl, logvar": lambda x, p: lk.gaussian_kl(x, p),
    "gaussian_kl, prior_mean": lambda x, p: lk.gaussian_kl(x, x, prior_mean=p),
    "gaussian_kl, prior_logvar": lambda x, p: lk.gaussian_kl(x, x, prior_logvar=p),
    "rsample_kl": lambda x, p: torch.cat(
        [y.flatten() for y in lk.rsample_kl(x, x, 2, prior_logvar=p, seed=3)]
    ),
    "rsample, mean": lambda x, p: lk.rsample(p, x, seed=3),
    "rsample_log_prob, logvar": lambda x, p: lk.rsample_log_prob(x, p, 2, seed=3)[1],
    "DiagonalGaussian": lambda x, p: lk.DiagonalGaussian(x, p).log_partition(),
    "DiagonalGaussian, mean": lambda x, p: lk.DiagonalGaussian(p, x).entropy(),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_scalar_is_the_tensor_full_of_it(name: str, dtype: torch.dtype) -> None:
    call, x = CALLS[name], X.to(dtype)
    if name.endswith("integers"):
        dtype = torch.float32
    zero_d = torch.nn.Parameter(torch.tensor(0.5, dtype=dtype))
    full = torch.full_like(x, 0.5, dtype=dtype, requires_grad=True)
    expected, found = call(x, full), call(x, zero_d)
    assert torch.equal(found, expected)
    for number in (0.5, np.float32(0.5), np.float64(0.5)):
        assert torch.equal(call(x, number), expected)  # type: ignore[arg-type]
    if expected.requires_grad:
        weights = torch.randn_like(expected)
        (summed,) = torch.autograd.grad((found * weights).sum(), zero_d)
        (each,) = torch.autograd.grad((expected * weights).sum(), full)
        assert summed.shape == ()
        assert torch.allclose(summed, each.sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scalars_do_not_weigh_in_the_dtype(dtype: torch.dtype) -> None:
    x = X.to(dtype)
    for scalar in (0.5, 1, torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.5)):
        assert lk.rsample(x, scalar, seed=1).dtype == dtype
        assert lk.DiagonalGaussian(x, scalar).dtype == dtype
        exact = lk.gaussian_log_prob(x, x, torch.full_like(x, float(scalar)))
        assert torch.equal(lk.gaussian_log_prob(x, x, scalar), exact)


def test_under_vmap_and_compile() -> None:
    """vmap maps over 0-d parameters, one for each example; compiled functions take numbers."""
    logvar = torch.randn(3)
    found = torch.func.vmap(lambda x, l: lk.gaussian_log_prob(x, MEAN, l))(X, logvar)
    expected = lk.gaussian_log_prob(X, MEAN, logvar.reshape(3, 1, 1))
    assert torch.allclose(found, expected, rtol=1e-5)
    slope = torch.func.grad(lambda l: lk.gaussian_kl(MEAN, l).sum())(logvar[0])
    assert torch.allclose(slope, 10 * torch.expm1(logvar[0]), rtol=1e-5)

    def objective(x: Tensor, scalar: Tensor) -> Tensor:
        return (
            lk.gaussian_kl(x, scalar, prior_logvar=0.5).sum()
            + lk.gaussian_log_prob(x, 1.0, scalar).sum()
        )

    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True)
    scalar = torch.tensor(0.3, requires_grad=True)
    pairs = [torch.autograd.grad(f(MEAN, scalar), scalar)[0] for f in (compiled, objective)]
    assert torch.allclose(*pairs)

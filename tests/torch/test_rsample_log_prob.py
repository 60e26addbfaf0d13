"""`rsample_log_prob` under torch's own machinery: gradcheck, torch.compile, torch.func,
checkpointing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import grad, jacrev, vmap
from torch.utils.checkpoint import checkpoint

import latent_kernels as lk
from tests.checks import bits_equal
from tests.gaussian.checks import leaves, log_q_formula

Tensor = torch.Tensor


@pytest.mark.parametrize("num_samples", [None, 3])
def test_gradcheck(num_samples: int | None) -> None:
    """gradcheck passes for the total derivative. The path derivative is not the derivative of a
    function of the parameters, except in log p(z) - log q(z) with log q over parameters that
    gradcheck does not move.
    """
    mean, logvar = leaves(3, 4, dtype=torch.float64)
    total = lambda m, l: lk.rsample_log_prob(m, l, num_samples, seed=1)  # noqa: E731
    assert torch.autograd.gradcheck(total, (mean, logvar), nondet_tol=0)
    fixed = mean.detach().clone(), logvar.detach().clone()  # gradcheck moves its inputs in place

    class Path(torch.autograd.Function):
        """Values of log q with fixed parameters at the samples, and gradients of the path
        derivative.
        """

        @staticmethod
        def forward(ctx: Any, m: Tensor, l: Tensor) -> Tensor:
            ctx.save_for_backward(m, l)
            return lk.gaussian_log_prob(lk.rsample(m, l, num_samples, seed=1), *fixed)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
                _, log_q = lk.rsample_log_prob(*inputs, num_samples, seed=1, path_derivative=True)
            return torch.autograd.grad(log_q, inputs, gradient)

    assert torch.autograd.gradcheck(Path.apply, (mean, logvar), nondet_tol=0)


def loss(mean: Tensor, logvar: Tensor, seed: int | Tensor, path: bool) -> Tensor:
    z, log_q = lk.rsample_log_prob(mean, logvar, 3, seed=seed, offset=1, path_derivative=path)
    return (z**2).sum() - (log_q**2).sum()


@pytest.mark.parametrize("path", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend: str, path: bool) -> None:
    """There is one graph, with eager's bits for values and eager's gradients."""
    torch._dynamo.reset()

    def step(m: Tensor, l: Tensor) -> tuple[Tensor, Tensor]:
        return lk.rsample_log_prob(m, l, 3, seed=11, path_derivative=path)

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    results = []
    for run in (step, compiled):
        mean, logvar = leaves(6, 5)
        z, log_q = run(mean, logvar)
        results.append(
            (z, log_q, *torch.autograd.grad((z.sum(), (log_q**2).sum()), (mean, logvar)))
        )
    assert all(bits_equal(a, b) for a, b in zip(*(r[:2] for r in results), strict=True))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", [False, True])
def test_compile_with_drawn_seeds_and_changing_shapes(path: bool) -> None:
    """One seed is drawn for the samples and their density."""
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: lk.rsample_log_prob(x, x, 2, path_derivative=path),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    for rows in (3, 5, 8):
        x = torch.randn(rows, 4, requires_grad=True)
        z, log_q = compiled(x)
        assert torch.allclose(log_q, lk.gaussian_log_prob(z, x, x), rtol=1e-5, atol=1e-5)
        (gradient,) = torch.autograd.grad(log_q.sum(), x)
        eps = (z - x).detach() * torch.exp(-0.5 * x.detach())
        slope = -eps / torch.exp(0.5 * x.detach()) - 0.5 * eps**2  # by mean, and by logvar
        expected = slope.sum(0) if path else torch.full_like(x, -1.0)
        assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", [False, True])
def test_grad_of_a_function(path: bool) -> None:
    mean, logvar = leaves(7, 4)
    expected = torch.autograd.grad(loss(mean, logvar, 9, path), (mean, logvar))
    got = grad(loss, argnums=(0, 1))(mean.detach(), logvar.detach(), 9, path)
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", [False, True])
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (1, 1), (2, 0)])
def test_vmap_repeats_an_explicit_seed(in_dims: tuple[int | None, ...], path: bool) -> None:
    mean, logvar = (x.detach() for x in leaves(5, 7, 4))
    args = [
        x[0] if d is None else x.movedim(0, d) for x, d in zip((mean, logvar), in_dims, strict=True)
    ]

    def run(m: Tensor, l: Tensor) -> tuple[Tensor, ...]:
        z, log_q = lk.rsample_log_prob(m, l, 2, seed=3, offset=5, path_derivative=path)
        return z, log_q, grad(loss)(m, l, 3, path)

    batched = vmap(run, in_dims=in_dims)(*args)
    for i in range(5):
        one = run(*(x if d is None else x.select(d, i) for x, d in zip(args, in_dims, strict=True)))
        for got, expected in zip(batched, one, strict=True):
            assert torch.allclose(got[i], expected, rtol=1e-5, atol=1e-5)
        assert bits_equal(batched[0][i], one[0])
        assert bits_equal(batched[1][i], one[1])


@pytest.mark.parametrize("path", [False, True])
def test_vmap_over_seeds(path: bool) -> None:
    mean, logvar = (x.detach() for x in leaves(7, 4))
    seeds = torch.tensor([1, 2**40, 7])
    values = vmap(lambda s: lk.rsample_log_prob(mean, logvar, 2, seed=s, path_derivative=path))(
        seeds
    )
    gradients = vmap(lambda s: grad(loss)(mean, logvar, s, path))(seeds)
    for i, seed in enumerate(seeds.tolist()):
        expected = lk.rsample_log_prob(mean, logvar, 2, seed=seed, path_derivative=path)
        assert all(bits_equal(got[i], want) for got, want in zip(values, expected, strict=True))
        assert torch.allclose(
            gradients[i], grad(loss)(mean, logvar, seed, path), rtol=1e-5, atol=1e-5
        )


def test_vmap_randomness() -> None:
    """One seed is drawn for z and for the gradient of its density."""
    zero = torch.zeros(5, 7, 4)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        def value(m: Tensor) -> tuple[Tensor, Tensor]:
            z, log_q = lk.rsample_log_prob(m, torch.zeros_like(m), path_derivative=True)
            return log_q.sum(), z

        return grad(value, has_aux=True)(x)

    gradient, z = vmap(run, randomness="different")(zero)
    assert not torch.equal(z[0], z[1])
    assert torch.equal(gradient, -z)


@pytest.mark.parametrize("path", [False, True])
def test_jacrev(path: bool) -> None:
    mean, logvar = (x.detach() for x in leaves(3, 4, dtype=torch.float64))
    eps = lk.normal((2, 3, 4), seed=3).double()
    ours = jacrev(
        lambda m, l: lk.rsample_log_prob(m, l, 2, seed=3, path_derivative=path)[1], argnums=(0, 1)
    )
    theirs = jacrev(lambda m, l: log_q_formula(m, l, eps, path=path)[1], argnums=(0, 1))
    for a, b in zip(ours(mean, logvar), theirs(mean, logvar), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", [False, True])
def test_checkpointing_replays_the_noise(path: bool) -> None:
    gradients = []
    for wrapped in (False, True):
        torch.manual_seed(4)
        x = torch.randn(6, 5, requires_grad=True)

        def block(x: Tensor) -> Tensor:
            z, log_q = lk.rsample_log_prob(x, 0.1 * x, path_derivative=path)
            return z.pow(2).sum() + log_q.sum()

        value = checkpoint(block, x, use_reentrant=False) if wrapped else block(x)
        gradients.append(torch.autograd.grad(value, x)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("path", [False, True])
def test_one_vector_of_parameters(path: bool) -> None:
    """For one vector of parameters log q is a scalar, by every way to the kernels."""

    def log_q(x: torch.Tensor) -> torch.Tensor:
        return lk.rsample_log_prob(x, x, seed=1, path_derivative=path)[1]

    x = torch.randn(3, 4)
    expected = torch.stack([log_q(row) for row in x])
    assert torch.equal(vmap(log_q)(x), expected)
    assert torch.equal(torch.compile(log_q, fullgraph=True, backend="aot_eager")(x[0]), expected[0])
    assert log_q(x[0].to("meta")).shape == ()


@pytest.mark.parametrize("path", [False, True])
def test_upstream_gradients_that_are_negated_lazily(path: bool) -> None:
    mean, logvar = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    z, log_q = lk.rsample_log_prob(mean, logvar, 5, seed=1, path_derivative=path)
    _, kl = lk.rsample_kl(mean, logvar, seed=1)
    for out in (z, log_q, kl):
        g = torch.randn_like(out)
        plain = torch.autograd.grad(out, logvar, g, retain_graph=True)
        assert torch.equal(
            torch.autograd.grad(out, logvar, torch._neg_view(-g), retain_graph=True)[0], plain[0]
        )

"""Importance-weighted bounds on the CPU: every build against float64, hard values, autograd,
transformations.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing._internal.optests import opcheck

import latent_kernels as lk
from latent_kernels.kernels.bounds import cpp_cpu, reference
from latent_kernels.variational.bounds import BOUND_ESTIMATORS
from tests.backends import CPP, REFERENCE, Backend, on_every_backend
from tests.bounds.checks import SIZES, Sizes, check, check_nearly_equal, problem, run
from tests.checks import DTYPES, bits_equal, is_half

Tensor = torch.Tensor
INF, NAN = math.inf, math.nan


# --- every build, every dtype, every size ---------------------------------------------------------


@on_every_backend(
    SIZES,
    reference=[s for s in SIZES if s[1] <= 50],
    interpreted=[s for s in SIZES if s[0] * s[1] * s[2] <= 7000],
)
def test_results(backend: Backend, sizes: Sizes, dtype: torch.dtype) -> None:
    check(backend, *problem(sizes, dtype))
    check(backend, *problem(sizes, dtype, spread=0.01))
    check(backend, *problem(sizes, dtype, spread=80.0, mean=-700.0))


@pytest.mark.parametrize("sizes", [(1, 5000, 256), (1, 200_000, 1)], ids=str)
def test_many_samples(sizes: Sizes) -> None:
    check(CPP, *problem(sizes, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_log_weights_of_images(dtype: torch.dtype) -> None:
    """With log-weights hundreds of nats apart nothing overflows, and the weights add up to 1
    whatever the rounding of the bound.
    """
    log_w, gradient = problem((1, 50, 64), dtype, spread=80.0, mean=-700.0)
    check(CPP, log_w, gradient)
    weights = run(cpp_cpu, log_w, gradient)["weights"]
    assert (weights.sum(1) - 1).abs().max() <= 4 * torch.finfo(dtype).eps


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(0, 90)),
    dtype=st.sampled_from(DTYPES),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
)
@settings(max_examples=80)
def test_cpp_on_any_shape(sizes: Sizes, dtype: torch.dtype, spread: float) -> None:
    check(CPP, *problem(sizes, dtype, spread))


# --- hard values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", [cpp_cpu, reference], ids=["cpp", "reference"])
@pytest.mark.parametrize(
    ("column", "bound", "weights"),
    [
        ([-INF, -INF, -INF], -INF, [NAN, NAN, NAN]),
        ([INF, 0.0, 1.0], INF, [NAN, NAN, NAN]),
        ([INF, INF, -INF], INF, [NAN, NAN, NAN]),
        ([INF, NAN, 1.0], NAN, [NAN, NAN, NAN]),
        ([0.0, NAN, 1.0], NAN, [NAN, NAN, NAN]),
        ([NAN, -INF, -INF], NAN, [NAN, NAN, NAN]),
        ([-INF, 2.0, -INF], 2.0 - math.log(3), [0.0, 1.0, 0.0]),
        ([3e38, -3e38, 3e38], 3e38, [0.5, 0.0, 0.5]),
        ([-3e38, -3e38, -INF], -3e38, [0.5, 0.5, 0.0]),
        ([0.0, 0.0, 0.0], 0.0, [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_hard_columns(
    simd_build: str, kernels: object, column: list[float], bound: float, weights: list[float]
) -> None:
    """Each extreme row leaves the rows around it unchanged, also where rows are folded."""
    for samples, rows in ((3, 5), (3, 1), (3, 400)):
        log_w, gradient = problem((1, samples, rows), torch.float32)
        alone = run(kernels, log_w, gradient)  # type: ignore[arg-type]
        at = rows // 2
        log_w[0, :, at] = torch.tensor(column)
        found = run(kernels, log_w, gradient)  # type: ignore[arg-type]
        assert torch.allclose(
            found["bound"][0, at], torch.tensor(bound), rtol=1e-6, atol=1e-7, equal_nan=True
        )
        assert torch.allclose(
            found["weights"][0, :, at], torch.tensor(weights), rtol=1e-6, atol=0, equal_nan=True
        )
        if not all(math.isfinite(x) for x in weights):
            assert found["signal"][0, :, at].isnan().any()
        for name, x in found.items():
            others = torch.arange(rows) != at
            assert bits_equal(x[..., others], alone[name][..., others]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gap", [0.0, 1e-6, 1.0, 20.0, 90.0, 700.0, 5000.0])
def test_signal_where_one_weight_is_all_there_is(gap: float, dtype: torch.dtype) -> None:
    """Without the largest weight the bound falls by `gap`, even where exp(-gap) is 0."""
    log_w = torch.tensor([[[0.0], [-gap], [-gap - 1], [-gap - 2.5]]], dtype=dtype)
    check(CPP, log_w, torch.ones(1, 1, dtype=dtype))
    check(REFERENCE, log_w, torch.ones(1, 1, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mean", [0.0, -500.0])
def test_signal_of_nearly_equal_weights(simd_build: str, mean: float, dtype: torch.dtype) -> None:
    check_nearly_equal(cpp_cpu, mean, dtype)
    check_nearly_equal(reference, mean, dtype)


def test_signal_with_weights_of_zero(simd_build: str) -> None:
    """The geometric mean of weights that include a 0 is 0, but that of the others may be
    positive.
    """
    log_w = torch.tensor(
        [[[0.5, -INF, 0.0], [1.0, 1.0, -INF], [-INF, 0.0, -INF], [0.2, 0.1, -INF]]]
    )
    ours, exact = run(cpp_cpu, log_w, torch.ones(1, 3)), run(reference, log_w, torch.ones(1, 3))
    assert torch.allclose(ours["signal"], exact["signal"], rtol=1e-5, atol=1e-6)
    assert ours["signal"][0, 0, 2] == INF  # all that there is


def test_one_sample_is_the_log_weight(simd_build: str) -> None:
    for rows in (1, 3, 700):
        log_w = torch.randn(1, rows) * 500
        assert torch.equal(lk.importance_bound(log_w), log_w[0])
        assert torch.equal(lk.normalized_weights(log_w), torch.ones(1, rows))


@pytest.mark.parametrize("estimator", ["iwae", "vimco"])
def test_shift(simd_build: str, estimator: str) -> None:
    """Adding a power of two to integers is exact, so it changes no bit of a gradient."""
    log_w = torch.randint(-9, 9, (11, 40)).float()
    found = []
    for shift in (0.0, -1024.0, 4096.0):
        w, q = (log_w + shift).requires_grad_(), torch.zeros(11, 40, requires_grad=True)
        bound = lk.importance_bound(
            w, estimator=estimator, log_q=q if estimator == "vimco" else None
        )
        found.append(
            [*torch.autograd.grad(bound.sum(), [w, q], allow_unused=True), bound.detach() - shift]
        )
    for other in found[1:]:
        for a, b in zip(found[0][:2], other[:2], strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
        assert torch.allclose(
            found[0][2], other[2], rtol=0, atol=4096 * torch.finfo(torch.float32).eps
        )


# --- layouts --------------------------------------------------------------------------------------


def strided(x: Tensor) -> list[Tensor]:
    """Return the same values in other memory layouts."""
    padded = torch.full((x.size(0), 2 * x.size(1)), NAN, dtype=x.dtype)
    padded[:, ::2] = x
    return [x.T.contiguous().T, padded[:, ::2], x.conj(), torch._neg_view(-x)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(dtype: torch.dtype) -> None:
    log_w, log_q = torch.randn(7, 12).to(dtype), torch.randn(7, 12).to(dtype)

    def everything(w: Tensor, q: Tensor) -> list[Tensor]:
        w, q = w.detach().requires_grad_(), q.detach().requires_grad_()
        bound = lk.importance_bound(w, estimator="vimco", log_q=q)
        return [bound, *torch.autograd.grad(bound, [w, q], torch.arange(12.0).to(bound.dtype)[::1])]

    plain = everything(log_w, log_q)
    assert plain[0].dtype == (torch.float32 if is_half(dtype) else dtype)
    for w, q in zip(strided(log_w), strided(log_q), strict=True):
        for a, b in zip(plain, everything(w, q), strict=True):
            assert bits_equal(a, b)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3), (4, 0), (4, 2, 0, 3), (1, 2)])
def test_batch_shapes(shape: tuple[int, ...]) -> None:
    log_w = torch.randn(shape, requires_grad=True)
    bound = lk.importance_bound(log_w)
    assert bound.shape == shape[1:]
    assert torch.allclose(bound, torch.logsumexp(log_w, 0) - math.log(shape[0]), atol=1e-6)
    (gradient,) = torch.autograd.grad(bound.sum(), log_w)
    assert torch.allclose(gradient, torch.softmax(log_w, 0), atol=1e-6)
    assert lk.effective_sample_size(log_w).shape == shape[1:]


# --- estimators -----------------------------------------------------------------------------------


def log_weights(z: Tensor, mean: Tensor, logvar: Tensor, theta: Tensor) -> Tensor:
    """Return the log-weights of a toy model, with q's density written out."""
    log_q = -0.5 * (math.log(2 * math.pi) + logvar + (z - mean) ** 2 * torch.exp(-logvar)).sum(-1)
    return -0.5 * ((z - theta) ** 2).sum(-1) - 0.25 * (z**4).sum(-1) - log_q


@pytest.mark.parametrize("estimator", ["iwae", "stl", "dreg"])
@pytest.mark.parametrize("samples", [1, 6])
def test_gradient_of_reparameterized_estimators(estimator: str, samples: int) -> None:
    """Gradients equal the papers' formulas, computed sample by sample in float64 with the paths
    along z and along q's parameters kept apart.
    """
    g = torch.Generator().manual_seed(1)
    mean, logvar, theta = (
        torch.randn(4, 3, generator=g, dtype=torch.float64).requires_grad_() for _ in range(3)
    )
    z, log_q = lk.DiagonalGaussian(mean, logvar).rsample_log_prob(
        samples, seed=5, path_derivative=estimator != "iwae"
    )
    log_w = -0.5 * ((z - theta) ** 2).sum(-1) - 0.25 * (z**4).sum(-1) - log_q
    bound = lk.importance_bound(log_w, estimator=estimator, z=z if estimator == "dreg" else None)
    upstream = torch.randn(4, generator=g, dtype=torch.float64)
    ours = torch.autograd.grad(bound, [mean, logvar, theta], upstream)

    eps = (z.detach() - mean.detach()) * torch.exp(-0.5 * logvar.detach())
    leaf = (mean.detach() + torch.exp(0.5 * logvar.detach()) * eps).requires_grad_()
    values = log_weights(leaf, mean, logvar, theta)
    weights = torch.softmax(values.detach(), 0) * upstream
    along_z, along_mean, along_logvar, along_theta = torch.autograd.grad(
        values, [leaf, mean, logvar, theta], weights
    )
    if estimator == "dreg":
        along_z = along_z * torch.softmax(values.detach(), 0).unsqueeze(-1)
    of_mean, of_logvar = (
        along_z.sum(0),
        (along_z * 0.5 * torch.exp(0.5 * logvar.detach()) * eps).sum(0),
    )
    if estimator == "iwae":
        of_mean, of_logvar = of_mean + along_mean, of_logvar + along_logvar
    for got, want in zip(ours, (of_mean, of_logvar, along_theta), strict=True):
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-11)


def test_vimco_gradient() -> None:
    """The gradient follows equations 6 to 10 of Mnih and Rezende, computed one baseline at a
    time.
    """
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 3, generator=g, dtype=torch.float64).requires_grad_()
    theta = torch.randn(3, generator=g, dtype=torch.float64).requires_grad_()
    q = lk.Bernoulli(logits)
    z = q.sample(5, seed=3)
    log_q = q.log_prob(z)
    log_w = (z * theta).sum(-1) - log_q
    bound = lk.importance_bound(log_w, estimator="vimco", log_q=log_q)
    ours = torch.autograd.grad(bound.sum(), [logits, theta])

    log_q = q.log_prob(z)
    log_w = (z * theta).sum(-1) - log_q
    whole = torch.logsumexp(log_w, 0)
    surrogate = (torch.softmax(log_w, 0).detach() * log_w).sum()
    for s in range(5):
        others = [r for r in range(5) if r != s]
        replaced = torch.cat([log_w[others], log_w[others].mean(0, keepdim=True)])
        surrogate = surrogate + ((whole - torch.logsumexp(replaced, 0)).detach() * log_q[s]).sum()
    theirs = torch.autograd.grad(surrogate, [logits, theta])
    for got, want in zip(ours, theirs, strict=True):
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-12)


def test_dreg_does_not_touch_z_without_gradient() -> None:
    z = torch.randn(3, 4, 2)
    assert torch.equal(
        lk.importance_bound((z**2).sum(-1), estimator="dreg", z=z),
        lk.importance_bound((z**2).sum(-1)),
    )
    leaf = z.requires_grad_()
    with torch.no_grad():
        lk.importance_bound((leaf**2).sum(-1), estimator="dreg", z=leaf)
    leaf.sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.ones(3, 4, 2))


def toy_bound(estimator: str, logvar: Tensor, mean: Tensor) -> Tensor:
    """Return the bound of a toy model under q, from one seed."""
    z, log_q = lk.rsample_log_prob(mean, logvar, 5, seed=3, path_derivative=estimator != "iwae")
    log_w = -0.5 * (z**2).sum(-1) - 0.1 * (z**4).sum(-1) - log_q
    return lk.importance_bound(
        log_w, estimator=estimator, z=z if estimator == "dreg" else None
    ).sum()


@pytest.mark.parametrize("estimator", ["iwae", "stl", "dreg"])
def test_vmap_of_reparameterized_estimators(estimator: str) -> None:
    """Gradients are right however grad and vmap are nested: a hook must find z under the batch."""
    means, logvar = torch.randn(3, 4, 2, requires_grad=True), torch.randn(4, 2)
    each = functools.partial(toy_bound, estimator, logvar)
    (expected,) = torch.autograd.grad(sum(each(m) for m in means), means)
    assert torch.equal(torch.autograd.grad(torch.func.vmap(each)(means).sum(), means)[0], expected)
    assert torch.equal(
        torch.func.grad(lambda m: torch.func.vmap(each)(m).sum())(means.detach()), expected
    )
    assert torch.equal(torch.func.vmap(torch.func.grad(each))(means.detach()), expected)
    sideways = means.movedim(0, 1)
    (found,) = torch.autograd.grad(torch.func.vmap(each, 1)(sideways).sum(), means)
    assert torch.equal(found, expected)


def test_dreg_weighs_a_sample_once() -> None:
    mean, logvar = torch.zeros(4, 2, requires_grad=True), torch.zeros(4, 2)
    z, log_q = lk.rsample_log_prob(mean, logvar, 5, seed=3, path_derivative=True)
    log_w = -0.5 * (z**2).sum(-1) - log_q
    with torch.no_grad():
        lk.importance_bound(log_w, estimator="dreg", z=z)
    lk.importance_bound(log_w, estimator="dreg", z=z)
    with pytest.raises(ValueError, match="z already carries the weights"):
        lk.importance_bound(log_w, estimator="dreg", z=z)
    leaf = z.detach().requires_grad_()
    with pytest.raises(ValueError, match=r"z must be computed .* got a leaf"):
        lk.importance_bound((leaf**2).sum(-1), estimator="dreg", z=leaf)


def test_elbo_of_halves_is_computed_wide() -> None:
    log_p, log_q = (torch.tensor([[x]], dtype=torch.bfloat16) for x in (-500.0, 0.5))
    assert lk.elbo(log_p, log_q=log_q).item() == -500.5
    assert lk.elbo(log_p, kl=log_q[0]).item() == -500.5


@pytest.mark.parametrize("form", ["kl", "entropy", "log_q"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_elbo(form: str, dtype: torch.dtype) -> None:
    log_p = torch.randn(6, 4).to(dtype).requires_grad_()
    term = (torch.randn(6, 4) if form == "log_q" else torch.randn(4)).to(dtype).requires_grad_()
    bound = lk.elbo(log_p, **{form: term})
    wide = term.double() if form != "log_q" else term.double().mean(0)
    expected = log_p.double().mean(0) + (wide if form == "entropy" else -wide)
    assert bound.dtype == (torch.float32 if is_half(dtype) else dtype)
    assert torch.allclose(bound.double(), expected, rtol=0, atol=20 * torch.finfo(dtype).eps)
    of_p, of_term = torch.autograd.grad(bound.sum(), [log_p, term])
    sign = 1 if form == "entropy" else -1
    assert torch.allclose(of_p.double(), torch.full((6, 4), 1 / 6, dtype=torch.float64), rtol=0.01)
    assert torch.allclose(
        of_term.double(),
        torch.full_like(of_term, sign / 6 if form == "log_q" else sign).double(),
        rtol=0.01,
    )


# --- torch ----------------------------------------------------------------------------------------


def test_gradcheck(simd_build: str) -> None:
    log_w = torch.randn(5, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lk.importance_bound, log_w)


@pytest.mark.parametrize("estimator", BOUND_ESTIMATORS)
def test_compile_equals_eager(estimator: str) -> None:
    if estimator == "dreg" and torch.__version__ < "2.11":
        pytest.skip("torch.compile takes hooks on intermediate tensors from torch 2.11 on")
    log_w, log_q = (torch.randn(5, 3, requires_grad=True) for _ in range(2))

    def step(w: Tensor, q: Tensor) -> Tensor:
        z = w.unsqueeze(-1) * 1.0
        options = {"vimco": {"log_q": q}, "dreg": {"z": z}}.get(estimator, {})
        return lk.importance_bound(z.sum(-1) - q, estimator=estimator, **options)

    found = []
    for function in (step, torch.compile(step, fullgraph=True)):
        bound = function(log_w, log_q)
        found.append((bound, *torch.autograd.grad(bound.cos().sum(), [log_w, log_q])))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("needs", [[True, True], [True, False], [False, True]])
def test_opcheck(needs: list[bool]) -> None:
    given_ = tuple(torch.randn(2, 5, 3, requires_grad=need) for need in needs)
    all_outputs = [True, True]
    opcheck(torch.ops.latent_kernels.bound.default, (*given_, all_outputs))
    opcheck(torch.ops.latent_kernels.bound.default, (given_[0], None, all_outputs))
    log_w = given_[0].detach()
    value, sums = torch.ops.latent_kernels.bound(log_w, None, all_outputs)
    opcheck(
        torch.ops.latent_kernels.bound_backward.default,
        (value, sums, log_w, given_[1].detach(), needs),
    )


@pytest.mark.parametrize("estimator", ["iwae", "vimco"])
def test_vmap_and_functional_gradients(estimator: str) -> None:
    log_w, log_q = torch.randn(2, 4, 5, 3)

    def bound(w: Tensor, q: Tensor) -> Tensor:
        return lk.importance_bound(
            w, estimator=estimator, log_q=q if estimator == "vimco" else None
        )

    expected = torch.stack([bound(w, q) for w, q in zip(log_w, log_q, strict=True)])
    assert torch.equal(torch.func.vmap(bound)(log_w, log_q), expected)
    assert torch.equal(
        torch.func.vmap(bound, (1, 1), 0)(log_w.movedim(0, 1), log_q.movedim(0, 1)), expected
    )
    gradient = torch.func.grad(lambda w, q: bound(w, q).cos().sum(), (0, 1))
    stacked = torch.func.vmap(gradient)(log_w, log_q)
    for i in range(4):
        leaves = [x[i].clone().requires_grad_() for x in (log_w, log_q)]
        single = torch.autograd.grad(bound(*leaves).cos().sum(), leaves, allow_unused=True)
        for all_, one in zip(stacked, single, strict=True):
            assert torch.equal(all_[i], torch.zeros_like(all_[i]) if one is None else one)


@pytest.mark.parametrize("function", [lk.normalized_weights, lk.effective_sample_size, lk.pareto_k])
def test_diagnostics_under_transformations(function: Callable[[Tensor], Tensor]) -> None:
    log_w = torch.randn(3, 30, 4)
    expected = torch.stack([function(w) for w in log_w])
    assert torch.equal(torch.func.vmap(function)(log_w), expected)
    assert torch.allclose(torch.compile(function, fullgraph=True)(log_w[0]), expected[0], rtol=1e-6)
    assert not function(log_w[0].requires_grad_()).requires_grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_and_effective_sample_size(dtype: torch.dtype) -> None:
    log_w = (torch.randn(40, 6) * 2).to(dtype)
    weights = torch.softmax(log_w.double(), 0)
    assert lk.normalized_weights(log_w).dtype == dtype
    assert torch.allclose(
        lk.normalized_weights(log_w).double(), weights, rtol=8 * torch.finfo(dtype).eps, atol=1e-7
    )
    ess = lk.effective_sample_size(log_w)
    assert ess.dtype == (torch.float32 if is_half(dtype) else dtype)
    assert torch.allclose(ess.double(), 1 / (weights**2).sum(0), rtol=1e-4)


# --- bad input ------------------------------------------------------------------------------------

W = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (TypeError, "log_w must be a torch.Tensor", lambda: lk.importance_bound([1.0])),  # type: ignore[arg-type]
        (TypeError, "log_w must have dtype", lambda: lk.importance_bound(W.long())),
        (ValueError, "log_w must have shape \\[S", lambda: lk.importance_bound(torch.tensor(1.0))),
        (ValueError, "log_w must have shape .* got \\(0, 4\\)", lambda: lk.importance_bound(W[:0])),
        (
            ValueError,
            "estimator must be one of .* got 'rws'",
            lambda: lk.importance_bound(W, estimator="rws"),
        ),
        (ValueError, "'dreg' needs z", lambda: lk.importance_bound(W, estimator="dreg")),
        (ValueError, "'vimco' needs log_q", lambda: lk.importance_bound(W, estimator="vimco")),
        (ValueError, "z is for estimator 'dreg'", lambda: lk.importance_bound(W, z=W)),
        (
            ValueError,
            "log_q is for .* got it with 'stl'",
            lambda: lk.importance_bound(W, estimator="stl", log_q=W),
        ),
        (
            ValueError,
            "log_q must have the shape",
            lambda: lk.importance_bound(W, estimator="vimco", log_q=W[:2]),
        ),
        (TypeError, "log_q must be", lambda: lk.importance_bound(W, estimator="vimco", log_q=1)),  # type: ignore[arg-type]
        (ValueError, "S >= 2", lambda: lk.importance_bound(W[:1], estimator="vimco", log_q=W[:1])),
        (ValueError, "z must have shape", lambda: lk.importance_bound(W, estimator="dreg", z=W)),
        (
            TypeError,
            "z must be a torch.Tensor",
            lambda: lk.importance_bound(W, estimator="dreg", z=1),
        ),  # type: ignore[arg-type]
        (ValueError, "got none", lambda: lk.elbo(W)),
        (ValueError, "got kl and log_q", lambda: lk.elbo(W, kl=W[0], log_q=W)),
        (ValueError, "kl must have shape", lambda: lk.elbo(W, kl=W)),
        (ValueError, "log_q must have shape", lambda: lk.elbo(W, log_q=W[0])),
        (TypeError, "entropy must be a torch.Tensor", lambda: lk.elbo(W, entropy=0.5)),  # type: ignore[arg-type]
        (TypeError, "kl must have dtype", lambda: lk.elbo(W, kl=W[0].to(torch.complex64))),
        (
            TypeError,
            "z must have dtype",
            lambda: lk.importance_bound(W, estimator="dreg", z=W[..., None].int()),
        ),
        (
            ValueError,
            "z must be on",
            lambda: lk.importance_bound(W, estimator="dreg", z=W[..., None].to("meta")),
        ),
        (TypeError, "log_p must have dtype", lambda: lk.elbo(W.int(), kl=W[0])),
        (ValueError, "S >= 21", lambda: lk.pareto_k(torch.zeros(20, 4))),
        (ValueError, "log_w must have shape", lambda: lk.normalized_weights(W[:0])),
    ],
)
def test_errors_name_the_argument(
    error: type[Exception], match: str, call: Callable[[], object]
) -> None:
    with pytest.raises(error, match=match):
        call()

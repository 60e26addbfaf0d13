"""The ops under torch's own machinery: opcheck, gradcheck, torch.compile, torch.func, autocast,
checkpointing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jacrev, vmap
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

import latent_kernels as lk
from latent_kernels.kernels import backends
from latent_kernels.kernels.gaussian.problem import ANTITHETIC, SOBOL

Tensor = torch.Tensor
OPS = torch.ops.latent_kernels


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def scales(*shape: int) -> Tensor:
    return data(*shape).exp().requires_grad_()


# --- opcheck, gradcheck ---------------------------------------------------------------------------

SEEDS = torch.tensor([3, 2**40])
RAW: list[tuple[str, Callable[[], tuple[Any, ...]]]] = [
    ("gaussian",
     lambda: (leaf(2, 5, 4), leaf(2, 5, 4), None, None, None, SEEDS, 3, 0, 0, [True, True, True])),
    ("gaussian",
     lambda: (leaf(2, 5, 4), leaf(2, 5, 4), None, None, None, SEEDS, 3, 0, ANTITHETIC,
              [True, True, True])),
    ("gaussian",
     lambda: (leaf(2, 5, 4), leaf(2, 5, 4), None, leaf(2, 5, 4), leaf(2, 5, 4), SEEDS[:1], 1, 7, 0,
              [True, True, False])),
    ("gaussian",
     lambda: (leaf(1, 5, 4), leaf(1, 5, 4), None, None, None, SEEDS[:1], 0, 0, 0,
              [False, True, False])),
    ("gaussian",
     lambda: (leaf(1, 5, 4), None, leaf(1, 5, 4), None, None, SEEDS[:1], 2, 0, 0,
              [True, False, False])),
    (
        "gaussian_backward",
        lambda: (data(2, 3, 5, 4), data(2, 5), data(2, 3, 5), data(2, 5, 4), data(2, 5, 4),
                 None, None, None, SEEDS)
        + (3, 0, ANTITHETIC)
        + ([True, True, False, False, False],),
    ),
    (
        "gaussian_backward",
        lambda: (None, data(2, 5), None, data(2, 5, 4), data(2, 5, 4), None, data(2, 5, 4), None,
                 SEEDS, 0, 0, 0)
        + ([False, True, False, True, False],),
    ),
    (
        "gaussian_backward",
        lambda: (None, None, data(2, 3, 5), data(2, 5, 4), data(2, 5, 4), None, None, None, SEEDS,
                 3, 0, 0)
        + ([True, True, False, False, False],),
    ),
    ("gaussian_path",
     lambda: (leaf(2, 3, 5, 4), data(2, 3, 5), data(2, 5, 4), SEEDS, 1, 0, [True])),
    ("gaussian_path_backward",
     lambda: (data(2, 3, 5), data(2, 3, 5, 4), None, data(2, 5, 4), SEEDS[:1], 1, ANTITHETIC,
              [True])),
    ("gaussian",
     lambda: (leaf(2, 5, 4), leaf(2, 5, 4), None, None, None, SEEDS, 4, 0, SOBOL,
              [True, True, True])),
    ("gaussian_path_backward",
     lambda: (data(2, 4, 5), data(2, 4, 5, 4), None, data(2, 5, 4), SEEDS, 1, SOBOL, [True])),
    ("gaussian_scale_kl",
     lambda: (leaf(2, 5), scales(2, 5), leaf(2, 5), scales(2, 5), [True])),
    ("gaussian_scale_kl_backward",
     lambda: (data(2, 5), data(2, 5), data(2, 5).exp(), data(2, 5), data(2, 5).exp(),
              [True, True, False, True])),
    ("gaussian_log_prob",
     lambda: (leaf(2, 3, 5, 4), leaf(2, 1, 5, 4), leaf(2, 1, 1, 4), [True])),
    (
        "gaussian_log_prob_backward",
        lambda: (data(2, 3, 5), data(2, 3, 5, 4), data(2, 1, 5, 4), data(2, 1, 1, 4),
                 [True, False, True]),
    ),
    ("bernoulli_log_prob", lambda: (leaf(2, 1, 5, 4), leaf(2, 3, 5, 4), [True])),
    ("bernoulli_log_prob_backward",
     lambda: (data(2, 3, 5), data(2, 1, 1, 4), data(2, 3, 5, 4), [True, True])),
    ("noise", lambda: ("normal", [3, 4], SEEDS, 1, torch.float32, "cpu")),
    ("noise", lambda: ("uniform", [], SEEDS, 1, torch.bfloat16, "cpu")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments"), RAW)
def test_opcheck(name: str, arguments: Callable[[], tuple[Any, ...]]) -> None:
    results = opcheck(getattr(OPS, name), arguments())
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("num_samples", [None, 3])
def test_gradcheck(num_samples: int | None) -> None:
    def run(m: Tensor, l: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        return lk.rsample_kl(m, l, num_samples, prior_mean=p, prior_logvar=q, seed=1)

    inputs = (leaf(3, 4), leaf(3, 4), leaf(3, 4), leaf(4))
    assert torch.autograd.gradcheck(run, inputs, nondet_tol=0)
    assert torch.autograd.gradcheck(
        lambda m, l: lk.rsample(m, l, num_samples, seed=1), inputs[:2], nondet_tol=0
    )
    assert torch.autograd.gradcheck(lk.gaussian_kl, inputs[:2], nondet_tol=0)
    assert torch.autograd.gradcheck(
        lk.gaussian_log_prob, (leaf(2, 3, 4), *inputs[:2]), nondet_tol=0
    )
    assert torch.autograd.gradcheck(
        lk.gaussian_log_prob, (inputs[0], leaf(2, 3, 4), leaf(4)), nondet_tol=0
    )
    for x in (leaf(2, 3, 4), leaf(4), leaf(1)):
        assert torch.autograd.gradcheck(lk.bernoulli_log_prob, (x, inputs[0]), nondet_tol=0)


# --- torch.compile --------------------------------------------------------------------------------


@pytest.fixture
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend: str) -> None:
    """There is one graph; an explicit seed gives eager's bits, forward and backward."""

    def step(m: Tensor, l: Tensor) -> tuple[Tensor, ...]:
        z, kl = lk.rsample_kl(m, l, 3, seed=11)
        return (
            z,
            kl,
            lk.gaussian_log_prob(z, m, l),
            lk.gaussian_log_prob(z, m, l[0]),
            lk.bernoulli_log_prob(m, z),
        )

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    results = []
    for run in (step, compiled):
        torch.manual_seed(1)
        m, l = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5, requires_grad=True)
        outputs = run(m, l)
        gradients = torch.autograd.grad([x.sum() for x in outputs], (m, l))
        results.append((*outputs, *gradients))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_seeds_are_fresh_and_distinct() -> None:
    """Two layers draw two seeds, even if the compiler merges equal calls; each run draws new
    ones.
    """

    def layers(x: Tensor) -> tuple[Tensor, Tensor]:
        return lk.rsample(x, x), lk.rsample(x, x)

    compiled = torch.compile(layers, fullgraph=True, backend="aot_eager")
    x = torch.zeros(4, 8)
    a, b = compiled(x)
    c, _ = compiled(x)
    assert not torch.equal(a, b)
    assert not torch.equal(a, c)
    torch.manual_seed(5)
    first = compiled(x)
    torch.manual_seed(5)
    assert all(torch.equal(p, q) for p, q in zip(first, compiled(x), strict=True))


@pytest.mark.usefixtures("_fresh_compiler")
def test_compile_with_tensor_seed_and_changing_shapes() -> None:
    def run(x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        return lk.rsample(x, x, 2, seed=seed), lk.normal((3,), seed=seed)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 5, 8):
        x = torch.randn(rows, 4)
        for seed in (1, 2):
            for a, b in zip(
                compiled(x, torch.tensor(seed)), run(x, torch.tensor(seed)), strict=True
            ):
                assert torch.equal(a, b)


def test_fake_tensors() -> None:
    with FakeTensorMode():
        z, kl = lk.rsample_kl(torch.zeros(3, 4), torch.zeros(3, 4), 2)
        assert z.shape == (2, 3, 4)
        assert kl.shape == (3,)
        assert lk.normal((5, 2), seed=1, dtype=torch.float64).shape == (5, 2)
    meta = torch.zeros(3, 4, device="meta")
    assert torch.ops.latent_kernels.gaussian(
        meta.unsqueeze(0),
        meta.unsqueeze(0),
        None,
        None,
        None,
        torch.tensor([1]),
        2,
        0,
        ANTITHETIC,
        [True, True, False],
    )[0].shape == (1, 2, 3, 4)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("option", ["antithetic", "qmc"])
def test_dependent_samples(option: str) -> None:
    """Second derivatives, torch.compile and vmap have the dependent samples of plain calls."""
    given: dict[str, Any] = {"num_samples": 4, "seed": 7, option: True}
    eps = lk.rsample(data(3, 5) * 0, 0.0, **given)

    def ours(m: Tensor, l: Tensor) -> Tensor:
        z, log_q = lk.rsample_log_prob(m, l, **given, path_derivative=True)
        return z.pow(4).sum() + log_q.square().sum()

    def plain(m: Tensor, l: Tensor) -> Tensor:
        z = m + torch.exp(0.5 * l) * eps
        return z.pow(4).sum() + lk.gaussian_log_prob(z, m.detach(), l.detach()).square().sum()

    inputs = leaf(3, 5), leaf(3, 5)
    expected, found = (
        [f(*inputs), *torch.autograd.grad(f(*inputs), inputs, create_graph=True)]
        for f in (plain, ours)
    )
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
        second = [torch.autograd.grad(x.sin().sum(), inputs, retain_graph=True) for x in (a, b)]
        for c, d in zip(*second, strict=True):
            assert torch.allclose(c, d, rtol=1e-9, atol=1e-9)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for a, b in zip(found[1:], torch.autograd.grad(compiled(*inputs), inputs), strict=True):
        assert torch.equal(a, b)
    many, seeds = data(2, 3, 5), torch.tensor([7, 8])
    together = vmap(lambda m, seed: lk.rsample(m, m, **(given | {"seed": seed})))(many, seeds)
    for one, m, seed in zip(together, many, seeds, strict=True):
        assert torch.equal(one, lk.rsample(m, m, **(given | {"seed": seed})))


# --- torch.func -----------------------------------------------------------------------------------


def loss(m: Tensor, l: Tensor, seed: int | Tensor = 9) -> Tensor:
    z, kl = lk.rsample_kl(m, l, 3, seed=seed)
    densities = (
        lk.gaussian_log_prob(z, m, l),
        lk.gaussian_log_prob(z, m[0], l[0]),
        lk.bernoulli_log_prob(m, z),
    )
    return (z**2).sum() + kl.sum() + sum(x.sum() for x in densities)


def test_grad_equals_backward() -> None:
    m, l = torch.randn(7, 4), torch.randn(7, 4)
    leaf = m.clone().requires_grad_()
    loss(leaf, l).backward()
    assert leaf.grad is not None
    assert torch.allclose(grad(loss)(m, l), leaf.grad, rtol=1e-6)


def test_vmap_repeats_an_explicit_seed() -> None:
    """vmap(f)(x)[i] equals f(x[i])."""
    m, l = torch.randn(5, 7, 4), torch.randn(5, 7, 4)

    def run(m: Tensor, l: Tensor) -> tuple[Tensor, Tensor]:
        return lk.rsample_kl(m, l, 2, seed=3, offset=5)

    for in_dims in ((0, 0), (0, None), (None, 0), (1, 1), (2, 0)):
        args = [x if d is None else x.movedim(0, d) for x, d in zip((m, l), in_dims, strict=True)]
        args = [x[0] if d is None else x for x, d in zip(args, in_dims, strict=True)]
        z, kl = vmap(run, in_dims=in_dims)(*args)
        for i in range(5):
            slices = [
                x if d is None else x.select(d, i) for x, d in zip(args, in_dims, strict=True)
            ]
            z_i, kl_i = run(*slices)
            assert torch.equal(z[i], z_i)
            assert torch.equal(kl[i], kl_i)


def test_vmap_over_seeds() -> None:
    m, l, seeds = torch.randn(7, 4), torch.randn(7, 4), torch.tensor([1, 2**40, 7])
    z = vmap(lambda s: lk.rsample(m, l, 2, seed=s))(seeds)
    x = vmap(lambda s: lk.normal((2, 3), seed=s))(seeds)
    for i, seed in enumerate(seeds.tolist()):
        assert torch.equal(z[i], lk.rsample(m, l, 2, seed=seed))
        assert torch.equal(x[i], lk.normal((2, 3), seed=seed))


def test_vmap_randomness() -> None:
    zero = torch.zeros(5, 7, 4)

    def run(x: Tensor) -> Tensor:
        return lk.rsample(x, x)

    with pytest.raises(RuntimeError, match="randomness"):
        vmap(run)(zero)
    same = vmap(run, randomness="same")(zero)
    assert all(torch.equal(same[0], same[i]) for i in range(5))
    different = vmap(run, randomness="different")(zero)
    assert not any(torch.equal(different[i], different[j]) for i in range(5) for j in range(i))


def test_vmap_of_grad_and_grad_of_vmap() -> None:
    m, l = torch.randn(5, 7, 4), torch.randn(5, 7, 4)
    seeds = torch.arange(5)
    per_sample = vmap(grad(loss))(m, l, seeds)
    for i in range(5):
        assert torch.allclose(per_sample[i], grad(loss)(m[i], l[i], i), rtol=1e-5, atol=1e-6)
    through = grad(lambda x: vmap(loss)(x, l, seeds).sum())(m)
    assert torch.allclose(through, per_sample, rtol=1e-5, atol=1e-6)
    leaf = m.clone().requires_grad_()
    vmap(loss)(leaf, l, seeds).sum().backward()
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad, per_sample, rtol=1e-5, atol=1e-6)


def test_nested_vmap() -> None:
    m = torch.randn(2, 3, 7, 4)
    z = vmap(vmap(lambda x: lk.rsample(x, x, seed=4)))(m)
    assert torch.equal(z[1, 2], lk.rsample(m[1, 2], m[1, 2], seed=4))


def test_jacrev() -> None:
    m, l = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    ours = jacrev(lambda a, b: lk.rsample_kl(a, b, 2, seed=3), argnums=(0, 1))(m, l)
    eps = lk.normal((2, 3, 4), seed=3).double()

    def plain(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a + torch.exp(0.5 * b) * eps, 0.5 * (a**2 + torch.exp(b) - 1 - b).sum(-1)

    theirs = jacrev(plain, argnums=(0, 1))(m, l)
    for of_output, of_plain in zip(ours, theirs, strict=True):
        for a, b in zip(of_output, of_plain, strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_no_samples_under_a_transformation() -> None:
    zero = torch.zeros(7, 3)
    gradient = grad(lambda m: lk.gaussian_log_prob(torch.zeros(0, 7, 3), m, m).sum())(zero)
    assert torch.equal(gradient, zero)
    gradient = grad(lambda l: lk.bernoulli_log_prob(torch.zeros(0, 7, 3), l).sum())(zero[0])
    assert torch.equal(gradient, zero[0])


def test_vmap_of_densities() -> None:
    """A batch joins the groups, whichever input has it; one row may serve a whole group."""
    z, m, l = torch.randn(4, 3, 7, 5), torch.randn(4, 7, 5), torch.randn(4, 5)
    for in_dims in ((0, 0, 0), (0, None, 0), (None, 0, 0), (0, 0, None), (None, None, 0)):
        args = [x if d == 0 else x[0] for x, d in zip((z, m, l), in_dims, strict=True)]
        density, mass = (
            vmap(f, in_dims=in_dims[-n:])(*args[-n:])
            for f, n in ((lk.gaussian_log_prob, 3), (lk.bernoulli_log_prob, 2))
        )
        for i in range(4):
            slices = [x if d is None else x[i] for x, d in zip(args, in_dims, strict=True)]
            assert torch.equal(density[i], lk.gaussian_log_prob(*slices))
            assert torch.equal(mass[i], lk.bernoulli_log_prob(*slices[1:]))


def test_batched_seeds_are_checked() -> None:
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"seed must lie in \[0, 2\^63\); got -1"):
        vmap(lambda s: lk.rsample(x, x, seed=s))(torch.tensor([5, -1]))


def test_export() -> None:
    class Sampler(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return lk.rsample_kl(x, x, 2, seed=3)[0]

    x = torch.randn(6, 5)
    shapes = {"x": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(Sampler(), (x,), dynamic_shapes=shapes, strict=False)
    other = torch.randn(9, 5)
    assert torch.equal(exported.module()(other), lk.rsample(other, other, 2, seed=3))


@pytest.mark.skipif(torch.__version__ < "2.10", reason="torch.compile of 2.9 fails on such a vmap")
@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_vmap() -> None:
    m = torch.randn(5, 7, 4)
    run = vmap(lambda x: lk.rsample(x, x, 2, seed=3))
    assert torch.equal(torch.compile(run, fullgraph=True, backend="aot_eager")(m), run(m))


# --- the rest of torch ----------------------------------------------------------------------------


def test_autocast() -> None:
    """Under autocast the op takes bfloat16 and returns z in bfloat16 and kl in float32."""
    layer = torch.nn.Linear(6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mean, logvar = layer(torch.randn(5, 6)).chunk(2, -1)
        z, kl = lk.rsample_kl(mean, logvar, seed=1)
    assert mean.dtype == z.dtype == torch.bfloat16
    assert kl.dtype == torch.float32
    (z.float().sum() + kl.sum()).backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_replays_the_noise(reentrant: bool) -> None:
    def block(x: Tensor) -> Tensor:
        z, kl = lk.rsample_kl(x, 0.1 * x)
        return z.pow(2).sum() + kl.sum()

    gradients = []
    for wrapped in (False, True):
        torch.manual_seed(4)
        x = torch.randn(6, 5, requires_grad=True)
        with warnings.catch_warnings():
            value = checkpoint(block, x, use_reentrant=reentrant) if wrapped else block(x)
        value.backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)  # type: ignore[arg-type]


def test_manual_seed_governs() -> None:
    x = torch.zeros(3, 4)
    torch.manual_seed(7)
    a, b = lk.rsample(x, x), lk.rsample(x, x)
    torch.manual_seed(7)
    assert torch.equal(lk.rsample(x, x), a)
    assert torch.equal(lk.rsample(x, x), b)
    assert not torch.equal(a, b)


def test_no_grad_and_inference_mode() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    with torch.no_grad():
        assert not lk.rsample(x, x).requires_grad
    with torch.inference_mode():
        assert lk.rsample_kl(x, x)[1].is_inference()


def test_data_subclass_goes_through_the_dispatcher() -> None:
    """A tensor subclass is dispatched, and not read by its address."""

    class Marked(Tensor):
        pass

    x = torch.randn(3, 4).as_subclass(Marked)
    plain = x.as_subclass(Tensor)
    assert torch.equal(
        lk.rsample(x, x, seed=1).as_subclass(Tensor), lk.rsample(plain, plain, seed=1)
    )


def test_deep_copies_and_pickles(tmp_path: object) -> None:
    """Results are ordinary tensors, which can be saved without any state of the kernel."""
    import copy
    import io

    z, kl = lk.rsample_kl(torch.zeros(2, 3), torch.zeros(2, 3), seed=1)
    buffer = io.BytesIO()
    torch.save((z, kl), buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer)[0], copy.deepcopy(z))


# --- functions without gradients ------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["", "reference"])
def test_what_has_no_gradient_is_no_part_of_a_graph(
    monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    """Outputs without a gradient are not part of a graph, although the reference is plain torch,
    which would record itself.
    """
    monkeypatch.setenv("LATENT_KERNELS_BACKEND", choice)
    backends.forget()
    logits, values = leaf(4, 6), leaf(5, 4)
    q = lk.Bernoulli(logits)
    z = q.sample(5, seed=1)
    found = [
        z,
        lk.Categorical(leaf(4, 6, 3)).sample(5, seed=1),
        lk.normalized_weights(values),
        lk.effective_sample_size(values),
        lk.pareto_k(leaf(50, 4)),
        *lk.score_function_gradient(q, values, z),
        *lk.score_function_gradient(lk.DiagonalGaussian(logits, leaf(4, 6)), values, seed=1),
    ]
    backends.forget()
    assert not any(x.requires_grad for x in found)


# --- torch.jit.trace ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*:DeprecationWarning")
@pytest.mark.parametrize(
    "function",
    [
        lambda x: lk.rsample(x, x, 2, seed=1),
        lambda x: lk.rsample_kl(x, x, seed=1)[1],
        lambda x: lk.rsample_log_prob(x, x, 2, seed=1)[1],
        lambda x: x + lk.normal(x.shape, seed=1),
        lambda x: x + lk.uniform(x.shape, seed=1),
        lambda x: lk.Bernoulli(x).sample(2, seed=1),
        lambda x: lk.Categorical(x).sample(2, seed=1).float(),
        lambda x: lk.gaussian_log_prob(x, x, x),
    ],
)
def test_samplers_can_be_traced(function):
    x = lk.normal((3, 5), seed=3)
    traced = torch.jit.trace(function, x)
    assert torch.equal(traced(x), function(x))
    assert torch.equal(traced(2 * x), function(2 * x))

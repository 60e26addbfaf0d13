"""Second derivatives, forward mode and batched backward passes, compared with plain torch.

The kernels have first derivatives alone. Everything here comes from the ops' formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils import _pytree

import latent_kernels as lk
from latent_kernels.kernels import backends
from latent_kernels.kernels.families.reference import logistic
from latent_kernels.kernels.noise import reference as noise
from latent_kernels.kernels.relaxed.reference import exponential
from latent_kernels.variational.gaussian import rsample_scale
from tests.checks import bits_equal

Tensor = torch.Tensor
Loss = Callable[[Tensor, Tensor], Tensor]
SEED, SAMPLES = 1, 2


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def leaf(*shape: int) -> Tensor:
    return data(*shape).requires_grad_()


def eps() -> Tensor:
    return lk.normal((SAMPLES, 3, 4), seed=SEED, dtype=torch.float64)


def log_normal(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mean) ** 2 * torch.exp(-logvar)).sum(-1)


# --- losses of mean and logvar [3, 4]: ours, and the same in plain torch --------------------------


def ours_of_samples(mean: Tensor, logvar: Tensor) -> Tensor:
    z, kl = lk.rsample_kl(mean, logvar, SAMPLES, seed=SEED)
    return (z**3).sum() + (kl**2).sum()


def plain_of_samples(mean: Tensor, logvar: Tensor) -> Tensor:
    z = mean + torch.exp(0.5 * logvar) * eps()
    kl = 0.5 * (mean**2 + torch.exp(logvar) - 1 - logvar).sum(-1)
    return (z**3).sum() + (kl**2).sum()


def ours_with_prior(mean: Tensor, logvar: Tensor) -> Tensor:
    kl = lk.gaussian_kl(mean, logvar, prior_mean=logvar, prior_logvar=mean[0])
    return (kl**2).sum()


def plain_with_prior(mean: Tensor, logvar: Tensor) -> Tensor:
    d = logvar - mean[0]
    kl = 0.5 * ((mean - logvar) ** 2 * torch.exp(-mean[0]) + torch.exp(d) - 1 - d).sum(-1)
    return (kl**2).sum()


def ours_of_scale(mean: Tensor, logvar: Tensor) -> Tensor:
    return (rsample_scale(mean, torch.exp(logvar), SAMPLES, seed=SEED) ** 3).sum()


def plain_of_scale(mean: Tensor, logvar: Tensor) -> Tensor:
    return ((mean + torch.exp(logvar) * eps()) ** 3).sum()


def ours_of_fused_normals(mean: Tensor, logvar: Tensor) -> Tensor:
    p = lk.FusedNormal(mean, torch.exp(logvar), validate_args=False)
    q = lk.FusedNormal(logvar, torch.exp(mean[0]), validate_args=False)
    return (kl_divergence(p, q) ** 2).sum() + kl_divergence(q, q).sum()


def plain_of_fused_normals(mean: Tensor, logvar: Tensor) -> Tensor:
    p = Normal(mean, torch.exp(logvar), validate_args=False)
    q = Normal(logvar, torch.exp(mean[0]), validate_args=False)
    return (kl_divergence(p, q) ** 2).sum()


def ours_of_log_q(mean: Tensor, logvar: Tensor) -> Tensor:
    z, log_q = lk.rsample_log_prob(mean, logvar, SAMPLES, seed=SEED)
    return (z**3).sum() + (log_q**2).sum()


def plain_of_log_q(mean: Tensor, logvar: Tensor) -> Tensor:
    z = mean + torch.exp(0.5 * logvar) * eps()
    return (z**3).sum() + (log_normal(z, mean, logvar) ** 2).sum()


def ours_of_density(mean: Tensor, logvar: Tensor) -> Tensor:
    shared = lk.gaussian_log_prob(eps(), mean[0], logvar)
    return (lk.gaussian_log_prob(logvar, mean, logvar) ** 2).sum() + (shared**2).sum()


def plain_of_density(mean: Tensor, logvar: Tensor) -> Tensor:
    shared = log_normal(eps(), mean[0], logvar)
    return (log_normal(logvar, mean, logvar) ** 2).sum() + (shared**2).sum()


def ours_of_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    return (lk.bernoulli_log_prob(x, logits) ** 2).sum()


def plain_of_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    return ((x * logits - torch.nn.functional.softplus(logits)).sum(-1) ** 2).sum()


def ours_of_relaxed(a: Tensor, b: Tensor) -> Tensor:
    binary = lk.Bernoulli(a).rsample_relaxed(SAMPLES, tau=0.5, seed=SEED)
    classes = lk.Categorical(b).rsample_relaxed(SAMPLES, tau=0.5, seed=SEED)
    return (binary**3 * classes * a).sum()


def plain_of_relaxed(a: Tensor, b: Tensor) -> Tensor:
    u = noise.uniform(SAMPLES * 12, SEED)
    x, minus_g = logistic(u), noise.ln(exponential(u))
    x, minus_g = (torch.from_numpy(v.reshape(SAMPLES, 3, 4)).double() for v in (x, minus_g))
    binary, classes = torch.sigmoid((a - x) / 0.5), torch.softmax((b - minus_g) / 0.5, -1)
    return (binary**3 * classes * a).sum()


def joint(z: Tensor) -> Tensor:
    return (-0.1 * z**4 - z**2 + z).sum(-1)


def ours_of_bound(estimator: str) -> Loss:
    def loss(mean: Tensor, logvar: Tensor) -> Tensor:
        z, log_q = lk.rsample_log_prob(
            mean, logvar, SAMPLES, seed=SEED, path_derivative=estimator != "iwae"
        )
        own = {"z": z} if estimator == "dreg" else {}
        return lk.importance_bound(joint(z) - log_q, estimator=estimator, **own).sum()

    return loss


def plain_of_bound(estimator: str) -> Loss:
    """Return the bound in plain torch with the same stop-gradients: q's parameters in log q, and
    the weights on the way to z.
    """

    def loss(mean: Tensor, logvar: Tensor) -> Tensor:
        z = mean + torch.exp(0.5 * logvar) * eps()
        fixed = estimator != "iwae"
        log_q = log_normal(z, *(x.detach() if fixed else x for x in (mean, logvar)))
        log_w = joint(z) - log_q
        if estimator == "dreg" and z.requires_grad:
            weights = torch.softmax(log_w.detach(), 0).unsqueeze(-1)
            z.register_hook(lambda g: g * weights)
        return (torch.logsumexp(log_w, 0) - math.log(SAMPLES)).sum()

    return loss


LOSSES: dict[str, tuple[Loss, Loss]] = {
    "samples": (ours_of_samples, plain_of_samples),
    "prior": (ours_with_prior, plain_with_prior),
    "scale": (ours_of_scale, plain_of_scale),
    "fused normals": (ours_of_fused_normals, plain_of_fused_normals),
    "log_q": (ours_of_log_q, plain_of_log_q),
    "density": (ours_of_density, plain_of_density),
    "bernoulli": (ours_of_bernoulli, plain_of_bernoulli),
    "relaxed": (ours_of_relaxed, plain_of_relaxed),
    **{name: (ours_of_bound(name), plain_of_bound(name)) for name in ("iwae", "stl", "dreg")},
}
Way = Callable[[Loss, Tensor, Tensor], Any]
BOTH = (0, 1)


def third_derivatives(f: Loss, a: Tensor, b: Tensor) -> Tensor:
    def first(a: Tensor, b: Tensor) -> Tensor:
        return (grad(f, argnums=1)(a, b) ** 2).sum()

    def second(a: Tensor, b: Tensor) -> Tensor:
        return (grad(first)(a, b) ** 2).sum()

    return grad(second)(a, b)


def per_example(f: Loss, a: Tensor, b: Tensor) -> Tensor:
    def one(scale: Tensor) -> Tensor:
        return grad(lambda a: (grad(f)(a, scale * b) ** 2).sum())(a)

    return vmap(one)(torch.arange(1, 4, dtype=a.dtype))


def outputs_of(f: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: torch.stack([f(a, b), f(b, a)])


FUNCTIONAL = torch.autograd.functional
REVERSE: dict[str, Way] = {
    "hessian": lambda f, a, b: hessian(f, argnums=BOTH)(a, b),
    "jacrev of jacrev": lambda f, a, b: jacrev(jacrev(f, argnums=BOTH), argnums=BOTH)(a, b),
    "third derivatives": third_derivatives,
    "per example": per_example,
    "hvp": lambda f, a, b: FUNCTIONAL.hvp(f, (a, b), (b, a)),
    "vhp": lambda f, a, b: FUNCTIONAL.vhp(f, (a, b), (b, a)),
    "vectorized hessian": lambda f, a, b: FUNCTIONAL.hessian(f, (a, b), vectorize=True),
    "hessian by forward mode": lambda f, a, b: FUNCTIONAL.hessian(
        f, (a, b), vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
    "vectorized jacobian": lambda f, a, b: FUNCTIONAL.jacobian(
        outputs_of(f), (a, b), vectorize=True
    ),
}
# A hook of plain torch runs again as autograd differentiates what it has scaled; in torch.func it
# does not, as ours.
WITH_HOOKS: dict[str, Way] = {
    "hvp": lambda f, a, b: (f(a, b), jvp(grad(f, argnums=BOTH), (a, b), (b, a))[1]),
    "vhp": lambda f, a, b: (f(a, b), vjp(grad(f, argnums=BOTH), a, b)[1]((b, a))),
    "vectorized hessian": REVERSE["hessian"],
}
FORWARD: dict[str, Way] = {
    "jvp": lambda f, a, b: jvp(f, (a, b), (b, a)),
    "jacfwd of jacfwd": lambda f, a, b: jacfwd(jacfwd(f, argnums=BOTH), argnums=BOTH)(a, b),
    "jacrev of jacfwd": lambda f, a, b: jacrev(jacfwd(f, argnums=BOTH), argnums=BOTH)(a, b),
    "jacobian by forward mode": lambda f, a, b: FUNCTIONAL.jacobian(
        outputs_of(f), (a, b), vectorize=True, strategy="forward-mode"
    ),
}


def assert_close(ours: Any, plain: Any, rtol: float = 1e-9) -> None:
    a, b = _pytree.tree_leaves(ours), _pytree.tree_leaves(plain)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert torch.allclose(x, y, rtol=rtol, atol=rtol)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("way", [*REVERSE, *FORWARD])
@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_equal_those_of_plain_torch(name: str, way: str) -> None:
    ours, plain = LOSSES[name]
    a, b = data(3, 4), data(3, 4)
    if name == "dreg" and way in FORWARD:
        with pytest.raises(NotImplementedError, match="'dreg' scales gradients on their way back"):
            FORWARD[way](ours, a, b)
        return
    differentiate = (REVERSE | FORWARD)[way]
    of_plain = WITH_HOOKS.get(way, differentiate) if name == "dreg" else differentiate
    assert_close(differentiate(ours, a, b), of_plain(plain, a, b))


def test_the_weights_of_dreg_are_applied_once() -> None:
    """Other backward passes are scaled as before; one of both orders is refused."""
    mean, logvar = leaf(3, 4), leaf(3, 4)

    def made() -> tuple[Tensor, Tensor]:
        z, log_q = lk.rsample_log_prob(mean, logvar, 5, seed=SEED, path_derivative=True)
        return z, lk.importance_bound(joint(z) - log_q, estimator="dreg", z=z).sum()

    z, bound = made()
    expected = torch.autograd.grad(bound, mean, retain_graph=True)[0]
    of_sum = torch.autograd.grad(z.sum(), mean, retain_graph=True)[0]
    assert torch.allclose(of_sum, torch.ones_like(mean))  # weights add up to 1
    (first,) = torch.autograd.grad(bound, mean, create_graph=True)
    second = torch.autograd.grad(first.sum(), mean, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(first.sum(), mean, retain_graph=True)[0], second)
    assert torch.equal(torch.autograd.grad(bound, mean, retain_graph=True)[0], expected)
    with pytest.raises(RuntimeError, match="Differentiate them one by one"):
        torch.autograd.grad(bound + first.sum(), mean)


@pytest.mark.parametrize("num_samples", [None, 3])
def test_gradgradcheck(num_samples: int | None) -> None:
    """Second derivatives agree with finite differences, batched and in forward mode too."""

    def run(m: Tensor, l: Tensor, m0: Tensor, l0: Tensor) -> tuple[Tensor, Tensor]:
        return lk.rsample_kl(m, l, num_samples, prior_mean=m0, prior_logvar=l0, seed=1)

    def with_log_q(m: Tensor, l: Tensor) -> tuple[Tensor, Tensor]:
        return lk.rsample_log_prob(m, l, num_samples, seed=1)

    inputs = (leaf(2, 3), leaf(2, 3), leaf(2, 3), leaf(3))
    for function, given in (
        (run, inputs),
        (with_log_q, inputs[:2]),
        (lk.gaussian_log_prob, (leaf(2, 2, 3), inputs[0], inputs[3])),
        (lk.bernoulli_log_prob, (leaf(2, 2, 3), inputs[0])),
        (lk.importance_bound, (leaf(4, 3),)),
    ):
        options: dict[str, Any] = {"check_batched_grad": True, "nondet_tol": 0}
        assert gradgradcheck(function, given, check_fwd_over_rev=True, **options)
        forward = {"check_forward_ad": True, "check_batched_forward_grad": True}
        assert gradcheck(function, given, **forward, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_computed_wide(dtype: torch.dtype) -> None:
    """Second derivatives of halves have the inputs' dtype and float32's accuracy."""
    mean, logvar = (torch.randn(3, 4).to(dtype) for _ in range(2))
    found = grad(lambda l: grad(ours_of_log_q, argnums=1)(mean, l).sum())(logvar)
    exact = grad(lambda l: grad(ours_of_log_q, argnums=1)(mean.double(), l).sum())(logvar.double())
    assert found.dtype == dtype
    assert torch.allclose(found.double(), exact, rtol=16 * torch.finfo(dtype).eps, atol=1e-2)


def test_first_derivatives_have_the_same_bits() -> None:
    """With create_graph=True and in torch.func, first derivatives come from the kernels, as in
    backward.
    """
    mean, logvar = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    for ours, _ in LOSSES.values():
        plain = torch.autograd.grad(ours(mean, logvar), (mean, logvar))
        graph = torch.autograd.grad(ours(mean, logvar), (mean, logvar), create_graph=True)
        func = grad(ours, argnums=BOTH)(mean.detach(), logvar.detach())
        for a, b, c in zip(plain, graph, func, strict=True):
            assert bits_equal(a, b.detach())
            assert bits_equal(a, c)


def test_forward_mode_has_the_values_of_the_kernels() -> None:
    mean, logvar = torch.randn(3, 4), torch.randn(3, 4)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(mean, logvar)
        z, kl = lk.rsample_kl(dual, logvar, 5, seed=3)
        fixed = lk.rsample_kl(mean, logvar, 5, seed=3)
        values = [forward_ad.unpack_dual(x) for x in (z, kl)]
    assert all(torch.equal(x.primal, y) for x, y in zip(values, fixed, strict=True))
    assert torch.equal(values[0].tangent, logvar.expand(5, 3, 4))
    assert torch.allclose(values[1].tangent, (mean * logvar).sum(-1), rtol=1e-5)


def test_certain_bernoulli_variables() -> None:
    """Infinite logits have curvature 0, logits of 0 the curvature -1/4."""
    x, logits = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([math.inf, -math.inf, 0.0, -0.0])
    for second in (hessian, lambda f: jacfwd(jacfwd(f))):
        found = second(lambda l: lk.bernoulli_log_prob(x, l))(logits)
        assert torch.equal(found, torch.diag(torch.tensor([0.0, 0.0, -0.25, -0.25])))


@pytest.mark.parametrize("kind", ["transposed", "expanded", "negative", "chunked"])
def test_whatever_the_layout(kind: str) -> None:
    """Second derivatives reach the inputs through copies made for the kernels."""

    def loss(x: Tensor, ours: bool) -> Tensor:
        a = {
            "transposed": lambda: x.T,
            "expanded": lambda: x[:, :1].expand(4, 4),
            "negative": lambda: torch._neg_view(x),
            "chunked": lambda: torch.cat((x, x), -1).chunk(2, -1)[1],
        }[kind]()
        zero = torch.zeros(4, 4, dtype=x.dtype)
        if not ours:
            values = log_normal(a, zero, zero[0]), a.sum(-1) - torch.log1p(torch.exp(a)).sum(-1)
            kl = 0.5 * (a**2 + torch.exp(a) - 1 - a).sum(-1)
        else:
            values = lk.gaussian_log_prob(a, zero, zero[0]), lk.bernoulli_log_prob(zero + 1, a)
            kl = lk.gaussian_kl(a, a)
        return sum((value**2).sum() for value in (*values, kl))  # type: ignore[return-value]

    x = leaf(4, 4)
    second = []
    for ours in (True, False):
        (first,) = torch.autograd.grad(loss(x, ours), x, create_graph=True)
        second.append(torch.autograd.grad((first**2).sum() + (x**3).sum(), x)[0])
    assert_close(*second)


def test_seeds_of_their_own() -> None:
    """Each example of a batch uses its own noise in its second derivatives."""
    mean, logvar, seeds = data(3, 4), data(3, 4), torch.tensor([3, 2**40, 7])

    def curvature(seed: int | Tensor) -> Tensor:
        def loss(l: Tensor) -> Tensor:
            return (lk.rsample(mean, l, 2, seed=seed, offset=5) ** 3).sum()

        return grad(lambda l: (grad(loss)(l) ** 2).sum())(logvar)

    found = vmap(curvature)(seeds)
    for own, seed in zip(found, seeds.tolist(), strict=True):
        assert torch.allclose(own, curvature(seed), rtol=1e-12)


def test_devices_without_a_compiled_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no kernel is compiled the reference is used, for create_graph=True, torch.func and
    torch.compile too.
    """
    monkeypatch.setenv(backends.VARIABLE, "reference")
    backends.forget()
    torch._dynamo.reset()
    a, b = leaf(3, 4), leaf(3, 4)
    for name in ("samples", "prior", "scale", "log_q", "fused normals", "stl"):
        ours, plain = LOSSES[name]
        for way in ("hessian", "hvp"):
            assert_close(REVERSE[way](ours, a, b), REVERSE[way](plain, a, b))
        compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
        for run in (ours, compiled):
            found = torch.autograd.grad(run(a, b), (a, b))
            assert_close(found, torch.autograd.grad(plain(a, b), (a, b)))


# --- what people use them for ---------------------------------------------------------------------


def test_fisher_vector_product() -> None:
    """The product of TRPO is right: the Hessian of KL(old || new) at new = old is J' F J, F =
    diag(1 / sigma^2, 1/2).
    """
    policy = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 8))
    policy.double()
    states = data(7, 5)
    parameters = list(policy.parameters())
    vector = [torch.randn_like(p) for p in parameters]

    mean, logvar = policy(states).chunk(2, -1)
    old_mean, old_logvar = mean.detach(), logvar.detach()
    kl = lk.gaussian_kl(old_mean, old_logvar, prior_mean=mean, prior_logvar=logvar).mean()
    first = torch.autograd.grad(kl, parameters, create_graph=True)
    product = sum((g * v).sum() for g, v in zip(first, vector, strict=True))
    found = torch.autograd.grad(product, parameters)  # type: ignore[arg-type]

    named = dict(policy.named_parameters())
    direction = dict(zip(named, vector, strict=True))
    held = {name: p.detach() for name, p in named.items()}
    out, moved = jvp(lambda p: functional_call(policy, p, (states,)), (held,), (direction,))
    fisher = torch.cat((torch.exp(-out[:, 4:]), torch.full((7, 4), 0.5, dtype=out.dtype)), -1)
    expected = torch.autograd.grad(policy(states), parameters, moved * fisher / 7)
    assert_close(found, expected)


def test_inner_steps_of_meta_learning() -> None:
    """The gradient of MAML is right: that of the loss after a gradient step, for a small VAE's
    ELBO.
    """
    x = (torch.rand(6, 5) < 0.5).double()
    start = {"encoder": data(5, 4), "decoder": data(2, 5)}
    noise = lk.normal((6, 2), seed=4, dtype=torch.float64)

    def elbo(p: dict[str, Tensor], ours: bool) -> Tensor:
        mean, logvar = (x @ p["encoder"]).chunk(2, -1)
        if ours:
            z, kl = lk.rsample_kl(mean, logvar, seed=4)
            return (kl - lk.bernoulli_log_prob(x, z @ p["decoder"])).mean()
        logits = (mean + torch.exp(0.5 * logvar) * noise) @ p["decoder"]
        kl = 0.5 * (mean**2 + torch.exp(logvar) - 1 - logvar).sum(-1)
        return (kl - (x * logits - torch.nn.functional.softplus(logits)).sum(-1)).mean()

    def after_steps(p: dict[str, Tensor], ours: bool) -> Tensor:
        for _ in range(2):
            step = grad(elbo)(p, ours)
            p = {name: p[name] - 0.1 * step[name] for name in p}
        return elbo(p, ours)

    plain = grad(after_steps)(start, False)
    assert_close(grad(after_steps)(start, True), plain)

    # the same by create_graph=True
    leaves = {name: p.clone().requires_grad_() for name, p in start.items()}
    stepped = leaves
    for _ in range(2):
        first = torch.autograd.grad(elbo(stepped, True), list(stepped.values()), create_graph=True)
        stepped = {n: p - 0.1 * g for (n, p), g in zip(stepped.items(), first, strict=True)}
    elbo(stepped, True).backward()
    assert_close([p.grad for p in leaves.values()], list(plain.values()))


# --- torch.compile --------------------------------------------------------------------------------


COMPILED: dict[str, Callable[[Loss], Callable[[Tensor, Tensor], Any]]] = {
    "grad": grad,
    "grad of grad": lambda f: grad(lambda a, b: (grad(f)(a, b) ** 2).sum()),
    "hessian": hessian,
    "jvp": lambda f: lambda a, b: jvp(f, (a, b), (b, a)),
    "vmap of grad": lambda f: lambda a, b: vmap(grad(f))(a.expand(2, 3, 4), b.expand(2, 3, 4)),
}


@pytest.mark.parametrize(
    "way",
    [
        "grad",
        "vmap of grad",
        *(pytest.param(way, marks=pytest.mark.slow) for way in ("grad of grad", "hessian", "jvp")),
    ],
)
def test_torch_func_within_torch_compile(way: str) -> None:
    """There is one graph, of the formulas, in which only the noise is opaque."""
    if way == "vmap of grad" and torch.__version__ < "2.10":
        pytest.skip("torch.compile of 2.9 fails on such a vmap")

    def loss(a: Tensor, b: Tensor) -> Tensor:
        named = ("samples", "prior", "fused normals", "density", "bernoulli", "stl")
        return sum(LOSSES[name][0](a, b) for name in named)  # type: ignore[return-value]

    torch._dynamo.reset()
    run = COMPILED[way](loss)
    a, b = data(3, 4), data(3, 4)
    expected = run(a, b)  # first: torch.compile cannot trace kl_divergence's search for a rule
    assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(a, b), expected)


def test_compiled_functions_of_dual_numbers() -> None:
    """Dual numbers work also where the same function has been compiled for plain numbers before;
    torch.compile itself refuses them since 2.14.
    """
    a, b = data(3, 4), data(3, 4)
    torch._dynamo.reset()
    compiled = torch.compile(ours_of_samples, fullgraph=True, backend="aot_eager")
    assert_close(compiled(a, b), ours_of_samples(a, b))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(a, b)
        if torch.__version__ >= "2.14":
            with pytest.raises(torch._dynamo.exc.Unsupported, match="dual tensor"):
                compiled(dual, b)
            return
        found = forward_ad.unpack_dual(compiled(dual, b)).tangent
    assert_close(found, jvp(lambda a: ours_of_samples(a, b), (a,), (b,))[1])


def test_what_cannot_be_compiled_is_never_a_silent_zero() -> None:
    z, values = torch.ones(2, 3, 4), torch.randn(2, 3)

    def loss(logits: Tensor) -> Tensor:
        return lk.score_function_expectation(lk.Bernoulli(logits), values, z).sum()

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: jvp(loss, (x,), (x,)), backend="aot_eager")
    with pytest.raises(NotImplementedError, match="score_expectation has no second derivatives"):
        compiled(torch.randn(3, 4))


# --- batched backward passes ----------------------------------------------------------------------


def jacobians(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Check that the vectorized Jacobian equals that of a loop over the outputs."""
    loop = FUNCTIONAL.jacobian(function, x)
    assert torch.allclose(FUNCTIONAL.jacobian(function, x, vectorize=True), loop, rtol=1e-12)
    y = function(x.requires_grad_())
    rows = torch.eye(y.numel(), dtype=y.dtype).reshape(-1, *y.shape)
    (batched,) = torch.autograd.grad(y, x, rows, is_grads_batched=True)
    assert torch.allclose(batched.reshape(loop.shape), loop, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_batched_backward_of_every_op() -> None:
    z, ones = data(5, 3, 4), torch.ones(5, 3, 4, dtype=torch.float64)
    seen = lk.score_function_expectation
    weight, recurrent = data(4, 6), 0.1 * data(6, 6)
    for function in (
        lambda x: lk.rsample(x, x, 2, seed=1),
        lambda x: lk.rsample_kl(x, x, prior_logvar=x[0], seed=1)[1],
        lambda x: lk.rsample_log_prob(x, x, 2, seed=1, path_derivative=True)[1],
        lambda x: lk.gaussian_log_prob(z, x, x),
        lambda x: lk.bernoulli_log_prob(z, x),
        lambda x: lk.importance_bound(z * x).sum(-1),
        lambda x: lk.importance_bound(x, estimator="vimco", log_q=2 * x),
        lambda x: seen(lk.Bernoulli(x), z[:, :, 0], ones),
        lambda x: lk.lista_encode(x, weight, recurrent, 0.1, n_layers=3),
    ):
        jacobians(function, data(3, 4))


# --- what keeps its error -------------------------------------------------------------------------


def test_vimco_has_no_second_derivatives() -> None:
    """VIMCO's signal estimates a gradient; autograd would make a meaningless second derivative of
    it.
    """

    def loss(log_w: Tensor) -> Tensor:
        return lk.importance_bound(log_w, estimator="vimco", log_q=2 * log_w).sum()

    x = torch.randn(5, 3)
    for run in (
        lambda: grad(lambda x: grad(loss)(x).sum())(x),
        lambda: hessian(loss)(x),
        lambda: jvp(loss, (x,), (x,)),
    ):
        with pytest.raises(NotImplementedError, match="estimator 'vimco' has no second derivative"):
            run()


def test_forward_mode_of_a_streamed_bound_is_refused() -> None:
    with forward_ad.dual_level():
        mean = forward_ad.make_dual(torch.zeros(3, 4), torch.ones(3, 4))
        q = lk.DiagonalGaussian(mean, torch.zeros(3, 4))
        with pytest.raises(NotImplementedError, match="use importance_bound"):
            lk.streamed_bound(q, lambda z: -(z**2).sum(-1), 5, seed=1)


def test_diagnostics_have_no_tangents() -> None:
    with forward_ad.dual_level():
        log_w = forward_ad.make_dual(torch.randn(30, 3), torch.ones(30, 3))
        for found in (
            lk.normalized_weights(log_w),
            lk.effective_sample_size(log_w),
            lk.pareto_k(log_w),
        ):
            assert forward_ad.unpack_dual(found).tangent is None

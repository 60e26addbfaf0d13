"""The ops of the families and of the score function under torch's own machinery, as
test_gaussian.py tests the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jacfwd, jacrev, vmap
from torch.library import opcheck

import latent_kernels as lk
from tests.score.laws import elements, every_family, f, f_elements

Tensor = torch.Tensor
OPS = torch.ops.latent_kernels
SEEDS = torch.tensor([3, 2**40])
MAKE: dict[str, Any] = {
    "gaussian": lk.DiagonalGaussian,
    "bernoulli": lk.Bernoulli,
    "categorical": lk.Categorical,
}


def parameters(name: str, *shape: int) -> tuple[Tensor, ...]:
    """Return parameters of q over [..., 2], in float64."""
    tail = (3,) if name == "categorical" else ()
    return tuple(
        torch.randn(*shape, 2, *tail, dtype=torch.float64)
        for _ in range(2 if name == "gaussian" else 1)
    )


# --- opcheck --------------------------------------------------------------------------------------


def raw(
    family: str,
    control: str,
    *,
    per_element: bool = False,
    from_seed: bool = False,
    shared: bool | None = None,
) -> tuple[Any, ...]:
    """Return the inputs of the ops on [G, S, N, D] = [2, 4, 5, 3]; q and values have gradients."""
    g, s, n, d, k = 2, 4, 5, 3, 4
    tail = (k,) if family == "categorical" else ()
    first = torch.randn(g, n, d, *tail, dtype=torch.float64, requires_grad=True)
    second = (
        torch.randn(g, n, d, dtype=torch.float64, requires_grad=True)
        if family == "gaussian"
        else None
    )
    pairs = (2,) if family == "antithetic" else ()
    z = None
    if not from_seed:
        shape = (g, *pairs, s, n, d)
        drawn = {"gaussian": torch.randn(shape).double(), "categorical": torch.randint(k, shape)}
        z = drawn.get(family, torch.randint(2, shape).double())
    row = (n, d) if per_element else (n,)
    values = torch.randn(g, *pairs, s, *row, dtype=torch.float64, requires_grad=True)
    baseline = (
        None if shared is None else torch.randn(g, 1 if shared else s, *row, dtype=torch.float64)
    )
    folds = 2 if control == "optimal" else 1
    tensors = (first, second, z, values, baseline, SEEDS)
    return *tensors, 7, family, control, folds, per_element


def mean(*args: Any, **options: Any) -> tuple[Any, ...]:
    """Return arguments of score_expectation."""
    return *raw(*args, **options), [True]


def estimate(*args: Any, with_variance: bool = False, **options: Any) -> tuple[Any, ...]:
    """Return arguments of score_gradient, which has no gradients itself."""
    given = tuple(x.detach() if isinstance(x, Tensor) else x for x in raw(*args, **options))
    two = given[1] is not None
    return *given, [True, two, with_variance, with_variance and two]


def backward(*args: Any, needs: list[bool], **options: Any) -> tuple[Any, ...]:
    """Return arguments of score_expectation_backward."""
    given = tuple(x.detach() if isinstance(x, Tensor) else x for x in raw(*args, **options))
    values = given[3]
    return (
        torch.randn_like(values[:, 0, 0] if args[0] == "antithetic" else values[:, 0]),
        *given,
        needs,
    )


RAW: list[tuple[str, Callable[[], tuple[Any, ...]]]] = [
    ("bernoulli_sample", lambda: (torch.randn(2, 5, 4), SEEDS, 6, 3, False, [True])),
    ("bernoulli_sample",
     lambda: (torch.randn(2, 5, 4).requires_grad_(), SEEDS[:1], 1, 0, True, [True])),
    ("categorical_sample",
     lambda: (torch.randn(2, 5, 4, 3).bfloat16(), SEEDS, 6, 3, False, [True])),
    ("score_expectation", lambda: mean("gaussian", "leave_one_out")),
    ("score_expectation", lambda: mean("gaussian", "optimal", from_seed=True, per_element=True)),
    ("score_expectation", lambda: mean("bernoulli", "optimal", per_element=True)),
    ("score_expectation", lambda: mean("bernoulli", "none", shared=True, from_seed=True)),
    ("score_expectation", lambda: mean("antithetic", "none")),
    ("score_expectation", lambda: mean("antithetic", "none", from_seed=True, per_element=True)),
    ("score_expectation", lambda: mean("categorical", "none", shared=False)),
    ("score_expectation", lambda: mean("categorical", "leave_one_out", per_element=True)),
    ("score_gradient", lambda: estimate("gaussian", "optimal", with_variance=True)),
    ("score_gradient", lambda: estimate("gaussian", "none", from_seed=True)),
    ("score_gradient", lambda: estimate("bernoulli", "leave_one_out", with_variance=True)),
    ("score_gradient",
     lambda: estimate("antithetic", "none", with_variance=True, per_element=True)),
    ("score_gradient", lambda: estimate("categorical", "optimal")),
    ("score_gradient", lambda: estimate("categorical", "none", shared=True, with_variance=True)),
    ("score_expectation_backward",
     lambda: backward("gaussian", "optimal", needs=[True, True, True])),
    ("score_expectation_backward",
     lambda: backward("gaussian", "none", shared=False, needs=[False, True, False])),
    ("score_expectation_backward",
     lambda: backward("antithetic", "none", per_element=True, needs=[True, False, True])),
    ("score_expectation_backward",
     lambda: backward("categorical", "optimal", from_seed=True, needs=[False, False, True])),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments"), RAW)
def test_opcheck(name: str, arguments: Callable[[], tuple[Any, ...]]) -> None:
    results = opcheck(getattr(OPS, name), arguments())
    assert set(results.values()) == {"SUCCESS"}


# --- torch.compile --------------------------------------------------------------------------------


@pytest.fixture
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def step(name: str, control: Any, per_element: bool = False) -> Callable[..., Any]:
    """Return everything at once: samples, values, their mean, and gradients with variances."""

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        q = MAKE[name](*given)
        z = q.sample(5, seed=11)
        values = f_elements(z) if per_element else f(z)
        out = lk.score_function_expectation(q, values, z, control_variate=control)
        again = lk.score_function_expectation(q, values, seed=11, control_variate=control)
        gradients, variances = lk.score_function_gradient(
            q, values, z, control_variate=control, return_variance=True
        )
        return out, again, *gradients, *variances

    return run


@pytest.mark.usefixtures("_fresh_compiler")
@every_family
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(name: str, backend: str) -> None:
    """There is one graph, with eager's results, forward and backward."""
    run = step(
        name,
        "optimal" if backend == "inductor" else "leave_one_out",
        per_element=backend == "inductor",
    )
    compiled = torch.compile(run, fullgraph=True, backend=backend)
    leaves = tuple(x.requires_grad_() for x in parameters(name, 6))
    results = []
    for call in (run, compiled):
        found = call(*leaves)
        results.append((*found, *torch.autograd.grad(found[0].sum() + 2 * found[1].sum(), leaves)))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_disarm(backend: str) -> None:
    def run(logits: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        q = lk.Bernoulli(logits)
        z = q.sample_antithetic(4, seed=seed)
        return lk.disarm(q, f(z), seed=seed), lk.disarm_gradient(q, f(z), z)[0]

    compiled = torch.compile(run, fullgraph=True, backend=backend)
    (logits,) = parameters("bernoulli", 6)
    logits.requires_grad_()
    results = []
    for call in (run, compiled):
        out, gradient = call(logits, torch.tensor(4))
        results.append((out, gradient, *torch.autograd.grad(out.sum(), logits)))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.usefixtures("_fresh_compiler")
def test_compile_with_changing_shapes_and_a_fresh_seed() -> None:
    def run(logits: Tensor, seed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = lk.Bernoulli(logits)
        z = q.sample(4, seed=seed)
        return z, lk.score_function_gradient(q, f(z), z)[0], q.sample(2)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 5, 8):
        (logits,) = parameters("bernoulli", rows)
        for seed in (1, 2):
            got, expected = (call(logits, torch.tensor(seed)) for call in (compiled, run))
            assert torch.equal(got[0], expected[0])
            assert torch.allclose(got[1], expected[1], rtol=1e-12, atol=1e-13)
            assert got[2].shape == (2, rows, 2)


# --- fake tensors, dispatch modes -----------------------------------------------------------------


@every_family
def test_fake_tensors(name: str) -> None:
    with FakeTensorMode():
        given = parameters(name, 6)
        q = MAKE[name](*given)
        z = q.sample(5)
        assert z.shape == (5, 6, 2)
        assert z.dtype == (torch.int64 if name == "categorical" else torch.float64)
        assert lk.score_function_expectation(q, f(z), z).shape == (6,)
        gradients, variances = lk.score_function_gradient(q, f_elements(z), z, return_variance=True)
        for g, v, x in zip(gradients, variances, given, strict=True):
            assert g.shape == v.shape == x.shape
        if name == "bernoulli":
            pairs = q.sample_antithetic(5, seed=1)
            assert pairs.shape == (2, 5, 6, 2)
            assert lk.disarm(q, f(pairs), pairs).shape == (6,)


@every_family
def test_meta_tensors_cost_nothing(name: str) -> None:
    tail = (1 << 10,) if name == "categorical" else ()
    x = torch.empty(1 << 20, 1 << 20, *tail, device="meta", requires_grad=True)
    q = MAKE[name](*((x, x) if name == "gaussian" else (x,)))
    z = q.sample(100, seed=1)
    assert z.shape == (100, 1 << 20, 1 << 20)
    out = lk.score_function_expectation(q, torch.empty(100, 1 << 20, device="meta"), z)
    assert out.shape == (1 << 20,)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.shape == x.shape


def test_data_subclass_goes_through_the_dispatcher() -> None:
    class Marked(Tensor):
        pass

    (logits,) = parameters("bernoulli", 6)
    q = lk.Bernoulli(logits)
    z = q.sample(5, seed=1)
    marked = lk.Bernoulli(logits.as_subclass(Marked))
    assert torch.equal(marked.sample(5, seed=1).as_subclass(Tensor), z)
    ours = lk.score_function_gradient(marked, f(z), z)[0].as_subclass(Tensor)
    assert torch.equal(ours, lk.score_function_gradient(q, f(z), z)[0])


# --- torch.func -----------------------------------------------------------------------------------


def loss(name: str, control: Any, seed: int | Tensor, *given: Tensor) -> Tensor:
    q = MAKE[name](*given)
    z = q.sample(5, seed=seed)
    z = z.detach() if z.is_floating_point() else z
    return lk.score_function_expectation(q, f(z).detach(), z, control_variate=control).sum()


@every_family
@pytest.mark.parametrize("control", ["none", "leave_one_out", "optimal"])
def test_grad_equals_backward(name: str, control: str) -> None:
    given = parameters(name, 6)
    leaves = tuple(x.clone().requires_grad_() for x in given)
    expected = torch.autograd.grad(loss(name, control, 9, *leaves), leaves)
    which = tuple(range(3, 3 + len(given)))
    for a, b in zip(grad(loss, argnums=which)(name, control, 9, *given), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


@elements
@every_family
@pytest.mark.parametrize("control", ["none", "leave_one_out", "optimal", "baseline"])
def test_vmap(name: str, control: str, per_element: bool) -> None:
    """vmap(f)(x)[i] equals f(x[i]): over parameters, values, samples, seeds, and all of them."""
    given, seeds = parameters(name, 4, 6), torch.tensor([1, 2**40, 7, 0])
    q = MAKE[name](*given)
    z = q.sample(5, seed=3).movedim(0, 1)
    values = (f_elements(z) if per_element else f(z)).contiguous()

    def run(given: tuple[Tensor, ...], values: Tensor, z: Tensor) -> Any:
        baseline: Any = 0.3 * values if control == "baseline" else control
        q = MAKE[name](*given)
        found = lk.score_function_gradient(
            q, values, z, control_variate=baseline, return_variance=True
        )
        return found, lk.score_function_expectation(q, values, z, control_variate=baseline)

    def from_seed(given: tuple[Tensor, ...], values: Tensor, seed: Tensor) -> Any:
        baseline: Any = 0.3 * values[:1] if control == "baseline" else control
        return lk.score_function_gradient(
            MAKE[name](*given), values, seed=seed, control_variate=baseline
        )

    def check(function: Callable[..., Any], in_dims: tuple[int | None, ...], *batched: Any) -> None:
        got = torch.utils._pytree.tree_leaves(vmap(function, in_dims=in_dims)(*batched))
        for i in range(4):
            args = [
                x
                if d is None
                else tuple(y[i] for y in x)
                if isinstance(x, tuple)
                else x.select(d, i)
                for x, d in zip(batched, in_dims, strict=True)
            ]
            for a, b in zip(got, torch.utils._pytree.tree_leaves(function(*args)), strict=True):
                assert torch.allclose(a[i], b, rtol=1e-11, atol=1e-12)

    first = tuple(x[0] for x in given)
    check(run, (0, 0, 0), given, values, z)
    check(run, (None, 0, 0), first, values, z)
    check(run, (0, None, None), given, values[0], z[0])
    check(run, (None, 1, 1), first, values.movedim(0, 1), z.movedim(0, 1))
    check(from_seed, (0, 0, 0), given, values, seeds)
    check(from_seed, (None, None, 0), first, values[0], seeds)


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_vmap_of_samples(name: str) -> None:
    (logits,) = parameters(name, 4, 6)
    seeds = torch.tensor([1, 2**40, 7, 0])
    z = vmap(lambda x: MAKE[name](x).sample(3, seed=5, offset=2))(logits)
    by_seed = vmap(lambda s: MAKE[name](logits[0]).sample(3, seed=s))(seeds)
    both = vmap(lambda x, s: MAKE[name](x).sample(seed=s))(logits, seeds)
    for i, seed in enumerate(seeds.tolist()):
        assert torch.equal(z[i], MAKE[name](logits[i]).sample(3, seed=5, offset=2))
        assert torch.equal(by_seed[i], MAKE[name](logits[0]).sample(3, seed=seed))
        assert torch.equal(both[i], MAKE[name](logits[i]).sample(seed=seed))
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda x: MAKE[name](x).sample(3))(logits)
    different = vmap(lambda x: MAKE[name](x).sample(60), randomness="different")(
        logits[:1].expand(4, *logits.shape[1:])
    )
    assert not any(torch.equal(different[i], different[j]) for i in range(4) for j in range(i))
    with pytest.raises(ValueError, match=r"seed must lie in \[0, 2\^63\); got -1"):
        vmap(lambda s: MAKE[name](logits[0]).sample(3, seed=s))(torch.tensor([5, -1]))


def test_vmap_of_disarm() -> None:
    (logits,) = parameters("bernoulli", 4, 6)
    seeds = torch.arange(4)

    def run(x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = lk.Bernoulli(x)
        z = q.sample_antithetic(5, seed=seed)
        return lk.disarm(q, f(z), z), lk.disarm_gradient(q, f_elements(z), seed=seed)[0], z

    got = vmap(run)(logits, seeds)
    for i in range(4):
        for a, b in zip(got, run(logits[i], seeds[i]), strict=True):
            assert torch.allclose(a[i], b, rtol=1e-12, atol=1e-13)


@every_family
def test_vmap_of_grad_and_grad_of_vmap(name: str) -> None:
    given, seeds = parameters(name, 4, 6), torch.arange(4)
    which = tuple(range(1, 1 + len(given)))

    def one(seed: Tensor, *given: Tensor) -> Tensor:
        return loss(name, "leave_one_out", seed, *given)

    per_sample = vmap(grad(one, argnums=which))(seeds, *given)
    through = grad(lambda *x: vmap(one)(seeds, *x).sum(), argnums=tuple(range(len(given))))(*given)
    for j, (a, b) in enumerate(zip(per_sample, through, strict=True)):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12)
        for i in range(4):
            expected = grad(one, argnums=which)(seeds[i], *(x[i] for x in given))[j]
            assert torch.allclose(a[i], expected, rtol=1e-11, atol=1e-12)


@every_family
def test_jacrev(name: str) -> None:
    """Row i of the Jacobian of [N] means is the gradient of mean i: block diagonal, with the
    estimator's blocks.
    """
    given = parameters(name, 4)
    z = MAKE[name](*given).sample(5, seed=3)

    def run(*given: Tensor) -> Tensor:
        return lk.score_function_expectation(MAKE[name](*given), f(z), z)

    found = jacrev(run, argnums=tuple(range(len(given))))(*given)
    expected = lk.score_function_gradient(MAKE[name](*given), f(z), z)
    for jacobian, gradient in zip(found, expected, strict=True):
        block = torch.zeros(4, *gradient.shape, dtype=torch.float64)
        block[range(4), range(4)] = gradient
        assert torch.allclose(jacobian, block, rtol=1e-12, atol=1e-13)


def test_forward_mode_is_refused() -> None:
    (logits,) = parameters("bernoulli", 4)
    z = lk.Bernoulli(logits).sample(5, seed=3)
    with pytest.raises(NotImplementedError, match="forward-mode derivatives"):
        jacfwd(lambda x: lk.score_function_expectation(lk.Bernoulli(x), f(z), z))(logits)


@every_family
def test_second_derivatives_are_refused(name: str) -> None:
    """Second derivatives raise by torch.func and by create_graph=True alike, and are never silently
    zero.
    """
    given = parameters(name, 4)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad(lambda x: grad(loss, argnums=3)(name, "none", 1, x, *given[1:]).sum())(given[0])
    leaves = tuple(x.requires_grad_() for x in given)
    gradient = torch.autograd.grad(loss(name, "none", 1, *leaves), leaves, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="second derivatives"):
        gradient.sum().backward()


# --- the rest of torch ----------------------------------------------------------------------------


def test_autocast() -> None:
    """Layers give bfloat16 logits under autocast; samples are bfloat16 too, the mean and the
    weights float32.
    """
    layer = torch.nn.Linear(6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        q = lk.Bernoulli(layer(torch.randn(5, 6)))
        z = q.sample(7, seed=1)
        out = lk.score_function_expectation(q, z.float().sum(-1), z)
    assert z.dtype == torch.bfloat16
    assert out.dtype == torch.float32
    out.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert bool(layer.weight.grad.isfinite().all())


def test_no_grad_and_inference_mode() -> None:
    (logits,) = parameters("bernoulli", 4)
    q = lk.Bernoulli(logits.requires_grad_())
    z = q.sample(5, seed=1)
    with torch.no_grad():
        assert not lk.score_function_expectation(q, f(z), z).requires_grad
    with torch.inference_mode():
        assert lk.score_function_gradient(q, f(z), z)[0].is_inference()
        assert q.sample(seed=1).is_inference()
    assert not lk.score_function_gradient(q, f(z), z)[0].requires_grad


@every_family
def test_saves_nothing_but_inputs(name: str) -> None:
    """Forward keeps parameters, values and z themselves; from a seed, not even z."""
    leaves = tuple(x.requires_grad_() for x in parameters(name, 40))
    q = MAKE[name](*leaves)
    z = q.sample(8, seed=1)
    values = f(z)
    for given, seed, tensors in ((z, None, (*leaves, values, z)), (None, 1, (*leaves, values))):
        saved: list[int] = []

        def pack(x: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(x.data_ptr())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            lk.score_function_expectation(q, values, given, seed=seed)
        assert set(saved) == {x.data_ptr() for x in tensors}

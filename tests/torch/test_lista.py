"""Unrolled soft-thresholding under torch's own machinery: autograd, torch.compile, torch.func,
dtypes, strides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, vmap
from torch.library import opcheck

from latent_kernels.kernels import backends
from latent_kernels.kernels.lista import reference
from latent_kernels.sparse.lista import coupled_lista_encode, lista_encode
from tests.checks import bits_equal
from tests.lista.checks import (
    FORMS,
    NAMES,
    OPTIONS,
    Choices,
    ListaProblem,
    Tensors,
    as_problem,
    clear_problem,
    encode,
)

Tensor = torch.Tensor
OPS = torch.ops.latent_kernels
SIZES = (3, 4, 6, 3)
every_form = pytest.mark.parametrize("form", FORMS)
every_kind = pytest.mark.parametrize(
    "options", [OPTIONS[1], OPTIONS[3], OPTIONS[2]], ids=["shared", "select", "layers"]
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Use one thread: for small products torch's threads would wait for one another."""
    torch.set_num_threads(1)


def problem_of(form: str, options: dict[str, Any] | None = None, **more: Any) -> ListaProblem:
    """Return a small problem in float64 whose entries are so far from their thresholds that finite
    differences do not cross them.
    """
    return clear_problem(
        form,
        SIZES,
        torch.float64,
        margin=1e-3,
        **(OPTIONS[1] if options is None else options),
        **more,
    )


def given_of(problem: ListaProblem) -> tuple[tuple[Tensor, ...], Callable[..., Tensor]]:
    """Return the problem's tensors that are not None, and the public function of them."""
    names = [name for name, t in zip(NAMES, problem.tensors, strict=True) if t is not None]

    def run(*given: Tensor) -> Tensor:
        return encode(Tensors(**dict(zip(names, given, strict=True))), problem.choices)

    return tuple(t for t in problem.tensors if t is not None), run


def leaves_of(given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.detach().clone().requires_grad_() for t in given)


# --- autograd -------------------------------------------------------------------------------------


@every_kind
@every_form
def test_gradcheck(form: str, options: dict[str, Any]) -> None:
    given, run = given_of(problem_of(form, options))
    assert bool((run(*given) != 0).any())
    assert torch.autograd.gradcheck(run, leaves_of(given))


@every_form
def test_each_input_alone_and_none(form: str) -> None:
    problem = problem_of(form)
    given, run = given_of(problem)
    leaves = leaves_of(given)
    z = run(*leaves)
    together = torch.autograd.grad(z, leaves, problem.upstream)
    assert not run(*given).requires_grad
    assert torch.equal(run(*given), z)
    for i, g in enumerate(together):
        alone = [t.detach() for t in given]
        alone[i].requires_grad_()
        found = run(*alone)
        assert torch.equal(found, z)
        found.backward(problem.upstream)
        assert bits_equal(alone[i].grad, g)
        assert all(t.grad is None for j, t in enumerate(alone) if j != i)
        alone[i].requires_grad_(False)


@every_form
def test_backward_twice(form: str) -> None:
    problem = problem_of(form)
    given, run = given_of(problem)
    leaves = leaves_of(given)
    z = run(*leaves)
    first = torch.autograd.grad(z, leaves, problem.upstream, retain_graph=True)
    again = torch.autograd.grad(z, leaves, 2 * problem.upstream, retain_graph=True)
    last = torch.autograd.grad(z, leaves, problem.upstream)
    for a, b, c in zip(first, again, last, strict=True):
        assert bits_equal(a, c)
        assert bits_equal(2 * a, b)  # exact: a power of two
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(z, leaves, problem.upstream)


@every_form
def test_upstream_of_any_strides(form: str) -> None:
    problem = problem_of(form)
    given, run = given_of(problem)
    leaves = leaves_of(given)
    for upstream in (
        torch.ones((), dtype=torch.float64).expand(3, 6),
        torch.randn(6, 3, dtype=torch.float64).t(),
        torch.randn(3, 12, dtype=torch.float64)[:, ::2],
        torch.complex(problem.upstream, problem.upstream).conj().imag,  # a lazy negation
    ):
        found = torch.autograd.grad(run(*leaves), leaves, upstream)
        plain = torch.autograd.grad(run(*leaves), leaves, upstream.clone().contiguous())
        assert all(bits_equal(a, b) for a, b in zip(found, plain, strict=True))


@every_form
def test_second_derivatives_are_refused(form: str) -> None:
    """Second derivatives raise by create_graph=True and by torch.func alike, and are never silently
    zero.
    """
    given, run = given_of(problem_of(form))
    leaves = leaves_of(given)
    for found in torch.autograd.grad(run(*leaves).square().sum(), leaves, create_graph=True):
        with pytest.raises(RuntimeError, match="second derivatives"):
            found.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad(lambda x: grad(lambda y: run(y, *given[1:]).square().sum())(x).sum())(given[0])


@every_form
def test_first_derivatives_of_create_graph(form: str) -> None:
    """First derivatives with create_graph=True equal those of a plain backward."""
    problem = problem_of(form)
    given, run = given_of(problem)
    leaves = leaves_of(given)
    plain = torch.autograd.grad(run(*leaves), leaves, problem.upstream)
    found = torch.autograd.grad(run(*leaves), leaves, problem.upstream, create_graph=True)
    assert all(bits_equal(a.detach(), b) for a, b in zip(found, plain, strict=True))
    x = leaves[0]
    only = torch.autograd.grad(run(x, *given[1:]), x, problem.upstream, create_graph=True)[0]
    assert bits_equal(only.detach(), plain[0])


def test_forward_mode_is_refused() -> None:
    given, run = given_of(problem_of("recurrent"))
    with pytest.raises(NotImplementedError, match="forward-mode derivatives"):
        jacfwd(lambda x: run(x, *given[1:]))(given[0])


def test_forward_mode_is_never_a_silent_zero() -> None:
    given, run = given_of(problem_of("recurrent"))
    for leaves in (given, leaves_of(given)):
        with forward_ad.dual_level():
            x = forward_ad.make_dual(leaves[0].detach(), torch.ones_like(given[0]))
            with pytest.raises((NotImplementedError, RuntimeError)):
                run(x, *leaves[1:])


@every_form
def test_saves_the_inputs_themselves(form: str) -> None:
    given, run = given_of(problem_of(form))
    leaves = leaves_of(given)
    saved: list[int] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        run(*leaves)
    assert set(saved) == {x.data_ptr() for x in leaves}


@every_form
def test_weights_changed_before_backward_are_noticed(form: str) -> None:
    given, run = given_of(problem_of(form))
    for i in range(len(given)):
        leaves = leaves_of(given)
        z = run(*leaves)
        with torch.no_grad():
            leaves[i].mul_(0.5)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.sum().backward()


# --- between calls: what was checked, and what has changed since ----------------------------------


def fresh(run: Callable[..., Tensor], given: list[Tensor]) -> Tensor:
    """Return the result of the same call with new tensors."""
    return run(*(t.detach().clone() for t in given))


@pytest.mark.parametrize("with_grad", [False, True])
@every_form
def test_weights_change_in_place(form: str, with_grad: bool) -> None:
    """Results follow in-place changes between calls, under no_grad, as an optimizer makes them;
    every tensor in turn.
    """
    given, run = given_of(problem_of(form))
    inputs = [t.clone().requires_grad_(with_grad) for t in given]
    for i, t in enumerate(inputs):
        for _ in range(3):
            before = run(*inputs).detach()
            assert torch.equal(before, fresh(run, inputs))
            with torch.no_grad():
                t.mul_(0.5)
            after = run(*inputs).detach()
            assert torch.equal(after, fresh(run, inputs)), i
        assert not torch.equal(before, after), i


@pytest.mark.parametrize("with_grad", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@every_form
def test_weights_that_cease_to_be_finite(form: str, value: float, with_grad: bool) -> None:
    """The values of weights are checked once, and again after every change."""
    problem = problem_of(form, {"threshold": "both", "layered": True, "bias": True})
    names = [name for name, t in zip(NAMES, problem.tensors, strict=True) if t is not None]
    given, run = given_of(problem)
    inputs = [t.clone().requires_grad_(with_grad) for t in given]
    for i, name in enumerate(names):
        if name == "x":
            continue
        for _ in range(3):
            run(*inputs)
        with torch.no_grad():
            kept = inputs[i].view(-1)[-1].clone()
            inputs[i].view(-1)[-1] = value
        for _ in range(2):
            with pytest.raises(ValueError, match=f"{name} must be finite"):
                run(*inputs)
        with torch.no_grad():
            inputs[i].view(-1)[-1] = kept
        run(*inputs)
    threshold = inputs[names.index("threshold")]
    with torch.no_grad():
        threshold[0, 0] = -1e-3
    with pytest.raises(ValueError, match=r"threshold must be >= 0; got -0\.001"):
        run(*inputs)


@every_form
def test_steps_of_an_optimizer(form: str) -> None:
    """Training by the compiled kernels equals training by plain torch."""
    problem = problem_of(form, {"threshold": "components", "bias": True, "theta": 0.2})
    target = torch.randn_like(problem.upstream)
    results = []
    for function in (encode, lambda *given: reference.encode(as_problem(*given))):
        parameters = [
            None if t is None else torch.nn.Parameter(t.clone()) for t in problem.tensors[1:]
        ]
        optimizer = torch.optim.SGD([p for p in parameters if p is not None], lr=0.05)
        for _ in range(5):
            optimizer.zero_grad()
            tensors = Tensors(problem.tensors.x, *parameters)  # type: ignore[arg-type]
            (function(tensors, problem.choices) - target).square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                function(tensors, problem.choices)
        results.append([p.detach() for p in parameters if p is not None])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-13)


SWAPS: dict[str, Callable[[Tensor], None]] = {
    "t_": lambda s: s.t_(),  # type: ignore[dict-item]
    "data of another": lambda s: setattr(s, "data", s.data.clone() * 2),
    "data transposed": lambda s: setattr(s, "data", s.data.t()),
    "set_": lambda s: s.set_(torch.eye(6, dtype=torch.float64)),  # type: ignore[dict-item]
    "copy_": lambda s: s.copy_(torch.eye(6, dtype=torch.float64)),  # type: ignore[dict-item]
    "dtype": lambda s: setattr(s, "data", s.data.float()),
}


@pytest.mark.parametrize("swap", list(SWAPS))
def test_memory_changes_between_calls(swap: str) -> None:
    problem = problem_of("recurrent", {"threshold": "components"})
    given, run = given_of(problem)
    inputs = [t.clone() for t in given]
    for _ in range(3):
        run(*inputs)
    SWAPS[swap](inputs[NAMES.index("recurrent") - 1])  # no bias among them
    for _ in range(2):
        assert torch.equal(run(*inputs), fresh(run, inputs))


@pytest.mark.parametrize("name", ["threshold", "weight", "bias", "recurrent"])
def test_shape_changes_between_calls(name: str) -> None:
    """The same tensor over the same memory but of another shape raises an error, as on a first
    call.
    """
    x, tensors = torch.randn(3, 4), {
        "weight": torch.randn(4, 6),
        "recurrent": torch.randn(6, 6),
        "threshold": torch.rand(6),
        "bias": torch.randn(6),
    }  # fmt: skip
    for _ in range(3):
        lista_encode(x, **tensors, n_layers=2)
    tensors[name].data = tensors[name].data[:2]
    with pytest.raises(ValueError, match=f"{name} must"):
        lista_encode(x, **tensors, n_layers=2)


BAD_CHOICES: list[tuple[dict[str, Any], Any, str]] = [
    ({"n_layers": 1.0}, TypeError, r"n_layers must be an int"),
    ({"n_layers": True}, TypeError, r"n_layers must be an int"),
    ({"n_layers": [1]}, TypeError, r"n_layers must be an int"),
    ({"n_layers": 2}, ValueError, r"threshold must"),
    ({"select": True}, TypeError, r"select must be"),
    ({"select": 1.0}, (TypeError, ValueError), r"select must be"),
    ({"select": {1: 1}}, (TypeError, ValueError), r"select must be"),
    ({"positive": 1}, TypeError, r"positive must be"),
    ({"positive": [True]}, TypeError, r"positive must be"),
]


@pytest.mark.parametrize("form", ["recurrent", "residual"])
@pytest.mark.parametrize(("changed", "error", "message"), BAD_CHOICES)
def test_choices_are_checked_after_good_ones(
    form: str, changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    """A bad option raises although it equals a good one of an earlier call (1 == True == 1.0)."""
    x, w, d, s, theta = (
        torch.randn(3, 4),
        torch.randn(4, 6),
        torch.randn(6, 4),
        torch.randn(6, 6),
        torch.rand(1, 6),
    )

    def run(**options: Any) -> Tensor:
        options = {"n_layers": 1, "select": 1, "positive": True, **options}
        if form == "recurrent":
            return lista_encode(x, w, s, theta, **options)
        return coupled_lista_encode(x, d, w, theta, **options)

    for _ in range(3):
        run()
    with pytest.raises(error, match=message):
        run(**changed)


def test_many_encoders_in_turn() -> None:
    """Results are right with more encoders than are remembered, and with new tensors in the memory
    of deleted ones.
    """
    x = torch.randn(2, 5)
    for i in range(200):
        n = 3 + i % 4
        w, s, theta = torch.randn(5, n), torch.randn(n, n), torch.rand(n)
        for _ in range(2):
            z = lista_encode(x, w, s, theta, n_layers=2)
            assert torch.allclose(
                z,
                reference.encode(as_problem(Tensors(x, w, theta, None, s), Choices(2))),
                rtol=1e-4,
                atol=1e-4,
            )


def test_x_of_every_kind_after_a_plain_one() -> None:
    """The state of a plain call is not used for x of another dtype, shape, device, stride or need
    of gradients.
    """
    w, s, theta = torch.randn(5, 4), torch.randn(4, 4), torch.rand(4)
    x = torch.randn(3, 5)

    def run(x: Tensor) -> Tensor:
        return lista_encode(x, w, s, theta, n_layers=3)

    for _ in range(3):
        z = run(x)
    assert torch.equal(run(x.t().contiguous().t()), z)
    assert torch.equal(run(torch.stack([x, x], 2)[..., 0]), z)
    assert torch.equal(run(-x), -z)
    assert torch.equal(run(torch.complex(x, x).conj().imag), -z)
    assert torch.equal(run(x[0]), z[0])
    assert torch.equal(run(x[:, None]), z[:, None])
    assert run(x.double()).dtype == torch.float64
    assert run(x[:0]).shape == (0, 4)
    with pytest.raises(ValueError, match=r"weight must be on the device of x, meta"):
        run(x.to("meta"))
    with pytest.raises(ValueError, match=r"weight must have shape \(6, 4\)"):
        run(torch.randn(3, 6))
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor"):
        run([1.0])  # type: ignore[arg-type]
    leaf = x.clone().requires_grad_()
    run(leaf).sum().backward()
    assert leaf.grad is not None
    w.requires_grad_()
    run(x).sum().backward()
    assert w.grad is not None
    with torch.no_grad():
        assert not run(x).requires_grad
    assert vmap(run)(x[None]).shape == (1, 3, 4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert run(torch.empty(7, 5)).shape == (7, 4)


# --- opcheck --------------------------------------------------------------------------------------


def op_options(choices: Choices) -> tuple[Any, ...]:
    """Return the options as the raw op takes them."""
    return *choices[:2], None if choices.select is None else list(choices.select)


CHECKED = [(form, OPTIONS[1]) for form in FORMS] + [
    ("recurrent", OPTIONS[0]),
    ("residual steps", OPTIONS[3]),
]


@pytest.mark.parametrize(("form", "options"), CHECKED)
def test_opcheck(form: str, options: dict[str, Any]) -> None:
    problem = problem_of(form, options)
    leaves = Tensors(*(None if t is None else t.clone().requires_grad_() for t in problem.tensors))  # type: ignore[arg-type]
    options = op_options(problem.choices)
    assert set(opcheck(OPS.lista, (*leaves, *options, [True])).values()) == {"SUCCESS"}
    for wanted in ([t is not None for t in leaves], [name in ("x", "threshold") for name in NAMES]):
        results = opcheck(
            OPS.lista_backward, (problem.upstream, *problem.tensors, *options, wanted)
        )
        assert set(results.values()) == {"SUCCESS"}


@every_form
def test_ops_equal_plain_calls(form: str) -> None:
    problem = problem_of(form)
    leaves = Tensors(*(None if t is None else t.clone().requires_grad_() for t in problem.tensors))  # type: ignore[arg-type]
    given = [t for t in leaves if t is not None]
    z = encode(leaves, problem.choices)
    by_op = OPS.lista(*leaves, *op_options(problem.choices), [True])
    assert bits_equal(by_op, z)
    for a, b in zip(
        torch.autograd.grad(by_op, given, problem.upstream),
        torch.autograd.grad(z, given, problem.upstream),
        strict=True,
    ):
        assert bits_equal(a, b)


# --- torch.compile --------------------------------------------------------------------------------


@pytest.fixture
def _fresh_compiler() -> None:
    torch._dynamo.reset()


COMPILED = [(form, "aot_eager") for form in FORMS] + [("residual steps", "inductor")]


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(("form", "backend"), COMPILED)
def test_compile(form: str, backend: str) -> None:
    """There is one graph for changing shapes of x, with eager's results, forward and backward."""
    problem = problem_of(form, OPTIONS[3] if form == "recurrent" else OPTIONS[1])
    given, run = given_of(problem)
    compiled = torch.compile(run, fullgraph=True, backend=backend)
    for rows in (3, 5, 8):
        x = torch.randn(rows, 4, dtype=torch.float64)
        tensors = list(given)
        tensors[0] = x
        if problem.tensors.initial is not None:
            tensors[-1] = torch.randn(rows, 6, dtype=torch.float64)
        leaves = leaves_of(tuple(tensors))
        results = []
        for function in (run, compiled):
            z = function(*leaves)
            results.append((z, *torch.autograd.grad((z * torch.arange(6.0)).sum(), leaves)))
        assert all(bits_equal(a.detach(), b.detach()) for a, b in zip(*results, strict=True))
        with torch.no_grad():
            assert torch.equal(compiled(*tensors), run(*tensors))


@pytest.mark.usefixtures("_fresh_compiler")
def test_compile_numbers_and_leading_shapes() -> None:
    w, d = torch.randn(4, 6), torch.randn(6, 4)

    def run(x: Tensor) -> Tensor:
        return (
            coupled_lista_encode(
                2 * x, d, w, 0.3, step=0.5, n_layers=3, positive=True, select=(0, 1, 2)
            )
            + 1
        )

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for x in (torch.randn(4), torch.randn(3, 4), torch.randn(2, 3, 4), torch.randn(0, 4)):
        assert torch.equal(compiled(x), run(x))


# --- fake tensors, dispatch modes -----------------------------------------------------------------


@every_kind
@every_form
def test_fake_tensors(form: str, options: dict[str, Any]) -> None:
    problem = problem_of(form, options)
    _, run = given_of(problem)
    with FakeTensorMode() as mode:
        leaves = [mode.from_tensor(t).requires_grad_() for t in problem.tensors if t is not None]
        z = run(*leaves)
        assert z.shape == (3, 6)
        assert z.dtype == torch.float64
        for g, t in zip(torch.autograd.grad(z.sum(), leaves), leaves, strict=True):
            assert g.shape == t.shape
            assert g.dtype == t.dtype


def test_meta_tensors_cost_nothing() -> None:
    x = torch.empty(1 << 20, 1 << 12, device="meta", requires_grad=True)
    w = torch.empty(1 << 12, 1 << 13, device="meta", requires_grad=True)
    s = torch.empty(1 << 13, 1 << 13, device="meta")
    z = lista_encode(x, w, s, 0.1, n_layers=3)
    assert z.shape == (1 << 20, 1 << 13)
    for g, t in zip(torch.autograd.grad(z.sum(), (x, w)), (x, w), strict=True):
        assert g.shape == t.shape


@every_form
def test_subclasses_go_through_the_dispatcher(form: str) -> None:
    class Marked(Tensor):
        pass

    given, run = given_of(problem_of(form))
    marked = run(given[0].as_subclass(Marked), *given[1:])
    assert torch.equal(marked.as_subclass(Tensor), run(*given))


@every_form
def test_the_reference_can_be_forced(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(form)
    given, run = given_of(problem)
    results = []
    for forced in ("lista=cpp", "lista=reference"):
        monkeypatch.setenv(backends.VARIABLE, forced)
        backends.forget()
        leaves = leaves_of(given)
        z = run(*leaves)
        results.append((z.detach(), *torch.autograd.grad(z, leaves, problem.upstream)))
        assert torch.allclose(run(*given), z, rtol=1e-12, atol=1e-13)
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12)
        assert a.shape == b.shape


@every_form
def test_the_reference_is_differentiated_in_compiled_code(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In compiled code the reference's backward pass is an opaque op, which runs where autograd is
    switched off.
    """
    given, run = given_of(problem_of(form))
    found = []
    for forced in ("lista=cpp", "lista=reference"):
        monkeypatch.setenv(backends.VARIABLE, forced)
        backends.forget()
        torch._dynamo.reset()
        leaves = leaves_of(given)
        loss = torch.compile(lambda *xs: run(*xs).square().sum(), backend="aot_eager")(*leaves)
        found.append(torch.autograd.grad(loss, leaves))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12)


# --- torch.func -----------------------------------------------------------------------------------


@every_kind
@every_form
def test_vmap(form: str, options: dict[str, Any]) -> None:
    """vmap(f)(x)[i] equals f(x[i]): over each input alone, at the front and at the back, over rows,
    over everything.
    """
    problems = [
        ListaProblem(form, SIZES, torch.float64, seed=2 * i + 1, **options) for i in range(3)
    ]
    columns = list(zip(*(given_of(p)[0] for p in problems), strict=True))
    _, run = given_of(problems[0])
    first = [c[0] for c in columns]
    names = [name for name, t in zip(NAMES, problems[0].tensors, strict=True) if t is not None]
    count = len(columns)
    cases: list[tuple[tuple[int, ...], int]] = [
        ((i,), dim) for i in range(count) for dim in (0, -1)
    ]
    cases += [(tuple(range(count)), 0), (tuple(range(count)), -1)]
    cases += [(tuple(i for i, name in enumerate(names) if name in ("x", "initial")), 0)]
    for batched, dim in cases:
        given = [torch.stack(c, dim) if i in batched else c[0] for i, c in enumerate(columns)]
        got = vmap(run, in_dims=tuple(dim if i in batched else None for i in range(count)))(*given)
        for k in range(3):
            want = run(*(c[k] if i in batched else first[i] for i, c in enumerate(columns)))
            assert bits_equal(got[k], want), (batched, dim)


@every_form
def test_grad_equals_backward(form: str) -> None:
    problem = problem_of(form)
    given, run = given_of(problem)
    leaves = leaves_of(given)
    expected = torch.autograd.grad(run(*leaves), leaves, problem.upstream)
    found = grad(lambda *x: (run(*x) * problem.upstream).sum(), argnums=tuple(range(len(given))))(
        *given
    )
    assert all(bits_equal(a, b) for a, b in zip(found, expected, strict=True))


@every_kind
@every_form
def test_vmap_of_grad_and_grad_of_vmap(form: str, options: dict[str, Any]) -> None:
    """Per-sample gradients of shared parameters are right, and gradients of several models side by
    side.
    """
    problem = problem_of(form, options)
    given, run = given_of(problem)
    rows = {0} if problem.tensors.initial is None else {0, len(given) - 1}
    which = tuple(range(len(given)))

    def loss(*given: Tensor) -> Tensor:
        return run(*given).square().sum()

    one_row = [t[:, None] if i in rows else t for i, t in enumerate(given)]
    per_sample = vmap(
        grad(loss, argnums=which), in_dims=tuple(0 if i in rows else None for i in which)
    )(*one_row)
    for k in range(3):
        expected = grad(loss, argnums=which)(
            *(t[k] if i in rows else t for i, t in enumerate(one_row))
        )
        assert all(bits_equal(a[k], b) for a, b in zip(per_sample, expected, strict=True))
    models = [torch.stack([t, 0.9 * t]) for t in given]
    through = grad(lambda *x: vmap(loss)(*x).sum(), argnums=which)(*models)
    for k in range(2):
        expected = grad(loss, argnums=which)(*(t[k] for t in models))
        assert all(
            torch.allclose(a[k], b, rtol=1e-12, atol=1e-13)
            for a, b in zip(through, expected, strict=True)
        )


@every_form
def test_jacrev(form: str) -> None:
    """Each row of the Jacobian is the gradient of one entry; a code depends on its own row of x
    alone.
    """
    given, run = given_of(problem_of(form))
    jacobians = jacrev(run, argnums=tuple(range(len(given))))(*given)
    leaves = leaves_of(given)
    z = run(*leaves)
    for i in range(3):
        for j in range(6):
            expected = torch.autograd.grad(z[i, j], leaves, retain_graph=True)
            for jacobian, g in zip(jacobians, expected, strict=True):
                assert torch.allclose(jacobian[i, j], g, rtol=1e-12, atol=1e-13)
    blocks = jacobians[0].clone()
    blocks[range(3), :, range(3)] = 0
    assert not blocks.any()


# --- shapes, strides, dtypes ----------------------------------------------------------------------


@every_form
def test_leading_shapes(form: str) -> None:
    problem = ListaProblem(form, (12, 4, 6, 3), torch.float64, initial=True)
    t = problem.tensors
    assert t.initial is not None
    z = encode(t, problem.choices)
    for leading in ((12,), (3, 4), (2, 1, 6), (1, 12), (12, 1)):
        x = t.x.reshape(*leading, 4).requires_grad_()
        found = encode(t._replace(x=x, initial=t.initial.reshape(*leading, 6)), problem.choices)
        assert bits_equal(found.detach(), z.reshape(*leading, 6))
        found.backward(problem.upstream.reshape(found.shape))
        assert x.grad is not None
        assert bits_equal(x.grad.reshape(12, 4), problem.run(_kernels())["d_x"])
    one = encode(t._replace(x=t.x[5], initial=t.initial[5]), problem.choices)
    assert bits_equal(one, z[5])
    for leading in ((0,), (0, 3), (3, 0)):
        x, initial = (
            torch.zeros(*leading, k, dtype=torch.float64, requires_grad=True) for k in (4, 6)
        )
        weight = t.weight.clone().requires_grad_()
        found = encode(t._replace(x=x, initial=initial, weight=weight), problem.choices)
        assert found.shape == (*leading, 6)
        found.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == (*leading, 4)
        assert torch.equal(weight.grad, torch.zeros_like(weight))


def _kernels() -> Any:
    return backends.backend("lista", torch.device("cpu"))


def strided(x: Tensor, kind: str) -> Tensor:
    """Return the same values with other strides."""
    if kind == "transposed" and x.dim() > 1:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if kind == "every second":
        room = (
            torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan, dtype=x.dtype) if x.dim() else x
        )
        view = room[..., ::2] if x.dim() else x.clone()
        view.copy_(x)
        return view
    if kind == "offset":
        room = torch.full((x.numel() + 3,), torch.nan, dtype=x.dtype)
        view = room[3:].view(x.shape)
        view.copy_(x)
        return view
    if kind == "negated":
        return torch.complex(x, -x).conj().imag
    return x


@pytest.mark.parametrize("kind", ["transposed", "every second", "offset", "negated"])
@every_form
def test_strides(form: str, kind: str) -> None:
    problem = ListaProblem(
        form, (9, 4, 6, 3), torch.float64, threshold="both", layered=True, bias=True, initial=True
    )
    given, run = given_of(problem)
    leaves = leaves_of(given)
    expected = torch.autograd.grad(run(*leaves), leaves, problem.upstream)
    others = [strided(t, kind).requires_grad_() for t in given]
    assert all(torch.equal(a, b) for a, b in zip(others, given, strict=True))
    for _ in range(2):
        z = run(*others)
        assert bits_equal(z.detach(), run(*given))
        found = torch.autograd.grad(z, others, problem.upstream)
        assert all(bits_equal(a, b) for a, b in zip(found, expected, strict=True))
        assert bits_equal(run(*(t.detach() for t in others)), run(*given))


def test_expanded() -> None:
    """One row, one layer or one threshold in memory may be expanded; gradients of expanded tensors
    are summed.
    """
    x, w, d, theta = (
        torch.randn(1, 4).double(),
        torch.randn(4, 6).double() / 4,
        torch.randn(6, 4).double(),
        0.1,
    )
    row, shared, one = (t.clone().requires_grad_() for t in (x, w, torch.tensor([theta]).double()))
    upstream = torch.randn(5, 6, dtype=torch.float64)
    z = coupled_lista_encode(row.expand(5, 4), d, shared.expand(3, 4, 6), one.expand(6), n_layers=3)
    z.backward(upstream)
    alone = [t.clone().requires_grad_() for t in (x, w, torch.tensor(theta).double())]
    again = coupled_lista_encode(alone[0], d, alone[1], alone[2], n_layers=3)
    assert bits_equal(z.detach(), again.detach().expand(5, 6).contiguous())
    again.backward(upstream.sum(0, keepdim=True))
    for a, b in zip((row, shared, one), alone, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad.reshape(b.shape), b.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_form
def test_halves_are_computed_in_float32(form: str, dtype: torch.dtype) -> None:
    problem = ListaProblem(form, (9, 4, 6, 3), dtype, threshold="both", bias=True, initial=True)
    given, run = given_of(problem)
    leaves = leaves_of(given)
    z = run(*leaves)
    assert z.dtype == dtype
    wide = leaves_of(tuple(t.float() for t in given))
    expected = run(*wide)
    assert torch.equal(z, expected.to(dtype))
    found = torch.autograd.grad(z, leaves, problem.upstream)
    gradients = torch.autograd.grad(expected, wide, problem.upstream.float())
    for a, b, t in zip(found, gradients, given, strict=True):
        assert a.dtype == t.dtype
        assert torch.equal(a, b.to(dtype))


def test_numbers_beside_halves_are_not_rounded_to_halves() -> None:
    """A number is not rounded to half, just as torch does not round it in x * 0.1 for half x; 0.1
    in bfloat16 is off by 1e-3.
    """
    x = torch.tensor([[0.109375, -1.0]])
    w, s = torch.eye(2), torch.zeros(2, 2)
    for dtype in (torch.bfloat16, torch.float16):
        z = lista_encode(x.to(dtype), w.to(dtype), s.to(dtype), 0.1, n_layers=1)
        assert torch.equal(z, lista_encode(x, w, s, 0.1, n_layers=1).to(dtype))
        z = lista_encode(x.to(dtype), w.to(dtype), s.to(dtype), 0.0, step=1.001, n_layers=2)
        assert torch.equal(z, lista_encode(x, w, s, 0.0, step=1.001, n_layers=2).to(dtype))


def test_numbers_beside_float64_weights_are_float64() -> None:
    """The result is float64 whatever the dtype of x, and a number is promoted with it."""
    x = torch.randn(5, 4)
    w, s = torch.randn(4, 6, dtype=torch.float64), torch.randn(6, 6, dtype=torch.float64)
    for options in ({}, {"step": 0.3}):
        z = lista_encode(x, w, s, 0.1, n_layers=2, **options)
        assert torch.equal(z, lista_encode(x.double(), w, s, 0.1, n_layers=2, **options))


@every_form
def test_mixed_dtypes_promote(form: str) -> None:
    problem = ListaProblem(
        form, (9, 4, 6, 3), torch.float32, threshold="components", bias=True, initial=True
    )
    given, run = given_of(problem)
    wide = [t.double() for t in given]
    expected = run(*wide)
    for i, t in enumerate(given):
        mixed = [x.clone() for x in given]
        mixed[i] = wide[i]
        z = run(*(x.requires_grad_() for x in mixed))
        if t.dim() == 0:  # as in torch, it does not take part in promotion
            assert z.dtype == torch.float32
            continue
        assert z.dtype == torch.float64
        assert torch.equal(z, expected)
        for g, x in zip(torch.autograd.grad(z.sum(), mixed), mixed, strict=True):
            assert g.dtype == x.dtype
    halves = [t.bfloat16() if i == 0 else t for i, t in enumerate(given)]
    assert run(*halves).dtype == torch.float32


def test_autocast() -> None:
    """Autocast makes x bfloat16; float32 weights promote it, so the codes are float32."""
    layer = torch.nn.Linear(6, 4)
    w, s, theta = (torch.randn(4, 5).requires_grad_(), torch.randn(5, 5), torch.rand(5))
    with torch.autocast("cpu", torch.bfloat16):
        x = layer(torch.randn(7, 6))
        assert x.dtype == torch.bfloat16
        z = lista_encode(x, w, s, theta, n_layers=3)
        assert z.dtype == torch.float32
    assert torch.equal(z, lista_encode(x.detach().float(), w, s, theta, n_layers=3))
    z.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert bool(layer.weight.grad.any())
    assert w.grad is not None


def test_no_grad_and_inference_mode() -> None:
    given, run = given_of(problem_of("steps"))
    leaves = leaves_of(given)
    z = run(*leaves)
    with torch.no_grad():
        assert not run(*leaves).requires_grad
        assert torch.equal(run(*leaves), z)
    with torch.inference_mode():
        for _ in range(2):
            found = run(*leaves)
            assert found.is_inference()
            assert torch.equal(found, z)
        made = [t.clone() for t in given]
        assert torch.equal(run(*made), z)
        made[1].fill_(
            torch.nan
        )  # tensors of inference mode have no version: they are read every time
        with pytest.raises(ValueError, match="weight must be finite"):
            run(*made)
        made[1].copy_(given[1])
    assert torch.equal(run(*made), z)
    assert run(*leaves).requires_grad

"""Unrolled soft-thresholding on the CPU: every build and form through one checker, bits, NaN,
memory, bad input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_kernels.kernels import _core
from latent_kernels.kernels.lista import cpp_cpu, reference
from latent_kernels.sparse.lista import coupled_lista_encode, lista_encode
from tests.checks import bits_equal
from tests.lista.checks import (
    FORMS,
    LISTA_SIZES,
    NAMES,
    OPTIONS,
    Choices,
    ListaProblem,
    Sizes,
    Tensors,
    as_problem,
    backward,
    by_hand,
    check_every_build,
    clear_problem,
    forward,
)

Tensor = torch.Tensor
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Use one thread: for small products torch's threads would wait for one another."""
    torch.set_num_threads(1)


# --- against the truth ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", LISTA_SIZES, ids=str)
def test_cpp(sizes: Sizes, form: str) -> None:
    for options in OPTIONS:
        for dtype in DTYPES:
            check_every_build(cpp_cpu, clear_problem(form, sizes, dtype, **options))


@given(
    form=st.sampled_from(FORMS),
    sizes=st.tuples(st.integers(0, 20), st.integers(1, 40), st.integers(1, 70), st.integers(1, 5)),
    more_rows=st.sampled_from([0, 0, 0, 60]),
    dtype=st.sampled_from(DTYPES),
    options=st.fixed_dictionaries(
        {
            "threshold": st.sampled_from(["number", "components", "layers", "both"]),
            "theta": st.sampled_from([0.0, 0.1, 0.3, 1.0, 2.0, 1e6]),
            "layered": st.booleans(),
            "bias": st.booleans(),
            "initial": st.booleans(),
            "positive": st.booleans(),
            "select": st.sampled_from([None, 0, 1, 3, 100, "growing"]),
            "inputs": st.sampled_from([1.0, 0.3, 0.0]),
            "seed": st.integers(0, 9),
        }
    ),
)
@settings(max_examples=200)
def test_any_shape(
    form: str, sizes: Sizes, more_rows: int, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    rows, *rest = sizes
    check_every_build(cpp_cpu, ListaProblem(form, (rows + more_rows, *rest), dtype, **options))


@pytest.mark.parametrize("form", FORMS)
def test_reference(form: str) -> None:
    """The reference equals the papers' column form with every default written out."""
    for sizes in LISTA_SIZES:
        for options in OPTIONS:
            problem = ListaProblem(form, sizes, torch.float64, **options)
            z = reference.encode(as_problem(problem.tensors, problem.choices))
            want = by_hand(problem.tensors, problem.choices, torch.float64)[-1][1]
            assert z.shape == want.shape
            # Entries near one, products of at most 300 terms, at most 6 layers.
            assert torch.allclose(z, want, rtol=1e-12, atol=1e-12), (sizes, options)


def test_problems_are_of_every_density() -> None:
    """The problems have codes of every density; otherwise the other tests might compare zeros."""
    found = []
    for form in FORMS:
        for options in OPTIONS:
            problem = clear_problem(form, (70, 20, 50, 4), **options)
            codes = forward(cpp_cpu, problem.tensors, problem.choices, False)[0]
            found.append(float((codes != 0).float().mean()))
    assert min(found) == 0
    assert max(found) == 1
    for low, high in ((0.001, 0.05), (0.05, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.9)):
        assert any(low < share < high for share in found), (low, high)


@pytest.mark.parametrize("positive", [False, True])
def test_selection_of_ties_and_of_more_than_there_are(positive: bool) -> None:
    """Entries as large as the k-th largest pass; below the threshold none does. This is exact for
    small integers.
    """
    x = torch.tensor([[3.0, -3.0, 2.0, 1.0, -5.0, 0.0, 3.0], [1.0, 1.0, 0.0, -1.0, 1.0, 1.0, -1.0]])
    tensors = Tensors(x, torch.eye(7), torch.tensor(1.5))
    for k in (0, 1, 2, 3, 7, 100):
        choices = Choices(1, positive, (k,))
        z = forward(cpp_cpu, tensors, choices, False)[0]
        assert torch.equal(z, reference.encode(as_problem(tensors, choices))), k
        assert not z[1].any()
    expected = [3.0, 0, 0.5, 0, 0, 0, 3] if positive else [1.5, -1.5, 0.5, 0, -5, 0, 1.5]
    z = forward(cpp_cpu, tensors, Choices(1, positive, (1,)), False)[0]
    assert z[0].tolist() == expected
    upstream = torch.arange(1.0, 15).reshape(2, 7)
    got = ListaProblem("recurrent", (2, 7, 7, 1), positive=positive, select=1)
    got.tensors, got.upstream = tensors, upstream
    for name, g in got.run(cpp_cpu).items():
        assert torch.equal(g, got.formula(torch.float32)[name]), name


def test_at_its_threshold_an_entry_is_zero_and_so_is_its_gradient() -> None:
    tensors = Tensors(torch.tensor([[2.0, -2.0, 0.0, 3.0]]), torch.eye(4), torch.full((4,), 2.0))
    for theta, codes, gradient in (
        (2.0, [0, 0, 0, 1], [0, 0, 0, 1]),
        (0.0, [2, -2, 0, 3], [1, 1, 0, 1]),
    ):
        tensors = tensors._replace(threshold=torch.full((4,), theta))
        z, tape = forward(cpp_cpu, tensors, Choices(1), True)
        assert z.tolist() == [codes]
        assert not torch.signbit(z[z == 0]).any()
        wanted = (True, False, True, False, False, False, False, False)
        found = backward(cpp_cpu, tensors, Choices(1), tape, torch.ones(1, 4), wanted)
        assert found[0].tolist() == [gradient]
        assert found[2].tolist() == [
            -g * (1 if c >= 0 else -1) for g, c in zip(gradient, codes, strict=True)
        ]


@pytest.mark.parametrize("form", FORMS)
def test_every_gradient_alone(form: str) -> None:
    """A gradient has the same bits whichever other gradients are wanted."""
    for sizes in ((70, 20, 50, 4), (3, 7, 5, 2)):
        for options in (OPTIONS[1], OPTIONS[3], OPTIONS[6]):
            problem = ListaProblem(form, sizes, **options)
            together = problem.run(cpp_cpu)
            for name, t in zip(NAMES, problem.tensors, strict=True):
                if t is not None:
                    alone = problem.run(cpp_cpu, tuple(other == name for other in NAMES))
                    assert alone.keys() == {"z", f"d_{name}"}
                    assert bits_equal(alone[f"d_{name}"], together[f"d_{name}"]), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "sizes", [(0, 3, 4, 2), (3, 0, 4, 2), (3, 4, 0, 2), (9, 0, 0, 2), (0, 0, 0, 1)], ids=str
)
def test_sizes_of_zero(sizes: Sizes, form: str) -> None:
    """Without rows, features or components nothing is read, and gradients that sum over nothing are
    zeros.
    """
    for options in (*OPTIONS[:6], {**OPTIONS[3], "select": 0}):
        problem = ListaProblem(form, sizes, **options)
        found = problem.run(cpp_cpu)
        for name, x in found.items():
            assert not x.isnan().any(), name
        if 0 not in sizes[2:]:
            want = problem.formula(torch.float32)
            for name, x in found.items():
                assert torch.allclose(x, want[name], atol=1e-6), name


def test_no_components_with_initial_codes() -> None:
    for x in (torch.ones(3, 4), torch.ones(2, 3, 4), torch.ones(4)):
        start = torch.ones(*x.shape[:-1], 0)
        z = lista_encode(
            x, torch.ones(4, 0), torch.ones(0, 0), 0.1, n_layers=2, initial=start, select=1
        )
        assert z.shape == start.shape


# --- bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options", [OPTIONS[1], OPTIONS[3], OPTIONS[9]], ids=["shared", "layered", "sparse"]
)
def test_bits_do_not_depend_on_threads(form: str, options: dict[str, Any]) -> None:
    """The bits do not depend on threads, for enough rows for several tiles, chunks and threads;
    seven threads get smaller tiles.
    """
    dtype = torch.float64 if options is OPTIONS[3] else torch.float32
    problem = ListaProblem(form, (520, 400, 100, 3), dtype, **options)
    tensors, choices, wanted = (
        problem.tensors,
        problem.choices,
        tuple(t is not None for t in problem.tensors),
    )

    def both() -> list[Tensor | None]:
        z, tape = forward(cpp_cpu, tensors, choices, True)
        return [z, *backward(cpp_cpu, tensors, choices, tape, problem.upstream, wanted)]

    first = both()
    for threads in (2, 7):
        torch.set_num_threads(threads)
        for name, a, b in zip(("z", *NAMES), first, both(), strict=True):
            assert a is None or (b is not None and bits_equal(a, b)), (threads, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_rows_do_not_depend_on_their_batch(form: str, dtype: torch.dtype) -> None:
    """Codes and gradients of a row have the same bits alone, where the row is gathered, and in a
    batch, where its tile may be a dense product.
    """
    for options in OPTIONS:
        problem = ListaProblem(form, (69, 19, 45, 3), dtype, **options)
        rows = ("z", "d_x", "d_initial")
        whole = {name: x for name, x in problem.run(cpp_cpu).items() if name in rows}
        for part in ([0], [68], [5, 6, 7], [3, 60, 2, 9, 33], list(range(0, 69, 2))):
            tensors, upstream = problem.tensors, problem.upstream
            some = tensors._replace(
                x=tensors.x[part],
                initial=None if tensors.initial is None else tensors.initial[part],
            )
            problem.tensors, problem.upstream = some, upstream[part]
            found = problem.run(cpp_cpu)
            problem.tensors, problem.upstream = tensors, upstream
            for name, x in whole.items():
                assert bits_equal(found[name], x[part]), (name, part, options)


@pytest.mark.parametrize("form", FORMS)
def test_a_dense_row_makes_no_difference_to_sparse_ones(form: str) -> None:
    """A nearly empty row gets the same bits alone and with 3 full rows, which make their common
    tile dense.
    """
    problem = ListaProblem(form, (8, 30, 100, 4), theta=0.8)
    loud = problem.tensors.x * torch.tensor([50.0, 50, 50, 0.5, 50, 50, 50, 0.5])[:, None]
    problem.tensors = problem.tensors._replace(x=loud)
    mixed = problem.run(cpp_cpu)
    shares = (mixed["z"] != 0).float().mean(1)
    assert shares[:3].min() > 0.5
    assert shares[3::4].max() < 0.3
    problem.tensors = problem.tensors._replace(x=loud[3::4].contiguous())
    problem.upstream = problem.upstream[3::4].contiguous()
    alone = problem.run(cpp_cpu)
    for name in ("z", "d_x"):
        assert bits_equal(alone[name], mixed[name][3::4]), name


@pytest.mark.parametrize("form", FORMS)
def test_densities_that_change_between_layers_and_tiles_make_no_difference(form: str) -> None:
    """A row has the same bits alone and where its tile becomes dense and sparse again, with a tape
    and without.
    """
    rows, layers = 300, 6
    problem = ListaProblem(form, (rows, 30, 100, layers), threshold="both", layered=True)
    theta = torch.tensor([0.01, 2.0, 0.01, 0.01, 2.0, 0.01])[:, None].expand(layers, 100)
    quiet = torch.where(torch.arange(rows) // 128 == 1, 0.01, 1.0)[:, None]
    tensors = problem.tensors._replace(
        x=problem.tensors.x * quiet, threshold=theta.clone().contiguous()
    )
    z, _ = forward(cpp_cpu, tensors, problem.choices)
    kept, tape = forward(cpp_cpu, tensors, problem.choices, True)
    assert tape is not None
    assert bits_equal(kept, z)
    shares = [n / (rows * 100) for n in tape.held.nonzeros[1:]]
    assert min(shares) < 0.2 < 0.5 < max(shares)
    for i in (0, 127, 128, 255, 256, 299):
        alone, _ = forward(cpp_cpu, tensors._replace(x=tensors.x[i : i + 1]), problem.choices)
        assert bits_equal(alone, z[i : i + 1]), i


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_features_and_few_rows(dtype: torch.dtype) -> None:
    """The matrix's columns are copied where inputs are sparse, however many features there are."""
    generator = torch.Generator().manual_seed(0)
    x, weight, recurrent = (
        torch.randn(*size, dtype=dtype, generator=generator)
        for size in ((16, 1000), (1000, 128), (128, 128))
    )
    x *= torch.rand(16, 1000, generator=generator) < 0.3
    codes = [lista_encode(rows, weight / 30, recurrent / 10, 0.1, n_layers=3) for rows in (x, *x)]
    assert bits_equal(codes[0], torch.stack(codes[1:]))


@pytest.mark.parametrize("form", FORMS)
def test_bits_do_not_depend_on_build(form: str) -> None:
    """The bits do not depend on the build at sizes where lists and dense tiles, pairs and
    transposed matrices all occur; float32 is compared with the truth too.
    """
    for options in (OPTIONS[1], OPTIONS[3], OPTIONS[6], OPTIONS[9]):
        for dtype in DTYPES:
            check_every_build(cpp_cpu, ListaProblem(form, (130, 50, 203, 4), dtype, **options))


# --- NaN and infinities ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("form", FORMS)
def test_a_bad_row_stays_one_row(simd_build: str, form: str, value: float) -> None:
    for options in (OPTIONS[0], OPTIONS[4], OPTIONS[7], OPTIONS[8], OPTIONS[9]):
        for rows in (1, 9, 70):
            problem = ListaProblem(form, (rows, 12, 45, 3), **options)
            clean = problem.run(cpp_cpu)
            bad = rows // 2
            x = problem.tensors.x.clone()
            x[bad, 4] = value
            problem.tensors = problem.tensors._replace(x=x)
            found = problem.run(cpp_cpu)
            others = torch.arange(rows) != bad
            assert not found["z"][bad].isfinite().all()
            for name in ("z", "d_x", "d_initial"):
                if name in clean:
                    assert bits_equal(found[name][others], clean[name][others]), (name, options)


def test_huge_thresholds_do_not_hide_nan() -> None:
    x = torch.ones(3, 4)
    x[1, 2] = torch.nan
    for positive in (False, True):
        z = lista_encode(x, torch.ones(4, 5), torch.ones(5, 5), 1e30, n_layers=3, positive=positive)
        assert z[1].isnan().all()
        assert not z[[0, 2]].any()


# --- iterative soft-thresholding ------------------------------------------------------------------


def soft(u: Tensor, theta: float | Tensor) -> Tensor:
    return torch.sign(u) * torch.clamp(u.abs() - theta, min=0)


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 30])
def test_equals_iterative_soft_thresholding(layers: int, initial: bool) -> None:
    """All forms with the weights of `from_dictionary` are ISTA for the Lasso in scikit-learn's
    layout.
    """
    alpha, m, n = 0.2, 20, 35
    dictionary = torch.nn.functional.normalize(torch.randn(n, m, dtype=torch.float64))
    x = torch.randn(11, m, dtype=torch.float64)
    lipschitz = float(torch.linalg.matrix_norm(dictionary, 2)) ** 2
    z0 = torch.randn(11, n, dtype=torch.float64) * (torch.rand(11, n) < 0.3) if initial else None
    z = torch.zeros(11, n, dtype=torch.float64) if z0 is None else z0
    for _ in range(layers):
        z = soft(z - (z @ dictionary - x) @ dictionary.T / lipschitz, alpha / lipschitz)
    assert 0 < float((z != 0).double().mean()) < 0.95
    gram, unit = dictionary @ dictionary.T, torch.eye(n, dtype=torch.float64)
    options: dict[str, Any] = {"n_layers": layers, "initial": z0}
    theta, step = alpha / lipschitz, 1 / lipschitz
    for build in _core.simd_builds():
        _core.select_simd_build(build)
        for threshold in (
            theta,
            torch.full((n,), theta).double(),
            torch.full((layers, 1), theta).double(),
        ):
            forms = [
                lista_encode(
                    x, dictionary.T / lipschitz, unit - gram / lipschitz, threshold, **options
                ),
                lista_encode(x, dictionary.T, -gram, threshold, step=step, **options),
                coupled_lista_encode(x, dictionary, dictionary.T, threshold, step=step, **options),
                coupled_lista_encode(x, dictionary, dictionary.T / lipschitz, threshold, **options),
            ]
            for found in forms:
                # A contraction: the roundings of each step do not grow.
                assert torch.allclose(
                    found, z, rtol=0, atol=1e-13 if threshold is theta else 1e-7 * layers
                )


def test_many_layers_reach_the_lasso() -> None:
    """The codes satisfy the Lasso's optimality conditions: |D (x - z D)| <= alpha, equal to alpha
    sign(z) where z is not zero.
    """
    alpha, m, n = 0.3, 30, 20
    dictionary = torch.nn.functional.normalize(torch.randn(n, m, dtype=torch.float64))
    x = torch.randn(6, m, dtype=torch.float64)
    step = 1 / float(torch.linalg.matrix_norm(dictionary, 2)) ** 2
    z = coupled_lista_encode(x, dictionary, dictionary.T, alpha * step, step=step, n_layers=3000)
    slope = (x - z @ dictionary) @ dictionary.T
    assert float(slope.abs().max()) <= alpha + 1e-9
    assert torch.allclose(slope[z != 0], alpha * torch.sign(z[z != 0]), atol=1e-9)


# --- memory ---------------------------------------------------------------------------------------


def bytes_saved(run: Callable[[], Tensor], given: list[Tensor]) -> tuple[int, Tensor]:
    """Return the bytes that autograd keeps besides the inputs themselves, with each storage counted
    once.
    """
    known = {t.untyped_storage().data_ptr() for t in given}
    found: dict[int, int] = {}
    held = []

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
            held.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        z = run()
    return sum(found.values()), z


@pytest.mark.parametrize("form", ["recurrent", "steps", "residual"])
def test_training_keeps_a_fifth_of_what_torch_keeps(form: str) -> None:
    """At 5% density training keeps at most a fifth of the memory of the leanest plain torch, where
    softshrink keeps one tensor and the product with S another.
    """
    rows, m, n, layers = 300, 40, 200, 6
    dictionary = torch.nn.functional.normalize(torch.randn(n, m))
    x = torch.randn(rows, m)
    step = 1 / float(torch.linalg.matrix_norm(dictionary, 2)) ** 2
    gram = -dictionary @ dictionary.T
    if form == "recurrent":
        gram = torch.eye(n) + step * gram
    weight = (dictionary.T * (step if form == "recurrent" else 1)).contiguous()
    given = [t.requires_grad_() for t in (x, weight, gram, dictionary)]

    def ours(theta: float) -> Tensor:
        if form == "residual":
            return coupled_lista_encode(x, dictionary, weight, theta, step=step, n_layers=layers)
        return lista_encode(
            x, weight, gram, theta, step=step if form == "steps" else None, n_layers=layers
        )

    def plain(theta: float) -> Tensor:
        z = None
        drive = x @ weight
        for _ in range(layers):
            if form == "residual":
                u = drive if z is None else (x - z @ dictionary) @ weight
            else:
                u = drive if z is None else drive + z @ gram
            if form != "recurrent":
                u = step * u if z is None else torch.add(z, u, alpha=step)
            z = torch.nn.functional.softshrink(u, theta)
        assert z is not None
        return z

    low, high = 0.0, 5.0
    for _ in range(30):
        theta = (low + high) / 2
        density = sum(ours(theta).grad_fn.tape.held.nonzeros) / (rows * n * layers)  # type: ignore[union-attr]
        low, high = (theta, high) if density > 0.05 else (low, theta)
    assert 0.04 < density < 0.06
    kept, z = bytes_saved(lambda: ours(theta), given)
    theirs, expected = bytes_saved(lambda: plain(theta), given)
    assert torch.allclose(z, expected, atol=1e-4)
    nonzeros = z.grad_fn.tape.held.nonzeros  # type: ignore[union-attr]
    assert len(nonzeros) == layers + 1
    assert nonzeros[0] == 0
    assert nonzeros[-1] == int((z != 0).sum())
    # An index and a value each, with steps also the entry before the threshold; and where every row
    # begins.
    tape = sum(nonzeros) * (8 if form == "recurrent" else 12) + 4 * (rows + 64) * layers
    assert kept <= 64, "more than numbers is kept beside the inputs and the tape"
    assert 5 * (kept + tape) <= theirs, (kept, tape, theirs)


def test_the_tape_counts_codes_of_every_layer() -> None:
    problem = clear_problem("steps", (70, 20, 50, 4), initial=True)
    _, tape = forward(cpp_cpu, problem.tensors, problem.choices, True)
    assert problem.tensors.initial is not None
    counts = [int((problem.tensors.initial != 0).sum())]
    counts += [
        int((z != 0).sum()) for _, z in by_hand(problem.tensors, problem.choices, torch.float32)
    ]
    assert tape is not None
    assert tape.held.nonzeros == counts


# --- bad input ------------------------------------------------------------------------------------

X, W, S, D = torch.zeros(4, 5), torch.zeros(5, 3), torch.zeros(3, 3), torch.zeros(3, 5)
NAN, INF = float("nan"), float("inf")


def encode(
    x: Any = X,
    weight: Any = W,
    recurrent: Any = S,
    threshold: Any = 0.1,
    n_layers: Any = 2,
    **options: Any,
) -> Tensor:
    return lista_encode(x, weight, recurrent, threshold, n_layers=n_layers, **options)


def coupled(
    x: Any = X,
    dictionary: Any = D,
    weight: Any = W,
    threshold: Any = 0.1,
    n_layers: Any = 2,
    **options: Any,
) -> Tensor:
    return coupled_lista_encode(x, dictionary, weight, threshold, n_layers=n_layers, **options)


def filled(value: float, *shape: int) -> Tensor:
    """Return ones, the last of them replaced by `value`."""
    x = torch.ones(shape)
    x.view(-1)[-1] = value
    return x


BOTH: list[tuple[dict[str, Any], Any, str]] = [
    ({"x": [1.0]}, TypeError, r"x must be a torch.Tensor; got list"),
    ({"x": X.long()}, TypeError, r"x must have dtype float32.*int64"),
    ({"x": torch.tensor(1.0)}, ValueError, r"x must have shape \[\.\.\., D\].*scalar"),
    ({"x": X.to_sparse()}, TypeError, r"x must be a dense"),
    ({"x": torch.zeros(4, 6)}, ValueError, r"must have shape .*\(4, 6\); got"),
    ({"weight": None}, TypeError, r"weight must be a torch.Tensor; got NoneType"),
    ({"weight": W.bool()}, TypeError, r"weight must have dtype float32.*bool"),
    ({"weight": W[0]}, ValueError, r"weight must have shape \(5, 3\).*got \(3,\)"),
    ({"weight": torch.tensor(1.0)}, ValueError, r"weight must have shape"),
    ({"weight": W.to("meta")}, ValueError, r"weight must be on the device of x, cpu; got meta"),
    ({"weight": filled(NAN, 5, 3)}, ValueError, r"weight must be finite"),
    ({"weight": filled(-INF, 5, 3)}, ValueError, r"weight must be finite"),
    ({"threshold": "0.1"}, TypeError, r"threshold must be a number or a torch.Tensor; got str"),
    ({"threshold": None}, TypeError, r"threshold must be a number or a torch.Tensor; got NoneType"),
    ({"threshold": True}, TypeError, r"threshold must be a number or a torch.Tensor; got bool"),
    ({"threshold": torch.tensor(1)}, TypeError, r"threshold must have dtype float32.*int64"),
    ({"threshold": -0.1}, ValueError, r"threshold must be >= 0; got -0\.1"),
    ({"threshold": NAN}, ValueError, r"threshold must be finite; got nan"),
    ({"threshold": INF}, ValueError, r"threshold must be finite; got inf"),
    ({"threshold": filled(-0.5, 3)}, ValueError, r"threshold must be >= 0; got -0\.5"),
    ({"threshold": filled(NAN, 3)}, ValueError, r"threshold must be finite"),
    ({"threshold": filled(INF, 2, 1)}, ValueError, r"threshold must be finite"),
    ({"threshold": torch.zeros(2)}, ValueError,
     r"threshold must be a number or have shape .*\(2, 3\); got \(2,\)"),
    ({"threshold": torch.zeros(3, 1)}, ValueError, r"threshold must .*got \(3, 1\)"),
    ({"threshold": torch.zeros(1, 3)}, ValueError, r"threshold must .*got \(1, 3\)"),
    ({"threshold": torch.zeros(2, 1, 3)}, ValueError, r"threshold must .*got \(2, 1, 3\)"),
    ({"threshold": torch.zeros(3, device="meta")}, ValueError,
     r"threshold must be on the device of x"),
    ({"n_layers": 0}, ValueError, r"n_layers must be an int >= 1; got 0"),
    ({"n_layers": -2}, ValueError, r"n_layers must be an int >= 1; got -2"),
    ({"n_layers": 2.0}, TypeError, r"n_layers must be an int >= 1; got 2\.0"),
    ({"n_layers": True}, TypeError, r"n_layers must be an int >= 1; got True"),
    ({"step": "a"}, TypeError, r"step must be a number or a torch.Tensor; got str"),
    ({"step": False}, TypeError, r"step must be a number or a torch.Tensor; got bool"),
    ({"step": NAN}, ValueError, r"step must be finite; got nan"),
    ({"step": filled(INF, 2)}, ValueError, r"step must be finite"),
    ({"step": torch.ones(3)}, ValueError,
     r"step must be a number or have shape \(2,\); got \(3,\)"),
    ({"step": torch.ones(2, 1)}, ValueError,
     r"step must be a number or have shape \(2,\); got \(2, 1\)"),
    ({"step": torch.tensor([1, 1])}, TypeError, r"step must have dtype float32.*int64"),
    ({"step": torch.ones(2, device="meta")}, ValueError, r"step must be on the device of x"),
    ({"initial": torch.zeros(3, 3)}, ValueError, r"initial must have shape \(4, 3\); got \(3, 3\)"),
    ({"initial": torch.zeros(3)}, ValueError, r"initial must have shape \(4, 3\); got \(3,\)"),
    ({"initial": torch.zeros(4, 3, dtype=torch.int32)}, TypeError,
     r"initial must have dtype float32.*int32"),
    ({"initial": torch.zeros(4, 3, device="meta")}, ValueError,
     r"initial must be on the device of x"),
    ({"initial": [[0.0]]}, TypeError, r"initial must be a torch.Tensor; got list"),
    ({"initial": torch.zeros(4, 3).to_sparse()}, TypeError, r"initial must be a dense"),
    ({"threshold": torch.zeros(3).to_sparse()}, TypeError, r"threshold must be a dense"),
    ({"select": -1}, ValueError,
     r"select must be an int >= 0, or one for each of the 2 layers; got -1"),
    ({"select": True}, TypeError, r"select must be .*got True"),
    ({"select": [1]}, ValueError, r"select must be .*got \[1\]"),
    ({"select": (1, 2, 3)}, ValueError, r"select must be .*got \(1, 2, 3\)"),
    ({"select": (1, 2.5)}, TypeError, r"select must be .*got \(1, 2\.5\)"),
    ({"select": (1, -2)}, ValueError, r"select must be .*got \(1, -2\)"),
    ({"select": 2.5}, (TypeError, ValueError), r"select must be .*got 2\.5"),
    ({"positive": 2, "n_layers": 1}, TypeError, r"positive must be .*got 2"),
    ({"positive": None}, TypeError, r"positive must be .*got None"),
]  # fmt: skip
ONE = [
    (encode, {"weight": torch.zeros(3, 5)}, ValueError,
     r"weight must have shape \(5, 5\).*got \(3, 5\)"),
    (encode, {"weight": torch.zeros(2, 5, 3)}, ValueError,
     r"weight must have shape \(5, 3\).*got \(2, 5, 3\)"),
    (encode, {"recurrent": torch.zeros(3, 4)}, ValueError,
     r"recurrent must have shape \(3, 3\) or \(2, 3, 3\)"),
    (encode, {"recurrent": torch.zeros(3, 3, 3)}, ValueError,
     r"recurrent must have shape .*got \(3, 3, 3\)"),
    (encode, {"recurrent": torch.zeros(1, 3, 3)}, ValueError,
     r"recurrent must have shape .*got \(1, 3, 3\)"),
    (encode, {"recurrent": S.long()}, TypeError, r"recurrent must have dtype float32.*int64"),
    (encode, {"recurrent": [[1.0]]}, TypeError, r"recurrent must be a torch.Tensor; got list"),
    (encode, {"recurrent": S.to_sparse()}, TypeError, r"recurrent must be a dense"),
    (encode, {"recurrent": S.to("meta")}, ValueError, r"recurrent must be on the device of x"),
    (encode, {"recurrent": filled(NAN, 3, 3)}, ValueError, r"recurrent must be finite"),
    (encode, {"recurrent": filled(INF, 2, 3, 3)}, ValueError, r"recurrent must be finite"),
    (encode, {"recurrent": None}, ValueError, r"recurrent may be None only where n_layers is 1"),
    (encode, {"recurrent": None, "n_layers": 1, "initial": X[:, :3]}, ValueError,
     r"recurrent may be None only"),
    (encode, {"bias": torch.zeros(5)}, ValueError, r"bias must have shape \(3,\).*got \(5,\)"),
    (encode, {"bias": torch.zeros(2, 3)}, ValueError, r"bias must have shape \(3,\).*got \(2, 3\)"),
    (encode, {"bias": 1.0}, TypeError, r"bias must be a torch.Tensor; got float"),
    (encode, {"bias": torch.zeros(3).long()}, TypeError, r"bias must have dtype float32.*int64"),
    (encode, {"bias": filled(NAN, 3)}, ValueError, r"bias must be finite"),
    (encode, {"bias": torch.zeros(3, device="meta")}, ValueError,
     r"bias must be on the device of x"),
    (coupled, {"weight": torch.zeros(3, 5, 3)}, ValueError,
     r"weight must have shape \(5, 3\) or \(2, 5, 3\)"),
    (coupled, {"weight": filled(NAN, 2, 5, 3)}, ValueError, r"weight must be finite"),
    (coupled, {"dictionary": D.t()}, ValueError,
     r"dictionary must have shape \(3, 5\).*got \(5, 3\)"),
    (coupled, {"dictionary": torch.zeros(2, 3, 5)}, ValueError,
     r"dictionary must have shape .*got \(2, 3, 5\)"),
    (coupled, {"dictionary": None}, TypeError, r"dictionary must be a torch.Tensor; got NoneType"),
    (coupled, {"dictionary": [1.0]}, TypeError, r"dictionary must be a torch.Tensor; got list"),
    (coupled, {"dictionary": D.long()}, TypeError, r"dictionary must have dtype float32.*int64"),
    (coupled, {"dictionary": D.to("meta")}, ValueError, r"dictionary must be on the device of x"),
    (coupled, {"dictionary": filled(INF, 3, 5)}, ValueError, r"dictionary must be finite"),
]  # fmt: skip
BAD = [(call, *case) for call in (encode, coupled) for case in BOTH] + ONE


@pytest.mark.parametrize(("call", "changed", "error", "message"), BAD)
def test_bad_input(
    call: Any, changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    assert call().shape == (4, 3)
    with pytest.raises(error, match=message):
        call(**changed)

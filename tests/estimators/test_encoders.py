"""The encoders as torch modules: initial parameters, codes, and the methods of torch modules."""

from __future__ import annotations

import copy
import functools
import io
from typing import Any

import numpy as np
import pytest
import torch

from latent_kernels.kernels import backends
from latent_kernels.sparse.encoders import (
    LISTA,
    LCoD,
    PSDEncoder,
    analytic_weight,
    generalized_coherence,
)

Tensor = torch.Tensor
M, N, ROWS, LAYERS, ALPHA = 11, 23, 9, 5, 0.4


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Use one thread, since the test computes thousands of products of a few numbers."""
    torch.set_num_threads(1)


every_variant = pytest.mark.parametrize("variant", ["lista", "cp", "alista", "step"])
OPTIONS: list[dict[str, Any]] = [{}, {"tied": False}, {"thresholds": "shared"}]
STARTS = [("step", {}), *((variant, options) for variant in ("lista", "cp") for options in OPTIONS)]
DICTIONARIES = [
    "gaussian",
    "scaled",
    "wide",
    "deficient",
    "one component",
    "one feature",
    "coherent",
]


def dictionary(kind: str = "gaussian", dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(5)
    shape = {"wide": (N, 2 * N), "one component": (1, M), "one feature": (N, 1)}.get(kind, (N, M))
    d = torch.randn(shape, generator=g, dtype=torch.float64)
    if kind == "scaled":  # rows of lengths from 1e-3 to 1e3
        d *= torch.logspace(-3, 3, N, dtype=torch.float64)[:, None]
    if kind == "deficient":  # rank 4, as patches without their mean are of a rank below their size
        d = d[:, :4] @ torch.randn(4, M, generator=g, dtype=torch.float64)
    if kind == "coherent":
        d = 1 + 0.1 * d
    return d.to(dtype)


def rows(m: int = M, dtype: torch.dtype = torch.float64, n: int = ROWS) -> Tensor:
    return torch.randn(n, m, generator=torch.Generator().manual_seed(8), dtype=torch.float64).to(
        dtype
    )


def soft(u: Tensor, threshold: Tensor | float, positive: bool = False) -> Tensor:
    if positive:
        return torch.clamp(u - threshold, min=0)
    return torch.sign(u) * torch.clamp(u.abs() - threshold, min=0)


def norm2(d: Tensor) -> float:
    return float(torch.linalg.matrix_norm(d.double(), 2)) ** 2


def ista(
    x: Tensor, d: Tensor, alpha: float, steps: int, z: Tensor | None = None, positive: bool = False
) -> Tensor:
    """Return ISTA's codes by hand, with the exact ||D||^2."""
    bound = norm2(d)
    z = x.new_zeros(len(x), len(d)) if z is None else z
    for _ in range(steps):
        z = soft(z + (x - z @ d) @ d.T / bound, alpha / bound, positive)
    return z


def objective(x: Tensor, z: Tensor, d: Tensor, alpha: float) -> Tensor:
    return 0.5 * (x - z @ d).square().sum(-1) + alpha * z.abs().sum(-1)


def make(kind: str, dtype: torch.dtype = torch.float64, **options: Any) -> torch.nn.Module:
    """Return any of the encoders for the Gaussian dictionary."""
    d = dictionary(dtype=dtype)
    if kind == "lcod":
        return LCoD.from_dictionary(d, ALPHA, LAYERS, **options)
    if kind == "psd":
        return PSDEncoder.from_dictionary(d, **options)
    return LISTA.from_dictionary(d, ALPHA, LAYERS, variant=kind, **options)  # type: ignore[arg-type]


every_encoder = pytest.mark.parametrize("kind", ["lista", "cp", "alista", "step", "lcod", "psd"])


# --- starts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("kind", DICTIONARIES)
@pytest.mark.parametrize(("variant", "options"), STARTS, ids=str)
def test_starts_at_ista(variant: Any, options: Any, kind: str, positive: bool) -> None:
    """The initial codes are ISTA's: in float64 to rounding, in float32 within 2x the error of ISTA
    by hand and a few roundings.
    """
    d = dictionary(kind)
    x = rows(d.size(1)) * norm2(d) ** 0.5
    alpha = ALPHA * norm2(d) ** 0.5
    truth = ista(x, d, alpha, LAYERS, positive=positive)
    encoder = LISTA.from_dictionary(d, alpha, LAYERS, variant=variant, positive=positive, **options)
    scale = float(truth.abs().max())
    assert float((truth != 0).double().mean()) > 0.02
    assert torch.allclose(encoder(x), truth, rtol=1e-12, atol=1e-13 * scale)
    single = LISTA.from_dictionary(
        d.float(), alpha, LAYERS, variant=variant, positive=positive, **options
    )(x.float())
    by_hand = ista(x.float(), d.float(), alpha, LAYERS, positive=positive)
    assert single.dtype == torch.float32
    error = float((single.detach().double() - truth).abs().max())
    assert error <= 2 * float((by_hand.double() - truth).abs().max()) + 64 * 2.0**-24 * scale


@every_variant
def test_steps_are_safe_at_the_start(variant: Any) -> None:
    """From any initial code, ISTA's objective falls with each layer; ALISTA's layer is nonexpansive
    as in its proof.
    """
    for kind in DICTIONARIES:
        d = dictionary(kind)
        encoder = LISTA.from_dictionary(d, ALPHA, 1, variant=variant)
        x, z = rows(d.size(1)), rows(len(d))
        if variant == "alista":
            assert encoder.step is not None
            weight = analytic_weight(d)
            scales = (
                (d @ weight).square().sum(0).sqrt()
            )  # D W is a projection times the squares of these
            layer = encoder.step.detach()[0] * (d @ weight) * scales[:, None] / scales
            assert torch.allclose(layer, layer.T, atol=1e-9)
            eigenvalues = torch.linalg.eigvalsh(layer)
            assert float(eigenvalues.min()) > -1e-9
            assert float(eigenvalues.max()) <= 1
            continue
        for _ in range(4):
            after = encoder(x, z).detach()
            fell = objective(x, z, d, ALPHA) - objective(x, after, d, ALPHA)
            assert float(fell.min()) >= -1e-12 * float(objective(x, z, d, ALPHA).max())
            z = after


def test_alista_starts_at_its_formula() -> None:
    d, x = dictionary("scaled"), rows()
    encoder = LISTA.from_dictionary(d, ALPHA, LAYERS, variant="alista", thresholds="component")
    weight = analytic_weight(d)
    gamma = 1 / float((d @ weight).square().sum(0).max())
    theta = gamma * ALPHA / d.square().sum(-1)
    z = x.new_zeros(ROWS, N)
    for _ in range(LAYERS):
        z = soft(z + gamma * (x - z @ d) @ weight, theta)
    assert torch.allclose(encoder(x), z, rtol=1e-10, atol=1e-12)


def test_step_lengths_bound_the_dictionary_as_rounded() -> None:
    for dtype in (torch.float32, torch.float64):
        for seed in range(20):
            d = torch.randn(7, 30, generator=torch.Generator().manual_seed(seed), dtype=dtype)
            step = LISTA.from_dictionary(d, ALPHA, 1, variant="step").step
            assert step is not None
            gain = float(step.detach().double()) * norm2(d)
            assert 1 - 1e-4 < gain <= 1


def test_random_start() -> None:
    torch.manual_seed(3)
    a = LISTA(M, N, LAYERS, variant="cp", alpha=0.2)
    torch.manual_seed(3)
    b = LISTA(M, N, LAYERS, variant="cp", alpha=0.2)
    assert a.dictionary is not None
    assert b.dictionary is not None
    assert torch.equal(a.dictionary, b.dictionary)
    assert torch.allclose(a.dictionary.norm(dim=-1), torch.ones(N))
    assert torch.allclose(
        a(rows(dtype=torch.float32)),
        ista(rows(dtype=torch.float32), a.dictionary, 0.2, LAYERS),
        atol=1e-6,
    )
    for encoder in (LISTA(M, N, LAYERS), LCoD(M, N, 4), PSDEncoder(M, N)):
        assert encoder(rows(dtype=torch.float32)).shape == (ROWS, N)


def test_the_dictionary_is_not_shared() -> None:
    for kind in ("gaussian", "one component", "one feature"):
        d = dictionary(kind)
        kept = d.clone()
        for variant in ("lista", "cp", "alista", "step"):
            encoder = LISTA.from_dictionary(d, ALPHA, 2, variant=variant)  # type: ignore[arg-type]
            with torch.no_grad():
                for tensor in (*encoder.parameters(), *encoder.buffers()):
                    tensor.zero_()
        assert torch.equal(d, kept)


def test_arrays_and_dtypes() -> None:
    d = dictionary().numpy()
    d.flags.writeable = False
    fortran = np.asfortranarray(d.astype(np.float32))
    assert LISTA.from_dictionary(d, ALPHA, 2).weight.dtype == torch.float64
    assert torch.equal(
        LISTA.from_dictionary(fortran, ALPHA, 2)(rows().float()),
        make("lista", torch.float32)(rows().float(), n_layers=2),
    )
    assert LCoD.from_dictionary(d, ALPHA, 2, dtype=torch.float32).weight.dtype == torch.float32
    half = LISTA.from_dictionary(d, ALPHA, LAYERS, dtype=torch.bfloat16)
    z = half(rows(dtype=torch.bfloat16))
    assert z.dtype == torch.bfloat16
    x, rounded = rows(dtype=torch.bfloat16).double(), dictionary(dtype=torch.bfloat16).double()
    error = z.detach().double() - ista(x, rounded, ALPHA, LAYERS)
    assert float(error.abs().max()) < 0.05  # matrices rounded to 2^-9, in each of 5 layers


# --- layers, selection, options -------------------------------------------------------------------


def by_hand(encoder: LISTA, x: Tensor, layers: int, initial: Tensor | None = None) -> Tensor:
    """Return the codes by the class's formulas, from its parameters."""

    def of(tensor: Tensor, t: int, dims: int) -> Tensor:
        return tensor if tensor.dim() == dims else tensor[t if tensor.size(0) > 1 else 0]

    z = initial
    for t in range(layers):
        gamma = 1 if encoder.step is None else encoder.step[t]
        threshold = (
            encoder.alpha * gamma if encoder.threshold is None else of(encoder.threshold, t, 1)
        )
        if encoder.variant == "lista":
            u = x @ encoder.weight + (0 if encoder.bias is None else encoder.bias)
            if z is not None:
                assert encoder.recurrent is not None
                u = u + z @ of(encoder.recurrent, t, 2)
        else:
            z = x.new_zeros(len(x), encoder.n_components) if z is None else z
            assert encoder.dictionary is not None
            u = z + gamma * (x - z @ encoder.dictionary) @ of(encoder.weight, t, 2)
        kept = soft(u, threshold, encoder.positive)
        if encoder.select is not None:
            share = min(encoder.select[0] * (t + 1), encoder.select[1])
            size = u if encoder.positive else u.abs()
            order = size.argsort(-1, descending=True)[:, : round(share * u.size(-1))]
            passes = torch.zeros_like(u, dtype=torch.bool).scatter(-1, order, True) & (
                size > threshold
            )
            kept = torch.where(passes, u, kept)
        z = kept
    assert z is not None
    return z


CASES: list[tuple[Any, dict[str, Any]]] = [
    ("lista", {}),
    ("lista", {"tied": False, "bias": True, "thresholds": "layer"}),
    ("lista", {"positive": True, "thresholds": "shared", "select": (0.05, 0.2)}),
    ("cp", {"thresholds": "component", "positive": True}),
    ("cp", {"tied": False, "select": (0.1, 0.25)}),
    ("alista", {"select": (0.1, 0.25), "thresholds": "component"}),
    ("step", {"positive": True}),
]


@pytest.mark.parametrize("with_initial", [False, True])
@pytest.mark.parametrize(("variant", "options"), CASES, ids=str)
def test_equals_the_formula_with_its_gradients(
    variant: Any, options: Any, with_initial: bool
) -> None:
    """Codes and gradients equal the formula's away from the start, also with negative thresholds,
    for each number of layers.
    """
    encoder = LISTA.from_dictionary(dictionary(), ALPHA, LAYERS, variant=variant, **options)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += (
                0.1
                * parameter.abs().max()
                * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
            )
        if encoder.bias is not None:
            encoder.bias += 0.1 * torch.randn(N, generator=g, dtype=torch.float64)
    initial = soft(rows(N), 1.0) if with_initial else None
    plain = copy.deepcopy(encoder).project_()
    with torch.no_grad():
        for name in encoder._non_negative:  # reflected in training mode
            getattr(encoder, name)[0] *= -1
    upstream = torch.randn(ROWS, N, generator=g, dtype=torch.float64)
    for layers in (1, 2, LAYERS):
        got, expected = encoder(rows(), initial, layers), by_hand(plain, rows(), layers, initial)
        assert float((expected != 0).double().mean()) > 0.05
        assert torch.allclose(got, expected, rtol=1e-11, atol=1e-12)
        ours = torch.autograd.grad(
            (got * upstream).sum(), list(encoder.parameters()), allow_unused=True
        )
        theirs = torch.autograd.grad(
            (expected * upstream).sum(), list(plain.parameters()), allow_unused=True
        )
        for (name, parameter), a, b in zip(encoder.named_parameters(), ours, theirs, strict=True):
            a = torch.zeros_like(parameter) if a is None else a
            b = torch.zeros_like(parameter) if b is None else b
            if name in encoder._non_negative:
                b = torch.where(parameter < 0, -b, b)
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-10), name


@every_variant
def test_first_layers_are_those_of_fewer(variant: Any) -> None:
    deep, x = make(variant), rows()
    for layers in range(1, LAYERS + 1):
        shallow = LISTA.from_dictionary(dictionary(), ALPHA, layers, variant=variant)
        assert torch.equal(deep(x, n_layers=layers), shallow(x))
    assert torch.equal(deep(x, n_layers=LAYERS), deep(x))
    assert torch.allclose(deep(x, deep(x, n_layers=2), n_layers=3), deep(x), rtol=1e-12, atol=1e-14)


def test_selection_grows_by_layer() -> None:
    encoder = LISTA.from_dictionary(dictionary(), ALPHA, 6, variant="cp", select=(0.1, 0.3))
    assert encoder._select == (
        2,
        5,
        7,
        7,
        7,
        7,
    )  # round(0.1 * 23), round(0.2 * 23), round(0.3 * 23), ...
    x = rows()
    z = encoder(x, n_layers=1)
    u = x @ encoder.weight
    passed = ((z == u) & (z != 0)).sum(-1)
    assert int(passed.max()) == 2
    assert torch.allclose(z, by_hand(encoder, x, 1))


@every_encoder
def test_shapes(kind: str) -> None:
    encoder, x = make(kind), rows(n=12)
    assert torch.allclose(
        encoder(x.reshape(2, 3, 2, M)), encoder(x).reshape(2, 3, 2, N), rtol=1e-12, atol=1e-14
    )
    assert torch.allclose(encoder(x[3]), encoder(x)[3], rtol=1e-12, atol=1e-14)
    assert encoder(x[:0]).shape == (0, N)
    strided = torch.stack([x, x], -1)[..., 0]
    assert torch.equal(encoder(strided), encoder(x))


@pytest.mark.parametrize("kind", ["lista", "cp", "alista", "step", "lcod"])
def test_positive(kind: str) -> None:
    z, free = make(kind, positive=True)(rows()).detach(), make(kind)(rows()).detach()
    assert float(z.min()) == 0 < float(z.max())
    assert float(free.min()) < 0


@every_encoder
def test_nan_stays_in_its_row(kind: str) -> None:
    encoder, x = make(kind), rows()
    clean = encoder(x)
    x[4, 2] = torch.nan
    z = encoder(x)
    assert bool(z[4].isnan().any())
    others = [i for i in range(ROWS) if i != 4]
    assert torch.equal(z[others], clean[others])


# --- thresholds stay >= 0 -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lista", "cp", "alista", "step", "lcod"])
def test_negative_thresholds(kind: str) -> None:
    """Training mode reflects them, eval() and loading replace them, and no code changes with it."""
    encoder, x = make(kind), rows()
    name = encoder._non_negative[0]
    expected = encoder(x)
    with torch.no_grad():
        getattr(encoder, name).neg_()
    assert torch.equal(encoder(x), expected)
    loaded = make(kind).eval()
    loaded.load_state_dict(encoder.state_dict())
    assert torch.equal(loaded(x), expected)
    encoder.eval()
    assert bool((getattr(encoder, name) >= 0).all())
    assert torch.equal(encoder(x), expected)


@pytest.mark.parametrize("alpha", [ALPHA, 0.0])
@pytest.mark.parametrize("kind", ["lista", "cp", "alista", "step", "lcod"])
def test_negative_thresholds_in_evaluation_raise_until_projected(kind: str, alpha: float) -> None:
    if (
        kind not in ("step", "lcod")
        and backends.backend_name("lista", torch.device("cpu")) == "reference"
    ):
        pytest.skip("the reference trusts its caller")
    encoder: Any = make(kind).eval()
    encoder.alpha = alpha
    expected = encoder(rows())
    name = encoder._non_negative[0]
    with torch.no_grad():
        getattr(encoder, name).neg_()
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{name} must be >= 0"):
            encoder(rows())
    assert encoder.project_() is encoder
    assert torch.equal(encoder(rows()), expected)


def test_a_threshold_of_zero_can_leave_it() -> None:
    """alpha = 0 can get thresholds in training, although the slope of abs at 0 is 0."""
    encoder = LISTA.from_dictionary(dictionary(), 0.0, 3)
    encoder(rows()).abs().sum().backward()
    assert bool((encoder.threshold.grad != 0).any())  # type: ignore[union-attr]


def test_an_ordinary_training_loop_works() -> None:
    """An unmodified optimizer works, without projection and at rates that drive thresholds through
    0.
    """
    encoder, x = make("lista"), rows(n=40)
    target = soft(rows(N, n=40), 1.5)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.02)
    losses = []
    for _ in range(100):
        loss = (encoder(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    trained = encoder(x)
    assert torch.equal(encoder.eval()(x), trained)


# --- as modules of torch --------------------------------------------------------------------------


@every_encoder
def test_state_copies_and_casts(kind: str) -> None:
    encoder, x = make(kind), rows()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter *= 1.01
    stored = io.BytesIO()
    torch.save(encoder.state_dict(), stored)
    stored.seek(0)
    m, n = M, N
    fresh: torch.nn.Module
    if kind == "psd":
        fresh = PSDEncoder(m, n, dtype=torch.float64)
    elif kind == "lcod":
        fresh = LCoD(m, n, LAYERS, alpha=ALPHA, dtype=torch.float64)
    else:
        fresh = LISTA(m, n, LAYERS, alpha=ALPHA, variant=kind, dtype=torch.float64)  # type: ignore[arg-type]
    assert not torch.allclose(fresh(x), encoder(x))
    fresh.load_state_dict(torch.load(stored, weights_only=True))
    assert torch.equal(fresh(x), encoder(x))
    duplicate = copy.deepcopy(encoder)
    with torch.no_grad():
        next(iter(duplicate.parameters())).zero_()
    assert torch.equal(fresh(x), encoder(x))
    assert torch.allclose(encoder.float()(x.float()).double(), fresh(x), atol=1e-4)
    assert encoder.double()(x).dtype == torch.float64
    abstract = copy.deepcopy(encoder).to("meta")
    assert all(tensor.is_meta for tensor in (*abstract.parameters(), *abstract.buffers()))


@every_variant
def test_alpha_is_stored(variant: Any) -> None:
    """alpha is stored exactly, also in half precision: otherwise "step" would give other codes in a
    module with another alpha.
    """
    encoder, x = make(variant), rows()
    loaded = LISTA.from_dictionary(dictionary(), 3 * ALPHA, LAYERS, variant=variant)
    assert not torch.allclose(loaded(x), encoder(x))
    loaded.load_state_dict(encoder.half().state_dict())
    assert loaded.alpha == ALPHA
    assert torch.equal(loaded(x), encoder.double()(x))
    state = encoder.state_dict()
    state["_extra_state"] = torch.tensor(-1.0)
    with pytest.raises(ValueError, match="alpha must be a finite number >= 0"):
        loaded.load_state_dict(state)


@every_encoder
@pytest.mark.parametrize(
    ("one", "other"), [(torch.float32, torch.float64), (torch.bfloat16, torch.float32)]
)
def test_dtypes_promote(kind: str, one: torch.dtype, other: torch.dtype) -> None:
    """x and the parameters promote each other's dtype; gradients come in the parameters' dtype."""
    for x_dtype, dtype in ((one, other), (other, one)):
        encoder, x = make(kind, dtype), rows(dtype=x_dtype)
        z = encoder(x)
        assert z.dtype == other
        close = (
            {"rtol": 2**-8, "atol": 1e-3} if one is torch.bfloat16 else {"rtol": 1e-6, "atol": 1e-6}
        )  # alpha gamma
        assert torch.allclose(z, copy.deepcopy(encoder).to(other)(x.to(other)), **close)
        z.sum().backward()
        assert all(p.grad is not None and p.grad.dtype == dtype for p in encoder.parameters())


@every_encoder
def test_repr_tells_the_choices(kind: str) -> None:
    text = repr(make(kind))
    assert f"n_features={M}, n_components={N}" in text
    assert "select" not in text
    assert "select=(0.01, 0.1)" in repr(
        LISTA(M, N, 2, variant="cp", select=(0.01, 0.1), positive=True)
    )


@every_encoder
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
def test_compiles_as_one_graph(kind: str) -> None:
    encoder, x = make(kind), rows()
    torch._dynamo.reset()
    for mode in (True, False):
        encoder.train(mode)
        compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
        z = compiled(x)
        assert torch.allclose(z, encoder(x), rtol=1e-12, atol=1e-14)
        parameters = list(encoder.parameters())
        for a, b in zip(
            torch.autograd.grad(z.square().sum(), parameters),
            torch.autograd.grad(encoder(x).square().sum(), parameters),
            strict=True,
        ):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


# --- analytic weights -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["gaussian", "scaled", "wide", "coherent", "one component", "one feature"]
)
def test_analytic_weight_is_the_minimum(kind: str) -> None:
    """The weight is feasible and stationary on the constraint: (D^T D) w_j is a multiple of d_j,
    for a convex objective.
    """
    d = dictionary(kind)
    w = analytic_weight(d)
    assert w.shape == (d.size(1), len(d))
    assert torch.allclose((d * w.T).sum(-1), torch.ones(len(d), dtype=torch.float64), atol=1e-10)
    gradient = d.T @ (d @ w)
    along = d.T * ((gradient * d.T).sum(0) / d.square().sum(-1))
    assert float(((gradient - along).norm(dim=0) / gradient.norm(dim=0)).max()) < 1e-7


@pytest.mark.parametrize("kind", ["gaussian", "deficient", "coherent"])
def test_analytic_weight_against_projected_gradient(kind: str) -> None:
    """The weight equals the paper's own method: gradient steps from w_j = d_j / ||d_j||^2, each
    projected back to d_j . w_j = 1.
    """
    d = dictionary(kind)
    lengths = d.square().sum(-1)
    w = d.T / lengths
    for _ in range(1500):
        w = w - d.T @ (d @ w) / norm2(d)
        w = w + d.T * (1 - (d.T * w).sum(0)) / lengths
    closed = analytic_weight(d)
    assert torch.allclose((d * closed.T).sum(-1), torch.ones(N, dtype=torch.float64))
    assert float((d @ closed).square().sum()) <= float((d @ w).square().sum()) * (1 + 1e-12)
    if kind != "coherent":  # where it takes too many steps to converge
        assert torch.allclose(d @ closed, d @ w, atol=1e-4)


def test_analytic_weight_of_a_deficient_dictionary_is_tame() -> None:
    """The weight has nothing in directions that the dictionary lacks, where x may have noise."""
    for dtype in (torch.float32, torch.float64):
        d = dictionary("deficient", dtype)
        _, _, basis = torch.linalg.svd(d.double())
        outside = basis[4:] @ analytic_weight(d).double()
        assert float(outside.abs().max()) < 1e-4
    tiny = torch.eye(3, dtype=torch.float64)
    tiny[2, 2] = 1e-20
    assert torch.allclose(analytic_weight(tiny), tiny.inverse())


def test_analytic_weight_lowers_the_coherence() -> None:
    d = torch.nn.functional.normalize(torch.randn(100, 50, dtype=torch.float64), dim=-1)
    mutual = generalized_coherence(d, d.T)
    off = (d @ d.T).fill_diagonal_(0).abs().max()
    assert mutual == float(off)
    assert generalized_coherence(d, analytic_weight(d)) < 0.95 * mutual
    assert generalized_coherence(d[:1], d[:1].T) == 0
    single = analytic_weight(d.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), analytic_weight(d), atol=1e-5)
    with pytest.raises(ValueError, match=r"weight must have shape \(50, 100\)"):
        generalized_coherence(d, d)


# --- the other encoders ---------------------------------------------------------------------------


def coordinate_descent(
    x: Tensor, d: Tensor, alpha: float, steps: int, positive: bool = False
) -> Tensor:
    """Return greedy codes, one row at a time, from residuals: algorithm 2 of Gregor and LeCun for
    rows of any length.
    """
    codes = []
    lengths = d.square().sum(-1)
    for row in x:
        z = torch.zeros(len(d), dtype=x.dtype)

        def proposal(z: Tensor, row: Tensor = row) -> Tensor:
            return soft(z + (row - z @ d) @ d.T / lengths, alpha / lengths, positive)

        for _ in range(steps):
            best = proposal(z)
            k = int((best - z).abs().argmax())
            z[k] = best[k]
        codes.append(proposal(z))
    return torch.stack(codes)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("kind", ["gaussian", "coherent", "one component"])
def test_lcod_starts_at_greedy_coordinate_descent(kind: str, positive: bool) -> None:
    d, x = dictionary(kind), rows()
    encoder = LCoD.from_dictionary(d, ALPHA, 30, positive=positive)
    for steps in (1, 2, 7, 30):
        expected = coordinate_descent(x, d, ALPHA, steps, positive)
        assert torch.allclose(encoder(x, n_iterations=steps), expected, rtol=1e-10, atol=1e-12)


def test_lcod_reaches_the_optimum() -> None:
    d, x = dictionary(), rows()
    with torch.no_grad():
        z = LCoD.from_dictionary(d, ALPHA, 3000)(x)
    optimum = objective(x, ista(x, d, ALPHA, 5000), d, ALPHA)
    assert torch.allclose(objective(x, z, d, ALPHA), optimum, rtol=1e-6)


def test_lcod_gradients() -> None:
    encoder, x = LCoD.from_dictionary(dictionary()[:6], ALPHA, 4), rows(n=3).requires_grad_()
    names = [name for name, _ in encoder.named_parameters()]

    def f(x: Tensor, *values: Tensor) -> Any:
        return torch.func.functional_call(encoder, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(f, (x, *encoder.parameters()))


def test_psd_is_one_layer_of_tanh() -> None:
    d = dictionary("scaled")
    encoder = PSDEncoder.from_dictionary(d)
    small = 1e-4 * rows()
    assert torch.allclose(encoder(small), small @ d.T / norm2(d), rtol=1e-5, atol=1e-12)
    with torch.no_grad():
        encoder.bias += torch.linspace(-1, 1, N)
        encoder.gain *= torch.linspace(0.5, 2, N)
    x = 1e3 * rows()
    expected = encoder.gain * torch.tanh(x @ encoder.weight + encoder.bias)
    assert torch.equal(encoder(x), expected)
    assert bool((encoder(x).abs() <= encoder.gain.abs()).all())


# --- bad input ------------------------------------------------------------------------------------


def zero_row() -> Tensor:
    d = dictionary()
    d[[3, 7]] = 0
    return d


def not_finite(value: float) -> Tensor:
    d = dictionary()
    d[2, 2] = value
    return d


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        *(
            functools.partial(LISTA.from_dictionary, alpha=ALPHA, n_layers=3, variant=variant)
            for variant in ("lista", "cp", "step", "alista")
        ),
        functools.partial(LCoD.from_dictionary, alpha=ALPHA, n_iterations=9),
    ],
)
def test_the_code_of_an_atom_of_zeros_is_zero(make: Any, dtype: torch.dtype) -> None:
    """The other codes are those of the dictionary without the atom."""
    d = zero_row().to(dtype)
    present = d.any(-1)
    x = torch.randn(7, d.size(1)).to(dtype)
    codes, expected = make(d)(x), make(d[present])(x)
    assert bool((codes[:, ~present] == 0).all())
    tolerance = 2e-3 if dtype is torch.float16 else 1e-6
    torch.testing.assert_close(codes[:, present], expected, rtol=tolerance, atol=tolerance)
    assert bool((expected != 0).any())


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (
            torch.zeros_like(dictionary()),
            ValueError,
            "dictionary must have a row that is not all zeros",
        ),
        (not_finite(torch.nan), ValueError, "dictionary must be finite"),
        (not_finite(torch.inf), ValueError, "dictionary must be finite"),
        (dictionary()[0], ValueError, r"dictionary must have shape \[n_components, n_features\]"),
        (dictionary()[:0], ValueError, r"dictionary must have shape \[n_components, n_features\]"),
        (dictionary().long(), TypeError, "dictionary must have dtype"),
        ([[1.0, 2.0]], TypeError, "dictionary must be a torch.Tensor"),
    ],
)
def test_bad_dictionaries(bad: Any, error: type[Exception], message: str) -> None:
    for call in (
        lambda: LISTA.from_dictionary(bad, ALPHA, 2),
        lambda: LCoD.from_dictionary(bad, ALPHA, 2),
        lambda: PSDEncoder.from_dictionary(bad),
        lambda: analytic_weight(bad),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(
    ("scale", "dtype", "message"),
    [
        (
            1e-8,
            torch.float16,
            r"dictionary must not have rows that become all zeros in torch.float16; got 3 .*row 0",
        ),
        (1e8, torch.float16, "dictionary must be finite in torch.float16"),
        (
            1e-50,
            torch.float32,
            "dictionary must not have rows that become all zeros in torch.float32",
        ),
        (1e300, torch.float32, "dictionary must be finite in torch.float32"),
        (1e-200, torch.float64, "dictionary must have rows whose squared lengths fit float64"),
        (1e200, torch.float64, "dictionary must have rows whose squared lengths fit float64"),
        (
            2e-7,
            torch.float16,
            "dictionary must be scaled so that torch.float16 can hold the weights",
        ),
    ],
)
def test_dictionaries_that_a_dtype_does_not_hold(
    scale: float, dtype: torch.dtype, message: str
) -> None:
    d = scale * torch.eye(3, dtype=torch.float64)
    makers: list[Any] = [
        *(
            lambda v=v: LISTA.from_dictionary(d, ALPHA, 2, variant=v, dtype=dtype)
            for v in ("lista", "cp", "step")
        ),
        lambda: LISTA.from_dictionary(d, ALPHA, 2, variant="alista", dtype=dtype),
        lambda: LCoD.from_dictionary(d, ALPHA, 2, dtype=dtype),
        lambda: PSDEncoder.from_dictionary(d, dtype=dtype),
    ]
    for make_one in makers:
        with pytest.raises(ValueError, match=message):
            make_one()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_layers": 0}, ValueError, "n_layers must be an int >= 1; got 0"),
        ({"n_layers": 2.0}, TypeError, "n_layers must be an int >= 1"),
        ({"n_layers": True}, TypeError, "n_layers must be an int >= 1"),
        ({"n_features": 0}, ValueError, "n_features must be an int >= 1"),
        ({"n_components": -1}, ValueError, "n_components must be an int >= 1"),
        ({"alpha": -0.1}, ValueError, "alpha must be a finite number >= 0; got -0.1"),
        ({"alpha": float("nan")}, ValueError, "alpha must be a finite number >= 0"),
        ({"alpha": "1"}, TypeError, "alpha must be a number >= 0"),
        (
            {"variant": "fista"},
            ValueError,
            "variant must be one of 'lista', 'cp', 'alista', 'step'; got 'fista'",
        ),
        (
            {"thresholds": "row"},
            ValueError,
            "thresholds must be 'component', 'layer', 'shared' or None",
        ),
        (
            {"thresholds": "layer", "variant": "step"},
            ValueError,
            "thresholds must be None where variant is 'step'",
        ),
        (
            {"tied": False, "variant": "alista"},
            ValueError,
            "tied must be True where variant is 'alista'",
        ),
        ({"bias": True, "variant": "cp"}, ValueError, "bias must be False where variant is 'cp'"),
        ({"select": 0.1}, TypeError, r"select must be a pair \(p, p_max\)"),
        ({"select": (0.1, 1.2)}, ValueError, r"select must hold shares"),
        ({"select": (-0.1, 0.2)}, ValueError, "select must be a finite number >= 0"),
        ({"dictionary": dictionary()[1:]}, ValueError, r"dictionary must have shape \(23, 11\)"),
        ({"dtype": torch.int64}, TypeError, "dtype must be torch.float32"),
        ({"device": "nowhere"}, ValueError, "device must be a torch.device or its name"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LISTA(**({"n_features": M, "n_components": N, "n_layers": 2} | options))


def test_bad_calls() -> None:
    encoder = make("lista")
    with pytest.raises(
        ValueError,
        match=f"n_layers must be at most {LAYERS}, as many as there are; got {LAYERS + 1}",
    ):
        encoder(rows(), n_layers=LAYERS + 1)
    with pytest.raises(ValueError, match="n_layers must be an int >= 1"):
        encoder(rows(), n_layers=0)
    for kind in ("lista", "cp", "lcod", "psd"):
        with pytest.raises(ValueError, match=r"x|weight"):
            make(kind)(rows(M + 1))
        with pytest.raises(TypeError, match=r"x must be a torch\.Tensor"):
            make(kind)([1.0])
    with pytest.raises(ValueError, match="n_iterations must be an int >= 1"):
        LCoD(M, N, 0)
    with pytest.raises(ValueError, match="n_iterations must be an int >= 1"):
        make("lcod")(rows(), n_iterations=0)

"""The streamed bound equals the unchunked one: values and gradients, for every chunk, estimator,
dtype and weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

import latent_kernels as lk
from tests.estimators.streamed_model import (
    ESTIMATORS,
    PIXELS,
    B,
    D,
    Model,
    S,
    close,
    gradients,
    unchunked,
)

Tensor = torch.Tensor
INF, NAN = math.inf, math.nan
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def same_as_unchunked(
    model: Model,
    log_joint: Callable[[Tensor], Tensor],
    inputs: Sequence[Tensor],
    estimator: str = "iwae",
    **options: Any,
) -> None:
    ours = model.streamed(log_joint, estimator=estimator, **options)
    theirs = unchunked(model.q, log_joint, estimator=estimator)
    close([ours, *gradients(ours, inputs)], [theirs, *gradients(theirs, inputs)])


# --- equality with importance_bound ---------------------------------------------------------------


@every_estimator
@pytest.mark.parametrize("chunk", [1, 3, 7, S, S + 5])
@pytest.mark.parametrize("batch", [(), (B,), (2, 3)], ids=str)
def test_equals_the_unchunked_bound(batch: tuple[int, ...], chunk: int, estimator: str) -> None:
    model = Model(batch)
    same_as_unchunked(model, model.log_joint, model.leaves, estimator, chunk=chunk)


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("chunk", [1, 7])
def test_precision(dtype: torch.dtype, chunk: int, estimator: str) -> None:
    """The error is at most twice that of the unchunked bound against float64, with the same noise.

    Or the roundings of the chunks' gradients: each is rounded to the dtype, and their signs are
    independent.
    """
    model, samples = Model(dtype=dtype), 60
    wide = Model(dtype=torch.float64)
    for x, y in zip((*wide.leaves, wide.x), (*model.leaves, model.x), strict=True):
        x.data.copy_(y.detach())
    bound = lk.streamed_bound(
        model.q,
        model.log_joint,
        samples,
        chunk=chunk,
        params=model.params,
        estimator=estimator,
        seed=3,
    )
    assert bound.dtype == torch.float32
    plain = unchunked(model.q, model.log_joint, samples, estimator)
    exact = unchunked(wide.q, wide.log_joint, samples, estimator)
    results = zip(
        [bound, *gradients(bound, model.leaves)],
        [plain, *gradients(plain, model.leaves)],
        [exact, *gradients(exact, wide.leaves)],
        strict=True,
    )
    for ours, theirs, truth in results:
        assert ours.dtype == theirs.dtype
        ours, theirs, truth = ours.detach().double(), theirs.detach().double(), truth.detach()
        floor = torch.finfo(dtype).eps * math.sqrt(samples / chunk) * (1 + float(truth.abs().max()))
        assert float((ours - truth).abs().max()) <= max(
            2 * float((theirs - truth).abs().max()), floor
        )


def test_many_halves_add_up() -> None:
    """512 chunks with a gradient of 1 / 512 each add up to 1: a sum in bfloat16, whose step there
    is 1 / 256, would stop at 1 / 2.
    """
    scale = torch.ones((), dtype=torch.bfloat16, requires_grad=True)
    q = lk.DiagonalGaussian(
        torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16)
    )

    def log_joint(z: Tensor) -> Tensor:
        return q.log_prob(z) + scale

    bound = lk.streamed_bound(q, log_joint, 512, chunk=1, params=[scale], seed=1)
    (gradient,) = torch.autograd.grad(bound, scale)
    assert gradient.dtype == torch.bfloat16
    assert gradient == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_dtype_of_log_joint(dtype: torch.dtype) -> None:
    """log w has the dtype that log_joint(z) - log q promotes to."""
    model = Model(dtype=torch.float32)
    ours = model.streamed(lambda z: model.log_joint(z).to(dtype))
    theirs = unchunked(model.q, lambda z: model.log_joint(z).to(dtype))
    assert (
        ours.dtype == theirs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    )
    assert torch.allclose(ours, theirs, rtol=1e-6)


ROWS = {  # what is added to the log-weights of one row's samples
    "nan in one chunk": [0, 0, 0, NAN, 0, 0],
    "all nan": [NAN] * 6,
    "a zero weight": [0, -INF, 0, 0, 0, 0],
    "a chunk of zero weights": [-INF, -INF, 0, 0, 0, 0],
    "the last chunk of zero weights": [0, 0, 0, 0, -INF, -INF],
    "zero weights": [-INF] * 6,
    "an infinite weight": [0, 0, 0, 0, INF, 0],
    "infinite and zero weights": [-INF, -INF, 0, INF, 0, 0],
    "infinite weights": [INF, 0, 0, 0, 0, INF],
    "infinite, then nan": [INF, 0, 0, 0, NAN, 0],
    "nan, then infinite": [NAN, 0, 0, 0, 0, INF],
    "far apart": [-900, 0, 0, 900, 0, -900],
    "beyond float64's exponentials": [-1e300, 0, 0, 1e300, 0, 0],
}


@every_estimator
@pytest.mark.parametrize("chunk", [1, 2, 6])
def test_weights_of_every_kind(chunk: int, estimator: str) -> None:
    """Each kind in a row of its own is treated as importance_bound does, without effect on other
    rows.
    """
    table = torch.tensor(list(ROWS.values()), dtype=torch.float64).T
    model = Model((len(ROWS),))
    first = model.q.sample(6, seed=3)[:, 0, 0]

    def log_joint(z: Tensor) -> Tensor:
        which = (z[:, 0, 0, None].detach() == first).double().argmax(1)
        return model.log_joint(z) + table[which]

    ours = lk.streamed_bound(
        model.q, log_joint, 6, chunk=chunk, params=model.params, estimator=estimator, seed=3
    )
    theirs = unchunked(model.q, log_joint, 6, estimator)
    inputs = (model.mean, model.logvar)
    for name, got, expected in zip(ROWS, ours, theirs, strict=True):
        assert torch.allclose(got, expected, rtol=1e-13, atol=1e-13, equal_nan=True), name
    for a, b in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        for name, got, expected in zip(ROWS, a, b, strict=True):
            assert torch.allclose(got, expected, rtol=1e-11, atol=1e-12, equal_nan=True), name


@pytest.mark.parametrize("shape", [(0, D), (2, 0, D), (B, 0)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    mean, weight = torch.zeros(shape, requires_grad=True), torch.ones((), requires_grad=True)
    bound = lk.streamed_bound(
        lk.DiagonalGaussian(mean, mean),
        lambda z: weight * z.sum(-1),
        9,
        chunk=4,
        params=[weight],
        seed=1,
    )
    assert bound.shape == shape[:-1]
    found = torch.autograd.grad(bound.sum(), (mean, weight))
    assert found[0].shape == shape
    assert found[1] == 0


# --- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, S])
def test_noise_is_that_of_one_call(chunk: int) -> None:
    """The noise equals that of a single call bit for bit, in forward and in the replay."""
    model, seen = Model(dtype=torch.float32), []

    def log_joint(z: Tensor) -> Tensor:
        seen.append(z.detach())
        return model.log_joint(z)

    expected = model.q.sample(S, seed=5)
    bound = model.streamed(log_joint, chunk=chunk, seed=5)
    assert torch.equal(torch.cat(seen), expected)
    seen.clear()
    bound.sum().backward()
    assert torch.equal(torch.cat(seen), expected)


def test_seeds() -> None:
    model = Model()
    torch.manual_seed(1)
    first, second = model.streamed(seed=None), model.streamed(seed=None)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(model.streamed(seed=None), first)
    seed = torch.tensor(3)
    bound = model.streamed(seed=seed)
    assert torch.equal(bound, model.streamed())
    seed += 1  # for the next step, before this one's backward
    close(gradients(bound, model.leaves), gradients(model.streamed(), model.leaves))


# --- where gradients go ---------------------------------------------------------------------------


def test_computed_params() -> None:
    """A tensor computed outside is listed itself, and the tensors it was computed from get their
    gradients through it.
    """
    model = Model()
    scaled = (2 * model.weight).tanh()

    def log_joint(z: Tensor) -> Tensor:
        return (z @ scaled + model.bias).square().sum(-1)

    for params in (
        (scaled, model.bias),
        (*model.params, scaled),
        (scaled, scaled, model.bias, model.bias),
    ):
        ours, theirs = model.streamed(log_joint, params=params), unchunked(model.q, log_joint)
        close(
            gradients(ours, model.leaves, retain_graph=True),
            gradients(theirs, model.leaves, retain_graph=True),
        )


def test_one_network_for_q_and_the_prior() -> None:
    """If log_joint reads a tensor upstream of q, the two paths of its gradient are neither lost nor
    counted twice.
    """
    model, hidden = Model(), nn.Linear(PIXELS, D, dtype=torch.float64)

    def run(streamed: bool) -> tuple[Tensor, ...]:
        h = torch.tanh(hidden(model.x))
        q = lk.DiagonalGaussian(h * model.mean, h + model.logvar)

        def log_joint(z: Tensor) -> Tensor:
            return model.log_joint(z) - ((z - h) ** 2).sum(-1)

        params = (*hidden.parameters(), h, *model.params)
        bound = (
            lk.streamed_bound(q, log_joint, S, chunk=7, params=params, seed=3)
            if streamed
            else unchunked(q, log_joint)
        )
        return gradients(bound, (*hidden.parameters(), *model.leaves))

    close(run(True), run(False))


@every_estimator
def test_log_joint_may_read_q(estimator: str) -> None:
    model = Model()

    def log_joint(z: Tensor) -> Tensor:
        return model.log_joint(z) - (model.mean**2 * z).sum(-1) + model.logvar.sum(-1)

    same_as_unchunked(model, log_joint, model.leaves, estimator)
    same_as_unchunked(model, log_joint, model.leaves, estimator, params=(*model.params, model.mean))


def test_unused_params_get_none() -> None:
    model, other = Model(), torch.zeros(2, requires_grad=True)
    bound = model.streamed(params=(*model.params, other))
    assert gradients(bound, (*model.leaves, other), allow_unused=True)[-1] is None


@pytest.mark.parametrize(
    "frozen", ["mean", "logvar", "weight", "mean logvar", "weight bias", "mean logvar weight bias"]
)
def test_frozen(frozen: str) -> None:
    """Tensors that need no gradient get none, and are not tracked."""
    model, tracked = Model(), []
    for name in frozen.split():
        getattr(model, name).requires_grad_(False)
    inputs = [x for x in model.leaves if x.requires_grad]

    def log_joint(z: Tensor) -> Tensor:
        tracked.append(z.requires_grad)
        return model.log_joint(z)

    bound = model.streamed(log_joint)
    assert bound.requires_grad == bool(inputs)
    if inputs:
        close(gradients(bound, inputs), gradients(unchunked(model.q, model.log_joint), inputs))
    assert any(tracked) == (model.mean.requires_grad or model.logvar.requires_grad)


def test_one_gradient_for_several_params() -> None:
    """Parameters whose gradients are the same tensor object do not accumulate into each other."""
    a, b = (torch.zeros(B, dtype=torch.float64, requires_grad=True) for _ in range(2))
    model = Model()

    def log_joint(z: Tensor) -> Tensor:
        return model.log_joint(z) + (a + b)

    same_as_unchunked(
        model, log_joint, (a, b, *model.leaves), params=(a, b, *model.params), chunk=3
    )


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"chunk": 0}, ValueError, "chunk must be an int >= 1; got 0"),
        ({"chunk": None}, TypeError, "chunk must be an int >= 1; got None"),
        ({"chunk": True}, TypeError, "chunk must be an int >= 1; got True"),
        ({"chunk": 2.0}, TypeError, "chunk must be an int >= 1; got 2.0"),
        ({"estimator": "vimco"}, ValueError, "cannot be streamed: use importance_bound"),
        (
            {"estimator": "elbo"},
            ValueError,
            "estimator must be one of 'iwae', 'stl', 'dreg'; got 'elbo'",
        ),
        ({"seed": -1}, ValueError, r"seed must lie in \[0, 2\^63\); got -1"),
        ({"seed": 1.0}, TypeError, "seed must be an int"),
        (
            {"params": torch.zeros(3)},
            TypeError,
            "params must be an iterable of tensors; got Tensor",
        ),
        (
            {"params": nn.Linear(1, 1)},
            TypeError,
            "params must be an iterable of tensors; got Linear",
        ),
        ({"params": {"w": torch.zeros(3)}}, TypeError, "params must hold tensors; got str"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Model().streamed(**options)


@pytest.mark.parametrize(
    ("samples", "error"), [(0, ValueError), (None, TypeError), (True, TypeError)]
)
def test_bad_num_samples(samples: Any, error: type[Exception]) -> None:
    model = Model()
    with pytest.raises(error, match=f"num_samples must be an int >= 1; got {samples}"):
        lk.streamed_bound(model.q, model.log_joint, samples)


def test_bad_q_and_log_joint() -> None:
    model = Model()
    with pytest.raises(TypeError, match="q must be a DiagonalGaussian; got Bernoulli"):
        lk.streamed_bound(lk.Bernoulli(model.mean), model.log_joint, S)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="log_joint must be a function of z; got Tensor"):
        lk.streamed_bound(model.q, model.mean, S)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("log_joint", "error", "message"),
    [
        (lambda z: 1.0, TypeError, "log_joint must return a torch.Tensor; got float"),
        (
            lambda z: z.sum(-1).long(),
            TypeError,
            "log_joint must return float32, .* or float16; got torch.int64",
        ),
        (
            lambda z: z,
            ValueError,
            r"log_joint must return shape \(7, 4\) for z \(7, 4, 5\); got \(7, 4, 5\)",
        ),
        (
            lambda z: z.sum(-1)[0],
            ValueError,
            r"log_joint must return shape \(7, 4\) for z \(7, 4, 5\); got \(4,\)",
        ),
        (lambda z: z.sum(-1, keepdim=True), ValueError, r"got \(7, 4, 1\)"),
        (
            lambda z: z.sum(-1).to("meta"),
            ValueError,
            "what log_joint returns must be on the device of z, cpu; got meta",
        ),
    ],
)
def test_bad_results(
    log_joint: Callable[[Tensor], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Model().streamed(log_joint)

"""The streamed bound: equal to the unchunked one in value and gradients, in memory that does not know S."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import latent_kernels as lk

Tensor = torch.Tensor
INF, NAN = math.inf, math.nan
S, B, D, PIXELS = 20, 4, 5, 3
ESTIMATORS = ("iwae", "stl", "dreg")
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


class Model:
    """q's parameters, and a joint density with two parameters of its own."""

    def __init__(self, batch: tuple[int, ...] = (B,), dtype: torch.dtype = torch.float64):
        generator = torch.Generator().manual_seed(7)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        self.mean, self.logvar = draw(*batch, D).requires_grad_(), draw(*batch, D).requires_grad_()
        self.weight, self.bias = draw(D, PIXELS).requires_grad_(), draw(PIXELS).requires_grad_()
        self.x = draw(*batch, PIXELS)

    @property
    def q(self) -> lk.DiagonalGaussian:
        return lk.DiagonalGaussian(self.mean, self.logvar)

    @property
    def params(self) -> tuple[Tensor, ...]:
        return self.weight, self.bias

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.mean, self.logvar, self.weight, self.bias

    def log_joint(self, z: Tensor) -> Tensor:
        return -((self.x - torch.tanh(z @ self.weight + self.bias)) ** 2).sum(-1) - 0.5 * (z * z).sum(-1)

    def streamed(self, log_joint: Callable[[Tensor], Tensor] | None = None, **options: Any) -> Tensor:
        options = {"params": self.params, "chunk": 7, "seed": 3} | options
        return lk.streamed_bound(self.q, log_joint or self.log_joint, S, **options)


def unchunked(
    q: lk.DiagonalGaussian,
    log_joint: Callable[[Tensor], Tensor],
    samples: int = S,
    estimator: str = "iwae",
    seed: int = 3,
) -> Tensor:
    z, log_q = q.rsample_log_prob(samples, seed=seed, path_derivative=estimator != "iwae")
    return lk.importance_bound(log_joint(z) - log_q, estimator=estimator, z=z if estimator == "dreg" else None)


def gradients(bound: Tensor, inputs: Sequence[Tensor], **options: Any) -> tuple[Any, ...]:
    """Of a sum in which every row has a weight of its own."""
    rows = torch.linspace(0.5, 2, max(bound.numel(), 1), dtype=bound.dtype)[: bound.numel()].reshape(bound.shape)
    return torch.autograd.grad((bound * rows).sum(), inputs, **options)


def close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Float64 to a hundred roundings of the largest value: sums of S = 20 terms in another order."""
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert torch.allclose(
            a, b, rtol=0, atol=100 * 2.0**-53 * (1 + float(b.detach().abs().max()) if b.numel() else 0)
        )


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


# --- equality with importance_bound -----------------------------------------------------------------------------


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
    """Twice the unchunked bound's error against float64, whose noise is the same.

    Or the roundings of the chunks' gradients: each is rounded to the dtype, and their signs are independent.
    """
    model, samples = Model(dtype=dtype), 60
    wide = Model(dtype=torch.float64)
    for x, y in zip((*wide.leaves, wide.x), (*model.leaves, model.x), strict=True):
        x.data.copy_(y.detach())
    bound = lk.streamed_bound(
        model.q, model.log_joint, samples, chunk=chunk, params=model.params, estimator=estimator, seed=3
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
        assert float((ours - truth).abs().max()) <= max(2 * float((theirs - truth).abs().max()), floor)


def test_many_halves_add_up() -> None:
    """256 chunks with a gradient of 1 / 256 each: in bfloat16, a sum of these would stop growing at 1/2 + 1/256."""
    scale = torch.ones((), dtype=torch.bfloat16, requires_grad=True)
    q = lk.DiagonalGaussian(torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16))

    def log_joint(z: Tensor) -> Tensor:
        return q.log_prob(z) + scale

    bound = lk.streamed_bound(q, log_joint, 256, chunk=1, params=[scale], seed=1)
    (gradient,) = torch.autograd.grad(bound, scale)
    assert gradient.dtype == torch.bfloat16
    assert gradient == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_dtype_of_log_joint(dtype: torch.dtype) -> None:
    """log w has the dtype that log_joint(z) - log q promotes to."""
    model = Model(dtype=torch.float32)
    ours = model.streamed(lambda z: model.log_joint(z).to(dtype))
    theirs = unchunked(model.q, lambda z: model.log_joint(z).to(dtype))
    assert ours.dtype == theirs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
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
    """Each kind in a row of its own, treated as importance_bound does: the others do not see it."""
    table = torch.tensor(list(ROWS.values()), dtype=torch.float64).T
    model = Model((len(ROWS),))
    first = model.q.sample(6, seed=3)[:, 0, 0]

    def log_joint(z: Tensor) -> Tensor:
        which = (z[:, 0, 0, None].detach() == first).double().argmax(1)
        return model.log_joint(z) + table[which]

    ours = lk.streamed_bound(model.q, log_joint, 6, chunk=chunk, params=model.params, estimator=estimator, seed=3)
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
        lk.DiagonalGaussian(mean, mean), lambda z: weight * z.sum(-1), 9, chunk=4, params=[weight], seed=1
    )
    assert bound.shape == shape[:-1]
    found = torch.autograd.grad(bound.sum(), (mean, weight))
    assert found[0].shape == shape
    assert found[1] == 0


# --- noise ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, S])
def test_noise_is_that_of_one_call(chunk: int) -> None:
    """Bit for bit, in forward and in the replay."""
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


# --- where gradients go -----------------------------------------------------------------------------------------


def test_computed_params() -> None:
    """A tensor computed outside is listed itself; what it was computed from gets its gradient through it."""
    model = Model()
    scaled = (2 * model.weight).tanh()

    def log_joint(z: Tensor) -> Tensor:
        return (z @ scaled + model.bias).square().sum(-1)

    for params in ((scaled, model.bias), (*model.params, scaled), (scaled, scaled, model.bias, model.bias)):
        ours, theirs = model.streamed(log_joint, params=params), unchunked(model.q, log_joint)
        close(gradients(ours, model.leaves, retain_graph=True), gradients(theirs, model.leaves, retain_graph=True))


def test_one_network_for_q_and_the_prior() -> None:
    """What log_joint reads lies upstream of q: the two paths of its gradient are neither lost nor counted twice."""
    model, hidden = Model(), nn.Linear(PIXELS, D, dtype=torch.float64)

    def run(streamed: bool) -> tuple[Tensor, ...]:
        h = torch.tanh(hidden(model.x))
        q = lk.DiagonalGaussian(h * model.mean, h + model.logvar)

        def log_joint(z: Tensor) -> Tensor:
            return model.log_joint(z) - ((z - h) ** 2).sum(-1)

        params = (*hidden.parameters(), h, *model.params)
        bound = (
            lk.streamed_bound(q, log_joint, S, chunk=7, params=params, seed=3) if streamed else unchunked(q, log_joint)
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
    """What needs no gradient gets none, and is not tracked."""
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
    """Tensors whose gradient is one and the same tensor do not add up into each other."""
    a, b = (torch.zeros(B, dtype=torch.float64, requires_grad=True) for _ in range(2))
    model = Model()

    def log_joint(z: Tensor) -> Tensor:
        return model.log_joint(z) + (a + b)

    same_as_unchunked(model, log_joint, (a, b, *model.leaves), params=(a, b, *model.params), chunk=3)


# --- gradients that would be missing or wrong -------------------------------------------------------------------


def test_missing_leaf_raises_at_the_call() -> None:
    model = Model()
    with pytest.raises(RuntimeError, match=r"reads a tensor of shape \(3,\) that requires grad and is not in params"):
        model.streamed(params=[model.weight])
    for x in model.leaves[:3]:  # nothing else wants a gradient
        x.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"shape \(3,\)"):
        model.streamed(params=[])
    with torch.no_grad():
        model.streamed(params=[])


def test_missing_tensor_upstream_of_q() -> None:
    """Even where all that it was computed from is listed: its graph would be run once for each chunk, and freed."""
    model = Model()
    hidden = torch.exp(model.weight)
    q = lk.DiagonalGaussian(model.mean * hidden.sum(), model.logvar)

    def log_joint(z: Tensor) -> Tensor:
        return (z @ hidden).sum(-1)

    with pytest.raises(RuntimeError, match=r"shape \(5, 3\) that requires grad and is not in params"):
        lk.streamed_bound(q, log_joint, S, chunk=7, params=model.params)
    left, right = torch.split(model.mean * 2, [2, 3], 1)
    with pytest.raises(RuntimeError, match=r"shape \(4, 3\) that requires grad"):
        model.streamed(lambda z: (z[..., :2] * left).sum(-1) + (z[..., 2:] * right).sum(-1), params=[left])


def test_missing_in_a_later_chunk_raises_in_backward() -> None:
    model, calls = Model(), []

    def log_joint(z: Tensor) -> Tensor:
        calls.append(z)
        return model.log_joint(z) if len(calls) != 6 else (z @ model.weight).sum(-1) + other

    other = torch.zeros((), requires_grad=True)
    bound = model.streamed(log_joint)  # three chunks, and three more in backward
    with pytest.raises(RuntimeError, match=r"reads a tensor of shape \(\) that requires grad"):
        bound.sum().backward()


def test_params_of_which_one_is_computed_from_another() -> None:
    model = Model()
    scaled, clone = 2 * model.weight, model.weight.clone()

    def run(weight: Tensor) -> Tensor:
        return model.streamed(lambda z: (z @ scaled * (z @ weight)).sum(-1), params=[scaled, weight])

    with pytest.raises(RuntimeError, match=r"shape \(5, 3\), and another one that was computed from it"):
        run(model.weight)
    expected = unchunked(model.q, lambda z: (z @ scaled * (z @ model.weight)).sum(-1))
    inputs = (model.mean, model.weight)
    close(gradients(run(clone), inputs, retain_graph=True), gradients(expected, inputs))


def test_params_with_hooks() -> None:
    """A hook would run in every replay, and once more."""
    model = Model()
    clone = model.weight.clone()
    model.weight.register_hook(lambda g: 10 * g)
    with pytest.raises(RuntimeError, match=r"reads a tensor of shape \(5, 3\) that has hooks"):
        model.streamed()
    computed = model.bias * 2
    computed.retain_grad()
    with pytest.raises(RuntimeError, match=r"reads a tensor of shape \(3,\) that has hooks"):
        model.streamed(lambda z: (z[..., :3] * computed).sum(-1), params=[computed])

    def log_joint(z: Tensor) -> Tensor:
        return (z @ clone).square().sum(-1)

    ours, theirs = model.streamed(log_joint, params=[clone]), unchunked(model.q, log_joint)
    inputs = (model.mean, model.weight)
    close(gradients(ours, inputs, retain_graph=True), gradients(theirs, inputs))


@pytest.mark.parametrize("changed", ["mean", "logvar", "weight", "x"])
def test_changes_before_backward(changed: str) -> None:
    model = Model()
    bound = model.streamed(params=(*model.params, model.x))
    with torch.no_grad():
        getattr(model, changed).mul_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        bound.sum().backward()


# --- random numbers and autocast in log_joint -------------------------------------------------------------------


def with_dropout(model: Model, masks: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def log_joint(z: Tensor) -> Tensor:
        mask = nn.functional.dropout(torch.ones_like(z), 0.5)
        masks.append(mask)
        return model.log_joint(z * mask)

    return log_joint


def test_dropout_is_replayed() -> None:
    """Two bounds in one loss see their masks again, in whichever order backward takes them."""
    model = Model()
    masks: tuple[list[Tensor], list[Tensor]] = ([], [])
    torch.manual_seed(1)
    bounds = [model.streamed(with_dropout(model, m)) for m in masks]
    forward = [list(m) for m in masks]
    for m in masks:
        m.clear()
    (bounds[0] + 2 * bounds[1]).sum().backward()
    for before, after in zip(forward, masks, strict=True):
        assert len(after) == 3
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not torch.equal(masks[0][0], masks[0][1])
    assert not torch.equal(masks[0][0], masks[1][0])


def test_dropout_gradient_is_that_of_the_masks() -> None:
    model, masks = Model(), []
    ours = model.streamed(with_dropout(model, masks))
    mask = torch.cat(masks)
    theirs = unchunked(model.q, lambda z: model.log_joint(z * mask))
    close([ours, *gradients(ours, model.leaves)], [theirs, *gradients(theirs, model.leaves)])


def test_random_numbers_go_on_as_without_a_replay() -> None:
    model = Model()
    torch.manual_seed(1)
    for _ in range(3):  # forward draws as a plain evaluation would
        nn.functional.dropout(torch.ones(7 if _ < 2 else 6, B, D, dtype=torch.float64), 0.5)
    expected = torch.rand(4), torch.rand(4)
    torch.manual_seed(1)
    bound = model.streamed(with_dropout(model, []))
    between = torch.rand(4)
    bound.sum().backward()
    assert torch.equal(between, expected[0])
    assert torch.equal(torch.rand(4), expected[1])


def test_generators_are_left_alone_where_nothing_is_drawn() -> None:
    """What another thread draws during the replay stays drawn: putting the generator back would repeat it."""
    model, drawn = Model(), []

    def log_joint(z: Tensor) -> Tensor:
        if replaying:
            other = threading.Thread(target=lambda: drawn.append(torch.rand(3)))
            other.start()
            other.join()
        return model.log_joint(z)

    replaying = False
    bound = model.streamed(log_joint)
    replaying = True
    bound.sum().backward()
    drawn.append(torch.rand(3))
    assert len({tuple(x.tolist()) for x in drawn}) == 4


@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast(backward_inside: bool) -> None:
    """The replay computes in the precision of forward, whatever is on in backward."""
    model, dtypes = Model(dtype=torch.float32), []

    def log_joint(z: Tensor) -> Tensor:
        out = z @ model.weight
        dtypes.append(out.dtype)
        return (out + model.bias).square().sum(-1)

    with torch.autocast("cpu", torch.bfloat16, enabled=not backward_inside):
        bound = model.streamed(log_joint)
        plain = unchunked(model.q, log_joint)
    with torch.autocast("cpu", torch.bfloat16, enabled=backward_inside):
        ours = gradients(bound, model.leaves)
    assert set(dtypes) == {torch.float32 if backward_inside else torch.bfloat16}
    # a bfloat16 product rounds the three chunks' gradients of weight, each of them of the size of their sum
    for a, b in zip(ours, gradients(plain, model.leaves), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=4 * 2.0**-8 * float(b.abs().max()))
    assert torch.allclose(bound, plain, rtol=1e-6)


def test_autocast_cache() -> None:
    """Weights that were cast without gradients are not met again, neither ours outside nor others' inside."""
    model = Model(dtype=torch.float32)

    def log_joint(z: Tensor) -> Tensor:
        return (z @ model.weight).sum(-1) + model.bias.sum()

    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            model.streamed(log_joint)
        assert (model.mean @ model.weight).requires_grad
        mean = model.mean.detach()
        assert (mean @ model.weight).requires_grad
        bound = model.streamed(log_joint)
        assert float(gradients(bound, [model.weight])[0].abs().sum()) > 0


# --- torch's machinery ------------------------------------------------------------------------------------------


def test_backward_again() -> None:
    model = Model()
    bound = model.streamed()
    first = gradients(bound, model.leaves, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, gradients(bound, model.leaves), strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        gradients(bound, model.leaves)


@pytest.mark.parametrize("wrt", ["mean", "weight"])
def test_second_derivatives_raise(wrt: str) -> None:
    model = Model()
    first = torch.autograd.grad(model.streamed().sum(), model.leaves, create_graph=True)
    for g in first:
        with pytest.raises(RuntimeError, match="second derivatives"):
            torch.autograd.grad(g.sum(), getattr(model, wrt), retain_graph=True, allow_unused=True)


def test_without_gradients() -> None:
    model = Model()
    expected = model.streamed().detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            bound = model.streamed()
            assert not bound.requires_grad
            assert torch.equal(bound, expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_inside_checkpoint(use_reentrant: bool) -> None:
    model = Model()

    def run(mean: Tensor, logvar: Tensor, seed: int | None) -> Tensor:
        scaled = 2 * model.weight

        def log_joint(z: Tensor) -> Tensor:
            return (z @ scaled).square().sum(-1)

        q = lk.DiagonalGaussian(mean, logvar)
        return lk.streamed_bound(q, log_joint, S, chunk=7, params=[scaled], seed=seed)

    results = []
    for checkpointed in (False, True):
        for x in model.leaves:
            x.grad = None
        torch.manual_seed(1)
        inputs = (model.mean.exp(), model.logvar, None)
        bound = checkpoint(run, *inputs, use_reentrant=use_reentrant) if checkpointed else run(*inputs)
        bound.sum().backward()
        results.append([bound.detach(), *(x.grad for x in model.leaves[:3])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_several_in_one_loss() -> None:
    model = Model()
    a, b = model.streamed(chunk=3), model.streamed(chunk=8, estimator="dreg", seed=4)
    alone = [gradients(model.streamed(chunk=3), model.leaves), gradients(b, model.leaves, retain_graph=True)]
    both = gradients(a + b, model.leaves)
    close(both, [x + y for x, y in zip(*alone, strict=True)])


def test_threads() -> None:
    model = Model()
    expected = [gradients(model.streamed(seed=i), model.leaves) for i in range(4)]
    found: dict[int, tuple[Tensor, ...]] = {}

    def work(i: int) -> None:
        for _ in range(5):
            found[i] = gradients(model.streamed(seed=i), model.leaves)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, gs in enumerate(expected):
        assert all(torch.equal(a, b) for a, b in zip(gs, found[i], strict=True))


def test_func_raises() -> None:
    model = Model()
    with pytest.raises(RuntimeError, match=r"does not work under torch\.func"):
        torch.func.grad(lambda m: lk.streamed_bound(lk.DiagonalGaussian(m, m), model.log_joint, S).sum())(model.mean)
    with pytest.raises(RuntimeError, match=r"does not work under torch\.func"):
        torch.func.vmap(lambda m: lk.streamed_bound(lk.DiagonalGaussian(m, m), model.log_joint, S))(model.mean)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch itself, where graphs break
def test_compile() -> None:
    """The compiler leaves its graph for the call; a compiled function inside log_joint works."""
    torch._dynamo.reset()
    model = Model()

    def run(mean: Tensor, logvar: Tensor, log_joint: Callable[[Tensor], Tensor]) -> Tensor:
        q = lk.DiagonalGaussian(2 * mean, logvar)
        return 2 * lk.streamed_bound(q, log_joint, S, chunk=7, params=model.params, seed=3)

    inputs = (model.mean, model.logvar)
    expected = gradients(run(*inputs, model.log_joint), model.leaves)
    compiled = torch.compile(run, backend="aot_eager")
    close(gradients(compiled(*inputs, model.log_joint), model.leaves), expected)
    inner = torch.compile(model.log_joint, backend="aot_eager")
    close(gradients(run(*inputs, inner), model.leaves), expected)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="the function `disable`"):
        torch.compile(run, backend="aot_eager", fullgraph=True)(*inputs, model.log_joint)


# --- memory -----------------------------------------------------------------------------------------------------


class Memory(TorchDispatchMode):
    """The bytes of all storages that operations made and that live at once, and the largest tensor ever made."""

    def __init__(self, *inputs: Tensor) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self._inputs = {x.untyped_storage()._cdata for x in inputs}
        self._sizes: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel())
                self._add(x.untyped_storage())
        return out

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._inputs or (key in self._sizes and self._sizes[key][0]() is not None):
            return
        self._sizes[key] = (weakref.ref(storage, lambda _: self._remove(key)), size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _remove(self, key: int) -> None:
        self.live -= self._sizes.pop(key)[1]


@every_estimator
def test_memory_does_not_grow_with_samples(estimator: str) -> None:
    """And no tensor has S elements for each row, nor for a single one."""
    model, chunk = Model((2,)), 5

    def measure(samples: int, streamed: bool) -> Memory:
        with Memory(*model.leaves, model.x) as memory:
            if streamed:
                bound = lk.streamed_bound(
                    model.q,
                    model.log_joint,
                    samples,
                    chunk=chunk,
                    params=model.params,
                    estimator=estimator,
                    seed=1,
                )
            else:
                bound = unchunked(model.q, model.log_joint, samples, estimator, 1)
            gradients(bound, model.leaves)
            del bound
        return memory

    few, some, many = (measure(samples, True) for samples in (10, 100, 1000))
    assert few.peak == some.peak == many.peak
    assert few.largest == some.largest == many.largest == chunk * 2 * D  # z of a chunk
    plain = [measure(samples, False) for samples in (10, 100, 1000)]
    assert plain[2].peak > 5 * plain[1].peak > 25 * plain[0].peak / 10
    assert plain[2].largest >= 1000 * 2 * D


def test_nothing_is_kept_between_forward_and_backward() -> None:
    model = Model((2,))
    lives = []
    for samples in (10, 1000):
        with Memory(*model.leaves, model.x) as memory:
            bound = lk.streamed_bound(model.q, model.log_joint, samples, chunk=5, params=model.params, seed=1)
            lives.append(memory.live)
            del bound
    assert lives[0] == lives[1] <= 5 * 2 * 8  # the bound, the largest weight and the sum; and what they are cut from


def test_memory_of_the_process() -> None:
    """What the system says, with the kernels called plainly: 16 times the samples, and no more memory."""
    code = """
import torch, latent_kernels as lk
torch.set_num_threads(1)
weight, x = torch.randn(8, 256, requires_grad=True), torch.randn(64, 256)
mean = torch.zeros(64, 8, requires_grad=True)
log_joint = lambda z: -((x - torch.tanh(z @ weight)) ** 2).sum(-1)
def peak(samples, streamed):
    q = lk.DiagonalGaussian(mean, mean)
    if streamed:
        bound = lk.streamed_bound(q, log_joint, samples, chunk=32, params=[weight], seed=1)
    else:
        z, log_q = q.rsample_log_prob(samples, seed=1)
        bound = lk.importance_bound(log_joint(z) - log_q)
    bound.sum().backward()
    line = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))
    return int(line.split()[1]) // 1024
peak(32, True)
print(peak(64, True), peak(1024, True), peak(1024, False))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    few, many, unchunked_peak = map(int, result.stdout.split())
    chunk = 32 * 64 * 256 * 4 // 2**20  # MB of one tensor
    assert many - few <= 2 * chunk, (few, many)
    assert unchunked_peak - many >= 64 * chunk, (many, unchunked_peak)  # two tensors, saved for backward


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"chunk": 0}, ValueError, "chunk must be an int >= 1; got 0"),
        ({"chunk": None}, TypeError, "chunk must be an int >= 1; got None"),
        ({"chunk": True}, TypeError, "chunk must be an int >= 1; got True"),
        ({"chunk": 2.0}, TypeError, "chunk must be an int >= 1; got 2.0"),
        ({"estimator": "vimco"}, ValueError, "cannot be streamed: use importance_bound"),
        ({"estimator": "elbo"}, ValueError, "estimator must be one of 'iwae', 'stl', 'dreg'; got 'elbo'"),
        ({"seed": -1}, ValueError, r"seed must lie in \[0, 2\^63\); got -1"),
        ({"seed": 1.0}, TypeError, "seed must be an int"),
        ({"params": torch.zeros(3)}, TypeError, "params must be an iterable of tensors; got Tensor"),
        ({"params": nn.Linear(1, 1)}, TypeError, "params must be an iterable of tensors; got Linear"),
        ({"params": {"w": torch.zeros(3)}}, TypeError, "params must hold tensors; got str"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Model().streamed(**options)


@pytest.mark.parametrize(("samples", "error"), [(0, ValueError), (None, TypeError), (True, TypeError)])
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
        (lambda z: z.sum(-1).long(), TypeError, "log_joint must return float32, .* or float16; got torch.int64"),
        (lambda z: z, ValueError, r"log_joint must return shape \(7, 4\) for z \(7, 4, 5\); got \(7, 4, 5\)"),
        (lambda z: z.sum(-1)[0], ValueError, r"log_joint must return shape \(7, 4\) for z \(7, 4, 5\); got \(4,\)"),
        (lambda z: z.sum(-1, keepdim=True), ValueError, r"got \(7, 4, 1\)"),
        (
            lambda z: z.sum(-1).to("meta"),
            ValueError,
            "what log_joint returns must be on the device of z, cpu; got meta",
        ),
    ],
)
def test_bad_results(log_joint: Callable[[Tensor], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Model().streamed(log_joint)

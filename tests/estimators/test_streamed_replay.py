"""The replay of the streamed bound in backward: what it refuses, what it restores, what it works
with, and its memory.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import latent_kernels as lk
from tests.estimators.streamed_model import ESTIMATORS, B, D, Model, S, close, gradients, unchunked
from tests.processes import run

Tensor = torch.Tensor


# --- gradients that would be missing or wrong -----------------------------------------------------


def test_missing_leaf_raises_at_the_call() -> None:
    model = Model()
    with pytest.raises(
        RuntimeError,
        match=r"reads a tensor of shape \(3,\) that requires grad and is not in params",
    ):
        model.streamed(params=[model.weight])
    for x in model.leaves[:3]:  # nothing else wants a gradient
        x.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"shape \(3,\)"):
        model.streamed(params=[])
    with torch.no_grad():
        model.streamed(params=[])


def test_missing_tensor_upstream_of_q() -> None:
    """It is refused even where everything it was computed from is listed: its graph would run once
    per chunk, and be freed.
    """
    model = Model()
    hidden = torch.exp(model.weight)
    q = lk.DiagonalGaussian(model.mean * hidden.sum(), model.logvar)

    def log_joint(z: Tensor) -> Tensor:
        return (z @ hidden).sum(-1)

    with pytest.raises(
        RuntimeError, match=r"shape \(5, 3\) that requires grad and is not in params"
    ):
        lk.streamed_bound(q, log_joint, S, chunk=7, params=model.params)
    left, right = torch.split(model.mean * 2, [2, 3], 1)
    with pytest.raises(RuntimeError, match=r"shape \(4, 3\) that requires grad"):
        model.streamed(
            lambda z: (z[..., :2] * left).sum(-1) + (z[..., 2:] * right).sum(-1), params=[left]
        )


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
        return model.streamed(
            lambda z: (z @ scaled * (z @ weight)).sum(-1), params=[scaled, weight]
        )

    with pytest.raises(
        RuntimeError, match=r"shape \(5, 3\), and another one that was computed from it"
    ):
        run(model.weight)
    expected = unchunked(model.q, lambda z: (z @ scaled * (z @ model.weight)).sum(-1))
    inputs = (model.mean, model.weight)
    close(gradients(run(clone), inputs, retain_graph=True), gradients(expected, inputs))


def test_params_with_hooks() -> None:
    """Hooks are refused, since they would run in every replay and once more."""
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


# --- random numbers and autocast in log_joint -----------------------------------------------------


def with_dropout(model: Model, masks: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def log_joint(z: Tensor) -> Tensor:
        mask = nn.functional.dropout(torch.ones_like(z), 0.5)
        masks.append(mask)
        return model.log_joint(z * mask)

    return log_joint


def test_dropout_is_replayed() -> None:
    """Two bounds in one loss replay their own masks, in whichever order backward takes them."""
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
    """A generator that log_joint does not use is not reset: that would repeat what another thread
    draws meanwhile.
    """
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


@pytest.mark.gpu
def test_gpu_seeds_and_generators() -> None:
    """The replay uses forward's seed tensor and masks, although both the seed and the generator
    have advanced.
    """
    mean = torch.randn(B, D, device="cuda", requires_grad=True)
    seed, masks = torch.tensor(3, device="cuda"), []

    def log_joint(z: Tensor) -> Tensor:
        masks.append(nn.functional.dropout(torch.ones_like(z), 0.5))
        return -(z * masks[-1]).square().sum(-1)

    bound = lk.streamed_bound(lk.DiagonalGaussian(mean, mean), log_joint, S, chunk=7, seed=seed)
    seed += 1
    between = torch.cuda.get_rng_state()
    (ours,) = gradients(bound, [mean])
    assert torch.equal(torch.cuda.get_rng_state(), between)
    assert all(torch.equal(a, b) for a, b in zip(masks[:3], masks[3:], strict=True))
    mask = torch.cat(masks[:3])
    z, log_q = lk.DiagonalGaussian(mean, mean).rsample_log_prob(S, seed=3)
    (theirs,) = gradients(lk.importance_bound(-(z * mask).square().sum(-1) - log_q), [mean])
    # three partial sums in another order, of terms that float32 rounds
    assert torch.allclose(ours, theirs, rtol=0, atol=S * 2.0**-23 * (1 + float(theirs.abs().max())))


@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast(backward_inside: bool) -> None:
    """The replay computes in the precision of forward, whatever autocast says in backward."""
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
    # a bfloat16 product rounds the three chunks' gradients of weight, each of them of the size of
    # their sum
    for a, b in zip(ours, gradients(plain, model.leaves), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=4 * 2.0**-8 * float(b.abs().max()))
    assert torch.allclose(bound, plain, rtol=1e-6)


def test_autocast_cache() -> None:
    """Weights that were cast without gradients are not reused, neither ours outside nor others'
    inside.
    """
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


# --- torch's machinery ----------------------------------------------------------------------------


def test_backward_again() -> None:
    model = Model()
    bound = model.streamed()
    first = gradients(bound, model.leaves, retain_graph=True)
    assert all(
        torch.equal(a, b) for a, b in zip(first, gradients(bound, model.leaves), strict=True)
    )
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
        bound = (
            checkpoint(run, *inputs, use_reentrant=use_reentrant) if checkpointed else run(*inputs)
        )
        bound.sum().backward()
        results.append([bound.detach(), *(x.grad for x in model.leaves[:3])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_several_in_one_loss() -> None:
    model = Model()
    a, b = model.streamed(chunk=3), model.streamed(chunk=8, estimator="dreg", seed=4)
    alone = [
        gradients(model.streamed(chunk=3), model.leaves),
        gradients(b, model.leaves, retain_graph=True),
    ]
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
        torch.func.grad(
            lambda m: lk.streamed_bound(lk.DiagonalGaussian(m, m), model.log_joint, S).sum()
        )(model.mean)
    with pytest.raises(RuntimeError, match=r"does not work under torch\.func"):
        torch.func.vmap(lambda m: lk.streamed_bound(lk.DiagonalGaussian(m, m), model.log_joint, S))(
            model.mean
        )


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute:UserWarning"
)  # torch itself, where graphs break
def test_compile() -> None:
    """The compiler breaks its graph at the call; a compiled function inside log_joint works."""
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
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"`(torch\._dynamo\.)?disable"):
        torch.compile(run, backend="aot_eager", fullgraph=True)(*inputs, model.log_joint)


# --- memory ---------------------------------------------------------------------------------------


class Memory(TorchDispatchMode):
    """The bytes of all storages alive at once that operations made, and the largest tensor ever
    made.
    """

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


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_memory_does_not_grow_with_samples(estimator: str) -> None:
    """Memory does not grow with S: no tensor has S elements for each row, nor for a single one."""
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
            bound = lk.streamed_bound(
                model.q, model.log_joint, samples, chunk=5, params=model.params, seed=1
            )
            lives.append(memory.live)
            del bound
    assert (
        lives[0] == lives[1] <= 5 * 2 * 8
    )  # the bound, the largest weight and the sum; and what they are cut from


def test_memory_of_the_process() -> None:
    """With 16 times the samples the process takes no more memory by the system's count, with the
    kernels called plainly.
    """
    code = """
import torch, latent_kernels as lk
from pathlib import Path
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
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024
peak(64, True)
print(peak(64, True), peak(1024, True), peak(1024, False))
"""
    # freed memory goes back, and does not lie in pieces
    found = run(code, MALLOC_MMAP_THRESHOLD_="65536")
    few, many, unchunked_peak = map(int, found.split())
    chunk = 32 * 64 * 256 * 4 // 2**20  # MB of one tensor
    assert many - few <= 2 * chunk, (few, many)
    assert unchunked_peak - many >= 64 * chunk, (
        many,
        unchunked_peak,
    )  # two tensors, saved for backward

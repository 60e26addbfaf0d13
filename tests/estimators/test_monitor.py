"""GradientVarianceMonitor: its numbers against closed forms and enumeration, the coverage of its
intervals, and that it changes nothing.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import latent_kernels as lk
from latent_kernels.variational.monitor import GradientNoise

Tensor = torch.Tensor
F64 = torch.float64


def averages(monitor: lk.GradientVarianceMonitor) -> list[tuple[Tensor, ...]]:
    """Return for each group the estimates of V and of |E g|^2, one per measurement."""
    groups = range(len(monitor.names))
    return [tuple(torch.from_numpy(x) for x in monitor._estimates(i)) for i in groups]


def check_mean(found: Tensor, expected: float) -> None:
    """Check that the mean of independent estimates is the truth, within four standard errors."""
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean()) - expected) < 4 * error + 1e-12 * abs(expected)


# --- the numbers ----------------------------------------------------------------------------------


def test_score_functions_against_enumeration() -> None:
    """With a baseline the terms of a gradient are independent, and V and |E g|^2 are estimated
    without bias.
    """
    logits, weights = torch.tensor([0.5, -1.0, 0.2], dtype=F64), torch.tensor([1.0, -2.0, 3.0])
    q, samples = lk.Bernoulli(logits), 4

    def f(z: Tensor) -> Tensor:
        return (z * weights).sum(-1) + z.prod(-1)

    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=F64)
    p = q.log_prob(states).exp()
    terms = (f(states) - 0.7)[:, None] * (states - q.probs)
    mean = p @ terms
    variance = float((p @ (terms - mean).square()).sum()) / samples
    monitor = lk.GradientVarianceMonitor({"logits": logits.requires_grad_()}, every=1, window=2000)
    q = lk.Bernoulli(logits.detach())
    for seed in range(2000):
        z = q.sample(samples, seed=seed)
        baseline = torch.tensor(0.7, dtype=F64)
        found = lk.score_function_gradient(
            q, f(z), z, control_variate=baseline, return_variance=True
        )
        monitor.record(*found)
        monitor.step()
    ((traces, squares),) = averages(monitor)
    check_mean(traces, variance)
    check_mean(squares, float(mean.square().sum()))
    noise = monitor.summary()["logits"]
    assert noise.variance_low < variance < noise.variance_high
    ratio = math.sqrt(float(mean.square().sum()) / variance)
    assert noise.signal_to_noise_low < ratio < noise.signal_to_noise_high


@pytest.mark.parametrize("way", ["watch", "pairs"])
def test_reparameterized_gradients_against_closed_forms(way: str) -> None:
    """Estimates agree with closed forms for the loss mean_s a z_s^2 / 2 + b logvar: its terms are a
    z_s by the mean, and by logvar a (m sigma e + sigma^2 e^2) / 2 + b.
    """
    a, b = torch.tensor([0.5, 2.0], dtype=F64), torch.tensor([-0.3, 0.4], dtype=F64)
    mean = torch.tensor([1.0, -0.5], dtype=F64, requires_grad=True)
    logvar = torch.tensor([0.2, -1.0], dtype=F64, requires_grad=True)
    m, v = mean.detach(), logvar.detach().exp()
    samples, steps = 4, 3000
    truths = (
        (float((a * a * v).sum()) / samples, float((a * m).square().sum())),
        (
            float((a * a / 4 * (m * m * v + 2 * v * v)).sum()) / samples,
            float((a * v / 2 + b).square().sum()),
        ),
    )
    monitor = lk.GradientVarianceMonitor(
        {"mean": mean, "logvar": logvar}, every=1, window=steps if way == "watch" else steps // 2
    )
    for seed in range(steps):
        q = lk.DiagonalGaussian(mean, logvar)
        z = q.rsample(samples, seed=seed)
        if way == "watch":
            monitor.watch(z, mean, logvar)
        mean.grad = logvar.grad = None
        ((0.5 * a * z * z).mean(0) + b * logvar).sum().backward()
        monitor.step()
    for (traces, squares), (variance, square) in zip(averages(monitor), truths, strict=True):
        check_mean(traces, variance)
        check_mean(squares, square)


def test_importance_bounds_by_pairs_agree_with_the_profile() -> None:
    """At fixed parameters the pairs see what `profile_variance` sees, for weights that couple the
    samples.
    """
    x = torch.tensor([1.0, -1.0, 0.5])

    def log_joint(z: Tensor) -> Tensor:
        return -0.5 * ((x - z).square() + z.square()).sum(-1)

    mean = torch.zeros(3, requires_grad=True)
    logvar = torch.full((3,), -0.5, requires_grad=True)
    profile = lk.profile_variance(
        lk.DiagonalGaussian(mean, logvar),
        log_joint,
        objective="importance_bound",
        estimators=["dreg"],
        num_samples=(8,),
        repeats=512,
    )
    monitor = lk.GradientVarianceMonitor({"q": [mean, logvar]}, every=1, window=512)
    for seed in range(1024):
        q = lk.DiagonalGaussian(mean, logvar)
        z, log_q = q.rsample_log_prob(8, seed=seed, path_derivative=True)
        mean.grad = logvar.grad = None
        lk.importance_bound(log_joint(z) - log_q, estimator="dreg", z=z).backward()
        monitor.step()
    (row,), noise = profile.rows("dreg"), monitor.summary()["q"]
    assert noise.measurements == 512
    for name in ("variance", "signal_to_noise"):
        low, high = getattr(noise, f"{name}_low"), getattr(noise, f"{name}_high")
        assert low < row[f"{name}_high"]
        assert row[f"{name}_low"] < high


def terms_by_autograd(z_terms: Callable[[int], tuple[Tensor, ...]], samples: int) -> list[Tensor]:
    return [torch.stack(parts) for parts in zip(*map(z_terms, range(samples)), strict=True)]


@settings(max_examples=40)
@given(
    samples=st.integers(2, 5),
    batch=st.sampled_from([(), (1,), (3,), (2, 3)]),
    cols=st.integers(1, 4),
    shared=st.sampled_from(["none", "mean", "logvar"]),
    passes=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
def test_watched_terms_are_those_of_autograd(
    samples: int, batch: tuple[int, ...], cols: int, shared: str, passes: int, seed: int
) -> None:
    """The terms are those of autograd, also for parameters that rows share and for a loss whose
    parts go backward one by one.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = [(cols,) if shared == name else (*batch, cols) for name in ("mean", "logvar")]
    mean, logvar = (
        torch.randn(shape, generator=generator, dtype=F64).requires_grad_() for shape in shapes
    )
    monitor = lk.GradientVarianceMonitor(["mean", "logvar"], every=1, window=8)
    z = lk.rsample(mean, logvar, samples, seed=seed)
    parts = [torch.sin(z * (i + 1)).mean(0).sum() for i in range(passes)]
    parts[-1] = parts[-1] + (mean * mean).sum() + logvar.sum()
    monitor.watch(z, mean, logvar)
    for part in parts:
        part.backward(retain_graph=True)
    monitor.step()

    def term(s: int) -> tuple[Tensor, ...]:
        loss = sum(torch.sin(z[s] * (i + 1)).sum() for i in range(passes)) / samples
        return torch.autograd.grad(loss, (mean, logvar), retain_graph=True)

    for (trace, square), terms, leaf in zip(
        averages(monitor), terms_by_autograd(term, samples), (mean, logvar), strict=True
    ):
        variance = samples * terms.var(0).sum()
        torch.testing.assert_close(trace[0], variance, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(square[0], leaf.grad.square().sum() - variance)


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, F64, torch.bfloat16, torch.float16]),
)
def test_groups_of_any_shapes(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> None:
    tensors = [torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    monitor = lk.GradientVarianceMonitor({"all": tensors, "first": tensors[0]}, every=1)
    for value in (1.0, 3.0):
        for x in tensors:
            x.grad = torch.full_like(x, value)
        monitor.step()
    count = float(sum(x.numel() for x in tensors))
    assert monitor.summary()["all"][:2] == (1, 2 * count)
    assert [float(x) for x in averages(monitor)[0][1]] == [3 * count]
    by_record = lk.GradientVarianceMonitor([str(i) for i in range(len(shapes))], every=1)
    by_record.record([x.grad for x in tensors], tuple(2 * x.grad for x in tensors))
    by_record.step()
    assert [n.variance for n in by_record.summary().values()] == [6.0 * x.numel() for x in tensors]


# --- the intervals --------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", [0.0, 0.3, 2.0])
def test_intervals_cover_the_truth(signal: float) -> None:
    """The intervals of normal gradients by pairs, with 20 parameters of unequal variance, cover the
    truth over 200 seeds.
    """
    scale = np.linspace(0.2, 1.5, 20)
    variance = float((scale**2).sum())
    mean = np.full(20, signal * math.sqrt(variance / 20))
    covered = np.zeros(2)
    parameter = torch.zeros(20, dtype=F64, requires_grad=True)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        monitor = lk.GradientVarianceMonitor([parameter], every=2, window=50)
        for g in mean + scale * rng.standard_normal((100, 20)):
            parameter.grad = torch.from_numpy(g)
            monitor.step()
        noise = monitor.summary()["0"]
        assert noise.measurements == 50
        covered += (
            noise.variance_low <= variance <= noise.variance_high,
            noise.signal_to_noise_low <= signal <= noise.signal_to_noise_high,
        )
    assert (covered >= 0.9 * 200).all(), covered


def test_intervals_of_score_functions_cover_the_truth() -> None:
    """The intervals of 200 trainings that do not move cover the variance over all states."""
    logits = torch.tensor([[0.3, -0.8], [1.0, 0.1]], dtype=F64)
    q, samples, window = lk.Bernoulli(logits), 16, 20
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)), dtype=F64)
    states = states[:, None].expand(-1, 2, -1)
    p = q.log_prob(states).exp()[..., None]
    terms = states.sum(-1, keepdim=True).square() * (states - q.probs)
    truth = float((p * (terms - (p * terms).sum(0)).square()).sum()) / samples
    covered = 0
    for seed in range(200):
        monitor = lk.GradientVarianceMonitor(["logits"], every=1, window=window)
        for z in q.sample(window * samples, seed=seed).reshape(window, samples, 2, 2):
            values = z.sum(-1).square()
            monitor.record(
                *lk.score_function_gradient(
                    q, values, z, control_variate="none", return_variance=True
                )
            )
            monitor.step()
        noise = monitor.summary()["logits"]
        covered += noise.variance_low <= truth <= noise.variance_high
    assert covered >= 0.9 * 200, covered


# --- it changes nothing ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["record", "watch", "pairs"])
def test_it_changes_no_gradient_and_no_random_stream(way: str) -> None:
    def train(monitored: bool) -> list[Any]:
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002
        random.seed(3)
        mean, logvar = torch.zeros(5, requires_grad=True), torch.zeros(5, requires_grad=True)
        optimizer = torch.optim.Adam([mean, logvar], lr=0.05)
        monitor = lk.GradientVarianceMonitor({"mean": mean, "logvar": logvar}, every=2, window=8)
        seen: list[Any] = []
        for _ in range(40):
            q = lk.DiagonalGaussian(mean, logvar)
            z = q.rsample(4) if way == "watch" else q.sample(4)
            values = -(z - 1).square().sum(-1)
            optimizer.zero_grad()
            if way == "watch":
                if monitored:
                    monitor.watch(z, mean, logvar)
                loss = -values.mean() - q.entropy()
            else:
                loss = -lk.score_function_expectation(q, values, z)
            if monitored and way == "record":
                monitor.record(*lk.score_function_gradient(q, values, z, return_variance=True))
            loss.backward()
            if monitored:
                monitor.step()
            seen += [mean.grad.clone(), logvar.grad.clone()]
            optimizer.step()
        seen += [mean.detach(), logvar.detach(), torch.get_rng_state()]
        if monitored:
            assert len(monitor.history) == 2 * (20 // 8)
        return [*seen, torch.tensor([random.random(), np.random.rand()])]  # noqa: NPY002

    assert all(map(torch.equal, train(True), train(False)))


def test_gradients_may_be_changed_after_a_step() -> None:
    """The monitor keeps a copy of the first gradient of a pair, so clipping in place does not
    change it.
    """
    x = torch.zeros(2, requires_grad=True)
    monitor = lk.GradientVarianceMonitor({"x": x}, every=1)
    for value in (1.0, 3.0):
        x.grad = torch.full((2,), value)
        monitor.step()
        x.grad.zero_()
    assert monitor.summary()["x"].variance == 4.0


# --- steps, reports -------------------------------------------------------------------------------


class Writer:
    """A stand-in for SummaryWriter that records what is written."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.append((tag, value, step))


def by_pairs(values: list[float], **options: Any) -> lk.GradientVarianceMonitor:
    x = torch.zeros(1, requires_grad=True)
    monitor = lk.GradientVarianceMonitor({"x": x}, **options)
    for value in values:
        x.grad = torch.tensor([value])
        monitor.step()
    return monitor


@pytest.mark.parametrize(("every", "count"), [(1, 50), (2, 50), (3, 33), (10, 10)])
def test_a_pair_begins_when_it_is_due(every: int, count: int) -> None:
    monitor = by_pairs([float(i) for i in range(100)], every=every, window=64)
    noise = monitor.summary()["x"]
    assert noise.measurements == count
    assert noise.variance == 0.5
    assert monitor.due == (100 % every == 0)


def test_reports_are_logged_written_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    writer, rng = Writer(), np.random.default_rng(0)
    with caplog.at_level(logging.INFO, "latent_kernels"):
        monitor = by_pairs(rng.normal(1.0, 0.5, 40).tolist(), every=2, window=8, writer=writer)
    assert monitor.history["step"].tolist() == [16, 32]
    assert monitor.history.dtype.names == ("step", "group", *GradientNoise._fields)
    assert set(monitor.history["group"]) == {"x"}
    assert [x for x in writer.scalars if x[0] == "gradient_variance/x"] == [
        ("gradient_variance/x", row["variance"], row["step"]) for row in monitor.history
    ]
    assert len(writer.scalars) == 2 * 6
    first = caplog.messages[0]
    assert first.startswith("step 16, gradient of x: variance ")
    assert first.endswith(", from 8 measurements")
    assert "signal to noise" in first
    assert len(caplog.messages) == 2
    found = monitor.report()["x"]  # the last eight of twenty
    assert found == monitor.summary()["x"]
    assert monitor.history["step"].tolist() == [16, 32, 40]


def test_what_is_not_finite_is_left_out() -> None:
    monitor = by_pairs([1.0, 3.0, math.inf, 1.0, math.nan, 2.0, 3.0, 5.0], every=2, window=8)
    assert monitor.summary()["x"][:2] == (2, 2.0)


def test_before_anything_was_measured_and_from_few() -> None:
    noise = by_pairs([]).summary()["x"]
    assert noise.measurements == 0
    assert all(math.isnan(x) for x in noise[1:])
    few = by_pairs([1.0, 2.0, 1.0, 2.0], every=2).summary()["x"]
    assert few.variance == 0.5
    assert few.signal_to_noise == 2.0
    assert math.isnan(few.variance_low)
    assert math.isnan(few.signal_to_noise_high)


def test_gradients_without_noise() -> None:
    noise = by_pairs([2.0] * 16, every=2, window=8).summary()["x"]
    assert noise[1:] == (0.0, 0.0, 0.0, math.inf, math.inf, math.inf)
    assert by_pairs([0.0] * 16, every=2, window=8).summary()["x"].signal_to_noise == 0.0


def test_parameters_without_gradient_count_as_zero_beside_others() -> None:
    x, y = torch.zeros(2, requires_grad=True), torch.zeros(3, requires_grad=True)
    monitor = lk.GradientVarianceMonitor([x, [x, y]], every=1)  # type: ignore[list-item]
    for value in (0.0, 2.0):
        x.grad = torch.full((2,), value)
        monitor.step()
    assert [n.variance for n in monitor.summary().values()] == [4.0, 4.0]


def test_names_alone_measure_nothing_by_steps() -> None:
    monitor = lk.GradientVarianceMonitor(["mean"], every=1)
    for _ in range(3):
        monitor.step()
    assert monitor.summary()["mean"].measurements == 0


def test_sparse_gradients() -> None:
    table = torch.nn.Embedding(4, 3, sparse=True)
    monitor = lk.GradientVarianceMonitor(dict(table.named_parameters()), every=1)
    for row in (0, 1):
        table.zero_grad()
        table(torch.tensor([row])).sum().backward()
        monitor.step()
    assert monitor.summary()["weight"].variance == 3.0


# --- bad input ------------------------------------------------------------------------------------

X = torch.zeros(3, requires_grad=True)
Z = torch.zeros(2, 3, requires_grad=True)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((5,), {}, TypeError, "q_parameters must be a mapping .* got int"),
        ((X,), {}, TypeError, "q_parameters must be a mapping .* got Parameter|got Tensor"),
        (("mean",), {}, TypeError, "q_parameters must be a mapping .* got str"),
        (([],), {}, ValueError, "q_parameters must hold at least one group"),
        (({"x": []},), {}, ValueError, "q_parameters 'x' must hold at least one tensor"),
        (([X, []],), {}, ValueError, "q_parameters '1' must hold at least one tensor"),
        (({1: X},), {}, TypeError, "q_parameters must have names that are strings; got 1"),
        ((["a", "a"],), {}, ValueError, "q_parameters must have different names; got 'a' twice"),
        ((["a", X],), {}, TypeError, "q_parameters must hold tensors or names; got both"),
        (({"x": 1.0},), {}, TypeError, "q_parameters 'x' must be tensors; got float"),
        (({"x": [1.0]},), {}, TypeError, "q_parameters 'x' must be a torch.Tensor; got float"),
        (({"x": X.long()},), {}, TypeError, "q_parameters 'x' must have dtype"),
        (({"x": X + 1},), {}, ValueError, "q_parameters 'x' must be leaves that require grad"),
        (({"x": X.detach()},), {}, ValueError, "q_parameters 'x' must be leaves that require"),
        (([X],), {"every": 0}, ValueError, "every must be an int >= 1; got 0"),
        (([X],), {"every": 1.5}, TypeError, r"every must be an int >= 1; got 1\.5"),
        (([X],), {"window": 7}, ValueError, "window must be an int >= 8; got 7"),
        (([X],), {"writer": "runs"}, TypeError, "writer must be a SummaryWriter.* got str"),
    ],
)
def test_bad_monitors(arguments: Any, options: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        lk.GradientVarianceMonitor(*arguments, **options)


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda m: m.record(X, X), ValueError, "gradients must hold a tensor for each .* a, b"),
        (lambda m: m.record((X,), (X, X)), ValueError, "gradients must hold .* got 1 of them"),
        (lambda m: m.record((X, X), [X]), ValueError, "variances must hold .* got 1 of them"),
        (lambda m: m.record((X, 1), (X, X)), TypeError, "gradients must be a torch.Tensor"),
        (lambda m: m.record((X, X), (X, X[:2])), ValueError, r"variances must have .*\(3,\).*\(2,"),
        (lambda m: m.watch(Z.detach(), X, X), ValueError, "z must require grad"),
        (
            lambda m: m.watch(Z[:1], X, X),
            ValueError,
            r"z must have shape \[S, \*\(3,\)\] with S >=",
        ),
        (lambda m: m.watch(X, X, X), ValueError, r"z must have shape .* got \(3,\)"),
        (lambda m: m.watch(Z, X, 0.0), TypeError, "logvar must be a torch.Tensor; got float"),
        (lambda m: m.watch(Z, X, torch.zeros(2)), ValueError, "mean and logvar must have shapes"),
        (lambda m: m.watch(Z, X, X.detach()), ValueError, "mean and logvar must require grad"),
        (lambda m: (m.watch(Z, X, X), m.step()), ValueError, r"z of watch\(\) must have been"),
        (lambda m: (m.watch(Z, X, X), m.record([X] * 2, [X] * 2)), ValueError, "once a step"),
        (lambda m: [m.record([X] * 2, [X] * 2) for _ in range(2)], ValueError, "once a step"),
    ],
)
def test_bad_measurements(use: Callable[[Any], Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        use(lk.GradientVarianceMonitor(["a", "b"], every=1))


def test_steps_without_gradients_and_ways_that_change() -> None:
    x = torch.zeros(3, requires_grad=True)
    monitor = lk.GradientVarianceMonitor({"x": x}, every=1)
    with pytest.raises(ValueError, match="q_parameters 'x' must have a gradient: call step"):
        monitor.step()
    x.grad = torch.zeros(3)
    monitor.step()
    with pytest.raises(ValueError, match="record must be called in every step that is due"):
        monitor.record([x], [x])

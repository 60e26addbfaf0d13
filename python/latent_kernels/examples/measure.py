"""One training step with the fused ops against the same step in plain torch: time, peak memory,
bytes kept.

"step" is the whole of it: forward, backward, Adam. "ops" is the part that the kernels replace
alone, forward and backward on given tensors: the sampling, the KL and the Gaussian log-likelihood;
for an importance-weighted bound the sampling with log q, the prior, the likelihood and the bound.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from latent_kernels.examples.objectives import (
    ELBO,
    WEIGHTED_OPS,
    Objective,
    Ops,
    weighted_bound,
)
from latent_kernels.examples.vae import FUSED, PIXELS, PLAIN, VAE

Step = Callable[[], None]


class Size(NamedTuple):
    """A size to measure at: B images, S samples each (None: one), D latent dimensions."""

    name: str
    batch: int
    num_samples: int | None
    latent: int
    hidden: int
    rounds: int

    def with_samples(self, objective: Objective) -> Size:
        """The same for the objective's number of samples: of as many samples in all, where it has
        many for an image.
        """
        if objective == ELBO:
            return self
        batch = max(self.batch * (self.num_samples or objective.samples) // objective.samples, 1)
        return self._replace(batch=batch, num_samples=objective.samples)


class Cost(NamedTuple):
    """What one step takes."""

    milliseconds: float  # median
    peak_bytes: int  # the most that torch held at once, beyond what it held before the step
    saved_bytes: int  # kept by autograd from forward to backward, parameters and images not counted


class Row(NamedTuple):
    """Both versions of one thing."""

    size: Size
    what: str  # "step" or "ops"
    ours: Cost
    plain: Cost

    @property
    def speedup(self) -> float:
        """Return how many times as fast ours is."""
        return self.plain.milliseconds / self.ours.milliseconds


def compare(
    size: Size, images: torch.Tensor, *, seed: int, objective: Objective = ELBO
) -> list[Row]:
    """The whole step and the ops alone, at one size, whose number of samples is the objective's."""
    rows = images[torch.arange(size.batch) % len(images)]
    step = [training_step(size, rows, ops, seed, objective) for ops in (FUSED, PLAIN)]
    make = partial(_weighted_ops_alone, bound=objective.bound) if objective.weighted else _ops_alone
    alone = [make(size, rows, ops, seed) for ops in (FUSED, PLAIN)]
    return [_row(size, "step", rows, *step), _row(size, "ops", rows, *alone)]


def _row(size: Size, what: str, images: torch.Tensor, ours: Stepper, plain: Stepper) -> Row:
    times = interleaved(ours.run, plain.run, rounds=size.rounds)
    costs = (
        Cost(
            1e3 * seconds, peak_memory(stepper), saved_bytes(stepper.run, [*stepper.given, images])
        )
        for seconds, stepper in zip(times, (ours, plain), strict=True)
    )
    return Row(size, what, *costs)


class Stepper(NamedTuple):
    """Something to run, and the tensors that exist before and after it."""

    run: Step
    given: list[torch.Tensor]


def training_step(
    size: Size,
    images: torch.Tensor,
    ops: Ops,
    seed: int,
    objective: Objective = ELBO,
    likelihood: str = "gaussian",
) -> Stepper:
    """Forward, backward and Adam on the same images again and again."""
    torch.manual_seed(seed)
    model = VAE(size.latent, likelihood, size.hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)

    def run() -> None:
        if objective.weighted:
            loss = -weighted_bound(model, images, objective, ops)[0].mean()
        else:
            reconstruction, kl = model.elbo(images, size.num_samples, ops)
            loss = (kl - reconstruction).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Stepper(run, list(model.parameters()))


def _ops_alone(size: Size, images: torch.Tensor, ops: Ops, seed: int) -> Stepper:
    torch.manual_seed(seed)
    lead = () if size.num_samples is None else (size.num_samples,)
    mean, logvar = (torch.randn(size.batch, size.latent, requires_grad=True) for _ in range(2))
    decoded = torch.rand(*lead, size.batch, PIXELS, requires_grad=True)
    pixel_logvar = torch.full((PIXELS,), -3.0, requires_grad=True)
    given = [mean, logvar, decoded, pixel_logvar]
    gradient_z = torch.randn(*lead, size.batch, size.latent)
    gradient_kl, gradient_log_prob = torch.ones(size.batch), torch.ones(*lead, size.batch)

    def run() -> None:
        for x in given:
            x.grad = None
        z, kl = ops.rsample_kl(mean, logvar, size.num_samples)
        log_prob = ops.log_prob(images, decoded, pixel_logvar)
        torch.autograd.backward((z, kl, log_prob), (gradient_z, gradient_kl, gradient_log_prob))

    return Stepper(run, given)


def _weighted_ops_alone(
    size: Size, images: torch.Tensor, ops: Ops, seed: int, bound: str
) -> Stepper:
    torch.manual_seed(seed)
    samples, weighted = size.num_samples or 1, WEIGHTED_OPS[ops.name]
    mean, logvar = (torch.randn(size.batch, size.latent, requires_grad=True) for _ in range(2))
    decoded = torch.rand(samples, size.batch, PIXELS, requires_grad=True)
    pixel_logvar = torch.full((PIXELS,), -3.0, requires_grad=True)
    given = [mean, logvar, decoded, pixel_logvar]
    gradient_z = torch.randn(samples, size.batch, size.latent)

    def run() -> None:
        for x in given:
            x.grad = None
        z, log_q = weighted.rsample_log_prob(mean, logvar, samples, path_derivative=bound != "iwae")
        log_w = ops.log_prob(images, decoded, pixel_logvar) + weighted.log_prior(z) - log_q
        value = weighted.importance_bound(log_w, estimator=bound, z=z if bound == "dreg" else None)
        torch.autograd.backward((z, value), (gradient_z, torch.ones_like(value)))

    return Stepper(run, given)


def interleaved(first: Step, second: Step, *, rounds: int) -> tuple[float, float]:
    """Median seconds of each; they take turns, so that a noisy machine disturbs both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    pair = ((first, times[0]), (second, times[1]))
    for warm_up in (first, second) * 3:
        warm_up()
    for turn in range(rounds):
        for run, found in pair if turn % 2 else pair[::-1]:
            start = time.perf_counter()
            run()
            found.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def peak_memory(stepper: Stepper) -> int:
    """The most CPU memory, in bytes, that torch's allocator holds during a run beyond what it held
    before.

    The gradients of the run before are dropped first: the profiler does not see frees of what it
    did not see made.
    """
    for x in stepper.given:
        x.grad = None
    os.environ.setdefault(
        "KINETO_LOG_LEVEL", "99"
    )  # torch's profiler otherwise writes to the terminal
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        stepper.run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def saved_bytes(run: Step, given: list[torch.Tensor]) -> int:
    """Bytes that autograd keeps from forward to backward in `run`; each storage once, those of
    `given` not at all.
    """
    known = {x.untyped_storage().data_ptr() for x in given}
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        run()
    return sum(kept.values())

"""One training step with the fused ops, and the same step in plain torch: time and memory.

"step" is the whole of it: forward, backward, Adam. "ops" is the part that the kernels replace
alone, forward and backward on given tensors: the sampling, the KL and the Gaussian log-likelihood;
for an importance-weighted bound the sampling with log q, the prior, the likelihood and the bound.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from latent_kernels.cli.demo.results import Cost, Row, Size
from latent_kernels.cli.timing import interleave
from latent_kernels.cli.vae import (
    FUSED,
    LEARNING_RATE,
    PIXELS,
    PLAIN,
    VAE,
    Objective,
    Ops,
    train_step,
)

Tensor = torch.Tensor
Step = Callable[[], object]


def compare(size: Size, images: Tensor, objective: Objective, seed: int) -> list[Row]:
    """Return the costs of the whole step and of the ops alone, at one size."""
    x = images[torch.arange(size.batch) % len(images)]
    objective = Objective(size.bound or objective.bound, size.num_samples)
    rows = []
    for what, make in (("step", _step), ("ops", _ops_alone)):
        both = {ops.name: make(size, x, objective, ops, seed) for ops in (FUSED, PLAIN)}
        times = interleave({name: run for name, (run, _) in both.items()})
        costs = (
            Cost(1e3 * times[name].median, peak_memory(run, given), saved_bytes(run, [*given, x]))
            for name, (run, given) in both.items()
        )
        rows.append(Row(size, what, *costs))
    return rows


def _step(
    size: Size, x: Tensor, objective: Objective, ops: Ops, seed: int
) -> tuple[Step, list[Tensor]]:
    """Return a training step that repeats the same images, and the model's weights."""
    torch.manual_seed(seed)
    model = VAE(size.latent, "gaussian", size.hidden, ops)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    return lambda: train_step(model, x, optimizer, objective), list(model.parameters())


def _ops_alone(
    size: Size, x: Tensor, objective: Objective, ops: Ops, seed: int
) -> tuple[Step, list[Tensor]]:
    """Return a forward and backward pass of the ops, and the tensors whose gradients it
    computes.
    """
    torch.manual_seed(seed)
    lead = (size.num_samples,) if objective.weighted or size.num_samples > 1 else ()
    mean, logvar = (torch.randn(size.batch, size.latent, requires_grad=True) for _ in range(2))
    decoded = torch.rand(*lead, size.batch, PIXELS, requires_grad=True)
    pixel_logvar = torch.full((PIXELS,), -3.0, requires_grad=True)
    given = [mean, logvar, decoded, pixel_logvar]
    gradient_z = torch.randn(*lead, size.batch, size.latent)  # as the decoder would hand it back

    def log_likelihood(z: Tensor) -> Tensor:
        return ops.gaussian_log_prob(x, decoded, pixel_logvar)

    def run() -> None:
        _forget_gradients(given)
        found = objective.values(ops, mean, logvar, log_likelihood)
        ends = (found.bound,) if objective.weighted else (found.kl, found.reconstruction)
        torch.autograd.backward((found.z, *ends), (gradient_z, *map(torch.ones_like, ends)))

    return run, given


def _forget_gradients(given: Iterable[Tensor]) -> None:
    for x in given:
        x.grad = None


def peak_memory(run: Step, given: Iterable[Tensor]) -> int:
    """Return the most CPU memory, in bytes, that torch's allocator holds during a run beyond what
    it held before.

    The gradients of the run before are dropped first: the profiler does not see frees of what it
    did not see made.
    """
    _forget_gradients(given)
    # torch's profiler otherwise writes to the terminal
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        run()
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


def saved_bytes(run: Step, given: Iterable[Tensor]) -> int:
    """Return the bytes that autograd keeps from forward to backward in a run: each storage is
    counted once, and those of `given` are not counted.
    """
    known = {x.untyped_storage().data_ptr() for x in given}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        run()
    return sum(kept.values())

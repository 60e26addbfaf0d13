"""A training step of the demo's VAE on an importance-weighted bound: fused, plain and compiled
torch, answers checked.

    python -m latent_kernels.examples.measure_bounds --samples 50 --compile

Times are medians of steps taken in turns, two contenders at a time; memory is the most that torch's
allocator holds during a step beyond what it held before.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

import latent_kernels as lk
from latent_kernels.examples import measure, objectives
from latent_kernels.examples.digits import load
from latent_kernels.examples.measure import Size, Stepper
from latent_kernels.examples.objectives import Objective, weighted_bound
from latent_kernels.examples.vae import FUSED, LIKELIHOODS, PLAIN, VAE

Tensor = torch.Tensor
Loss = Callable[[VAE, Tensor, Tensor], Tensor]  # of a model, images and noise

# In units of a gradient's largest element: where plain torch happens to be exact; and for compiled
# sums over all samples and images, which go one after another.
_EPS = torch.finfo(torch.float32).eps
_SLACK = {"latent-kernels": 8 * _EPS, "torch.compile": 1000 * _EPS}


class Result(NamedTuple):
    """A rival beside ours, timed in turns with it."""

    likelihood: str
    rival: str
    milliseconds: float
    ours_milliseconds: float
    peak_bytes: int
    ours_peak_bytes: int


def compare(
    size: Size, likelihood: str, images: Tensor, *, seed: int = 0, compiled: bool = False
) -> list[Result]:
    """Steps of `size` on the total gradient ("iwae"), once the answers of all agree."""
    objective = Objective("iwae", size.num_samples or 1)
    rows = images[torch.arange(size.batch) % len(images)]
    loss = torch.compile(_plain_loss(objective)) if compiled else None
    check_answers(size, likelihood, rows, seed, loss)
    ours, plain = (
        measure.training_step(size, rows, ops, seed, objective, likelihood)
        for ops in (FUSED, PLAIN)
    )
    rivals = {"plain torch": plain}
    if loss is not None:
        rivals["torch.compile"] = _compiled_step(size, likelihood, rows, seed, loss)
    found = []
    for name, rival in rivals.items():
        theirs, own = measure.interleaved(rival.run, ours.run, rounds=size.rounds)
        peaks = measure.peak_memory(rival), measure.peak_memory(ours)
        found.append(Result(likelihood, name, 1e3 * theirs, 1e3 * own, *peaks))
    return found


def _plain_loss(objective: Objective) -> Loss:
    """As one writes it in plain torch, with the noise given: torch.compile's own would not be
    torch's.
    """

    def loss(model: VAE, x: Tensor, noise: Tensor) -> Tensor:
        sample = partial(objectives.plain_rsample_log_prob, noise=lambda like: noise)
        weighted = objectives.WEIGHTED_OPS[PLAIN.name]._replace(rsample_log_prob=sample)
        return -weighted_bound(model, x, objective, PLAIN, weighted)[0].mean()

    return loss


def _compiled_step(size: Size, likelihood: str, images: Tensor, seed: int, loss: Loss) -> Stepper:
    torch.manual_seed(seed)
    model = VAE(size.latent, likelihood, size.hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)

    def run() -> None:
        found = loss(model, images, torch.randn(size.num_samples or 1, size.batch, size.latent))
        optimizer.zero_grad()
        found.backward()
        optimizer.step()

    return Stepper(run, list(model.parameters()))


def check_answers(
    size: Size, likelihood: str, images: Tensor, seed: int, compiled: Loss | None = None
) -> None:
    """Raises AssertionError unless all have the same gradients for the same noise, to within
    rounding.
    """
    torch.manual_seed(seed)
    samples, model = size.num_samples or 1, VAE(size.latent, likelihood, size.hidden)
    objective, noise = (
        Objective("iwae", samples),
        lk.normal((samples, size.batch, size.latent), seed=seed),
    )
    sample = partial(lk.rsample_log_prob, seed=seed)
    fused = objectives.WEIGHTED_OPS[FUSED.name]._replace(rsample_log_prob=sample)
    plain = _plain_loss(objective)
    exact = _gradients(
        plain(double := copy.deepcopy(model).double(), images.double(), noise.double()), double
    )
    allowed = _errors(_gradients(plain(model, images, noise), model), exact)
    losses = {"latent-kernels": -weighted_bound(model, images, objective, FUSED, fused)[0].mean()}
    if compiled is not None:
        losses["torch.compile"] = compiled(model, images, noise)
    for name, loss in losses.items():
        errors = _errors(_gradients(loss, model), exact)
        for parameter, error in errors.items():
            tiny = _SLACK[name] * float(exact[parameter].abs().max())
            if not error <= 2 * allowed[parameter] + tiny:
                raise AssertionError(
                    f"{name}, {likelihood}: the gradient of {parameter} is off by {error:.3g}, "
                    f"where plain torch is off by {allowed[parameter]:.3g}"
                )


def _gradients(loss: Tensor, model: VAE) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters)
    return {"the loss": loss.detach(), **dict(zip(names, found, strict=True))}


def _errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    return {name: float((found[name].double() - exact[name]).abs().max()) for name in exact}


def main() -> None:
    """Measures and prints a line for each likelihood and rival."""
    parser = argparse.ArgumentParser(
        description="Measure a training step on an importance-weighted bound."
    )
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--latent", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--compile", action="store_true", help="beside torch.compile too, which takes a minute"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    size = Size("bound", given.batch, given.samples, given.latent, given.hidden, given.rounds)
    images = load().train
    for likelihood in LIKELIHOODS:
        for r in compare(size, likelihood, images, compiled=given.compile):
            print(
                f"{r.likelihood:<10} {r.rival:<14} {r.milliseconds:6.2f} -> "
                f"{r.ours_milliseconds:6.2f} ms ({r.milliseconds / r.ours_milliseconds:.2f}x), "
                f"peak {r.peak_bytes / 2**20:5.2f} -> {r.ours_peak_bytes / 2**20:5.2f} MiB "
                f"({r.peak_bytes / r.ours_peak_bytes:.2f}x)",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""The results of the demo, and the comparison with plain torch as tables and sentences."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from rich.table import Table

from latent_kernels.cli.frame import plural, table
from latent_kernels.cli.mixture.results import Outcome
from latent_kernels.cli.sparse import study as sparse
from latent_kernels.cli.sparse.problems import Photographs
from latent_kernels.cli.sparse.results import Patches
from latent_kernels.cli.vae import ELBO, FUSED, PLAIN, VAE, Epoch, Objective, Ops, Terms
from latent_kernels.cli.variance.problems import PROBLEMS, Problem
from latent_kernels.variational.variance import VarianceProfile

# Student's t, 97.5%, for two samples of three seeds: 4 degrees of freedom. Keyed by seeds per side.
_T_975 = {2: 4.303, 3: 2.776, 4: 2.447, 5: 2.306}
_COSTS = ("", "time", "speed", "peak memory", "kept for backward")
_SETTING = (
    "A VAE with Gaussian likelihood and learned variance on scikit-learn's digits (8x8), on the "
    "CPU with {threads}. Trained with --bound {bound} --samples {samples}; latent size D = "
    "{latent} for the held-out {name}. Plain torch is eager torch: `std = exp(0.5 * logvar)`, `eps "
    "= randn_like(std)`, the textbook KL, or log q(z) and logsumexp for weighted bounds, and "
    "log-density."
)
_NOTES = (
    "Times are medians of steps taken in turns. Peak memory is the most that torch's allocator "
    "held during one step beyond what it held before (torch.profiler); kept for backward is what "
    "autograd saves, parameters and images not counted. A step is forward, backward and Adam; the "
    "ops are {ops} on their own, forward and backward, in a loop and so with warmer caches than "
    "inside a step."
)
_OPS = "sampling, KL and Gaussian log-likelihood"
_WEIGHTED_OPS = "sampling with log q, the prior, Gaussian log-likelihood and the weighted bound"


class Size(NamedTuple):
    """A size of the measurements: B images, S samples of each, D latent dimensions."""

    name: str
    batch: int
    num_samples: int
    latent: int
    hidden: int
    bound: str | None = None  # the objective of a step at this size; None: the demo's own

    def with_samples(self, objective: Objective) -> Size:
        """Return the size for the objective's number of samples: the total stays the same where the
        objective has several for an image. A size with a bound of its own does not change.
        """
        if objective == ELBO or self.bound is not None:
            return self
        total = self.batch * (self.num_samples if self.num_samples > 1 else objective.samples)
        batch = max(total // objective.samples, 1)
        return self._replace(batch=batch, num_samples=objective.samples)

    def __str__(self) -> str:
        return f"B={self.batch}, S={self.num_samples}, D={self.latent}"


class Cost(NamedTuple):
    """The costs of one step."""

    milliseconds: float  # median
    peak_bytes: int  # the most that torch held at once, beyond what it held before the step
    saved_bytes: int  # kept by autograd from forward to backward, parameters and images not counted


class Row(NamedTuple):
    """The costs of one measured part in both versions."""

    size: Size
    what: str  # "step" or "ops"
    ours: Cost
    plain: Cost

    @property
    def speedup(self) -> float:
        """Return how many times as fast ours is."""
        return self.plain.milliseconds / self.ours.milliseconds


@dataclass(frozen=True)
class Settings:
    """The demo's settings; the defaults take about a minute on one core."""

    epochs: int = 100
    latents: tuple[int, ...] = (2, 10)
    hidden: int = 256
    compared_latent: int = 10  # of the model with Gaussian likelihood, trained in plain torch too
    compared_seeds: int = 3
    held_out_samples: int = 64
    profiled_samples: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    profiled_repeats: int = 64
    photographs: Photographs = sparse.DEMO
    encoder_layers: int = sparse.DEMO_LAYERS
    sizes: tuple[Size, ...] = (
        Size("small", 64, 1, 10, 256),
        Size("large", 1024, 16, 64, 256),
        Size("IWAE", 64, 50, 64, 256, "iwae"),
    )


@dataclass
class Run:
    """One model and its training so far."""

    model: VAE
    seed: int
    history: list[Epoch] = field(default_factory=list)
    final: Terms | None = None  # on the held-out images, once the training is complete


@dataclass
class Results:
    """The results of the demo so far."""

    settings: Settings
    seed: int
    objective: Objective
    problem: Problem = field(default_factory=lambda: PROBLEMS["logistic-regression"]())
    runs: list[Run] = field(default_factory=list)
    costs: list[Row] = field(default_factory=list)
    profile: VarianceProfile | None = None
    mixture: Outcome | None = None
    patches: Patches | None = None

    def held_out(self, ops: Ops) -> dict[int, float]:
        """Return the held-out bounds of the models that are compared, by seed."""
        compared = ("gaussian", self.settings.compared_latent, ops)
        return {
            run.seed: run.final.bound
            for run in self.runs
            if run.final and (run.model.likelihood, run.model.latent, run.model.ops) == compared
        }

    def seeds(self) -> list[int]:
        """Return the seeds that both versions were trained with."""
        plain = self.held_out(PLAIN)
        return [seed for seed in self.held_out(FUSED) if seed in plain]

    def bounds(self) -> dict[str, list[float]]:
        """Return the held-out bounds of both versions for these seeds."""
        seeds = self.seeds()
        return {o.name: [self.held_out(o)[seed] for seed in seeds] for o in (FUSED, PLAIN)}


# --- what it says ---------------------------------------------------------------------------------


def about(found: Results) -> str:
    """Return in one line what the demo will do."""
    return (
        "Variational autoencoders on scikit-learn's 1797 handwritten digits: times beside plain "
        f"torch first, then training ({found.settings.epochs} epochs a model), then pictures."
    )


def describe(terms: Terms, objective: Objective) -> str:
    """Return the terms of a bound in one line."""
    elbo = f"ELBO {terms.elbo:6.2f} = {terms.reconstruction:6.2f} - KL {terms.kl:5.2f}"
    return f"{objective.name} {terms.bound:6.2f}, {elbo}" if objective.weighted else elbo


def headline(found: Results) -> str:
    """Return in one sentence how many times as fast as plain torch the steps and the ops are."""

    def listed(rows: Sequence[Row]) -> str:
        return ", ".join(f"{row.speedup:.2f} ({row.size.name})" for row in rows)

    steps, ops = found.costs[::2], found.costs[1::2]
    return (
        f"Times as fast as plain torch: the fused ops {listed(ops)}; a whole training step with "
        f"them {listed(steps)}."
    )


def cost_table(found: Results) -> Table:
    """Return the table of times and memory."""
    return table("One training step, plain torch → ours", _COSTS, _cost_rows(found))


def _cost_rows(found: Results) -> list[tuple[str, ...]]:
    return [
        (
            f"{row.what}, {row.size.name}",
            f"{_short(row.plain.milliseconds)} → {_short(row.ours.milliseconds)} ms",
            f"{row.speedup:.2f}x",
            _bytes(row.plain.peak_bytes, row.ours.peak_bytes),
            _bytes(row.plain.saved_bytes, row.ours.saved_bytes),
        )
        for row in found.costs
    ]


def gains(found: Results) -> list[str]:
    """Return for each size what the times mean, and the most that the ops could have gained."""
    sentences = []
    for step, ops in zip(found.costs[::2], found.costs[1::2], strict=True):
        share = min(1.0, ops.plain.milliseconds / step.plain.milliseconds)
        memory = 1 - step.ours.peak_bytes / step.plain.peak_bytes
        sentences.append(
            f"{step.size.name} ({step.size}): the replaced ops are {share:.0%} of a plain step, "
            f"the rest is network and Adam. The ops run {_times(ops.speedup)}, the step "
            f"{_times(step.speedup)}; its memory peaks {abs(memory):.0%} "
            f"{'lower' if memory >= 0 else 'higher'}."
        )
    return sentences


def summary(found: Results) -> str:
    """Return the held-out bounds, and whether they differ."""
    both = found.bounds()
    means = ", ".join(f"{name} {_mean_sd(bounds)}" for name, bounds in both.items())
    return f"Held-out {found.objective.name}: {means}. {verdict(*both.values())}"


def verdict(ours: Sequence[float], plain: Sequence[float]) -> str:
    """Return whether the versions' bounds differ by more than the variation between seeds."""
    seeds, difference = len(ours), statistics.mean(ours) - statistics.mean(plain)
    if seeds < 2:
        return f"Difference {difference:+.2f} nats; one seed says nothing about the noise."
    error = math.sqrt((statistics.variance(ours) + statistics.variance(plain)) / seeds)
    reach = _T_975.get(seeds, 2.0) * error
    place = "within" if abs(difference) <= reach else "outside"
    return (
        f"Difference {difference:+.2f} nats, {place} the noise of {seeds} seeds (95%: "
        f"±{reach:.2f} nats)."
    )


def markdown(found: Results) -> str:
    """Return the whole comparison as a page."""
    objective, seeds, both = found.objective, found.seeds(), found.bounds()
    setting = _SETTING.format(
        threads=plural(torch.get_num_threads(), "thread"),
        latent=found.settings.compared_latent,
        name=objective.name,
        **objective._asdict(),
    )
    parts = ["# One model, two ways: latent-kernels and plain torch", setting]
    if found.costs:
        parts += [
            "## Time and memory of a step, plain torch → ours",
            _markdown_table(_COSTS, _cost_rows(found)),
            "\n".join(f"- {sentence}" for sentence in gains(found)),
            _NOTES.format(ops=_WEIGHTED_OPS if objective.weighted else _OPS),
        ]
    if seeds:
        header, joined = f"held-out {objective.name}, mean ± sd", ", ".join(map(str, seeds))
        rows = [(name, _mean_sd(bounds), joined) for name, bounds in both.items()]
        averaged, repeats = objective.repeated(found.settings.held_out_samples)
        parts += [
            f"## Held-out {objective.name}",
            _markdown_table(("", header, "seeds"), rows),
            verdict(*both.values()),
            f"In nats per image, from {averaged.samples * repeats} samples of z for each "
            "held-out image.",
        ]
    return "\n\n".join(parts) + "\n"


def as_json(found: Results) -> str:
    """Return every number of the results."""
    content = {
        "threads": torch.get_num_threads(),
        "latent": found.settings.compared_latent,
        "held_out_samples": found.settings.held_out_samples,
        "objective": found.objective._asdict(),
        "costs": [
            {
                "what": row.what,
                "size": row.size._asdict(),
                "ours": row.ours._asdict(),
                "plain": row.plain._asdict(),
            }
            for row in found.costs
        ],
        f"held_out_{'bound' if found.objective.weighted else 'elbo'}": {
            "ours": found.held_out(FUSED),
            "plain": found.held_out(PLAIN),
        },
    }
    return json.dumps(content, indent=2) + "\n"


def _times(speedup: float) -> str:
    return "as fast" if abs(speedup - 1) < 0.03 else f"{speedup:.2f} times as fast"


def _bytes(before: int, after: int) -> str:
    unit, name = (2**20, "MiB") if max(before, after) >= 2**20 else (2**10, "KiB")
    return f"{_short(before / unit)} → {_short(after / unit)} {name}"


def _short(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def _mean_sd(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation} nats"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

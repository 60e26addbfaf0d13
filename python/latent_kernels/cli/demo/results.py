"""What the demo finds, and the comparison with plain torch as tables and sentences."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.table import Table

from latent_kernels.cli.frame import plural, table
from latent_kernels.cli.mixture.results import Outcome
from latent_kernels.cli.sparse.results import Patches
from latent_kernels.cli.vae import ELBO, FUSED, PLAIN, VAE, Epoch, Objective, Terms
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
    """A size to measure at: B images, S samples of each, D latent dimensions."""

    name: str
    batch: int
    num_samples: int
    latent: int
    hidden: int

    def with_samples(self, objective: Objective) -> Size:
        """Return the size for the objective's number of samples: of as many samples in all, where
        it has many for an image.
        """
        if objective == ELBO:
            return self
        total = self.batch * (self.num_samples if self.num_samples > 1 else objective.samples)
        batch = max(total // objective.samples, 1)
        return self._replace(batch=batch, num_samples=objective.samples)

    def __str__(self) -> str:
        return f"B={self.batch}, S={self.num_samples}, D={self.latent}"


class Cost(NamedTuple):
    """What one step takes."""

    milliseconds: float  # median
    peak_bytes: int  # the most that torch held at once, beyond what it held before the step
    saved_bytes: int  # kept by autograd from forward to backward, parameters and images not counted


class Row(NamedTuple):
    """The costs of one thing in both versions."""

    size: Size
    what: str  # "step" or "ops"
    ours: Cost
    plain: Cost

    @property
    def speedup(self) -> float:
        """Return how many times as fast ours is."""
        return self.plain.milliseconds / self.ours.milliseconds


@dataclass
class Comparison:
    """What was measured; rows and seeds are missing where the demo was stopped."""

    threads: int
    latent: int
    held_out_samples: int
    objective: Objective = ELBO
    costs: list[Row] = field(default_factory=list)
    ours: dict[int, Terms] = field(default_factory=dict)  # by seed
    plain: dict[int, Terms] = field(default_factory=dict)

    def seeds(self) -> list[int]:
        """Return the seeds that both versions were trained with."""
        return [seed for seed in self.ours if seed in self.plain]

    def bounds(self) -> dict[str, list[float]]:
        """Return the held-out bounds of both versions for these seeds."""
        both = {FUSED.name: self.ours, PLAIN.name: self.plain}
        return {name: [side[seed].bound for seed in self.seeds()] for name, side in both.items()}

    def cost_table(self) -> Table:
        """Return time and memory."""
        return table(
            "One training step, plain torch → ours",
            _COSTS,
            self._cost_rows(),
            caption=self._gains(),
        )

    def _cost_rows(self) -> list[tuple[str, ...]]:
        return [
            (
                f"{row.what}, {row.size.name}",
                f"{_short(row.plain.milliseconds)} → {_short(row.ours.milliseconds)} ms",
                f"{row.speedup:.2f}x",
                _bytes(row.plain.peak_bytes, row.ours.peak_bytes),
                _bytes(row.plain.saved_bytes, row.ours.saved_bytes),
            )
            for row in self.costs
        ]

    def _gains(self) -> str:
        """Return what the times come to, and what the ops could have gained at most."""
        sentences = []
        for step, ops in zip(self.costs[::2], self.costs[1::2], strict=True):
            share = min(1.0, ops.plain.milliseconds / step.plain.milliseconds)
            memory = 1 - step.ours.peak_bytes / step.plain.peak_bytes
            sentences.append(
                f"At {step.size.name} size ({step.size}) the replaced ops are {share:.0%} of a "
                f"plain step, the rest is network and Adam: the ops run {_times(ops.speedup)}, the "
                f"step {_times(step.speedup)}, and its memory peaks {abs(memory):.0%} "
                f"{'lower' if memory >= 0 else 'higher'}."
            )
        return " ".join(sentences)

    def summary(self) -> str:
        """Return the held-out bounds, and whether they differ."""
        bounds = ", ".join(f"{name} {_mean_sd(found)}" for name, found in self.bounds().items())
        return f"Held-out {self.objective.name}: {bounds}. {self.verdict()}"

    def verdict(self) -> str:
        """Return whether the versions' bounds differ by more than seeds make them differ."""
        ours, plain = self.bounds().values()
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

    def markdown(self) -> str:
        """Return the whole comparison as a page."""
        objective, seeds = self.objective, self.seeds()
        setting = _SETTING.format(
            threads=plural(self.threads, "thread"),
            latent=self.latent,
            name=objective.name,
            **objective._asdict(),
        )
        parts = ["# One model, two ways: latent-kernels and plain torch", setting]
        if self.costs:
            parts += [
                "## Time and memory of a step, plain torch → ours",
                _markdown_table(_COSTS, self._cost_rows()),
                self._gains(),
                _NOTES.format(ops=_WEIGHTED_OPS if objective.weighted else _OPS),
            ]
        if seeds:
            header = ("", f"held-out {objective.name}, mean ± sd", "seeds")
            joined = ", ".join(map(str, seeds))
            rows = [(name, _mean_sd(found), joined) for name, found in self.bounds().items()]
            averaged, repeats = objective.repeated(self.held_out_samples)
            parts += [
                f"## Held-out {objective.name}",
                _markdown_table(header, rows),
                self.verdict(),
                f"In nats per image, from {averaged.samples * repeats} samples of z for each "
                "held-out image.",
            ]
        return "\n\n".join(parts) + "\n"

    def json(self) -> str:
        """Return every number."""
        costs = [
            {
                "what": row.what,
                **{name: getattr(row, name)._asdict() for name in ("size", "ours", "plain")},
            }
            for row in self.costs
        ]
        content = {
            "threads": self.threads,
            "latent": self.latent,
            "held_out_samples": self.held_out_samples,
            "objective": self.objective._asdict(),
            "costs": costs,
            f"held_out_{'bound' if self.objective.weighted else 'elbo'}": {
                name: {seed: terms.bound for seed, terms in found.items()}
                for name, found in (("ours", self.ours), ("plain", self.plain))
            },
        }
        return json.dumps(content, indent=2) + "\n"


@dataclass
class Run:
    """One model and its training so far."""

    model: VAE
    seed: int
    history: list[Epoch] = field(default_factory=list)


@dataclass
class Results:
    """What the demo has come to so far."""

    seed: int
    comparison: Comparison
    problem: Problem = field(default_factory=lambda: PROBLEMS["logistic-regression"]())
    runs: list[Run] = field(default_factory=list)
    profile: VarianceProfile | None = None
    mixture: Outcome | None = None
    patches: Patches | None = None


def describe(terms: Terms, objective: Objective) -> str:
    """Return the terms of a bound in one line."""
    elbo = f"ELBO {terms.elbo:6.2f} = {terms.reconstruction:6.2f} - KL {terms.kl:5.2f}"
    return f"{objective.name} {terms.bound:6.2f}, {elbo}" if objective.weighted else elbo


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

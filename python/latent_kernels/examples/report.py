"""The comparison with plain torch as rows of text: on the screen, in comparison.md and in
comparison.json.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from latent_kernels.examples.measure import Row, Size
from latent_kernels.examples.objectives import ELBO, Objective
from latent_kernels.examples.vae import Terms

# Student's t, 97.5%, for two samples of three seeds: 4 degrees of freedom. Keyed by seeds per side.
_T_975 = {2: 4.303, 3: 2.776, 4: 2.447, 5: 2.306}

COST_HEADER = ("plain torch → ours", "time", "speed", "peak memory", "kept for backward")


@dataclass
class Comparison:
    """What was measured; rows are missing where the demo was stopped."""

    threads: int
    latent: int
    held_out_samples: int
    costs: list[Row] = field(default_factory=list)
    ours: dict[int, Terms] = field(default_factory=dict)  # by seed
    plain: dict[int, Terms] = field(default_factory=dict)
    objective: Objective = ELBO

    def cost_rows(self) -> list[tuple[str, ...]]:
        """Time and memory, a line for each size and thing measured."""
        return [
            (
                f"{_WHAT[row.what]}, {row.size.name}",
                f"{_short(row.plain.milliseconds)} → {_short(row.ours.milliseconds)} ms",
                f"{row.speedup:.2f}x",
                _bytes(row.plain.peak_bytes, row.ours.peak_bytes),
                _bytes(row.plain.saved_bytes, row.ours.saved_bytes),
            )
            for row in self.costs
        ]

    def caption(self) -> str:
        """What the times come to, and what the ops could have gained at most."""
        sentences = []
        for step, ops in zip(self.costs[::2], self.costs[1::2], strict=False):
            share = min(1.0, ops.plain.milliseconds / step.plain.milliseconds)
            memory = 1 - step.ours.peak_bytes / step.plain.peak_bytes
            sentences.append(
                f"At {step.size.name} size ({describe(step.size)}) the replaced ops are "
                f"{share:.0%} of a plain step, the rest is network and Adam: the ops run "
                f"{_times(ops.speedup)}, the step {_times(step.speedup)}, and its memory peaks "
                f"{abs(memory):.0%} {'lower' if memory >= 0 else 'higher'}."
            )
        return " ".join(sentences)

    def seeds(self) -> list[int]:
        """The seeds that both versions were trained with."""
        return [seed for seed in self.ours if seed in self.plain]

    def bound_header(self) -> tuple[str, ...]:
        """Of `bound_rows`."""
        return ("", f"held-out {self.objective.name}, mean ± sd", "seeds")

    def bound_rows(self) -> list[tuple[str, ...]]:
        """The held-out bound of both versions, over the seeds both have."""
        seeds = self.seeds()
        both = (("latent-kernels", self.ours), ("plain torch", self.plain))
        return [
            (name, _mean_sd([found[s].maximized for s in seeds]), _joined(seeds))
            for name, found in both
            if seeds
        ]

    def verdict(self) -> str:
        """Return whether the versions' bounds differ by more than seeds make them differ."""
        seeds = self.seeds()
        if not seeds:
            return f"The held-out {self.objective.name} was not compared."
        ours, plain = ([found[s].maximized for s in seeds] for found in (self.ours, self.plain))
        difference = statistics.mean(ours) - statistics.mean(plain)
        if len(seeds) < 2:
            return f"Difference {difference:+.2f} nats; one seed says nothing about the noise."
        error = math.sqrt((statistics.variance(ours) + statistics.variance(plain)) / len(seeds))
        reach = _T_975.get(len(seeds), 2.0) * error
        place = "within" if abs(difference) <= reach else "outside"
        return (
            f"Difference {difference:+.2f} nats, {place} the noise of {len(seeds)} seeds (95%: "
            f"±{reach:.2f} nats)."
        )

    def summary(self) -> list[str]:
        """Two closing lines: how well, and how fast."""
        speeds = ", ".join(
            f"{r.speedup:.2f}x at {r.size.name} size" + (" (ops alone)" if r.what == "ops" else "")
            for r in self.costs
        )
        lines = [
            f"Held-out {self.objective.name}: "
            f"{', '.join(f'{name} {x}' for name, x, _ in self.bound_rows())}. {self.verdict()}"
        ]
        return lines + ([f"Speed against plain torch: {speeds}."] if speeds else [])

    def markdown(self) -> str:
        """The whole comparison as a page."""
        parts = ["# One model, two ways: latent-kernels and plain torch", self._setting()]
        if self.costs:
            parts += [
                "## Time and memory of a step",
                _markdown_table(COST_HEADER, self.cost_rows()),
                self.caption(),
            ]
            parts.append(_NOTES.format(ops=_WEIGHTED_OPS if self.objective.weighted else _OPS))
        if self.seeds():
            table = _markdown_table(self.bound_header(), self.bound_rows())
            parts += [f"## Held-out {self.objective.name}", table, self.verdict()]
            samples = self.held_out_samples
            if self.objective.weighted:
                samples = self.objective.rounds(samples) * self.objective.samples
            parts.append(f"In nats per image, from {samples} samples of z for each held-out image.")
        return "\n\n".join(parts) + "\n"

    def _setting(self) -> str:
        bound, samples = self.objective
        trained = (
            "" if self.objective == ELBO else f" Trained with --bound {bound} --samples {samples}."
        )
        return (
            "A VAE with Gaussian likelihood and learned variance on scikit-learn's digits (8x8), "
            f"on the CPU with {self.threads} thread{'s' if self.threads > 1 else ''}.{trained} "
            f"{'Bounds' if self.objective.weighted else 'ELBOs'} are of latent size D = "
            f"{self.latent}. Plain torch is eager torch: `std = exp(0.5 * logvar)`, `eps = "
            "randn_like(std)`, the textbook KL, or log q(z) and logsumexp for weighted bounds, "
            "and log-density."
        )

    def as_json(self) -> str:
        """Every number."""
        content: dict[str, Any] = {
            "threads": self.threads,
            "latent": self.latent,
            "held_out_samples": self.held_out_samples,
            "costs": [
                {
                    "what": r.what,
                    "size": r.size._asdict(),
                    "ours": r.ours._asdict(),
                    "plain": r.plain._asdict(),
                }
                for r in self.costs
            ],
            f"held_out_{'bound' if self.objective.weighted else 'elbo'}": {
                name: {str(seed): terms.maximized for seed, terms in found.items()}
                for name, found in (("ours", self.ours), ("plain", self.plain))
            },
        }
        if self.objective != ELBO:
            content["objective"] = self.objective._asdict()
        return json.dumps(content, indent=2) + "\n"


_WHAT = {"step": "step", "ops": "ops"}
_NOTES = (
    "Times are medians of steps taken in turns. Peak memory is the most that torch's allocator "
    "held during one step beyond what it held before (torch.profiler); kept for backward is what "
    "autograd saves, parameters and images not counted. A step is forward, backward and Adam; the "
    "ops are {ops} on their own, forward and backward, in a loop and so with warmer caches than "
    "inside a step."
)
_OPS = "sampling, KL and Gaussian log-likelihood"
_WEIGHTED_OPS = "sampling with log q, the prior, Gaussian log-likelihood and the weighted bound"


def describe(size: Size) -> str:
    """B images, S samples each, D latent dimensions."""
    return f"B={size.batch}, S={size.num_samples or 1}, D={size.latent}"


def _times(speedup: float) -> str:
    if abs(speedup - 1) < 0.03:
        return "as fast"
    return f"{speedup:.2f} times as fast"


def _bytes(before: int, after: int) -> str:
    unit, name = (2**20, "MiB") if max(before, after) >= 2**20 else (2**10, "KiB")
    return f"{_short(before / unit)} → {_short(after / unit)} {name}"


def _short(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def _mean_sd(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread} nats"


def _joined(seeds: Sequence[int]) -> str:
    return ", ".join(str(seed) for seed in seeds)


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

"""The results of models trained on bounds of k samples, as tables, sentences and JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.table import Table

from latent_kernels.cli.frame import plural, table
from latent_kernels.variational._statistics import nulls

Tensor = torch.Tensor


@dataclass(frozen=True)
class Recipe:
    """The sizes of a model, of its training and of its evaluation."""

    latent: int = 20
    hidden: int = 200
    epochs: int = 300
    batch: int = 64
    learning_rate: float = 6e-3
    fall: float = 1.5  # orders of magnitude that the learning rate falls by, at an even pace
    samples: int = 5000
    curve_samples: int = 100
    points: int = 25  # of the held-out curve


@dataclass(frozen=True)
class Fit:
    """One model: its training, and its results on the held-out images."""

    k: int
    seed: int
    seconds: float  # of training alone
    trained: list[float]  # L_k by epoch, on images as they came, while the weights moved
    held_out: dict[int, float]  # L_curve_samples by epochs
    by_samples: dict[int, float]  # L_S by S
    bounds: Tensor  # L_samples of each image
    effective: Tensor  # sample size of each image, of `samples`
    tails: Tensor  # Pareto k of each image
    active_units: int

    @property
    def elbo(self) -> float:
        """Return L_1."""
        return self.by_samples[1]

    @property
    def bound(self) -> float:
        """Return the mean of `bounds`."""
        return float(self.bounds.mean())


@dataclass(frozen=True)
class Estimate:
    """A mean over images and seeds."""

    mean: float
    error: float  # standard error over images, of means over seeds
    sd: float | None  # of the seeds' means; None for one seed
    seeds: int

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """Return the estimate from values [seeds, images]."""
        values = values.double()
        over_seeds = values.mean(0)
        error = float(over_seeds.std()) / math.sqrt(len(over_seeds))
        sd = float(values.mean(1).std()) if len(values) > 1 else None
        return cls(float(over_seeds.mean()), error, sd, len(values))

    @property
    def z(self) -> float:
        """Return the mean divided by its standard error over images and seeds.

        For one seed the error is over images alone, and says nothing of other seeds.
        """
        error = math.hypot(self.error, (self.sd or 0.0) / math.sqrt(self.seeds))
        return self.mean / error if error else math.inf * self.mean if self.mean else 0.0

    @property
    def unit(self) -> str:
        """Return the unit of z."""
        rest = " and seeds" if self.seeds > 1 else ", for these models"
        return f"in standard errors over images{rest}"

    def __format__(self, sign: str) -> str:
        return f"{self.mean:{sign}.2f} ± {self.error:.2f}"


class Row:
    """The results of the models of one k; gains are relative to the row `before`."""

    def __init__(self, k: int, fits: Sequence[Fit], before: Row | None, usable: float) -> None:
        bounds, tails = _bounds(fits), torch.stack([one.tails for one in fits])
        self.k, self.fits = k, fits
        self.elbo = statistics.mean(one.elbo for one in fits)
        self.bound = Estimate.of(bounds)
        self.gain = None if before is None else Estimate.of(bounds - _bounds(before.fits))
        self.active_units = statistics.mean(one.active_units for one in fits)
        self.effective_sample_size = float(torch.stack([one.effective for one in fits]).mean())
        self.pareto_k = float(tails.median())
        self.pareto_k_above_threshold = float((tails > usable).double().mean())
        self.seconds = statistics.mean(one.seconds for one in fits)


@dataclass
class Study:
    """The models whose training is complete."""

    recipe: Recipe
    estimator: str
    fits: list[Fit] = field(default_factory=list)

    @property
    def usable(self) -> float:
        """Return the Pareto k above which so many samples are not dependable.

        Source: Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling"
            (2024).
        """
        return min(1 - 1 / math.log10(self.recipe.samples), 0.7)

    def seeds(self) -> set[int]:
        """Return the seeds that every k has; the last seed may not be complete."""
        return set.intersection(*({x.seed for x in self.fits if x.k == one.k} for one in self.fits))

    def rows(self) -> list[Row]:
        """Return a row for each k, from the seeds that every k has."""
        rows: list[Row] = []
        for k in sorted({one.k for one in self.fits}):
            fits = [one for one in self.fits if one.k == k and one.seed in self.seeds()]
            rows.append(Row(k, fits, rows[-1] if rows else None, self.usable))
        return rows


def _bounds(fits: Sequence[Fit]) -> Tensor:
    return torch.stack([one.bounds for one in fits])


# --- what it says ---------------------------------------------------------------------------------


def about(study: Study, seeds: int) -> str:
    """Return a description of what the tables show."""
    r = study.recipe
    return (
        f"Handwritten digits of 8x8, binarized by their grey values; VAEs with {r.latent} latent "
        f"units, {r.hidden} hidden ones and a Bernoulli likelihood, {plural(r.epochs, 'epoch')} by "
        f"{study.estimator}, {plural(seeds, 'seed')} each. Bounds are means over 360 held-out "
        "images, in nats."
    )


def bounds_table(study: Study, rows: Sequence[Row]) -> Table:
    """Return the table of the held-out bounds."""
    cells = []
    for row in rows:
        gain = () if row.gain is None else (f"{row.gain:+}", f"{row.gain.z:.1f}", _sd(row.gain))
        cells.append((str(row.k), f"{row.elbo:.2f}", f"{row.bound}", _sd(row.bound), *gain))
    return table(
        "Held-out bounds by k, the samples trained with",
        ("k", "ELBO", f"L_{study.recipe.samples}", "sd", "gain", "z", "sd"),
        cells,
        caption="gain: over the row above, on the same images; ±: standard error over images; "
        f"z: {rows[0].bound.unit}; sd: of the seeds' means",
        names=0,
    )


def _sd(found: Estimate) -> str:
    return "" if found.sd is None else f"{found.sd:.2f}"


def proposals_table(study: Study, rows: Sequence[Row]) -> Table:
    """Return the table of the quality of q as a proposal."""
    r, usable = study.recipe, f"{study.usable:.2g}"
    cells = (
        (
            str(row.k),
            f"{row.active_units:.1f}",
            f"{row.effective_sample_size:.0f}",
            f"{row.pareto_k:.2f}",
            f"{row.pareto_k_above_threshold:.0%}",
            f"{row.seconds:.1f} s",
        )
        for row in rows
    )
    return table(
        "q as a proposal, and the latent units in use",
        (
            "k",
            f"active of {r.latent}",
            f"ESS of {r.samples}",
            "Pareto k",
            f"> {usable}",
            "training",
        ),
        cells,
        caption="means over images and seeds; Pareto k: the median, and the share of images above "
        f"{usable}, beyond which {r.samples} samples are not dependable",
        names=0,
    )


def summary(rows: Sequence[Row]) -> list[str]:
    """Return whether the bound rises with k, and how the rise compares with the differences between
    seeds.
    """
    if len(rows) < 2:
        return []
    first, last = rows[0], rows[-1]
    whole = Estimate.of(_bounds(last.fits) - _bounds(first.fits))
    falls = [f"{row.k}" for row in rows if row.gain is not None and row.gain.mean <= 0]
    order = f"does not rise to k = {', '.join(falls)}" if falls else "rises with k"
    noise = "" if whole.sd is None else f" Seeds move this difference by {whole.sd:.2f} (sd)."
    return [
        f"The held-out bound {order}: with k = {last.k} it is {whole:+} nats beside k = {first.k} "
        f"(z = {whole.z:.1f}, {whole.unit}).{noise}"
    ]


_OF_A_FIT = ("k", "seed", "bound", "active_units", "seconds", "by_samples", "trained", "held_out")


def as_json(study: Study, rows: Sequence[Row]) -> str:
    """Return every number except those of single images, with null for those that are not
    finite.
    """
    content = {
        "recipe": asdict(study.recipe),
        "estimator": study.estimator,
        "pareto_k_threshold": study.usable,
        "rows": [_of_a_row(row) for row in rows],
        "fits": [{name: getattr(one, name) for name in _OF_A_FIT} for one in study.fits],
    }
    return json.dumps(nulls(content), allow_nan=False, indent=2) + "\n"


def _of_a_row(row: Row) -> dict[str, Any]:
    found = {name: value for name, value in vars(row).items() if name != "fits"}
    found["bound"] = asdict(row.bound)
    if row.gain is not None:
        found["gain"] = {**asdict(row.gain), "z": row.gain.z}
    return found

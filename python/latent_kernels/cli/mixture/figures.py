"""A picture of EM for a mixture in two dimensions: the paths of the components, the likelihood, and
BIC.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latent_kernels.cli import drawing
from latent_kernels.cli.frame import plural
from latent_kernels.cli.mixture.data import Floats
from latent_kernels.cli.mixture.results import Outcome
from latent_kernels.mixtures.sufficient_statistics import GaussianParameters

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = 14  # iterations
_START: dict[str, Any] = {"marker": "o", "markersize": 5, "markerfacecolor": "white"}
_END: dict[str, Any] = {"marker": "X", "markersize": 9, "markeredgecolor": "white", "linestyle": ""}
_KEYS: dict[str, dict[str, Any]] = {
    "1σ and 2σ": {"linewidth": 2.4},
    "1σ on the way": {"linewidth": 0.8, "alpha": 0.5},
    "mean: start and way": {"linewidth": 1.0, **_START},
    "mean: end": _END,
}


def draw(outcome: Outcome, path: Path) -> None:
    """Draw rows and components on the left, log-likelihood and BIC on the right."""
    kind = f"{plural(outcome.components, 'component')}, {outcome.covariance_type} covariances"
    rows = f"{outcome.data.title}: {len(outcome.data.X)} rows"
    figure = drawing.new_figure(12.5, 6.6, f"{rows}, a Gaussian mixture of {kind}")
    axes = figure.subplot_mosaic([["data", "likelihood"], ["data", "bic"]], width_ratios=(1.6, 1))
    _draw_data(axes["data"], outcome)
    _draw_likelihood(axes["likelihood"], outcome)
    _draw_bic(axes["bic"], outcome)
    drawing.save_figure(figure, path)


def colours(components: int) -> Floats:
    """Return RGB of each component [K, 3]."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    if components <= len(drawing.COLOURS):
        return np.array([to_rgb(c) for c in drawing.COLOURS[:components]])
    return np.asarray(colormaps["turbo"](np.linspace(0.02, 0.95, components)))[:, :3]


def ellipses(parameters: GaussianParameters, covariance_type: str, sigmas: float) -> Floats:
    """Return the points at a Mahalanobis distance of `sigmas` from each mean [K, points, 2]."""
    angle = np.linspace(0, 2 * np.pi, 97)
    circle = sigmas * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    factors = np.linalg.cholesky(_matrices(parameters, covariance_type))
    result: Floats = parameters.means[:, None] + circle @ np.swapaxes(factors, 1, 2)
    return result


def _matrices(parameters: GaussianParameters, covariance_type: str) -> Floats:
    """Return covariances of any type as [K, 2, 2]."""
    weights, _, covariances = parameters
    if covariance_type in ("full", "tied"):
        return np.broadcast_to(covariances, (len(weights), 2, 2))
    return covariances.reshape(len(weights), -1, 1) * np.eye(2)


def _draw_data(ax: Axes, outcome: Outcome) -> None:
    from matplotlib.lines import Line2D

    trace, X, palette = outcome.fits[0].trace, outcome.data.X, colours(outcome.components)

    def outlines(step: int, sigmas: float, **style: Any) -> None:
        for at, colour in zip(
            ellipses(trace[step], outcome.covariance_type, sigmas), palette, strict=True
        ):
            ax.plot(*at.T, color=colour, **style)

    shades = np.clip(outcome.responsibilities @ palette, 0, 1)
    ax.scatter(
        X[:, 0], X[:, 1], c=shades, s=min(26.0, 9000 / len(X)), alpha=0.75, linewidths=0, zorder=2
    )
    # Most of the path is covered in the first iterations.
    for step in np.unique(np.geomspace(1, len(trace), _SHOWN).astype(int) - 1)[:-1]:
        outlines(step, 1, linewidth=0.8, alpha=0.2 + 0.2 * step / len(trace), zorder=1)
    outlines(-1, 1, linewidth=2.4, zorder=4)
    outlines(-1, 2, linewidth=1.5, zorder=4)
    for k, colour in enumerate(palette):
        way = np.stack([p.means[k] for p in trace])
        ax.plot(*way.T, color=colour, linewidth=1.0, alpha=0.6, zorder=3)
        ax.plot(*way[0], color=colour, zorder=3, **_START)
        ax.plot(*way[-1], color=colour, zorder=5, **_END)
    # Ellipses along the path may reach far beyond the data.
    margin = 0.12 * np.ptp(X, axis=0)
    (left, bottom), (right, top) = X.min(axis=0) - margin, X.max(axis=0) + margin
    ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.set(xlabel=outcome.data.columns[0], ylabel=outcome.data.columns[1])
    ax.set_title("rows coloured by responsibility", fontsize=11)
    keys = [Line2D([], [], color="0.35", label=label, **style) for label, style in _KEYS.items()]
    ax.legend(handles=keys, loc="upper left", fontsize=9, framealpha=0.9)


def _draw_likelihood(ax: Axes, outcome: Outcome) -> None:
    best, *others = (one.log_likelihood for one in outcome.fits)
    for curve in others:
        ax.plot(range(1, 1 + len(curve)), curve, color="0.65", linewidth=1.0)
    ax.plot(range(1, 1 + len(best)), best, ".-", color=drawing.BLUE, linewidth=2.0, markersize=5)
    last = drawing.minus(f"at the end {best[-1]:.4f}")
    ax.text(0.97, 0.08, last, transform=ax.transAxes, ha="right", color=drawing.BLUE, fontsize=10)
    ax.set(xlabel="iteration", ylabel="log-likelihood (nats per row)")
    ax.set_title(f"best of {len(outcome.fits)} starts; the others grey", fontsize=11)
    drawing.integer_axis(ax)
    ax.grid(alpha=0.3)


def _draw_bic(ax: Axes, outcome: Outcome) -> None:
    bic, drawn, least = outcome.bic, outcome.components, outcome.least
    ring: dict[str, Any] = {"markersize": 13, "markerfacecolor": "none"}
    ax.plot(list(bic), list(bic.values()), "o-", color="0.35", linewidth=1.4, markersize=4)
    ax.plot(least, bic[least], "o", color=drawing.VERMILION, label="least", **ring)
    ax.plot(drawn, bic[drawn], "o", color=drawing.BLUE, markersize=7, label="drawn")
    ax.set(xlabel="components $K$", ylabel="BIC (twice nats; less is better)")
    drawing.integer_axis(ax)
    ax.legend(fontsize=9)
    ax.grid(alpha=0.3)

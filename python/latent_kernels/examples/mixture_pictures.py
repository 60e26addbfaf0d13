"""EM of a mixture in two dimensions as a picture: the way of the components, the log-likelihood,
and BIC.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latent_kernels.examples.pictures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from latent_kernels.examples.mixture_data import Outcome

Floats = NDArray[np.float64]

# Okabe and Ito's colours, told apart by people of every colour vision, without the yellow that
# white paper swallows.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SHOWN = 14  # iterations


def draw(outcome: Outcome, path: Path) -> None:
    """Left: rows coloured by responsibility, ellipses of one and two sigma. Right: log-likelihood,
    BIC.
    """
    figure = new_figure(12.5, 6.6)
    components = outcome.responsibilities.shape[1]
    kind = f"{components} component{'s' * (components > 1)}, {outcome.covariance_type} covariances"
    figure.suptitle(
        f"{outcome.data.title}: {len(outcome.data.X)} rows, a Gaussian mixture of {kind}",
        fontsize=12,
    )
    axes = figure.subplot_mosaic([["data", "likelihood"], ["data", "bic"]], width_ratios=(1.6, 1))
    _draw_data(axes["data"], outcome)
    _draw_likelihood(axes["likelihood"], outcome)
    _draw_bic(axes["bic"], outcome)
    save_figure(figure, path)


def colours(components: int) -> Floats:
    """RGB of each component [K, 3]."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    if components <= len(_COLOURS):
        return np.array([to_rgb(c) for c in _COLOURS[:components]])
    return np.asarray(colormaps["turbo"](np.linspace(0.02, 0.95, components)))[:, :3]


def matrices(covariances: Floats, covariance_type: str, components: int) -> Floats:
    """Covariances of any type as [K, 2, 2]."""
    if covariance_type == "full":
        return covariances
    if covariance_type == "tied":
        return np.repeat(covariances[None], components, axis=0)
    variances = (
        covariances if covariance_type == "diag" else np.repeat(covariances[:, None], 2, axis=1)
    )
    return variances[:, :, None] * np.eye(2)


def ellipse(mean: Floats, covariance: Floats, sigmas: float, points: int = 97) -> Floats:
    """The points at `sigmas` standard deviations (Mahalanobis's distance) [points, 2]."""
    angle = np.linspace(0, 2 * np.pi, points)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    result: Floats = mean + sigmas * circle @ np.linalg.cholesky(covariance).T
    return result


def _draw_data(ax: Axes, outcome: Outcome) -> None:
    from matplotlib.lines import Line2D

    trace, X = outcome.fits[0].trace, outcome.data.X
    components = outcome.responsibilities.shape[1]
    palette = colours(components)
    shades = np.clip(outcome.responsibilities @ palette, 0, 1)
    ax.scatter(
        X[:, 0], X[:, 1], c=shades, s=min(26.0, 9000 / len(X)), alpha=0.75, linewidths=0, zorder=2
    )
    shown = np.unique(
        np.geomspace(1, len(trace), _SHOWN).astype(int) - 1
    )  # most of the way is in the first ones
    for step in shown[:-1]:
        covariances = matrices(trace[step].covariances, outcome.covariance_type, components)
        for k in range(components):
            at = ellipse(trace[step].means[k], covariances[k], 1)
            ax.plot(
                at[:, 0],
                at[:, 1],
                color=palette[k],
                linewidth=0.8,
                alpha=0.2 + 0.2 * step / len(trace),
                zorder=1,
            )
    covariances = matrices(trace[-1].covariances, outcome.covariance_type, components)
    for k in range(components):
        way = np.stack([p.means[k] for p in trace])
        ax.plot(way[:, 0], way[:, 1], color=palette[k], linewidth=1.0, alpha=0.6, zorder=3)
        ax.plot(
            *way[0], marker="o", markersize=5, markerfacecolor="white", color=palette[k], zorder=3
        )
        for sigmas, width in ((1, 2.4), (2, 1.5)):
            at = ellipse(trace[-1].means[k], covariances[k], sigmas)
            ax.plot(at[:, 0], at[:, 1], color=palette[k], linewidth=width, zorder=4)
        ax.plot(
            *way[-1], marker="X", markersize=9, markeredgecolor="white", color=palette[k], zorder=5
        )
    _limits(ax, X)
    ax.set(xlabel=outcome.data.columns[0], ylabel=outcome.data.columns[1])
    ax.set_title("rows coloured by responsibility", fontsize=11)
    grey: dict[str, Any] = {"color": "0.35"}
    keys = [
        Line2D(
            [],
            [],
            linewidth=2.4,
            label="1\N{GREEK SMALL LETTER SIGMA} and 2\N{GREEK SMALL LETTER SIGMA}",
            **grey,
        ),
        Line2D(
            [],
            [],
            linewidth=0.8,
            alpha=0.5,
            label="1\N{GREEK SMALL LETTER SIGMA} on the way",
            **grey,
        ),
        Line2D(
            [],
            [],
            marker="o",
            markerfacecolor="white",
            linewidth=1.0,
            label="mean: start and way",
            **grey,
        ),
        Line2D(
            [],
            [],
            marker="X",
            markersize=9,
            markeredgecolor="white",
            linestyle="",
            label="mean: end",
            **grey,
        ),
    ]
    ax.legend(handles=keys, loc="upper left", fontsize=9, framealpha=0.9)


def _limits(ax: Axes, X: Floats) -> None:
    """Set the limits of the data with a margin: ellipses on the way may reach far beyond."""
    low, high = X.min(axis=0), X.max(axis=0)
    margin = 0.12 * (high - low)
    ax.set(
        xlim=(low[0] - margin[0], high[0] + margin[0]),
        ylim=(low[1] - margin[1], high[1] + margin[1]),
    )


def _draw_likelihood(ax: Axes, outcome: Outcome) -> None:
    from matplotlib.ticker import MaxNLocator

    for fit in outcome.fits[:0:-1]:
        ax.plot(
            range(1, 1 + len(fit.log_likelihood)), fit.log_likelihood, color="0.65", linewidth=1.0
        )
    best = outcome.fits[0].log_likelihood
    ax.plot(
        range(1, 1 + len(best)), best, color=_COLOURS[0], linewidth=2.0, marker=".", markersize=5
    )
    last = f"at the end {best[-1]:.4f}".replace("-", "\N{MINUS SIGN}")
    ax.text(0.97, 0.08, last, transform=ax.transAxes, ha="right", color=_COLOURS[0], fontsize=10)
    ax.set(xlabel="iteration", ylabel="log-likelihood (nats per row)")
    ax.set_title(f"best of {len(outcome.fits)} starts; the others grey", fontsize=11)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)


def _draw_bic(ax: Axes, outcome: Outcome) -> None:
    from matplotlib.ticker import MaxNLocator

    numbers, values = list(outcome.bic), list(outcome.bic.values())
    chosen, least = outcome.responsibilities.shape[1], min(outcome.bic, key=outcome.bic.__getitem__)
    ax.plot(numbers, values, color="0.35", linewidth=1.4, marker="o", markersize=4)
    ax.plot(
        least,
        outcome.bic[least],
        "o",
        markersize=13,
        markerfacecolor="none",
        color=_COLOURS[1],
        label="least",
    )
    ax.plot(chosen, outcome.bic[chosen], "o", markersize=7, color=_COLOURS[0], label="drawn")
    ax.set(xlabel="components $K$", ylabel="BIC (twice nats; less is better)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=9)
    ax.grid(alpha=0.3)

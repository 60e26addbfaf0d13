"""The demo's pictures. matplotlib is imported inside, through `Figure`, which draws without any
window system.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

import latent_kernels as lk
from latent_kernels.examples.digits import SIDE, Digits
from latent_kernels.examples.vae import LIKELIHOODS, VAE, Epoch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Tensor = torch.Tensor

_INK = "gray_r"
_GRID = 18
_GAP = 1
_PITCH = SIDE + 2 * _GAP
_NAMES = {"bernoulli": "Bernoulli likelihood", "gaussian": "Gaussian likelihood, learned variance"}


class Curve(NamedTuple):
    """One model's training, to be drawn."""

    likelihood: str
    latent: int
    plain: bool
    history: Sequence[Epoch]


def manifold(models: Sequence[VAE], digits: Digits, path: Path) -> None:
    """For each D=2 model: the images on a grid of the latent plane, and where the held-out digits
    fall in it.

    The grid is uniform in probability, z = Phi^-1(u), so that each cell holds the same share of the
    prior. Source: Kingma and Welling (2014), figure 4.
    """
    figure = new_figure(11, 5.4 * len(models) + 0.5)
    figure.suptitle("The 2-D latent space of handwritten digits")
    axes = figure.subplots(len(models), 2, squeeze=False)
    for (left, right), model in zip(axes, models, strict=True):
        _draw_manifold(left, model)
        _draw_posterior_means(right, model, digits)
    save_figure(figure, path)


def _draw_manifold(ax: Axes, model: VAE) -> None:
    quantiles = torch.special.ndtri((torch.arange(_GRID) + 0.5) / _GRID)
    z2, z1 = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    ax.imshow(
        _tiles(model.decode(torch.stack((z1, z2), dim=-1).reshape(-1, 2)), _GRID),
        cmap=_INK,
        vmin=0,
        vmax=1,
    )
    cells = range(1, _GRID, 3)
    middles = [_PITCH * (cell + 0.5) - 0.5 for cell in cells]
    labels = [f"{quantiles[cell]:.1f}".replace("-", "\N{MINUS SIGN}") for cell in cells]
    ax.set_xticks(middles, labels)
    ax.set_yticks([_PITCH * _GRID - 1 - middle for middle in middles], labels)
    title = f"decoded grid, {_NAMES[model.likelihood]}"
    ax.set(title=title, xlabel="$z_1$ (in steps of equal probability)", ylabel="$z_2$ (likewise)")


def _draw_posterior_means(ax: Axes, model: VAE, digits: Digits) -> None:
    with torch.no_grad():
        mean, _ = model.encode(digits.held_out)
    for digit in range(10):
        points = mean[digits.held_out_classes == digit]
        ax.scatter(
            points[:, 0].tolist(),
            points[:, 1].tolist(),
            s=14,
            color=f"C{digit}",
            label=str(digit),
            alpha=0.8,
        )
    reach = 1.1 * float(mean.abs().max())
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.set(title="posterior means of the held-out digits", xlabel="$z_1$", ylabel="$z_2$")
    ax.legend(
        title="class",
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        handletextpad=0.1,
    )


def prior_samples(models: Sequence[VAE], path: Path, *, seed: int) -> None:
    """Mean images of draws from the prior, one panel per latent size and likelihood.

    Source: Kingma and Welling (2014), figure 5.
    """
    rows = [[m for m in models if m.likelihood == likelihood] for likelihood in LIKELIHOODS]
    rows = [row for row in rows if row]
    columns = max(len(row) for row in rows)
    figure = new_figure(3 * columns + 0.4, 3.3 * len(rows) + 0.6)
    figure.suptitle("Images decoded from draws of the prior, z ~ N(0, I)")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for ax in axes.flat:
        ax.set_visible(False)
    for row, line in zip(rows, axes, strict=True):
        for model, ax in zip(row, line, strict=False):
            images = model.decode(lk.normal((100, model.latent), seed=seed))
            ax.imshow(_tiles(images, 10), cmap=_INK, vmin=0, vmax=1)
            ax.set(visible=True, xticks=[], yticks=[])
            ax.set_title(f"{model.likelihood.capitalize()}, D = {model.latent}", fontsize=11)
    save_figure(figure, path)


def training_curves(curves: Sequence[Curve], path: Path, *, bound: str = "ELBO") -> None:
    """What was maximized, reconstruction and KL over the epochs; held-out as full lines, training
    dotted.
    """
    from matplotlib.lines import Line2D

    likelihoods = [name for name in LIKELIHOODS if any(c.likelihood == name for c in curves)]
    figure = new_figure(13, 3.6 * len(likelihoods) + 0.9)
    figure.suptitle("Training curves (full lines: held-out images, dotted: training images)")
    axes = figure.subplots(len(likelihoods), 3, squeeze=False)
    latents = sorted({c.latent for c in curves})
    for line, likelihood in zip(axes, likelihoods, strict=True):
        chosen = [c for c in curves if c.likelihood == likelihood]
        for ax, term in zip(line, ("maximized", "reconstruction", "kl"), strict=True):
            shown = [_draw_curve(ax, c, term, f"C{latents.index(c.latent)}") for c in chosen]
            low, high = min(s[0] for s in shown), max(s[1] for s in shown)
            margin = 0.05 * (high - low) or 1.0
            ax.set(ylim=(low - margin, high + margin), xlabel="epoch", ylabel="nats per image")
            names = {
                "reconstruction": "reconstruction, $\\log p(x|z)$",
                "kl": "KL$(q \\,\\|\\, p)$",
            }
            name = names.get(term, bound)
            ax.set_title(f"{likelihood.capitalize()}: {name}", fontsize=11)
            ax.grid(alpha=0.3)
    keys = [
        Line2D([], [], color=f"C{i}", label=f"D = {latent}") for i, latent in enumerate(latents)
    ]
    for latent in sorted({c.latent for c in curves if c.plain}):
        keys.append(
            Line2D([], [], color="black", linewidth=0.8, label=f"D = {latent} in plain torch")
        )
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False)
    save_figure(figure, path)


def _draw_curve(ax: Axes, curve: Curve, term: str, colour: str) -> tuple[float, float]:
    """Draw it and return the range worth showing: the first epochs fall far below the rest."""
    held_out = [float(getattr(epoch.held_out, term)) for epoch in curve.history]
    train = [float(getattr(epoch.train, term)) for epoch in curve.history]
    epochs = range(1, len(held_out) + 1)
    if curve.plain:
        ax.plot(epochs, held_out, color="black", linewidth=0.8, zorder=3)
    else:
        ax.plot(epochs, held_out, color=colour, linewidth=1.4)
        ax.plot(epochs, train, color=colour, linewidth=1.0, linestyle=":")
    start = len(held_out) // 15
    values = held_out[start:] + train[start:]
    return min(values), max(values)


def _tiles(images: Tensor, columns: int) -> list[list[float]]:
    """[N, 64] images as one picture, `columns` in a row, with white between them: the digits fill
    their squares.
    """
    squares = torch.nn.functional.pad(
        images.reshape(-1, columns, SIDE, SIDE), (_GAP, _GAP, _GAP, _GAP)
    )
    tiles: list[list[float]] = squares.transpose(1, 2).reshape(-1, columns * _PITCH).tolist()
    return tiles


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, width x height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Under its name only when complete: an interruption leaves no half a picture."""
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, dpi=120, format=path.suffix[1:].lower() or "png")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

"""The demo's pictures and tables, as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import latent_kernels as lk
from latent_kernels.cli import digits
from latent_kernels.cli.demo.results import Results, Run, as_json, markdown
from latent_kernels.cli.digits import SIDE
from latent_kernels.cli.drawing import integer_axis, minus, new_figure, save_figure, value_range
from latent_kernels.cli.frame import write_text
from latent_kernels.cli.mixture import figures as mixture
from latent_kernels.cli.sparse import figures as sparse
from latent_kernels.cli.vae import FUSED, LIKELIHOODS, PLAIN, VAE
from latent_kernels.cli.variance import figures as variance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Tensor = torch.Tensor

FILES = (
    "manifold.png",
    "prior_samples.png",
    "training_curves.png",
    "comparison.md",
    "comparison.json",
    "variance.png",
    "mixture.png",
    "sparse_patches.png",
)
_GRID = 12
_DRAWS = 6  # rows and columns of draws of the prior
_GAP = 1
_PITCH = SIDE + 2 * _GAP
_PLAIN_LINE: dict[str, Any] = {"color": "black", "linewidth": 0.8}
_NAMES = {"bernoulli": "Bernoulli likelihood", "gaussian": "Gaussian likelihood, learned variance"}


def writers(found: Results) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Yield the name of each of FILES for which there are results, and the function that writes
    it.
    """
    runs = [run for run in found.runs if run.history and run.seed == found.seed]
    models = [run.model for run in runs if run.model.ops is FUSED]
    planar = [model for model in models if model.latent == 2]
    measured = bool(found.costs or found.seeds())
    profile, mixed, patches = found.profile, found.mixture, found.patches
    writes = (
        partial(manifold, planar) if planar else None,
        partial(prior_samples, models, found.seed) if models else None,
        partial(training_curves, runs, found.objective.name) if runs else None,
        (lambda path: write_text(path, markdown(found))) if measured else None,
        (lambda path: write_text(path, as_json(found))) if measured else None,
        partial(variance.draw, profile, found.problem.description) if profile else None,
        partial(mixture.draw, mixed) if mixed else None,
        partial(sparse.draw_patches, patches) if patches else None,
    )
    for name, write in zip(FILES, writes, strict=True):
        if write is not None:
            yield name, write


def manifold(models: Sequence[VAE], path: Path) -> None:
    """Draw for each model with D = 2 the images on a grid of the latent plane, and where the
    held-out digits fall in it.

    The grid is uniform in probability, z = Phi^-1(u), so that each cell holds the same share of the
    prior. Source: Kingma and Welling (2014), figure 4.
    """
    title = "The 2-D latent space of handwritten digits"
    figure, images = new_figure(14, 6.7 * len(models) + 0.5, title), digits.load()
    axes = figure.subplots(len(models), 2, squeeze=False)
    for (left, right), model in zip(axes, models, strict=True):
        _draw_grid(left, model)
        _draw_posterior_means(right, model, images)
    save_figure(figure, path)


def _draw_grid(ax: Axes, model: VAE) -> None:
    quantiles = torch.special.ndtri((torch.arange(_GRID) + 0.5) / _GRID)
    z2, z1 = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    _show_images(ax, model.decode(torch.stack((z1, z2), dim=-1).reshape(-1, 2)), _GRID)
    cells = range(0, _GRID, 2)
    middles = [_PITCH * (cell + 0.5) - 0.5 for cell in cells]
    labels = [minus(f"{quantiles[cell]:.1f}") for cell in cells]
    ax.set_xticks(middles, labels)
    ax.set_yticks([_PITCH * _GRID - 1 - middle for middle in middles], labels)
    title = f"decoded grid, {_NAMES[model.likelihood]}"
    ax.set(title=title, xlabel="$z_1$ (in steps of equal probability)", ylabel="$z_2$ (likewise)")


def _draw_posterior_means(ax: Axes, model: VAE, images: digits.Digits) -> None:
    with torch.no_grad():
        mean, _ = model.encode(images.held_out)
    for digit in range(10):
        x, y = mean[images.held_out_classes == digit].T.tolist()
        ax.scatter(x, y, s=22, color=f"C{digit}", label=str(digit), alpha=0.8)
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


def prior_samples(models: Sequence[VAE], seed: int, path: Path) -> None:
    """Draw mean images of draws from the prior, one panel per latent size and likelihood.

    Source: Kingma and Welling (2014), figure 5.
    """
    rows = [[m for m in models if m.likelihood == likelihood] for likelihood in LIKELIHOODS]
    rows = [row for row in rows if row]
    columns = max(map(len, rows))
    title = "Images decoded from draws of the prior, z ~ N(0, I)"
    figure = new_figure(4 * columns + 0.4, 4.3 * len(rows) + 0.6, title)
    for i, row in enumerate(rows):
        for j, model in enumerate(row):
            ax = figure.add_subplot(len(rows), columns, i * columns + j + 1, xticks=[], yticks=[])
            _show_images(ax, model.decode(lk.normal((_DRAWS**2, model.latent), seed=seed)), _DRAWS)
            ax.set_title(f"{model.likelihood.capitalize()}, D = {model.latent}", fontsize=11)
    save_figure(figure, path)


def _show_images(ax: Axes, images: Tensor, columns: int) -> None:
    """Show images [N, 64] as one picture, with white between them, as digits fill their squares."""
    squares = torch.nn.functional.pad(images.reshape(-1, columns, SIDE, SIDE), (_GAP,) * 4)
    tiles = squares.transpose(1, 2).reshape(-1, columns * _PITCH)
    ax.imshow(tiles.tolist(), cmap="gray_r", vmin=0, vmax=1)


def training_curves(runs: Sequence[Run], bound: str, path: Path) -> None:
    """Draw the bound, reconstruction and KL over the epochs, held-out and in training."""
    from matplotlib.lines import Line2D

    terms = {
        "bound": bound if "_" not in bound else f"${bound.replace('_', '_{')}}}$",
        "reconstruction": "reconstruction, $\\log p(x|z)$",
        "kl": "KL$(q \\,\\|\\, p)$",
    }
    likelihoods = [name for name in LIKELIHOODS if any(r.model.likelihood == name for r in runs)]
    latents = sorted({run.model.latent for run in runs})
    title = "Training curves (full lines: held-out images, dotted: training images)"
    figure = new_figure(13, 3.6 * len(likelihoods) + 0.9, title)
    axes = figure.subplots(len(likelihoods), 3, squeeze=False)
    for line, likelihood in zip(axes, likelihoods, strict=True):
        for ax, (term, name) in zip(line, terms.items(), strict=True):
            shown = []
            for run in (r for r in runs if r.model.likelihood == likelihood):
                shown += _draw_curve(ax, run, term, f"C{latents.index(run.model.latent)}")
            value_range(ax, shown)
            integer_axis(ax)
            ax.set(xlabel="epoch", ylabel="nats per image")
            ax.set_title(f"{likelihood.capitalize()}: {name}", fontsize=11)
            ax.grid(alpha=0.3)
    keys = [Line2D([], [], color=f"C{i}", label=f"D = {d}") for i, d in enumerate(latents)]
    keys += [
        Line2D([], [], **_PLAIN_LINE, label=f"D = {latent} in plain torch")
        for latent in sorted({run.model.latent for run in runs if run.model.ops is PLAIN})
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False)
    save_figure(figure, path)


def _draw_curve(ax: Axes, run: Run, term: str, colour: str) -> list[float]:
    """Draw the curve; return the range worth showing, since the first epochs are far below the
    rest.
    """
    held_out = [getattr(epoch.held_out, term) for epoch in run.history]
    train = [getattr(epoch.train, term) for epoch in run.history]
    epochs = range(1, len(held_out) + 1)
    if run.model.ops is PLAIN:
        ax.plot(epochs, held_out, **_PLAIN_LINE, zorder=3)
    else:
        ax.plot(epochs, held_out, color=colour, linewidth=1.4)
        ax.plot(epochs, train, color=colour, linewidth=1.0, linestyle=":")
    start = len(held_out) // 15
    return held_out[start:] + train[start:]

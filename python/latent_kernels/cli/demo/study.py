"""The parts of the demo: VAEs beside plain torch, a profile of gradients, a mixture, an encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch

import latent_kernels as lk
from latent_kernels.cli import digits
from latent_kernels.cli.demo import costs
from latent_kernels.cli.demo.results import (
    Results,
    Run,
    Settings,
    cost_table,
    describe,
    gains,
    headline,
)
from latent_kernels.cli.frame import Report, named
from latent_kernels.cli.mixture import study as mixture
from latent_kernels.cli.mixture.data import iris
from latent_kernels.cli.sparse import study as sparse
from latent_kernels.cli.vae import FUSED, LIKELIHOODS, PLAIN, VAE, Ops, evaluate, train
from latent_kernels.variational.variance import ProfileInterrupted


def run(found: Results, report: Report, say: Callable[..., object]) -> None:
    """Compare, train, profile and fit; after an interruption `found` has the completed results."""
    images, settings = digits.load(), found.settings
    for done, size in enumerate(settings.sizes):
        report("steps beside plain torch", done, len(settings.sizes))
        fitted = size.with_samples(found.objective)
        found.costs += costs.compare(fitted, images.train, found.objective, found.seed)
    if found.costs:
        say(headline(found), cost_table(found), *gains(found), "")
    _train_all(found, images, report, say)
    problem = found.problem
    try:
        found.profile = lk.profile_variance(
            problem.q,
            problem.log_joint,
            num_samples=settings.profiled_samples,
            repeats=settings.profiled_repeats,
            seed=found.seed,
            exact_gradient=problem.exact_gradient,
            progress=named(report, "variance of gradients"),
        )
    except ProfileInterrupted as stop:
        found.profile = stop.profile
        raise
    data = iris()
    report("mixture", 0, 1)
    found.mixture = mixture.fit(data, data.classes, "full", found.seed)
    found.patches = sparse.compare_patches(
        settings.photographs, settings.encoder_layers, found.seed, report
    )


def _plan(settings: Settings, seed: int) -> list[tuple[str, int, int, Ops]]:
    """Return (likelihood, latent size, seed, ops) of each model: those to draw, then those only to
    compare.
    """
    drawn = [(name, latent, seed, FUSED) for latent in settings.latents for name in LIKELIHOODS]
    compared = [
        ("gaussian", settings.compared_latent, seed + i, ops)
        for i in range(settings.compared_seeds)
        for ops in (FUSED, PLAIN)
    ]
    return [*drawn, *(one for one in compared if one not in drawn)]


def _train_all(
    found: Results, images: digits.Digits, report: Report, say: Callable[..., object]
) -> None:
    settings, objective = found.settings, found.objective
    plan = _plan(settings, found.seed)
    for number, (likelihood, latent, seed, ops) in enumerate(plan, 1):
        torch.manual_seed(seed)
        run = Run(VAE(latent, likelihood, settings.hidden, ops), seed)
        found.runs.append(run)
        for epoch in train(run.model, images.train, images.held_out, settings.epochs, objective):
            run.history.append(epoch)
            what = f"model {number}/{len(plan)}: {objective.name} {epoch.held_out.bound:.2f}"
            report(what, len(run.history), settings.epochs)
        torch.manual_seed(seed)
        run.final = evaluate(run.model, images.held_out, objective, settings.held_out_samples)
        label = f"{likelihood} D={latent} seed {seed} {ops.name}"
        say(f"{label:<37} {describe(run.final, objective)} nats")

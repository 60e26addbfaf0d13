"""The table of the commands."""

from __future__ import annotations

import typer

from latent_kernels.cli.bounds.command import bounds
from latent_kernels.cli.demo.command import demo
from latent_kernels.cli.frame import command
from latent_kernels.cli.info import info
from latent_kernels.cli.mixture.command import mixture
from latent_kernels.cli.sparse.command import sparse
from latent_kernels.cli.variance.command import variance


def application() -> typer.Typer:
    """Return the typer app with every command."""
    app = typer.Typer(
        help="Compiled kernels for latent-variable models.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    for function in (info, demo, variance, mixture, sparse, bounds):
        app.command()(command(function))
    return app

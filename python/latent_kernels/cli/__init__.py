"""The command line, `latent-kernels`: a folder for each command, and beside the folders the modules
that the commands share.

typer, rich and matplotlib are an extra: this file imports none of them, so that it can say which
one is missing.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

_EXTRA = ("typer", "rich", "matplotlib")


def main() -> None:
    """Run the command that the arguments of the process name."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without UTF-8
    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        print(
            f"latent-kernels: the command line needs {', '.join(missing)}: pip install "
            "latent-kernels[cli]",
            file=sys.stderr,
        )
        sys.exit(1)
    from latent_kernels.cli.app import application

    application()()

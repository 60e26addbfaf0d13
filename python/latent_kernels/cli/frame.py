"""What all commands share: errors in one line, Ctrl-C, progress, and files that are written
completely or not at all.

A command is a function whose arguments are typer options. It checks its options first (`one_of`,
`output_file`, `output_folder`), so that no work is lost to a bad one. It handles no errors:
`command` turns what it raises into a message and an exit status.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from latent_kernels.kernels import backends
from latent_kernels.sparse.encoders.training import TrainingDiverged

Report = Callable[[str, int, int], object]  # running work, steps done, steps in total

Threads = Annotated[int, typer.Option(min=1, help="Threads.")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Fixes every number except measured times.")
]

PICTURES = (".png", ".pdf", ".svg")


class BadOption(ValueError):
    """The value of an option cannot be used."""

    def __init__(self, option: str, message: str):
        super().__init__(message)
        self.option = option


class Failed(Exception):
    """The command cannot go on; the message says why in one line."""


class Stopped(Exception):
    """Ctrl-C came after some of the results had been written; the message says which."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Return the function as a command: what it raises ends the process with one line.

    The exit status is 2 for a bad option, 130 after Ctrl-C, and 1 for any other failure. A function
    with an option `threads` computes on the CPU, with so many threads.
    """

    @functools.wraps(function)
    def run(**options: Any) -> None:
        try:
            _check_backends("threads" in options)
            torch.set_num_threads(options.get("threads", torch.get_num_threads()))
            function(**options)
        except BadOption as error:
            raise typer.BadParameter(str(error), param_hint=error.option) from None
        except (Failed, TrainingDiverged) as error:
            raise _end(str(error), 1) from None
        except Stopped as error:
            raise _end(f"stopped; {error}", 130) from None
        except KeyboardInterrupt:
            raise _end("stopped before there was anything to draw", 130) from None
        except OSError as error:
            reason = error.strerror or str(error)
            where = f"cannot write to {error.filename}: " if error.filename else ""
            raise _end(where + reason, 1) from None

    return run


@contextmanager
def keeping(what: str) -> Iterator[None]:
    """Turn Ctrl-C into Stopped, whose message names the results that were already complete."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(what) from None


def _check_backends(on_cpu: bool) -> None:
    """Refuse a value of LATENT_KERNELS_BACKEND that is unknown or that cannot run on this
    machine.
    """
    try:
        for op in backends.BACKENDS if on_cpu else ():
            backends.backend_name(op, torch.device("cpu"))
        backends.forced()
    except (RuntimeError, ValueError) as error:
        raise Failed(str(error)) from None


def _end(message: str, status: int) -> typer.Exit:
    typer.echo(f"latent-kernels: {message}", err=True)
    return typer.Exit(status)


# --- options --------------------------------------------------------------------------------------


def one_of(option: str, value: str, known: Collection[str]) -> None:
    """Raise BadOption unless the value is one of the known ones."""
    if value not in known:
        raise BadOption(option, f"must be one of {', '.join(known)}; got {value!r}")


def sample_counts(text: str, most: int | None = None) -> tuple[int, ...]:
    """Read --samples: `A:B` doubles from A up to and including B; otherwise numbers separated by
    commas.
    """
    try:
        first, colon, last = text.partition(":")
        found = [int(first), int(last)] if colon else [int(part) for part in text.split(",")]
    except ValueError:
        found, colon = [0], ""
    if min(found) < 1 or (colon and found[0] > found[1]):
        raise BadOption(
            "--samples", f"must be A:B with 1 <= A <= B, or numbers like 1,4,16; got {text!r}"
        )
    if most is not None and max(found) > most:
        raise BadOption("--samples", f"must be numbers of at most {most}; got {max(found)}")
    if colon:
        low, high = found
        found = [low << k for k in range((high // low).bit_length())] + [high]
    return tuple(sorted(set(found)))


def output_file(path: Path, suffixes: Collection[str] = ()) -> None:
    """Raise BadOption for another suffix, or OSError where the file could not be written."""
    if suffixes and path.suffix.lower() not in suffixes:
        raise BadOption("--out", f"must end in {', '.join(suffixes)}; got {str(path)!r}")
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    probe = path.parent / f".latent-kernels-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        error.filename = str(path)
        raise


def output_folder(path: Path, names: Collection[str]) -> None:
    """Make the folder if it does not exist; raise OSError where these files could not be
    written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, "is not a folder", str(path)) from None
    except OSError as error:
        error.filename = str(path)
        raise
    for name in names:
        output_file(path / name)


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """Yield a path to write to; move the finished file to its own name only when it is complete.

    So an interruption leaves either the previous file or the whole new one.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        error.filename = str(path)  # the error of a full disk names no file
        raise
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole file of text in UTF-8."""
    with complete(path) as part:
        part.write_text(text, encoding="utf-8")


# --- the screen -----------------------------------------------------------------------------------


class Screen:
    """Where a command prints."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet)

    def say(self, *parts: str | Table) -> None:
        """Print lines, which only the terminal wraps, and tables."""
        for part in parts:
            if isinstance(part, str):
                self.console.print(part, highlight=False, soft_wrap=True)
            else:
                self.console.print(part)

    @contextmanager
    def progress(self) -> Iterator[Report]:
        """Show a progress bar; yield the function that reports progress."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task("", total=None)
            yield lambda what, done, total: progress.update(
                task, description=what, completed=done, total=total
            )


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str | None = None,
    names: int = 1,
) -> Table:
    """Return a table whose first `names` columns are text, and whose others are numbers."""
    found = Table(title=title, caption=caption, box=SIMPLE)
    for i, column in enumerate(columns):
        found.add_column(column, justify="left" if i < names else "right", no_wrap=True)
    for row in rows:
        found.add_row(*row)
    return found


def named(report: Report, what: str) -> Callable[[int, int], object]:
    """Return the function that reports progress (done, total) of one piece of work."""
    return lambda done, total: report(what, done, total)


def plural(count: int, noun: str) -> str:
    """Return "1 thread" or "2 threads"."""
    return f"{count} {noun}{'s' * (count != 1)}"

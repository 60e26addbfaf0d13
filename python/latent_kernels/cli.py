"""The command line, `latent-kernels`: `info`, `demo`, `variance`, `mixture`, `sparse` and `bounds`.

typer, rich and matplotlib are an extra, so this module imports none of them before `main` has
looked for them.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    import typer

_EXTRA = ("typer", "rich", "matplotlib")
_PACKAGES = ("torch", "numpy", "numba", "triton", "scikit-learn")


def main() -> None:
    """The console entry point."""
    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        print(
            f"latent-kernels: the command line needs {', '.join(missing)}: pip install "
            "latent-kernels[cli]",
            file=sys.stderr,
        )
        sys.exit(1)
    application()()


def application() -> "typer.Typer":
    """The typer app."""
    import typer

    app = typer.Typer(
        help="Compiled kernels for latent-variable models.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.command("info")
    def info_command() -> None:
        """Show what is active: backends, SIMD width, threads, versions, GPU, and why a backend is
        off.
        """
        _check_backends()
        info()

    @app.command("demo")
    def demo_command(
        seed: Annotated[
            int, typer.Option(min=0, max=2**32, help="Fixes every number but times.")
        ] = 0,
        out: Annotated[Path, typer.Option(help="Folder for pictures and tables.")] = Path("demo"),
        epochs: Annotated[
            int | None, typer.Option(min=1, help="Passes over the images per model.")
        ] = None,
        bound: Annotated[
            str, typer.Option(help="What training maximizes: elbo, iwae, stl or dreg.")
        ] = "elbo",
        samples: Annotated[
            int, typer.Option(min=1, max=1000, help="Samples for each image; 50 take nine minutes.")
        ] = 1,
        threads: Annotated[
            int, typer.Option(min=1, help="Threads; models this small gain nothing from more.")
        ] = 1,
    ) -> None:
        """Train VAEs on handwritten digits, draw them, and compare with plain torch (one to two
        minutes).
        """
        _check_backends()
        demo(seed, out, epochs, threads, bound, samples)

    @app.command("variance")
    def variance_command(
        problem: Annotated[
            str,
            typer.Option(
                help="quadratic, linear-gaussian, logistic-regression, bernoulli-vae "
                "or categorical."
            ),
        ] = "logistic-regression",
        objective: Annotated[
            str,
            typer.Option(help="Whose gradient: elbo, or importance-bound, the bound of S samples."),
        ] = "elbo",
        estimators: Annotated[
            str | None,
            typer.Option(
                help="Such as none,leave_one_out,optimal,disarm,reparameterized, and for "
                "importance-bound iwae,stl,dreg,vimco; else all that apply."
            ),
        ] = None,
        samples: Annotated[
            str,
            typer.Option(help="Samples per gradient: 1:1024 doubles from 1 to 1024; or 1,4,16."),
        ] = "1:1024",
        repeats: Annotated[int, typer.Option(min=8, help="Gradients for each variance.")] = 256,
        seed: Annotated[
            int, typer.Option(min=0, max=2**32, help="Fixes every number but times.")
        ] = 0,
        out: Annotated[Path, typer.Option(help="The picture, .png, .pdf or .svg.")] = Path(
            "variance.png"
        ),
        csv: Annotated[Path | None, typer.Option(help="The table as CSV.")] = None,
        json: Annotated[
            Path | None, typer.Option(help="The table and single parameters as JSON.")
        ] = None,
        budget: Annotated[
            float | None, typer.Option(min=1e-6, help="Milliseconds for a gradient, to compare at.")
        ] = None,
        threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 1,
    ) -> None:
        """Profile the variance of gradient estimators on a problem, draw it, and say which wins
        (seconds).
        """
        _check_backends()
        files = {"out": out, "csv": csv, "json": json}
        options = {"repeats": repeats, "seed": seed, "budget": budget, **files}
        variance(threads, problem, objective, estimators, samples, **options)

    @app.command("mixture")
    def mixture_command(
        data: Annotated[
            str, typer.Option(help="iris, digits or wine, two dimensions of it.")
        ] = "iris",
        components: Annotated[
            int | None,
            typer.Option(min=1, max=50, help="Components; else as many as the data have classes."),
        ] = None,
        covariance_type: Annotated[
            str, typer.Option(help="full, tied, diag or spherical.")
        ] = "full",
        seed: Annotated[
            int, typer.Option(min=0, max=2**32 - 1, help="Fixes every number but times.")
        ] = 0,
        out: Annotated[Path, typer.Option(help="The picture, .png, .pdf or .svg.")] = Path(
            "mixture.png"
        ),
        compare: Annotated[
            bool, typer.Option(help="Measure an iteration against scikit-learn.")
        ] = True,
        threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 1,
    ) -> None:
        """Fit a Gaussian mixture to real data by EM, draw how it goes, and compare its speed
        (seconds).
        """
        _check_backends()
        mixture(threads, data, components, covariance_type, seed, out, compare)

    @app.command("sparse")
    def sparse_command(
        layers: Annotated[int, typer.Option(min=1, max=64, help="Layers of the encoders.")] = 16,
        features: Annotated[
            int, typer.Option(min=8, max=4096, help="Numbers that drawn codes are seen by.")
        ] = 250,
        components: Annotated[
            int, typer.Option(min=16, max=4096, help="Numbers of a drawn code.")
        ] = 500,
        samples: Annotated[int, typer.Option(min=32, help="Held-out drawn codes.")] = 500,
        seed: Annotated[
            int, typer.Option(min=0, max=2**32 - 1, help="Fixes every number but times.")
        ] = 0,
        out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("sparse"),
        quick: Annotated[
            bool, typer.Option(help="A quarter of the training, and smaller photographs.")
        ] = False,
        threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 1,
    ) -> None:
        """Train sparse encoders, and draw them by layer beside ISTA and FISTA (four minutes;
        --quick: two).
        """
        _check_backends()
        sparse(threads, layers, features, components, samples, seed, out, quick)

    @app.command("bounds")
    def bounds_command(
        samples: Annotated[
            str, typer.Option(help="The k to train with, such as 1,5,50.")
        ] = "1,5,50",
        seeds: Annotated[int, typer.Option(min=1, max=100, help="Models of each k.")] = 3,
        epochs: Annotated[
            int | None, typer.Option(min=1, help="Passes over the images per model.")
        ] = None,
        estimator: Annotated[
            str, typer.Option(help="Of the bound's gradient: iwae, dreg or stl.")
        ] = "iwae",
        seed: Annotated[
            int, typer.Option(min=0, max=2**32, help="Fixes every number but times.")
        ] = 0,
        out: Annotated[Path, typer.Option(help="Folder for the picture and the numbers.")] = Path(
            "bounds"
        ),
        quick: Annotated[
            bool, typer.Option(help="Small models, a tenth of the epochs, judged by 500 samples.")
        ] = False,
        threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 1,
    ) -> None:
        """Train VAEs on importance-weighted bounds, and compare their held-out bounds (five
        minutes; --quick: one).
        """
        _check_backends()
        bounds(threads, samples, seeds, epochs, estimator, seed, out, quick)

    return app


def _fail(message: str, code: int = 1) -> "typer.Exit":
    import typer

    typer.echo(f"latent-kernels: {message}", err=True)
    return typer.Exit(code)


@contextmanager
def _told() -> Iterator[None]:
    """Ends the command with a line for a bad option, Ctrl-C with nothing to keep, or a file that
    cannot be written.
    """
    import typer

    from latent_kernels.examples.variance_command import BadOption

    try:
        yield
    except BadOption as error:
        raise typer.BadParameter(str(error), param_hint=error.option) from None
    except KeyboardInterrupt:
        raise _fail("stopped before there was anything to draw", 130) from None
    except OSError as error:
        raise _fail(f"cannot write to {error.filename}: {error.strerror or error}") from None


def _check_backends() -> None:
    """Ends the command where LATENT_KERNELS_BACKEND asks for something unknown."""
    from latent_kernels.kernels import backends

    try:
        backends.forced()
    except ValueError as error:
        raise _fail(str(error)) from None


def _check_cpu_backends() -> None:
    """Ends the command where a forced backend cannot run on the CPU."""
    import torch

    from latent_kernels.kernels import backends

    try:
        for op in backends.BACKENDS:
            backends.backend_name(op, torch.device("cpu"))
    except RuntimeError as error:
        raise _fail(str(error)) from None


# --- demo -----------------------------------------------------------------------------------------


def demo(seed: int, out: Path, epochs: int | None, threads: int, bound: str, samples: int) -> None:
    """Run the demo and say where everything is."""
    import dataclasses

    import torch
    import typer
    from rich.console import Console

    from latent_kernels.examples import demo as example
    from latent_kernels.examples.objectives import BOUNDS, Objective

    _check_cpu_backends()
    if bound not in BOUNDS:
        raise typer.BadParameter(
            f"must be one of {', '.join(BOUNDS)}; got {bound!r}", param_hint="--bound"
        )
    try:
        _make_writable(out)
    except OSError as error:
        raise _fail(f"cannot write to {out}: {error.strerror or error}") from None
    torch.set_num_threads(threads)
    settings = dataclasses.replace(example.SETTINGS, seed=seed, objective=Objective(bound, samples))
    if epochs is not None:
        settings = dataclasses.replace(settings, epochs=epochs)
    console = Console()
    try:
        outcome = example.run(settings, out, console)
    except KeyboardInterrupt:
        raise _fail(f"stopped while writing; what is complete is in {out}", 130) from None
    except OSError as error:
        raise _fail(f"stopped: {error}") from None
    names = ", ".join(path.name for path in outcome.files)
    if outcome.interrupted:
        raise _fail(
            f"stopped; in {out}: {names}" if names else "stopped before there was anything to draw",
            130,
        )
    console.print(
        f"[bold]Done in {outcome.seconds:.0f} s.[/bold] In {out}: {names}.", highlight=False
    )
    for line in outcome.comparison.summary():
        console.print(line, highlight=False)


def _make_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".latent-kernels-{os.getpid()}"
    probe.touch()
    probe.unlink()


# --- variance -------------------------------------------------------------------------------------


def variance(
    threads: int, problem: str, objective: str, estimators: str | None, samples: str, **options: Any
) -> None:
    """Profiles, draws, and prints who wins; the options are those of `variance_command.Request`."""
    import torch
    from rich.console import Console

    from latent_kernels.examples import variance_command as command

    _check_cpu_backends()
    torch.set_num_threads(threads)
    with _told():
        names, sizes = command.parse_estimators(estimators), command.parse_samples(samples)
        request = command.Request(
            problem, names, sizes, objective=command.parse_objective(objective), **options
        )
        interrupted = command.run(request, Console())
    if interrupted:
        raise _fail("stopped; the numbers of samples that were complete are in the files", 130)


# --- mixture --------------------------------------------------------------------------------------


def mixture(threads: int, *options: Any) -> None:
    """Fits, draws and compares; the options are those of `mixture_command.Request`."""
    import torch
    from rich.console import Console

    from latent_kernels.examples import mixture_command as command

    _check_cpu_backends()
    torch.set_num_threads(threads)
    with _told():
        interrupted = command.run(command.Request(*options), Console())
    if interrupted:
        raise _fail("stopped; the picture is complete", 130)


# --- sparse ---------------------------------------------------------------------------------------


def sparse(threads: int, *options: Any) -> None:
    """Trains, compares and draws; the options are those of `sparse_command.Request`."""
    import torch
    from rich.console import Console

    from latent_kernels.examples import sparse_command as command
    from latent_kernels.sparse.encoders.training import TrainingDiverged

    _check_cpu_backends()
    torch.set_num_threads(threads)
    try:
        with _told():
            interrupted = command.run(command.Request(*options), Console())
    except TrainingDiverged as error:
        raise _fail(str(error)) from None
    if interrupted:
        raise _fail(f"stopped; {command.FIGURES[0]} is complete", 130)


# --- bounds ---------------------------------------------------------------------------------------


def bounds(threads: int, samples: str, *options: Any) -> None:
    """Trains, compares and draws; the options are those of `bounds_command.Request`."""
    import torch
    from rich.console import Console

    from latent_kernels.examples import bounds_command as command
    from latent_kernels.examples.variance_command import parse_samples

    _check_cpu_backends()
    torch.set_num_threads(threads)
    with _told():
        interrupted = command.run(command.Request(parse_samples(samples), *options), Console())
    if interrupted:
        raise _fail("stopped; the models that were complete are in the files", 130)


# --- info -----------------------------------------------------------------------------------------


def info() -> None:
    """Prints tables on a terminal, and plain `name: value` lines into a pipe or file."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    facts, backends = _facts(), _backend_rows()
    if not console.is_terminal:
        for name, value in facts:
            print(f"{name}: {value}")
        for op, cpu, cuda, off in backends:
            print(f"op {op}: CPU {cpu}; CUDA {cuda}; off: {off}")
        return
    table = Table(show_header=False, title="latent-kernels")
    for fact in facts:
        table.add_row(*fact)
    console.print(table)
    table = Table("op", "on CPU", "on CUDA", "off, and why", title="Backends")
    for row in backends:
        table.add_row(*row)
    console.print(table)


def _facts() -> list[tuple[str, str]]:
    import torch

    from latent_kernels.kernels import _core, backends

    facts = [("latent-kernels", version("latent-kernels")), ("Python", sys.version.split()[0])]
    facts += [(package, _version(package)) for package in _PACKAGES]
    facts += [
        ("SIMD builds this CPU runs", ", ".join(_core.simd_builds())),
        ("SIMD build in use", f"{_core.simd_build()}, {_core.simd_lanes()} float32 lanes"),
        ("threads", str(torch.get_num_threads())),
        ("GPU", _gpu()),
        (backends.VARIABLE, os.environ.get(backends.VARIABLE) or "not set"),
    ]
    return facts


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _gpu() -> str:
    import torch

    if torch.cuda.is_available():
        names = (torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return f"{', '.join(names)}; driver {_driver()}, CUDA {torch.version.cuda}"
    if torch.version.cuda is None:
        return "none: this torch is built without CUDA"
    return f"none: torch (built for CUDA {torch.version.cuda}) finds no GPU"


def _driver() -> str:
    """The driver's version; torch does not tell it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "of unknown version"
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(
            query, capture_output=True, text=True, timeout=10, check=True
        ).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return "of unknown version"
    return found[0] if found else "of unknown version"


def _backend_rows() -> list[tuple[str, str, str, str]]:
    """(op, backend on CPU, backend on CUDA, what is off and why)."""
    import torch

    from latent_kernels.kernels import backends

    missing = backends.triton_missing()
    rows = []
    for op, names in backends.BACKENDS.items():
        cpu = _used(op, "cpu")
        cuda = _used(op, "cuda") if torch.cuda.is_available() else "no GPU"
        off = f"triton: {missing}" if "triton" in names and missing is not None else "nothing"
        rows.append((op, cpu, cuda, off))
    return rows


def _used(op: str, device: str) -> str:
    import torch

    from latent_kernels.kernels import backends

    try:
        name = backends.backend_name(op, torch.device(device))
    except RuntimeError as error:
        return str(error)
    return f"{name} (forced)" if op in backends.forced() else name

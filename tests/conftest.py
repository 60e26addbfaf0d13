"""Shared fixtures: every SIMD build, poisoned memory, restored state of torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import SimpleNamespace

import hypothesis
import pytest
import torch

from latent_kernels.kernels import _core, backends
from latent_kernels.variational import variance

# Without a GPU the Triton kernels are compiled for one all the same, and their PTX is interpreted,
# on CPU tensors.
if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    from tests.triton.ptx import driver

    driver.install()
    backends.interpreting = lambda: True

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile(
    "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fill what torch.empty returns with NaN, so that an element that a kernel forgets to write is
    noticed.
    """
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _restored_state() -> Iterator[None]:
    threads, build = torch.get_num_threads(), _core.simd_build()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    _core.select_simd_build(build)
    backends.forget()


@pytest.fixture(params=_core.simd_builds())
def simd_build(request: pytest.FixtureRequest) -> str:
    """Run the test once with each build of the C++ kernels that this processor supports."""
    assert _core.select_simd_build(request.param)
    return request.param


class Clock:
    """A clock that only the test advances: by `now`, and by `step` with each reading."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 0.0, step

    def read(self) -> float:
        """Return the time in seconds, and advance it by `step`."""
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock of `profile_variance` by one that stops until the test advances it."""
    clock = Clock()
    monkeypatch.setattr(variance, "time", SimpleNamespace(perf_counter=clock.read))
    return clock

"""The work of a launch besides the launch itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

import latent_kernels as lk  # noqa: E402
from latent_kernels.kernels import backends, launch  # noqa: E402
from tests.backends import interpreted  # noqa: E402


@interpreted
def test_launchers_divide_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """triton.cdiv, made for kernels too, takes microseconds."""
    ops = ("noise", "gaussian", "densities", "families", "bounds")
    monkeypatch.setenv("LATENT_KERNELS_BACKEND", ",".join(f"{op}=triton" for op in ops))
    backends.forget()
    called: list[Any] = []
    monkeypatch.setattr(triton, "cdiv", lambda a, b: called.append((a, b)) or -(-a // b))
    x = torch.randn(6, 10, requires_grad=True)
    log_w = lk.gaussian_log_prob(lk.rsample(x, x, 3, seed=1), x, x)
    lk.importance_bound(log_w).sum().backward()
    lk.Bernoulli(x).sample(3, seed=1)
    lk.normal(5, seed=1)
    assert not called


@pytest.mark.parametrize(("count", "entered"), [(1, []), (2, ["cuda:1"])])
def test_a_device_is_chosen_where_there_are_several(
    monkeypatch: pytest.MonkeyPatch, count: int, entered: list[str]
) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "device", lambda x: chosen.append(x) or launch._AS_IT_IS)
    launch._several_devices.cache_clear()
    try:
        with launch.on_device_of(SimpleNamespace(is_cuda=True, device="cuda:1")):  # type: ignore[arg-type]
            pass
        assert chosen == entered
    finally:
        launch._several_devices.cache_clear()

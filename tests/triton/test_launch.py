"""The work of a launch on the host."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

import latent_kernels as lk  # noqa: E402
from latent_kernels.kernels import backends, launch  # noqa: E402
from tests.backends import interpreted  # noqa: E402
from tests.checks import bits_equal  # noqa: E402


@interpreted
def test_launchers_divide_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launchers divide in Python, since triton.cdiv, made for kernels too, takes microseconds."""
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


@interpreted
def test_a_kept_kernel_serves_only_what_it_was_compiled_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twice a launch of each kind: compiled, then kept. Addresses, divisors of sizes, wide seeds,
    missing tensors and types differ in what is compiled.
    """
    monkeypatch.setenv("LATENT_KERNELS_BACKEND", "gaussian=triton,noise=triton")
    backends.forget()
    monkeypatch.setattr(launch, "_kept", {})
    numbers = torch.randn(16 * 64 + 1, dtype=torch.float64)
    cases = [
        (torch.float32, 0, (16, 64), 3),
        (torch.float32, 1, (16, 64), 3),  # begins at no multiple of 16 bytes
        (torch.float32, 0, (16, 64), 2**40 + 3),
        (torch.float32, 0, (16, 64), torch.tensor(3)),
        (torch.float32, 0, (1, 1), 3),
        (torch.float64, 0, (16, 64), 3),
    ]
    for _ in range(2):
        for dtype, begin, (rows, cols), seed in cases:
            x = numbers.to(dtype)[begin : begin + rows * cols].view(rows, cols)
            z, _kl = lk.rsample_kl(x, x, seed=seed)
            eps = lk.normal(x.shape, seed=int(seed), dtype=dtype)
            torch.testing.assert_close(z, x + (0.5 * x).exp() * eps)
    kept = len(launch._kept)
    lk.rsample_kl(x, x, seed=4)  # other seeds of one width need no other kernel
    assert len(launch._kept) == kept > len(cases)


@interpreted
def test_larger_blocks_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are enough programs, noise and samples use larger blocks and draw the
    same.
    """
    monkeypatch.setenv("LATENT_KERNELS_BACKEND", "families=triton,noise=triton")
    backends.forget()
    logits = torch.randn(50, 41)

    def draw() -> list[torch.Tensor]:
        noise = lk.normal(2050, seed=1, offset=3), lk.uniform(2048, seed=2)
        return [*noise, lk.Bernoulli(logits).sample(3, seed=3)]

    before = draw()
    for programs, tiles in ((2, 2), (1, 4)):
        monkeypatch.setattr(launch, "WANTED_PROGRAMS", programs)
        assert launch.block_of(2050) == tiles * launch.TILE
        assert all(bits_equal(a, b) for a, b in zip(before, draw(), strict=True))

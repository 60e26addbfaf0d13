"""Vector quantization under torch's own machinery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.library import opcheck

import latent_kernels as lk
from tests.checks import bits_equal

Tensor = torch.Tensor
OPS = torch.ops.latent_kernels
CODES = torch.tensor([[0, 2, 1, -1, 0], [1, 1, 1, 1, 1]])


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nearest_codes", lambda: (data(2, 5, 4), data(2, 3, 4), [True, True, True])),
        ("vector_quantize", lambda: (leaf(2, 5, 4), leaf(2, 3, 4), CODES % 3, [True, True, True])),
        ("vector_quantize", lambda: (leaf(2, 5, 4), data(2, 3, 4), CODES % 3, [True, True, False])),
        (
            "vector_quantize_backward",
            lambda: (
                (data(2, 5, 4), None, data(2, 5), data(2, 5, 4), data(2, 3, 4), CODES)
                + ([True, True],)
            ),
        ),
    ],
)
def test_opcheck(name: str, arguments: Callable[[], tuple[Any, ...]]) -> None:
    results = opcheck(getattr(OPS, name), arguments())
    assert set(results.values()) == {"SUCCESS"}


def test_derivatives() -> None:
    """Each loss has the derivatives of its formula in one of the inputs, for codes that stay."""
    z, codebook = leaf(3, 4, 2), leaf(5, 2)

    def commitment(z: Tensor) -> Tensor:
        return lk.vector_quantize(z, codebook.detach()).commitment

    def codebook_loss(codebook: Tensor) -> Tensor:
        return lk.vector_quantize(z.detach(), codebook).codebook_loss

    for function, x in ((commitment, z), (codebook_loss, codebook)):
        assert torch.autograd.gradcheck(function, x, nondet_tol=0)
        assert torch.autograd.gradgradcheck(function, x)
        _, tangent = jvp(function, (x,), (torch.ones_like(x),))
        (along,) = torch.autograd.grad(function(x).sum(), x)
        assert torch.allclose(tangent.sum(), along.sum())


def test_what_has_a_gradient_and_of_what() -> None:
    z, codebook = leaf(7, 3), leaf(4, 3)
    found = lk.vector_quantize(z, codebook)
    has_gradient = [x.requires_grad for x in found]
    assert has_gradient == [False, True, True, True, False, False]
    upstream = torch.randn_like(z)
    passed = torch.autograd.grad(found.quantized, (z, codebook), upstream, retain_graph=True)
    assert torch.equal(passed[0], upstream)
    assert not passed[1].any()
    g = torch.randn(7, dtype=torch.float64)
    e = codebook[found.codes]
    of_commitment = torch.autograd.grad(found.commitment, (z, codebook), g, retain_graph=True)
    assert torch.allclose(of_commitment[0], 2 * g.unsqueeze(-1) * (z - e))
    assert not of_commitment[1].any()
    of_loss = torch.autograd.grad(found.codebook_loss.sum(), (z, codebook))
    assert not of_loss[0].any()
    from_statistics = 2 * (found.counts.unsqueeze(-1) * codebook - found.sums)
    assert torch.allclose(of_loss[1], from_statistics)


def test_vmap_and_compile() -> None:
    z, codebooks = torch.randn(3, 8, 2), torch.randn(3, 5, 2)
    expected = lk.vector_quantize(z, codebooks)
    for a, b in zip(vmap(lk.vector_quantize)(z, codebooks), expected, strict=True):
        assert bits_equal(a, b)
    shared = vmap(lk.vector_quantize, (0, None))(z, codebooks[0])
    for i in range(3):
        one = lk.vector_quantize(z[i], codebooks[0])
        assert all(bits_equal(a[i], b) for a, b in zip(shared, one, strict=True))
    slopes = vmap(grad(lambda x, e: lk.vector_quantize(x, e).commitment.sum()))(z, codebooks)
    assert torch.allclose(slopes, 2 * (z - expected.quantized))
    compiled = torch.compile(lk.vector_quantize, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 8):
        x = z[0, :rows].clone().requires_grad_()
        a, b = compiled(x, codebooks[0]), lk.vector_quantize(x, codebooks[0])
        assert all(bits_equal(p, q) for p, q in zip(a, b, strict=True))
        total = a.quantized.sum() + a.commitment.sum()
        (slope,) = torch.autograd.grad(total, x)
        assert torch.allclose(slope, 1 + 2 * (x - b.quantized))

"""`lk.vector_quantize` with its statistics against plain torch: in the way of
vector-quantize-pytorch (`one_hot`), in torch's quickest way (`indexed`), and that compiled.

Rows are forward, statistics and the gradient of z, as one step of a VQ-VAE takes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import harness
import latent_kernels as lk
import peers
from harness import Contest, Group, close, groups, rows

Tensor = torch.Tensor
Case = tuple[int, int, int]  # rows, columns, codes

CONTENDERS = ("ours", "one_hot", "indexed", "compile")
CASES: tuple[Case, ...] = (
    (1024, 8, 64),
    (8192, 32, 512),
    (65536, 64, 1024),
    (4096, 256, 8192),
)


def _ours(z: Tensor, codebook: Tensor) -> tuple[Tensor, ...]:
    codes, quantized, commitment, _, counts, sums = lk.vector_quantize(z, codebook)
    return codes, quantized, commitment, counts, sums


def _prepare(case: Case, device: str) -> Contest:
    count, columns, codes = case
    generator = torch.Generator().manual_seed(3)
    z, upstream = (torch.randn(count, columns, generator=generator).to(device) for _ in range(2))
    codebook = torch.randn(codes, columns, generator=generator).to(device)
    z.requires_grad_()
    weight = torch.full((count,), 0.25 / count, device=device)
    functions: dict[str, Callable[..., Any]] = {
        "ours": _ours,
        "one_hot": peers.one_hot_quantize,
        "indexed": peers.indexed_quantize,
        "compile": torch.compile(peers.indexed_quantize),
    }
    wide = z.detach().double()
    best = torch.cat([torch.cdist(x, codebook.double()).amin(-1) for x in wide.split(4096)])

    def call(function: Callable[..., Any]) -> Any:
        found = function(z, codebook)
        return *found, torch.autograd.grad(found[1:3], z, (upstream, weight))[0]

    def check(_: str, out: Any) -> None:
        own, quantized, commitment, counts, sums, gradient = (x.detach() for x in out)
        e = codebook.double()[own]
        close((wide - e).norm(dim=-1), best, 1e-5, "the distance")
        close(quantized, e, 1e-6, "quantized rows")
        close(commitment, (wide - e).square().sum(-1), 1e-5, "commitment")
        close(counts, torch.bincount(own, minlength=codes).double(), 0, "counts")
        close(sums, torch.zeros_like(codebook).double().index_add_(0, own, wide), 1e-4, "sums")
        slope = upstream.double() + 2 * weight.double()[:, None] * (wide - e)
        close(gradient, slope, 1e-6, "the gradient")

    return Contest({name: functools.partial(call, functions[name]) for name in CONTENDERS}, check)


def _group(case: Case, threads: int, device: str) -> Group:
    count, columns, codes = case
    return Group(
        "vector_quantize forward+backward",
        case,
        threads,
        device,
        CONTENDERS,
        count * columns,
        # z read three times, for codes, sums and distances, and in backward; two results written
        4 * (6 * count * columns + 3 * codes * columns + 4 * count),
        2 * count * columns * codes,
        functools.partial(_prepare, case, device),
    )


GROUPS = groups(_group, CASES, ((65536, 64, 1024),), two=CASES[2:3])


@pytest.mark.parametrize(("group", "contender"), rows(GROUPS))
def test_vector_quantize(benchmark: Any, group: Group, contender: str) -> None:
    """Check and time a step beside plain torch."""
    harness.run(benchmark, group, contender)

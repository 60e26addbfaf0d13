"""Compare the noise and the samples on a GPU with the CPU's, bit for bit: `python bench/gpu.py
OUT_DIR` writes OUT_DIR/bits.csv.

Times are measured by `pytest --benchmark -k cuda`. Exit status: 0; 1 where a bit is wrong; 2 where
there is no GPU.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

import latent_kernels as lk
import machine

Tensor = torch.Tensor

BITS_COUNT = 2**22
SEEDS = (0, 1, 0x123456789ABCDEF, 2**63 - 1)
# the last two pass counter 2^32, which element 4 * 2^32 has, and lie beyond it
OFFSETS = (0, 3, 2**34 - 5, 2**40 + 1)
CLASSES = 10


class Bits(NamedTuple):
    """One comparison of an output on the GPU with the CPU's."""

    op: str
    what: str
    elements: int
    different: int


def differing(here: Tensor, there: Tensor) -> int:
    """Count the elements that differ in any bit."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[here.element_size()]
    return int((here.view(kind) != there.cpu().view(kind)).sum())


def compare_noise(device: str, count: int = BITS_COUNT) -> Iterator[Bits]:
    """Compare noise for seeds and offsets at the edges; the seed is given as a tensor too."""
    for function in (lk.normal, lk.uniform):
        for seed in SEEDS:
            for offset in OFFSETS:
                here = function(count, seed=seed, offset=offset)
                for given in (seed, torch.tensor(seed, device=device)):
                    there = function(count, seed=given, offset=offset, device=device)
                    what = f"seed {seed} as {type(given).__name__}, offset {offset}"
                    yield Bits(function.__name__, what, count, differing(here, there))


def compare_samples(device: str) -> Iterator[Bits]:
    """Compare samples of each family, for one sample and several, aligned and not."""
    for shape, samples in (((4096, 256), None), ((500, 63), 5)):
        generator = torch.Generator().manual_seed(7)
        mean, logvar = (torch.randn(shape, generator=generator) for _ in range(2))
        logits = torch.randn(*shape, CLASSES, generator=generator)
        for make, parameters in (
            (lk.DiagonalGaussian, (mean, logvar)),
            (lk.Bernoulli, (mean,)),
            (lk.Categorical, (logits,)),
        ):
            here = make(*parameters).sample(samples, seed=11)
            there = make(*(x.to(device) for x in parameters)).sample(samples, seed=11)
            what = f"{samples} samples of {shape}"
            yield Bits(make.__name__, what, here.numel(), differing(here, there))


def main() -> int:
    """Compare the bits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out_dir", type=Path)
    out_dir = parser.parse_args().out_dir
    if not torch.cuda.is_available():
        print("bench/gpu.py: torch finds no CUDA GPU; nothing was compared", file=sys.stderr)
        return 2
    out_dir.mkdir(parents=True, exist_ok=True)
    print(machine.environment(), flush=True)
    wrong = 0
    with (out_dir / "bits.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Bits._fields)
        for compare in (compare_noise, compare_samples):
            for row in compare("cuda"):
                writer.writerow(row)
                wrong += row.different > 0
                if row.different:
                    print(f"bits differ: {row}", flush=True)
    print(f"bits: {wrong} comparisons differ", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

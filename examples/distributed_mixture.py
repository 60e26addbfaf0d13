"""
A mixture fitted by several processes
=====================================

Each process sees only its own rows: ``torchrun --nproc-per-node=2 distributed_mixture.py``.

An iteration costs each process one pass over its shard and one all-reduce of the statistics, about
K D^2 numbers whatever the number of rows. The first process then fits all rows alone and prints how
far the two results are apart: by rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.distributed as dist

import latent_kernels as lk

COMPONENTS, COLUMNS, ROWS = 4, 5, 20_000  # rows in each shard


def shard(rank: int) -> np.ndarray:
    """Return the rows of one process: of the same mixture everywhere, with noise of its own."""
    truth = np.random.default_rng(0)
    means = 3 * truth.standard_normal((COMPONENTS, COLUMNS))
    roots = np.eye(COLUMNS) + 0.4 * truth.standard_normal((COMPONENTS, COLUMNS, COLUMNS))
    generator = np.random.default_rng([1, rank])
    labels = generator.choice(COMPONENTS, size=ROWS, p=[0.4, 0.3, 0.2, 0.1])
    noise = generator.standard_normal((ROWS, COLUMNS))
    return means[labels] + np.einsum("nd,nde->ne", noise, roots[labels])


def main() -> None:
    """Fit, and print in the first process."""
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    options: dict[str, Any] = {"random_state": 0, "tol": 1e-6, "max_iter": 500}
    together = lk.GaussianMixture(COMPONENTS, **options).fit(shard(rank), group=dist.group.WORLD)
    dist.destroy_process_group()
    if rank == 0:
        print(f"{processes} processes, {ROWS} rows each: {together.n_iter_} iterations, ", end="")
        print(f"mean log-likelihood {together.lower_bound_:.6f}")
        whole = np.concatenate([shard(r) for r in range(processes)])
        alone = lk.GaussianMixture(COMPONENTS, **options).fit(whole)
        for name in ("weights_", "means_", "covariances_"):
            here, there = getattr(alone, name), getattr(together, name)
            apart = np.abs(here - there).max() / np.abs(here).max()
            print(f"{name:12s} differ from one process's by {apart:.1e}")


if __name__ == "__main__":
    main()

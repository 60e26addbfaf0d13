"""A Gaussian mixture fitted by several processes, each with its own part of the data.

    torchrun --nproc-per-node=2 -m latent_kernels.examples.distributed_mixture

Each process draws its own shard, which no other one sees. All call fit with the group; an iteration
costs each of them one pass over its shard and one all-reduce of the statistics, (K D^2) numbers
whatever the number of rows. The first process then fits all rows alone and prints how far the two
results are apart: by rounding.
"""

from __future__ import annotations

import sys

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from latent_kernels.mixtures.gaussian_mixture import GaussianMixture

COMPONENTS, COLUMNS, ROWS = 4, 5, 20_000  # rows in each shard


def shard(rank: int) -> NDArray[np.float64]:
    """The rows of one process: of the same mixture everywhere, with noise of its own."""
    truth = np.random.default_rng(0)
    means = 3 * truth.standard_normal((COMPONENTS, COLUMNS))
    roots = np.eye(COLUMNS) + 0.4 * truth.standard_normal((COMPONENTS, COLUMNS, COLUMNS))
    generator = np.random.default_rng([1, rank])
    labels = generator.choice(COMPONENTS, size=ROWS, p=[0.4, 0.3, 0.2, 0.1])
    noise = generator.standard_normal((ROWS, COLUMNS))
    rows: NDArray[np.float64] = means[labels] + np.einsum("nd,nde->ne", noise, roots[labels])
    return rows


def model() -> GaussianMixture:
    """The model before it is fitted."""
    return GaussianMixture(COMPONENTS, random_state=0, tol=1e-6, max_iter=500)


def main() -> None:
    """Fits, and prints in the first process."""
    if not dist.is_torchelastic_launched():
        sys.exit(
            "start it with: torchrun --nproc-per-node=2 -m "
            "latent_kernels.examples.distributed_mixture"
        )
    dist.init_process_group("gloo")
    try:
        rank, processes = dist.get_rank(), dist.get_world_size()
        together = model().fit(shard(rank), group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()
    if rank == 0:
        print(f"{processes} processes, {ROWS} rows each: {together.n_iter_} iterations, ", end="")
        print(f"mean log-likelihood {together.lower_bound_:.6f}")
        print("weights", np.round(together.weights_, 4))
        alone = model().fit(np.concatenate([shard(r) for r in range(processes)]))
        for name in ("weights_", "means_", "covariances_"):
            here, there = getattr(alone, name), getattr(together, name)
            print(
                f"{name:12s} differ from one process's by "
                f"{np.abs(here - there).max() / np.abs(here).max():.1e}"
            )


if __name__ == "__main__":
    main()

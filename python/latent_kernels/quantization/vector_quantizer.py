"""A codebook as a torch module: moved by moving averages, started by k-means, kept in use."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from latent_kernels import _checks
from latent_kernels.kernels.vector_quantize.problem import ASSIGN
from latent_kernels.quantization.vector_quantize import Quantized, checked, vector_quantize

Tensor = torch.Tensor


class VectorQuantizer(nn.Module):
    r"""A codebook that rows are quantized with, and that follows them while it is trained.

    `forward(z)` is `vector_quantize(z, codebook)`, with `quantized` in the dtype of z. In training
    mode the codebook then moves, by moving averages of the statistics of its codes:

    .. math::
        N_k \leftarrow \gamma N_k + (1 - \gamma) n_k, \qquad
        m_k \leftarrow \gamma m_k + (1 - \gamma) s_k, \qquad
        e_k = m_k \Big/ \Big( \frac{N_k + \epsilon}{\sum_j N_j + K \epsilon} \sum_j N_j \Big)

    with n_k the number of the code's rows in the batch and s_k their sum: online hard EM. The first
    batch in training mode starts the codebook by k-means from K of its rows. A code whose N_k falls
    below a fraction of the average count is replaced by a random row of the batch, with the average
    count. Rows that hold NaN are left out of all of it.

    A training loss is usually the reconstruction's plus 0.25 `commitment.mean()`; with a learned
    codebook (decay=None) also `codebook_loss.mean()`. Codes are vectors over the last dimension:
    images [B, C, H, W] come as ``z.movedim(1, -1)``.

    Args:
        num_codes: K, the number of codes.
        dim: D, the length of a code.
        decay: gamma, in [0, 1); None for a codebook that is a parameter, which an optimizer moves.
        epsilon: > 0, what every code is counted more, so that none is divided by 0.
        kmeans_iterations: >= 0, of k-means on the first batch; 0 for K of its rows as they are.
        minimum_usage: in [0, 1), the fraction of the average count below which a code is replaced;
            0 for never. Codes that an optimizer moves are not replaced.
        codebook: [K, D] to start from instead of the first batch.
        group: a torch.distributed process group (`torch.distributed.group.WORLD`) whose processes
            all call the module with batches of their own: statistics are summed over all of them,
            so that all keep the same codebook. Rows to start from or to replace codes by are those
            of its first process. None for this process alone. Copies and pickles of the module do
            not contain it.
        device: of the codebook; None for that of `codebook`, or torch's default.
        dtype: float32 or float64; None for that of `codebook`, or torch's default.

    Attributes: codebook [K, D]; counts [K] and sums [K, D], the moving averages N and m (buffers,
    in `state_dict`; None where decay is None); started, whether the codebook has its first values.
    Before it is started it holds standard normals. torch's default generator governs all that is
    random.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source:
        van den Oord, Vinyals, Kavukcuoglu, "Neural discrete representation learning" (2017),
        appendix A.1; Razavi, van den Oord, Vinyals, "Generating diverse high-fidelity images with
        VQ-VAE-2" (2019).

    Example:
        >>> import torch, latent_kernels as lk
        >>> quantizer = lk.VectorQuantizer(2, 1, decay=0.5)
        >>> z = torch.tensor([[0.0], [0.2], [1.0], [1.2]])
        >>> found = quantizer(z)  # starts the codebook by k-means, then moves it
        >>> quantizer.codebook[found.codes].flatten()
        tensor([0.1000, 0.1000, 1.1000, 1.1000])
        >>> quantizer.eval().lookup(found.codes).shape
        torch.Size([4, 1])

    """

    codebook: Tensor
    counts: Tensor | None
    sums: Tensor | None

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        decay: float | None = 0.99,
        epsilon: float = 1e-5,
        kmeans_iterations: int = 10,
        minimum_usage: float = 0.01,
        codebook: Tensor | None = None,
        group: Any | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = _checks.integer("num_codes", num_codes), _checks.integer("dim", dim)
        self.decay = None if decay is None else _fraction("decay", decay)
        self.epsilon = _checks.positive("epsilon", epsilon)
        self.kmeans_iterations = _checks.integer("kmeans_iterations", kmeans_iterations, 0)
        self.minimum_usage = _fraction("minimum_usage", minimum_usage)
        if group is not None and dist.get_rank(group) < 0:
            raise ValueError("group must include this process; got one without it")
        self.group = group
        self.started = codebook is not None
        if codebook is None:
            start = torch.randn(shape, device=device, dtype=dtype)
        else:
            _checks.floating("codebook", codebook)
            if tuple(codebook.shape) != shape:
                raise ValueError(
                    f"codebook must have shape {shape} (num_codes, dim); got "
                    f"{tuple(codebook.shape)}"
                )
            start = codebook.detach().to(device=device, dtype=dtype, copy=True)
        if start.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype must be torch.float32 or float64; got {start.dtype}")
        if self.decay is None:
            self.codebook = nn.Parameter(start)
            self.counts = self.sums = None
            return
        self.register_buffer("codebook", start)
        self.register_buffer("counts", torch.ones_like(start[:, 0]))
        self.register_buffer("sums", start.clone())

    def forward(self, z: Tensor) -> Quantized:
        """Quantize z [..., D]; in training mode start and move the codebook, too."""
        moves = self.training and self.decay is not None
        if self.training and not self.started:
            self.start(z)
        # The codebook moves before the backward pass reads what was quantized with.
        found = vector_quantize(z, self.codebook.clone() if moves else self.codebook)
        if moves:
            self._move(z, found)
        return found._replace(quantized=found.quantized.to(z.dtype))

    @torch.no_grad()
    def start(self, z: Tensor) -> None:
        """Start the codebook, and its averages, by k-means on rows z [..., D].

        `forward` does so with the first batch in training mode; call it to start from more rows
        than one batch, or anew.

        Args:
            z: [..., D]; with a `group` every process calls it with rows of its own.

        Raises:
            ValueError: no row is finite.

        Example:
            >>> import torch, latent_kernels as lk
            >>> quantizer = lk.VectorQuantizer(4, 3)
            >>> quantizer.start(torch.randn(1000, 3))
            >>> quantizer.started, quantizer.counts.sum()
            (True, tensor(1000.))

        """
        (given, codebook), dims = checked(z, self.codebook)
        rows = given.detach().to(codebook.dtype).reshape(-1, codebook.size(1))
        dims = ((), (len(rows),), *dims[2:])
        means = self._of_first_process(self._distinct_rows(rows))
        if not bool(means.isfinite().all()):
            raise ValueError("z must have a finite row to start the codebook from; got none")
        for _ in range(self.kmeans_iterations):
            _, counts, sums = ASSIGN(dims, (rows, means))
            counts, sums = self._over_processes(counts, sums)
            means = torch.where(counts.unsqueeze(-1) > 0, sums / counts.unsqueeze(-1), means)
        self.codebook.copy_(means)
        if self.counts is not None and self.sums is not None:
            _, counts, sums = ASSIGN(dims, (rows, means))
            counts, sums = self._over_processes(counts, sums)
            self.counts.copy_(counts)
            self.sums.copy_(sums)
        self.started = True

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the rows of the codebook [..., D] that codes [...] stand for."""
        return nn.functional.embedding(codes, self.codebook)

    @torch.no_grad()
    def _move(self, z: Tensor, found: Quantized) -> None:
        assert self.counts is not None
        assert self.sums is not None
        assert self.decay is not None
        counts, sums = self._over_processes(found.counts, found.sums)
        weight = (1 - self.decay) * (counts.sum() > 0).to(counts.dtype)  # 0 where there are no rows
        self.counts.lerp_(counts, weight)
        self.sums.lerp_(sums, weight)
        if self.minimum_usage > 0:
            self._replace_dead(z.detach().reshape(-1, self.codebook.size(1)))
        total = self.counts.sum()
        share = (self.counts + self.epsilon) / (total + len(self.counts) * self.epsilon)
        self.codebook.copy_(self.sums / (share * total).unsqueeze(-1))

    def _replace_dead(self, rows: Tensor) -> None:
        """Replace the averages of codes that are hardly used by those of a random row, if finite:
        without a look at how many they are, for which a GPU would have to be waited for.
        """
        assert self.counts is not None
        assert self.sums is not None
        if len(rows):
            chosen = torch.randint(len(rows), (len(self.counts),)).to(rows.device)
            candidates = rows[chosen].to(self.sums.dtype)
        else:
            candidates = torch.full_like(self.sums, torch.nan)
        candidates = self._of_first_process(candidates)
        average = self.counts.mean()
        dead = (self.counts < self.minimum_usage * average) & candidates.isfinite().all(-1)
        self.counts.copy_(torch.where(dead, average, self.counts))
        self.sums.copy_(torch.where(dead.unsqueeze(-1), average * candidates, self.sums))

    def _distinct_rows(self, rows: Tensor) -> Tensor:
        """Return a random row for each code, each once where there are enough; NaN if none is
        finite.
        """
        count = len(self.codebook)
        finite = rows[rows.isfinite().all(-1)]
        if len(finite) == 0:
            return rows.new_full((count, rows.size(1)), torch.nan)
        order = torch.randperm(len(finite))[:count].repeat(-(-count // len(finite)))[:count]
        return finite[order.to(rows.device)]

    def _over_processes(self, counts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Return counts, as numbers of the codebook's dtype, and sums of all processes' rows."""
        dtype = self.codebook.dtype
        if self.group is None:
            return counts.to(dtype), sums.to(dtype)
        both = torch.cat([counts.unsqueeze(-1).to(dtype), sums.to(dtype)], dim=-1)
        dist.all_reduce(both, group=self.group)
        return both[:, 0], both[:, 1:]

    def _of_first_process(self, x: Tensor) -> Tensor:
        if self.group is not None:
            x = x.contiguous()
            dist.broadcast(x, src=dist.get_global_rank(self.group, 0), group=self.group)
        return x

    def get_extra_state(self) -> Tensor:
        """Return whether the codebook is started, for `state_dict`."""
        return torch.tensor(self.started, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Set whether the codebook is started, for `load_state_dict`."""
        self.started = bool(state)

    def __getstate__(self) -> dict[str, Any]:
        """Return the module's state without its group, which can be neither copied nor pickled."""
        return {**self.__dict__, "group": None}

    def extra_repr(self) -> str:
        """Return the arguments, for printing."""
        num_codes, dim = self.codebook.shape
        return f"{num_codes}, {dim}, decay={self.decay}, minimum_usage={self.minimum_usage}"


def _fraction(name: str, value: object) -> float:
    number = _checks.as_float(value)
    if number is None:
        raise TypeError(f"{name} must be a number in [0, 1); got {value!r}")
    if not 0 <= number < 1:
        raise ValueError(f"{name} must be a number in [0, 1); got {value}")
    return number

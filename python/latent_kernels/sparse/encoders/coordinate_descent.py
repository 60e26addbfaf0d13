"""Learned coordinate descent."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from latent_kernels import _checks
from latent_kernels._checks import integer
from latent_kernels.kernels.lista.reference import shrink
from latent_kernels.sparse.encoders._start import (
    Array,
    Thresholding,
    non_negative,
    prepared,
    shape_of,
    squared_lengths,
)

Tensor = torch.Tensor


class LCoD(Thresholding):
    r"""An encoder that updates one coordinate of the codes, T times, with learned matrices.

    .. math::
        u = x W, \quad z = 0; \qquad
        T \text{ times: } \bar z = \mathrm{soft}(u, \theta),\ k = \arg\max_j |\bar z_j - z_j|,\
        u \leftarrow u + (\bar z_k - z_k) S_k,\ z_k \leftarrow \bar z_k; \qquad
        z = \mathrm{soft}(u, \theta)

    with soft(u, theta) = sign(u) max(abs(u) - theta, 0), where each row of x chooses its own k. The
    initial parameters are exactly those of greedy coordinate descent for 1/2 ||x - z D||^2 + alpha
    ||z||_1: W = D^T G^-1, S = I - D D^T G^-1, theta = alpha G^-1, where G = diag(||d_j||^2). It is
    computed in plain torch on every device; autograd keeps [N, n_components] tensors for each
    iteration.

    Args:
        n_features: the number of features, m.
        n_components: the number of codes, n.
        n_iterations: T >= 1 updates, before the last line of the formula.
        dictionary: D [n, m] to start from; None for random rows of unit length, drawn by torch's
            default generator.
        alpha: the weight of the L1 norm, >= 0.
        positive: codes >= 0: max(u - theta, 0).
        device: of the parameters; None for that of the dictionary.
        dtype: of the parameters: float32, float64, bfloat16 or float16; None for that of the
            dictionary.

    Parameters are weight W [m, n], recurrent S [n, n] and threshold theta [n]. `forward` uses the
    absolute value of the threshold in training mode; in evaluation mode a negative one raises an
    error (on the CPU, in plain calls). See `project_`.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source:
        Gregor and LeCun, "Learning fast approximations of sparse coding" (2010), algorithms 2 and
        3; the greedy choice is that of Li and Osher, "Coordinate descent optimization for l1
        minimization" (2009).

    Example:
        >>> import torch, latent_kernels as lk
        >>> encoder = lk.LCoD.from_dictionary(torch.eye(3), alpha=1.0, n_iterations=2)
        >>> encoder(torch.tensor([[3.0, -0.5, 0.0]])).detach()
        tensor([[2., 0., 0.]])

    """

    _non_negative = ("threshold",)

    def __init__(
        self,
        n_features: int,
        n_components: int,
        n_iterations: int,
        *,
        dictionary: Array | None = None,
        alpha: float = 0.1,
        positive: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.n_iterations = integer("n_iterations", n_iterations)
        self.alpha = non_negative("alpha", alpha)
        start, place = prepared(dictionary, n_components, n_features, device, dtype)
        self.n_features, self.n_components, self.positive = n_features, n_components, positive
        lengths = squared_lengths(start)
        recurrent = -(start @ start.T) / lengths
        self.weight = nn.Parameter(place.of(start.T / lengths))
        # The diagonal is 1 - ||d||^2 / ||d||^2, here without rounding.
        self.recurrent = nn.Parameter(place.of(recurrent.fill_diagonal_(0)))
        self.threshold = nn.Parameter(place.of(self.alpha / lengths))

    @classmethod
    def from_dictionary(
        cls,
        dictionary: Array,
        alpha: float,
        n_iterations: int,
        *,
        positive: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> LCoD:
        """Return the encoder that is greedy coordinate descent for a dictionary and alpha.

        The dictionary is [n_components, n_features]. The class describes the other arguments.
        """
        n, m = shape_of(dictionary)
        return cls(
            m,
            n,
            n_iterations,
            dictionary=dictionary,
            alpha=alpha,
            positive=positive,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor, n_iterations: int | None = None) -> Tensor:
        """Return the codes.

        Args:
            x: [..., n_features].
            n_iterations: the number of updates; None for that of the encoder.

        Returns:
            z [..., n_components] of the dtype that x and the parameters promote to.

        Raises:
            TypeError, ValueError: an argument is wrong (the message names it); in evaluation mode
                also for a negative threshold (see the class).

        """
        _checks.float_tensor("x", x)
        if x.size(-1) != self.n_features:
            raise ValueError(f"x must have shape [..., {self.n_features}]; got {tuple(x.shape)}")
        steps = self.n_iterations if n_iterations is None else integer("n_iterations", n_iterations)
        threshold = self._feasible_values("threshold")
        tensors, _ = _checks.together(
            x=x, weight=self.weight, recurrent=self.recurrent, threshold=threshold
        )
        x, weight, recurrent, threshold = cast(list[Tensor], tensors)
        u = x.reshape(-1, self.n_features) @ weight
        z = torch.zeros_like(u)
        for _ in range(steps):
            proposed = shrink(u, threshold, positive=self.positive)
            change = proposed - z
            chosen = change.detach().abs().argmax(-1, keepdim=True)
            u = u + change.gather(-1, chosen) * recurrent[chosen.squeeze(-1)]
            z = z.scatter(-1, chosen, proposed.gather(-1, chosen))
        return shrink(u, threshold, positive=self.positive).reshape(
            *x.shape[:-1], self.n_components
        )

    def extra_repr(self) -> str:
        """Return the sizes and options as text."""
        text = f"n_features={self.n_features}, n_components={self.n_components}"
        text += f", n_iterations={self.n_iterations}"
        return text + (", positive=True" if self.positive else "")

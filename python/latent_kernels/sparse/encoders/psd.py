"""The predictor of predictive sparse decomposition: one layer."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from latent_kernels import _checks
from latent_kernels.sparse.encoders._start import Array, lipschitz, prepared, shape_of

Tensor = torch.Tensor


class PSDEncoder(nn.Module):
    r"""An encoder of one layer, the predictor of predictive sparse decomposition (PSD).

    .. math::
        z = \beta \odot \tanh(x W + b)

    Its codes approximate sparse codes but are not exactly 0. It is trained to predict optimal codes
    z*: of PSD's objective ||x - z* D||^2 + lambda ||z*||_1 + ||z* - z||^2, `train_encoder` given
    `codes` minimizes the term that depends on the encoder.

    Args:
        n_features: the number of features, m.
        n_components: the number of codes, n.
        dictionary: D [n, m] to start from; None for random rows of unit length, drawn by torch's
            default generator. W = D^T / L with L >= ||D||^2, b = 0 and beta = 1, so that for small
            x the codes are the first gradient step of ISTA.
        device: of the parameters; None for that of the dictionary.
        dtype: of the parameters: float32, float64, bfloat16 or float16; None for that of the
            dictionary.

    Parameters are weight W [m, n], bias b [n] and gain beta [n].

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source:
        Kavukcuoglu, Ranzato, LeCun, "Fast inference in sparse coding algorithms with applications
        to object recognition" (2008).

    Example:
        >>> import torch, latent_kernels as lk
        >>> encoder = lk.PSDEncoder.from_dictionary(torch.eye(3))
        >>> encoder(torch.zeros(5, 3)).shape
        torch.Size([5, 3])

    """

    def __init__(
        self,
        n_features: int,
        n_components: int,
        *,
        dictionary: Array | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        start, place = prepared(dictionary, n_components, n_features, device, dtype)
        self.n_features, self.n_components = n_features, n_components
        self.weight = nn.Parameter(place.of(start.T / lipschitz(start, place.dtype)))
        self.bias = nn.Parameter(place.of(torch.zeros(n_components, device="cpu")))
        self.gain = nn.Parameter(place.of(torch.ones(n_components, device="cpu")))

    @classmethod
    def from_dictionary(
        cls,
        dictionary: Array,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> PSDEncoder:
        """Return the encoder for a dictionary [n_components, n_features].

        The class describes the other arguments.
        """
        n, m = shape_of(dictionary)
        return cls(m, n, dictionary=dictionary, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the codes [..., n_components] of x [..., n_features].

        Their dtype is the one that x and the parameters promote to.
        """
        _checks.float_tensor("x", x)
        if x.size(-1) != self.n_features:
            raise ValueError(f"x must have shape [..., {self.n_features}]; got {tuple(x.shape)}")
        tensors, _ = _checks.together(x=x, weight=self.weight, bias=self.bias, gain=self.gain)
        x, weight, bias, gain = cast(list[Tensor], tensors)
        return gain * torch.tanh(x @ weight + bias)

    def extra_repr(self) -> str:
        """Return the sizes as text."""
        return f"n_features={self.n_features}, n_components={self.n_components}"

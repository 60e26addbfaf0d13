"""The interface of sparse encoders: problem, outputs and gradients, the same for all backends."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch

from latent_kernels.kernels.backends import function
from latent_kernels.kernels.description import Tape
from latent_kernels.kernels.lista.values import finite
from latent_kernels.kernels.op import Op

Tensor = torch.Tensor


class Problem(NamedTuple):
    """T layers for N rows of F features and C components; all tensors are of one dtype.

    A parameter that has no dimension T is shared by all layers.
    """

    sizes: tuple[int, int, int]  # N, F, C
    x: Annotated[Tensor, "NF"]
    weight: Annotated[Tensor, "*FC"]  # [F, C]; with a dictionary also [T, F, C]
    threshold: Annotated[Tensor, "*"]  # [], [C], [T, 1] or [T, C], >= 0
    bias: Annotated[Tensor | None, "C"]  # not with a dictionary
    recurrent: Annotated[Tensor | None, "*CC"]  # [C, C] or [T, C, C]; not with a dictionary
    dictionary: Annotated[Tensor | None, "CF"]
    step: Annotated[Tensor | None, "*"]  # [] or [T]
    initial: Annotated[Tensor | None, "NC"]  # None for zeros
    layers: int  # T, the number of soft-thresholdings
    positive: bool  # codes >= 0
    # For each layer, how many of the largest entries pass unthresholded.
    select: tuple[int, ...] | None


class Outputs(NamedTuple):
    """The codes; in a backward pass, their gradient."""

    z: Annotated[Tensor, "NC"]
    tape: Tape | None = None  # for the non-zero codes of all layers


class Gradients(NamedTuple):
    """The gradients of the inputs."""

    x: Tensor | None
    weight: Tensor | None
    threshold: Tensor | None
    bias: Tensor | None
    recurrent: Tensor | None
    dictionary: Tensor | None
    step: Tensor | None
    initial: Tensor | None


def _forward(problem: Problem, outputs: Outputs) -> None:
    """Check the values of the parameters, which torch.compile knows only at run time; encode."""
    _, x, weight, threshold, bias, recurrent, dictionary, step, initial = problem[:9]
    finite("weight", weight)
    finite("bias", bias)
    finite("recurrent", recurrent)
    finite("dictionary", dictionary)
    finite("step", step)
    finite("initial", initial)
    finite("threshold", threshold, least=0)
    function("lista", "forward", x.device)(problem, outputs)


ENCODE = Op("lista", "lista", "NFC", Problem, Outputs, Gradients, forward=_forward)

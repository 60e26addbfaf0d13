"""Unrolled soft-thresholding on the CPU, in C++ (csrc/lista/)."""

from __future__ import annotations

import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.extension import DTYPES
from latent_kernels.kernels.lista.problem import Gradients, Outputs, Problem

Tensor = torch.Tensor
_STEP = Gradients._fields.index("step")


def plan(problem: Problem) -> _core.ListaPlan:
    """Return the call for these parameters, which it reads at their addresses.

    Each call is given its x and initial codes.
    """
    (_, features, n), x, weight, threshold, bias, recurrent, dictionary, step = problem[:8]
    return _core.ListaPlan(
        dtype=DTYPES[x.dtype],
        features=features,
        components=n,
        layers=problem.layers,
        positive=problem.positive,
        layered_weight=weight.dim() == 3,
        layered_recurrent=recurrent is not None and recurrent.dim() == 3,
        layered_step=step is not None and step.dim() == 1,
        layered_threshold=threshold.dim() == 2,
        wide_threshold=threshold.dim() > 0 and threshold.size(-1) == n,
        weight=_address(weight),
        threshold=_address(threshold),
        bias=_address(bias),
        recurrent=_address(recurrent),
        dictionary=_address(dictionary),
        step=_address(step),
        select=tuple(problem.select or ()),  # opaque ops have lists
    )


def _address(x: Tensor | None) -> int:
    """Return the address of a tensor, 0 for None.

    An empty tensor has no address but must differ from None: any other number serves.
    """
    return 0 if x is None else x.data_ptr() or 1


def forward(problem: Problem, outputs: Outputs) -> None:
    """Write the codes; keep on the tape, if there is one, what the backward pass needs.

    It keeps more where the steps need a gradient.
    """
    tape = outputs.tape
    found = _core.lista_forward(
        plan(problem),
        threads=torch.get_num_threads(),
        rows=problem.sizes[0],
        x=_address(problem.x),
        initial=_address(problem.initial),
        out=_address(outputs.z),
        with_tape=tape is not None,
        with_drive=tape is not None and tape.needs[_STEP],
    )
    if tape is not None:
        tape.held = found


def backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write the gradients. Without a tape the forward pass runs again."""
    addresses = {name: _address(g) for name, g in gradients._asdict().items()}
    _core.lista_backward(
        plan(problem),
        threads=torch.get_num_threads(),
        rows=problem.sizes[0],
        x=_address(problem.x),
        initial=_address(problem.initial),
        tape=None if upstream.tape is None else upstream.tape.held,
        upstream=_address(upstream.z),
        gradients=_core.ListaGradients(**addresses),
    )

"""Descriptions of ops that must raise: mistakes that would silently give wrong results."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import pytest
import torch

from latent_kernels.kernels.description import Description

Tensor = torch.Tensor


class Problem(NamedTuple):
    sizes: tuple[int, int]
    x: Annotated[Tensor, "ND"]


class Outputs(NamedTuple):
    total: Annotated[Tensor, "N"]


class Gradients(NamedTuple):
    x: Tensor


class Misnamed(NamedTuple):
    dx: Tensor


def describe(axes: str = "ND", gradients: Any = Gradients) -> Description:
    return Description("op", "folder", axes, Problem, Outputs, gradients)


def test_shapes_and_gradients() -> None:
    op = describe()
    dims = [(2, 3), (5,)]
    assert [field.shape(dims) for field in (*op.inputs, *op.results)] == [(2, 3, 5), (2, 3)]
    assert op.learned_at == [0]


def test_a_gradient_of_no_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"op: gradients of {'dx'}, which are not inputs"):
        describe(gradients=Misnamed)


def test_an_unknown_axis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"op: x has axes {'D'} not in NC"):
        describe("NC")

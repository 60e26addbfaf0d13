"""`lista_encode` and `coupled_lista_encode` against plain torch: codes, and training steps; memory
of a training step.

Shapes are m x n x batch x layers. What one layer costs depends on how many codes are not 0, so the
density, a mean over layers and rows, stands in the op's name, and an op is a form at one density.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import harness
import lista_peers as peers
from harness import Contest, Group, groups, rows
from latent_kernels.cli.timing import Call
from latent_kernels.kernels.backends import backend_name

Shape = peers.Shape
Case = tuple[Shape, float]  # and the density

SPARSE: tuple[Case, ...] = (
    ((100, 400, 1, 7), 0.10),
    ((100, 400, 64, 7), 0.10),
    ((100, 400, 1024, 7), 0.013),
    ((250, 500, 1024, 16), 0.05),
    ((256, 1024, 1024, 16), 0.04),
    ((64, 256, 8192, 3), 0.20),
)
HALF: tuple[Case, ...] = (((100, 400, 1024, 7), 0.45),)
DENSE: tuple[Case, ...] = (*HALF, ((250, 500, 1024, 16), 0.60), ((64, 256, 8192, 3), 1.0))
ONE: tuple[Case, ...] = (((100, 400, 1024, 7), 0.10),)
REMEMBERED: tuple[Case, ...] = (((250, 500, 1024, 16), 0.05), *ONE)


def _operations(form: str, train: bool, shape: Shape, density: float) -> int:
    """Count the operations of the least algorithm, a product and a sum as two; k = density * n
    non-zeros a row in every layer.

    Forward, a row: x W, and for each layer but the last k rows of S; coupled: k rows of D and the
    residual's product with W_t. Backward, only where codes are not 0: the gradient by z_{t-1} and
    that by S are k products with k entries each; that by W has x times the columns of all supports
    together, counted as if they had none in common but at most n; where neither W nor S is learned,
    only that by z. Coupled: a layer's gradient by its residual, by W_t and, through D, by z_{t-1}.
    Soft-thresholding and the sums for thresholds and steps are nothing beside these.
    """
    m, n, batch, count = shape
    k = density * n
    if form == "coupled":
        row = count * m * n + (count - 1) * k * m
        row += ((count - 1) * 2 * k * m + count * k * m) * train
    else:
        row = m * n + (count - 1) * k * n
        row += (count - 1) * k * k * train
        if form != "step":
            row += ((count - 1) * k * k + m * min(n, count * k)) * train
    return round(2 * batch * row)


def _bytes(form: str, train: bool, shape: Shape) -> int:
    """Count bytes: parameters and x read once, codes written; in training also the upstream
    gradient read, and gradients written.
    """
    m, n, batch, count = shape
    sizes = {
        "weight": m * n * (count if form == "coupled" else 1),
        "inner": {"untied": count * n * n, "coupled": n * m}.get(form, n * n),
        "threshold": count * n,
        "step": count * (form == "step"),
    }
    total = sum(sizes.values()) + batch * (m + n)
    return 4 * (total + (batch * n + sum(sizes[name] for name in peers.LEARNED[form])) * train)


def _prepare(form: str, train: bool, shape: Shape, density: float) -> Contest:
    given = peers.problem(form, shape, density)
    expected = peers.truth(form, shape, density, train)
    functions = {name: peers.contender(name, form, train) for name in ("ours", "eager", "compile")}
    if not train:
        calls: dict[str, Call] = {
            name: functools.partial(peers.codes, f, given) for name, f in functions.items()
        }
        return Contest(calls, lambda _, out: peers.check_codes(out, expected))
    leaves = given.leaves()
    steps: dict[str, Call] = {
        name: functools.partial(peers.gradients, f, leaves) for name, f in functions.items()
    }
    return Contest(steps, lambda _, out: peers.check_gradients(out, expected, peers.LEARNED[form]))


def _group(form: str, train: bool, case: Case, threads: int, device: str) -> Group:
    shape, density = case
    passes, form_name = "training" if train else "forward", "" if form == "tied" else f" {form}"
    return Group(
        f"lista {passes}{form_name} {100 * density:g}%",
        shape,
        threads,
        device,
        ("ours", "eager", "compile"),
        shape[1] * shape[2],
        _bytes(form, train, shape),
        _operations(form, train, shape, density),
        functools.partial(_prepare, form, train, shape, density),
    )


FORWARD, TRAINING = SPARSE + DENSE, SPARSE + HALF
GROUPS = groups(functools.partial(_group, "tied", False), FORWARD, two=FORWARD)
GROUPS += groups(functools.partial(_group, "tied", True), TRAINING, two=TRAINING)
for form in ("untied", "step", "coupled"):
    for train in (False, True):
        GROUPS += groups(functools.partial(_group, form, train), ONE, two=())


@pytest.mark.parametrize(("group", "contender"), rows(GROUPS))
def test_lista(benchmark: Any, group: Group, contender: str) -> None:
    """Check and time codes, and training: codes, then the gradients of what is learned."""
    harness.run(benchmark, group, contender)


@pytest.mark.parametrize(("shape", "density"), REMEMBERED)
def test_lista_memory(capsys: pytest.CaptureFixture[str], shape: Shape, density: float) -> None:
    """Check that a training step takes at most a fifth of the memory that plain torch takes."""
    found = {name: peers.memory_of(name, "tied", shape, density) for name in ("ours", "eager")}
    mine, eager = (found[name] for name in ("ours", "eager"))
    # autograd's hooks do not see what our op keeps, since it is not a tensor
    text = f"lista training {100 * density:g}% {'x'.join(map(str, shape))}, peak memory of a step: "
    text += f"ours {mine.peak / 2**20:.1f} MiB, eager {eager.peak / 2**20:.1f} MiB "
    text += f"(saved tensors {eager.saved / 2**20:.1f})"
    with capsys.disabled():
        print("\n" + text)
    if backend_name("lista", torch.device("cpu")) == "reference":
        pytest.skip("the op is plain torch here")
    assert mine.peak <= eager.peak / 5, text

"""The score-function kernels on the CPU: every build, family and control variate through one
checker.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends import CPP, Backend, on_every_backend
from tests.checks import DTYPES
from tests.score.checks import CONTROLS, FAMILIES, SCORE_SIZES, ScoreProblem, Sizes, check_score

ODD: Sizes = (2, 5, 5, 7, 4)
# Few elements with so many samples that they are dealt to several parts.
CHUNKED: Sizes = (1, 9000, 3, 6, 2)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("family", FAMILIES)
@on_every_backend(
    [*SCORE_SIZES, CHUNKED],
    [torch.float32],
    reference=[ODD, (3, 64, 2, 8, 17), (1, 4, 2, 3, 300), (1, 4, 0, 4, 3), (1, 4, 3, 0, 3)],
    on_gpu=[ODD],
    interpreted=[ODD],
    always=0,
    also=[],
)
def test_results(
    backend: Backend, sizes: Sizes, dtype: torch.dtype, family: str, control: str
) -> None:
    for per_element in (False, True):
        for from_seed in (per_element,) if backend.interprets else (False, True):
            options = {"per_element": per_element, "from_seed": from_seed, "offset": 3}
            check_score(backend, ScoreProblem(family, sizes, dtype, control, **options))


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("family", FAMILIES)
@on_every_backend([ODD, (1, 4, 2, 1030, 3)], on_gpu=[ODD], interpreted=[(1, 3, 2, 20, 3)], always=0)
def test_dtypes(
    backend: Backend, sizes: Sizes, dtype: torch.dtype, family: str, control: str
) -> None:
    several: list[dict[str, bool]] = [
        {},
        {"per_element": True, "from_seed": True},
        {"upstream": False, "double_values": True},
    ]
    if backend.interprets:  # slow: one of them for each control variate
        several = [several[CONTROLS.index(control) % 3]]
    for options in several:
        check_score(backend, ScoreProblem(family, sizes, dtype, control, **options))


@given(
    family=st.sampled_from(FAMILIES),
    control=st.sampled_from(CONTROLS),
    sizes=st.tuples(
        st.integers(1, 3),
        st.integers(3, 40),
        st.integers(0, 30),
        st.integers(0, 70),
        st.integers(1, 20),
    ),
    dtype=st.sampled_from(DTYPES),
    offset=st.integers(0, 9),
    folds=st.integers(2, 3),
    per_element=st.booleans(),
    from_seed=st.booleans(),
)
@settings(max_examples=150)
def test_any_shape(
    family: str,
    control: str,
    sizes: Sizes,
    dtype: torch.dtype,
    offset: int,
    folds: int,
    per_element: bool,
    from_seed: bool,
) -> None:
    problem = ScoreProblem(
        family,
        sizes,
        dtype,
        control,
        offset=offset,
        folds=folds,
        per_element=per_element,
        from_seed=from_seed,
    )
    check_score(CPP, problem)

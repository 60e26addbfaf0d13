"""The score-function kernels on the CPU: every build, family and control variate through one
checker.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_kernels.kernels import _core
from latent_kernels.kernels.score import cpp_cpu, reference
from tests.checks import DTYPES, bits_equal
from tests.score.checks import CONTROLS, FAMILIES, SCORE_SIZES, ScoreProblem, Sizes, check_score

# Few elements with so many samples that they are dealt to several parts.
CHUNKED: Sizes = (1, 9000, 3, 6, 2)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", SCORE_SIZES, ids=str)
def test_cpp(simd_build: str, sizes: Sizes, family: str, control: str) -> None:
    for per_element in (False, True):
        for from_seed in (False, True):
            check_score(
                cpp_cpu,
                ScoreProblem(
                    family,
                    sizes,
                    torch.float32,
                    control,
                    per_element=per_element,
                    from_seed=from_seed,
                    offset=3,
                ),
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_dtypes(simd_build: str, family: str, control: str, dtype: torch.dtype) -> None:
    for sizes in ((2, 5, 5, 7, 4), (1, 4, 2, 1030, 3)):
        check_score(cpp_cpu, ScoreProblem(family, sizes, dtype, control))
        check_score(
            cpp_cpu, ScoreProblem(family, sizes, dtype, control, per_element=True, from_seed=True)
        )
        check_score(
            cpp_cpu, ScoreProblem(family, sizes, dtype, control, upstream=False, double_values=True)
        )


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_samples_dealt_to_parts(family: str, control: str) -> None:
    for from_seed in (False, True):
        check_score(
            cpp_cpu, ScoreProblem(family, CHUNKED, torch.float32, control, from_seed=from_seed)
        )
    check_score(cpp_cpu, ScoreProblem(family, CHUNKED, torch.float32, control, per_element=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", SCORE_SIZES, ids=str)
def test_reference(sizes: Sizes, family: str) -> None:
    for control in CONTROLS:
        check_score(reference, ScoreProblem(family, sizes, torch.float32, control))


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
@settings(max_examples=150, deadline=None)
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
    for build in _core.simd_builds():
        _core.select_simd_build(build)
        check_score(cpp_cpu, problem)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", [*SCORE_SIZES, CHUNKED, (1, 64, 300, 40, 5)], ids=str)
def test_bits_do_not_depend_on_build_or_threads(sizes: Sizes, family: str) -> None:
    for control in ("leave_one_out", "optimal"):
        problem = ScoreProblem(family, sizes, torch.float32, control, from_seed=True)
        torch.set_num_threads(1)
        _core.select_simd_build("baseline")
        first = problem.run(cpp_cpu)
        for build in _core.simd_builds():
            _core.select_simd_build(build)
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                for name, x in problem.run(cpp_cpu).items():
                    assert bits_equal(x, first[name]), (build, threads, control, name)

"""The benchmarks' data: files of timings, comparisons of two runs, pictures. Nothing is timed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

import bench_kernels
import compare
import cuda
import gpu
import harness
import machine
import plots
import records
import report
import stand_in
from latent_kernels.cli.timing import Times
from latent_kernels.kernels import _core
from records import Environment, Row

HERE = Environment(
    processor="AMD EPYC",
    model="26-2-1",
    simd="avx512",
    torch_simd="AVX512",
    cores=2,
    gpu="",
    driver="",
    date="2026-11-28 09:00",
    commit="0123456789ab",
    torch="2.13.0",
    triton="3.9.0",
    numba="0.68.1",
    numpy="2.4.6",
    scikit_learn="",
)
LATER = HERE._replace(date="2026-11-28 10:00", commit="ba9876543210")
ELSEWHERE = HERE._replace(processor="Intel Xeon", simd="avx2", torch_simd="AVX2")


def group(
    environment: Environment,
    op: str,
    times: dict[str, float],
    threads: int = 1,
    elements: int = 1000,
) -> list[Row]:
    """Return the rows of one group: contenders with their medians; the fastest rounds take half."""
    return [
        Row(
            op,
            str(elements),
            "float32",
            "cpu",
            threads,
            name,
            int(name.startswith("ours")),
            elements,
            4000,
            2000,
            median,
            median / 2,
            7,
            40.0,
            100.0,
            environment,
        )
        for name, median in times.items()
    ]


def write(path: Path, *groups: list[Row]) -> str:
    records.start(path)
    for rows in groups:
        records.append(path, rows)
    return str(path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = group(HERE, "noise, normal", {"ours": 1.25, "eager": 123.4})
    rows += group(HERE._replace(gpu='a "GPU"'), "noise", {"ours": 3.0}, threads=2)
    path = tmp_path / "machine" / "run.csv"
    write(path, rows[:1], rows[1:])
    assert records.read(path) == rows


def test_a_file_that_is_no_table_of_timings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    path.write_text("op,seconds\nnoise,1\n")
    with pytest.raises(ValueError, match="not a file of timings"):
        records.read(path)
    rows = group(HERE, "noise", {"ours": 1.0})
    write(path, rows, rows)
    with pytest.raises(ValueError, match="line 3: the same row as line 2"):
        records.read(path)
    write(path, rows)
    path.write_text(path.read_text().replace(",4000,", ",many,", 1))
    with pytest.raises(ValueError, match=r"line 2: .*many"):
        records.read(path)


def test_ratio_is_to_the_best_peer_of_the_group() -> None:
    rows = group(HERE, "noise", {"ours": 2.0, "ours seed": 8.0, "eager": 6.0, "compile": 4.0})
    rows += group(HERE, "noise", {"ours": 5.0, "eager": 1.0}, threads=2)
    rows += group(LATER, "noise", {"ours": 1.0, "eager": 0.5})
    rows += group(HERE, "kernel", {"ours": 1.0})
    found = records.comparisons(rows)
    assert [c.ratio for c in found if c.peers] == [2.0, 0.5, 0.2, 0.5]
    assert [c.ratio_of_fastest for c in found if c.peers] == [2.0, 0.5, 0.2, 0.5]
    assert found[0].best.contender == "compile"
    assert [c.ours.op for c in found if not c.peers] == ["kernel"]
    assert all(c.disturbed for c in found if c.peers)  # their medians are twice the fastest
    # 4000 bytes in 2 us are 2 GB/s of 40, and 2000 operations 1 Gop/s of 100
    assert rows[0].percent_of_copy == pytest.approx(5)
    assert rows[0].percent_of_gemm == pytest.approx(1)


class Benchmark:
    """A stand-in for pytest-benchmark's fixture; it times nothing."""

    def __init__(self) -> None:
        self.extra_info: dict[str, float] = {}

    def pedantic(self, call: Any, **options: Any) -> None:
        call()


def test_harness_saves_what_it_has_timed_and_nothing_of_a_wrong_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.csv"
    records.start(path)
    monkeypatch.setattr(harness, "output", path)
    monkeypatch.setattr(harness, "results", {})
    monkeypatch.setattr(machine, "copy_bandwidth", lambda *_: 40e9)
    monkeypatch.setattr(machine, "gemm_rate", lambda *_: 100e9)
    times = {"ours": Times([3e-6, 1e-6, 2e-6], 1), "eager": Times([4e-6, 8e-6, 6e-6], 1)}
    monkeypatch.setattr(harness, "interleave", lambda *_: times)

    def check(contender: str, out: Any) -> None:
        assert out == 1, "not one"

    def of(op: str, **answers: int) -> harness.Group:
        calls = {name: lambda x=x: x for name, x in answers.items()}
        contest = harness.Contest(calls, check)
        return harness.Group(op, (64, 20), 1, "cpu", (*calls,), 1280, 4, 8, lambda: contest)

    for name in times:
        harness.run(Benchmark(), of("right", ours=1, eager=1), name)
        with pytest.raises(AssertionError, match="wrong answer of eager: not one"):
            harness.run(Benchmark(), of("wrong", ours=1, eager=2), name)
    harness.record("import", [3.0, 1.0, 2.0])
    rows = records.read(path)
    assert [(r.op, r.shape, r.contender, r.ours) for r in rows] == [
        ("right", "64x20", "ours", 1),
        ("right", "64x20", "eager", 0),
        ("import", "", "ours", 1),
    ]
    assert [(r.median_us, r.fastest_us, r.rounds) for r in rows] == [
        (2, 1, 3),
        (6, 4, 3),
        (2e6, 1e6, 3),
    ]
    assert {r.environment for r in rows} == {machine.environment()}
    assert machine.environment().processor


def test_table_counts_losing_rows() -> None:
    rows = group(HERE, "noise", {"ours": 2.0, "eager": 1.0})
    rows += group(HERE, "gaussian", {"ours": 2.0, "eager": 6.0}) + group(HERE, "k", {"ours": 1.0})
    text = "\n".join(report.closing_table(rows))
    assert "AMD EPYC (26-2-1), avx512, 2 cores" in text
    assert "a peer wins 1 of 2 times: noise 1000, 1 thread" in text


def test_two_runs_are_compared_row_by_row(tmp_path: Path) -> None:
    a = write(
        tmp_path / "a.csv",
        group(HERE, "noise", {"ours": 2.0, "eager": 1.0}),
        group(HERE, "gaussian", {"ours": 2.0, "eager": 16.0}),
        group(HERE, "only here", {"ours": 2.0, "eager": 16.0}),
        group(HERE, "kernel", {"ours": 3.0}),
    )
    b = write(
        tmp_path / "b.csv",
        group(LATER, "gaussian", {"ours": 4.0, "eager": 8.0}),
        group(LATER, "noise", {"ours": 0.5, "eager": 1.0}),
        group(LATER, "kernel", {"ours": 1.5}),
    )
    text = "\n".join(compare.compare(a, b))
    lines = [line.split() for line in text.splitlines() if "1 thread" in line]
    assert [line[-1] for line in lines] == ["A", "0.50x", "2.00x"]
    assert re.search(r"0\.50x +2\.00x .* 4\.00x +LOSES in A$", text, re.MULTILINE)
    assert "2 rows with peers, geometric mean of the ratios: A 2.000, B 2.000" in text
    assert "rows that the peer wins: A 1, B 0" in text
    # times 2 / 0.5, 2 / 4 and 3 / 1.5
    assert "our time in 3 rows: B is 1.587 times as fast" in text
    assert "1 rows are in A alone" in text
    assert "differ" not in text
    text = "\n".join(compare.compare(a, b, "^noise"))
    assert "our time in 1 rows: B is 4.000 times" in text


def test_comparison_says_what_differs_between_runs(tmp_path: Path) -> None:
    times = {"ours": 2.0, "eager": 1.0}
    a = write(tmp_path / "a.csv", group(HERE, "noise", times))
    b = write(tmp_path / "b.csv", group(ELSEWHERE._replace(torch="2.14.0"), "noise", times))
    text = "\n".join(compare.compare(a, b))
    assert "A: AMD EPYC (26-2-1), avx512, 2 cores; 2026-11-28 09:00, at 0123456789ab" in text
    assert "The machines differ" in text
    assert "torch differs: 2.13.0 and 2.14.0." in text
    assert "LOSES in A and B" in text


@pytest.mark.parametrize(
    ("second", "pattern", "message"),
    [
        ("a", "", "are one run"),
        ("b", "", "no row in common: of 1 and 1 rows"),
        ("b", "gauss", "of 0 and 1 rows that match 'gauss'"),
        ("both", "", "holds 2 runs"),
        ("missing", "", "neither a file nor a run"),
    ],
)
def test_comparison_refuses(tmp_path: Path, second: str, pattern: str, message: str) -> None:
    mine, other = group(HERE, "noise", {"ours": 1.0}), group(LATER, "gaussian", {"ours": 1.0})
    write(tmp_path / "a.csv", mine)
    write(tmp_path / "b.csv", other)
    write(tmp_path / "both.csv", mine, other)
    with pytest.raises(ValueError, match=re.escape(message)):
        list(compare.compare(str(tmp_path / "a.csv"), str(tmp_path / f"{second}.csv"), pattern))


def test_pictures_show_the_newest_runs_of_one_machine() -> None:
    sizes = (10, 100, 1000, 10000)
    old = [r for n in sizes for r in group(HERE, "noise", {"ours": 1, "eager": 2}, elements=n)]
    new = group(LATER, "noise", {"ours": 3, "eager": 2}, elements=100)
    other = group(ELSEWHERE, "noise", {"ours": 9, "eager": 2}, elements=100)
    chosen = records.newest(old + new + other, "cpu")
    assert {row.machine for row in chosen} == {HERE.machine("cpu")}
    times = [row.median_us for row in chosen if row.ours]
    assert times == [1, 1, 1, 3]
    assert records.newest(old, "cuda") == []
    for draw in (plots.draw_ratios, plots.draw_throughput):
        figure = draw(chosen)
        assert figure is not None
        text = " ".join(t.get_text() for t in figure.texts)
        assert "AMD EPYC (26-2-1), avx512, 2 cores" in text
        assert "0123456, ba98765" in text
        plots.plt.close(figure)
        with pytest.raises(ValueError, match="one machine, not 2"):
            draw(chosen + other)
        plots.plt.close("all")


def test_a_stand_in_is_never_shown_in_the_place_of_a_real_machine() -> None:
    limited = LATER._replace(simd=f"avx2{stand_in.SUFFIX}", torch_simd="AVX2")
    assert limited.machine("cpu") == "AMD EPYC (26-2-1), avx2 stand-in, 2 cores"
    assert machine.file_name(limited).startswith("amd-epyc-26-2-1-avx2-stand-in-2-cores/")
    real, other = (group(where, "noise", {"ours": 1, "eager": 2}) for where in (HERE, limited))
    assert records.newest(real + other, "cpu") == real
    assert records.newest(other, "cpu") == other


@pytest.mark.skipif("avx512" not in _core.simd_builds(), reason="the processor has no AVX-512")
def test_avx2_stands_in_for_ours_and_for_the_rivals() -> None:
    code = """
import stand_in
stand_in.limit()
import machine
from latent_kernels.kernels.mixture import simd
from torch._inductor.cpu_vec_isa import pick_vec_isa
stand_in.select()
here = machine.environment()
print(here.simd, here.torch_simd, pick_vec_isa(), simd.WIDTH, sep=", ")
try:
    stand_in.limit()
except RuntimeError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(stand_in.__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    limits, late = done.stdout.splitlines()
    assert limits == "avx2 stand-in, AVX2, avx2, 32"
    assert late == "BENCH_SIMD comes too late for numba, numpy, torch"


def test_a_stand_in_for_what_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(stand_in.VARIABLE, "sse2")
    with pytest.raises(ValueError, match="BENCH_SIMD must be avx2; got 'sse2'"):
        stand_in.wanted()


@pytest.mark.parametrize(
    "path", records.saved(), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_saved_runs_are_read(path: Path) -> None:
    rows = records.read(path)
    assert rows
    assert len({row.environment for row in rows}) == 1
    assert all(0 < row.fastest_us <= row.median_us for row in rows)
    assert any(c.peers for c in records.comparisons(rows))


def test_gpu_timings_and_bits_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "graphed", lambda call: call)
    groups = list(bench_kernels.Kernels(2**10, "cpu").all())
    for g in groups[::3]:
        assert g.prepare is not None
        contest = g.prepare()
        for name in g.contenders:
            contest.check(name, contest.calls[name]())
    full = list(bench_kernels.Kernels(bench_kernels.ELEMENTS, "cuda").all())
    names = {(g.op, g.size, g.dtype) for g in full}
    assert len(names) == len(full) == len(groups)
    assert all(row.different == 0 for row in gpu.compare_noise("cpu", 100))
    assert all(row.different == 0 for row in gpu.compare_samples("cpu"))

"""The closing table."""

from __future__ import annotations

from collections.abc import Iterator

import harness
import machine

HEAD = f"{'size':>14}  {'where':9}  {'contender':>9} {'median':>10} {'ns/elem':>8} "
HEAD += f"{'GB/s':>6} {'% copy':>6}   "
HEAD += f"{'best peer':>13} {'median':>10} {'ratio':>7} {'fastest':>8}"


def closing_table() -> Iterator[str]:
    """Per op, size and place: our median, the best peer's, and the ratio, of the interleaved
    rounds.
    """
    done = [r for r in harness.results.values() if r.failure is None]
    if not done:
        return
    yield ""
    yield "Medians of interleaved rounds. ratio = best peer / ours, so below 1 a peer wins;"
    yield "fastest = the same of the fastest rounds; ~ = other work took the cores in half of the"
    yield "rounds: believe the fastest, or run again. GB/s counts the bytes of the least algorithm;"
    yield "% copy is of a plain copy beyond the caches:"
    for threads, device in sorted({(r.group.threads, r.group.device) for r in done}):
        place = device if device != "cpu" else f"{threads} thread{'s' * (threads > 1)}"
        rate = machine.copy_bandwidth(threads, device) * 1e-9
        gemm = machine.gemm_rate(threads, device, "float32") * 1e-9
        yield f"  {place}: copy {rate:.1f} GB/s, float32 GEMM {gemm:.0f} GFLOP/s"
    lost = []
    for op in dict.fromkeys(r.group.op for r in done):
        yield ""
        yield op
        yield HEAD
        for result in (r for r in done if r.group.op == op):
            for name in result.group.ours:
                line, loses = _line(result, name)
                yield line
                if loses:
                    lost.append(f"{op} {result.group.size}, {result.group.place}")
    yield ""
    yield f"a peer wins {len(lost)} times" + (": " + "; ".join(lost) if lost else "")


def _line(result: harness.Result, name: str) -> tuple[str, bool]:
    group, seconds = result.group, result.seconds[name]
    line = f"{group.size:>14}  {group.place:9}  {name:>9} "
    line += f"{_time(seconds)} {seconds * 1e9 / group.elements:8.3f}"
    line += (
        f" {group.bytes / seconds * 1e-9:6.1f} {harness.percent_of_copy(group, seconds):6.0f}   "
    )
    peer, ratio = result.best_peer(), result.ratio(name)
    line += f"{peer:>13} {_time(result.seconds[peer])} "
    line += f"{ratio:6.2f}x {result.ratio_of_fastest(name):7.2f}x"
    return line + " ~" * result.disturbed(name) + "  LOSES" * (ratio < 1), ratio < 1


def _time(seconds: float) -> str:
    micro = seconds * 1e6
    return f"{micro:7.2f} us" if micro < 1000 else f"{micro / 1000:7.2f} ms"

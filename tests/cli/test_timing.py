"""Interleaved timing, on a clock that the test controls."""

from __future__ import annotations

from latent_kernels.cli import timing


def test_contenders_are_measured_in_turns(monkeypatch):
    """A call of 1 ms is measured in pairs after an untimed call; a call of 50 ms is measured
    alone.
    """
    monkeypatch.setattr(timing, "BUDGET", 0.0)
    durations = {"short": 1e-3, "long": 50e-3}
    calls = []

    def clock(call, count):
        for _ in range(count):
            call()
        return count * durations[calls[-1]]

    contenders = {name: lambda name=name: calls.append(name) for name in durations}
    times = timing.interleave(contenders, clock)
    rounds = len(times["short"].seconds)
    assert rounds == len(times["long"].seconds) == timing.ROUNDS[0]
    assert times["short"].calls == 2
    assert times["long"].calls == 1
    assert calls[-4 * rounds :] == ["short", "short", "short", "long"] * rounds
    assert {name: found.median for name, found in times.items()} == durations


def test_long_calls_are_measured_three_times():
    def clock(call, count):
        return 3.0 * count

    assert timing.interleave({"ours": lambda: None}, clock)["ours"].seconds == [3.0] * 3

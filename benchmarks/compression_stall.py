"""How long does a request thread wait while its own process leads and compresses?

A thread sleeps 1 ms again and again; how much longer it slept than asked for is the stall. Measured in one process on
an idle machine, then while the janitor of that very process compresses 100 MB of events (gzip level 1), round by round.
Limits: p99 5 ms, largest 25 ms.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

from common import ROUNDS, Report, few, scratch, spread

from profilis_mp import JSONLExporter

SEGMENT_BYTES = few(100_000_000)
IDLE_S = 2.0


def stalls_while(is_going_on: object) -> list[float]:
    """Milliseconds beyond the one asked for, sorted."""
    assert callable(is_going_on)
    stalls = []
    while is_going_on():
        started = time.perf_counter()
        time.sleep(0.001)
        stalls.append((time.perf_counter() - started) * 1000 - 1)
    return sorted(stalls)


def one_round() -> tuple[list[float], list[float], float]:
    """Stalls when idle, stalls while compressing, and how long compressing took, seconds."""
    with scratch() as directory:
        exporter = JSONLExporter(directory, rotate_bytes=1 << 40, compress_old_files=True, compress_delay_secs=0)
        number = 0
        event = {"trace_id": "trace-abc123", "span_id": "span-def456", "kind": "REQ", "route": "/api/users"}
        while number * 145 < SEGMENT_BYTES:
            exporter.emit({"ts_ns": time.time_ns(), **event, "status": 200, "dur_ns": 15_000_000 + number})
            number += 1
        exporter.flush()
        deadline = time.perf_counter() + IDLE_S
        idle = stalls_while(lambda: time.perf_counter() < deadline)
        segment = exporter.rotate()
        assert segment is not None
        exporter.emit(event)  # opens the next segment, which is what wakes the janitor
        exporter.flush()
        started = time.perf_counter()
        busy = stalls_while(lambda: os.path.exists(segment.path))
        took = time.perf_counter() - started
        assert Path(f"{segment.path}.gz").exists()
        assert exporter.stats()["leading"]
        exporter.close()
        return idle, busy, took


def at(share: float, stalls: list[float]) -> float:
    return stalls[min(int(len(stalls) * share), len(stalls) - 1)]


def main() -> None:
    report = Report(
        __file__,
        "How long does a request thread wait while its own process leads and compresses?",
        f"{SEGMENT_BYTES // 10**6} MB a round, {ROUNDS} rounds, median (min-max), milliseconds",
    )
    rounds = [one_round() for _ in range(ROUNDS)]
    for name, column in (("idle", 0), ("compressing", 1)):
        sides = [one[column] for one in rounds]
        assert all(isinstance(side, list) for side in sides)
        figures = {
            "p50": [at(0.5, side) for side in sides],
            "p99": [at(0.99, side) for side in sides],
            "max": [side[-1] for side in sides],
        }
        report.figures[name] = {key: statistics.median(values) for key, values in figures.items()}
        report.say(f"{name:>12}  " + "  ".join(f"{key} {spread(values)}" for key, values in figures.items()))
    report.say(f"{'took, s':>12}  {statistics.median(took for _, _, took in rounds):.1f}")
    report.save()


if __name__ == "__main__":
    main()

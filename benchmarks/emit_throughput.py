"""How much of the bare minimum's throughput does emit() keep?

Workload: each process builds a REQ event in its loop (about 145 bytes as JSON) and emits it, 300,000 times. Bare
minimum: the same loop with ``orjson.dumps`` into a bytearray and one ``os.write`` per 64 KiB to a file of its own: no
lock, no rotation, nothing shared, and 64 KiB lost with every kill. Ours: one log directory for all processes, 10 MiB
segments, everything as by default. Output is counted after each run. The two alternate.

Left out: the page cache's own mood. A 64 KiB write takes 10 us into pages that the machine has at hand and 150 us into
pages it must find first; then both sides mostly wait for that, and the ratio rises. Warm-up runs come first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import orjson
from common import header, scratch, spread

from profilis_mp import AsyncCollector, JSONLExporter
from profilis_mp.account import segments_of

EVENTS = 300_000
ROUNDS = 7


def bare(directory: str) -> None:
    """orjson.dumps, and one os.write per 64 KiB."""
    fd = os.open(f"{directory}/{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    dumps, option, now = orjson.dumps, orjson.OPT_APPEND_NEWLINE, time.time_ns
    buffer = bytearray()
    for number in range(EVENTS):
        buffer += dumps(
            {
                "ts_ns": now(),
                "trace_id": "trace-abc123",
                "span_id": "span-def456",
                "kind": "REQ",
                "route": "/api/users",
                "status": 200,
                "dur_ns": 15_000_000 + number,
            },
            None,
            option,
        )
        if len(buffer) >= 65536:
            os.write(fd, buffer)
            buffer.clear()
    os.write(fd, buffer)
    os.close(fd)


def emitting(directory: str, through: str) -> None:
    """The exporter's emit, or the collector's enqueue."""
    exporter = JSONLExporter(directory)
    exporter.emit({})  # opens everything; the loop is what is measured
    emit = exporter.emit if through == "emit" else AsyncCollector(exporter).enqueue
    now = time.time_ns
    for number in range(EVENTS):
        emit(
            {
                "ts_ns": now(),
                "trace_id": "trace-abc123",
                "span_id": "span-def456",
                "kind": "REQ",
                "route": "/api/users",
                "status": 200,
                "dur_ns": 15_000_000 + number,
            }
        )
    exporter.close()
    assert not exporter.stats()["dropped"], exporter.stats()


def events_per_second(work: Callable[[str], None], processes: int) -> float:
    """Run ``work`` in that many processes at once and count what is on disk."""
    with scratch() as directory:
        started = time.perf_counter()
        pids = []
        for _ in range(processes):
            pid = os.fork()
            if not pid:
                work(directory)
                os._exit(0)
            pids.append(pid)
        failed = [pid for pid in pids if os.waitpid(pid, 0)[1]]
        elapsed = time.perf_counter() - started
        paths = segments_of(directory) or [f"{directory}/{name}" for name in os.listdir(directory)]
        lines = sum(Path(path).read_bytes().count(b"\n") for path in paths)
        assert not failed, failed
        assert lines >= EVENTS * processes, lines
        return EVENTS * processes / elapsed


def main() -> None:
    print(header("How much of the bare minimum's throughput does emit() keep?"))
    print(f"# {EVENTS:,} events per process, {ROUNDS} rounds, median (min-max)")
    print(f"{'processes':>9}  {'bare, k/s':>18}  {'emit, k/s':>18}  {'emit / bare':>18}  {'enqueue / bare':>18}")
    for processes in (1, 4):
        events_per_second(bare, processes)
        events_per_second(partial(emitting, through="emit"), processes)
        rates: dict[str, list[float]] = {"bare": [], "emit": [], "enqueue": []}
        for _ in range(ROUNDS):
            rates["bare"].append(events_per_second(bare, processes) / 1000)
            for through in ("emit", "enqueue"):
                rates[through].append(events_per_second(partial(emitting, through=through), processes) / 1000)
        ratios = {
            through: [ours / base for ours, base in zip(rates[through], rates["bare"], strict=True)]
            for through in ("emit", "enqueue")
        }
        print(
            f"{processes:>9}  {spread(rates['bare'], '.0f'):>18}  {spread(rates['emit'], '.0f'):>18}  "
            f"{spread(ratios['emit']):>18}  {spread(ratios['enqueue']):>18}",
            flush=True,
        )


if __name__ == "__main__":
    main()

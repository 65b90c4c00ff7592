"""Where do the nanoseconds of one emit() go?

Each statement of the fast path, and what surrounds it, is run by itself in a loop, on the same objects: a line of 145
bytes, a map of a file, a fork mark. The cost is that of the fastest of many short loops, less that of an empty one; so
the machine's noise, and other processes, hardly show. Then the whole: emit() and the bare loop, measured the same way.

Statements cost less by themselves than in their place, where caches hold other things too; the last line says how much.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import orjson
from common import QUICK, Report, scratch

from profilis_mp import JSONLExporter
from profilis_mp.core.encoding import FLAGS
from profilis_mp.forkmark import fork_mark
from profilis_mp.sharedlog.spool import TAIL, Limits, Spool

CALLS = 2000
REPEATS = 20 if QUICK else 400

SETTING = """
def setting(dumps, option, clock, mark, words, buffer, event, line, emit, nothing):
    busy, tail, count, room, suspect = False, 5000, 0, 1 << 30, 108
    def run(calls):
        nonlocal busy, tail, count, room
        for number in range(calls):
            {}
    return run
"""
DICT = (
    '{"ts_ns": clock(), "trace_id": "trace-abc123", "span_id": "span-def456", "kind": "REQ", "route": "/api/users", '
    '"status": 200, "dur_ns": 15_000_000 + number}'
)
PIECES = {
    "the caller: build the dict, ask for the time": DICT,
    "call a closure with as many variables": "nothing(event)",
    "dumps(event, None, option)": "dumps(event, None, option)",
    "suspect in line": "suspect in line",
    "len(line), add, compare": "room >= (end := tail + len(line))",
    "waiting, busy = busy, True; busy = False": "waiting, busy = busy, True; busy = False",
    "mark: no fork since?": "mark and None",
    "buffer[tail:end] = line": "buffer[5000:5145] = line",
    "words[TAIL] = end": "words[8] = 5145",
    "count += 1": "count += 1",
}
WHOLE = {
    "emit(event), the caller's dict included": f"emit({DICT})",
    "dumps and the caller's dict": f"dumps({DICT}, None, option)",
}


def closure(*variables: Any) -> Callable[[Any], None]:
    """An empty function with 14 variables of its surroundings, as the fast path has."""
    a = b = c = d = e = f = g = h = i = j = k = m = n = o = variables

    def nothing(item: Any) -> None:
        if item is None:
            _ = (a, b, c, d, e, f, g, h, i, j, k, m, n, o)

    return nothing


def fastest(statement: str, objects: tuple[Any, ...], calls: int = CALLS) -> float:
    """Nanoseconds of one run of the statement, the loop around it included."""
    names: dict[str, Any] = {}
    exec(SETTING.format(statement), names)
    run = names["setting"](*objects)
    took = []
    for _ in range(REPEATS):
        started = time.perf_counter_ns()
        run(calls)
        took.append(time.perf_counter_ns() - started)
    return min(took) / calls


def per_flush(exporter: JSONLExporter, line: bytes) -> tuple[float, float]:
    """Nanoseconds of a flush of 64 KiB, and of the write in it alone."""
    chunk = line * (65536 // len(line))
    exporter.emit({})  # makes the directory
    fd = os.open(f"{exporter.dir}/bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    flushes, writes = [], []
    for _ in range(REPEATS):
        exporter.append_line(chunk[:-1].replace(b"\n", b" ") + b"\n")
        started = time.perf_counter_ns()
        exporter.flush()
        flushes.append(time.perf_counter_ns() - started)
        started = time.perf_counter_ns()
        os.write(fd, chunk)
        writes.append(time.perf_counter_ns() - started)
    os.close(fd)
    return sorted(flushes)[REPEATS // 10], sorted(writes)[REPEATS // 10]


def main() -> None:
    report = Report(
        __file__,
        "Where do the nanoseconds of one emit() go?",
        f"the fastest of {REPEATS} loops of {CALLS:,}, nanoseconds",
    )
    with scratch() as directory:
        spool = Spool.create(directory, 1 << 20, Limits(1 << 30, 1, 0o600, 0), framed=False)
        event = {
            "ts_ns": time.time_ns(),
            "trace_id": "trace-abc123",
            "span_id": "span-def456",
            "kind": "REQ",
            "route": "/api/users",
            "status": 200,
            "dur_ns": 15_000_000,
        }
        line = orjson.dumps(event, None, FLAGS)
        assert TAIL == 8
        exporter = JSONLExporter(f"{directory}/log", buffer_size=1 << 20, spool_bytes=1 << 21, flush_interval=1e6)
        exporter.emit({})
        objects = (
            orjson.dumps, FLAGS, time.time_ns, fork_mark(), spool.ordered, spool.bytes, event, line, exporter.emit,
            closure(),
        )  # fmt: skip
        empty = fastest("pass", objects)
        rows, total = [], 0.0
        for name, statement in PIECES.items():
            cost = fastest(statement, objects) - empty
            total += cost
            report.figures[name] = cost
            rows.append([name, f"{cost:.0f}"])
        rows.append(["sum", f"{total:.0f}"])
        whole = {}
        for name, statement in WHOLE.items():
            whole[name] = report.figures[name] = fastest(statement, objects) - empty
            rows.append([name, f"{whole[name]:.0f}"])
            exporter.flush()
        exporter.close()
        with JSONLExporter(f"{directory}/flushed", buffer_size=1 << 20, flush_interval=1e6) as flushing:
            flush, write = per_flush(flushing, line)
        events = 65536 / len(line)
        rows.append(["per event: the write of 64 KiB", f"{write / events:.0f}"])
        rows.append(["per event: lock, look, commit, unlock", f"{(flush - write) / events:.0f}"])
        report.figures["write per event"] = write / events
        report.figures["protocol per event"] = (flush - write) / events
        rows.append(["emit(event) beyond the sum of its pieces", f"{next(iter(whole.values())) - total:.0f}"])
    report.table(["", "ns"], rows)
    report.save()


if __name__ == "__main__":
    main()

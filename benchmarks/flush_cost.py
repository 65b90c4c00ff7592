"""What does the commit protocol add to a 64 KiB write?

Workload: 64 KiB of whole lines wait in the spool; one flush takes the lock, looks at everything, appends, commits and
unlocks. Against one ``os.write`` of the same 64 KiB to an O_APPEND descriptor, alternating, same file system.
"""

from __future__ import annotations

import os
import statistics
import time

from common import ROUNDS, Report, few, scratch, spread

from profilis_mp import SharedWriter

FLUSHES = few(400)


def one_round(directory: str) -> tuple[float, float]:
    """Median seconds of a bare write, and of a flush."""
    chunk = (b"x" * 144 + b"\n") * 452
    fd = os.open(f"{directory}/bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    # The record is one "line" of 64 KiB as far as write() is concerned: below buffer_size, so that it does not flush.
    writer = SharedWriter(directory, buffer_size=1 << 20, rotate_bytes=1 << 40, flush_interval=1e6)
    line = b"x" * (len(chunk) - 1) + b"\n"
    bare, flush = [], []
    for _ in range(FLUSHES):
        started = time.perf_counter()
        os.write(fd, chunk)
        bare.append(time.perf_counter() - started)
        writer.write(line)
        started = time.perf_counter()
        flushed = writer.flush()
        flush.append(time.perf_counter() - started)
        assert flushed
    writer.close()
    os.close(fd)
    return statistics.median(bare), statistics.median(flush)


def main() -> None:
    report = Report(
        __file__,
        "What does the commit protocol add to a 64 KiB write?",
        f"{FLUSHES} flushes a round, {ROUNDS} rounds, median of medians (min-max), microseconds",
    )
    rows = []
    for _ in range(ROUNDS):
        with scratch() as directory:
            rows.append(one_round(directory))
    ratios = [flush / bare for bare, flush in rows]
    report.say(f"os.write of 64 KiB      {spread([bare * 1e6 for bare, _ in rows], '.1f')}")
    report.say(f"lock, flush, unlock     {spread([flush * 1e6 for _, flush in rows], '.1f')}")
    report.say(f"ratio                   {spread(ratios)}")
    report.figures = {
        "flush_us": statistics.median(flush * 1e6 for _, flush in rows),
        "ratio": statistics.median(ratios),
    }
    report.save()


if __name__ == "__main__":
    main()

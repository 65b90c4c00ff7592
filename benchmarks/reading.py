"""How long does it take to read, and to count, a log of 1 GB, and in how much memory?

Workload: two processes write REQ events into segments of 10 MiB. Then new interpreters read all of it, in four ways:
``orjson.loads`` of each line of each file and nothing else (the baseline), ``read_lines``, ``read_events``, and
``profilis-mp stats``. Round by round over a twentieth of it, for the spread; and once over all of it, because a reader
must not grow with the log. Events are counted each time.

Left out: a cold page cache.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable

from common import ROUNDS, Report, ended, few, scratch, spread, start_together
from peers import Exporter

from profilis_mp.account import segments_of

SMALL, LARGE = few(345_000), few(6_900_000)  # events: 50 MB and 1 GB
LOOP = """
import sys, time
{}
directory = sys.argv[1]
started = time.perf_counter()
events = 0
{}
took = time.perf_counter() - started
peak = next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if "VmHWM" in line)
print(events, took, peak)
"""
BARE = """
for path in sorted(glob.glob(directory + "/*.jsonl")):
    with open(path, "rb") as file:
        for line in file:
            loads(line)
            events += 1
"""
READER = """
with {0}(directory) as lines:
    for line in lines:
        events += 1
"""
STATS = """
out = io.StringIO()
with contextlib.redirect_stdout(out):
    try:
        assert not main(["stats", "--json", directory])
    except SystemExit as end:
        assert not end.code, end.code
document = json.loads(out.getvalue())
events = document["events"]
"""
WAYS = {
    "orjson.loads of each line": LOOP.format("import glob\nfrom orjson import loads", BARE),
    "read_lines": LOOP.format("from profilis_mp import read_lines", READER.format("read_lines")),
    "read_events": LOOP.format("from profilis_mp import read_events", READER.format("read_events")),
    "profilis-mp stats": LOOP.format("import contextlib, io, json\nfrom profilis_mp.cli import main", STATS),
}


def write(directory: str, events: int) -> None:
    def work(number: int, ready: Callable[[], None]) -> None:
        Exporter(directory).run(ready, events // 2 - 1)  # it writes one more, to open everything

    assert not any(ended(start_together(2, work)[0]))


def one_run(code: str, directory: str, events: int) -> tuple[float, float]:
    """Seconds, and peak memory in MiB."""
    done = subprocess.run([sys.executable, "-c", code, directory], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    found, took, peak = done.stdout.split()
    assert int(found) == events, (found, events)
    return float(took), float(peak)


def main() -> None:
    report = Report(
        __file__,
        "How long does it take to read 1 GB, and in how much memory?",
        f"{ROUNDS} rounds over {SMALL:,} events, median (min-max); once over {LARGE:,}",
    )
    rows: dict[str, list[str]] = {name: [name] for name in WAYS}
    for events in (SMALL, LARGE):
        with scratch() as directory:
            write(directory, events)
            megabytes = sum(os.path.getsize(path) for path in segments_of(directory)) / 1e6
            rounds = ROUNDS if events == SMALL else 1
            times: dict[str, list[float]] = {name: [] for name in WAYS}
            peaks: dict[str, float] = {}
            for _ in range(rounds):
                for name, code in WAYS.items():
                    took, peaks[name] = one_run(code, directory, events)
                    times[name].append(took)
            for name in WAYS:
                took = statistics.median(times[name])
                report.figures[f"{name}, {megabytes:.0f} MB"] = {"s": took, "MiB": peaks[name]}
                rows[name] += [spread(times[name], ".1f") if rounds > 1 else f"{took:.1f}", f"{peaks[name]:.0f}"]
    report.table(["", "50 MB, s", "peak, MiB", "1 GB, s", "peak, MiB"], list(rows.values()))
    report.save()


if __name__ == "__main__":
    main()

"""What does the library cost a process that imports it, and one that writes?

Import: ``import orjson`` alone against ``import orjson, profilis_mp``, new interpreters, alternating; and the first
use, which loads the rest. Memory: peak resident size of an interpreter that does nothing, and of one that has written
100,000 events. (The spool's pages count as resident: up to 1 MiB of it is shared file cache.)
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from common import QUICK, Report, scratch, spread

ROUNDS = 2 if QUICK else 15

IMPORT = "import time; t = time.perf_counter(); {}; print((time.perf_counter() - t) * 1e3)"
# VmHWM, not getrusage: that one starts with what the parent had at the fork.
MEMORY = "{}\nprint(next(int(line.split()[1]) / 1024 for line in open('/proc/self/status') if 'VmHWM' in line))"
WRITE = """
from profilis_mp import JSONLExporter
exporter = JSONLExporter({directory!r})
for number in range(100_000):
    exporter.emit({{"kind": "FN", "fn": "work", "dur_ns": number, "error": False}})
exporter.close()
"""


def figure(code: str) -> float:
    """The number that a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    report = Report(
        __file__,
        "What does the library cost a process that imports it, and one that writes?",
        f"{ROUNDS} new interpreters each, alternating, median (min-max)",
    )
    imports: dict[str, list[float]] = {"import orjson": [], "import orjson, profilis_mp": []}
    first_use = "import orjson, profilis_mp; profilis_mp.JSONLExporter"
    imports[first_use] = []
    for _ in range(ROUNDS):
        for statement, times in imports.items():
            times.append(figure(IMPORT.format(statement)))
    base = imports["import orjson"]
    for statement, times in imports.items():
        added = [ours - alone for ours, alone in zip(times, base, strict=True)]
        report.figures[statement] = {"ms": statistics.median(added)}
        report.say(f"{statement:<54} {spread(times, '.1f')} ms, adds {spread(added, '.1f')} ms")
    idle, writing = [], []
    for _ in range(ROUNDS):
        with scratch() as directory:
            idle.append(figure(MEMORY.format("")))
            writing.append(figure(MEMORY.format(WRITE.format(directory=directory))))
    report.say(f"{'peak memory, an idle interpreter':<54} {spread(idle, '.1f')} MiB")
    added = [ours - alone for ours, alone in zip(writing, idle, strict=True)]
    report.say(f"{'peak memory, one that writes':<54} {spread(writing, '.1f')} MiB, adds {spread(added, '.1f')} MiB")
    report.figures["writing"] = {"MiB": statistics.median(added)}
    report.save()


if __name__ == "__main__":
    main()

"""Which tests of this run took longest, whichever worker ran them?

The log answers, not this process: it holds what was reported by workers that have died since. Whatever they left in
their spools is recovered first. Only segments that can hold events of this run are read, however many runs the
directory holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import orjson
import pytest

from profilis_mp.reader.read import read_lines
from profilis_mp.sharedlog.inventory import segment_files
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.recovery import recover

__all__ = ["Found", "TestTimes", "segments_in", "show", "slowest_of"]

PHASES = ("setup", "call", "teardown")

# 1 ms and more. Reading a line costs a third of parsing it, and most phases of most tests are shorter.
_LONG = re.compile(rb'"dur_ns":\d{7}')


@dataclass(slots=True)
class TestTimes:
    """One test in one worker, all its runs together; nanoseconds, phases of less than 1 ms left out."""

    __test__ = False  # pytest takes what is called Test for one

    fn: str
    worker: str
    phases: dict[str, int] = field(default_factory=dict)
    runs: int = 1

    @property
    def total(self) -> int:
        """All phases."""
        return sum(self.phases.values())


@dataclass(slots=True)
class Found:
    """What the log holds of one run."""

    events: int
    tests: list[TestTimes]


def segments_in(directory: str, stream: str) -> frozenset[str]:
    """The names of a stream's segments, in whatever form they are."""
    try:
        return frozenset(one.segment.text for one in segment_files(directory, SegmentNames.of_stream(stream)))
    except FileNotFoundError:
        return frozenset()


def slowest_of(lines: Iterable[bytes], run: str) -> Found:
    """Count a run's events and add up the times of each test; the slowest comes first."""
    key = run.encode()
    found: dict[tuple[str, str], TestTimes] = {}
    events = 0
    for line in lines:
        if key not in line:
            continue
        events += 1
        if not _LONG.search(line):
            continue
        event = orjson.loads(line)
        phase = event["phase"]
        if "subtest" in event:
            continue  # a part of its test's call
        test = (event["fn"], event["worker"])
        times = found.get(test)
        if times is None:
            times = found[test] = TestTimes(*test)
        times.phases[phase] = times.phases.get(phase, 0) + event["dur_ns"]
        times.runs = max(times.runs, event.get("rerun", 0) + 1)
    return Found(events, sorted(found.values(), key=lambda one: one.total, reverse=True))


def show(
    reporter: pytest.TerminalReporter, directory: str, stream: str, run: str, most: int, elder: frozenset[str]
) -> None:
    """Write the slowest tests into the terminal summary.

    Args:
        reporter: pytest's.
        directory: The log directory.
        stream: The stream of the test runs.
        run: The run's trace id.
        most: How many tests; 0 for all.
        elder: Which segments were there before the run. The youngest of them may hold its first events.

    Raises:
        OSError: The log cannot be read.
    """
    failures = recover(directory).failures
    there = segments_in(directory, stream)
    if not there:
        return  # no test ran, and nothing was ever written
    with read_lines(directory, stream=stream, newest_segments=len(there - elder) + 1) as lines:
        found = slowest_of(lines, run)
    tests = found.tests[:most] if most else found.tests
    if tests:
        reporter.write_sep("=", f"slowest {_counted(len(tests), 'test')}")
    for one in tests:
        phases = ", ".join(f"{phase} {_shown(one.phases[phase])}" for phase in PHASES if phase in one.phases)
        runs = f", {one.runs} runs" if one.runs > 1 else ""
        reporter.write_line(f"{_shown(one.total):>7} {one.worker:<6} {one.fn} ({phases}{runs})")
    reporter.write_line(f"{_counted(found.events, 'event')} of run {run} in {directory}")
    for failure in failures:
        reporter.write_line(f"not recovered yet: {failure}")


def _shown(nanoseconds: int) -> str:
    """Three digits and a unit; nothing here is shorter than 1 ms."""
    size, unit = (1e6, "ms") if nanoseconds < 999_500_000 else (1e9, "s")
    value = nanoseconds / size
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{unit}"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"

"""What does --profilis-dir add to what pytest itself spends on a test?

Workload: tests that do nothing, which is the worst case: the plugin's share of any other test is smaller. In one run of
pytest the recorder is taken out and put back every 50 tests, and the processor time of the main thread is compared
between neighbours; so whatever else the machine does meets both alike. "an empty hook" takes that out and in instead,
which is the least that any plugin costs that wants to see reports.

Left out: what comes once in a run (the imports at the start, the reading of the log at the end: both are in the last
line), and xdist, which spends several times as much on a test as pytest does without.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

from common import ROUNDS, Report, few, scratch, spread

TESTS = few(5000)

SUITE = f"""
import pytest
@pytest.mark.parametrize("n", range({TESTS}))
def test_nothing(n): pass
"""

ALTERNATING = """
import statistics, time
BLOCK = 50

class Alternating:
    def __init__(self, config):
        self.manager, self.tests, self.active, self.since, self.recorder = config.pluginmanager, 0, True, None, None
        self.times = {True: [], False: []}

    def pytest_runtest_logstart(self):
        if self.tests % BLOCK == 0:
            now = time.thread_time_ns()
            if self.since is not None:
                self.times[self.active].append((now - self.since) / BLOCK / 1000)
            self.recorder = self.recorder or self.manager.get_plugin("profilis_mp_recorder")
            self.active = not self.active
            if self.active:
                self.manager.register(self.recorder, "profilis_mp_recorder")
            else:
                self.manager.unregister(self.recorder)
            self.since = time.thread_time_ns()
        self.tests += 1

    def pytest_sessionfinish(self):
        on, off = (self.times[active][4:] for active in (True, False))
        added = statistics.median(a - b for a, b in zip(on, off))
        print(f"\\nFIGURES {statistics.median(off)} {added}")

class Nothing:
    def pytest_runtest_logreport(self, report):
        pass

def pytest_configure(config):
    if config.getoption("profilis_dir") is None:
        config.pluginmanager.register(Nothing(), "profilis_mp_recorder")
    config.pluginmanager.register(Alternating(config))
"""


def run(directory: str, *options: str) -> str:
    """What pytest prints for the suite in a directory."""
    command = [sys.executable, "-m", "pytest", "-qs", "-p", "no:cacheprovider", "-p", "no:xdist", *options]
    environment = {**os.environ, "PYTHONPATH": directory}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def one_round(*, recording: bool) -> tuple[float, float]:
    """Microseconds that pytest spends on a test without any hook, and that the recorder, or an empty hook, adds."""
    with scratch() as directory:
        Path(directory, "test_suite.py").write_text(SUITE)
        Path(directory, "alternating.py").write_text(ALTERNATING)
        options = [f"--profilis-dir={directory}/logs"] if recording else []
        found = re.search(r"FIGURES (\S+) (\S+)", run(directory, "-p", "alternating", *options))
        assert found is not None
        return float(found[1]), float(found[2])


def once_in_a_run() -> float:
    """Milliseconds of processor time that recording adds to a run of one test."""
    with scratch() as directory:
        Path(directory, "test_one.py").write_text("def test_one(): pass\n")
        times = []
        for options in ([], [f"--profilis-dir={directory}/logs"]):
            began = os.times()
            run(directory, *options)
            ended = os.times()
            times.append(ended.children_user + ended.children_system - began.children_user - began.children_system)
        return (times[1] - times[0]) * 1e3


def main() -> None:
    report = Report(
        __file__,
        "What does --profilis-dir add to what pytest itself spends on a test?",
        f"{TESTS:,} tests that do nothing, {ROUNDS} rounds, processor time, median (min-max)",
    )
    for label, recording in (("an empty hook", False), ("the recorder", True)):
        rounds = [one_round(recording=recording) for _ in range(ROUNDS)]
        alone, added = zip(*rounds, strict=True)
        share = [100 * more / base for base, more in rounds]
        report.say(
            f"{label:<14} pytest {spread(alone, '.0f')} us a test, adds {spread(added, '.1f')} us: "
            f"{spread(share, '.1f')} %; 1 % of a test of {statistics.median(added) / 10:.1f} ms"
        )
        report.figures["recorder_us" if recording else "empty_hook_us"] = statistics.median(added)
    once = [once_in_a_run() for _ in range(ROUNDS)]
    report.say(f"{'once in a run':<14} adds {spread(once, '.0f')} ms")
    report.figures["once_ms"] = statistics.median(once)
    report.save()


if __name__ == "__main__":
    main()

"""Processes started in every way Python has, and ended in every way: what was acknowledged is on disk exactly once.

Which of three completes the account is part of each test:

- exit hooks (the child's own; nothing else can, because no helper ever ticks in that test),
- a live helper (any process that writes to the same directory and lives on; seen by the program itself before it ends),
- `recover`, or the next program, where every process is gone.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from checks import check_log
from multiprocessing_app import COMMAND, Counts
from processes import wait_until

from profilis_mp import read_events, recover
from profilis_mp.account import take_account

NEVER_S = "1e6"  # a flush_interval at which no helper ever does anything
ALL = ["fork", "spawn", "forkserver"]

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads through Linux's /proc")


@dataclass
class Place:
    """A log directory, and what was acknowledged by whatever program writes to it."""

    logs: Path
    counts: Path

    def environment(self, **more: str) -> dict[str, str]:
        here = Path(__file__).parent
        path = os.pathsep.join([str(here), str(here.parent)])
        return {**os.environ, "LOGS": str(self.logs), "COUNTS": str(self.counts), "PYTHONPATH": path, **more}

    def run(self, scenario: str, method: str = "fork", **environment: str) -> None:
        """Run a program to its end, which must be a clean one; kill what it leaves behind."""
        with self.running(scenario, method, **environment) as program:
            output, _ = program.communicate(timeout=120)
        assert program.returncode == 0, output

    @contextmanager
    def running(self, scenario: str, method: str = "fork", **environment: str) -> Iterator[subprocess.Popen[str]]:
        program = subprocess.Popen(
            [*COMMAND, scenario, method],
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield program
        finally:
            try:
                os.killpg(program.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            program.wait()
            if program.stdout is not None:
                program.stdout.close()

    def acknowledged(self) -> dict[int, int]:
        return Counts(str(self.counts)).by_worker()

    def check(self, workers: int) -> None:
        """The account, as the directory is now."""
        acknowledged = self.acknowledged()
        assert len(acknowledged) == workers, acknowledged
        check_log(self.logs, acknowledged, rotate_bytes=64 * 1024)

    def recover(self) -> int:
        """Complete the account; returns how many dead processes had left something."""
        report = recover(self.logs)
        assert not report.failures, report
        assert report.live_spools == 0, report
        return report.dead_spools


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "logs", tmp_path / "counts")


# Ends in order: every process's own exit hooks complete the account.


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize(
    ("scenario", "workers"), [("processes", 3), ("grandchildren", 4), ("pool_closed", 15), ("executor", 15)]
)
def test_children_that_end_in_order_complete_the_account_themselves(
    place: Place, scenario: str, workers: int, method: str
) -> None:
    place.run(scenario, method, FLUSH_INTERVAL=NEVER_S)
    place.check(workers)


@pytest.mark.parametrize(("scenario", "workers"), [("fork_and_exit", 2), ("program", 2), ("threads", 14)])
def test_programs_that_end_in_order_complete_the_account_themselves(place: Place, scenario: str, workers: int) -> None:
    place.run(scenario, FLUSH_INTERVAL=NEVER_S)
    place.check(workers)


@pytest.mark.parametrize("method", ALL)
def test_processes_started_while_threads_of_the_parent_emit_lose_nothing(place: Place, method: str) -> None:
    place.run("threads_at_the_fork", method)
    place.check(27)


# Ends without exit hooks, while the parent lives on: its helper completes the account, and the program waits for that.


@pytest.mark.parametrize("method", ALL)
def test_parent_completes_the_account_of_a_child_that_was_killed(place: Place, method: str) -> None:
    place.run("child_killed", method)
    place.check(2)


def test_parent_completes_the_account_of_a_child_that_ended_without_exit_hooks(place: Place) -> None:
    place.run("fork_and_vanish")
    place.check(2)


def test_parent_flushes_what_idle_workers_of_loky_have(place: Place) -> None:
    place.run("loky")
    place.recover()
    place.check(15)


# Terminated: nobody's exit hook runs, and nobody may be left. `recover` or the next program completes the account.


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize(
    ("scenario", "workers"), [("pool_terminated", 3), ("daemons_left_behind", 3), ("pool_abandoned", 8)]
)
def test_recover_completes_the_account_of_children_that_were_terminated(
    place: Place, scenario: str, workers: int, method: str
) -> None:
    place.run(scenario, method, FLUSH_INTERVAL=NEVER_S)
    if scenario != "pool_abandoned":  # whose idle workers may have the time to end in order
        assert take_account(str(place.logs), place.acknowledged()).lost > 0
    place.recover()
    place.check(workers)


def test_next_program_completes_the_account_of_children_that_were_terminated(place: Place) -> None:
    place.run("daemons_left_behind", FLUSH_INTERVAL=NEVER_S)
    assert take_account(str(place.logs), place.acknowledged()).lost > 0
    place.run("next_start", WORKER="3")
    place.check(4)


@pytest.mark.parametrize("method", ALL)
def test_children_complete_the_account_of_a_parent_that_was_killed_and_go_on(place: Place, method: str) -> None:
    with place.running("parent_killed", method) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        counts = Counts(str(place.counts))
        wait_until(lambda: all(counts[worker] > 500 for worker in range(3)))
        parent.kill()
        parent.wait()
        seen = counts[1], counts[2]
        wait_until(lambda: take_account(str(place.logs), {0: counts[0]}).lost == 0, what="a child's helper")
        wait_until(lambda: counts[1] > seen[0] + 50 and counts[2] > seen[1] + 50, what="the children go on")
    wait_until(lambda: recover(place.logs).live_spools == 0)
    place.check(3)


# The page.


def test_program_of_the_page_runs_as_it_stands(place: Place) -> None:
    page = (Path(__file__).parents[2] / "docs" / "multiprocessing.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    program = place.counts.parent / "program.py"
    program.write_text(code)
    subprocess.run([sys.executable, program], cwd=program.parent, env=place.environment(), check=True, timeout=60)
    with read_events(place.logs) as events:
        assert sorted(event["number"] for event in events) == list(range(100))


# Before the first event.


def test_exporter_that_was_not_used_yet_has_no_thread_and_no_file_at_the_fork(place: Place) -> None:
    place.run("unused", FLUSH_INTERVAL=NEVER_S)
    place.check(1)


# At the fork. Python 3.12 and later warn of a fork in a process that has threads; the helper was one.


def test_process_that_has_no_thread_but_the_helper_has_none_at_the_fork(place: Place) -> None:
    place.run("alone_at_the_fork")
    place.check(4)

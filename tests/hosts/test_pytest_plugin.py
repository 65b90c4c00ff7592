"""Real pytest runs, with and without xdist: every phase that was reported is an event on disk, exactly once.

What was reported is written down by the suite's own conftest, in the process that the user looks at: without xdist the
one that runs the tests, with it the controller, which knows of a report only when a worker has sent it.
"""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from processes import wait_until

import profilis_mp
from profilis_mp import read_events, recover

CONFTEST = """
import json, os

SEEN = open("reported", "a", buffering=1)
THIS = os.getpid()

def pytest_runtest_logreport(report):
    if os.getpid() != THIS or "PYTEST_XDIST_WORKER" in os.environ:
        return  # a forked child that a test let go on; a worker
    outcome = report.outcome
    if hasattr(report, "wasxfail"):
        outcome = {"skipped": "xfailed", "passed": "xpassed"}.get(outcome, outcome)
    phase = "crash" if report.when == "???" else report.when
    worker = report.node.gateway.id if hasattr(report, "node") else "master"
    SEEN.write(json.dumps([report.nodeid, phase, outcome, worker, hasattr(report, "context")]) + "\\n")
"""

OUTCOMES = """
import time, unittest, pytest

def test_passes(): time.sleep(0.02)
def test_fails(): assert 0
@pytest.mark.skip
def test_is_marked_skip(): pass
def test_skips(): pytest.skip("here")
@pytest.mark.xfail
def test_xfails(): assert 0
@pytest.mark.xfail(run=False)
def test_is_not_run(): assert 0
@pytest.mark.xfail
def test_xpasses(): pass
@pytest.mark.xfail(strict=True)
def test_passes_and_must_not(): pass
@pytest.fixture
def broken(): raise OSError("set-up")
def test_has_no_setup(broken): pass
@pytest.fixture
def leaking():
    yield
    raise OSError("tear-down")
def test_has_no_teardown(leaking): time.sleep(0.01)
tries = []
@pytest.mark.flaky(reruns=2)
def test_passes_at_last():
    tries.append(1)
    assert len(tries) == 3
def test_has_subtests(subtests):
    for i in range(3):
        with subtests.test("part", i=i):
            assert i != 1
class TestCase(unittest.TestCase):
    def test_unit(self): pass
@pytest.mark.parametrize("text", ["a b", "\\u00e9\\U0001f600", '"quoted"\\\\', "line\\nline", "x" * 300])
def test_has_odd_names(text): pass
"""

# pytest, with Python's own handler of Ctrl-C: a job in the background inherits from its shell that it is ignored.
START = """
import signal, sys, pytest
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(pytest.main())
"""


def environment(root: Path) -> dict[str, str]:
    """Without what the pytest that runs these tests, or its xdist, has put in.

    A run with temporary directories of its own does not begin with the removal of what other runs have left.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PROFILIS"))}
    return {**clean, "PYTEST_DEBUG_TEMPROOT": str(root.parent)}


@dataclass
class Suite:
    """A directory with tests, and a log directory."""

    root: Path
    logs: Path

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.root / f"{name}.py").write_text(text)

    @contextmanager
    def running(self, *options: object) -> Iterator[subprocess.Popen[str]]:
        """A pytest in a process group of its own, of which nothing is left afterwards."""
        run = subprocess.Popen(
            [sys.executable, "-c", START, *map(str, options)],
            cwd=self.root,
            env=environment(self.root),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield run
        finally:
            try:
                os.killpg(run.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            run.wait()
            assert run.stdout is not None
            run.stdout.close()

    def run(self, *options: object, status: int, record: bool = True) -> str:
        """One run to its end; returns what it printed."""
        chosen = [*options, f"--profilis-dir={self.logs}"] if record else options
        with self.running(*chosen) as run:
            output, _ = run.communicate(timeout=120)
        assert run.returncode == status, output
        return output

    def reported(self) -> collections.Counter[tuple[Any, ...]]:
        lines = (self.root / "reported").read_text().splitlines()
        return collections.Counter(tuple(json.loads(line)) for line in lines)

    def events(self) -> list[dict[str, Any]]:
        with read_events(self.logs) as events:
            found = list(events)
        assert events.report.torn == 0
        return found

    def on_disk(self) -> collections.Counter[tuple[Any, ...]]:
        return collections.Counter(
            (event["fn"], event["phase"], event["outcome"], event["worker"], "subtest" in event)
            for event in self.events()
        )

    def check(self) -> collections.Counter[tuple[Any, ...]]:
        """All that was reported is on disk exactly once, and nothing else."""
        reported, on_disk = self.reported(), self.on_disk()
        assert on_disk == reported
        spans = {event["span_id"] for event in self.events()}
        assert len(spans) == on_disk.total()
        return on_disk

    def check_unfinished(self, workers: int) -> None:
        """As `check`, for a run that was cut short: each worker may have written one report that it had not sent."""
        reported, on_disk = self.reported(), self.on_disk()
        assert not reported - on_disk
        assert (on_disk - reported).total() <= workers
        assert max(on_disk.values()) == 1


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    suite = Suite(tmp_path / "suite", tmp_path / "logs")
    suite.root.mkdir()
    (suite.root / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\naddopts = -p no:cacheprovider\n")
    suite.write(conftest=CONFTEST)
    return suite


def slowest(output: str) -> list[str]:
    """The lines of the summary's table."""
    lines = output.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("===") and " slowest " in line)
    return lines[start + 1 : next(n for n, line in enumerate(lines) if " of run " in line)]


# Every outcome, with every way of distributing tests.


@pytest.mark.parametrize(
    "options",
    [
        ["-p", "no:xdist"],
        ["-n0"],
        ["-n2"],
        ["-n2", "--dist=loadscope"],
        ["-n2", "--dist=worksteal"],
        ["--dist=each", "--tx=2*popen"],
    ],
    ids=" ".join,
)
def test_every_phase_that_was_reported_is_an_event_exactly_once(suite: Suite, options: list[str]) -> None:
    suite.write(test_outcomes=OUTCOMES)
    output = suite.run(*options, status=1)
    on_disk = suite.check()
    workers = {key[3] for key in on_disk}
    distributed = options[0] in {"-n2", "--dist=each"}
    assert workers <= ({"gw0", "gw1"} if distributed else {"master"})
    outcomes = {name.rpartition("::")[2]: {key[2] for key in on_disk if key[0] == name} for name, *_ in on_disk}
    assert outcomes["test_is_marked_skip"] == {"skipped", "passed"}  # its tear-down passes
    assert outcomes["test_is_not_run"] == {"xfailed", "passed"}
    assert outcomes["test_xpasses"] == {"xpassed", "passed"}
    assert outcomes["test_passes_at_last"] == {"rerun", "passed"}
    errors = {(e["fn"].rpartition("::")[2], e["phase"]) for e in suite.events() if e["error"] and "subtest" not in e}
    assert errors == {
        ("test_fails", "call"),
        ("test_passes_and_must_not", "call"),
        ("test_has_no_setup", "setup"),
        ("test_has_no_teardown", "teardown"),
        ("test_passes_at_last", "call"),
        ("test_has_subtests", "call"),
    }
    assert {event["rerun"] for event in suite.events() if "rerun" in event} == {1, 2}
    assert {event["subtest"] for event in suite.events() if "subtest" in event} == {
        f"[part] (i={number})" for number in range(3)
    }
    assert len({event["trace_id"] for event in suite.events()}) == 1
    table = slowest(output)
    assert any("test_outcomes.py::test_passes (" in line and "call" in line for line in table), output
    assert {line.split()[1] for line in table} <= workers
    assert f"{on_disk.total()} events of run {suite.events()[0]['trace_id']} in {suite.logs}" in output


def test_moment_and_duration_are_those_of_pytests_own_report(suite: Suite) -> None:
    suite.write(
        conftest=CONFTEST.replace("report.nodeid, phase", "report.nodeid, report.stop, report.duration, phase"),
        test_some="import time\ndef test_a(): time.sleep(0.01)\ndef test_b(): pass\n",
    )
    suite.run("-n1", status=0)
    told = {(line[0], line[3]): line[1:3] for line in map(tuple, suite.reported())}
    events = suite.events()
    assert len(events) == 6
    for event in events:
        stop, duration = told[event["fn"], event["phase"]]
        assert (event["ts_ns"], event["dur_ns"]) == (int(stop * 1e9), int(duration * 1e9))


# Runs that are cut short.

CRASHES = """
import os, signal, time

def test_slow(): time.sleep(0.05)
def test_dies(): {death}
def test_after(): pass
"""
DEATHS = ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(3)"]


def test_worker_that_dies_leaves_everything_that_it_had_reported(suite: Suite) -> None:
    suite.write(test_killed=CRASHES.format(death=DEATHS[0]), test_exits=CRASHES.format(death=DEATHS[1]))
    output = suite.run("-n1", status=1)  # each time xdist goes on with a new worker
    suite.check_unfinished(workers=3)
    crashes = [event for event in suite.events() if event["phase"] == "crash"]
    assert {event["fn"] for event in crashes} == {"test_killed.py::test_dies", "test_exits.py::test_dies"}
    assert all(event["error"] and event["outcome"] == "failed" for event in crashes)
    table = slowest(output)
    assert {line.split()[2] for line in table[:2]} == {"test_killed.py::test_slow", "test_exits.py::test_slow"}
    assert {line.split()[1] for line in table[:2]} == {event["worker"] for event in crashes} == {"gw0", "gw1"}
    # The set-ups of the tests that died were reported.
    assert sum(event["fn"].endswith("test_dies") and event["phase"] == "setup" for event in suite.events()) == 2


@pytest.mark.parametrize(("death", "status"), [(DEATHS[0], -signal.SIGKILL), (DEATHS[1], 3)], ids=["kill", "_exit"])
def test_pytest_that_dies_leaves_everything_to_recover_or_to_the_next_run(
    suite: Suite, death: str, status: int
) -> None:
    suite.write(test_dies=CRASHES.format(death=death))
    suite.run("-p", "no:xdist", status=status)
    assert recover(suite.logs).dead_spools == 1
    on_disk = suite.check()
    assert on_disk.total() == 4  # three of the first test, and the set-up of the second
    suite.run("-p", "no:xdist", status=status)
    suite.write(test_dies="def test_lives(): pass\n")
    output = suite.run("-p", "no:xdist", status=0)  # reads its log at the end, and so recovers
    assert suite.check().total() == 11
    assert "3 events of run" in output


WAITING = "import pytest, time\n@pytest.mark.parametrize('n', range(300))\ndef test_waits(n): time.sleep(0.005)\n"


@pytest.mark.parametrize("options", [["-p", "no:xdist"], ["-n2"]], ids=" ".join)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_run_that_is_interrupted_or_killed_leaves_all_that_was_reported(
    suite: Suite, options: list[str], number: signal.Signals
) -> None:
    suite.write(test_waits=WAITING)
    reported = suite.root / "reported"
    with suite.running(*options, f"--profilis-dir={suite.logs}") as run:
        wait_until(lambda: reported.exists() and reported.read_text().count("\n") > 60)
        os.kill(run.pid, number)
        output, _ = run.communicate(timeout=60)  # xdist's workers have the same standard output, and end, too
    if number == signal.SIGINT:
        assert run.returncode == 2, output
        assert slowest(output)
    wait_until(lambda: recover(suite.logs).live_spools == 0)
    assert suite.reported().total() > 60
    on_disk = suite.on_disk()
    assert max(on_disk.values()) == 1
    assert not suite.reported() - on_disk
    if options == ["-p", "no:xdist"]:
        assert (on_disk - suite.reported()).total() <= 1


@pytest.mark.parametrize("options", [["-p", "no:xdist", "-x"], ["-n2", "-x"], ["-n2", "--maxfail=2"]], ids=" ".join)
def test_run_that_stops_at_a_failure_has_recorded_all_that_was_reported(suite: Suite, options: list[str]) -> None:
    suite.write(test_waits=WAITING.replace("time.sleep(0.005)", "assert n % 10 != 9"))
    output = suite.run(*options, status=1 if "no:xdist" in options else 2)
    on_disk = suite.on_disk()
    assert not suite.reported() - on_disk
    assert max(on_disk.values()) == 1
    assert f"{on_disk.total()} events of run" in output
    if "no:xdist" in options:
        suite.check()


# A child that a test lets out of its function goes on as a second pytest, with the same reports once more.
@pytest.mark.parametrize("ending", ["return", "raise SystemExit(0)", "assert 0", "os._exit(0)"])
def test_forked_child_of_a_test_records_nothing_of_its_parents_run(suite: Suite, ending: str) -> None:
    suite.write(
        test_forks=f"""
import os
def test_forks():
    pid = os.fork()
    if not pid:
        {ending}
    assert os.waitpid(pid, 0)[0] == pid
def test_after(): pass
"""
    )
    output = suite.run("-p", "no:xdist", "-s", status=0)
    assert suite.check().total() == 6
    assert output.count(" of run ") == 1


# What users give, and what they do not.


def test_without_the_option_nothing_but_a_tiny_module_is_imported(suite: Suite) -> None:
    suite.write(
        conftest="import sys\ndef pytest_unconfigure(): print(*(n for n in sys.modules if n.split('.')[0] in "
        "('profilis_mp', 'orjson', 'filelock', 'watchdog')))\n",
        test_one="def test_one(): pass\n",
    )
    output = suite.run("-p", "no:xdist", status=0, record=False)
    assert output.splitlines()[-1].split() == ["profilis_mp", "profilis_mp.pytest_plugin"]


@pytest.mark.parametrize("options", [["-p", "no:xdist"], ["-n2"]], ids=" ".join)
def test_collecting_alone_writes_and_shows_nothing(suite: Suite, options: list[str]) -> None:
    suite.write(test_outcomes=OUTCOMES)
    output = suite.run(*options, "--collect-only", status=0)
    assert not suite.logs.exists()
    assert " of run " not in output


def test_what_cannot_be_used_is_refused_before_the_first_test(suite: Suite) -> None:
    suite.write(test_one="def test_one(): pass\n")
    file = suite.root / "file"
    file.touch()
    for options, reason in [
        (["--profilis-dir="], "--profilis-dir: is empty"),
        ([f"--profilis-dir={file}"], f"--profilis-dir: [Errno 20] {file} is not a directory"),
        ([f"--profilis-dir={suite.logs}", "--profilis-slowest=-1"], "--profilis-slowest: -1 is less than 0"),
        ([f"--profilis-dir={suite.logs}", "--profilis-slowest=few"], "invalid int value: 'few'"),
        ([f"--profilis-dir={suite.logs}", "-o", "profilis_slowest=few"], "profilis_slowest: 'few' is not a number"),
        (["-n2", "-o", "profilis_dir=file"], "is not a directory"),
    ]:
        output = suite.run(*options, status=4, record=False)
        assert reason in output, output
        assert "Traceback" not in output
    assert not suite.logs.exists()


def test_ini_file_may_name_the_directory_and_runs_in_it_are_kept_apart(suite: Suite) -> None:
    (suite.root / "below").mkdir()
    suite.logs = suite.root / "times"
    with (suite.root / "pytest.ini").open("a") as ini:
        ini.write("profilis_dir = times\nprofilis_slowest = 1\n")
    slow = "import time\n" + "".join(f"def test_{n}(): time.sleep(0.{n})\n" for n in (1, 2, 4))
    suite.write(**{"below/test_slow": slow})
    first = suite.run("-n2", "below", status=0, record=False)
    assert len(slowest(first)) == 1
    assert "test_slow.py::test_4 " in slowest(first)[0]
    second = suite.run("-p", "no:xdist", "-k", "not test_4", "--profilis-slowest=0", status=0, record=False)
    assert {line.split()[2] for line in slowest(second)} == {"below/test_slow.py::test_2", "below/test_slow.py::test_1"}
    runs = collections.Counter(event["trace_id"] for event in suite.events())
    assert sorted(runs.values()) == [6, 9]
    for output, events in ((first, 9), (second, 6)):
        (run,) = [run for run, count in runs.items() if count == events]
        assert f"{events} events of run {run} in {suite.logs}" in output


# An installed package with a plugin has its modules rewritten by pytest, which warns of one that is imported already;
# with warnings as errors, as here, that warning was the end of a program that used profilis_mp and then called pytest.
def test_program_that_imported_the_package_may_call_pytest(suite: Suite) -> None:
    site = suite.root.parent / "site"
    about = site / "profilis_mp-9.9.dist-info"  # as pip leaves it; this checkout is installed in another way
    about.mkdir(parents=True)
    (site / "profilis_mp").symlink_to(Path(profilis_mp.__file__).parent)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: profilis_mp\nVersion: 9.9\n")
    (about / "entry_points.txt").write_text("[pytest11]\nprofilis_mp = profilis_mp.pytest_plugin\n")
    (about / "RECORD").write_text("profilis_mp/__init__.py,,\nprofilis_mp/pytest_plugin/__init__.py,,\n")
    (suite.root / "program.py").write_text(
        "import profilis_mp, pytest, sys\nprint(profilis_mp.__file__)\nsys.exit(pytest.main(sys.argv[1:]))\n"
    )
    suite.write(test_one="def test_one(): pass\n")
    done = subprocess.run(
        [sys.executable, "program.py", "-p", "no:xdist", f"--profilis-dir={suite.logs}"],
        cwd=suite.root,
        env={**environment(suite.root), "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done
    assert done.stdout.startswith(str(site))
    assert suite.check().total() == 3


# Our own failures.


def test_directory_that_goes_away_in_the_middle_breaks_no_run(suite: Suite) -> None:
    suite.write(
        test_removes=f"""
import shutil, time
def test_removes():
    shutil.rmtree({str(suite.logs)!r})
    open({str(suite.logs)!r}, "w").close()
def test_after(): time.sleep(0.01)
"""
    )
    for options in (["-p", "no:xdist"], ["-n1"]):
        output = suite.run(*options, status=0)
        assert "2 passed" in output
        assert f"{suite.logs} could not be read back" in output
        suite.logs.unlink()


def test_report_that_cannot_be_recorded_breaks_no_run(suite: Suite) -> None:
    suite.write(
        conftest="import pytest\n@pytest.hookimpl(wrapper=True)\ndef pytest_runtest_makereport():\n"
        "    report = yield\n    report.context = 'nobody expects this'\n    report.stop = 0\n"
        "    report.wasxfail = 'x'\n    return report\n",
        test_one="def test_one(): pass\n",
    )
    for options in (["-p", "no:xdist"], ["-n1"]):
        assert "3 xpassed" in suite.run(*options, status=0)


def test_pytest_within_a_test_is_a_run_of_its_own(suite: Suite) -> None:
    inner = suite.root.parent / "inner"
    suite.write(
        conftest=CONFTEST + "\npytest_plugins = 'pytester'\n",
        test_nested=f"""
def test_nested(pytester):
    pytester.makepyfile(test_inside="def test_inner(): pass")
    result = pytester.runpytest_inprocess("--profilis-dir={inner}", "-p", "no:xdist")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["3 events of run * in {inner}"])
""",
    )
    suite.run("-p", "no:xdist", status=0)
    assert suite.check().total() == 3
    with read_events(inner) as events:
        assert {event["fn"] for event in events} == {"test_inside.py::test_inner"}

"""Two containers share a log directory: the same process ids mean different processes, and nobody is confused by it.

Each container is a pid namespace of its own, made by unshare, with its own /proc. What runs in it has pid 1, or 2, as
everywhere else.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from checks import check_log
from processes import wait_until
from serving import children_of, kill, tree_of

from profilis_mp import monitor_log_directory, recover
from profilis_mp.account import take_account

UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def refusal(*unshare: str) -> str | None:
    """Why there can be no such namespace here; None where there can."""
    try:
        done = subprocess.run([*unshare, "true"], capture_output=True, text=True, timeout=30)
    except OSError as error:
        return str(error)
    return done.stderr.strip() or "unshare failed" if done.returncode else None


CLOCK_AHEAD = (*UNSHARE, "--time", "--monotonic=86400")

_refusal = refusal(*UNSHARE)
pytestmark = pytest.mark.skipif(_refusal is not None, reason=f"no pid namespaces here: {_refusal}")

# Emits an event per line that it is sent, and answers each with its pid and whether it leads.
WRITER = """
    import json, os, sys
    from profilis_mp import JSONLExporter
    directory, worker, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    exporter = JSONLExporter(directory, **options)
    for number, line in enumerate(sys.stdin):
        exporter.emit({"worker": worker, "seq": number})
        print(json.dumps({"pid": os.getpid(), **exporter.stats()}), flush=True)
"""


class Container:
    """A pid namespace with one writer in it, which is its first process.

    Attributes:
        events: How many events are safe.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events = 0

    def emit(self) -> dict[str, Any]:
        """Have it emit an event; returns what it says of itself."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        state: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.events += 1
        return state

    @property
    def writer(self) -> int:
        """Its pid as seen from out here."""
        (pid,) = children_of(self.process.pid)
        return pid

    def run(self, *command: str) -> str:
        """What a command says that runs inside."""
        entered = ["nsenter", f"--target={self.writer}", "--pid", "--mount", *command]
        done = subprocess.run(entered, capture_output=True, text=True, timeout=60)
        assert done.stdout, done
        return done.stdout

    def kill(self) -> None:
        """Kill all that is in it."""
        assert kill(self.writer)
        self.process.wait(30)


@contextmanager
def containers(directory: Path) -> Iterator[Any]:
    """Yields what starts one; all are killed at the end of the block."""
    with ExitStack() as stack:

        def start(worker: int, unshare: Sequence[str] = UNSHARE, **options: Any) -> Container:
            with (directory.parent / "containers.log").open("a") as output:
                process = subprocess.Popen(
                    [
                        *unshare,
                        sys.executable,
                        "-c",
                        textwrap.dedent(WRITER),
                        directory,
                        str(worker),
                        json.dumps(options),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    text=True,
                )
            stack.callback(process.__exit__, None, None, None)
            stack.callback(end, process)
            return Container(process)

        yield start


def end(process: subprocess.Popen[str]) -> None:
    for pid in reversed(tree_of(process.pid)):
        kill(pid)


def is_logged(directory: Path, *those: Container) -> bool:
    return take_account(str(directory), {number: one.events for number, one in enumerate(those)}).lost == 0


def spools_in(directory: Path) -> list[str]:
    return [path.name for path in directory.glob(".profilis-mp/*/spool/*")]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


@pytest.mark.parametrize("unshare", [UNSHARE, CLOCK_AHEAD], ids=["same clock", "clock a day ahead"])
def test_what_a_killed_container_leaves_is_flushed_by_the_other_which_has_its_pid(
    logs: Path, unshare: Sequence[str]
) -> None:
    """A time namespace gives a container a monotonic clock of its own, and that is the clock of the heartbeat."""
    refused = refusal(*unshare)
    if refused:
        pytest.skip(f"no such namespace here: {refused}")
    with containers(logs) as start:
        # One that would never flush by itself, one that helps.
        dead, alive = start(0, flush_interval=1e6), start(1, unshare, flush_interval=0.2)
        assert {dead.emit()["pid"], alive.emit()["pid"]} == {1}
        assert len(spools_in(logs)) == 2
        # While both live, neither spool is taken for a dead process's, though each names a process that the other has.
        wait_until(lambda: is_logged(logs, dead, alive))
        assert len(spools_in(logs)) == 2
        told = json.loads(alive.run(sys.executable, "-m", "profilis_mp", "recover", "--json", str(logs)))
        assert (told["dead_spools"], told["live_spools"]) == (0, 2)
        for _ in range(10):
            dead.emit()
        dead.kill()
        wait_until(lambda: is_logged(logs, dead, alive) and len(spools_in(logs)) == 1)
        alive.emit()
        alive.kill()
    report = recover(logs)
    assert (report.dead_spools, report.live_spools) == (1, 0)
    check_log(logs, {0: dead.events, 1: alive.events})


def test_leadership_goes_from_one_container_to_the_other_and_back_to_the_one_started_again(logs: Path) -> None:
    # Sealed segments go only where somebody leads.
    options = {"flush_interval": 0.2, "rotate_bytes": 200, "compress_old_files": True, "compress_delay_secs": 0}
    with containers(logs) as start:
        first = start(0, **options)
        wait_until(lambda: first.emit()["leading"])
        second = start(1, **options)
        for _ in range(20):
            assert not second.emit()["leading"]
        first.kill()
        wait_until(lambda: second.emit()["leading"])
        again = start(2, **options)  # with the pid of both
        for _ in range(20):
            assert not again.emit()["leading"]
        second.kill()
        wait_until(lambda: again.emit()["leading"])
        wait_until(lambda: len(list(logs.glob("*.jsonl"))) <= 1)
        again.kill()
    recover(logs)
    check_log(logs, {0: first.events, 1: second.events, 2: again.events})


def test_a_health_check_in_one_container_is_right_about_the_other(logs: Path) -> None:
    """Who holds a lock, /proc/locks tells, but it shows only what its own namespace can see."""
    with containers(logs) as start:
        other, mine = start(0, flush_interval=0.2), start(1, flush_interval=0.2)
        wait_until(lambda: other.emit()["leading"])
        mine.emit()
        doctor = [sys.executable, "-m", "profilis_mp", "doctor", "--json", str(logs)]

        def looked_at() -> dict[str, Any]:
            (stream,) = json.loads(mine.run(*doctor))["streams"].values()
            found: dict[str, Any] = stream["stream"]
            return found

        stream = looked_at()
        told = [(spool["pid"], spool["seen_as"], spool["alive"]) for spool in stream["spools"]]
        assert told == [(1, None, True), (1, 1, True)]
        assert (stream["leader"]["pid"], stream["leader"]["seen_as"]) == (1, None)
        text = mine.run(*doctor[:-2], str(logs))
        assert "spool           process 1, which cannot be seen from here, 0B unflushed" in text
        assert "leader          process 1, which cannot be seen from here" in text
        assert ", 2 writers" in mine.run(*doctor[:-3], "health", str(logs))
        # From out here both are seen, and by their names out here.
        outside: Any = monitor_log_directory(logs)
        (seen,) = outside["streams"].values()
        assert [spool["seen_as"] for spool in seen["spools"]] == [other.writer, mine.writer]
        assert seen["leader"]["pid"] == other.writer
        os.kill(mine.writer, signal.SIGSTOP)  # nobody removes the dead one's spool now
        other.kill()
        assert sorted(spool["alive"] for spool in looked_at()["spools"]) == [False, True]
        os.kill(mine.writer, signal.SIGCONT)
        wait_until(lambda: mine.emit()["leading"])
        mine.kill()
    recover(logs)
    check_log(logs, {0: other.events, 1: mine.events})

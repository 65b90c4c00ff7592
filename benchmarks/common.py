"""What all benchmarks share: the header, the event, worker processes that start together, results and pictures.

Every benchmark writes ``results/<name>.txt`` (its command, its tables), ``results/<name>.json`` (its figures, for
``summary.py``) and, where there is something to see, ``results/<name>.svg``. ``--quick`` runs all of it with a tenth of
the events and two rounds, to see that it works; its figures mean nothing, and it writes to a temporary directory.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import mmap
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "QUICK",
    "ROUNDS",
    "Report",
    "Shared",
    "ended",
    "event",
    "few",
    "scratch",
    "spread",
    "start_together",
    "version",
]

QUICK = "--quick" in sys.argv or bool(os.environ.get("BENCH_QUICK"))
ROUNDS = 2 if QUICK else 5
RESULTS = Path(tempfile.gettempdir(), "profilis-mp-bench-quick") if QUICK else Path(__file__).parent / "results"
PACKAGES = (
    "profilis_mp", "orjson", "filelock", "concurrent-log-handler", "loguru", "profilis", "flask", "gunicorn",
)  # fmt: skip


def few(number: int) -> int:
    """A tenth of it with ``--quick``."""
    return max(number // 10, 1) if QUICK else number


def event(worker: int, number: int) -> dict[str, Any]:
    """One REQ event, about 170 bytes as JSON, that says who made it and which of his it is."""
    return {
        "ts_ns": time.time_ns(),
        "trace_id": "trace-abc123",
        "span_id": "span-def456",
        "kind": "REQ",
        "route": "/api/users",
        "status": 200,
        "dur_ns": 15_000_000,
        "worker": worker,
        "seq": number,
    }


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """``median (min-max)``."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


@contextlib.contextmanager
def scratch() -> Iterator[str]:
    """A directory for one run, removed after it."""
    path = tempfile.mkdtemp(prefix="profilis-mp-bench-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Report:
    """Prints, and keeps what was printed with the figures behind it.

    Args:
        file: The benchmark's ``__file__``.
        question: What it answers.
        about: Lines on the workload.
    """

    def __init__(self, file: str, question: str, *about: str) -> None:
        self.name = Path(file).stem
        self.figures: dict[str, Any] = {}
        self._lines = [f"$ python benchmarks/{self.name}.py"]
        self._began = time.monotonic()
        self.say(f"# {question}")
        self.say(f"# Python {platform.python_version()}, {', '.join(version(package) for package in PACKAGES)}")
        machine = f"{_cpu()}, {os.cpu_count()} cores; {platform.system()} {platform.release()}"
        self.say(f"# {machine}; {_file_system(tempfile.gettempdir())}; {time.strftime('%Y-%m-%d', time.gmtime())}")
        for line in about:
            self.say(f"# {line}")

    def say(self, line: str = "") -> None:
        self._lines.append(line.rstrip())
        print(line, flush=True)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """The first column to the left, the others to the right."""
        widths = [max(len(str(row[column])) for row in (head, *rows)) for column in range(len(head))]
        for row in (head, *rows):
            cells = [str(cell).rjust(width) for cell, width in zip(row, widths, strict=True)]
            cells[0] = str(row[0]).ljust(widths[0])
            self.say("  ".join(cells))

    def picture(self, draw: Callable[[Any], None], *, width: float = 8, height: float = 4.5) -> None:
        """Write an SVG that ``draw`` has drawn on a pair of axes; say so where matplotlib is not installed."""
        try:
            import matplotlib
        except ImportError:
            self.say("# no picture: matplotlib is not installed")
            return
        matplotlib.use("svg")
        matplotlib.rcParams.update({"svg.hashsalt": self.name, "axes.spines.top": False, "axes.spines.right": False})
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
        draw(axes)
        RESULTS.mkdir(parents=True, exist_ok=True)
        figure.savefig(RESULTS / f"{self.name}.svg", metadata={"Date": None})
        pyplot.close(figure)

    def save(self) -> None:
        self.say(f"# took {time.monotonic() - self._began:.0f} s")
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{self.name}.txt").write_text("\n".join(self._lines) + "\n")
        (RESULTS / f"{self.name}.json").write_text(json.dumps(self.figures, indent=1, sort_keys=True) + "\n")


def version(package: str) -> str:
    """``package 1.2.3``, or that it is not installed."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


class Shared:
    """Integers in memory that forked processes share, and that outlives them."""

    def __init__(self, words: int) -> None:
        self._words = memoryview(mmap.mmap(-1, 8 * words)).cast("Q")

    def __getitem__(self, word: int) -> int:
        return self._words[word]

    def __setitem__(self, word: int, value: int) -> None:
        self._words[word] = value

    def __len__(self) -> int:
        return len(self._words)


def start_together(processes: int, work: Callable[[int, Callable[[], None]], None]) -> tuple[list[int], float]:
    """Fork workers, wait until all are ready, let them go.

    Args:
        processes: How many.
        work: Called in each with its number and ``ready``, which it calls when everything is open; that returns when
            all others have called it as well.

    Returns:
        Their pids, and when they were let go (``time.perf_counter``).
    """
    waiting, arrived = os.pipe()
    held, let_go = os.pipe()
    pids = []
    for number in range(processes):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.close(let_go)

                def ready() -> None:
                    os.write(arrived, b"r")
                    os.read(held, 1)  # ends when the parent closes the other end

                work(number, ready)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        pids.append(pid)
    os.close(arrived)
    os.close(held)
    there = 0
    while there < processes and (came := os.read(waiting, processes)):
        there += len(came)
    os.close(waiting)
    started = time.perf_counter()
    os.close(let_go)
    return pids, started


def ended(pids: Sequence[int], timeout_s: float = 120.0) -> list[int]:
    """Wait for processes, and kill those that take too long; return their exit statuses, negative for signals."""
    deadline = time.monotonic() + timeout_s
    statuses = []
    for pid in pids:
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                break
            time.sleep(0.0005)
        statuses.append(os.waitstatus_to_exitcode(status))
    return statuses


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _file_system(path: str) -> str:
    done = subprocess.run(["findmnt", "-nT", path, "-o", "FSTYPE"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown file system"

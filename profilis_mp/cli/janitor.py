"""How does the janitor run in the foreground, what does it say, and how does it stop?

SIGTERM and SIGINT set one event; a copy half made is then given up, locks are freed, and the exit status is 0: that is
how systemd, a container runtime and uWSGI end a service that has done nothing wrong.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from profilis_mp.cli.options import Unusable
from profilis_mp.cli.progress import working
from profilis_mp.cli.units import show_bytes
from profilis_mp.cli.warnings import warnings_on_stderr

if TYPE_CHECKING:
    from profilis_mp.janitor.sweep import SweepReport

__all__ = ["run"]


def run(directory: str, rules: dict[str, Any], *, once: bool, as_json: bool) -> int:
    """Sweep once, or until a signal; returns the exit status.

    Args:
        directory: The log directory.
        rules: Arguments of ``Upkeep``; none of them means what the writers recorded.
        once: Sweep once, whoever leads, and end.
        as_json: Say it in JSON, one object per line.
    """
    from profilis_mp.janitor.external import run_janitor, sweep_once
    from profilis_mp.janitor.upkeep import Upkeep
    from profilis_mp.sharedlog.settings import check_log_directory
    from profilis_mp.threads import Flag

    warnings_on_stderr()
    upkeep = Upkeep(**rules) if rules else None
    if once:
        with working("sweeping"):
            reports = sweep_once(directory, upkeep=upkeep)
        for stream, report in reports.items():
            _say(stream, report, as_json=as_json, always=True)
        if not reports:
            raise Unusable(f"{directory} has no stream")
        return 1 if any(report.failures for report in reports.values()) else 0
    check_log_directory(directory)  # before anything is said
    stop = Flag()
    closed = False

    def told(stream: str, report: SweepReport) -> None:
        nonlocal closed
        try:
            _say(stream, report, as_json=as_json, always=False)
        except BrokenPipeError:  # this is a janitor's thread, and nobody listens any more
            closed = True
            stop.set()

    def end(signum: int, frame: object) -> None:
        stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, end)
    if not as_json:
        print(f"looking after {os.path.abspath(directory)}, process {os.getpid()}", flush=True)
    run_janitor(directory, upkeep=upkeep, stop=stop, on_sweep=told)
    if closed:
        raise BrokenPipeError
    return 0


def _say(stream: str, report: SweepReport, *, as_json: bool, always: bool) -> None:
    """One line, and one more for each failure."""
    if not (always or report.compressed or report.expired or report.leftovers or report.failures):
        return
    if as_json:
        said = {name: getattr(report, name) for name in ("compressed", "expired", "leftovers", "failures")}
        print(json.dumps({"stream": stream, **said, "saved_bytes": report.saved_bytes}), flush=True)
        return
    done = [f"{len(report.compressed)} compressed", f"{len(report.expired)} expired"]
    if report.compressed:
        done[0] += f" ({show_bytes(report.saved_bytes)} saved)"
    if report.leftovers:
        done.append(f"{len(report.leftovers)} unfinished copies removed")
    print(f"{stream}: {', '.join(done)}", flush=True)
    for failure in report.failures:
        print(f"{stream}: not done: {failure}", file=sys.stderr)

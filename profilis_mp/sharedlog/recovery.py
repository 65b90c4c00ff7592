"""How is what dead processes left behind finished, by anybody, while others go on writing?

Every writer's helper does it all the time; :func:`recover` does it now, once, from a process that need not write.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from errno import ENOTDIR

from profilis_mp import diagnostics
from profilis_mp.errors import LogDirectoryError
from profilis_mp.sharedlog.helping import Helping
from profilis_mp.sharedlog.inventory import streams_of
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.settings import Settings, check_log_directory
from profilis_mp.sharedlog.stream import STATE_DIRECTORY, StreamPaths

__all__ = ["RecoveryReport", "recover"]


@dataclass(slots=True)
class RecoveryReport:
    """What :func:`recover` did.

    Attributes:
        directory: The log directory.
        streams: Streams looked at, by name.
        finished_flushes: Interrupted flushes finished.
        dead_spools: Spools of dead processes drained and removed.
        live_spools: Spools whose owners are alive; flushed too, and left to them.
        flushed_bytes: Bytes moved from spools into segments.
        set_aside: Paths of files that could not be trusted and were renamed.
        failures: What could not be done, as text; run it again once the reason is gone.
    """

    directory: str
    streams: list[str] = field(default_factory=list)
    finished_flushes: int = 0
    dead_spools: int = 0
    live_spools: int = 0
    flushed_bytes: int = 0
    set_aside: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def recover(dir: str | os.PathLike[str], *, timeout_s: float = 5.0) -> RecoveryReport:
    """Finish interrupted flushes and flush every spool, in every stream of a log directory; remove those of the dead.

    Safe at any time, in any number of processes, while others write.

    Args:
        dir: The log directory. One that does not exist, or never was one, gives an empty report.
        timeout_s: Longest wait for each stream's directory lock, seconds.

    Returns:
        What was done. With ``failures`` in it, something is left for the next call; nothing is ever lost by a failure.

    Raises:
        ConfigError: ``dir`` is no path.
        LogDirectoryError: It cannot be written, or is on a network file system. Nothing was touched.
    """
    report = RecoveryReport(check_log_directory(dir))
    try:
        streams = streams_of(report.directory)
    except NotADirectoryError:
        raise LogDirectoryError(f"{report.directory}/{STATE_DIRECTORY}", ENOTDIR, "is not a directory") from None
    except OSError as error:
        report.failures.append(str(error))
        return report
    for names in streams:
        report.streams.append(names.stream)
        _recover_stream(report, names, timeout_s)
    return report


def _recover_stream(report: RecoveryReport, names: SegmentNames, timeout_s: float) -> None:
    paths = StreamPaths(report.directory, names.stream)
    helping = Helping(paths, Settings.of_operator(report.directory, names), adopt_limits=True)
    try:
        # Taking the lock finishes the flush in progress, whoever's it is.
        try:
            helping.stream.acquire(timeout_s)
        finally:
            helping.stream.give_back()
        helped = helping.round(timeout_s)
    except OSError as error:
        report.failures.append(f"{paths.state}: {error}")
        return
    finally:
        for key, text in helping.stream.notices:
            diagnostics.warn(key, text)
        report.finished_flushes += helping.stream.finished_flushes
        report.set_aside += helping.stream.aside
        helping.close()
    report.dead_spools += helped.dead_spools
    report.live_spools += helped.live_spools
    report.flushed_bytes += helped.flushed_bytes
    report.failures += [*helped.failures, *helped.not_ours.values()]

"""What does one round of looking after a stream's sealed segments do?

Unfinished copies go, what retention asks for goes, what is due is compressed; each step leaves a directory from which
the next sweep, of this process or another, comes to the same end. Only the leader sweeps; a second sweeper would do
the same work twice, and no harm.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from profilis_mp import diagnostics
from profilis_mp.errors import LockTimeout
from profilis_mp.janitor.compress import NotCompressed, Stopped, compress, is_leftover
from profilis_mp.janitor.retention import Clock, expired
from profilis_mp.janitor.upkeep import Upkeep
from profilis_mp.sharedlog.inventory import SegmentFile, remove_file, streams_of
from profilis_mp.sharedlog.sealed import sealed_files
from profilis_mp.sharedlog.settings import Settings
from profilis_mp.sharedlog.stream import Stream, StreamPaths

__all__ = ["SweepReport", "Sweeper"]

_PERIOD_S = 60.0
_RETRY_S = (1.0, 10.0, 3600.0)  # after the first failure of a segment, the second, and all others
_LOCK_TIMEOUT_S = 1.0


@dataclass(slots=True)
class SweepReport:
    """What one sweep did. Paths of files, but for:

    Attributes:
        saved_bytes: By how much compression made the segments smaller.
        failures: What could not be done, as text; it is tried again later.
        next_s: When to sweep again at the latest, seconds.
    """

    compressed: list[str] = field(default_factory=list)
    expired: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    saved_bytes: int = 0
    next_s: float = _PERIOD_S


@dataclass(slots=True)
class _Trouble:
    times: int
    again_at: float


class Sweeper:
    """Sweeps one stream again and again, and remembers between sweeps what failed. For one thread.

    Args:
        paths: The stream's files.
        settings: Whose names and clock apply.
        upkeep: The rules.
        is_stopped: Asked between the pieces of long work.
        is_woken: Asked between segments: whether another sweep is due, because retention must not wait until all that
            there is has been compressed.
    """

    def __init__(
        self,
        paths: StreamPaths,
        settings: Settings,
        upkeep: Upkeep,
        is_stopped: Callable[[], bool] = bool,
        is_woken: Callable[[], bool] = bool,
    ) -> None:
        self._stream = Stream(paths, settings)
        self._paths = paths
        self._settings = settings
        self._upkeep = upkeep
        self._is_stopped = is_stopped
        self._is_woken = is_woken
        self._trouble: dict[str, _Trouble] = {}
        self._first_seen: dict[tuple[int, int], float] = {}
        self._clock = Clock(upkeep.max_age_secs, settings.clock) if upkeep.max_age_secs is not None else None

    def sweep(self) -> SweepReport:
        """Do whatever is due. Raises no Exception about the disk."""
        report = SweepReport()
        try:
            sealed, rest = sealed_files(self._stream, _LOCK_TIMEOUT_S)
        except (LockTimeout, OSError) as error:
            report.failures.append(str(error))
            report.next_s = _RETRY_S[0]
            return report
        finally:
            for key, text in self._stream.notices:
                diagnostics.warn(key, text)
            self._stream.notices.clear()
        self._remove_leftovers(report)
        gone = self._expire(sealed, rest, report)
        if self._upkeep.compress_old_files:
            self._compress([one for one in sealed if one.path not in gone], report)
        self._forget({one.identity for one in sealed})
        return report

    def close(self) -> None:
        """Close everything, unlocking nothing."""
        self._stream.close()

    def _remove_leftovers(self, report: SweepReport) -> None:
        names = self._settings.names
        for file in os.listdir(self._paths.log):
            segment = is_leftover(file)
            if segment is not None and names.parse(segment) is not None:
                path = f"{self._paths.log}/{file}"
                self._remove(path, partial(_unlink, path), report, report.leftovers)

    def _expire(self, sealed: list[SegmentFile], rest: list[SegmentFile], report: SweepReport) -> set[str]:
        too_old_before = self._clock.too_old_before(sealed) if self._clock is not None else 0
        gone = expired(sealed, rest, self._upkeep, too_old_before)
        for one in gone:
            self._remove(one.path, partial(remove_file, one), report, report.expired)
        return {one.path for one in gone}

    def _remove(self, path: str, remove: Callable[[], bool], report: SweepReport, removed: list[str]) -> None:
        if not self._may_try(path):
            return
        try:
            if remove():
                removed.append(path)
        except OSError as error:
            self._failed(path, f"could not be removed: {error}", report)

    def _compress(self, sealed: list[SegmentFile], report: SweepReport) -> None:
        upkeep = self._upkeep
        others = [names for names in streams_of(self._paths.log) if names.stream != self._settings.names.stream]
        for one in sealed:
            if one.suffix or one.disputed:
                continue
            due_s = self._due_in(one)
            if due_s > 0:
                report.next_s = min(report.next_s, due_s)
                continue
            if not self._may_try(one.path):
                report.next_s = min(report.next_s, max(0.1, self._trouble[one.path].again_at - time.monotonic()))
                continue
            if any(names.parse(one.file + upkeep.suffix) for names in others):
                self._failed(one.path, f"another stream of this directory has names ending in {upkeep.suffix}", report)
                continue
            try:
                size = compress(one, upkeep.suffix, upkeep.level, self._is_stopped)
            except Stopped:
                report.next_s = 0.0
                return
            except FileNotFoundError:
                continue  # somebody removed or compressed it by hand
            except (NotCompressed, OSError) as error:
                self._failed(one.path, f"could not be compressed: {error}", report)
                continue
            self._trouble.pop(one.path, None)
            report.compressed.append(one.path)
            report.saved_bytes += one.size - size
            if self._is_woken():
                report.next_s = 0.0
                return

    def _due_in(self, one: SegmentFile) -> float:
        """Seconds until a segment may be compressed: by its time of last write, or, if that is in the future, by when
        it was first seen."""
        delay = self._upkeep.compress_delay_secs
        first_seen = self._first_seen.setdefault(one.identity, time.monotonic())
        by_mtime = delay - (self._settings.clock() - one.mtime_ns) / 1e9
        return min(by_mtime, delay - (time.monotonic() - first_seen))

    def _may_try(self, path: str) -> bool:
        trouble = self._trouble.get(path)
        return trouble is None or time.monotonic() >= trouble.again_at

    def _failed(self, path: str, text: str, report: SweepReport) -> None:
        """Note a failure: try again, ever more seldom; say so once, when it is no accident any more."""
        trouble = self._trouble.setdefault(path, _Trouble(0, 0.0))
        wait_s = _RETRY_S[min(trouble.times, len(_RETRY_S) - 1)]
        trouble.times += 1
        trouble.again_at = time.monotonic() + wait_s
        report.failures.append(f"{path} {text}")
        report.next_s = min(report.next_s, wait_s)
        if trouble.times == len(_RETRY_S):
            diagnostics.warn("janitor-failed", f"{path} {text}; it is left as it is and tried again once an hour")

    def _forget(self, identities: set[tuple[int, int]]) -> None:
        self._trouble = {path: trouble for path, trouble in self._trouble.items() if os.path.lexists(path)}
        self._first_seen = {one: seen for one, seen in self._first_seen.items() if one in identities}


def _unlink(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True

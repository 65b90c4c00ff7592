"""How are old segments removed by hand, without touching one that somebody still writes to?"""

from __future__ import annotations

import math
import os
import time

from profilis_mp import diagnostics
from profilis_mp.errors import ConfigError
from profilis_mp.health.directory import path_of
from profilis_mp.sharedlog.inventory import SegmentFile, remove_file, streams_of
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.sealed import sealed_files
from profilis_mp.sharedlog.settings import Settings
from profilis_mp.sharedlog.stream import Stream, StreamPaths

__all__ = ["cleanup_old_files"]

_LONGEST_WAIT_S = 1.0
_LONGEST_DAYS = 1e6
_DAY_NS = 86_400 * 10**9


def cleanup_old_files(
    dir: str | os.PathLike[str] = "./logs", max_age_days: float = 7, *, dry_run: bool = False
) -> list[str]:
    """Remove every stream's sealed segments, plain and compressed, that were last written to so many days ago.

    Safe while others write. Never removed: the active segment; a file that two streams' templates could have produced;
    links and directories; anything whose stream has no control file, or a lock that another process keeps for a second.
    What could not be removed is warned about, and is there for the next call.

    Args:
        dir: The log directory.
        max_age_days: Days, more than 0; fractions are welcome.
        dry_run: Remove nothing.

    Returns:
        The paths removed, or that would have been.

    Raises:
        ConfigError: ``dir`` is no path, or ``max_age_days`` no number above 0. Nothing was removed.
    """
    log = os.path.abspath(path_of("dir", dir))
    kind: object = max_age_days
    if isinstance(kind, bool) or not isinstance(kind, int | float) or not 0 < kind < math.inf:
        raise ConfigError("max_age_days", f"{max_age_days!r} must be a number above 0")
    before_ns = time.time_ns() - int(min(max_age_days, _LONGEST_DAYS) * _DAY_NS)
    removed: list[str] = []
    try:
        for names in streams_of(log):
            removed += _clean_up(log, names, before_ns, dry_run)
    except OSError as error:
        diagnostics.warn("cleanup", f"{log}: {error}")
    return removed


def _clean_up(log: str, names: SegmentNames, before_ns: int, dry_run: bool) -> list[str]:
    stream = Stream(StreamPaths(log, names.stream), Settings.of_operator(log, names))
    removed = []
    try:
        sealed, _ = sealed_files(stream, _LONGEST_WAIT_S)
        for one in sealed:
            if one.disputed or one.mtime_ns >= before_ns:
                continue
            if dry_run or _remove(one):
                removed.append(one.path)
    except OSError as error:
        diagnostics.warn("cleanup", f"{stream.paths.state}: nothing was removed: {error}")
    finally:
        stream.close()
    for key, text in stream.notices:
        diagnostics.warn(key, text)
    return removed


def _remove(one: SegmentFile) -> bool:
    try:
        return remove_file(one)
    except OSError as error:
        diagnostics.warn("cleanup", f"{one.path} could not be removed: {error}")
        return False

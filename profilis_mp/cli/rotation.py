"""How is a segment sealed by somebody who writes nothing?"""

from __future__ import annotations

from dataclasses import replace

from profilis_mp import diagnostics
from profilis_mp.sharedlog.helping import Helping
from profilis_mp.sharedlog.inventory import streams_of
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.settings import Settings, check_log_directory
from profilis_mp.sharedlog.stream import StreamPaths

__all__ = ["seal_streams"]


def seal_streams(directory: str, stream: str | None = None, *, timeout_s: float = 5.0) -> dict[str, str | None]:
    """Flush and seal.

    Args:
        directory: The log directory.
        stream: Only this one; None for all.
        timeout_s: Longest wait for each stream's directory lock, seconds.

    Returns:
        For each stream the path of the segment just sealed; None where there was nothing in it.

    Raises:
        LogDirectoryError: The directory cannot be written, or is on a network file system. Nothing was touched.
        LockTimeout: Another process held the lock. This stream, and those after it, were not sealed.
        OSError: What was not flushed is still in its spool.
    """
    log = check_log_directory(directory)
    chosen = [names for names in streams_of(log) if stream in (None, names.stream)]
    return {names.stream: _seal(log, names, timeout_s) for names in chosen}


def _seal(log: str, names: SegmentNames, timeout_s: float) -> str | None:
    # A writer with fsync="seal" or stricter has promised that what is sealed is on the device, and nothing here tells
    # which writers have: so it is.
    settings = replace(Settings.of_operator(log, names), fsync="seal")
    helping = Helping(StreamPaths(log, names.stream), settings, adopt_limits=True)
    stream = helping.stream
    try:
        # What was emitted before the rotation was asked for belongs to the segment that it seals.
        helped = helping.round(timeout_s)
        for failure in [*helped.failures, *helped.not_ours.values()]:
            diagnostics.warn("rotate", f"could not be flushed, its events wait in it: {failure}")
        try:
            stream.acquire(timeout_s)
            sealed = stream.seal()
        finally:
            stream.give_back()
    finally:
        for key, text in stream.notices:
            diagnostics.warn(key, text)
        helping.close()
    return f"{log}/{sealed.text}" if sealed is not None else None

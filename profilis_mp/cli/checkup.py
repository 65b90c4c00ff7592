"""How is a log directory, stream by stream, as seen by somebody who writes nothing?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from profilis_mp.cli.units import counted, show_bytes, show_seconds
from profilis_mp.errors import ConfigError, LogDirectoryError
from profilis_mp.exporters.jsonl import JSONLExporter
from profilis_mp.health import check_exporter_health, monitor_log_directory
from profilis_mp.janitor.upkeep import Upkeep, recall
from profilis_mp.sharedlog.stream import StreamPaths

__all__ = ["Checkup", "checkup", "headline", "rows_of"]

_EXIT_STATUS = {"healthy": 0, "degraded": 1, "unhealthy": 2}


@dataclass(slots=True)
class Checkup:
    """What was found.

    Attributes:
        directory: The log directory.
        status: "healthy", "degraded" or "unhealthy": that of the worst stream.
        error: Why there is nothing to examine; None when there is.
        failures: What could not be looked at, as text.
        streams: For each stream what ``check_exporter_health`` says of it.
    """

    directory: str
    status: str = "healthy"
    error: str | None = None
    failures: list[str] = field(default_factory=list)
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        """0, 1 or 2, as monitors have it."""
        return _EXIT_STATUS[self.status]


def checkup(directory: str, flush_interval: float | None = None) -> Checkup:
    """Examine every stream; takes no lock and changes nothing.

    Args:
        directory: The log directory.
        flush_interval: What the writers were told, seconds; None for the default.
    """
    monitored: Mapping[str, Any] = monitor_log_directory(directory)
    found = Checkup(directory)
    if "error" in monitored:
        return _unusable(found, f"{directory}: {monitored['error']}")
    found.failures = monitored["failures"]
    try:
        for stream, state in monitored["streams"].items():
            with _stand_in(directory, stream, state, flush_interval) as exporter:
                found.streams[stream] = dict(check_exporter_health(exporter))
    except LogDirectoryError as error:
        return _unusable(found, str(error))
    if not found.streams and not found.failures:
        return _unusable(found, f"{directory} holds no log: nobody has written to it yet")
    worst = [one["status"] for one in found.streams.values()] + ["degraded" for _ in found.failures]
    found.status = max(worst, key=lambda status: _EXIT_STATUS[status])
    return found


def headline(one: Mapping[str, Any]) -> str:
    """A stream in a few words: its first problem, or how much there is."""
    if one["problems"]:
        more = len(one["problems"]) - 1
        return f"{one['problems'][0]}{f' (and {more} more)' if more else ''}"
    stream = one["stream"]
    if stream is None:
        return "nothing written yet"
    count, size = _segments(stream)
    waiting = f", {show_bytes(stream['unflushed_bytes'])} unflushed" if stream["unflushed_bytes"] else ""
    # Not by pid: in two containers the same one is two processes. A process has one spool for lines.
    writers = counted(sum(spool["alive"] and spool["kind"] == "lines" for spool in stream["spools"]), "writer")
    return f"{counted(count, 'segment')}, {show_bytes(size)}, {writers}{waiting}"


def rows_of(one: Mapping[str, Any]) -> list[list[str]]:
    """What there is to know about a stream, as labels and texts."""
    rows = [["active segment", f"{os.path.basename(one['current_file'])}, {show_bytes(one['current_file_size'])}"]]
    stream = one["stream"]
    if stream is not None:
        for state, files in stream["segments"].items():
            if files["count"]:
                rows.append(
                    [state.replace("_", " "), f"{counted(files['count'], 'file')}, {show_bytes(files['size_bytes'])}"]
                )
        for spool in stream["spools"]:
            rows.append(["spool", f"{_owner(spool)}, {show_bytes(spool['unflushed_bytes'])} unflushed"])
        rows.append(["leader", _leader(stream)])
        if stream["lag_s"] is not None:
            at_most = "at most " if stream["lag_is"] == "at_most" else ""
            rows.append(["oldest unflushed", f"{at_most}{show_seconds(stream['lag_s'])}"])
    if one["space"] is not None:
        rows.append(["free space", f"{show_bytes(one['space']['free_bytes'])} on {one['file_system']}"])
    if one["inotify"] is not None:
        rows.append(["inotify", f"{one['inotify']['instances']} of {one['inotify']['limit']} instances"])
    return rows


def _stand_in(directory: str, stream: str, state: Mapping[str, Any], flush_interval: float | None) -> JSONLExporter:
    """An exporter of that stream, told what its youngest writer was told, as far as that left it; it writes nothing."""
    told = state["spools"][-1]["limits"] if state["spools"] else {}
    options = {key: told[key] for key in ("rotate_bytes", "rotate_secs", "local_time") if key in told}
    if flush_interval is not None:
        options["flush_interval"] = flush_interval
    try:
        upkeep = recall(StreamPaths(os.path.abspath(directory), stream).state)
    except (ConfigError, OSError):
        upkeep = Upkeep()
    options |= {"max_files": upkeep.max_files, "max_total_bytes": upkeep.max_total_bytes}
    return JSONLExporter(directory, filename_template=unquote(stream), **options)


def _unusable(found: Checkup, error: str) -> Checkup:
    found.status, found.error = "unhealthy", error
    return found


def _segments(stream: Mapping[str, Any]) -> tuple[int, int]:
    kept = [files for state, files in stream["segments"].items() if state not in {"unfinished", "set_aside"}]
    return sum(files["count"] for files in kept), sum(files["size_bytes"] for files in kept)


def _owner(spool: Mapping[str, Any]) -> str:
    if not spool["alive"]:
        return f"process {spool['pid']}, dead"
    return _process(spool)


def _leader(stream: Mapping[str, Any]) -> str:
    leader = stream["leader"]
    if leader is None:
        return "none"
    return _process(leader) if leader["pid"] is not None else "a process that cannot be seen from here"


def _process(one: Mapping[str, Any]) -> str:
    if one["seen_as"] is not None:
        return f"process {one['seen_as']}"
    return f"process {one['pid']}, which cannot be seen from here"  # of another container: here it may be anybody

"""Is an exporter well, and if not, what should be done about it?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Literal, NotRequired, TypedDict

from profilis_mp.errors import ConfigError, LogDirectoryError
from profilis_mp.exporters.jsonl import ExporterStats, JSONLExporter
from profilis_mp.health.findings import Finding, bytes_needed, findings_of_machine, findings_of_stream
from profilis_mp.health.machine import Inotify, Space, inotify_room, kind_of_file_system, permissions, space
from profilis_mp.health.spools import plain
from profilis_mp.health.streams import StreamHealth, look_at_stream
from profilis_mp.sharedlog.inventory import SegmentFile, segment_files
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.settings import check_log_directory
from profilis_mp.sharedlog.stream import StreamPaths

__all__ = ["ExporterHealth", "RotationConfig", "check_exporter_health", "diagnose_rotation_issues"]

_LEVELS: tuple[Literal["unhealthy", "degraded"], ...] = ("unhealthy", "degraded")


class RotationConfig(TypedDict):
    """As the exporter was told: bytes, seconds."""

    rotate_bytes: int
    rotate_secs: float


class ExporterHealth(TypedDict):
    """An exporter, its stream and what both need.

    Keys:
        status: "healthy"; "degraded": something is wrong, see problems; "unhealthy": events cannot be written.
        error: Why it is unhealthy; not there otherwise.
        problems: What is wrong, or just worth knowing, each a sentence that says what to do.
        directory: The log directory, absolute.
        current_file: The active segment, or the one that would be opened now.
        current_file_size: Its bytes; 0 when it is not there.
        rotation_config: See :class:`RotationConfig`.
        stats: What happened in this process; see :class:`~profilis_mp.exporters.jsonl.ExporterStats`. Drops by reason.
        stream: See :class:`~profilis_mp.health.streams.StreamHealth`.
        space: What is free; None where that cannot be told.
        needed_bytes: What the log may still take before retention gives some back.
        file_system: Its kind, such as ``ext4``.
        inotify: How close this user is to the limit; None where that cannot be told.
        permissions: What this process cannot use, or others could, as text.
    """

    status: Literal["healthy", "degraded", "unhealthy"]
    error: NotRequired[str]
    problems: list[str]
    directory: str
    current_file: str
    current_file_size: int
    rotation_config: RotationConfig
    stats: ExporterStats
    stream: StreamHealth
    space: Space | None
    needed_bytes: int
    file_system: str | None
    inotify: Inotify | None
    permissions: list[str]


def check_exporter_health(exporter: JSONLExporter) -> ExporterHealth:
    """How an exporter is. Takes no lock, changes nothing, and raises nothing about the state of the disk.

        >>> import tempfile
        >>> from profilis_mp import JSONLExporter
        >>> with JSONLExporter(dir=tempfile.mkdtemp(), rotate_bytes=1000) as exporter:
        ...     check_exporter_health(exporter)["rotation_config"]
        {'rotate_bytes': 1000, 'rotate_secs': 3600}

    Returns:
        See :class:`ExporterHealth`.

    Raises:
        ConfigError: ``exporter`` is no `JSONLExporter`.
    """
    return _examine(exporter)[0]


def diagnose_rotation_issues(exporter: JSONLExporter) -> list[str]:
    """What hinders rotation, or anything else, each said in a sentence; empty when all is well.

    As :func:`check_exporter_health`, it takes no lock, changes nothing and raises nothing about the state of the disk.

    Raises:
        ConfigError: ``exporter`` is no `JSONLExporter`.
    """
    health, findings = _examine(exporter)
    issues = []
    if any(one.about == "directory" for one in findings):
        issues.append(f"Directory {health['directory']} is not writable")
    limit, room, size = exporter.rotate_bytes, health["space"], health["current_file_size"]
    if room is not None and room["free_bytes"] < limit:
        issues.append(f"Insufficient disk space: {room['free_bytes']} bytes available")
    if size > limit:
        issues.append(f"Current file exceeds rotation size: {size} > {limit}")
    return issues + [one.text for one in findings]


def _examine(exporter: JSONLExporter) -> tuple[ExporterHealth, list[Finding]]:
    if not isinstance(exporter, JSONLExporter):
        raise ConfigError("exporter", f"a {type(exporter).__name__} is no JSONLExporter")
    directory, arguments = exporter.dir, exporter._arguments
    findings: list[Finding] = []
    names = SegmentNames(
        arguments["filename_template"], arguments["app_name"], local_time=bool(arguments["local_time"])
    )
    current = ""
    try:
        check_log_directory(directory)
        current = exporter._get_current_file_path()
    except LogDirectoryError as error:
        findings.append(Finding("directory", "unhealthy", plain(f"{error.path} {error.reason}")))
    except OSError as error:
        findings.append(Finding("directory", "unhealthy", plain(str(error))))
    segments: list[SegmentFile] = []
    try:
        segments = segment_files(directory, names)
    except FileNotFoundError:
        pass  # nothing is on disk before the first event
    except OSError as error:
        findings.append(Finding("directory", "degraded", plain(f"{error}: let this process list the log directory")))
    others = [one.path for one in segments if one.path != current]
    permitted = permissions(StreamPaths(directory, names.stream), current or None, others)
    stream = look_at_stream(directory, names)
    stats, room, inotify = exporter.stats(), space(directory), inotify_room()
    needed = bytes_needed(arguments, sum(one.size for one in segments))
    findings += _findings_of_process(stats)
    findings += [Finding("permissions", "degraded", text) for text in permitted]
    findings += findings_of_machine(room, needed, inotify)
    findings += findings_of_stream(stream, arguments["flush_interval"])
    health: ExporterHealth = {
        "status": next((level for level in _LEVELS if any(one.level == level for one in findings)), "healthy"),
        "problems": [one.text for one in findings],
        "directory": plain(directory),
        "current_file": plain(current),
        "current_file_size": _size_of(current),
        "rotation_config": {"rotate_bytes": exporter.rotate_bytes, "rotate_secs": exporter.rotate_secs},
        "stats": stats,
        "stream": stream,
        "space": room,
        "needed_bytes": needed,
        "file_system": kind_of_file_system(directory),
        "inotify": inotify,
        "permissions": permitted,
    }
    if health["status"] == "unhealthy":
        health["error"] = "; ".join(one.text for one in findings if one.level == "unhealthy")
    return health, findings


def _findings_of_process(stats: ExporterStats) -> Iterator[Finding]:
    if stats["dropped"]:
        told = ", ".join(f"{count} ({reason})" for reason, count in stats["dropped"].items())
        yield Finding(
            "dropped",
            "degraded",
            f"This process dropped {told} events: mend the reason, or raise spool_bytes to bridge it",
        )
    if stats["spool"] == "memory":
        yield Finding(
            "memory",
            "degraded",
            "This process's events are kept in memory and die with it: make room for a spool in the state directory",
        )


def _size_of(path: Any) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0

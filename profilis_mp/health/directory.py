"""What is in a log directory, and how is each stream in it?"""

from __future__ import annotations

import os
import stat
from typing import TypedDict

from profilis_mp.errors import ConfigError
from profilis_mp.health.holders import Holders
from profilis_mp.health.spools import plain
from profilis_mp.health.streams import StreamHealth, look_at_stream
from profilis_mp.sharedlog.inventory import streams_of
from profilis_mp.sharedlog.names import COMPRESSED_SUFFIXES
from profilis_mp.sharedlog.stream import STATE_DIRECTORY

__all__ = ["DirectoryError", "DirectoryHealth", "LogFile", "monitor_log_directory", "path_of"]

_COMPRESSED = tuple(f".jsonl{suffix}" for suffix in COMPRESSED_SUFFIXES)


class LogFile(TypedDict):
    """One plain file: its name, bytes, and when it was last written to, in seconds since the epoch."""

    name: str
    size_bytes: int
    modified: float


class DirectoryHealth(TypedDict):
    """A log directory.

    Keys:
        directory: As given.
        total_size_bytes: Of all ``*.jsonl``, those in subdirectories included.
        total_size_mb: The same in units of 1024 x 1024 bytes.
        file_count: How many these are.
        compressed_size_bytes: Of all ``*.jsonl.gz`` and ``*.jsonl.zst``.
        compressed_count: How many these are.
        files: The ``*.jsonl`` in the directory itself, by name.
        streams: How each stream is, by its name.
        failures: What could not be looked at, as text.
    """

    directory: str
    total_size_bytes: int
    total_size_mb: float
    file_count: int
    compressed_size_bytes: int
    compressed_count: int
    files: list[LogFile]
    streams: dict[str, StreamHealth]
    failures: list[str]


class DirectoryError(TypedDict):
    """There is nothing to monitor, and why."""

    error: str


def path_of(argument: str, value: object) -> str:
    """The path that was given.

    Raises:
        ConfigError: It is none.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise ConfigError(argument, f"must be a path, not {type(value).__name__}")
    path = os.fspath(value)
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConfigError(argument, f"{path!r} is no usable path")
    return path


def monitor_log_directory(dir: str | os.PathLike[str]) -> DirectoryHealth | DirectoryError:
    """What is in a log directory, and how each of its streams is. Takes no lock, changes nothing.

        >>> monitor_log_directory("/nowhere")
        {'error': 'Directory does not exist'}

    Args:
        dir: The log directory.

    Returns:
        See :class:`DirectoryHealth` and :class:`~profilis_mp.health.streams.StreamHealth`; with an "error" instead
        when there is no such directory.

    Raises:
        ConfigError: ``dir`` is no path.
    """
    given = path_of("dir", dir)
    if not os.path.exists(given):
        return {"error": "Directory does not exist"}
    if not os.path.isdir(given):
        return {"error": "Not a directory"}
    log = os.path.abspath(given)
    failures: list[str] = []
    found = _files_below(log, failures)
    all_plain = [file["size_bytes"] for _, file in found if file["name"].endswith(".jsonl")]
    compressed = [file["size_bytes"] for _, file in found if file["name"].endswith(_COMPRESSED)]
    streams: dict[str, StreamHealth] = {}
    try:
        holders = Holders()
        for names in streams_of(log):
            streams[names.stream] = look_at_stream(log, names, holders)
    except OSError as error:
        failures.append(plain(str(error)))
    return {
        "directory": plain(given),
        "total_size_bytes": sum(all_plain),
        "total_size_mb": sum(all_plain) / (1024 * 1024),
        "file_count": len(all_plain),
        "compressed_size_bytes": sum(compressed),
        "compressed_count": len(compressed),
        "files": [file for directory, file in found if directory == log and file["name"].endswith(".jsonl")],
        "streams": streams,
        "failures": failures,
    }


def _files_below(log: str, failures: list[str]) -> list[tuple[str, LogFile]]:
    """Regular log files with the directories they are in, by name; nothing through a symbolic link."""
    found: list[tuple[str, LogFile]] = []
    for directory, below, names in os.walk(log, onerror=lambda error: failures.append(plain(str(error)))):
        below[:] = sorted(name for name in below if name != STATE_DIRECTORY)
        for name in sorted(names):
            if not name.endswith((".jsonl", *_COMPRESSED)):
                continue
            try:
                status = os.lstat(f"{directory}/{name}")
            except OSError:
                continue  # expired or compressed since the listing
            if stat.S_ISREG(status.st_mode):
                file: LogFile = {"name": plain(name), "size_bytes": status.st_size, "modified": status.st_mtime}
                found.append((directory, file))
    return found

"""Which files in a log directory are whose?

A stream's segments are the files that its template can have produced, plain or compressed; whatever else lies in the
directory is nobody's business here. Where two streams' templates could both have produced a file, it is disputed, and
may be read but is never compressed, expired or cleaned up.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from profilis_mp.errors import ConfigError
from profilis_mp.sharedlog.names import COMPRESSED_SUFFIXES, SegmentName, SegmentNames
from profilis_mp.sharedlog.stream import STATE_DIRECTORY

__all__ = ["SegmentFile", "remove_file", "segment_files", "streams_of"]


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """One file that holds a segment, as the directory showed it.

    Attributes:
        path: The file.
        file: Its name in the log directory.
        segment: The segment's name; its text is that of the plain file.
        suffix: What compression added to it, such as ``.gz``; empty for a plain file.
        size: Bytes.
        mtime_ns: When it was last written to, nanoseconds since the epoch.
        identity: Device and inode.
        disputed: Whether another stream's template could have produced it as well.
    """

    path: str
    file: str
    segment: SegmentName
    suffix: str
    size: int
    mtime_ns: int
    identity: tuple[int, int]
    disputed: bool


def streams_of(log: str) -> list[SegmentNames]:
    """The names of every stream that a log directory has state of, in alphabetical order; empty where there is none.

    Raises:
        NotADirectoryError: Something else has the state directory's name.
        OSError: It cannot be listed.
    """
    try:
        listing = sorted(os.listdir(f"{log}/{STATE_DIRECTORY}"))
    except FileNotFoundError:
        return []
    streams = []
    for stream in listing:
        try:
            names = SegmentNames.of_stream(stream)
        except ConfigError:
            continue  # somebody else's directory
        streams.append(names)
    return streams


def segment_files(log: str, names: SegmentNames) -> list[SegmentFile]:
    """All files that hold segments of one stream, the eldest first. Only regular files: no links, no directories.

    A segment that is being compressed right now can be there twice, plain and compressed (the plain one first).

    Raises:
        OSError: The directory cannot be listed.
    """
    try:
        others = [other for other in streams_of(log) if other.stream != names.stream]
    except PermissionError:
        others = []  # another user's state: who may not see it can read segments, but compress or expire nothing
    found = []
    for file in os.listdir(log):
        suffix, segment = "", names.parse(file)
        for candidate in COMPRESSED_SUFFIXES:
            # Another stream's plain file, x.jsonl.gz, is not the compressed form of our x.jsonl.
            if segment is None and file.endswith(candidate) and not any(other.parse(file) for other in others):
                suffix, segment = candidate, names.parse(file.removesuffix(candidate))
        if segment is None:
            continue
        path = f"{log}/{file}"
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue  # expired, or compressed, since the listing
        if stat.S_ISREG(status.st_mode):
            # parse_any: a plain x.jsonl.gz of ours could be the compressed form of another stream's x.jsonl.
            disputed = any(other.parse(segment.text) or other.parse_any(file) for other in others)
            identity = (status.st_dev, status.st_ino)
            found.append(
                SegmentFile(path, file, segment, suffix, status.st_size, status.st_mtime_ns, identity, disputed)
            )
    return sorted(found, key=lambda one: (one.segment.age(), one.suffix))


def remove_file(one: SegmentFile) -> bool:
    """Remove a file if it is still as the directory showed it; returns whether it was.

    Whoever was stopped since that look may find another file under the name: somebody emptied the directory, the names
    began again, and this is the active segment.

    Raises:
        OSError: It cannot be removed.
    """
    try:
        status = os.lstat(one.path)
        seen = (status.st_dev, status.st_ino), status.st_size, status.st_mtime_ns
        if seen != (one.identity, one.size, one.mtime_ns):
            return False
        os.unlink(one.path)
    except FileNotFoundError:
        return False  # somebody else was quicker
    return True

"""What may a writer be told, and what is refused?

Every argument is checked once, at construction, and the error names it. The log directory is looked at but not
touched: a root master that has not dropped its privileges yet must leave nothing behind.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from errno import EACCES, ENAMETOOLONG, ENOTDIR, ENOTSUP
from typing import Any, Literal, Protocol, get_args

from profilis_mp.errors import ConfigError, LogDirectoryError
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.ownership import Access
from profilis_mp.sharedlog.paths import StreamPaths
from profilis_mp.sharedlog.spool import Limits

__all__ = ["Caretaker", "Fsync", "OnFull", "Settings", "check_log_directory", "file_system_of"]

Fsync = Literal["never", "seal", "interval", "always"]
OnFull = Literal["drop", "block"]

_LONGEST_S = 1e9
_LONGEST_PATH = 3500  # bytes; 4096 is Linux's limit, the rest is room for what lies below
_NETWORK_FILE_SYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "glusterfs", "lustre", "ncpfs", "nfs"}
    | {"nfs4", "smb3", "smbfs"}
)


class Caretaker(Protocol):
    """What the leader starts beside its ticking, to look after sealed segments."""

    def start(self) -> bool:
        """Start; returns whether it can."""

    def stop(self, timeout_s: float) -> None:
        """End, waiting at most so long, seconds."""

    def is_opening(self) -> bool:
        """Whether a fork should wait a moment, because something is just being opened."""

    def abandon(self) -> None:
        """In a forked child: close what was inherited."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A writer's configuration, checked. Sizes in bytes, durations in seconds.

    Attributes:
        may_lead: Whether this process may become the stream's leader.
        dir_mode: Permissions of directories; None leaves the log directory to the umask.
        owner: User and group id of what is made; None is nobody in particular. See ``ownership``.
        caretaker: Makes what a leader starts; None for nothing.
        opened: Called once per process when its spool is there; None for nothing.

    Raises:
        ConfigError: Naming the argument that was refused.
    """

    dir: str
    names: SegmentNames
    rotate_bytes: int
    rotate_secs: float
    buffer_size: int
    spool_bytes: int
    flush_interval: float
    lock_timeout: float
    on_full: OnFull
    fsync: Fsync
    file_mode: int
    clock: Callable[[], int] = time.time_ns
    dir_mode: int | None = None
    owner: tuple[int, int] | None = None
    may_lead: bool = True
    caretaker: Callable[[Settings], Caretaker] | None = None
    opened: Callable[[Settings], None] | None = None

    def __post_init__(self) -> None:
        for argument in ("rotate_bytes", "buffer_size", "spool_bytes"):
            _check_number(argument, getattr(self, argument), whole=True)
        for argument in ("rotate_secs", "flush_interval"):
            _check_number(argument, getattr(self, argument), whole=False)
        _check_number("lock_timeout", self.lock_timeout, whole=False, zero=True)
        if self.spool_bytes < self.buffer_size:
            raise ConfigError("spool_bytes", f"{self.spool_bytes} is less than buffer_size ({self.buffer_size})")
        for argument, choices in (("on_full", get_args(OnFull)), ("fsync", get_args(Fsync))):
            if getattr(self, argument) not in choices:
                raise ConfigError(argument, f"{getattr(self, argument)!r} is none of {', '.join(choices)}")
        if not callable(self.clock):
            raise ConfigError("clock", f"{self.clock!r} cannot be called")
        mode: object = self.file_mode
        if not isinstance(mode, int) or isinstance(mode, bool) or not 0o600 <= mode <= 0o777 or mode & 0o600 != 0o600:
            raise ConfigError("file_mode", f"{mode!r} is no mode that its owner can read and write, such as 0o640")
        mode = self.dir_mode
        if mode is not None and (type(mode) is not int or not 0o700 <= mode <= 0o7777 or mode & 0o700 != 0o700):
            raise ConfigError("dir_mode", f"{mode!r} is no mode of a directory that its owner can use, such as 0o750")

    @classmethod
    def of_operator(cls, directory: str, names: SegmentNames, flush_interval: float = 1.0) -> Settings:
        """For whoever writes nothing itself and adopts the limits of each spool that it flushes."""
        access = Access.as_in(StreamPaths(directory, names.stream).state)
        return cls(
            dir=directory,
            names=names,
            rotate_bytes=1,
            rotate_secs=_LONGEST_S,
            buffer_size=1,
            spool_bytes=1,
            flush_interval=flush_interval,
            lock_timeout=0.0,
            on_full="drop",
            fsync="never",
            file_mode=access.file_mode,
            dir_mode=access.dir_mode,
        )

    @property
    def access(self) -> Access:
        """Whose the files are, and who may use them."""
        return Access(self.file_mode, self.dir_mode, self.owner)

    @property
    def limits(self) -> Limits:
        """What the spool tells recovery."""
        return Limits(self.rotate_bytes, self.rotate_ns, self.file_mode, int(self.names.local_time))

    def with_limits(self, limits: Limits) -> Settings:
        """The same under another writer's limits."""
        names = self.names
        if names.local_time != bool(limits.local_time):
            names = SegmentNames.of_stream(names.stream, local_time=bool(limits.local_time))
        return replace(
            self,
            names=names,
            rotate_bytes=limits.rotate_bytes,
            rotate_secs=min(limits.rotate_ns / 1e9, _LONGEST_S),
            file_mode=limits.file_mode,
        )

    @property
    def rotate_ns(self) -> int:
        """``rotate_secs`` in nanoseconds."""
        return max(1, int(self.rotate_secs * 1e9))


def _check_number(argument: str, value: Any, *, whole: bool, zero: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ConfigError(argument, f"{value!r} is not {'an int' if whole else 'a number'}")
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(argument, "is not a number (NaN)")
    if value < 0 or (value == 0 and not zero):
        raise ConfigError(argument, f"{value!r} must be {'0 or more' if zero else 'more than 0'}")
    if whole and value >= 1 << 62:
        raise ConfigError(argument, f"{value!r} is too large")
    if not whole and value > _LONGEST_S:
        raise ConfigError(argument, f"{value!r} s is too long")


def check_log_directory(directory: object) -> str:
    """The log directory's absolute path; nothing is created.

    Raises:
        ConfigError: Not a path.
        LogDirectoryError: It is no directory, cannot be created or written, or is on a network file system.
    """
    if not isinstance(directory, (str, os.PathLike)):
        raise ConfigError("dir", f"must be a path, not {type(directory).__name__}")
    path = os.fspath(directory)
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConfigError("dir", f"{path!r} is no usable path")
    # Absolute from the start: a daemon that changes its directory later still means this one.
    path = os.path.abspath(path)
    try:
        too_long = max(map(len, os.fsencode(path).split(b"/"))) > 255 or len(os.fsencode(path)) > _LONGEST_PATH
    except UnicodeEncodeError:
        raise ConfigError("dir", f"{path!r} is no usable path") from None
    if too_long:
        raise LogDirectoryError(path, ENAMETOOLONG, "has a part of more than 255 bytes, or is too long as a whole")
    nearest = path
    while not os.path.lexists(nearest):
        nearest = os.path.dirname(nearest)
    if not os.path.isdir(nearest):
        raise LogDirectoryError(path, ENOTDIR, f"{nearest} is not a directory")
    if not os.access(nearest, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        action = "written" if nearest == path else "created"
        raise LogDirectoryError(path, EACCES, f"cannot be {action}: no write permission in {nearest}")
    kind = file_system_of(os.path.realpath(nearest))
    if kind in _NETWORK_FILE_SYSTEMS:
        raise LogDirectoryError(
            path,
            ENOTSUP,
            f"is on a network file system ({kind}), where shared maps and locks are not coherent: "
            "log to a local directory on each machine and ship its segments",
        )
    return path


def file_system_of(path: str) -> str | None:
    """The file system type of the mount that ``path`` (resolved) is on; None where that cannot be told."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            lines = mounts.read().splitlines()
    except OSError:
        return None
    best, kind = "", None
    for line in lines:
        before, _, after = line.partition(" - ")
        # Spaces and the like are written as \\040.
        mount_point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split(" ")[4])
        inside = path == mount_point or path.startswith(mount_point.rstrip("/") + "/")
        # Of equals the last counts: it was mounted over the others.
        if inside and len(mount_point) >= len(best):
            best, kind = mount_point, after.split(" ")[0]
    return kind

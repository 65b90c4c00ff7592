"""Does the machine give what the log needs: space, inotify instances, permissions, a local file system?"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import TypedDict

from profilis_mp.health.spools import plain
from profilis_mp.sharedlog.ownership import Access
from profilis_mp.sharedlog.settings import file_system_of
from profilis_mp.sharedlog.stream import STATE_DIRECTORY, StreamPaths

__all__ = ["Inotify", "Space", "inotify_room", "kind_of_file_system", "nearest_directory", "permissions", "space"]


class Space(TypedDict):
    """Room on the log's file system for this user: bytes, and inodes (None where they are not counted)."""

    free_bytes: int
    free_inodes: int | None


class Inotify(TypedDict):
    """How many inotify instances this user's processes hold, at most, and how many it may have."""

    instances: int
    limit: int


def nearest_directory(path: str) -> str:
    """The path itself, or what is there of it: nothing is on disk before the first event."""
    while not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def space(path: str) -> Space | None:
    """The room there is; None where that cannot be told."""
    try:
        status = os.statvfs(nearest_directory(path))
    except OSError:
        return None
    return {
        "free_bytes": status.f_frsize * status.f_bavail,
        "free_inodes": status.f_favail if status.f_files else None,
    }


def kind_of_file_system(path: str) -> str | None:
    """Such as ``ext4``; None where that cannot be told."""
    return file_system_of(os.path.realpath(nearest_directory(path)))


def inotify_room() -> Inotify | None:
    """How close this user is to the limit of inotify instances; None where that cannot be told.

    Processes whose descriptors this one may not see are not counted; an instance shared by a fork is counted twice.
    """
    try:
        with open("/proc/sys/fs/inotify/max_user_instances", encoding="ascii") as limit:
            most = int(limit.read())
        processes = [name for name in os.listdir("/proc") if name.isdecimal()]
    except (OSError, ValueError):
        return None
    return {"instances": sum(map(_instances_of, processes)), "limit": most}


def _instances_of(process: str) -> int:
    instances = 0
    try:
        if os.stat(f"/proc/{process}").st_uid == os.getuid():
            for fd in os.listdir(f"/proc/{process}/fd"):
                try:
                    instances += os.readlink(f"/proc/{process}/fd/{fd}") == "anon_inode:inotify"
                except FileNotFoundError:
                    continue  # closed meanwhile, as is the one that this listing needed
    except OSError:
        pass  # ended, or not ours to look into
    return instances


def permissions(paths: StreamPaths, active: str | None, others: Iterable[str] = ()) -> list[str]:
    """What this process may not use although it must, and what others may use although they should not, as text.

    Args:
        paths: The stream's files.
        active: Its active segment, which this process must be able to append to; None while there is none.
        others: Its other segments, which a leader must be able to compress.
    """
    state, private = [f"{paths.log}/{STATE_DIRECTORY}", paths.state, paths.spools], [paths.lock, paths.control]
    try:
        private += [f"{paths.spools}/{name}" for name in sorted(os.listdir(paths.spools))]
    except OSError:
        pass
    found = []
    # Who may write the segments is meant to use the state directory as well.
    access = Access(_mode_of(active) if active is not None else 0)
    writers = access.private_mode
    users = [path for path in (paths.lock, paths.control, active) if path is not None]
    for path, needed, forbidden, mode in (
        [(paths.log, os.R_OK | os.W_OK | os.X_OK, 0, 0)]
        + [(path, os.R_OK | os.W_OK | os.X_OK, 0o027 & ~writers, 0o750 | writers & 0o027) for path in state]
        + [(path, os.R_OK | os.W_OK, 0o777 & ~writers & 0o077, writers) for path in private]
        + [(path, os.R_OK | os.W_OK, 0, 0) for path in filter(None, [active])]
        + [(path, os.R_OK, 0, 0) for path in others]
    ):
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            found.append(plain(f"{error}: give user {os.geteuid()} access"))
            continue
        actual = stat.S_IMODE(status.st_mode)
        if not os.access(path, needed, effective_ids=os.access in os.supports_effective_ids):
            found.append(
                plain(
                    f"{path} belongs to user {status.st_uid}, mode {actual:04o}: user {os.geteuid()} cannot use it; "
                    "let all writers run as one user, or chown it"
                )
            )
        elif actual & forbidden:
            found.append(plain(f"{path} has mode {actual:04o}, others than its user may change it: chmod {mode:04o}"))
        elif path in users and writers == 0o600 and status.st_uid != _owner_of(paths.state):
            # Root, who looks, may use everything; the writers may not.
            found.append(
                plain(
                    f"{path} belongs to user {status.st_uid} and the state directory to user "
                    f"{_owner_of(paths.state)}: whoever of them is not root cannot use both; chown it"
                )
            )
    return found


def _mode_of(path: str) -> int:
    try:
        return stat.S_IMODE(os.lstat(path).st_mode)
    except OSError:
        return 0


def _owner_of(path: str) -> int | None:
    try:
        return os.lstat(path).st_uid
    except OSError:
        return None

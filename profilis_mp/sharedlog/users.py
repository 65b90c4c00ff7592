"""Which user is meant, and whose is a path that this process may not use?"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from typing import Any

from profilis_mp.errors import ConfigError

__all__ = ["LEAVE", "Owner", "resolve_owner", "show_group", "show_user", "why_not"]

LEAVE = -1
Owner = str | int | tuple[str | int, str | int] | None
"""What ``owner=`` takes."""

_LARGEST_ID = (1 << 32) - 2  # the one above means LEAVE


def resolve_owner(owner: Any) -> tuple[int, int] | None:
    """The user and group id that ``owner=`` means: a user's name or id, "user:group", or a pair of them.

    A user alone stands for himself and his login group; the group is -1 for an id that has no entry.

    Raises:
        ConfigError: There is no such user or group.
    """
    if owner is None:
        return None
    if isinstance(owner, str):
        user, colon, group = owner.partition(":")
        return _ids(owner, user, group if colon else None)
    if isinstance(owner, int):
        return _ids(owner, owner, None)
    if isinstance(owner, tuple | list) and len(owner) == 2 and owner[1] is not None:
        return _ids(owner, *owner)
    raise ConfigError("owner", f"{owner!r} is no user, 'user:group', user id, or (user id, group id)")


def _ids(owner: Any, user: Any, group: Any) -> tuple[int, int]:
    uid = _id(owner, user, "user")
    if group is not None:
        return uid, _id(owner, group, "group")
    try:
        return uid, pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid, LEAVE


def _id(owner: Any, given: Any, kind: str) -> int:
    number = int(given) if isinstance(given, str) and given.isascii() and given.isdecimal() else given
    if isinstance(number, int) and not isinstance(number, bool):
        if 0 <= number <= _LARGEST_ID:
            return number
    elif isinstance(given, str) and given and "\0" not in given:
        try:
            return pwd.getpwnam(given).pw_uid if kind == "user" else grp.getgrnam(given).gr_gid
        except (KeyError, UnicodeError):
            raise ConfigError("owner", f"{owner!r}: there is no {kind} {given!r} here") from None
    raise ConfigError("owner", f"{owner!r}: {given!r} is no {kind}")


def why_not(path: str) -> str:
    """Whose a path is that this process may not use, who this process is, and what can be done about it."""
    culprit, below = path, path
    while culprit != os.path.dirname(culprit):
        below, culprit = culprit, os.path.dirname(culprit)
        if os.path.isdir(culprit) and os.access(culprit, os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            break
    # What is above can be walked through. What is there of the path and cannot be used is to blame, else the directory
    # in which nothing can be made.
    culprit = below if os.path.lexists(below) else culprit
    try:
        status = os.lstat(culprit)
    except OSError as error:
        return str(error)
    me = show_user(os.geteuid())
    return (
        f"{culprit} belongs to {show_user(status.st_uid)}, {show_group(status.st_gid)}, mode "
        f"{stat.S_IMODE(status.st_mode):04o}, and this process runs as {me}: chown it, or give owner= to the process "
        "of root that makes it"
    )


def show_user(uid: int) -> str:
    """Such as ``user www-data``, or ``user 1000`` where the id has no name."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:  # a container that knows only the number
        return f"user {uid}"


def show_group(gid: int) -> str:
    """The same for a group."""
    try:
        return f"group {grp.getgrgid(gid).gr_name}"
    except KeyError:
        return f"group {gid}"

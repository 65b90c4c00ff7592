"""Which events does the caller want, of which streams?  Arguments checked, and made into one question."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from errno import EACCES, ENOENT, ENOTDIR
from typing import Any

from profilis_mp.errors import ConfigError, LogDirectoryError
from profilis_mp.sharedlog.inventory import segment_files, streams_of
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.stream import STATE_DIRECTORY

__all__ = ["Moment", "check_options", "check_readable_directory", "question", "streams_to_read"]

Moment = datetime | int

_DEFAULT_TEMPLATE = "profilis-{timestamp}.jsonl"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def check_readable_directory(directory: object) -> str:
    """The log directory's absolute path.

    Raises:
        ConfigError: Not a path.
        LogDirectoryError: There is no such directory, or it cannot be listed.
    """
    if not isinstance(directory, (str, os.PathLike)):
        raise ConfigError("dir", f"must be a path, not {type(directory).__name__}")
    path = os.fspath(directory)
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConfigError("dir", f"{path!r} is no usable path")
    path = os.path.abspath(path)
    try:
        os.scandir(path).close()
    except FileNotFoundError:
        raise LogDirectoryError(path, ENOENT, "does not exist") from None
    except NotADirectoryError:
        raise LogDirectoryError(path, ENOTDIR, "is not a directory") from None
    except OSError as error:
        raise LogDirectoryError(path, error.errno or EACCES, f"cannot be listed: {error}") from None
    return path


def streams_to_read(log: str, stream: object) -> list[SegmentNames]:
    """The streams that ``stream`` means.

    Without state (somebody copied only the segments) they cannot be told; then it is the default template's.

    Raises:
        ConfigError: ``stream`` is none of this directory's, and not the template of any segment in it.
        LogDirectoryError: Something else has the state directory's name; or only its user may list it, and no stream
            is named.
    """
    try:
        known = streams_of(log)
    except OSError as error:
        path = f"{log}/{STATE_DIRECTORY}"
        if not isinstance(error, PermissionError):
            raise LogDirectoryError(path, error.errno or ENOTDIR, "is not a directory") from None
        if stream is None:
            raise LogDirectoryError(path, EACCES, "may not be listed by this user: name the stream") from None
        known = []
    if stream is None:
        return known or [SegmentNames(_DEFAULT_TEMPLATE)]
    if not isinstance(stream, str):
        raise ConfigError("stream", f"must be a str or None, not {type(stream).__name__}")
    for names in known:
        if stream == names.stream:
            return [names]
    try:
        wanted = SegmentNames(stream)
    except ConfigError as error:
        raise ConfigError("stream", f"{stream!r} is no stream of {log}, and no template: {error.reason}") from None
    if known and wanted.stream not in {names.stream for names in known} and not segment_files(log, wanted):
        there = ", ".join(names.stream for names in known)
        raise ConfigError("stream", f"{stream!r} is no stream of {log}, which has {there}")
    return [wanted]


def check_options(
    order: object, unflushed: object, follow: object, poll_interval: object, stop: object, newest_segments: object
) -> None:
    """Refuse what cannot be, alone or together.

    Raises:
        ConfigError: Naming the argument.
    """
    if order not in ("segment", "time"):
        raise ConfigError("order", f"{order!r} is neither 'segment' nor 'time'")
    for name, value in (("unflushed", unflushed), ("follow", follow)):
        if not isinstance(value, bool):
            raise ConfigError(name, f"{value!r} is neither True nor False")
    if follow and order == "time":
        raise ConfigError("order", "'time' needs an end: not with follow=True")
    if follow and unflushed:
        raise ConfigError("unflushed", "not with follow=True: what is in a spool now comes out of a segment soon")
    number = isinstance(poll_interval, int | float) and not isinstance(poll_interval, bool)
    if not number or not math.isfinite(poll_interval) or not 0 < poll_interval < 1e6:  # type: ignore[arg-type,operator]
        raise ConfigError("poll_interval", f"{poll_interval!r} must be a number of seconds above 0")
    if stop is not None and not callable(stop):
        raise ConfigError("stop", f"{stop!r} cannot be called")
    if newest_segments is not None and (type(newest_segments) is not int or newest_segments < 1):
        raise ConfigError("newest_segments", f"{newest_segments!r} is no number of segments above 0")


def question(since: object, until: object, kinds: object, where: object) -> Callable[[Any], bool] | None:
    """One question for all four arguments; None when every event is wanted.

    Raises:
        ConfigError: Naming the argument.
    """
    earliest, latest = _nanoseconds("since", since), _nanoseconds("until", until)
    wanted = _kinds(kinds)
    if where is not None and not callable(where):
        raise ConfigError("where", f"{where!r} cannot be called")
    if earliest is None and latest is None and wanted is None:
        return where
    low = -math.inf if earliest is None else earliest
    high = math.inf if latest is None else latest
    timed = earliest is not None or latest is not None

    def passes(event: Any) -> bool:
        if type(event) is not dict:
            return False  # it has neither a time nor a kind
        if timed:
            moment = event.get("ts_ns")
            if type(moment) is not int or not low <= moment < high:
                return False
        if wanted is not None:
            kind = event.get("kind")
            if type(kind) is not str or kind not in wanted:
                return False
        return where is None or bool(where(event))

    return passes


def _nanoseconds(argument: str, moment: object) -> int | None:
    if moment is None or (isinstance(moment, int) and not isinstance(moment, bool)):
        return moment
    if not isinstance(moment, datetime):
        raise ConfigError(argument, f"must be a datetime or an int of nanoseconds, not {type(moment).__name__}")
    try:
        aware = moment if moment.tzinfo is not None else moment.astimezone()
        return (aware - _EPOCH) // timedelta(microseconds=1) * 1000  # exact, which timestamp() is not
    except (OverflowError, ValueError, OSError) as error:
        raise ConfigError(argument, f"{moment!r}: {error}") from None


def _kinds(kinds: object) -> frozenset[str] | None:
    if kinds is None:
        return None
    if isinstance(kinds, str):
        return frozenset({kinds})
    if not isinstance(kinds, Collection) or not all(isinstance(kind, str) for kind in kinds):
        raise ConfigError("kinds", f"{kinds!r} must be a str or a collection of str")
    return frozenset(kinds)

"""What waits in which process's spool, for how long, and is that process alive?"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, TypedDict

import orjson

from profilis_mp.health.holders import Holders, pids_of
from profilis_mp.sharedlog.spool import BadSpool, Spool, spool_id_of

__all__ = ["Disagreement", "Lag", "SpoolHealth", "SpoolLimits", "disagreements", "lag_of", "plain", "spools_in"]

_ATTEMPTS = 3
_LONGEST_RECORD = 1 << 20


class SpoolLimits(TypedDict):
    """What its owner's exporter was told: bytes, seconds, a mode such as ``"0o640"``."""

    rotate_bytes: int
    rotate_secs: float
    file_mode: str
    local_time: bool


class SpoolHealth(TypedDict):
    """One spool.

    Keys:
        id: Its file's name.
        pid: Its owner, as that process sees itself. In another container the same number is another process.
        seen_as: The same process's pid as seen from here; None where it cannot be seen: in another container, or dead.
        alive: Whether the owner still holds it. What the dead leave behind is flushed and removed by any helper.
        unflushed_bytes: What is in it and in no segment yet.
        size_bytes: Of the file.
        created: Seconds since the epoch.
        quiet_since: When it was created or, as far as the file system tells, last written to. Seconds since the epoch.
        kind: "lines", or "framed" for opaque records.
        limits: Its owner's.
    """

    id: str
    pid: int
    seen_as: int | None
    alive: bool
    unflushed_bytes: int
    size_bytes: int
    created: float
    quiet_since: float
    kind: Literal["framed", "lines"]
    limits: SpoolLimits


class Disagreement(TypedDict):
    """One value of a setting and the processes that have it."""

    value: int | float | str | bool
    pids: list[int]


class Lag(NamedTuple):
    """How long the oldest unflushed event has been waiting.

    Attributes:
        seconds: So long, or less.
        is_exact: Whether an event told it; otherwise it is the age of the spool, an upper bound.
    """

    seconds: float
    is_exact: bool


def plain(path: str) -> str:
    """A path as text that any encoder takes."""
    return os.fsencode(path).decode("utf-8", "replace")


def spools_in(directory: str, holders: Holders) -> tuple[list[SpoolHealth], list[str]]:
    """The spools of a stream, the eldest first, and what is wrong with those that cannot be read, as text."""
    spools: list[SpoolHealth] = []
    unreadable: list[str] = []
    try:
        listing = sorted(os.listdir(directory))
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [plain(str(error))]
    for name in listing:
        if spool_id_of(name) is None:
            continue  # being created, or set aside
        path = f"{directory}/{name}"
        try:
            spools.append(_look_at(path, holders))
        except FileNotFoundError:
            continue  # drained since the listing
        except (OSError, BadSpool) as reason:
            unreadable.append(plain(f"{path}: {reason}"))
    return sorted(spools, key=lambda one: one["created"]), unreadable


def _look_at(path: str, holders: Holders) -> SpoolHealth:
    spool, holder = Spool.glance(path), holders.of(path)
    names = pids_of(holder.pid) if holder is not None and holder.pid is not None else []
    # A helper that drains a dead process's spool holds its lock meanwhile: it is another process, by whatever name.
    alive = holder is not None and (not names or spool.pid in names)
    limits = spool.limits
    return {
        "id": f"{spool.id:016x}",
        "pid": spool.pid,
        "seen_as": holder.pid if alive and holder is not None else None,
        "alive": alive,
        "unflushed_bytes": spool.unflushed,
        "size_bytes": spool.size,
        "created": spool.created_ns / 1e9,
        "quiet_since": max(spool.created_ns / 1e9, os.lstat(path).st_mtime),
        "kind": "framed" if spool.framed else "lines",
        "limits": {
            "rotate_bytes": limits.rotate_bytes,
            "rotate_secs": limits.rotate_ns / 1e9,
            "file_mode": oct(limits.file_mode),
            "local_time": bool(limits.local_time),
        },
    }


def disagreements(spools: Iterable[SpoolHealth]) -> dict[str, list[Disagreement]]:
    """Settings that differ between living processes: each applies its own at its own flush."""
    pids: dict[str, dict[Any, set[int]]] = {}
    for spool in spools:
        if spool["alive"]:
            for setting, value in spool["limits"].items():
                pids.setdefault(setting, {}).setdefault(value, set()).add(spool["pid"])
    return {
        setting: [{"value": value, "pids": sorted(of)} for value, of in sorted(values.items())]
        for setting, values in pids.items()
        if len(values) > 1
    }


def lag_of(directory: str, spools: Iterable[SpoolHealth]) -> Lag | None:
    """How long the oldest unflushed event of any spool has been waiting; None when nothing waits."""
    lags = [_lag(f"{directory}/{spool['id']}") for spool in spools if spool["unflushed_bytes"]]
    # An exact one of some seconds tells more than an upper bound of some days.
    return max((lag for lag in lags if lag), key=lambda lag: (lag.is_exact, lag.seconds), default=None)


def _lag(path: str) -> Lag | None:
    for attempt in range(_ATTEMPTS):
        try:
            spool = Spool.glance(path)
            if not spool.unflushed:
                return None
            record = _first_record(spool, path)
            if Spool.glance(path).head != spool.head:
                continue  # flushed while we looked
        except (OSError, BadSpool):
            return None
        age_s = max(0.0, (time.time_ns() - spool.created_ns) / 1e9)
        ts_ns = _moment_of(record)
        if ts_ns is not None and spool.created_ns <= ts_ns <= time.time_ns():
            return Lag((time.time_ns() - ts_ns) / 1e9, True)
        # No event, or one whose clock is not ours: older than its spool, or not over yet. Or it was overwritten while
        # we read it.
        if attempt == _ATTEMPTS - 1:
            return Lag(age_s, False)
    return None  # it is being flushed all the time


def _first_record(spool: Spool, path: str) -> bytes:
    start, end = spool.head + spool.frame_bytes, min(spool.tail, spool.head + _LONGEST_RECORD)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.pread(fd, max(0, end - start), start).partition(b"\n")[0]
    finally:
        os.close(fd)


def _moment_of(record: bytes) -> int | None:
    try:
        event = orjson.loads(record)
    except orjson.JSONDecodeError:
        return None
    ts_ns = event.get("ts_ns") if isinstance(event, dict) else None
    return ts_ns if isinstance(ts_ns, int) and not isinstance(ts_ns, bool) else None

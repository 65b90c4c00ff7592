"""How is one stream: its segments, its spools, its leader?"""

from __future__ import annotations

import os
import stat
import time
from typing import Literal, TypedDict

from profilis_mp.health.holders import Holders
from profilis_mp.health.spools import Disagreement, SpoolHealth, disagreements, lag_of, plain, spools_in
from profilis_mp.janitor.compress import is_leftover
from profilis_mp.sharedlog.control import BadControl, Control
from profilis_mp.sharedlog.inventory import segment_files
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.stream import StreamPaths

__all__ = ["STATES", "FilesOfAState", "Leader", "StreamHealth", "look_at_stream"]

State = Literal["active", "sealed", "compressed", "unfinished", "disputed", "set_aside", "unknown"]
STATES: tuple[State, ...] = ("active", "sealed", "compressed", "unfinished", "disputed", "set_aside", "unknown")


class FilesOfAState(TypedDict):
    """How many files there are, and their bytes together."""

    count: int
    size_bytes: int


class Leader(TypedDict):
    """Who leads.

    Keys:
        pid: As seen from here; where it cannot be seen (another container), as it sees itself. None: cannot be told.
        seen_as: As seen from here; None where it cannot be seen.
        since: Since when, in seconds since the epoch.
    """

    pid: int | None
    seen_as: int | None
    since: float | None


class StreamHealth(TypedDict):
    """One stream.

    Keys:
        segments: Files by state: active, sealed (plain), compressed, unfinished (compressed copies not yet
            complete, or their remains), disputed (two streams' templates could have produced them), set_aside (damaged
            state files), unknown (there is no control file to tell active from sealed).
        set_aside: Paths of what was set aside because it could not be trusted.
        damaged: What cannot be read or trusted now, as text.
        spools: One for each writing process, or several; the eldest first.
        unflushed_bytes: In all of them.
        dead_spools: How many of them nobody owns any more.
        leader: None when nobody leads.
        lock_pid: The process that has the directory lock this very moment; None when none is seen to have it.
        heartbeat_age_s: How long ago somebody last looked for spools to flush; None before the first time.
        lag_s: How long the oldest unflushed event has been waiting; None when none waits. Seconds.
        lag_is: "exact", or "at_most" when no event tells and it is the age of its spool.
        settings_disagree: Settings that differ between living processes, each with its values and their pids.
        generation: Counts the segments; None before the first.
        committed: Bytes of the active segment that count; None before the first.
    """

    segments: dict[State, FilesOfAState]
    set_aside: list[str]
    damaged: list[str]
    spools: list[SpoolHealth]
    unflushed_bytes: int
    dead_spools: int
    leader: Leader | None
    lock_pid: int | None
    heartbeat_age_s: float | None
    lag_s: float | None
    lag_is: Literal["exact", "at_most"] | None
    settings_disagree: dict[str, list[Disagreement]]
    generation: int | None
    committed: int | None


def look_at_stream(log: str, names: SegmentNames, holders: Holders | None = None) -> StreamHealth:
    """How a stream is now. Takes no lock, maps nothing, changes nothing."""
    holders = holders or Holders()
    paths = StreamPaths(log, names.stream)
    damaged: list[str] = []
    control = None
    try:
        control = Control.glance(paths.control)
    except FileNotFoundError:
        pass
    except (OSError, BadControl) as reason:
        damaged.append(plain(f"{paths.control}: {reason}"))
    spools, unreadable = spools_in(paths.spools, holders)
    set_aside = [path for directory in (paths.state, paths.spools) for path in _set_aside_in(directory)]
    lag = lag_of(paths.spools, spools)
    lock = holders.seen(paths.lock)
    return {
        "segments": _segments(log, names, control, set_aside, damaged),
        "set_aside": [plain(path) for path in set_aside],
        "damaged": damaged + unreadable,
        "spools": spools,
        "unflushed_bytes": sum(spool["unflushed_bytes"] for spool in spools),
        "dead_spools": sum(not spool["alive"] for spool in spools),
        "leader": _leader(paths, holders),
        "lock_pid": lock.pid if lock is not None else None,
        "heartbeat_age_s": _heartbeat_age_s(control),
        "lag_s": lag.seconds if lag is not None else None,
        "lag_is": None if lag is None else "exact" if lag.is_exact else "at_most",
        "settings_disagree": disagreements(spools),
        "generation": control.generation if control is not None else None,
        "committed": control.committed if control is not None else None,
    }


def _segments(
    log: str, names: SegmentNames, control: Control | None, set_aside: list[str], damaged: list[str]
) -> dict[State, FilesOfAState]:
    found: dict[State, FilesOfAState] = {state: {"count": 0, "size_bytes": 0} for state in STATES}

    def add(state: State, size: int) -> None:
        found[state]["count"] += 1
        found[state]["size_bytes"] += size

    try:
        for one in segment_files(log, names):
            if one.disputed:
                add("disputed", one.size)
            elif one.suffix:
                add("compressed", one.size)
            elif control is None:
                add("unknown", one.size)
            else:
                add("active" if one.file == control.name else "sealed", one.size)
        for file in os.listdir(log):
            segment = is_leftover(file)
            if segment is not None and names.parse(segment) is not None:
                add("unfinished", _size_of(f"{log}/{file}"))
    except FileNotFoundError:
        pass  # nothing is on disk before the first record
    except OSError as error:
        damaged.append(plain(str(error)))
    for path in set_aside:
        add("set_aside", _size_of(path))
    return found


def _set_aside_in(directory: str) -> list[str]:
    try:
        return [f"{directory}/{file}" for file in sorted(os.listdir(directory)) if ".bad-" in file]
    except OSError:
        return []


def _size_of(path: str) -> int:
    try:
        status = os.lstat(path)
    except OSError:
        return 0  # gone meanwhile
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _leader(paths: StreamPaths, holders: Holders) -> Leader | None:
    try:
        holder = holders.of(paths.janitor_lock)
    except OSError:
        return None
    if holder is None:
        return None
    pid, since = holder.pid, None
    try:
        with open(paths.janitor_lock, encoding="ascii", errors="replace") as signed:
            since = os.fstat(signed.fileno()).st_mtime
            text = signed.read(32).strip()
            if pid is None and text.isdecimal():
                pid = int(text)  # as the leader sees itself, in a namespace of its own
    except OSError:
        pass
    return {"pid": pid, "seen_as": holder.pid, "since": since}


def _heartbeat_age_s(control: Control | None) -> float | None:
    if control is None or not control.heartbeat_ns:
        return None
    age_ns = time.monotonic_ns() - control.heartbeat_ns
    return age_ns / 1e9 if age_ns >= 0 else None  # another boot's clock

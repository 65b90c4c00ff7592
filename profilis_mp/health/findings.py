"""What is wrong, how bad is it, and what should be done about it?"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from profilis_mp.health.machine import Inotify, Space
from profilis_mp.health.streams import StreamHealth

__all__ = ["DEAD_S", "LAG_INTERVALS", "Finding", "bytes_needed", "findings_of_machine", "findings_of_stream"]

# An event is in its segment within two flush_intervals as long as anybody of the stream can run; twice that is wrong.
LAG_INTERVALS = 4
# A helper removes a dead process's spool within an interval. A file's time of writing may be 30 s behind a map's.
DEAD_S = 60.0
_FEWEST_INODES = 16


class Finding(NamedTuple):
    """Something that should be otherwise.

    Attributes:
        about: One word for it.
        level: "unhealthy" (events are not written, or soon will not be), "degraded" (something is wrong), "notice"
            (it does no harm yet, and is no reason for an alarm).
        text: A sentence that says what to do.
    """

    about: str
    level: Literal["notice", "degraded", "unhealthy"]
    text: str


def bytes_needed(arguments: Mapping[str, Any], used: int) -> int:
    """The space that the stream may still take before its retention gives some back; one segment at least.

    Args:
        arguments: The exporter's.
        used: Bytes of its segments now.
    """
    segment: int = arguments["rotate_bytes"]
    if arguments.get("max_total_bytes"):
        needed = arguments["max_total_bytes"] - used
    elif arguments.get("max_files"):
        needed = arguments["max_files"] * segment - used
    else:
        needed = 2 * segment
    return int(max(needed, segment))


def findings_of_machine(space: Space | None, needed: int, inotify: Inotify | None) -> Iterator[Finding]:
    """Space, inodes, inotify instances."""
    if space is not None:
        free, inodes = space["free_bytes"], space["free_inodes"]
        if free == 0:
            yield Finding(
                "space", "unhealthy", "The disk is full: make room, or events are dropped once spools are full"
            )
        elif free < needed:
            yield Finding(
                "space",
                "degraded",
                f"{free} bytes are free, the log may need {needed} more before retention frees any: make room, "
                "or lower max_total_bytes, max_files or rotate_bytes",
            )
        if inodes is not None and inodes < _FEWEST_INODES:
            yield Finding(
                "inodes", "degraded", f"Only {inodes} inodes are free: remove some files, a segment needs one"
            )
    if inotify is not None and inotify["instances"] >= inotify["limit"]:
        yield Finding(
            "inotify",
            "degraded",
            f"This user's processes hold {inotify['instances']} of {inotify['limit']} inotify instances: raise "
            "fs.inotify.max_user_instances, or the directory is polled",
        )


def findings_of_stream(stream: StreamHealth, flush_interval: float) -> Iterator[Finding]:
    """Lag, leadership, dead spools, disagreement, damage.

    Args:
        stream: How it is.
        flush_interval: The exporter's, seconds.
    """
    lag_s, waiting, heartbeat_s = stream["lag_s"], stream["unflushed_bytes"], stream["heartbeat_age_s"]
    keeper = f" (process {stream['lock_pid']} has it now)" if stream["lock_pid"] is not None else ""
    late = LAG_INTERVALS * flush_interval
    if lag_s is not None and stream["lag_is"] == "exact" and lag_s > late:
        yield Finding(
            "lag",
            "degraded",
            f"An event has been waiting for {lag_s:.1f} s, {waiting} bytes in all: see whether the disk is full, or a "
            f"process that is stopped keeps the directory lock{keeper}",
        )
    elif waiting and heartbeat_s is not None and heartbeat_s > late and (lag_s is None or lag_s > late):
        # Both: where nobody was for a while, nobody has looked either, and the first to come has not had the time yet.
        yield Finding(
            "lag",
            "degraded",
            f"Nobody has looked for {heartbeat_s:.1f} s after {waiting} bytes that wait: see whether all processes are "
            "stopped or dead, and run `profilis-mp recover`",
        )
    if stream["leader"] is None and lag_s is not None and lag_s > late / 2:
        yield Finding(
            "leader",
            "degraded",
            f"Nobody leads, and {waiting} bytes wait: let one process run threads (uWSGI: --enable-threads), or run "
            "`profilis-mp recover`",
        )
    dead = [one for one in stream["spools"] if not one["alive"] and time.time() - one["quiet_since"] > DEAD_S]
    if dead:
        yield Finding(
            "dead_spools",
            "degraded",
            f"{len(dead)} spools of dead processes (pid {', '.join(str(one['pid']) for one in dead)}) with "
            f"{sum(one['unflushed_bytes'] for one in dead)} bytes in them are left over: run `profilis-mp recover`",
        )
    for text in stream["damaged"]:
        yield Finding("damaged", "degraded", f"{text}: see whose it is and who wrote to it; writers go on without it")
    for setting, values in stream["settings_disagree"].items():
        told = ", ".join(f"{one['value']} (pid {', '.join(map(str, one['pids']))})" for one in values)
        yield Finding("settings", "notice", f"Processes disagree about {setting}: {told}: give all of them the same")
    if stream["set_aside"]:
        yield Finding(
            "set_aside",
            "notice",
            f"Damaged files were set aside: look at {', '.join(stream['set_aside'])}, then remove them",
        )
    disputed = stream["segments"]["disputed"]["count"]
    if disputed:
        yield Finding(
            "disputed",
            "notice",
            f"{disputed} files can be of two streams, and are never compressed or removed: make the templates differ",
        )

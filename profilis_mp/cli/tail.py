"""Which events are the last, without reading the whole log, and how are they and the next ones shown?

The youngest segments are looked into, twice as many each time, until there are enough events in them. One reader then
goes through those and, with ``--follow``, on: nothing comes twice, or is missed, between "the last" and "the next".
"""

from __future__ import annotations

import heapq
import os
import sys
import time
from collections.abc import Callable
from itertools import count, islice
from typing import Any

import click
import orjson

from profilis_mp.cli.show import pretty, printable
from profilis_mp.reader.read import LineReader, read_lines
from profilis_mp.sharedlog.inventory import segment_files, streams_of
from profilis_mp.sharedlog.names import SegmentNames

__all__ = ["show_tail"]

_POLL_S = 0.1
_SLACK_NS = 60 * 10**9
_BEHIND_NS = 2 * 10**9
_COLOURS: dict[str, dict[str, Any]] = {
    "time": {"dim": True},
    "kind": {"fg": "cyan"},
    "error": {"fg": "red", "bold": True},
    "what": {"bold": True},
    "rest": {"dim": True},
}


def show_tail(directory: str, lines: int, *, follow: bool, raw: bool, **chosen: Any) -> LineReader:
    """Print the last events and, with ``follow``, go on until somebody ends it.

    Args:
        directory: The log directory.
        lines: How many.
        follow: Go on.
        raw: Print lines as they are.
        chosen: What ``read_lines`` takes to choose.

    Returns:
        The reader, for its report.
    """
    newest = _how_many_segments(directory, lines, chosen)
    show = bytes if raw else _pretty_with(_style if _in_colour() else None)
    write, flush = sys.stdout.buffer.write, sys.stdout.buffer.flush
    latest = _Latest(lines)
    # Writers that are faster than this reader leave it no quiet moment: then it has caught up once it sees events
    # younger than itself. With several streams that proves nothing about the others.
    one_stream = chosen["stream"] is not None or len(_streams_in(directory)) < 2
    catches_up_ns = time.time_ns() + _BEHIND_NS if follow and one_stream else None
    looks = 0
    caught_up = False

    def show_latest() -> None:
        nonlocal caught_up
        caught_up = True
        for line in latest.in_order():
            write(show(line))

    def at_every_look() -> bool:
        nonlocal looks
        looks += 1
        if looks > 1:  # the first is before anything is read, the second after all that was there
            if not caught_up:
                show_latest()
            flush()
        return False

    reading = read_lines(
        directory,
        follow=follow,
        stop=at_every_look if follow else None,
        poll_interval=_POLL_S,
        newest_segments=newest,
        **chosen,
    )
    for line in reading:
        if caught_up:
            write(show(line))
            continue
        latest.add(line)
        if catches_up_ns is not None and latest.moment > catches_up_ns:
            show_latest()
    show_latest()
    flush()
    return reading


def _how_many_segments(directory: str, lines: int, chosen: dict[str, Any]) -> int:
    """So many of each stream's youngest segments have enough events, or are all that can have any."""
    most = _most_segments(directory, chosen["stream"], chosen["since"])
    newest = 1
    while newest < most:
        with read_lines(directory, newest_segments=newest, **chosen) as reading:
            if sum(1 for _ in islice(reading, lines)) >= lines:
                break
        newest *= 2
    return newest


def _most_segments(directory: str, stream: str | None, since: int | None) -> int:
    """How many segments of a stream there are at most, not counting those that nobody wrote to since then."""
    before_ns = 0 if since is None else since - _SLACK_NS
    counts = []
    for names in _streams_in(directory):
        if stream in (None, names.stream):
            younger = {one.segment for one in segment_files(directory, names) if one.mtime_ns >= before_ns}
            counts.append(len(younger))
    # Without state nobody can tell whose segments these are, but the reader has its ways.
    return max(counts, default=len(os.listdir(directory)))


def _streams_in(directory: str) -> list[SegmentNames]:
    """The streams; none where this user may not list them: the reader says what to do, and needs no list if told."""
    try:
        return streams_of(directory)
    except PermissionError:
        return []


class _Latest:
    """The last lines by the time of their events; those without a time belong to the one before.

    Attributes:
        moment: The time of the line that came last.
    """

    def __init__(self, lines: int) -> None:
        self.moment = 0
        self._lines = lines
        self._heap: list[tuple[int, int, bytes]] = []
        self._numbers = count()

    def add(self, line: bytes) -> None:
        event = _parsed(line)
        moment = event.get("ts_ns") if isinstance(event, dict) else None
        self.moment = moment if type(moment) is int else self.moment
        item = (self.moment, next(self._numbers), line)
        if len(self._heap) < self._lines:
            heapq.heappush(self._heap, item)
        elif self._lines:
            heapq.heappushpop(self._heap, item)

    def in_order(self) -> list[bytes]:
        """Them, once: afterwards there are none."""
        lines = [line for _, _, line in sorted(self._heap)]
        self._heap.clear()
        return lines


def _parsed(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None


def _pretty_with(style: Callable[[str, str], str] | None) -> Callable[[bytes], bytes]:
    def show(line: bytes) -> bytes:
        event = _parsed(line)
        if not isinstance(event, dict):
            return printable(line.decode("utf-8", "replace").rstrip("\n")).encode() + b"\n"
        text = pretty(event, style) if style is not None else pretty(event)
        return text.encode() + b"\n"

    return show


def _style(text: str, role: str) -> str:
    return click.style(text, **_COLOURS.get(role, {})) if text.strip() else text


def _in_colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

"""Which of a stream's files will never change again?  Only those may be compressed, expired or cleaned up."""

from __future__ import annotations

import os

from profilis_mp.errors import LockTimeout
from profilis_mp.sharedlog.control import Control
from profilis_mp.sharedlog.inventory import SegmentFile, segment_files
from profilis_mp.sharedlog.names import SegmentName, SegmentNames
from profilis_mp.sharedlog.stream import Stream

__all__ = ["sealed_files"]


def sealed_files(stream: Stream, timeout_s: float) -> tuple[list[SegmentFile], list[SegmentFile]]:
    """A stream's files, those that are sealed apart from the rest; disputed ones are in either, marked as such.

    Without a trustworthy control file nothing is known to be sealed. Nothing is created then, and no lock is taken.

    Args:
        stream: The caller's own; it does not hold the directory lock.
        timeout_s: Longest wait for the directory lock, which is held only to read the control file. Seconds.

    Returns:
        The sealed ones and the rest (the active segment, and whatever is younger), each the eldest first.

    Raises:
        LockTimeout: Another process kept the lock. Nothing changed.
        OSError: The directory cannot be listed.
    """
    log, names = stream.paths.log, stream.settings.names
    # Listed before the control file is read: a segment that was there then and is not active afterwards is sealed for
    # good. One that is opened after the reading is missing here, however its name compares. The files themselves are
    # looked at last, so that sizes and times are those of sealed files.
    there = set(os.listdir(log))
    active, youngest = _read_control(stream, timeout_s)
    files = segment_files(log, names)
    if youngest is None:
        return [], files
    # Both sides as names tell them: the control file knows a segment's nanosecond, its name may know only the day.
    # Whoever only knows the stream (run_janitor) does not know whether its names are in local time.
    zones = (SegmentNames.of_stream(names.stream, local_time=local) for local in (False, True))
    rendered = (names.parse(zone.render(youngest.stamp_ns, youngest.number).text) for zone in zones)
    horizon = names.parse(active) or max(filter(None, rendered), key=SegmentName.age, default=youngest)
    sealed: list[SegmentFile] = []
    rest: list[SegmentFile] = []
    for one in files:
        known = one.file in there and one.segment.text != active and one.segment.age() <= horizon.age()
        (sealed if known else rest).append(one)
    return sealed, rest


def _read_control(stream: Stream, timeout_s: float) -> tuple[str, SegmentName | None]:
    """The active segment's name (empty: none is open) and the youngest's; None where nothing is known."""
    if stream.peek() is None:
        return "", None
    try:
        stream.acquire(timeout_s)
        return _names_in(stream.control)
    except LockTimeout:
        raise
    except OSError:
        # A full disk: the flush in progress cannot be finished now, and what the caller is about to remove may be what
        # it takes. I5: a slot changes only while the other one is current, and its generation first, so two equal
        # readings are of one moment without the lock too.
        control = stream.peek()
        if control is None:
            return "", None
        generation, found = control.generation, _names_in(control)
        return found if (control.generation, _names_in(control)) == (generation, found) else ("", None)
    finally:
        stream.give_back()


def _names_in(control: Control) -> tuple[str, SegmentName | None]:
    return control.name, control.youngest

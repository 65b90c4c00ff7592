"""How does an event get into the spool in a few dozen bytecodes?

A fast path belongs to a writer for its whole life, whatever spools, forks and closings come: who keeps ``emit`` in a
local keeps the fast one. What changes (which spool, from where, how far, in which process) are variables of the
closures made here, set by the session that holds its own mutex.

``busy`` guards the spool: who finds it False, and in the same breath makes it True, may append. It never blocks, and
needs no call, as a lock would. CPython switches threads and runs signal handlers only when a Python function is
entered, after a call, and at backward jumps, and between the two swapped stores of ``waiting, busy = busy, True`` there
is none of these. (Where there is no GIL, the fast path stays closed.) The append itself has none either, but can still
be interrupted: by a finalizer that the garbage collector runs, by a debugger's trace function. So ``busy`` covers it,
and an exception takes ``busy`` back.

Several doors lead in, each with its own count: that of the exporter, and one for each collector in front of it, so
that a collector's ``enqueue`` costs what ``emit`` costs. A door is passed only in the process in which its owner
opened it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

from profilis_mp.sharedlog.spool import TAIL, Spool

__all__ = ["NO_FAST_PATH", "Door", "Encoding", "FastPath", "fast_path"]

# The lines of `append`, from its `def` on, in which it may have the spool; a test compares them with the source.
_USING = range(19, 33)


class Encoding(NamedTuple):
    """How items become records on the fast path.

    Attributes:
        encode: Called as ``encode(item, None, flags)``; returns one line, newline included. (``orjson.dumps`` fits.)
        flags: Its third argument.
        suspect: A record with these bytes in it is not trusted but goes to ``mend``.
        mend: Called as ``mend(item, record)`` with a suspect record, with None when there is none. Returns one
            line, and raises no Exception.
    """

    encode: Callable[[Any, None, int], bytes]
    flags: int
    suspect: bytes
    mend: Callable[[Any, bytes | None], bytes]


class Door(NamedTuple):
    """One way into the spool.

    Attributes:
        append: Encodes and appends one item.
        passed: How many it has appended itself, in this process and, before the fork, in its parents.
        admit: Takes the fork mark of the process that may pass; False shuts the door.
    """

    append: Callable[[Any], None]
    passed: Callable[[], int]
    admit: Callable[[Any], None]


class FastPath(NamedTuple):
    """What :func:`fast_path` makes. All but ``door``, ``is_busy`` and ``appended`` are for the holder of the mutex.

    Attributes:
        door: Makes a door; takes what gets each line that cannot go the fast way.
        is_busy: Whether an append is under way.
        appended: How many records all doors have appended.
        stop: Sends every append the other way.
        bind: Takes the process's fork mark, its spool, and where to count what is dropped. Caller has stopped it.
        resume: Takes the tail, and the offset in the spool up to which an append needs no thought.
        forked: Whether it was bound in a parent of this process.
        free: Forgets an append that was under way in a parent's thread.
        is_append: Whether a frame is an append that may be using the spool.
    """

    door: Callable[[Callable[[bytes], None]], Door]
    is_busy: Callable[[], bool]
    appended: Callable[[], int]
    stop: Callable[[], None]
    bind: Callable[[Any, Spool | None, dict[str, int]], None]
    resume: Callable[[int, int], None]
    forked: Callable[[], bool]
    free: Callable[[], None]
    is_append: Callable[[FrameType], bool]


def fast_path(encoding: Encoding) -> FastPath:
    """The hot path: closures over everything it needs, because attribute loads would double its cost."""
    encode, flags, suspect, mend = encoding
    suspect_byte = suspect[-1]
    busy = False
    # Before the first record there is no spool, and room is -1.
    words: Any = None
    buffer: Any = None
    tail, room = 0, -1
    bound: Any = None
    dropped: dict[str, int] = {}
    counts: list[Callable[[], int]] = []
    told: list[Callable[[], None]] = []

    def door(otherwise: Callable[[bytes], None]) -> Door:
        owner: Any = True
        mark: Any = bound or False
        count = 0

        def append(item: Any) -> None:
            nonlocal busy, tail, count
            try:
                line = encode(item, None, flags)
                # One byte first: `in` costs a fifth of a search, and most records hold no such byte.
                if suspect_byte in line and line.rfind(suspect) >= 0:
                    line = mend(item, line)
            except Exception as error:
                if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                    raise  # encode is C code, and mend raises nothing: thrown in by a signal handler
                try:
                    line = mend(item, None)
                except RecursionError:
                    dropped["recursion_limit"] = dropped.get("recursion_limit", 0) + 1
                    return
            size = len(line)
            waiting = True
            try:
                # From here to busy = False there is no call and no jump back: see the module.
                waiting, busy = busy, True
                # room before tail: resume() stores them the other way round, so a room that is seen has its tail.
                if not waiting and room >= (end := tail + size) and mark:
                    buffer[tail:end] = line
                    # I3: data before tail. A helper that sees the new tail must find the record complete.
                    tail = words[TAIL] = end
                    count += 1
                    busy = False
                    return
            except BaseException:
                busy = waiting and busy
                raise
            if not waiting:
                busy = False
            try:
                otherwise(line)
            except RecursionError:
                # No stack left for the slow path, nor for a call of our own: count it here.
                dropped["recursion_limit"] = dropped.get("recursion_limit", 0) + 1

        def follow() -> None:
            nonlocal mark
            mark = bound if owner else False

        def admit(by: Any) -> None:
            nonlocal owner
            owner = by
            follow()

        counts.append(lambda: count)
        told.append(follow)
        return Door(append, counts[-1], admit)

    def stop() -> None:
        nonlocal room
        room = -1

    def bind(mark: Any, spool: Spool | None, count_dropped: dict[str, int]) -> None:
        nonlocal words, buffer, bound, dropped
        words = spool.ordered if spool is not None else None
        buffer = spool.bytes if spool is not None else None
        dropped = count_dropped
        bound = mark
        for follow in told:
            follow()

    def resume(new_tail: int, new_room: int) -> None:
        nonlocal tail, room
        tail = new_tail
        room = new_room

    def free() -> None:
        nonlocal busy
        busy = False

    def is_append(frame: FrameType) -> bool:
        # By its line, not by its variables: up to Python 3.12 a look at f_locals has the next trace event of that frame
        # put them all back, those of the closure too, to what they were at the look. (So another writer's append is one
        # as well, and one that found the spool taken: who asks then goes aside, and need not have.)
        code = frame.f_code
        if code.co_name != "append" or code.co_filename != __file__:
            return False
        return frame.f_lineno is not None and frame.f_lineno - code.co_firstlineno in _USING

    return FastPath(
        door,
        lambda: busy,
        lambda: sum([count() for count in counts]),
        stop,
        bind,
        resume,
        lambda: bound is not None and not bound,
        free,
        is_append,
    )


def _no_door(otherwise: Callable[[bytes], None]) -> Door:
    return Door(otherwise, lambda: 0, lambda by: None)


NO_FAST_PATH = FastPath(
    _no_door,
    lambda: False,
    lambda: 0,
    lambda: None,
    lambda mark, spool, dropped: None,
    lambda tail, room: None,
    lambda: False,
    lambda: None,
    lambda frame: False,
)

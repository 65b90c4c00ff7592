"""How does a record get into this process's spool, from any thread, signal handler or fork?

A session belongs to the process that made it and to no fork of it. Two things guard its main spool:

* the **token**, for the fast path: a list of one. Who pops it may append; pushing it gives it back. 30 ns instead of 75
  for a lock, 150 for a ``with``; and it never blocks.
* the **mutex**, for the slow path (flush, rotate, close, a spool that is full): taken by ``with`` only, which no
  exception can come between. Who has it stops the fast path (``room`` -1 sends every append here) and waits until the
  token is there: then no append is under way, and none begins.

Waiting for oneself would be a deadlock: when a signal handler or a finalizer interrupts an append, a flush or a close,
and emits, its record goes to a spool aside, and is as safe when ``emit`` returns as any other. Whether this thread is
what it would be waiting for, its own stack tells.

Exceptions that a signal handler throws into the middle (Ctrl-C, a soft time limit) cost nothing but the record being
appended. CPython runs signal handlers only when a Python function is entered, after a call, and at backward jumps. So
an exception from a ``try`` block that begins with the claim of the token was thrown after the claim, and is answered by
giving the token back; a slow path cut short leaves the fast path stopped, until the next one has put things in order.

Order of locks: mutex, then directory lock.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, Literal, NamedTuple, TypeVar

from profilis_mp import diagnostics
from profilis_mp.errors import LockTimeout
from profilis_mp.forkmark import fork_mark
from profilis_mp.sharedlog.helping import Helper
from profilis_mp.sharedlog.names import SegmentName
from profilis_mp.sharedlog.outbox import Counters, Outbox
from profilis_mp.sharedlog.settings import Settings
from profilis_mp.sharedlog.spool import HEADER_BYTES, TAIL, Spool
from profilis_mp.sharedlog.stream import StreamPaths

__all__ = ["Encoding", "Session", "is_line"]


_T = TypeVar("_T")
_QUIET_S = 0.02


class Encoding(NamedTuple):
    """How items become records on the fast path.

    Attributes:
        kind: The type of the items that ``encode`` is good for; all others go to ``mend``.
        encode: Called as ``encode(item, None, flags)``; returns one line, newline included. (``orjson.dumps`` fits.)
        flags: Its third argument.
        suspect: A record with these bytes in it is not trusted but goes to ``mend``.
        mend: Called as ``mend(item, record)`` with a suspect record, with None when there is none. Returns one
            line, and raises no Exception.
        rebound: Told the fast append whenever there is a new one.
    """

    kind: type
    encode: Callable[[Any, None, int], bytes]
    flags: int
    suspect: bytes
    mend: Callable[[Any, bytes | None], bytes]
    rebound: Callable[[Callable[[Any], None]], None]


def is_line(record: bytes) -> bool:
    """Whether the record is exactly one newline-terminated line."""
    return record.find(b"\n") == len(record) - 1 >= 0


class Session:
    """One process's state; see the module. Nothing is on disk until the first record.

    Args:
        settings: The writer's.
        encoding: For the fast path; None for a writer of bytes.
        opening: Told before the first record touches the disk.
        forward: Appends a record to whatever session is the writer's now, once this one is retired or forked.
        counters: Where to count.
        late: After ``close``: no thread, and every record is flushed at once, because nobody will do it later.

    Attributes:
        mark: Whether this process made the session.
        retired: Closed.
        left_behind: Closed with records in its spool that could not be flushed.
        heir: At most one entry, the session that follows this one (a dict, for its atomic ``setdefault``).
    """

    def __init__(
        self,
        settings: Settings,
        encoding: Encoding | None,
        opening: Callable[[Session], None],
        forward: Callable[[bytes], None],
        counters: Counters,
        *,
        late: bool = False,
    ) -> None:
        self.mark = fork_mark()
        self.retired = False
        self.left_behind = False
        self.heir: dict[str, Session] = {}
        self.counters = counters
        self.helper: Helper | None = None
        self.paths = StreamPaths(settings.dir, settings.names.stream)
        self._settings = settings
        self._encoding = encoding
        self._opening = opening
        self._forward = forward
        self._late = late
        self._outbox = Outbox(self.paths, settings, counters)
        self._mutex = threading.Lock()
        self._waited_in_vain = False
        self._bound: Spool | None = None
        self._fast = _NO_FAST_PATH
        self._inline = False
        self._next_step = 0.0

    # The fast path.

    def bind(self) -> None:
        """Make the fast append for the current spool and tell it to whoever encodes.

        Caller has stopped the elder one, which stays stopped: whoever still has it ends up in ``append_record``.
        """
        encoding, elder = self._encoding, self._fast
        self._bound = self._outbox.spool
        if encoding is not None:
            self._fast = _fast_path(self, self._bound, encoding)
            self.counters.events += elder.appended()
            encoding.rebound(self._fast.append)

    def events(self) -> int:
        """Records accepted since this process started, or was forked."""
        return self.counters.events + self._fast.appended()

    # The slow path.

    def append_record(self, record: bytes) -> None:
        """Append one record with all the care that the fast path leaves out. Raises no Exception of its own."""
        timeout_s = 0.0 if self._waited_in_vain else self._settings.lock_timeout
        if self._alone(timeout_s, partial(self._append_alone, record)):
            return
        if self.retired or not self.mark[0]:
            self._forward(record)
            return
        self._count(self._outbox.append_aside(record))
        self._fast.stop()
        if self.retired:
            self._outbox.close()  # closed meanwhile: nobody else would

    def _append_alone(self, record: bytes) -> bool:
        self._waited_in_vain = False
        outbox = self._outbox
        if outbox.spool is None:
            self._opening(self)
        if self.helper is None and not self._late:
            helper = Helper(self.paths, self._settings, _turn_of(self))
            self._inline = not helper.start()
            self.helper = helper
        if outbox.spool is None:
            outbox.replace(self._settings.spool_bytes)
        line = is_line(record)
        if outbox.aside_used or (not line and outbox.unflushed()):
            outbox.flush(0.0)  # what came first goes first; while the lock is busy, lines queue up aside as well
        append = outbox.append_line if line and not outbox.aside_used else outbox.append_aside
        self._count(append(record) or (outbox.make_room(len(record) if line else 0) and append(record)))
        self._flush_if_due()
        return True

    def _count(self, accepted: bool) -> None:
        if accepted:
            self.counters.events += 1
        else:
            self._outbox.drop()

    def _flush_if_due(self) -> None:
        """Flush when buffer_size is reached, without waiting for the lock: the spool has room. Caller has the mutex."""
        outbox, settings = self._outbox, self._settings
        spool = outbox.spool
        at_once = self._late or settings.fsync == "always"
        if at_once:
            outbox.flush(outbox.patience_s)
        elif spool is not None and spool.used > settings.buffer_size and outbox.may_retry():
            outbox.flush(0.0)
        if self._inline and self.helper is not None and time.monotonic() >= self._next_step:
            self._next_step = time.monotonic() + settings.flush_interval
            if outbox.flush(0.0):
                outbox.mind_its_file()
            self.helper.step(0.0)
        if not at_once and not self._inline:
            self._resume_fast_path()

    def _alone(self, timeout_s: float, work: Callable[[], _T]) -> _T | None:
        """Run ``work`` with the mutex, and with the fast path stopped; returns None when that cannot be had in time."""
        if self._may_enter(timeout_s):
            try:
                with self._mutex:
                    if self._stop_fast_path(timeout_s):
                        return work()
            except Exception:
                if self.mark[0]:
                    raise
                # A signal handler forked in the middle of this, and here is the child: all that was open is abandoned.
        return None

    def _stop_fast_path(self, timeout_s: float) -> bool:
        """Caller has the mutex. Returns whether no append is under way; False too when the session has ended."""
        fast = self._fast
        fast.stop()
        deadline = time.monotonic() + timeout_s
        pause = 0.0
        while not fast.token:
            if self._is_interrupted() or time.monotonic() > deadline:
                return False
            time.sleep(pause)  # 0 at first: the appending thread may only be waiting for the interpreter
            pause = min(pause + 50e-6, 2e-3)
        return not self.retired

    def _resume_fast_path(self) -> None:
        """Say from where and how far the fast path may go. Caller has the mutex, and is done with the spool."""
        spool = self._outbox.spool
        if spool is not self._bound:
            self.bind()
        if spool is not None and not self._outbox.aside_used:
            # A quarter further when a flush did not succeed, so that it is tried again, but not at every event.
            buffer_size, tail = self._settings.buffer_size, spool.tail
            self._fast.resume(tail, min(spool.size, max(HEADER_BYTES + buffer_size, tail + buffer_size // 4)))

    def _may_enter(self, timeout_s: float) -> bool:
        """Wait until the mutex is free; False when this thread has it, the session has ended, or it took too long."""
        deadline = time.monotonic() + timeout_s
        pause = 0.0
        while not self.retired and self.mark[0]:
            if not self._mutex.locked():
                return True
            if self._is_interrupted():
                return False
            if time.monotonic() >= deadline:
                self._waited_in_vain = True  # once; until somebody gets in, the next need not wait again
                return False
            time.sleep(pause)
            pause = min(pause + 50e-6, 2e-3)
        return False

    def _is_interrupted(self) -> bool:
        """Is an append, a flush or a close of this very session further up this thread's stack?"""
        # From above this, who waits, and _alone; past the fast append that may have called append_record.
        frame: FrameType | None = sys._getframe(3)
        if frame is not None and frame.f_code.co_name == "append_record" and frame.f_back is not None:
            above = frame.f_back
            frame = above.f_back if above.f_code.co_name == "append" and _is_of(above, self) else above
        while frame is not None:
            if frame.f_code.co_name in _ENTERING and _is_of(frame, self):
                return True
            frame = frame.f_back
        return False

    # From outside.

    def flush(self, timeout_s: float) -> bool:
        """Flush everything this process has; returns whether it is all in its segment. Raises nothing."""

        def work() -> bool:
            flushed = not self._outbox.spools() or self._outbox.flush(timeout_s)
            self._outbox.mind_its_file()
            self._resume_fast_path()
            return flushed

        return self._alone(timeout_s, work) or False

    def rotate(self, timeout_s: float) -> SegmentName | None:
        """Flush, then seal the active segment; returns its name, None when nothing was in it.

        Raises:
            LockTimeout: Another process or thread held the lock. Nothing was sealed.
            OSError: The flush failed. Nothing was sealed.
        """

        def work() -> tuple[SegmentName | None]:
            try:
                return (self._outbox.rotate(timeout_s),)
            finally:
                self._resume_fast_path()

        done = self._alone(timeout_s, work)
        if done is None:
            raise LockTimeout(self.paths.lock, timeout_s)
        return done[0]

    def help_yourself(self) -> None:
        """Flush what no other process could find. The helper's turn."""
        if self.mark[0] and not self.retired and self._outbox.has_lost_a_file():
            self.flush(0.0)

    def unflushed(self) -> int:
        """Bytes in this process's spools."""
        try:
            return self._outbox.unflushed()
        except ValueError:  # closed meanwhile, by another thread
            return 0

    def spool_kind(self) -> Literal["file", "memory"] | None:
        """ "file", or "memory" when the guarantee is weakened; None before the first record."""
        spool = self._outbox.spool
        return None if spool is None else "memory" if spool.path is None else "file"

    def close(self, timeout_s: float) -> bool:
        """Flush, remove the spool, end the helper. What cannot be flushed stays in the spool for others to flush.

        Returns:
            Whether everything is in its segment.
        """
        if not self.mark[0]:
            return True  # a hook inherited from the parent, whose session this is

        def work() -> None:
            flushed = not self._outbox.spools() or self._outbox.flush(timeout_s)
            self.retired = True
            self.left_behind = not flushed
            self.counters.events += self._fast.appended()
            self._fast = _NO_FAST_PATH
            self._outbox.close()
            diagnostics.debug("closed %s, everything flushed: %s", self.paths.state, flushed)

        self._alone(timeout_s, work)
        helper = self.helper
        if self.retired and helper is not None:
            helper.stop(timeout_s)
            self.helper = None
        return self.retired and not self.left_behind

    # Around a fork, where hooks run.

    def wait_until_quiet(self) -> None:
        """Before a fork: give what is under way a moment to end, so that the child inherits nothing half open.

        Takes nothing, so it promises nothing; and nothing is left held when the fork fails, or an exception is thrown
        into its hooks. A child closes what it inherited, whatever state that was in.
        """
        helper = self.helper
        deadline = time.monotonic() + _QUIET_S
        while self._mutex.locked() or (helper is not None and helper.mutex.locked()):
            if self._is_interrupted() or time.monotonic() > deadline:
                break
            time.sleep(50e-6)

    def abandon(self) -> None:
        """In a forked child: close what was inherited, without unlocking, flushing or stopping what is the parent's."""
        helper, self.helper = self.helper, None
        self._fast.stop()
        if helper is not None:
            helper.close()
        descriptors = self._outbox.descriptors()
        self._outbox.abandon()
        if self._is_interrupted():
            # A signal handler forked, and this child will return into what it interrupted. The maps are closed, so that
            # ends in an error and a new start (_alone); the numbers of the descriptors must not be anyone else's then.
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            for number in descriptors:
                if number != null:
                    os.dup2(null, number, inheritable=False)


class _FastPath(NamedTuple):
    """What :func:`_fast_path` makes.

    Attributes:
        append: Encodes and appends one item.
        token: Empty while an append is under way.
        stop: Sends every append through ``append_record``.
        resume: Takes the tail, and the offset in the spool up to which an append needs no thought.
        appended: How many records it has appended.
    """

    append: Callable[[Any], None]
    token: list[None]
    stop: Callable[[], None]
    resume: Callable[[int, int], None]
    appended: Callable[[], int]


def _fast_path(session: Session, spool: Spool | None, encoding: Encoding) -> _FastPath:
    """The hot path: a closure over everything it needs, because attribute loads would double its cost."""
    kind, encode, flags, suspect, mend, _ = encoding
    suspect_byte = suspect[-1]
    token: list[None] = [None]
    mark, claim, give_back = session.mark, token.pop, token.append
    # Before the first record there is no spool, and room is -1.
    words: Any = spool.ordered if spool is not None else None
    buffer: Any = spool.bytes if spool is not None else None
    tail, room, count = 0, -1, 0
    dropped = session.counters.dropped

    def append(item: Any) -> None:
        nonlocal tail, count
        try:
            line = encode(item, None, flags)
            if type(item) is not kind:
                line = mend(item, None)
            # One byte first: `in` costs a fifth of a search, and most records hold no such byte.
            elif suspect_byte in line and line.rfind(suspect) >= 0:
                line = mend(item, line)
        except Exception as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise  # encode is C code, and mend raises nothing: thrown in by a signal handler
            line = mend(item, None)
        record: bytes | None = line
        try:
            claim()
            # room before tail: resume() stores them the other way round, so a room that is seen has its tail.
            if room >= (end := tail + len(line)) and mark[0]:
                buffer[tail:end] = line
                # I3: data before tail. A helper that sees the new tail must find the record complete.
                words[TAIL] = tail = end
                count += 1
                record = None
        except IndexError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                give_back(None)  # not the claim's own, as above
                raise
        except BaseException:
            give_back(None)  # thrown in after the claim: see the module
            raise
        else:
            give_back(None)
        if record is not None:
            try:
                session.append_record(record)
            except RecursionError:
                # No stack left for the slow path, nor for a call of our own: count it here.
                dropped["recursion_limit"] = dropped.get("recursion_limit", 0) + 1

    def stop() -> None:
        nonlocal room
        room = -1

    def resume(new_tail: int, new_room: int) -> None:
        nonlocal tail, room
        tail = new_tail
        room = new_room

    return _FastPath(append, token, stop, resume, lambda: count)


_NO_FAST_PATH = _FastPath(lambda item: None, [None], lambda: None, lambda tail, room: None, lambda: 0)

# Who claims the token, and who takes the mutex.
_ENTERING = frozenset({"append", "_alone"})


def _is_of(frame: FrameType, session: Session) -> bool:
    names = frame.f_locals
    return frame.f_code.co_filename == __file__ and names.get("session", names.get("self")) is session


def _turn_of(session: Session) -> Callable[[], bool]:
    # Weak: a helper thread must not keep a writer alive that everybody else has forgotten.
    reference = weakref.ref(session)

    def turn() -> bool:
        session = reference()
        if session is not None:
            session.help_yourself()
        return session is not None

    return turn

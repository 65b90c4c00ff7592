"""How does a record get into this process's spool, from any thread, signal handler or fork?

A session belongs to the process that made it and to no fork of it. Its main spool is guarded by a token: a list of
one integer, the spool's tail. Who pops it has the spool's write side; pushing the new tail gives it back. That is a
mutex and a load in one (25 ns instead of 75 for a lock, 150 for a ``with``). It never blocks, which makes two awkward
cases plain:

* the list is empty and another thread has the token: wait for it, in ``_claim``;
* the list is empty and this very thread has it, further up the stack (a signal handler or a finalizer interrupted an
  append, and emits): waiting would be a deadlock, so the record goes to a spool aside, and is as safe when ``emit``
  returns as any other.

An exception thrown into an append by a signal handler (Ctrl-C, a soft time limit) must not lose the token. CPython
runs signal handlers only after calls and at backward jumps, so an exception from a ``try`` block that begins with the
claim was thrown after the claim, and the handler gives the token back.

Order of locks: token, helper's mutex, directory lock.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, Literal, NamedTuple

from profilis_mp import diagnostics
from profilis_mp.errors import LockTimeout
from profilis_mp.forkmark import fork_mark
from profilis_mp.sharedlog.helping import Helper
from profilis_mp.sharedlog.names import SegmentName
from profilis_mp.sharedlog.outbox import Counters, Outbox
from profilis_mp.sharedlog.settings import Settings
from profilis_mp.sharedlog.spool import TAIL, Spool
from profilis_mp.sharedlog.stream import StreamPaths

__all__ = ["Encoding", "Session", "is_line"]


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
        forward: Appends a record to whatever session is the writer's now, once this one is retired or forked.
        counters: Where to count.
        late: After ``close``: no thread, and every record is flushed at once, because nobody will do it later.

    Attributes:
        mark: Whether this process made the session.
        retired: Closed; its token is never given back.
        heir: At most one entry, the session that follows this one (a dict, for its atomic ``setdefault``).
    """

    def __init__(
        self,
        settings: Settings,
        encoding: Encoding | None,
        forward: Callable[[bytes], None],
        counters: Counters,
        *,
        late: bool = False,
    ) -> None:
        self.mark = fork_mark()
        self.retired = False
        self.heir: dict[str, Session] = {}
        self.counters = counters
        self.helper: Helper | None = None
        self.paths = StreamPaths(settings.dir, settings.names.stream)
        self._settings = settings
        self._encoding = encoding
        self._forward = forward
        self._late = late
        self._outbox = Outbox(self.paths, settings, counters)
        self._bound: Spool | None = None
        self._token = [0]
        self._fast = _NO_FAST_PATH
        self._inline = False
        self._next_step = 0.0

    # The fast path.

    def bind(self) -> None:
        """Make the fast append for the current spool and tell it to whoever encodes."""
        spool = self._bound = self._outbox.spool
        # A new list: whoever still has the old fast append finds the old list empty, now and for ever.
        self._token = [] if spool is not None else self._token
        if self._encoding is not None:
            self._count_fast()
            self._fast = _fast_path(self, spool, self._token, self._encoding)
            self._encoding.rebound(self._fast.append)

    def _count_fast(self) -> None:
        """Add up what the fast path has counted by itself, and end it. Caller holds the token."""
        fast, self._fast = self._fast, _NO_FAST_PATH
        self.counters.events += fast.appended()

    def events(self) -> int:
        """Records accepted since this process started, or was forked."""
        return self.counters.events + self._fast.appended()

    # The slow path.

    def append_record(self, record: bytes) -> None:
        """Append one record with all the care that the fast path leaves out. Raises no Exception."""
        if self.retired or not self.mark[0]:
            self._forward(record)
        elif self._claim(self._settings.lock_timeout):
            try:
                self._append_claimed(record)
            finally:
                self._give_back()
        elif self.retired:
            self._forward(record)
        else:
            self._count(self._outbox.append_aside(record))
            self._fast.set_room(-1)

    def _append_claimed(self, record: bytes) -> None:
        """Caller holds the token."""
        outbox = self._outbox
        spool = outbox.spool or self._open()
        line = is_line(record)
        if outbox.aside_used or (not line and spool.unflushed):
            self._outbox.flush(0.0)  # what came first goes first, if the lock is free
        append = self._append_line if line else outbox.append_aside
        self._count(append(record) or (outbox.make_room(len(record)) and append(record)))
        self._flush_if_due()

    def _append_line(self, record: bytes) -> bool:
        spool = self._outbox.spool
        return spool is not None and spool.append(record)

    def _count(self, accepted: bool) -> None:
        if accepted:
            self.counters.events += 1
        else:
            self._outbox.drop()

    def _flush_if_due(self) -> None:
        """Flush when buffer_size is reached, without waiting for the lock: the spool has room. Caller has the token."""
        outbox, settings = self._outbox, self._settings
        spool = outbox.spool
        at_once = self._late or settings.fsync == "always"
        if at_once:
            outbox.flush(outbox.patience_s)
        elif spool is not None and spool.unflushed > settings.buffer_size and outbox.may_retry():
            self._outbox.flush(0.0)
        if self._inline and self.helper is not None and time.monotonic() >= self._next_step:
            self._next_step = time.monotonic() + settings.flush_interval
            if outbox.flush(0.0):
                outbox.mind_its_file()
            self.helper.step(0.0)
        self._after_flush(at_once)

    def _after_flush(self, at_once: bool = False) -> None:
        """Rebind after the outbox took another spool; say how far the fast path may go. Caller holds the token."""
        spool = self._outbox.spool
        if spool is not self._bound:
            self.bind()
        if spool is None or at_once or self._inline or self._outbox.aside_used:
            self._fast.set_room(-1)
        else:
            # A quarter further when the flush did not succeed, so that it is tried again, but not at every event.
            buffer_size = self._settings.buffer_size
            self._fast.set_room(min(spool.size, max(spool.head + buffer_size, spool.tail + buffer_size // 4)))

    def _open(self) -> Spool:
        """The first record: create the spool, start the helper. Caller holds the token."""
        outbox = self._outbox
        outbox.replace(self._settings.spool_bytes)
        if self.helper is None and not self._late:
            self.helper = Helper(self.paths, self._settings, _turn_of(self))
            self._inline = not _start_thread(self.helper)
        assert outbox.spool is not None, "replace leaves one, in memory at the least"
        return outbox.spool

    # The token.

    def _claim(self, timeout_s: float) -> bool:
        """Take the token; False when this thread has it already, the session is retired, or the wait was too long."""
        pause = 0.0
        started = time.monotonic()
        while True:
            try:
                self._token.pop()
            except IndexError as error:
                if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                    self._give_back()  # as in the fast path
                    raise
            except BaseException:
                self._give_back()
                raise
            else:
                return True
            if self.retired or self._is_interrupted() or time.monotonic() - started > timeout_s:
                return False
            time.sleep(pause)  # 0 at first: the holder may only be waiting for the interpreter
            pause = min(pause + 50e-6, 2e-3)

    def _give_back(self) -> None:
        spool = self._bound
        self._token.append(spool.tail if spool is not None else 0)

    def _is_interrupted(self) -> bool:
        """Is an append, flush or close of this very session further up this thread's stack?"""
        # From the caller of whoever claims: append_record, which its fast append may have called, flush, rotate …
        frame: FrameType | None = sys._getframe(3)
        if frame is not None and frame.f_code.co_name == "append" and _is_of(frame, self):
            frame = frame.f_back
        while frame is not None:
            if frame.f_code.co_name in _HOLDERS and _is_of(frame, self):
                return True
            frame = frame.f_back
        return False

    # From outside.

    def flush(self, timeout_s: float) -> bool:
        """Flush everything this process has; returns whether it is all in its segment. Raises nothing."""
        if self.retired or not self.mark[0] or not self._claim(timeout_s):
            return False
        try:
            flushed = not self._outbox.spools() or self._outbox.flush(timeout_s)
            self._outbox.mind_its_file()
            self._after_flush()
            return flushed
        finally:
            self._give_back()

    def rotate(self, timeout_s: float) -> SegmentName | None:
        """Flush, then seal the active segment; returns its name, None when nothing was in it.

        Raises:
            LockTimeout: Another process or thread held the lock. Nothing was sealed.
            OSError: The flush failed. Nothing was sealed.
        """
        if not self._claim(timeout_s):
            raise LockTimeout(self.paths.lock, timeout_s)
        try:
            return self._outbox.rotate(timeout_s)
        finally:
            self._give_back()

    def help_yourself(self) -> None:
        """Flush what no other process could find. The helper's turn."""
        if self.mark[0] and not self.retired and self._outbox.has_lost_a_file():
            self.flush(0.0)

    def unflushed(self) -> int:
        """Bytes in this process's spools."""
        return sum(spool.unflushed for spool in self._outbox.spools())

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
        if self.retired or not self._claim(timeout_s):
            return self.retired
        # The token is never given back: whoever finds the list empty sees `retired` and goes to the heir.
        self.retired = True
        self._count_fast()
        flushed = not self._outbox.spools() or self._outbox.flush(timeout_s)
        self._outbox.close()
        diagnostics.debug("closed %s, everything flushed: %s", self.paths.state, flushed)
        helper, self.helper = self.helper, None
        if helper is not None:
            helper.stop(timeout_s)
        return flushed

    # Around a fork, where hooks run.

    def before_fork(self) -> tuple[bool, bool]:
        """Take token and helper's mutex, so that no thread of ours holds the directory lock at the fork."""
        timeout_s = self._settings.lock_timeout
        token = not self.retired and self._claim(timeout_s)
        helper = self.helper
        return token, helper is not None and helper.mutex.acquire(timeout=timeout_s)

    def after_fork_in_parent(self, token: bool, mutex: bool) -> None:
        """Give back what ``before_fork`` took."""
        if mutex and self.helper is not None:
            self.helper.mutex.release()
        if token:
            self._give_back()

    def abandon(self) -> None:
        """In a forked child: close what was inherited, without unlocking, flushing or stopping what is the parent's."""
        helper, self.helper = self.helper, None
        if helper is not None:
            helper.close()
        self._outbox.abandon()


class _FastPath(NamedTuple):
    """What :func:`_fast_path` makes.

    Attributes:
        append: Encodes and appends one item.
        set_room: Says up to which tail an append needs no thought; -1 sends every one through ``append_record``.
        appended: How many records it has appended.
    """

    append: Callable[[Any], None]
    set_room: Callable[[int], None]
    appended: Callable[[], int]


def _fast_path(session: Session, spool: Spool | None, token: list[int], encoding: Encoding) -> _FastPath:
    """The hot path: a closure over everything it needs, because attribute loads would double its cost."""
    kind, encode, flags, suspect, mend, _ = encoding
    suspect_byte = suspect[-1]
    mark, claim, give_back = session.mark, token.pop, token.append
    # Before the first record there is no spool, and room is -1.
    words: Any = spool.ordered if spool is not None else [0] * (TAIL + 1)
    buffer: Any = spool.bytes if spool is not None else None
    room, count = -1, 0

    def append(item: Any) -> None:
        nonlocal count
        try:
            record = encode(item, None, flags)
            if type(item) is not kind:
                record = mend(item, None)
            # One byte first: `in` costs a fifth of a search, and most records hold no such byte.
            elif suspect_byte in record and record.rfind(suspect) >= 0:
                record = mend(item, record)
        except Exception:
            record = mend(item, None)
        try:
            tail = claim()
            end = tail + len(record)
            if end <= room and mark[0]:
                buffer[tail:end] = record
                # I3: data before tail. A helper that sees the new tail must find the record complete.
                words[TAIL] = tail = end
                count += 1
        except IndexError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                give_back(words[TAIL])  # not the claim's own: thrown in by a signal handler
                raise
            session.append_record(record)
            return
        except BaseException:
            give_back(words[TAIL])  # thrown in after the claim: see the module
            raise
        give_back(tail)
        if tail != end:
            session.append_record(record)

    def set_room(tail: int) -> None:
        nonlocal room
        room = tail

    return _FastPath(append, set_room, lambda: count)


_NO_FAST_PATH = _FastPath(lambda item: None, lambda tail: None, lambda: 0)

_HOLDERS = frozenset({"append", "_append_claimed", "flush", "rotate", "close", "before_fork"})


def _is_of(frame: FrameType, session: Session) -> bool:
    names = frame.f_locals
    return names.get("session", names.get("self")) is session


def _turn_of(session: Session) -> Callable[[], None]:
    # Weak: a helper thread must not keep a writer alive that everybody else has forgotten.
    reference = weakref.ref(session)

    def turn() -> None:
        session = reference()
        if session is not None:
            session.help_yourself()

    return turn


def _start_thread(helper: Helper) -> bool:
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is not None and not getattr(uwsgi, "has_threads", 1):
        return False  # without --enable-threads before 2.0.27: a thread would start and hardly ever run
    try:
        helper.start()
    except RuntimeError:  # the interpreter is shutting down, or the system has no threads left
        return False
    return True

"""How does a record get into this process's spool, from any thread, signal handler or fork?

A session belongs to the process that made it and to no fork of it. Two things guard its main spool:

* ``busy``, for the fast path: see `profilis_mp.sharedlog.fastpath`.
* the **mutex**, for the slow path (flush, rotate, close, a spool that is full): taken by ``with`` only, which no
  exception can come between. Who has it stops the fast path (``room`` -1 sends every append here) and waits until
  nobody is busy: then no append is under way, and none begins.

Waiting for oneself would be a deadlock: when a signal handler or a finalizer interrupts an append, a flush or a close,
and emits, its record goes to a spool aside, and is as safe when ``emit`` returns as any other. Whether this thread is
what it would be waiting for, its own stack tells.

Exceptions that a signal handler throws into the middle (Ctrl-C, a soft time limit) cost nothing but the record being
appended: a slow path cut short leaves the fast path stopped, until the next one has put things in order.

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
from typing import Literal, TypeVar

from profilis_mp import diagnostics
from profilis_mp.errors import LockTimeout
from profilis_mp.forkmark import fork_mark
from profilis_mp.sharedlog.counters import Counters
from profilis_mp.sharedlog.fastpath import FastPath
from profilis_mp.sharedlog.helper import Helper
from profilis_mp.sharedlog.helping import Helping
from profilis_mp.sharedlog.names import SegmentName
from profilis_mp.sharedlog.outbox import Outbox
from profilis_mp.sharedlog.settings import Settings
from profilis_mp.sharedlog.spool import HEADER_BYTES, Spool
from profilis_mp.sharedlog.stream import StreamPaths
from profilis_mp.threads import is_serving, no_thread_ever

__all__ = ["Session", "is_line"]


_T = TypeVar("_T")
_QUIET_S = 0.02


def _has_gil() -> bool:
    # An extension module may bring it back later; the slow path is as safe then.
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())  # since Python 3.13


def is_line(record: bytes) -> bool:
    """Whether the record is exactly one newline-terminated line."""
    return record.find(b"\n") == len(record) - 1 >= 0


class Session:
    """One process's state; see the module. Nothing is on disk until the first record.

    Args:
        settings: The writer's.
        fast: The writer's fast path.
        opening: Told before the first record touches the disk.
        forward: Appends a record to whatever session is the writer's now, once this one is retired or forked.
        counters: Where to count.
        late: After ``close``: no thread, and every record is flushed at once, because nobody will do it later.
        behind: The session before this one left records behind, which go out before those of this one.

    Attributes:
        mark: Whether this process made the session.
        retired: Closed.
        left_behind: Closed with records in its spool that could not be flushed.
        heir: At most one entry, the session that follows this one (a dict, for its atomic ``setdefault``).
    """

    def __init__(
        self,
        settings: Settings,
        fast: FastPath,
        opening: Callable[[Session], None],
        forward: Callable[[bytes], None],
        counters: Counters,
        *,
        late: bool = False,
        behind: bool = False,
    ) -> None:
        self.mark = fork_mark()
        self.retired = False
        self.left_behind = False
        self.heir: dict[str, Session] = {}
        self.counters = counters
        self.helper: Helper | None = None
        self.paths = StreamPaths(settings.dir, settings.names.stream)
        self._settings = settings
        self._opening = opening
        self._forward = forward
        self._late = late
        self._at_once = late or settings.fsync == "always"
        self._outbox = Outbox(self.paths, settings, counters)
        if behind:
            self._outbox.elders = partial(_flush_spools, self.paths, settings)
        self._mutex = threading.Lock()
        self._waited_in_vain = False
        self._bound: Spool | None = None
        self._has_gil = _has_gil()
        self._fast = fast
        self._opened = False
        self._inline: bool | None = None
        self._next_step = 0.0

    def events(self) -> int:
        """Records accepted since this process started, or was forked."""
        return self.counters.events + self._fast.appended()

    # The slow path.

    def append_record(self, record: bytes) -> None:
        """Append one record with all the care that the fast path leaves out. Raises no Exception of its own."""
        # From a finalizer in a helper's thread, which may have the directory lock: who has the mutex waits for that.
        timeout_s = 0.0 if self._waited_in_vain or is_serving() else self._settings.lock_timeout
        if self._alone(timeout_s, partial(self._append_alone, record)):
            return
        if self.retired or not self.mark:
            self._forward(record)
            return
        try:
            accepted = self._outbox.append_aside(record)
        except Exception:
            if self.mark:
                raise
            self._forward(record)  # as in _alone: a signal handler forked, and here is the child
            return
        self._count(accepted)
        self._fast.stop()
        if self.retired:
            self._outbox.close()  # closed meanwhile: nobody else would

    def _append_alone(self, record: bytes) -> bool:
        self._waited_in_vain = False
        outbox = self._outbox
        self._begin()
        if outbox.spool is None:
            outbox.replace(self._settings.spool_bytes)
            if self._settings.opened is not None:
                self._settings.opened(self._settings)
        line = is_line(record)
        if outbox.aside.used or (not line and outbox.unflushed()):
            outbox.flush(0.0)  # what came first goes first; while the lock is busy, lines queue up aside as well
        append = outbox.append_line if line and not outbox.aside.used else outbox.append_aside
        self._count(append(record) or (outbox.make_room(len(record) if line else 0) and append(record)))
        try:
            self._flush_if_due()
        except RecursionError:
            pass  # it is in the spool, and must not be counted as dropped; the next record looks after the rest
        return True

    def _begin(self) -> None:
        """Have a helper, and be closed at exit. Cut short by a signal handler's exception, it is done again."""
        if not self._opened:
            self._opening(self)
            self._opened = True
        if self.helper is None and not self._late:
            self.helper = Helper(self.paths, self._settings, _turn_of(self))
        if self.helper is not None and self._inline is None:
            self._start_helper()
            if self._inline and self._settings.caretaker is not None and no_thread_ever():
                diagnostics.warn(
                    "no_caretaker",
                    f"{self._settings.dir}: this process neither compresses nor expires anything, because uWSGI lets "
                    "no thread run in it: let `profilis-mp janitor` do it, or give uWSGI --enable-threads",
                )

    def _start_helper(self) -> None:
        if self.helper is not None:
            self._inline = not self.helper.start()  # cut short, it is started again, and still runs once

    def _count(self, accepted: bool) -> None:
        if accepted:
            self.counters.events += 1
        else:
            self._outbox.drop()

    def _flush_if_due(self) -> None:
        """Flush when buffer_size is reached, without waiting for the lock: the spool has room. Caller has the mutex."""
        outbox, settings = self._outbox, self._settings
        spool = outbox.spool
        self.call_helper_back()  # a signal handler's exception may have cut the hook short that should have
        if self._at_once:
            outbox.flush(outbox.patience_s)
        elif spool is not None and spool.used > settings.buffer_size and outbox.may_retry():
            outbox.flush(0.0)
        if self._inline and self.helper is not None and time.monotonic() >= self._next_step:
            self._next_step = time.monotonic() + settings.flush_interval
            if outbox.flush(0.0):
                outbox.mind_its_file()
            # Perhaps now: uWSGI's first process has become a worker, or other threads have ended.
            self._start_helper()
            if self._inline:
                self.helper.step(0.0)
        self._resume_fast_path()

    def _alone(self, timeout_s: float, work: Callable[[], _T]) -> _T | None:
        """Run ``work`` with the mutex, and with the fast path stopped; returns None when that cannot be had in time."""
        if self._may_enter(timeout_s):
            try:
                with self._mutex:
                    if self._stop_fast_path(timeout_s):
                        return work()
            except Exception:
                if self.mark:
                    raise
                # A signal handler forked in the middle of this, and here is the child: all that was open is abandoned.
        return None

    def _stop_fast_path(self, timeout_s: float) -> bool:
        """Caller has the mutex. Returns whether no append is under way; False too when the session has ended."""
        fast = self._fast
        fast.stop()
        deadline = time.monotonic() + timeout_s
        pause = 0.0
        while fast.is_busy():
            if self._is_interrupted():
                return False
            if fast.forked():
                fast.free()  # the thread that was appending is the parent's
                break
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)  # 0 at first: the appending thread may only be waiting for the interpreter
            pause = min(pause + 50e-6, 2e-3)
        return not self.retired

    def _resume_fast_path(self) -> None:
        """Say from where and how far the fast path may go. Caller has the mutex, and is done with the spool."""
        spool = self._outbox.spool
        if spool is not self._bound:
            # Cut short by an exception, it is done again by the next resume.
            self._fast.bind(self.mark, spool, self.counters.dropped)
            self._bound = spool
        if self._at_once or self._inline:
            return  # each record takes the slow path, which flushes it, or looks at the time
        if spool is not None and not self._outbox.aside.used and self._has_gil:
            # Half as far again when a flush did not succeed: it is tried again, but ever more seldom. Of sixteen
            # processes on two cores, one keeps the lock while it waits for a processor, and each try costs 25 us.
            at_least, tail = HEADER_BYTES + self._settings.buffer_size, spool.tail
            self._fast.resume(tail, min(spool.size, max(at_least, tail + spool.used // 2)))
            if self._outbox.aside.used:
                self._fast.stop()  # set meanwhile by who could not get in: what comes after that must not overtake it

    def _may_enter(self, timeout_s: float) -> bool:
        """Wait until the mutex is free; False when this thread has it, the session has ended, or it took too long."""
        deadline = time.monotonic() + timeout_s
        pause = 0.0
        while not self.retired and self.mark:
            if not self._mutex.locked():
                return True
            if self._is_interrupted():
                return False
            if time.monotonic() >= deadline:
                self._waited_in_vain |= timeout_s > 0  # once; until somebody gets in, the next need not wait again
                return False
            time.sleep(pause)
            pause = min(pause + 50e-6, 2e-3)
        return False

    def _is_interrupted(self) -> bool:
        """Is an append, a flush or a close of this very session further up this thread's stack?

        Or an append of the parent's: a signal handler may have forked there, and this child will return into it.
        """
        frame: FrameType | None = sys._getframe(1)  # who waits
        for _ in range(2):  # and _alone, or who called. Nothing is above a hook when C code forks: uWSGI, a bare thread
            frame = frame.f_back if frame is not None else None
        while frame is not None:
            if frame.f_code.co_name == "_alone" and _is_of(frame, self):
                return True
            if self._fast.is_append(frame):
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
        """Flush what no other process could find, and keep no segment open that is gone. The helper's turn."""

        def let_go() -> None:
            self._outbox.let_go()
            self._resume_fast_path()

        if self.mark and not self.retired:
            if self._outbox.is_nobody_elses():
                self.flush(0.0)
            if self._outbox.keeps_a_removed_segment():
                self._alone(0.0, let_go)

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
        if not self.mark:
            return True  # a hook inherited from the parent, whose session this is

        def work() -> None:
            flushed = not self._outbox.spools() or self._outbox.flush(timeout_s)
            self.retired = True
            self.left_behind = not flushed
            self._outbox.close()
            diagnostics.debug("closed %s, everything flushed: %s", self.paths.state, flushed)

        self._alone(timeout_s, work)
        helper = self.helper
        if self.retired and helper is not None:
            helper.stop(timeout_s)
            self.helper = None
        return self.retired and not self.left_behind

    # Around a fork.

    def take_part(self) -> None:
        """Help the others from now on, though nothing was appended here; not in a stream that is not on disk yet."""

        def work() -> None:
            if self.helper is not None or os.path.isdir(self.paths.state):
                self._begin()
                if self._inline:
                    self._start_helper()
                if self._inline and self.helper is not None:
                    # Whoever ticked a moment ago may be dead, and this process may not emit for long.
                    self.helper.step(self._settings.lock_timeout, at_once=True)

        self._alone(0.0, work)

    @property
    def has_thread(self) -> bool:
        """Whether its helper runs in a thread of its own."""
        return self.helper is not None and self._inline is False

    def wait_until_quiet(self) -> None:
        """Before a fork: give what is under way a moment to end, so that the child inherits nothing half open.

        Takes nothing, so it promises nothing; and nothing is left held when the fork fails, or an exception is thrown
        into its hooks. A child closes what it inherited, whatever state that was in.
        """
        helper = self.helper
        deadline = time.monotonic() + _QUIET_S
        while self._mutex.locked() or (helper is not None and helper.is_busy()):
            if self._is_interrupted() or time.monotonic() > deadline:
                break
            time.sleep(50e-6)

    def send_helper_away(self) -> None:
        """Before a fork: have no thread for as long as it takes."""
        if self.helper is not None:
            self.helper.leave()
            self._fast.stop()  # the next record calls it back, should the hook be cut short that has to

    def call_helper_back(self) -> None:
        """After a fork, in the parent: have it again, if it was sent away."""
        helper = self.helper
        if helper is not None and helper.away and not helper.come_back() and not self.retired:
            self._inline = True  # no thread can be had, for now
            self._fast.stop()

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


def _is_of(frame: FrameType, session: Session) -> bool:
    # _alone never changes its variables, so it does no harm to look at them: see fastpath.is_append.
    return frame.f_code.co_filename == __file__ and frame.f_locals.get("self") is session


def _flush_spools(paths: StreamPaths, settings: Settings, timeout_s: float) -> bool:
    helping = Helping(paths, settings)
    try:
        helped = helping.round(timeout_s)
    finally:
        helping.close()
    return not helped.timed_out  # any other trouble is not for this one to wait for


def _turn_of(session: Session) -> Callable[[], bool]:
    # Weak: a helper thread must not keep a writer alive that everybody else has forgotten.
    reference = weakref.ref(session)

    def turn() -> bool:
        session = reference()
        if session is not None:
            session.help_yourself()
        return session is not None

    return turn

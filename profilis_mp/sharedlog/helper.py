"""When does a process help the others, and which one leads?

Each session has a :class:`Helper`, a sleeping daemon thread. One of all of them, the leader (it holds
``janitor.lock``), ticks once per flush_interval. The others are candidates: they look at the heartbeat every half
interval, tick themselves when it is more than 1.25 intervals old, and take the leader's place once its lock is free. So
a leader that is stopped or stuck in C code costs nothing: an event is in its segment within 1.75 intervals as long as
any process of the stream can run. Two tickers at once are harmless, each flush is under the directory lock; leadership
only saves the work of doing it twice. The leader alone keeps a caretaker, which looks after sealed segments.
"""

from __future__ import annotations

import os
import threading
import time
from _thread import get_ident
from collections.abc import Callable

from profilis_mp import diagnostics
from profilis_mp.sharedlog.helping import Helping
from profilis_mp.sharedlog.lock import KeptLock
from profilis_mp.sharedlog.settings import Caretaker, Settings
from profilis_mp.sharedlog.stream import StreamPaths
from profilis_mp.threads import Flag, is_serving, serve, start

__all__ = ["Helper"]

_CARETAKER_S = 1.0
_CARETAKER_RETRY_S = 60.0
_LONGEST_WAIT_S = 1e6  # a wait of some years is an overflow


class Helper:
    """The candidate of one session: a daemon thread, or, where threads cannot run, whoever calls ``step``.

    Args:
        paths: The stream's files.
        settings: The session's.
        own_turn: Called at every step, for what only the session itself can flush; returns whether there still is one.
        adopt_limits: As for `Helping`.

    Attributes:
        leading: Whether this helper is the leader.
    """

    def __init__(
        self, paths: StreamPaths, settings: Settings, own_turn: Callable[[], bool], *, adopt_limits: bool = False
    ) -> None:
        self._mutex = threading.Lock()
        self.leading = False
        self._paths = paths
        self._settings = settings
        self._own_turn = own_turn
        self._helping = Helping(paths, settings, adopt_limits=adopt_limits)
        self._leader_lock: KeptLock | None = None
        self._caretaker: Caretaker | None = None
        self._caretaker_at = 0.0
        self._told: set[str] = set()
        self._period_s = min(settings.flush_interval / 2, _LONGEST_WAIT_S)
        self._due = time.monotonic() + self._period_s
        self._started = False
        self._seats: list[None] = [None]  # one: who has taken it is the thread
        self._closing = False
        self._away = False
        self._owed = False  # it was sent away, and is not known to be back
        self._stopping: set[int] = set()  # threads that are in `stop`
        self._wake = Flag()  # the thread shall look at these
        self._ended = Flag()

    def start(self) -> bool:
        """Start the thread, a daemon (any other made uWSGI stop 9 s later); returns whether it can run.

        May be called again when a signal handler's exception came out of it: then a thread may run already, or not.
        """
        self._started = start(self._run)
        return self._started

    def stop(self, timeout_s: float) -> None:
        """End the thread, give leadership back, and close what it had open."""
        self._closing = True
        self._wake.set()
        this_thread, seat = get_ident(), False
        if this_thread in self._stopping:
            return  # a signal handler's, in the middle of this
        self._stopping.add(this_thread)
        try:
            seat = self._take_seat()
            if seat:
                self._end(min(timeout_s, _CARETAKER_S))  # there is no thread, and one that comes finds no seat
            elif not is_serving():
                # It closes everything itself, when it gets there: it may be waiting for a lock just now. (Serving is
                # who was brought here by a finalizer, in that very thread, from the middle of a flush.)
                self._ended.wait(min(timeout_s, _LONGEST_WAIT_S))
        finally:
            if seat and not self._ended.is_set():
                self._seats.append(None)
            self._stopping.discard(this_thread)

    def leave(self) -> None:
        """Before a fork: have the thread end as soon as it can, and keep everything open until `come_back`.

        It is late for no step by that, however often a process forks.
        """
        if self._started and not self._closing and not is_serving():
            self._owed = self._away = True
            self._wake.set()

    @property
    def away(self) -> bool:
        """Whether the thread was sent away and not called back, or that was cut short."""
        return self._owed

    def come_back(self) -> bool:
        """After a fork, in the parent: have the thread again; returns whether it can run. May be called again."""
        self._wake.clear()
        if self._closing:
            self._wake.set()
        self._away = False
        here = self.start()
        if not here and self._take_seat():
            # Nobody is there, to lead or to look after anything, and perhaps not for long.
            try:
                self._resign()
            finally:
                self._seats.append(None)
        elif not here:
            here = self._started = True  # the one that was sent away has not left yet, and stays
        self._owed = False
        return here

    def close(self) -> None:
        """Close everything, unlocking nothing. In a forked child the thread is the parent's and not here."""
        self._helping.close()
        caretaker, self._caretaker = self._caretaker, None
        if caretaker is not None:
            caretaker.abandon()
        if self._leader_lock is not None:
            self._leader_lock.close()
        self._leader_lock = None
        self.leading = False

    def is_busy(self) -> bool:
        """Whether a step is under way, or its caretaker opens something: a fork waits for a while until it is not."""
        caretaker = self._caretaker
        return self._mutex.locked() or (caretaker is not None and caretaker.is_opening())

    def step(self, timeout_s: float, *, at_once: bool = False) -> None:
        """Look whether a tick is due and, if so (or ``at_once``), tick. Never raises an Exception."""
        try:
            if not self._own_turn():
                self._closing = True
                return
            with self._mutex:
                self._helping.stream.let_go()
                # Not without a thread: it would keep others from leading, and could have no caretaker.
                if not self.leading and self._settings.may_lead and self._started:
                    self._try_to_lead()
                if self._is_due() or at_once:
                    self._tick(timeout_s)
                self._keep_caretaker(timeout_s)
        except Exception as error:
            diagnostics.warn("helper", f"{self._paths.state}: helping failed, it is tried again: {error!r}")
        for key, text in self._helping.stream.notices:
            diagnostics.warn(key, text)
        self._helping.stream.notices.clear()

    def _run(self) -> None:
        serve()
        while self._take_seat():
            while not self._closing:
                away = self._away
                if not away:
                    self._wake.wait(max(0.0, self._due - time.monotonic()))
                if time.monotonic() >= self._due:
                    self.step(self._settings.flush_interval)
                    self._due = time.monotonic() + self._period_s
                if away:
                    break
            if self._closing:
                self._end(_CARETAKER_S)
                return
            self._seats.append(None)
            if self._away and not self._closing:
                return
            # Called back in the meantime: the new thread may have found the seat taken. One of the two gets it.

    def _end(self, timeout_s: float) -> None:
        """Caller has the seat, and keeps it."""
        try:
            self._resign(timeout_s)
            self.close()
        finally:
            self._ended.set()

    def _resign(self, timeout_s: float = 0.0) -> None:
        self.leading = False
        self._keep_caretaker(timeout_s)
        lock, self._leader_lock = self._leader_lock, None
        if lock is not None:
            lock.close()

    def _take_seat(self) -> bool:
        try:
            self._seats.pop()
        except IndexError:
            return False
        return True

    def _try_to_lead(self) -> None:
        lock = self._leader_lock
        if lock is not None and not lock.is_in_place():
            lock.close()
            lock = self._leader_lock = None
        if lock is None:
            if not os.path.isdir(self._paths.state):
                return
            access = self._settings.access

            def settle(fd: int, made: bool) -> None:
                access.settle(fd, access.private_mode, self._paths.state, made=made)

            lock = self._leader_lock = KeptLock(self._paths.janitor_lock, access.private_mode, settle)
        self.leading = lock.try_acquire()
        if self.leading:
            self._sign(lock)

    def _sign(self, lock: KeptLock) -> None:
        """Leave the leader's pid, and since when it leads (the file's mtime), for people and health checks only."""
        try:
            os.ftruncate(lock.fd, 0)
            os.pwrite(lock.fd, b"%d\n" % os.getpid(), 0)
        except OSError:
            pass  # a full disk; nothing reads it to decide anything

    def _keep_caretaker(self, timeout_s: float) -> None:
        """Have one while leading, and none otherwise."""
        caretaker = self._caretaker
        if not self.leading:
            self._caretaker = None
            if caretaker is not None:
                caretaker.stop(timeout_s)
                self._caretaker_at = 0.0
        elif caretaker is None and self._settings.caretaker is not None:
            now = time.monotonic()
            if now >= self._caretaker_at:
                self._caretaker_at = now + _CARETAKER_RETRY_S
                caretaker = self._settings.caretaker(self._settings)
                if caretaker.start():  # else: no thread can be had, for now at least
                    self._caretaker = caretaker

    def _is_due(self) -> bool:
        lock = self._leader_lock
        if self.leading and (lock is None or not lock.is_in_place()):
            self.leading = False  # somebody removed the state directory
        control = self._helping.stream.peek()
        if control is None:
            return True
        age_ns = time.monotonic_ns() - control.heartbeat_ns
        intervals = 0.75 if self.leading else 1.25
        # A negative age is another boot's clock.
        return age_ns < 0 or age_ns >= intervals * self._settings.flush_interval * 1e9

    def _tick(self, timeout_s: float) -> None:
        helping = self._helping
        control = helping.stream.peek()
        if control is not None:
            control.heartbeat_ns = time.monotonic_ns()
        helped = helping.round(timeout_s)
        for failure in helped.failures:
            diagnostics.warn("helping", f"could not flush a spool now, its events wait in it: {failure}")
        for name in helped.not_ours.keys() - self._told:
            # Once: nothing is wrong while its process lives, and no repetition would mend it afterwards.
            diagnostics.warn("not-ours", f"a spool is left to its own user, or to root: {helped.not_ours[name]}")
        self._told = set(helped.not_ours)
        if helping.stream.looks_aged() or self._settings.fsync == "interval":
            self._look_after_segment(timeout_s)
        diagnostics.debug("tick of %s: %s", self._paths.state, helped)

    def _look_after_segment(self, timeout_s: float) -> None:
        """Seal the active segment when its age is reached though nobody writes; fsync it when asked to."""
        stream = self._helping.stream
        try:
            stream.acquire(timeout_s)
            stream.seal_if_aged()
            if self._settings.fsync == "interval":
                stream.sync_active()
        finally:
            stream.give_back()

"""Whose events are still in a spool, and how do they get out when their process sleeps, hangs or is dead?

``head`` moves only under the directory lock and ``tail`` is one word, so whoever holds the lock can flush any spool.
:class:`Helping` does that for all spools of a stream; :class:`Helper` does it again and again in a daemon thread.

One helper, the leader (it holds ``janitor.lock``), ticks once per flush_interval. The others are candidates: they look
at the heartbeat every half interval, tick themselves when it is more than 1.25 intervals old, and take the leader's
place once its lock is free. So a leader that is stopped or stuck in C code costs nothing: an event is in its segment
within 1.75 intervals as long as any process of the stream can run. Two tickers at once are harmless, each flush is
under the directory lock; leadership only saves the work of doing it twice.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from profilis_mp import diagnostics
from profilis_mp.errors import LockTimeout
from profilis_mp.sharedlog import commit
from profilis_mp.sharedlog.lock import KeptLock
from profilis_mp.sharedlog.settings import Settings
from profilis_mp.sharedlog.spool import UNFINISHED, BadSpool, Spool, spool_id_of
from profilis_mp.sharedlog.stream import Stream, StreamPaths
from profilis_mp.threads import start

__all__ = ["Helped", "Helper", "Helping", "in_helper_thread"]

_LONGEST_WAIT_S = 1e6  # a wait of some years is an overflow
_this_thread = threading.local()


def in_helper_thread() -> bool:
    """Whether the caller (a finalizer, then) runs in a helper's thread, and so may have the directory lock already."""
    return getattr(_this_thread, "helps", False)


@dataclass(slots=True)
class Helped:
    """What one round of helping did.

    Attributes:
        flushed_bytes: Bytes moved from spools into segments.
        dead_spools: Spools of dead processes drained and removed.
        live_spools: Spools whose owners are alive.
        timed_out: Whether another process kept the directory lock all the time.
        failures: What could not be done now, as text; it is tried again in the next round.
    """

    flushed_bytes: int = 0
    dead_spools: int = 0
    live_spools: int = 0
    timed_out: bool = False
    failures: list[str] = field(default_factory=list)


class Helping:
    """Flushes other processes' spools. For one thread; its descriptors are its own, so flock works within a process.

    Args:
        paths: The stream's files.
        settings: The helper's; its limits apply to what it flushes.
        adopt_limits: Apply each spool's own limits instead, for a helper that has none.
    """

    def __init__(self, paths: StreamPaths, settings: Settings, *, adopt_limits: bool = False) -> None:
        self.stream = Stream(paths, settings)
        self._paths = paths
        self._adopt_limits = adopt_limits
        self._spools: dict[str, Spool] = {}

    def round(self, timeout_s: float) -> Helped:
        """Flush every spool that holds bytes; drain and remove those of the dead.

        Args:
            timeout_s: Longest wait for the directory lock, seconds. Who keeps it ends the round.
        """
        helped = Helped()
        try:
            listing = sorted(os.listdir(self._paths.spools))
        except OSError:
            listing = []  # nothing was ever written, or the state directory is gone: its writers will notice
        for name in self._spools.keys() - set(listing):
            self._spools.pop(name).close()
        for name in listing:
            if name.endswith(UNFINISHED):
                Spool.remove_unfinished(f"{self._paths.spools}/{name}")
            elif spool_id_of(name) is not None:
                self._open(name, helped)
        # The eldest first: what one process wrote into two of its spools keeps its order.
        for name, spool in sorted(self._spools.items(), key=lambda item: item[1].created_ns):
            if not helped.timed_out:
                self._help(name, spool, timeout_s, helped)
        return helped

    def close(self) -> None:
        """Close everything, unlocking nothing."""
        for spool in self._spools.values():
            spool.close()
        self._spools.clear()
        self.stream.close()

    def _help(self, name: str, spool: Spool, timeout_s: float, helped: Helped) -> None:
        try:
            dead = spool.owner_is_dead()
            helped.live_spools += not dead
            if dead or spool.unflushed:
                if self._adopt_limits:
                    self.stream.settings = self.stream.settings.with_limits(spool.limits)
                try:
                    self.stream.acquire(timeout_s)
                    helped.flushed_bytes += commit.flush(self.stream, spool)
                    if dead:
                        helped.dead_spools += spool.unlink()
                finally:
                    self.stream.give_back()
            if dead:
                self._forget(name)
        except BadSpool as reason:
            self._set_aside(name, reason)
        except OSError as error:
            helped.timed_out = isinstance(error, LockTimeout)
            # Closed, not kept: it gives back the lifetime lock of a dead spool, so that another may drain it.
            self._forget(name)
            helped.failures.append(f"{self._paths.spools}/{name}: {error}")

    def _open(self, name: str, helped: Helped) -> None:
        """Have the spool of that name among ``_spools``, if it can be had and trusted."""
        spool = self._spools.get(name)
        if spool is not None and not spool.is_in_place():
            self._forget(name)
            spool = None
        try:
            if spool is None:
                self._spools[name] = Spool.open(f"{self._paths.spools}/{name}")
            else:
                spool.check()
        except FileNotFoundError:
            pass
        except BadSpool as reason:
            self._set_aside(name, reason)
        except OSError as error:
            helped.failures.append(f"{self._paths.spools}/{name}: {error}")

    def _set_aside(self, name: str, reason: BadSpool) -> None:
        self._forget(name)
        self.stream.set_aside(f"{self._paths.spools}/{name}", reason)

    def _forget(self, name: str) -> None:
        spool = self._spools.pop(name, None)
        if spool is not None:
            spool.close()


class Helper:
    """The candidate of one session: a daemon thread, or, where threads cannot run, whoever calls ``step``.

    Args:
        paths: The stream's files.
        settings: The session's.
        own_turn: Called at every step, for what only the session itself can flush; returns whether there still is one.

    Attributes:
        mutex: Held during a step; a fork waits for a while until it is free.
        leading: Whether this helper is the leader.
    """

    def __init__(self, paths: StreamPaths, settings: Settings, own_turn: Callable[[], bool]) -> None:
        self.mutex = threading.Lock()
        self.leading = False
        self._paths = paths
        self._settings = settings
        self._own_turn = own_turn
        self._helping = Helping(paths, settings)
        self._leader_lock: KeptLock | None = None
        self._stop = threading.Event()
        self._started = False
        self._ended = threading.Event()

    def start(self) -> bool:
        """Start the thread, a daemon (any other made uWSGI stop 9 s later); returns whether it can run."""
        self._started = start(self._run)
        return self._started

    def stop(self, timeout_s: float) -> None:
        """End the thread, give leadership back, and close what it had open."""
        self._stop.set()
        if not self._started:
            self.close()
        elif not in_helper_thread():
            self._ended.wait(min(timeout_s, _LONGEST_WAIT_S))
        # It closes everything itself, when it gets there: it may be waiting for a lock, or a finalizer may have brought
        # us here in its own thread, from the middle of a flush.

    def close(self) -> None:
        """Close everything, unlocking nothing. In a forked child the thread is the parent's and not here."""
        self._helping.close()
        if self._leader_lock is not None:
            self._leader_lock.close()
        self._leader_lock = None
        self.leading = False

    def step(self, timeout_s: float) -> None:
        """Look whether a tick is due and, if so, tick. Never raises an Exception."""
        try:
            if not self._own_turn():
                self._stop.set()
                return
            with self.mutex:
                if not self.leading:
                    self._try_to_lead()
                if self._is_due():
                    self._tick(timeout_s)
        except Exception as error:
            diagnostics.warn("helper", f"{self._paths.state}: helping failed, it is tried again: {error!r}")
        for key, text in self._helping.stream.notices:
            diagnostics.warn(key, text)
        self._helping.stream.notices.clear()

    def _run(self) -> None:
        _this_thread.helps = True
        period = min(self._settings.flush_interval / 2, _LONGEST_WAIT_S)
        try:
            while not self._stop.wait(period):
                self.step(self._settings.flush_interval)
            self.close()
        finally:
            self._ended.set()

    def _try_to_lead(self) -> None:
        lock = self._leader_lock
        if lock is not None and not lock.is_in_place():
            lock.close()
            lock = self._leader_lock = None
        if lock is None:
            if not os.path.isdir(self._paths.state):
                return
            lock = self._leader_lock = KeptLock(self._paths.janitor_lock, 0o600)
        self.leading = lock.try_acquire()

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

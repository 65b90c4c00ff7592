"""What becomes of this process's sessions around a fork?

Where Python's fork hooks run: before the fork they get a moment to come to rest, and their helpers' threads are away
until it is over; the child closes what it inherited at once. Where they do not (uWSGI), a session finds out by itself
when it is next used; a host that tells its children of the fork has them call `take_part`, which does the same sooner,
and more.
"""

from __future__ import annotations

import os
import time
import weakref
from _thread import get_ident
from collections.abc import Callable
from typing import TYPE_CHECKING

from profilis_mp.threads import count_threads

if TYPE_CHECKING:
    from profilis_mp.sharedlog.session import Session

__all__ = ["is_about_to_fork", "note", "take_part"]

_LONGEST_PAUSE_S = 0.1
_LONGEST_FORK_S = 1.0

# Until when (monotonic) each thread that is about to fork may be believed to be: hooks can be cut short.
_forking: dict[int, float] = {}

# The sessions that may have something open, each with what has its writer go on in a forked child.
_sessions: dict[weakref.ref[Session], Callable[[], None]] = {}
_inherited: list[Callable[[], None]] = []


def note(session: Session, go_on: Callable[[], None]) -> None:
    """Look after a session of this process from now on.

    Args:
        session: It is held weakly.
        go_on: Has its writer help the others, in a forked child; must not keep the writer alive.
    """
    _sessions[weakref.ref(session, _forget)] = go_on


def take_part() -> None:
    """In a forked child: close what was inherited, and help from now on, as a process does that has written something.

    So locks that a parent held at the fork are free when it dies, and what it emitted is flushed though no child of it
    ever emits. In a process that no thread could run in before, and that was not forked, its helper gets its thread.
    """
    _after_fork_in_child()
    go_on = [*_sessions.values(), *_inherited]
    _inherited.clear()
    for one in go_on:
        one()


def is_about_to_fork() -> bool:
    """Whether a thread of this process is between its fork hooks. Who opens something then gives it to the child."""
    return bool(_forking) and any(time.monotonic() < until for until in tuple(_forking.values()))


def _forget(reference: weakref.ref[Session]) -> None:
    _sessions.pop(reference, None)


def _mine() -> list[Session]:
    sessions = [reference() for reference in tuple(_sessions)]
    return [session for session in sessions if session is not None and session.mark]


def _before_fork() -> None:
    _forking[get_ident()] = time.monotonic() + _LONGEST_FORK_S  # first: nobody begins any more what is waited for
    sessions = _mine()
    for session in sessions:
        session.wait_until_quiet()
    # A fork is safest in a process of one thread, and Python (3.12 and later) warns of any other. Where the application
    # has threads of its own, nothing is gained.
    helped = [session for session in sessions if session.has_thread]
    if helped and count_threads() == 1 + len(helped):
        for session in helped:
            session.send_helper_away()
        deadline = time.monotonic() + _LONGEST_PAUSE_S
        while count_threads() > 1 and time.monotonic() < deadline:
            time.sleep(20e-6)


def _after_fork_in_parent() -> None:
    _forking.pop(get_ident(), None)
    try:
        _call_helpers_back()
    except BaseException:  # a signal handler's, which Python will print and forget
        _call_helpers_back()
        raise


def _call_helpers_back() -> None:
    for session in _mine():
        session.call_helper_back()


def _after_fork_in_child() -> None:
    _forking.clear()
    for reference, go_on in tuple(_sessions.items()):
        session = reference()
        if session is not None and session.mark:
            continue  # the child's own already
        _sessions.pop(reference, None)
        if session is not None:
            session.abandon()
            _inherited.append(go_on)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)

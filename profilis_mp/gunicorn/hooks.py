"""Which of gunicorn's hooks make events visible at once, instead of in a second or at the next start?

Each is a hook of that name in gunicorn's configuration file, as it is; one that is there already can call it:

    from profilis_mp import gunicorn as profilis

    def worker_exit(server, worker):
        profilis.worker_exit(server, worker)
        ...

    on_starting    master: finishes what an earlier run left behind; as root, makes the log directory for the workers
    worker_exit    worker: flushes, whenever gunicorn ends it in order
    worker_abort   worker: flushes, when ``timeout`` is over and the hang is one in Python
    child_exit     master: flushes what a worker left that died without a word
    on_exit        master: the same for all of them; nobody else is there any more

The master knows the log directory from ``PROFILIS_DIR`` (``raw_env``), and with ``preload_app`` from the writers that
the application made. Nothing here raises into gunicorn, and nothing waits longer than a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from profilis_mp.diagnostics import warn
from profilis_mp.gunicorn.configured import log_directory, worker_of
from profilis_mp.interrupts import was_thrown_in
from profilis_mp.sharedlog.ownership import Access
from profilis_mp.sharedlog.paths import STATE_DIRECTORY
from profilis_mp.sharedlog.recovery import recover
from profilis_mp.sharedlog.writer import writers_here

__all__ = ["child_exit", "on_exit", "on_starting", "worker_abort", "worker_exit"]

_TIMEOUT_S = 1.0
_ABORT_S = 0.2  # the time is over already


def on_starting(server: Any) -> None:
    """Finish what an earlier run left behind; a root master makes the log directory for its workers."""
    _contained("on_starting", lambda: _prepare(server.cfg))
    _contained("on_starting", lambda: _recover(server.cfg))


def worker_exit(server: Any, worker: Any) -> None:
    """Flush what this worker has emitted."""
    _contained("worker_exit", lambda: _flush(_TIMEOUT_S))


def worker_abort(worker: Any) -> None:
    """Flush what this worker has emitted; its master has lost patience."""
    _contained("worker_abort", lambda: _flush(_ABORT_S))


def child_exit(server: Any, worker: Any) -> None:
    """Flush what a worker has left, in whatever way it died."""
    _contained("child_exit", lambda: _recover(server.cfg))


def on_exit(server: Any) -> None:
    """Flush what all workers have left, and what the master itself emitted."""
    _contained("on_exit", lambda: _flush(_TIMEOUT_S))
    _contained("on_exit", lambda: _recover(server.cfg))


def _prepare(cfg: Any) -> None:
    owner = worker_of(cfg)
    if owner is None:
        return
    for writer in writers_here():
        writer.prepare(owner)
    named = log_directory(cfg)
    if named is not None:
        access, directory = Access(owner=owner), os.path.abspath(named)
        access.make_directories(directory)
        access.make_directory(f"{directory}/{STATE_DIRECTORY}", access.state_mode)


def _flush(timeout_s: float) -> None:
    for writer in writers_here():
        writer.flush(timeout_s)


def _recover(cfg: Any) -> None:
    named = log_directory(cfg)
    directories = {writer.dir for writer in writers_here()} | ({os.path.abspath(named)} if named else set())
    for directory in sorted(directories):
        if os.path.isdir(directory):
            for failure in recover(directory, timeout_s=_TIMEOUT_S).failures:
                warn("gunicorn: recover", f"{directory}: left for later: {failure}")


def _contained(hook: str, work: Callable[[], None]) -> None:
    """A failure here is nothing that a master or a worker should end for."""
    try:
        work()
    except Exception as error:
        if was_thrown_in(error):
            raise
        warn(f"gunicorn: {hook}", f"profilis_mp.gunicorn.{hook}: {error!r}")

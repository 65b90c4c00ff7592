"""How does a uWSGI worker learn that it was forked, and that it is about to end?

uWSGI loads the application in its master and forks the workers without Python's fork hooks. Nothing is lost or shared
by that: a collector finds out by itself when it is next used. Until then, though, a worker keeps what it inherited, the
lock on its master's spool among it, and what the master emitted waits for the first worker that emits. So `register`
has

- every worker, mule and spooler close what it inherited and help from right after its fork (``postfork``);
- every worker that is told to end flush (``uwsgi.atexit``, chained and never replaced). It does not close: exit hooks
  of Python's come after this one, and may emit.

Both make events visible sooner. Correctness depends on neither: uWSGI runs no exit hook in a worker that is busy when
it is told to end, nor at a harakiri, nor in its master.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from profilis_mp.core.scalars import scalar
from profilis_mp.diagnostics import warn
from profilis_mp.errors import ConfigError
from profilis_mp.sharedlog.forks import take_part

__all__ = ["register"]

_registered: list[Any] = []  # not weakly: the application may keep no more than an emitter
_hooks: dict[str, Callable[[], None]] = {}  # ours, by the name that uWSGI knows it by
_depth = 0


def register(collector: Any) -> bool:
    """Have uWSGI's workers help from their fork on, and flush a collector at their exit.

        >>> from profilis_mp import AsyncCollector
        >>> register(AsyncCollector(print))  # no uWSGI here: nothing happens
        False

    Call it in the module that uWSGI loads, after the collector is made. In a development server or a test the same
    module works as well: there this does nothing.

    Hooks that the application set before are called first. One that it sets later in ``uwsgi.atexit`` is found at the
    fork and called first as well; set in a worker, it takes the place of ours, which costs no event.

    Args:
        collector: What has ``flush()``: an `AsyncCollector`, a `JSONLExporter`, a `SharedWriter`. Several may be
            registered, one after the other.

    Returns:
        Whether this process is uWSGI's.

    Raises:
        ConfigError: It cannot be flushed. Nothing was registered.
    """
    if isinstance(collector, type) or not callable(getattr(collector, "flush", None)):
        raise ConfigError("collector", f"{scalar(collector)[0]} has no flush()")
    uwsgi = _uwsgi()
    if uwsgi is None:
        return False
    if not any(one is collector for one in _registered):
        _registered.append(collector)
    _chain(uwsgi, "atexit", _flush)
    if "post_fork_hook" not in _hooks:
        decorators = _decorators(uwsgi)
        if decorators is None:
            _chain(uwsgi, "post_fork_hook", _after_fork)
        else:
            _hooks["post_fork_hook"] = _after_fork
            decorators.postfork(_after_fork)
    return True


def _uwsgi() -> Any:
    """The server's own module, which only the server has; None elsewhere."""
    try:
        import uwsgi
    except ImportError:
        return None
    return uwsgi if hasattr(uwsgi, "masterpid") else None  # else: a package of stubs


def _decorators(uwsgi: Any) -> Any:
    """uWSGI's own chain of postfork hooks; None where there is none, or loading it would replace the application's."""
    if "uwsgidecorators" not in sys.modules and (hasattr(uwsgi, "post_fork_hook") or hasattr(uwsgi, "spooler")):
        return None
    try:
        import uwsgidecorators
    except Exception:  # no master, which it says with a bare Exception, or a distribution without it
        return None
    return uwsgidecorators if uwsgi.post_fork_hook is uwsgidecorators.postfork_chain_hook else None


def _chain(uwsgi: Any, hook: str, work: Callable[[], None]) -> None:
    """Call what is in the hook now, and ``work`` after it: last of all, where one of ours is called by another's."""
    previous = getattr(uwsgi, hook, None)
    if previous is not None and previous is _hooks.get(hook):
        return

    def chained() -> None:
        global _depth
        _depth += 1
        try:
            if callable(previous):
                previous()
        finally:
            _depth -= 1
            if not _depth:
                work()

    _hooks[hook] = chained
    setattr(uwsgi, hook, chained)


def _after_fork() -> None:
    try:
        take_part()
        _chain(_uwsgi(), "atexit", _flush)
    except Exception as error:
        warn("uwsgi_postfork", f"what was inherited at the fork is kept until the first event: {scalar(error)[0]}")


def _flush() -> None:
    for collector in _registered:
        try:
            # Where this process had no event, whatever an exporter holds is its parent's.
            if getattr(collector, "enqueued", True):
                collector.flush()
        except Exception as error:
            warn("uwsgi_atexit", f"a collector was not flushed at exit: {scalar(error)[0]}")

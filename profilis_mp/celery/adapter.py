"""How does every execution of a Celery task become exactly one FN event?

Celery's signals ``task_prerun`` and ``task_postrun`` open and close a span around it; a wrapper around the task's body
makes the event (`profilis_mp.celery.execution` says when and why there); for a pool's child that was killed the
worker's main process makes it (`profilis_mp.celery.boards`). What the event says, besides an FN event's own keys:

    fn              the task's name
    dur_ns          from ``task_prerun`` until the body returned or raised; of a killed task, until that was noticed
    error           True for FAILURE, for a RETRY because of an exception, and for REJECTED for good
    task_id         Celery's
    state           SUCCESS, FAILURE, RETRY, IGNORED, REJECTED, or REVOKED: discarded before it began (dur_ns is 0, and
                    ``expired`` is true where that was why), or terminated
    retries         how many times it had been retried before
    queue_ns        from sending, or from when it was due, until ``task_prerun``; by two hosts' clocks
    redelivered     only where true: the broker delivered the message once more (``acks_late``)
    exception_type  only where there was one: its class name; that of a RETRY is what it was because of; of a killed
                    task TimeLimitExceeded, Terminated, or WorkerLostError
    parent_span_id  only where there is one: the span that sent the task, in whatever process

An event that an execution emits itself has the same ``trace_id`` and, outside of spans of its own, ``span_id``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any
from zlib import crc32

from profilis_mp.core.emitter import Emitter
from profilis_mp.core.scalars import type_name
from profilis_mp.errors import ConfigError

try:
    import celery
except ImportError as error:
    raise ImportError('ProfilisCelery needs Celery: pip install "profilis_mp[celery]"') from error

from profilis_mp.celery.boards import Fate
from profilis_mp.celery.execution import ADAPTER, contain
from profilis_mp.celery.receivers import connect

__all__ = ["ProfilisCelery"]


class ProfilisCelery:
    """Profiles a Celery application: the tasks that it executes, and the trace of those that it sends.

        >>> from celery import Celery
        >>> from profilis_mp.core.async_collector import AsyncCollector
        >>> app, events = Celery("sums", set_as_current=False), []
        >>> profilis = ProfilisCelery(app, collector=AsyncCollector(events.extend), exclude_tasks=["celery"])
        >>> @app.task(name="sums.add")
        ... def add(x, y):
        ...     return x + y
        >>> add.apply((2, 3)).get(), profilis.collector.close()
        (5, True)
        >>> [(event["fn"], event["state"], event["error"]) for event in events]
        [('sums.add', 'SUCCESS', False)]

    Make one in the module that makes the application; tasks may come before or after. In a process that only sends
    tasks (a web process) it carries the current span along, and writes nothing. Whatever fails here is logged and
    fails no task.

    Args:
        app: The application. Once only.
        collector: What has ``enqueue(event)``, such as `AsyncCollector`, or ``emit(event)``.
        exclude_tasks: Names, each with all that is below it: ``reports`` stands for ``reports`` and ``reports.daily``,
            not for ``reports_old``. ``celery`` stands for Celery's own, such as ``celery.chord_unlock``.
        sample: Which share of the traces is reported, 0 to 1; the same ones as by `ProfilisFlask` with that share.
            Tasks left out or excluded still have their span.

    Raises:
        ConfigError: Naming the argument that was refused. The application is untouched.
    """

    def __init__(
        self, app: celery.Celery, *, collector: Any, exclude_tasks: Iterable[str] = (), sample: float = 1.0
    ) -> None:
        if not isinstance(app, celery.Celery):
            raise ConfigError("app", f"a {type_name(app)} is no Celery application")
        if ADAPTER in vars(app):
            raise ConfigError("app", "is being profiled already: every task would be reported twice")
        self.collector = collector
        self.exclude_tasks = _names(exclude_tasks)
        self.sample = _share(sample)
        self._emitter = Emitter(collector)
        connect(self, app)

    def reports(self, name: str, trace_id: str) -> bool:
        """Whether this task's executions in this trace are reported."""
        parts = name.split(".")
        if self.exclude_tasks and any(".".join(parts[:end]) in self.exclude_tasks for end in range(1, len(parts) + 1)):
            return False
        if self.sample >= 1:
            return True
        try:
            share = int(trace_id[-8:], 16)  # as `profilis_mp.web.reporter` does
        except ValueError:  # chosen by the application
            share = crc32(trace_id.encode())
        return share < self.sample * 2**32

    def emit(
        self, name: str, dur_ns: int, failed: bool, about: dict[str, Any], state: str, exception_type: str | None
    ) -> None:
        """Emit one task's event; what fails is contained."""
        extra = {"task_id": "", "state": state, **about}  # in the order above
        if exception_type is not None:
            extra["exception_type"] = exception_type
        try:
            self._emitter.emit_fn(name, dur_ns, failed, **extra)
        except Exception as error:
            contain("a task was not reported", error)

    def emit_death(self, left: dict[str, Any], fate: Fate) -> None:
        """Emit the event of a task whose process has died over it."""
        state, exception_type = fate
        name, began_ns = left.pop("fn"), left.pop("began_ns")
        self.emit(name, max(0, time.time_ns() - began_ns), state != "REVOKED", left, state, exception_type)


def _names(exclude_tasks: Any) -> frozenset[str]:
    if isinstance(exclude_tasks, str):
        raise ConfigError("exclude_tasks", f"{exclude_tasks!r} is one string; give a list of names")
    names = list(exclude_tasks or ())
    for name in names:
        if not isinstance(name, str) or not name:
            raise ConfigError("exclude_tasks", f"{name!r} is no name of a task")
    return frozenset(names)


def _share(sample: Any) -> float:
    if isinstance(sample, bool) or not isinstance(sample, int | float) or not 0 <= sample <= 1:
        raise ConfigError("sample", f"{sample!r} is not a number from 0 to 1")
    return float(sample)

"""Which of Celery's signals tell what, and who listens?

They are the process's and not an application's, so each has one receiver for all, connected once and held by Celery;
it asks the task, or the worker, for its application's adapter. A receiver's own failure is contained.
"""

from __future__ import annotations

import atexit
import functools
import os
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import celery
from celery import signals

from profilis_mp.celery.boards import Board, Boards
from profilis_mp.celery.execution import (
    ADAPTER,
    SENT_NS,
    TRACEPARENT,
    about_task,
    begin,
    contain,
    execution_of,
    header,
    watch,
)
from profilis_mp.celery.patience import become_patient
from profilis_mp.core.context import Span, new_span_id, new_trace_id
from profilis_mp.core.scalars import type_name
from profilis_mp.core.traceparent import parse_traceparent, traceparent

if TYPE_CHECKING:
    from profilis_mp.celery.adapter import ProfilisCelery

__all__ = ["connect"]

_adapters: weakref.WeakSet[ProfilisCelery] = weakref.WeakSet()
_boards: Boards | None = None  # of a worker's main process, and inherited by its children
_board: Board | None = None  # of a pool's child


def _contained(receiver: Callable[..., None]) -> Callable[..., None]:
    """Keep a receiver's own failure from whoever sends the signal: Celery would log a traceback for each."""

    @functools.wraps(receiver)
    def call(sender: Any = None, **about: Any) -> None:
        try:
            receiver(sender, **about)
        except Exception as error:
            contain(f"{receiver.__name__.removeprefix('_on_')} could not be handled", error)

    return call


# -- where tasks are sent


@_contained
def _on_publish(sender: Any, headers: Any = None, **_: Any) -> None:
    if not isinstance(headers, dict):
        return
    headers[SENT_NS] = time.time_ns()
    here, there = traceparent(), headers.get(TRACEPARENT)
    # One that is there already is the application's wish, unless Celery copied it from the task that is being retried.
    if here is not None and (there is None or there == _incoming()):
        headers[TRACEPARENT] = here


def _incoming() -> Any:
    request = getattr(celery.current_task, "request", None)
    return None if request is None else header(request, TRACEPARENT)


# -- where they are executed


@_contained
def _on_finalized(sender: Any, **_: Any) -> None:
    for task in sender.tasks.values():
        watch(task)


@_contained
def _on_prerun(sender: Any, **_: Any) -> None:
    adapter = vars(sender.app).get(ADAPTER)
    if adapter is not None:
        if _board is not None:
            become_patient()
        begin(adapter, sender, _board)


@_contained
def _on_postrun(sender: Any, state: str | None = None, retval: Any = None, **_: Any) -> None:
    execution = execution_of(sender)
    if execution is not None:
        execution.over(state, retval)


# -- a worker's main process


@_contained
def _on_worker(sender: Any, **_: Any) -> None:
    global _boards
    adapter = vars(sender.app).get(ADAPTER)
    if adapter is None:
        return
    _on_finalized(sender.app)  # tasks that were made after the application was finalized
    if _boards is None and hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before_fork)
        atexit.register(_settle_at_exit)
    _boards = Boards(adapter.emit_death)


@_contained
def _before_fork(sender: Any) -> None:
    if _boards is not None:
        _boards.before_fork()


@_contained
def _settle(sender: Any, **_: Any) -> None:
    if _boards is not None:
        _boards.settle()


def _settle_at_exit() -> None:
    if _boards is not None:
        _boards.settle(wait_s=2.0)


@_contained
def _on_failure(sender: Any, task_id: Any = None, exception: Any = None, **_: Any) -> None:
    if _boards is not None:
        _boards.note(task_id, ("FAILURE", type_name(exception)))
        _boards.settle()


@_contained
def _on_retry(sender: Any, request: Any = None, reason: Any = None, **_: Any) -> None:
    if _boards is not None:
        cause = getattr(reason, "exc", None)
        _boards.note(request.id, ("RETRY", "Terminated" if cause is None else type_name(cause)))
        _boards.settle()


@_contained
def _on_revoked(sender: Any, request: Any = None, terminated: bool = False, expired: bool = False, **_: Any) -> None:
    if terminated:
        if _boards is not None:
            _boards.note(request.id, ("REVOKED", "Terminated"))
            _boards.settle()
        return
    adapter = vars(sender.app).get(ADAPTER)
    if adapter is not None:
        trace_id, parent_span_id = parse_traceparent(header(request, TRACEPARENT)) or (new_trace_id(), None)
        if adapter.reports(sender.name, trace_id):
            known = about_task(request, Span(trace_id, new_span_id(), parent_span_id))
            if expired:
                known["expired"] = True
            adapter.emit(sender.name, 0, False, known, "REVOKED", "TaskRevokedError")


# -- a pool's children


@_contained
def _on_child(sender: Any, **_: Any) -> None:
    global _board
    _board = None if _boards is None else _boards.mine()
    # Here, so that it is the last: what other receivers emit when the child ends is still taken.
    signals.worker_process_shutdown.connect(_on_child_ends, weak=False, dispatch_uid="profilis_mp")


@_contained
def _on_child_ends(sender: Any, **_: Any) -> None:
    """Make the last events visible at once: Celery's children run neither atexit nor multiprocessing's finalizers."""
    for adapter in list(_adapters):
        close = getattr(adapter.collector, "close", None)
        if close is not None:
            close()


def connect(adapter: ProfilisCelery, app: Any) -> None:
    """Listen for this application's sake as well."""
    vars(app)[ADAPTER] = adapter  # and so it lives as long as the application
    _adapters.add(adapter)
    app.on_after_finalize.connect(_on_finalized, weak=False)
    if app.finalized:
        _on_finalized(app)
    for signal, receiver in (
        (signals.before_task_publish, _on_publish),
        (signals.task_prerun, _on_prerun),
        (signals.task_postrun, _on_postrun),
        (signals.task_failure, _on_failure),
        (signals.task_retry, _on_retry),
        (signals.task_revoked, _on_revoked),
        (signals.worker_init, _on_worker),
        (signals.worker_before_create_process, _settle),
        (signals.heartbeat_sent, _settle),
        (signals.worker_shutdown, _settle),
        (signals.worker_process_init, _on_child),
    ):
        signal.connect(receiver, weak=False, dispatch_uid="profilis_mp")  # for a second application: does nothing

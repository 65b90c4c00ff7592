"""What is known of one execution of a task, and when is its event made?

Right after the task's body has returned or raised, before Celery stores the result: whoever sees the result finds the
event in the log, even when the process is killed in between. For that the body (``run``, or a ``__call__`` of the
task's own) is wrapped where Celery finds it. A task whose wrapper was not reached (a failing ``before_start``, a task
made after the worker had started) gets its event from Celery's signal ``task_postrun``, which comes after the result.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from billiard import common
from celery.app.trace import task_has_custom
from celery.exceptions import Ignore, Reject, Retry

from profilis_mp.celery.boards import Board
from profilis_mp.celery.patience import unbroken
from profilis_mp.core.context import Span
from profilis_mp.core.scalars import scalar, type_name
from profilis_mp.core.traceparent import continued
from profilis_mp.diagnostics import warn
from profilis_mp.interrupts import was_thrown_in

if TYPE_CHECKING:
    from profilis_mp.celery.adapter import ProfilisCelery

__all__ = [
    "ADAPTER",
    "SENT_NS",
    "TRACEPARENT",
    "Execution",
    "about_task",
    "begin",
    "contain",
    "execution_of",
    "header",
    "watch",
]

ADAPTER = "profilis_mp"  # the attribute of the application that keeps its adapter
TRACEPARENT = "traceparent"
SENT_NS = "profilis_sent_ns"
_ATTRIBUTE = "profilis_mp"  # of Celery's request, where the execution is kept


class Execution:
    """One execution of one task, from ``task_prerun`` to ``task_postrun``."""

    __slots__ = ("about", "adapter", "began", "board", "entered", "left", "name", "reported", "span", "state")

    def __init__(self, adapter: ProfilisCelery, name: str, request: Any, board: Board | None) -> None:
        self.adapter = adapter
        self.name = name
        self.span = continued(header(request, TRACEPARENT))
        self.board = None if request.is_eager else board
        self.entered = self.left = self.reported = False
        self.state: str | None = None
        span = self.span.__enter__()
        try:
            self.about = about_task(request, span)
            if not adapter.reports(name, span.trace_id):
                self.reported = True
            elif self.board is not None:
                self.board.show({"fn": name, "began_ns": time.time_ns(), **self.about})
        except BaseException:
            self.span.__exit__()
            raise
        self.began = time.perf_counter_ns()

    def ended(self, error: BaseException | None) -> None:
        """The body has returned, or raised; make the event, unless the main process will when this one has ended."""
        if error is not None and self.board is not None and not isinstance(error, Exception) and _is_being_ended():
            self.left = True
            return
        self.report(*_outcome(error))

    def report(self, state: str, failed: bool, exception_type: str | None) -> None:
        """Make the event; the second time do nothing."""
        if self.left:
            return
        with unbroken:
            if self.reported:
                return
            self.reported = True
            dur_ns = time.perf_counter_ns() - self.began
            self.state = state
            if self.board is not None:
                self.board.wipe()  # before: never twice, see boards.py
            self.adapter.emit(self.name, dur_ns, failed, self.about, state, exception_type)

    def over(self, state: str | None, value: Any) -> None:
        """Celery is done with it: leave the span, and make the event where the wrapper has not."""
        try:
            if not self.reported:
                # Without a state, what is under way past Celery is no Exception, or an eager task's that propagates.
                error = sys.exception() if state is None else value
                self.ended(error if isinstance(error, BaseException) and state != "SUCCESS" else None)
            elif self.state is not None and state is not None and state != self.state:
                text = f"was reported as {self.state}, but Celery could not store that, and says {state}"
                warn("celery: states differ", f"ProfilisCelery: task {self.name}[{self.about['task_id']}] {text}")
        finally:
            self.span.__exit__()


def about_task(request: Any, span: Span) -> dict[str, Any]:
    """What an event says of a task besides how it ended; ``request`` is Celery's."""
    known: dict[str, Any] = {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "task_id": request.id,
        "retries": request.retries or 0,
    }
    queue_ns = _queue_ns(request)
    if queue_ns is not None:
        known["queue_ns"] = queue_ns
    if (request.delivery_info or {}).get("redelivered"):
        known["redelivered"] = True
    if span.parent_span_id is not None:
        known["parent_span_id"] = span.parent_span_id
    return known


def header(request: Any, name: str) -> Any:
    """A header of a task's message: an attribute of the request, or beside it for protocol 1 and eager tasks."""
    value = request.get(name)
    return (request.headers or {}).get(name) if value is None else value


def execution_of(task: Any) -> Execution | None:
    """What runs of this task in this thread; None in a task called like a function."""
    execution: Execution | None = getattr(task.request_stack.top, _ATTRIBUTE, None)
    return execution


def begin(adapter: ProfilisCelery, task: Any, board: Board | None) -> None:
    """Have an execution begin, and kept by the request."""
    request = task.request
    setattr(request, _ATTRIBUTE, Execution(adapter, task.name, request, board))


def watch(task: Any) -> None:
    """Wrap the body of a task, once; the arguments and whatever it returns or raises pass through."""
    if not task_has_custom(task, "__call__"):
        if not hasattr(task.run, _ATTRIBUTE):
            task.run = _watched(task.run, lambda arguments: task)
        return
    kind = type(task)  # calls look a special method up in the class
    if not hasattr(vars(kind).get("__call__"), _ATTRIBUTE):
        kind.__call__ = _watched(kind.__call__, lambda arguments: arguments[0])


def _watched(body: Callable[..., Any], task_of: Callable[[tuple[Any, ...]], Any]) -> Callable[..., Any]:
    @functools.wraps(body)
    def watched(*args: Any, **kwargs: Any) -> Any:
        execution = execution_of(task_of(args))
        if execution is None or execution.entered:
            return body(*args, **kwargs)
        execution.entered = True
        try:
            value = body(*args, **kwargs)
        except BaseException as error:
            execution.ended(error)
            raise
        execution.ended(None)
        return value

    setattr(watched, _ATTRIBUTE, True)
    return watched


def _outcome(error: BaseException | None) -> tuple[str, bool, str | None]:
    """The state, whether that is an error, and the type of the exception."""
    if error is None:
        return "SUCCESS", False, None
    if isinstance(error, Retry):
        return "RETRY", error.exc is not None, None if error.exc is None else type_name(error.exc)
    if isinstance(error, Reject):
        return "REJECTED", not error.requeue, "Reject"
    if isinstance(error, Ignore):
        return "IGNORED", False, None
    return "FAILURE", True, type_name(error)


def _is_being_ended() -> bool:
    """Whether this process was told to end, and its exception is not the task's own ``sys.exit``."""
    fired = getattr(common, "terminate_handler_fired", None)  # billiard 4.3
    return bool(fired() if fired is not None else common._should_have_exited[0])


def _queue_ns(request: Any) -> int | None:
    """How long the task waited since it was sent, or since it was due; the clocks are two hosts'."""
    due = header(request, SENT_NS)
    if not isinstance(due, int):
        return None
    if isinstance(request.eta, str):
        try:
            due = max(due, int(datetime.fromisoformat(request.eta).timestamp() * 1e9))
        except ValueError:  # Celery's business
            pass
    return max(0, time.time_ns() - due)


def contain(what: str, error: Exception) -> None:
    """Log what failed here; what a signal handler threw in is raised again, it is the application's."""
    if was_thrown_in(error):
        raise error
    warn(f"celery: {what}", f"ProfilisCelery: {what}: {scalar(error)[0]}")

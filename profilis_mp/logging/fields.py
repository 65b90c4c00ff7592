"""What does a log message look like as an event?

A dict with these keys, in this order; those in brackets only where there is something to say:

    ts_ns                     the record's own time, nanoseconds since the epoch
    [trace_id, span_id]       of the span that the message was logged in
    kind                      LOG
    level, [logger], message  as the logging library has them; the level in capitals
    [pid], [thread], [task]   the thread's and the asyncio task's name
    [file, line, function]    where it was logged
    [exception_type, exception_message, traceback]   of the exception logged with it
    [stack]                   where it was logged, in full, if that was asked for
    [message_error, args]     why the arguments do not fit the message, and what they are (standard library only)

Then what the application added (``extra=``, bound values). One of these that has the name of a key above is written as
``name~2``, so that the key always means the same; only ``trace_id`` and ``span_id`` replace the ones above.

    >>> event = log_event(1_700_000_000_000_000_000, "INFO", "shop", "paid")
    >>> add(event, {"order": 7, "level": "gold"})
    >>> {key: event[key] for key in event if key != "pid"}  # doctest: +NORMALIZE_WHITESPACE
    {'ts_ns': 1700000000000000000, 'kind': 'LOG', 'level': 'INFO', 'logger': 'shop', 'message': 'paid',
     'order': 7, 'level~2': 'gold'}
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Container, Mapping
from types import TracebackType
from typing import Any, TypeAlias

from profilis_mp.core.context import current_span
from profilis_mp.core.events import Event
from profilis_mp.core.scalars import scalar
from profilis_mp.interrupts import was_thrown_in

__all__ = ["ExceptionInfo", "add", "exception_fields", "exception_of", "log_event", "text_of"]

ExceptionInfo: TypeAlias = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]

_OURS = frozenset(
    {"ts_ns", "kind", "level", "logger", "message", "pid", "thread", "task", "file", "line", "function"}
    | {"exception_type", "exception_message", "traceback", "stack", "message_error"}
)


def log_event(ts_ns: int, level: str, logger: str | None, message: str) -> Event:
    """Return the beginning of a LOG event, with the ids of the current span if there is one."""
    span = current_span()
    event: Event = {"ts_ns": ts_ns}
    if span is not None:
        event["trace_id"] = span.trace_id
        event["span_id"] = span.span_id
    event["kind"] = "LOG"
    event["level"] = level
    if logger is not None:
        event["logger"] = logger
    event["message"] = message
    return event


def exception_fields(
    exception: ExceptionInfo,
    text: str | None = None,
    write: Callable[[Any], str] | None = None,
) -> Event:
    """Return the fields that tell of an exception; none where there is none.

    Args:
        exception: As ``sys.exc_info()`` returns it.
        text: The traceback, where somebody has written it already.
        write: Writes the traceback; None writes it as Python does. What it raises is contained.
    """
    kind, error, trace = exception
    if kind is None:
        return {"traceback": text} if text else {}
    if not text:
        try:
            text = write(exception) if write else "".join(traceback.format_exception(kind, error, trace)).rstrip("\n")
        except Exception as failure:
            if was_thrown_in(failure):
                raise
            text = "".join(traceback.format_tb(trace)) + str(scalar(error)[0])
    return {"exception_type": kind.__name__, "exception_message": text_of(error), "traceback": text}


def exception_of(exc_info: Any) -> ExceptionInfo:
    """What logging libraries take for ``exc_info``: an exception, a tuple, or anything true for the current one."""
    if isinstance(exc_info, BaseException):
        return type(exc_info), exc_info, exc_info.__traceback__
    if isinstance(exc_info, tuple) and len(exc_info) == 3:
        return exc_info
    return sys.exc_info() if exc_info else (None, None, None)


def text_of(value: object) -> str:
    """Return ``str(value)``, and where that fails its ``repr``, and where that fails what it is."""
    try:
        return str(value)
    except Exception as failure:
        if was_thrown_in(failure):
            raise
        return str(scalar(value)[0])


def add(event: Event, extras: Mapping[Any, Any], leave_out: Container[Any] = ()) -> None:
    """Add what the application had to say; a name that is one of the keys above gets ``~2`` appended."""
    for name, value in extras.items():
        if name in leave_out:
            continue
        if name in _OURS:
            number = 2
            while f"{name}~{number}" in extras:
                number += 1
            name = f"{name}~{number}"
        event[name] = value

"""How does a record of the standard library's `logging` become an event?

>>> import logging
>>> record = logging.makeLogRecord({"name": "shop", "msg": "%d left", "args": (3,), "tea": "green"})
>>> event = event_of(record, logging.Formatter(), print)
>>> event["message"], event["tea"]
('3 left', 'green')
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from profilis_mp.core.events import Event
from profilis_mp.interrupts import was_thrown_in
from profilis_mp.logging.fields import add, exception_fields, exception_of, log_event, text_of

__all__ = ["event_of"]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def event_of(
    record: logging.LogRecord, formatter: logging.Formatter, complain: Callable[[logging.LogRecord], None]
) -> Event:
    """Return the LOG event of a record; what it holds: `profilis_mp.logging.fields`.

    A message that its arguments do not fit is written as it is, with them under ``args`` and the reason under
    ``message_error``.

    Args:
        record: The record; nothing in it is changed.
        formatter: Writes the traceback.
        complain: Told of the record when its message cannot be formatted, while that exception is being handled.
    """
    failed: str | None = None
    try:
        message = record.getMessage()
    except Exception as error:
        if isinstance(error, RecursionError) or was_thrown_in(error):
            raise
        complain(record)
        message, failed = text_of(record.msg), f"{type(error).__name__}: {text_of(error)}"
    event = log_event(int(record.created * 1e6) * 1000, record.levelname, record.name, message)
    if record.process is not None:
        event["pid"] = record.process
    if record.threadName is not None:
        event["thread"] = record.threadName
    task = _task_of(record)
    if task is not None:
        event["task"] = task
    event["file"] = record.pathname
    event["line"] = record.lineno
    if record.funcName is not None:
        event["function"] = record.funcName
    if record.exc_info or record.exc_text:
        event.update(exception_fields(exception_of(record.exc_info), record.exc_text, formatter.formatException))
    if record.stack_info:
        event["stack"] = record.stack_info
    if failed is not None:
        event["message_error"] = failed
        event["args"] = record.args
    about = vars(record)
    if not about.keys() <= _STANDARD:
        add(event, dict(about), _STANDARD)  # a copy: another thread's handler may add to the record meanwhile
    return event


def _task_of(record: logging.LogRecord) -> str | None:
    """The asyncio task that logged; records have its name since Python 3.12."""
    if hasattr(record, "taskName"):
        name: str | None = record.taskName
        return name
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        return None
    task = asyncio.current_task()
    return None if task is None else str(task.get_name())

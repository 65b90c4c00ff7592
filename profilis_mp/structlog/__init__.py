"""structlog, written into the shared log: a logger factory, and a processor for a chain that also shows its events.

    >>> import structlog
    >>> from profilis_mp.core.async_collector import AsyncCollector
    >>> events = []
    >>> collector = AsyncCollector(events.extend)
    >>> log = structlog.wrap_logger(JSONLLoggerFactory(collector)("shop"), processors=[])
    >>> log.bind(user=7).warning("low", left=3)
    >>> collector.close()
    True
    >>> [(event["level"], event["logger"], event["message"], event["user"], event["left"]) for event in events]
    [('WARNING', 'shop', 'low', 7, 3)]

An event's keys are those of every log message (`profilis_mp.logging.fields`), then the bound values. ``exc_info``
becomes the fields of an exception, so no processor has to render it before; where one has, its text is ``traceback``.
Nothing here raises into the application.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from profilis_mp.core.emitter import Emitter
from profilis_mp.core.events import Event
from profilis_mp.core.scalars import scalar
from profilis_mp.diagnostics import warn
from profilis_mp.interrupts import was_thrown_in
from profilis_mp.logging.fields import add, exception_fields, exception_of, log_event, text_of

try:
    from structlog.typing import EventDict, WrappedLogger
except ImportError as error:
    raise ImportError('profilis_mp.structlog needs structlog: pip install "profilis_mp[structlog]"') from error

__all__ = ["JSONLLogger", "JSONLLoggerFactory", "JSONLProcessor"]

_LEVELS = {
    "debug": "DEBUG",
    "info": "INFO",
    "msg": "INFO",
    "log": "INFO",
    "warning": "WARNING",
    "warn": "WARNING",
    "error": "ERROR",
    "err": "ERROR",
    "exception": "ERROR",
    "failure": "ERROR",
    "critical": "CRITICAL",
    "fatal": "CRITICAL",
}
_PLACED = frozenset({"event", "logger", "exc_info", "stack"})


class JSONLLoggerFactory:
    """Makes the loggers at the end of structlog's chain: ``structlog.configure(logger_factory=...)``.

    Args:
        collector: What has ``enqueue(event)``, such as `AsyncCollector`, or ``emit(event)``, such as `JSONLExporter`.

    Raises:
        ConfigError: ``collector`` has neither.
    """

    def __init__(self, collector: Any) -> None:
        self._emitter = Emitter(collector)

    def __call__(self, *args: Any) -> JSONLLogger:
        """Return a logger; its name is the first argument of ``structlog.get_logger``."""
        return JSONLLogger(self._emitter, text_of(args[0]) if args else None)


class JSONLLogger:
    """Writes what comes out of structlog's chain: the event's dict, or the text of a renderer.

    It has a method for each of structlog's levels.
    """

    def __init__(self, emitter: Emitter, name: str | None) -> None:
        self._emitter = emitter
        self.name = name

    def _write(self, method_name: str, args: tuple[Any, ...], fields: Mapping[str, Any]) -> None:
        if args:
            fields = {"event": args[0] if len(args) == 1 else args, **fields}
        _emit(self._emitter, method_name, fields, self.name)


def _method(name: str) -> Callable[..., None]:
    def method(self: JSONLLogger, /, *args: Any, **fields: Any) -> None:
        self._write(name, args, fields)

    method.__name__ = name
    method.__doc__ = f"Write an event of level {_LEVELS[name]}."
    return method


for _name in _LEVELS:
    setattr(JSONLLogger, _name, _method(_name))


class JSONLProcessor:
    """Writes each event and hands it on unchanged, so that a console goes on showing it: put it before the renderer.

    Args:
        collector: As for `JSONLLoggerFactory`.

    Raises:
        ConfigError: ``collector`` takes no events.
    """

    def __init__(self, collector: Any) -> None:
        self._emitter = Emitter(collector)

    def __call__(self, logger: WrappedLogger, method_name: str, event_dict: EventDict) -> EventDict:
        """Write a copy of the event."""
        _emit(self._emitter, method_name, event_dict, getattr(logger, "name", None))
        return event_dict


def _emit(emitter: Emitter, method_name: str, fields: Mapping[str, Any], name: Any) -> None:
    try:
        emitter.emit(_event(method_name, fields, name))
    except Exception as error:
        if was_thrown_in(error):
            raise
        warn("structlog", f"profilis_mp.structlog: an event was not written: {scalar(error)[0]}")


def _event(method_name: str, fields: Mapping[str, Any], name: Any) -> Event:
    given = fields.get("level")  # by add_log_level, or a bound value that happens to be called so
    is_level = isinstance(given, str) and given.lower() in _LEVELS
    level = given if is_level else _LEVELS.get(method_name, method_name)
    name = fields.get("logger", name)
    message = fields.get("event", "")
    event = log_event(time.time_ns(), text_of(level).upper(), None if name is None else text_of(name), text_of(message))
    event["pid"] = os.getpid()
    rendered = fields.get("exception")
    text = rendered if isinstance(rendered, str) else None  # dict_tracebacks gives a list, which stays as it is
    event.update(exception_fields(exception_of(fields.get("exc_info")), text))
    stack = fields.get("stack")
    if stack:
        event["stack"] = stack
    placed = _PLACED | {"level"} if is_level else _PLACED
    add(event, fields, placed if text is None else placed | {"exception"})
    return event

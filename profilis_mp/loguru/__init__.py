"""loguru, written into the shared log: one line, ``logger.add(JSONLSink(exporter))``.

    >>> from loguru import logger
    >>> from profilis_mp.core.async_collector import AsyncCollector
    >>> events = []
    >>> collector = AsyncCollector(events.extend)
    >>> number = logger.add(JSONLSink(collector))
    >>> logger.bind(user=7).warning("{} left", 3)
    >>> logger.remove(number)
    >>> [(event["level"], event["message"], event["user"]) for event in events]
    [('WARNING', '3 left', 7)]

An event's keys are those of every log message (`profilis_mp.logging.fields`), then loguru's ``extra``. loguru's own
``format=`` is not used, and its ``enqueue=True`` not needed: it would put a queue, which dies with its process, before
a log that every process may write to. Nothing here raises into the application.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from profilis_mp.core.emitter import Emitter
from profilis_mp.core.events import Event
from profilis_mp.core.scalars import scalar
from profilis_mp.diagnostics import warn
from profilis_mp.exporters.base import settle
from profilis_mp.interrupts import was_thrown_in
from profilis_mp.logging.fields import add, exception_fields, log_event

try:
    import loguru  # noqa: F401  # a sink is of no use without it, and the error says what to install
except ImportError as error:
    raise ImportError('profilis_mp.loguru needs loguru: pip install "profilis_mp[loguru]"') from error

if TYPE_CHECKING:
    from loguru import Message, Record

__all__ = ["JSONLSink"]


class JSONLSink:
    """What ``logger.add`` takes.

    Args:
        collector: What has ``enqueue(event)``, such as `AsyncCollector`, or ``emit(event)``, such as `JSONLExporter`.

    Raises:
        ConfigError: ``collector`` has neither.
    """

    # write and stop, and no flush, which loguru would call for every message.

    def __init__(self, collector: Any) -> None:
        self._collector = collector
        self._emitter = Emitter(collector)

    def write(self, message: Message) -> None:
        """Write one message; it is crash-safe when this returns if the collector's exporter never waits."""
        try:
            self._emitter.emit(_event(message.record))
        except Exception as error:
            if was_thrown_in(error):
                raise
            warn("loguru", f"profilis_mp.loguru: a message was not written: {scalar(error)[0]}")

    def stop(self) -> None:
        """Flush the collector: loguru has removed the sink, or the program ends. Others may still use it."""
        settle(self._collector, last=False)


def _event(record: Record) -> Event:
    ts_ns = round(record["time"].timestamp() * 1e6) * 1000
    event = log_event(ts_ns, record["level"].name, record["name"], record["message"])
    event["pid"] = record["process"].id
    event["thread"] = record["thread"].name
    event["file"] = record["file"].path
    event["line"] = record["line"]
    event["function"] = record["function"]
    exception = record["exception"]
    if exception is not None:
        event.update(exception_fields((exception.type, exception.value, exception.traceback)))
    add(event, record["extra"])
    return event

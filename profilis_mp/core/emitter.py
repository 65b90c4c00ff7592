"""How does a program report what it did in one call?

>>> seen = []
>>> class Seen:
...     def enqueue(self, event):
...         seen.append(event)
>>> Emitter(Seen()).emit_fn("load", 12_000)
>>> seen[0]["kind"], seen[0]["fn"], seen[0]["dur_ns"], seen[0]["error"]
('FN', 'load', 12000, False)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from profilis_mp.core.events import Event, db_event, fn_event, req_event
from profilis_mp.errors import ConfigError

__all__ = ["Emitter"]


class Emitter:
    """Builds events and hands them over at once, in the caller's thread; keeps nothing.

    Args:
        collector: Whatever has ``enqueue(event)``, such as `AsyncCollector`, or else ``emit(event)``, such as
            `JSONLExporter`. A bare callable is refused: it could expect an event or a list of them.

    Raises:
        ConfigError: ``collector`` has neither.
    """

    def __init__(self, collector: Any) -> None:
        for name in ("enqueue", "emit"):
            if callable(getattr(collector, name, None)):
                self._collector = collector
                self._name = name
                return
        raise ConfigError("collector", f"{type(collector).__name__} has neither enqueue(event) nor emit(event)")

    def emit(self, event: Event) -> None:
        """Hand over an event that is built already."""
        # Looked up each time: whoever wraps or replaces the method of a collector means these events as well.
        hand_over: Callable[[Event], object] = getattr(self._collector, self._name)
        hand_over(event)

    def emit_req(self, route: str, status: int, dur_ns: int, **extra: Any) -> None:
        """Report one request; arguments as for `req_event`."""
        self.emit(req_event(route, status, dur_ns, **extra))

    def emit_fn(self, name: str, dur_ns: int, error: bool = False, **extra: Any) -> None:
        """Report one call of a function; arguments as for `fn_event`."""
        self.emit(fn_event(name, dur_ns, error, **extra))

    def emit_db(self, query: str, dur_ns: int, rows: int, *, db_vendor: str | None = None, **extra: Any) -> None:
        """Report one query; arguments as for `db_event`."""
        self.emit(db_event(query, dur_ns, rows, db_vendor=db_vendor, **extra))

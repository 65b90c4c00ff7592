"""What does a collector expect of an exporter?

One of these, or any callable that takes a list of events:

- `InlineExporter`: ``never_waits`` is true. ``emit`` is called in the application's own thread, so the event is where
  it belongs when ``enqueue`` returns. It must be safe from any thread, signal handler and finalizer, take no longer
  than a memory copy, survive a fork, and raise nothing.
- `Exporter`: it may wait. ``export`` is called with a list, in a thread of its own, never twice at a time. When it
  raises, the same list comes again, with the events that it had already dealt with.

It may offer ``door(otherwise)`` and ``append_line(line)``, as `JSONLExporter` does: a function as good as ``emit`` that
counts for the collector that asked for it, so that ``enqueue`` is that function and nothing lies between.

Optional in both: ``flush()`` (False: not everything is where it belongs yet) and ``close()``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from profilis_mp.core.scalars import scalar
from profilis_mp.diagnostics import warn
from profilis_mp.interrupts import was_thrown_in

__all__ = ["Exporter", "InlineExporter", "Sink", "describe", "settle"]


class Exporter(Protocol):
    """Takes events in batches."""

    def export(self, events: list[Any], /) -> object:
        """Take some events, in the order in which they were enqueued."""


class InlineExporter(Protocol):
    """Takes events one by one, without ever waiting for anything.

    Attributes:
        never_waits: True. Where it is false, an ``export`` method is used instead.
    """

    never_waits: bool

    def emit(self, event: Any, /) -> object:
        """Take one event; raise nothing."""


Sink: TypeAlias = Exporter | InlineExporter | Callable[[list[Any]], object]


def settle(exporter: object, *, last: bool) -> bool:
    """Flush an exporter (``last``: and close it) as far as it can be; return whether nothing failed."""
    done = True
    for name in ("flush", "close") if last else ("flush",):
        method = getattr(exporter, name, None)
        if callable(method):
            try:
                done = method() is not False and done
            except Exception as error:
                if was_thrown_in(error):
                    raise
                done = False
                warn(
                    f"{name} {type(exporter).__qualname__}",
                    f"{name} of {describe(exporter)} failed: {scalar(error)[0]}",
                )
    return done


def describe(exporter: object) -> str:
    """Return how warnings call an exporter."""
    return f"exporter {getattr(exporter, '__qualname__', type(exporter).__qualname__)}"

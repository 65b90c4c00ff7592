"""Which trace and which span is this code running in?

A context variable answers, so threads, asyncio tasks and greenlets each have their own. Identifiers are W3C's: 16
random bytes for a trace, 8 for a span, in hexadecimal. They come from the kernel, not from `random`, whose state a
forked child shares with its parent wherever Python's fork hooks do not run.

    >>> with use_span(trace_id="trace-abc123") as outer, use_span() as inner:
    ...     get_trace_id() == "trace-abc123", get_span_id() == inner.span_id, get_parent_span_id() == outer.span_id
    (True, True, True)
    >>> get_trace_id() is None
    True
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from os import urandom
from typing import NamedTuple

__all__ = [
    "Span",
    "current_span",
    "get_parent_span_id",
    "get_span_id",
    "get_trace_id",
    "new_ids",
    "new_span_id",
    "new_trace_id",
    "use_span",
]


class Span(NamedTuple):
    """One piece of work within a trace."""

    trace_id: str
    span_id: str
    parent_span_id: str | None


_current: ContextVar[Span | None] = ContextVar("profilis_mp_span", default=None)

current_span = _current.get
"""Return the current `Span`, None outside of any."""


def get_trace_id() -> str | None:
    """Return the current trace's id, None outside of any span."""
    span = _current.get()
    return span.trace_id if span else None


def get_span_id() -> str | None:
    """Return the current span's id, None outside of any."""
    span = _current.get()
    return span.span_id if span else None


def get_parent_span_id() -> str | None:
    """Return the id of the span that was current when the current one began, None if it began a trace."""
    span = _current.get()
    return span.parent_span_id if span else None


def new_trace_id() -> str:
    """Return a fresh trace id: 32 hexadecimal digits."""
    return urandom(16).hex()


def new_span_id() -> str:
    """Return a fresh span id: 16 hexadecimal digits."""
    return urandom(8).hex()


def new_ids() -> tuple[str, str]:
    """Return a fresh trace id and a fresh span id; one system call for both."""
    digits = urandom(24).hex()
    return digits[:32], digits[32:]


class use_span:  # noqa: N801  # reads as the statement that it is, and as in profilis
    """Run a block in a span of its own; whatever was current before is current again after it.

    May be entered again, also while entered. Left in another context than it was entered in (a generator that somebody
    else closes), it leaves that other context alone.

    Args:
        trace_id: The trace; None is the current one, or a fresh one outside of any.
        span_id: The span; None is a fresh one.
        parent_span_id: The span that this one is part of, in another process; None is the current one, if that is of
            the same trace.
    """

    __slots__ = ("_parent_span_id", "_span_id", "_tokens", "_trace_id")

    def __init__(
        self, trace_id: str | None = None, span_id: str | None = None, *, parent_span_id: str | None = None
    ) -> None:
        self._trace_id = trace_id
        self._span_id = span_id
        self._parent_span_id = parent_span_id
        self._tokens: list[Token[Span | None]] = []

    def __enter__(self) -> Span:
        before = _current.get()
        trace_id = self._trace_id or (before.trace_id if before else new_trace_id())
        parent = self._parent_span_id
        if parent is None and before and before.trace_id == trace_id:
            parent = before.parent_span_id if before.span_id == self._span_id else before.span_id
        span = Span(trace_id, self._span_id or new_span_id(), parent)
        self._tokens.append(_current.set(span))
        return span

    def __exit__(self, *exc: object) -> None:
        try:
            _current.reset(self._tokens.pop())
        except ValueError:  # that token was made in another context
            pass

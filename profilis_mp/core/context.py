"""Which trace and which span is this code running in?

A context variable answers, so threads, asyncio tasks and greenlets each have their own. Identifiers are W3C's: 16
random bytes for a trace, 8 for a span, in hexadecimal. They come from the kernel, some at a time, and those that were
drawn before a fork are for the parent only; `random` has a state that a child shares with its parent wherever Python's
fork hooks do not run.

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

from profilis_mp.forkmark import fork_mark

__all__ = [
    "Span",
    "current_span",
    "get_parent_span_id",
    "get_span_id",
    "get_trace_id",
    "in_span",
    "new_ids",
    "new_span_id",
    "new_trace_id",
    "use_span",
]

_AT_ONCE = 64  # so many from each call of the kernel


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


class _Ahead:
    """Random digits that this process has drawn ahead: a system call costs several times what an id does."""

    __slots__ = ("digits", "mark")

    def __init__(self) -> None:
        self.mark = fork_mark()
        self.digits: list[str] = []


_ahead = _Ahead()


def new_ids() -> tuple[str, str]:
    """Return a fresh trace id and a fresh span id."""
    global _ahead
    while True:
        ahead = _ahead
        try:
            digits = ahead.digits.pop()
        except IndexError:
            drawn = urandom(24 * _AT_ONCE).hex()
            ahead.digits.extend(drawn[start : start + 48] for start in range(0, len(drawn), 48))
            continue
        # After the pop: what a fork has left here, and another thread may have replaced since, the parent has as well.
        if ahead.mark:
            return digits[:32], digits[32:]
        _ahead = _Ahead()


def new_trace_id() -> str:
    """Return a fresh trace id: 32 hexadecimal digits."""
    return new_ids()[0]


def new_span_id() -> str:
    """Return a fresh span id: 16 hexadecimal digits."""
    return new_ids()[1]


class _Block:
    """A block in which some span is current."""

    __slots__ = ("_tokens",)
    _tokens: list[Token[Span | None]]

    def __exit__(self, *exc: object) -> None:
        try:
            _current.reset(self._tokens.pop())
        except ValueError:  # that token was made in another context
            pass


class in_span(_Block):  # noqa: N801  # reads as the statement that it is
    """Run a block in a span that there is already; else as `use_span`."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span
        self._tokens = []

    def __enter__(self) -> Span:
        self._tokens.append(_current.set(self._span))
        return self._span


class use_span(_Block):  # noqa: N801  # reads as the statement that it is, and as in profilis
    """Run a block in a span of its own; whatever was current before is current again after it.

    May be entered again, also while entered. Left in another context than it was entered in (a generator that somebody
    else closes), it leaves that other context alone.

    Args:
        trace_id: The trace; None is the current one, or a fresh one outside of any.
        span_id: The span; None is a fresh one.
        parent_span_id: The span that this one is part of, in another process; None is the current one, if that is of
            the same trace.
    """

    __slots__ = ("_parent_span_id", "_span_id", "_trace_id")

    def __init__(
        self, trace_id: str | None = None, span_id: str | None = None, *, parent_span_id: str | None = None
    ) -> None:
        self._trace_id = trace_id
        self._span_id = span_id
        self._parent_span_id = parent_span_id
        self._tokens = []

    def __enter__(self) -> Span:
        before = _current.get()
        trace_id = self._trace_id or (before.trace_id if before else new_trace_id())
        parent = self._parent_span_id
        if parent is None and before and before.trace_id == trace_id:
            parent = before.parent_span_id if before.span_id == self._span_id else before.span_id
        span = Span(trace_id, self._span_id or new_span_id(), parent)
        self._tokens.append(_current.set(span))
        return span

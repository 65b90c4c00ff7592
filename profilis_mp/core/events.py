"""What does an event look like?

Three kinds, each a dict with these keys in this order; ``ts_ns`` is the wall clock at the end of what is described, in
nanoseconds, and durations are in nanoseconds too:

    REQ  ts_ns, trace_id, span_id, kind, route, status, dur_ns
    FN   ts_ns, trace_id, span_id, kind, fn, dur_ns, error
    DB   ts_ns, trace_id, span_id, kind, query, dur_ns, rows

The ids are the current span's, or fresh ones outside of any, where they are not given. Further keywords are appended;
one that names a key above replaces its value. ``parent_span_id`` is one of these: of an event that is a span of its own
(a request, a profiled function) and has a parent. Other events have the ids of the span they are in, whose event has
its parent.

    >>> event = db_event("SELECT 1", 5_000, 1, db_vendor="sqlite")
    >>> list(event)
    ['ts_ns', 'trace_id', 'span_id', 'kind', 'query', 'dur_ns', 'rows', 'db_vendor']
"""

from __future__ import annotations

from time import time_ns
from typing import Any, TypeAlias

from profilis_mp.core.context import current_span, new_ids

__all__ = ["Event", "db_event", "fn_event", "req_event"]

Event: TypeAlias = dict[str, Any]


def req_event(
    route: str, status: int, dur_ns: int, *, trace_id: str | None = None, span_id: str | None = None, **extra: Any
) -> Event:
    """Return a REQ event: one request answered.

    Args:
        route: The route's template, so that requests for different things of one kind count together.
        status: The HTTP status.
        dur_ns: How long it took, nanoseconds.
        trace_id, span_id: Of the request's span.
        extra: Further keys.
    """
    event = _begin("REQ", trace_id, span_id)
    event["route"] = route
    event["status"] = status
    event["dur_ns"] = dur_ns
    if extra:
        event.update(extra)
    return event


def fn_event(
    name: str,
    dur_ns: int,
    error: bool = False,
    *,
    trace_id: str | None = None,
    span_id: str | None = None,
    **extra: Any,
) -> Event:
    """Return an FN event: one call of a function.

    Args:
        name: The function's name (key ``fn``).
        dur_ns: How long it took, nanoseconds.
        error: Whether it raised.
        trace_id, span_id: Of the call's span.
        extra: Further keys.
    """
    event = _begin("FN", trace_id, span_id)
    event["fn"] = name
    event["dur_ns"] = dur_ns
    event["error"] = error
    if extra:
        event.update(extra)
    return event


def db_event(
    query: str,
    dur_ns: int,
    rows: int,
    *,
    db_vendor: str | None = None,
    trace_id: str | None = None,
    span_id: str | None = None,
    **extra: Any,
) -> Event:
    """Return a DB event: one query.

    Args:
        query: Its text.
        dur_ns: How long it took, nanoseconds.
        rows: How many rows it returned or changed.
        db_vendor: The database; the key is left out where this is None.
        trace_id, span_id: Of the span that it ran in.
        extra: Further keys.
    """
    event = _begin("DB", trace_id, span_id)
    event["query"] = query
    event["dur_ns"] = dur_ns
    event["rows"] = rows
    if db_vendor is not None:
        event["db_vendor"] = db_vendor
    if extra:
        event.update(extra)
    return event


def _begin(kind: str, trace_id: str | None, span_id: str | None) -> Event:
    if trace_id is None or span_id is None:
        span = current_span()
        ids = new_ids() if span is None else span
        trace_id, span_id = trace_id or ids[0], span_id or ids[1]
    return {"ts_ns": time_ns(), "trace_id": trace_id, "span_id": span_id, "kind": kind}

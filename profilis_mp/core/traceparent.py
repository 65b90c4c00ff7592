"""How does a trace go on in another process?  By W3C Trace Context's header ``traceparent``.

    >>> header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    >>> with continued(header) as span:
    ...     span.trace_id, span.parent_span_id, traceparent() == f"00-{span.trace_id}-{span.span_id}-01"
    ('4bf92f3577b34da6a3ce929d0e0e4736', '00f067aa0ba902b7', True)

Source: https://www.w3.org/TR/trace-context/, section 3.2.
"""

from __future__ import annotations

import re
from typing import Any

from profilis_mp.core.context import current_span, use_span

__all__ = ["continued", "parse_traceparent", "traceparent"]

_HEADER = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_SPAN_ID = re.compile(r"[0-9a-f]{16}")


def parse_traceparent(header: Any) -> tuple[str, str] | None:
    """Return the trace id and the caller's span id; None for anything that is no valid header.

    A version above 00 may be longer than what is known of it here; ff is none. Ids of zeros alone are invalid.
    """
    match = _HEADER.fullmatch(header.strip()) if isinstance(header, str) else None
    if match is None:
        return None
    version, trace_id, span_id, more = match.groups()
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return trace_id, span_id


def traceparent() -> str | None:
    """Return the header that tells another process of the current span.

    None outside of any span, and in one whose ids, chosen by the application, are not W3C's.
    """
    span = current_span()
    if span is None or not _TRACE_ID.fullmatch(span.trace_id) or not _SPAN_ID.fullmatch(span.span_id):
        return None
    return f"00-{span.trace_id}-{span.span_id}-01"


def continued(header: Any) -> use_span:
    """Return a span, not entered yet, of the caller's trace and below its span; of a fresh trace without a header."""
    parsed = parse_traceparent(header)
    if parsed is None:
        return use_span()
    trace_id, parent_span_id = parsed
    return use_span(trace_id, parent_span_id=parent_span_id)

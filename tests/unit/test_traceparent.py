"""W3C Trace Context: which headers count, and what becomes of those that do not."""

from __future__ import annotations

import pytest

from profilis_mp.core.context import current_span, use_span
from profilis_mp.core.traceparent import continued, parse_traceparent, traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("header", [f"00-{TRACE}-{SPAN}-01", f" 00-{TRACE}-{SPAN}-00\t", f"cc-{TRACE}-{SPAN}-01-more"])
def test_a_valid_header_names_trace_and_caller(header: str) -> None:
    assert parse_traceparent(header) == (TRACE, SPAN)


INVALID = [
    *(None, b"", "", "00", 7),
    f"00-{TRACE}-{SPAN}",
    f"00-{TRACE}-{SPAN}-1",
    f"00-{TRACE}-{SPAN}-01-more",
    f"ff-{TRACE}-{SPAN}-01",
    f"00-{'0' * 32}-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE.upper()}-{SPAN}-01",
    f"00-{TRACE[:-1]}é-{SPAN}-01",
    f"00-{TRACE}-{SPAN}-01\n00-{TRACE}-{SPAN}-01",
]


@pytest.mark.parametrize("header", INVALID)
def test_an_invalid_header_begins_a_trace_of_its_own(header: object) -> None:
    assert parse_traceparent(header) is None
    with continued(header) as span:
        assert len(span.trace_id) == 32
        assert span.parent_span_id is None


def test_a_continued_span_lies_below_its_caller_and_its_children_below_it() -> None:
    with continued(f"00-{TRACE}-{SPAN}-01") as outer, use_span() as inner:
        assert (outer.trace_id, outer.parent_span_id) == (TRACE, SPAN)
        assert (inner.trace_id, inner.parent_span_id) == (TRACE, outer.span_id)
        assert traceparent() == f"00-{TRACE}-{inner.span_id}-01"
    assert current_span() is None


def test_no_header_is_made_of_ids_that_are_not_w3c() -> None:
    assert traceparent() is None
    with use_span("trace-abc123"):
        assert traceparent() is None
    with use_span(TRACE, "span-1"):
        assert traceparent() is None

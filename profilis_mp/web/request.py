"""What is known of one request while it is handled, and has the client been given all of the answer?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from profilis_mp.core.context import Span, in_span, new_ids
from profilis_mp.core.traceparent import parse_traceparent

__all__ = ["UNMATCHED", "Request"]

UNMATCHED = "<unmatched>"


class Request:
    """What is known of one request so far.

    Args:
        path: As received.
        method: As received.
        traceparent: The header of that name, if any: the request goes on with the caller's trace.
        find_route: Asked for the route's template when the request is over, unless somebody has told it before.
    """

    __slots__ = (
        "began",
        "bypassed",
        "disconnected",
        "exception_type",
        "find_route",
        "finished",
        "length",
        "method",
        "parent_span_id",
        "path",
        "route",
        "sent",
        "span",
        "span_id",
        "status",
        "streamed",
        "trace_id",
    )

    def __init__(
        self,
        path: str,
        method: str,
        traceparent: str | None = None,
        find_route: Callable[[], str | None] | None = None,
    ) -> None:
        self.began = time.perf_counter_ns()
        self.path = path
        self.method = method
        caller = parse_traceparent(traceparent) if traceparent is not None else None
        self.trace_id, self.span_id = new_ids()
        self.parent_span_id: str | None = None
        if caller is not None:
            self.trace_id, self.parent_span_id = caller
        self.span = in_span(Span(self.trace_id, self.span_id, self.parent_span_id))
        self.find_route = find_route
        self.route = UNMATCHED
        self.status: int | None = None  # None: no answer has begun
        self.exception_type: str | None = None
        self.length: int | None = None  # bytes, as announced; None: not known
        self.sent = 0  # bytes
        self.streamed: bool | None = None  # None: the framework has not said
        self.disconnected = False  # the client
        self.finished = False
        self.bypassed = False  # Flask: the wrapper has been cut out

    def answer(self, status: int, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Take down what the client is told before the body. Headers that make no sense are the server's business."""
        self.status = status
        self.length = None
        if self.method == "HEAD" or status in (204, 304):
            self.length = 0  # whatever a header says: the client waits for no body
            return
        for name, value in headers:
            if name.lower() == "content-length":
                try:
                    self.length = int(value)
                except (TypeError, ValueError):
                    pass

    def completes(self, chunk: Any) -> bool:
        """Return whether the client has all of its answer once it gets ``chunk``."""
        try:
            self.sent += len(chunk)
        except TypeError:  # what is no bytes is the server's business
            pass
        return self.length is not None and self.sent >= self.length

"""What is known of one request while it is handled, and when is a streaming one over?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flask
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from profilis_mp.core.context import new_span_id, new_trace_id, use_span

__all__ = ["UNMATCHED", "Body", "Request", "is_answer", "is_page", "template"]

UNMATCHED = "<unmatched>"


class Request:
    """What is known of one request so far."""

    __slots__ = (
        "began",
        "bypassed",
        "exception_type",
        "finished",
        "length",
        "method",
        "page",
        "path",
        "route",
        "span",
        "status",
        "streamed",
        "trace_id",
    )

    def __init__(self, path: str, method: str) -> None:
        self.began = time.perf_counter_ns()
        self.path = path
        self.method = method
        self.trace_id = new_trace_id()
        self.span = use_span(self.trace_id, new_span_id())
        self.route = UNMATCHED
        self.status: int | None = None
        self.exception_type: str | None = None
        self.length: int | None = None  # bytes, as announced
        self.streamed: bool | None = None  # None: Flask has not said
        self.page: object = None  # the response, where it was made from an HTTPException
        self.finished = False
        self.bypassed = False

    def answer(self, status: str, headers: Iterable[tuple[str, str]]) -> None:
        """Take down what the server is told before the body."""
        try:
            self.status = int(status[:3])
            for name, value in headers:
                if name.lower() == "content-length":
                    self.length = int(value)
        except (TypeError, ValueError):  # the server's business
            pass


class Body:
    """A streaming response: reports its request when it is complete, fails, or is closed."""

    def __init__(self, body: Iterable[bytes], request: Request, finish: Callable[[Request], None]) -> None:
        self._body = body
        self._chunks: Iterator[bytes] | None = None
        self._sent = 0
        self._request = request
        self._finish = finish

    def __iter__(self) -> Body:
        return self

    def __next__(self) -> bytes:
        request = self._request
        with request.span:
            try:
                if self._chunks is None:
                    self._chunks = iter(self._body)
                chunk = next(self._chunks)
            except StopIteration:
                self._finish(request)
                raise
            except BaseException as error:
                request.exception_type = type(error).__name__
                self._finish(request)
                raise
            if request.length is not None:
                self._sent += len(chunk)
                if self._sent >= request.length:
                    self._finish(request)
            return chunk

    def close(self) -> None:
        with self._request.span:
            self._finish(self._request)
            close = getattr(self._body, "close", None)
            if close is not None:
                close()


def template(request: Any) -> str:
    """Return the template of the route that a request of Flask's has, or missed by its method only."""
    if request.url_rule is not None:
        return str(request.url_rule.rule)
    missed = request.routing_exception
    if isinstance(missed, MethodNotAllowed) and missed.valid_methods:
        adapter = flask.current_app.create_url_adapter(request)
        if adapter is not None:
            try:
                rule, _ = adapter.match(method=next(iter(missed.valid_methods)), return_rule=True)
            except HTTPException:
                return UNMATCHED
            return str(rule.rule)
    return UNMATCHED


def is_page(value: object) -> bool:
    """Return whether a response is to be made from an exception alone, by the text that it has."""
    return isinstance(value, HTTPException) and value.response is None


def is_answer(error: BaseException, request: Any) -> bool:
    """Return whether an exception is only a way to answer: a redirect, a finished response, the router's 404 or 405."""
    if not isinstance(error, HTTPException):
        return False
    return error is request.routing_exception or error.response is not None or (error.code or 500) < 400

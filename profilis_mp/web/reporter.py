"""Which requests become an event, and what does it say?

    route           the route's template; ``<unmatched>`` where no route fits, or none is visible, so that scanners do
                    not make a route of every path they try
    status          as sent; else 500, for an exception that left the application, or 499, where the client had gone
    dur_ns          from the request's arrival to the last of the answer
    method          as received
    path            only where route is ``<unmatched>``: the path as received
    exception_type  only where an exception was raised: its class name
    parent_span_id  only where the request came with a ``traceparent``: the caller's span

Query strings, bodies and headers are in no event.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from time import perf_counter_ns
from typing import Any

from profilis_mp.core.contained import contain
from profilis_mp.core.emitter import Emitter
from profilis_mp.core.events import req_event
from profilis_mp.errors import ConfigError
from profilis_mp.web.request import UNMATCHED, Request

__all__ = ["Reporter"]

_CANCELLED = {"CancelledError", "Cancelled"}  # asyncio's and trio's


class Reporter:
    """Makes one REQ event of each request that is not excluded.

    Args:
        collector: What has ``enqueue(event)``, such as `AsyncCollector`, or ``emit(event)``.
        exclude_routes: Templates, or paths with all that is below them: ``/health`` stands for ``/health`` and
            ``/health/db``, not for ``/healthy``.
        sample: Which share of the requests is reported, 0 to 1. It is chosen by the trace's id: every process with the
            same share chooses the same traces.
        who: Names the adapter in warnings.

    Attributes:
        key: Where a request is kept in its WSGI environment or ASGI scope. Adapters with the same collector have the
            same key, so that two of them around one application report a request once. None there: it is excluded.

    Raises:
        ConfigError: Naming the argument that was refused.
    """

    def __init__(self, collector: Any, exclude_routes: Iterable[str] = (), sample: float = 1.0, *, who: str) -> None:
        self._emitter = Emitter(collector)
        self.key = f"profilis_mp.request.{id(collector)}"  # unique: the emitter keeps the collector alive
        self.exclude_routes = _routes(exclude_routes)
        self.sample = _share(sample)
        self.who = who

    def begin(self, kept: MutableMapping[str, Any], path: str, *about: Any) -> Request | None:
        """Return a new request, now current in ``kept``; None for one that is excluded.

        Args:
            kept: The WSGI environment or ASGI scope.
            path: As received.
            about: The further arguments of `Request`.
        """
        request = None if self.exclude_routes and self._excludes(path) else Request(path, *about)
        kept[self.key] = request
        return request

    def _excludes(self, path: str) -> bool:
        routes = self.exclude_routes
        return path in routes or any(path.startswith(f"{route}/") for route in routes if route != "/")

    def failed(self, request: Request, error: BaseException) -> None:
        """Report a request that ends with an exception, which the caller raises again."""
        if not request.finished:
            while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                error = error.exceptions[0]  # as a task group wraps up a failure
            request.exception_type = type(error).__name__
            if request.status is None and request.exception_type in _CANCELLED:
                request.disconnected = True
            self.finish(request)

    def finish(self, request: Request) -> None:
        """Make the request's event; the second time do nothing. Raises nothing of its own."""
        if request.finished:
            return
        request.finished = True
        try:
            self.locate(request)
            request.find_route = None  # it has the scope, which has the request
            # The last digits: of some tracers' ids the first are a time, or zeros.
            if request.route in self.exclude_routes:
                return
            if self.sample < 1 and int(request.trace_id[-8:], 16) >= self.sample * 2**32:
                return
            status = request.status
            if status is None:
                status = 499 if request.disconnected else 500
            event = req_event(
                request.route,
                status,
                perf_counter_ns() - request.began,
                trace_id=request.trace_id,  # not the current span's: that may be another by now
                span_id=request.span_id,
            )
            event["method"] = request.method
            if request.route == UNMATCHED:
                event["path"] = request.path
            if request.exception_type is not None:
                event["exception_type"] = request.exception_type
            if request.parent_span_id is not None:
                event["parent_span_id"] = request.parent_span_id
            self._emitter.emit(event)
        except Exception as error:
            self.contain("a request was not reported", error)

    def locate(self, request: Request) -> str:
        """Return the request's route, looked for by now."""
        if request.route == UNMATCHED and request.find_route is not None:
            try:
                request.route = request.find_route() or UNMATCHED
            except Exception as error:
                self.contain("a route could not be found out", error)
        return request.route

    def contain(self, what: str, error: Exception) -> None:
        """Log what failed in an adapter; see `profilis_mp.core.contained.contain`."""
        contain(self.who, what, error)


def _routes(exclude_routes: Any) -> frozenset[str]:
    if isinstance(exclude_routes, str):
        raise ConfigError("exclude_routes", f"{exclude_routes!r} is one string; give a list of routes")
    try:
        routes = list(exclude_routes or ())
    except TypeError as error:
        raise ConfigError("exclude_routes", f"{exclude_routes!r} is no list of routes") from error
    for route in routes:
        if not isinstance(route, str) or not (route.startswith("/") or route == UNMATCHED):
            raise ConfigError("exclude_routes", f"{route!r} is no route: it does not begin with /")
    return frozenset(route.rstrip("/") or "/" for route in routes) | frozenset(routes)


def _share(sample: Any) -> float:
    if isinstance(sample, bool) or not isinstance(sample, int | float) or not 0 <= sample <= 1:
        raise ConfigError("sample", f"{sample!r} is not a number from 0 to 1")
    return float(sample)

"""How does every request to a Django project become exactly one REQ event?  By a middleware, the first of all.

In settings.py::

    from profilis_mp import AsyncCollector, JSONLExporter

    MIDDLEWARE = ["profilis_mp.django.ProfilisMiddleware", ...]
    PROFILIS = {"collector": AsyncCollector(JSONLExporter(dir=BASE_DIR / "logs")), "exclude_routes": ["/health"]}

When the event is made: before Django hands the response to the server; for a streaming response with the chunk that
completes its Content-Length, or when it ends, fails or is closed; for a file that the WSGI server sends itself, when it
is handed over.

What the event says: `profilis_mp.web.reporter`, and here:

    route           as ``request.resolver_match.route`` has it, with the leading slash: ``/users/<int:pk>/``
    exception_type  of an exception that a view raised, ``Http404`` for instance, or that became a 500. Not of the
                    resolver's own 404

What Django answers before any middleware (a request too large, or that cannot be decoded) is not seen. Whoever wants
that too wraps ``get_wsgi_application()`` in `ProfilisWSGIMiddleware`, or ``get_asgi_application()`` in
`ProfilisASGIMiddleware`, with the same collector: those then report, and this middleware tells them the route.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from profilis_mp.errors import ConfigError
from profilis_mp.web.reporter import Reporter
from profilis_mp.web.request import UNMATCHED, Request

try:
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction
    from django import conf  # not its settings: doctest would look into them
    from django.core.signals import got_request_exception
    from django.http import FileResponse, HttpRequest
    from django.http.response import HttpResponseBase
    from django.utils.module_loading import import_string
except ImportError as error:
    raise ImportError('ProfilisMiddleware needs Django: pip install "profilis_mp[django]"') from error
from profilis_mp.django.streams import reported_stream

__all__ = ["ProfilisMiddleware"]

_OPTIONS = ("collector", "exclude_routes", "sample")


class ProfilisMiddleware:
    """Profiles a Django project, under WSGI and ASGI.

    ``settings.PROFILIS`` is a dict:

        collector       What has ``enqueue(event)``, such as `AsyncCollector`, or ``emit(event)``; or a dotted path to
                        that
        exclude_routes  Optional; see `Reporter`
        sample          Optional: which share of the requests is reported, 0 to 1. Requests left out still have their
                        span

    A span is current while a request is handled, in the thread or task that handles it, and while its stream is
    iterated over. Whatever fails here is logged and fails no request.

    Raises:
        ConfigError: Naming the option that was refused.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self._reporter = _reporter(getattr(conf.settings, "PROFILIS", None))
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)
        got_request_exception.connect(self._on_exception)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._is_async:
            return self._answered_async(request)
        known, is_ours = self._begin(request)
        if known is None:
            response: HttpResponseBase = self.get_response(request)
            return response
        with known.span:
            try:
                response = self.get_response(request)
            except BaseException as error:
                self._failed(known, request, error, is_ours)
                raise
            return self._answer(known, request, response, is_ours)

    async def _answered_async(self, request: HttpRequest) -> HttpResponseBase:
        known, is_ours = self._begin(request)
        if known is None:
            response: HttpResponseBase = await self.get_response(request)
            return response
        with known.span:
            try:
                response = await self.get_response(request)
            except BaseException as error:
                self._failed(known, request, error, is_ours)
                raise
            return self._answer(known, request, response, is_ours)

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        """Called by Django when a view raises."""
        known = _kept(request).get(self._reporter.key)
        if known is not None:
            known.exception_type = type(exception).__name__

    def _on_exception(self, request: HttpRequest | None = None, **_: Any) -> None:
        """Called by Django where an exception becomes a 500: also one that a middleware raised."""
        error = sys.exc_info()[1]
        if request is not None and isinstance(error, Exception):
            self.process_exception(request, error)

    def _begin(self, request: HttpRequest) -> tuple[Request | None, bool]:
        """Return the request's state, and whether it is this middleware that reports it."""
        kept, reporter = _kept(request), self._reporter
        if reporter.key in kept:
            return kept[reporter.key], False
        try:
            path, method = request.path_info or "/", request.method or ""
            return reporter.begin(kept, path, method, request.headers.get("traceparent")), True
        except Exception as error:
            reporter.contain("a request could not be profiled", error)
            return None, True

    def _failed(self, known: Request, request: HttpRequest, error: BaseException, is_ours: bool) -> None:
        known.route = _route(known, request)
        if is_ours:
            self._reporter.failed(known, error)

    def _answer(
        self, known: Request, request: HttpRequest, response: HttpResponseBase, is_ours: bool
    ) -> HttpResponseBase:
        try:
            known.route = _route(known, request)
            if not is_ours:
                if not response.streaming:
                    known.streamed = False  # all of it is there
                return response
            known.answer(response.status_code, response.items())
            if response.streaming and known.length != 0 and not _is_for_the_server(request, response):
                reported_stream(response, known, self._reporter)
                return response
        except Exception as error:
            self._reporter.contain("an answer could not be understood", error)
        if is_ours:
            self._reporter.finish(known)
        return response


def _route(known: Request, request: HttpRequest) -> str:
    match = request.resolver_match
    return known.route if match is None or known.route != UNMATCHED else f"/{match.route}"


def _kept(request: HttpRequest) -> Any:
    """The ASGI scope or WSGI environment, where a middleware around Django keeps its request too."""
    scope = getattr(request, "scope", None)
    return request.META if scope is None else scope


def _is_for_the_server(request: HttpRequest, response: HttpResponseBase) -> bool:
    return (
        isinstance(response, FileResponse)
        and getattr(response, "file_to_stream", None) is not None
        and "wsgi.file_wrapper" in request.META
    )


def _reporter(options: Any) -> Reporter:
    if not isinstance(options, Mapping):
        raise ConfigError("PROFILIS", "the settings have no dict of that name, with at least a collector")
    unknown = [name for name in options if name not in _OPTIONS]
    if unknown:
        raise ConfigError("PROFILIS", f"{unknown[0]!r} is none of {', '.join(_OPTIONS)}")
    collector = options.get("collector")
    if isinstance(collector, str):
        try:
            collector = import_string(collector)
        except ImportError as error:
            raise ConfigError("collector", str(error)) from error
    return Reporter(collector, options.get("exclude_routes", ()), options.get("sample", 1.0), who="profilis_mp.django")

"""How does every request to a Flask application become exactly one REQ event?

By a wrapper around ``app.wsgi_app``: nothing that Flask does with a request happens outside of it, not even what raises
while the response is made or torn down. Signals, and two wrapped methods of the application, only tell it what it
cannot see from there: the route, whether the response is a stream, and which exception an error handler turned into a
response.

When the event is made:

- Before the response's body is handed to the server: a request that was answered is in the log even when its worker is
  killed right after the answer.
- A streaming response: with the chunk that completes its Content-Length, before the server gets that; without one, when
  its iterator ends, before the server is told so; or when the server closes it, as it does when the client has gone.
- A file that the server sends itself (``send_file`` with ``wsgi.file_wrapper``): when it is handed over. The server
  would not recognise it under a wrapper.
- An exception that leaves the application, whatever it is: before the server gets it.

What the event says, besides a REQ event's own keys (`profilis_mp.core.events`):

    route           the route's template, blueprint prefix included; for a wrong method (405) that of the route missed;
                    ``<unmatched>`` where no route fits, so that scanners do not make a route of every path they try
    status          as sent; 500 for an exception that left the application
    dur_ns          from the request's arrival to the moment above
    method          as received
    path            only where route is ``<unmatched>``: the path as received
    exception_type  only where an exception was raised, handled or not: its class name. Redirects, and the router's own
                    404 and 405, are answers and not exceptions; ``abort(403)`` in a view is one
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

from profilis_mp.core.emitter import Emitter
from profilis_mp.core.scalars import scalar
from profilis_mp.diagnostics import warn
from profilis_mp.errors import ConfigError
from profilis_mp.interrupts import was_thrown_in

try:
    import flask
except ImportError as error:
    raise ImportError('ProfilisFlask needs Flask: pip install "profilis_mp[flask]"') from error
from profilis_mp.flask.watched import UNMATCHED, Body, Request, is_answer, is_page, template

__all__ = ["ProfilisFlask"]


def _contained(receiver: Callable[..., None]) -> Callable[..., None]:
    """Keep a receiver's own failure from the request; a method still, because signals hold methods weakly."""

    @functools.wraps(receiver)
    def call(self: ProfilisFlask, app: flask.Flask, **about: Any) -> None:
        try:
            receiver(self, **about)
        except Exception as error:
            _contain("what a request did could not be found out", error)

    return call


class ProfilisFlask:
    """Profiles a Flask application.

        >>> from flask import Flask
        >>> from profilis_mp.core.async_collector import AsyncCollector
        >>> app, events = Flask("shop"), []
        >>> @app.get("/users/<int:user>")
        ... def show(user):
        ...     return f"user {user}"
        >>> collector = AsyncCollector(events.extend)
        >>> profilis = ProfilisFlask(app, collector=collector, exclude_routes=["/health"])
        >>> app.test_client().get("/users/7").text, collector.close()
        ('user 7', True)
        >>> [(event["method"], event["route"], event["status"]) for event in events]
        [('GET', '/users/<int:user>', 200)]

    A span is current while a request is handled, and while its stream is iterated over: events that a view emits share
    its trace. The request's body is never touched. Whatever fails here is logged and fails no request.

    A later ``app.wsgi_app = Middleware(app.wsgi_app)`` is fine; what such a middleware answers by itself is not seen.
    Where the wrapper has been cut out altogether, Flask's signals take its place, which do not see a failing teardown.

    Args:
        app: The application. Once only.
        collector: What has ``enqueue(event)``, such as `AsyncCollector`, or ``emit(event)``.
        exclude_routes: Templates, or paths with all that is below them: ``/health`` stands for ``/health`` and
            ``/health/db``, not for ``/healthy``.
        sample: Which share of the requests is reported, 0 to 1. Requests left out still have their span.

    Raises:
        ConfigError: Naming the argument that was refused. The application is untouched.
    """

    def __init__(
        self, app: flask.Flask, *, collector: Any, exclude_routes: Iterable[str] = (), sample: float = 1.0
    ) -> None:
        if not isinstance(app, flask.Flask):
            raise ConfigError("app", f"a {type(app).__name__} is no Flask application")
        if "profilis_mp" in app.extensions:
            raise ConfigError("app", "is being profiled already: every request would be reported twice")
        self.app = app
        self.collector = collector
        self.exclude_routes = _routes(exclude_routes)
        self.sample = _share(sample)
        self._emitter = Emitter(collector)
        self._key = f"profilis_mp.flask.{id(self)}"  # in the WSGI environment; applications may be nested in one
        app.extensions["profilis_mp"] = self  # and so it lives, and with it the receivers below
        attributes = vars(app)
        attributes["wsgi_app"] = self._around_wsgi_app(app.wsgi_app)
        attributes["make_response"] = self._around_make_response(app.make_response)
        attributes["handle_user_exception"] = self._around_handle_user_exception(app.handle_user_exception)
        flask.request_started.connect(self._on_started, app)
        flask.request_finished.connect(self._on_finished, app)
        flask.got_request_exception.connect(self._on_exception, app)

    def _around_wsgi_app(self, inner: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        def wsgi_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            request = self._begin(environ)
            if request is None:
                return inner(environ, start_response)

            def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
                request.answer(status, headers)
                return start_response(status, headers, *exc_info)

            with request.span:
                try:
                    body = inner(environ, start)
                except BaseException as error:
                    request.status = 500
                    request.exception_type = type(error).__name__
                    self._finish(request)
                    raise
                streamed = not isinstance(body, list | tuple) if request.streamed is None else request.streamed
                if streamed or request.status is None:
                    return Body(body, request, self._finish)
                self._finish(request)
                return body

        return wsgi_app

    def _around_handle_user_exception(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        on_exception = self._on_exception

        def handle_user_exception(*args: Any, **kwargs: Any) -> Any:
            # The last argument: Flask 3.2 passes its context before it.
            on_exception(self.app, exception=args[-1] if args else None)
            return inner(*args, **kwargs)

        return handle_user_exception

    def _around_make_response(self, inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def make_response(value: Any) -> Any:
            response = inner(value)
            if is_page(value):  # its text is there already, but Werkzeug wraps it up as a stream
                request = flask.request.environ.get(self._key)
                if request is not None:
                    request.page = response
            return response

        return make_response

    def _begin(self, environ: dict[str, Any]) -> Request | None:
        try:
            path = environ.get("PATH_INFO", "").encode("latin-1", "replace").decode("utf-8", "replace") or "/"
            excluded = any(
                path == route or path.startswith(f"{route}/") for route in self.exclude_routes if route != "/"
            )
            request = None if excluded or path in self.exclude_routes else Request(path, environ["REQUEST_METHOD"])
            environ[self._key] = request
            return request
        except Exception as error:
            _contain("a request could not be profiled", error)
            return None

    def _finish(self, request: Request) -> None:
        """Make the request's event; the second time do nothing."""
        if request.finished:
            return
        request.finished = True
        try:
            if request.route in self.exclude_routes or int(request.trace_id[:8], 16) >= self.sample * 2**32:
                return
            extra = {"method": request.method}
            if request.route == UNMATCHED:
                extra["path"] = request.path
            if request.exception_type is not None:
                extra["exception_type"] = request.exception_type
            dur_ns = time.perf_counter_ns() - request.began
            self._emitter.emit_req(request.route, 500 if request.status is None else request.status, dur_ns, **extra)
        except Exception as error:
            _contain("a request was not reported", error)

    # -- what Flask tells from inside of the wrapper

    def _note(self, error: BaseException | None) -> Request | None:
        """Take down which route the current request has, and an exception that was raised."""
        current = flask.request
        request: Request | None = current.environ.get(self._key)
        if request is not None:
            if request.route == UNMATCHED:
                request.route = template(current)
            if error is not None and not is_answer(error, current):
                request.exception_type = type(error).__name__
        return request

    @_contained
    def _on_started(self, **_: Any) -> None:
        environ = flask.request.environ
        if self._key not in environ:  # the wrapper has been cut out
            request = self._begin(environ)
            if request is not None:
                flask.request_tearing_down.connect(self._on_tearing_down, self.app)
                request.bypassed = True
                request.span.__enter__()
        self._note(None)

    @_contained
    def _on_exception(self, exception: BaseException | None = None, **_: Any) -> None:
        self._note(exception)

    @_contained
    def _on_finished(self, response: Any, **_: Any) -> None:
        request = self._note(None)
        if request is None:
            return
        request.streamed = not (response.is_sequence or response.direct_passthrough or response is request.page)
        if request.bypassed:
            request.status = response.status_code
            if request.streamed:
                response.call_on_close(functools.partial(self._finish_in_span, request))
            else:
                self._finish(request)

    @_contained
    def _on_tearing_down(self, exc: BaseException | None = None, **_: Any) -> None:
        request = flask.request.environ.get(self._key)
        if request is not None and request.bypassed:
            self._note(exc)
            if not request.streamed:
                self._finish(request)
            request.span.__exit__()

    def _finish_in_span(self, request: Request) -> None:
        with request.span:
            self._finish(request)


def _routes(exclude_routes: Any) -> frozenset[str]:
    if isinstance(exclude_routes, str):
        raise ConfigError("exclude_routes", f"{exclude_routes!r} is one string; give a list of routes")
    routes = list(exclude_routes or ())
    for route in routes:
        if not isinstance(route, str) or not (route.startswith("/") or route == UNMATCHED):
            raise ConfigError("exclude_routes", f"{route!r} is no route: it does not begin with /")
    return frozenset(route.rstrip("/") or "/" for route in routes) | frozenset(routes)


def _share(sample: Any) -> float:
    if isinstance(sample, bool) or not isinstance(sample, int | float) or not 0 <= sample <= 1:
        raise ConfigError("sample", f"{sample!r} is not a number from 0 to 1")
    return float(sample)


def _contain(what: str, error: Exception) -> None:
    """Log what failed here; what a signal handler threw in is raised again, it is the application's."""
    if was_thrown_in(error):
        raise error
    warn(f"flask: {what}", f"ProfilisFlask: {what}: {scalar(error)[0]}")

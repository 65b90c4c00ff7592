"""How does every request to a Flask application become exactly one REQ event?

By a wrapper around ``app.wsgi_app``: nothing that Flask does with a request happens outside of it, not even what raises
while the response is made or torn down. Signals, and two wrapped methods of the application, only tell it what it
cannot see from there: the route, whether the response is a stream, and which exception an error handler turned into a
response.

When the event is made: `profilis_mp.web.wsgi`. What it says: `profilis_mp.web.reporter`, and of Flask's requests:

    route           blueprint prefix included; for a wrong method (405) that of the route missed
    exception_type  of an exception handled or not. Redirects, and the router's own 404 and 405, are answers and not
                    exceptions; ``abort(403)`` in a view is one
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from profilis_mp.errors import ConfigError
from profilis_mp.web.reporter import Reporter
from profilis_mp.web.request import UNMATCHED, Request
from profilis_mp.web.wsgi import Environ, StartResponse, WSGIApplication, begun, reported

try:
    import flask
except ImportError as error:
    raise ImportError('ProfilisFlask needs Flask: pip install "profilis_mp[flask]"') from error
from profilis_mp.flask.watched import is_answer, is_page, template

__all__ = ["ProfilisFlask"]


def _contained(receiver: Callable[..., None]) -> Callable[..., None]:
    """Keep a receiver's own failure from the request; a method still, because signals hold methods weakly."""

    @functools.wraps(receiver)
    def call(self: ProfilisFlask, app: flask.Flask, **about: Any) -> None:
        try:
            receiver(self, app, **about)
        except Exception as error:
            self._reporter.contain("what a request did could not be found out", error)

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

    With an application factory, ``profilis = ProfilisFlask(collector=collector)`` once and ``profilis.init_app(app)``
    for each application.

    A span is current while a request is handled, and while its stream is iterated over: events that a view emits share
    its trace, which is the caller's where the request has a ``traceparent``. The request's body is never touched.
    Whatever fails here is logged and fails no request.

    A later ``app.wsgi_app = Middleware(app.wsgi_app)`` is fine; what such a middleware answers by itself is not seen.
    Where the wrapper has been cut out altogether, Flask's signals take its place, which do not see a failing teardown.

    Args:
        app: The application, each once only; None: `init_app` gets it later.
        collector: What has ``enqueue(event)``, such as `AsyncCollector`, or ``emit(event)``.
        exclude_routes: See `Reporter`.
        sample: Which share of the requests is reported, 0 to 1. Requests left out still have their span.

    Raises:
        ConfigError: Naming the argument that was refused. The application is untouched.
    """

    def __init__(
        self,
        app: flask.Flask | None = None,
        *,
        collector: Any,
        exclude_routes: Iterable[str] = (),
        sample: float = 1.0,
    ) -> None:
        self.collector = collector
        self._reporter = Reporter(collector, exclude_routes, sample, who="ProfilisFlask")
        self._key = self._reporter.key
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Profile an application, one more or the first.

        Raises:
            ConfigError: It is no Flask application, or is being profiled already. It is untouched.
        """
        if not isinstance(app, flask.Flask):
            raise ConfigError("app", f"a {type(app).__name__} is no Flask application")
        if "profilis_mp" in app.extensions:
            raise ConfigError("app", "is being profiled already: every request would be reported twice")
        app.extensions["profilis_mp"] = self  # and so it lives, and with it the receivers below
        attributes = vars(app)
        attributes["wsgi_app"] = self._around_wsgi_app(app.wsgi_app)
        attributes["make_response"] = self._around_make_response(app.make_response)
        attributes["handle_user_exception"] = self._around_handle_user_exception(app.handle_user_exception)
        flask.request_started.connect(self._on_started, app)
        flask.request_finished.connect(self._on_finished, app)
        flask.got_request_exception.connect(self._on_exception, app)

    def _around_wsgi_app(self, inner: WSGIApplication) -> WSGIApplication:
        reporter, key = self._reporter, self._key

        def wsgi_app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            # Begun already where this application answers for another one with the same collector.
            request = None if key in environ else begun(reporter, environ)
            if request is None:
                return inner(environ, start_response)
            return reported(reporter, request, inner, environ, start_response)

        return wsgi_app

    def _around_handle_user_exception(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        on_exception = self._on_exception

        def handle_user_exception(*args: Any, **kwargs: Any) -> Any:
            # The last argument: Flask 3.2 passes its context before it.
            on_exception(None, exception=args[-1] if args else None)
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
    def _on_started(self, app: flask.Flask, **_: Any) -> None:
        environ = flask.request.environ
        if self._key not in environ:  # the wrapper has been cut out
            request = begun(self._reporter, environ)
            if request is not None:
                flask.request_tearing_down.connect(self._on_tearing_down, app)
                request.bypassed = True
                request.span.__enter__()
        self._note(None)

    @_contained
    def _on_exception(self, app: object, exception: BaseException | None = None, **_: Any) -> None:
        self._note(exception)

    @_contained
    def _on_finished(self, app: flask.Flask, response: Any, **_: Any) -> None:
        request = self._note(None)
        if request is None:
            return
        request.streamed = not (response.is_sequence or response.direct_passthrough or response is request.page)
        if request.bypassed:
            request.status = response.status_code
            if request.streamed:
                response.call_on_close(functools.partial(self._finish_in_span, request))
            else:
                self._reporter.finish(request)

    @_contained
    def _on_tearing_down(self, app: flask.Flask, exc: BaseException | None = None, **_: Any) -> None:
        request = flask.request.environ.get(self._key)
        if request is not None and request.bypassed:
            self._note(exc)
            if not request.streamed:
                self._reporter.finish(request)
            request.span.__exit__()

    def _finish_in_span(self, request: Request) -> None:
        with request.span:
            self._reporter.finish(request)

"""How does every request to a Flask application become exactly one REQ event?

By a wrapper around ``app.wsgi_app``: nothing that Flask does with a request happens outside of it, not even what raises
while the response is made or torn down. Three more wrapped methods of the application, and the signal of an exception,
tell it what it cannot see from there: the route, whether the response is a stream, and which exception an error handler
turned into a response. (Methods, because a signal costs each request several times as much once it has a receiver.)

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
from profilis_mp.web.request import Request
from profilis_mp.web.wsgi import Environ, StartResponse, WSGIApplication, begun, reported

try:
    import flask
except ImportError as error:
    raise ImportError('ProfilisFlask needs Flask: pip install "profilis_mp[flask]"') from error
from profilis_mp.flask.watched import is_answer, is_page, template

__all__ = ["ProfilisFlask"]


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
        attributes["request_context"] = self._around_request_context(app, app.request_context)
        attributes["finalize_request"] = self._around_finalize_request(app.finalize_request)
        attributes["handle_user_exception"] = self._around_handle_user_exception(app.handle_user_exception)
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

    def _around_request_context(self, app: flask.Flask, inner: Callable[[Environ], Any]) -> Callable[[Environ], Any]:
        key = self._key

        def request_context(environ: Environ) -> Any:
            context = inner(environ)
            try:
                if key not in environ:
                    # The wrapper has been cut out, or this is no request at all (test_request_context).
                    flask.request_started.connect(self._on_started, app)
                    return context
                request = environ[key]
                # The first application's, where one answers through another; not a surrounding middleware's.
                if request is not None and getattr(request.find_route, "func", None) is not template:
                    request.find_route = functools.partial(template, context.request)
            except Exception as error:
                self._contain(error)
            return context

        return request_context

    def _around_finalize_request(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        key = self._key

        def finalize_request(*args: Any, **kwargs: Any) -> Any:
            response = inner(*args, **kwargs)
            try:
                request = flask.request.environ.get(key)
                if request is not None:
                    # Of a page the text is there already, but Werkzeug wraps it up as a stream. (The last argument:
                    # Flask 3.2 passes its context before it.)
                    complete = response.is_sequence or response.direct_passthrough or is_page(args[-1])
                    request.streamed = not complete
                    if request.bypassed:
                        self._finalized(request, response)
            except Exception as error:
                self._contain(error)
            return response

        return finalize_request

    def _around_handle_user_exception(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        on_exception = self._on_exception

        def handle_user_exception(*args: Any, **kwargs: Any) -> Any:
            on_exception(None, exception=args[-1] if args else None)
            return inner(*args, **kwargs)

        return handle_user_exception

    # -- what Flask tells from inside of the wrapper

    def _on_exception(self, app: object, exception: BaseException | None = None, **_: Any) -> None:
        """Take down that an exception was raised."""
        try:
            current = flask.request
            request: Request | None = current.environ.get(self._key)
            if request is not None and exception is not None and not is_answer(exception, current):
                request.exception_type = type(exception).__name__
        except Exception as error:
            self._contain(error)

    def _contain(self, error: Exception) -> None:
        self._reporter.contain("what a request did could not be found out", error)

    # -- and what instead of the wrapper, where that has been cut out

    def _on_started(self, app: flask.Flask, **_: Any) -> None:
        try:
            current = flask.request
            environ = current.environ
            if self._key not in environ:
                request = begun(self._reporter, environ, functools.partial(template, current))
                if request is not None:
                    flask.request_tearing_down.connect(self._on_tearing_down, app)
                    request.bypassed = True
                    request.span.__enter__()
        except Exception as error:
            self._contain(error)

    def _finalized(self, request: Request, response: Any) -> None:
        request.status = response.status_code
        if request.streamed:
            self._reporter.locate(request)  # now: there is no request any more when a stream is closed
            response.call_on_close(functools.partial(self._finish_in_span, request))
        else:
            self._reporter.finish(request)

    def _on_tearing_down(self, app: flask.Flask, exc: BaseException | None = None, **_: Any) -> None:
        try:
            request = flask.request.environ.get(self._key)
            if request is not None and request.bypassed:
                self._on_exception(app, exc)
                if not request.streamed:
                    self._reporter.finish(request)
                request.span.__exit__()
        except Exception as error:
            self._contain(error)

    def _finish_in_span(self, request: Request) -> None:
        with request.span:
            self._reporter.finish(request)

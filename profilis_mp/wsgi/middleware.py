"""How does every request to a WSGI application become exactly one REQ event?  By a middleware around it.

When the event is made: `profilis_mp.web.wsgi`. What it says: `profilis_mp.web.reporter`. WSGI has no word for a route.
Three applications show theirs all the same: one of Flask's, whose request Werkzeug keeps in the environment, one with
`ProfilisFlask`, and one of Django's with `profilis_mp.django.ProfilisMiddleware`, each with the same collector. Any
other has ``<unmatched>`` and the path.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from profilis_mp.errors import ConfigError
from profilis_mp.web.reporter import Reporter
from profilis_mp.web.wsgi import Environ, StartResponse, WSGIApplication, begun, reported

__all__ = ["ProfilisWSGIMiddleware"]


class ProfilisWSGIMiddleware:
    """Profiles a WSGI application.

        >>> from profilis_mp.core.async_collector import AsyncCollector
        >>> def application(environ, start_response):
        ...     start_response("200 OK", [("Content-Type", "text/plain")])
        ...     return [b"hello"]
        >>> events = []
        >>> collector = AsyncCollector(events.extend)
        >>> application = ProfilisWSGIMiddleware(application, collector=collector, exclude_routes=["/health"])
        >>> environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/greeting"}
        >>> application(environ, lambda status, headers: None), collector.close()
        ([b'hello'], True)
        >>> [(event["method"], event["path"], event["status"]) for event in events]
        [('GET', '/greeting', 200)]

    A span is current while a request is handled, and while its stream is iterated over. Where an application with a
    profile of its own, on the same collector, is inside, a request is still one event. Whatever fails here is logged
    and fails no request.

    Args:
        app: The application.
        collector: What has ``enqueue(event)``, such as `AsyncCollector`, or ``emit(event)``.
        exclude_routes: See `Reporter`.
        sample: Which share of the requests is reported, 0 to 1. Requests left out still have their span.

    Raises:
        ConfigError: Naming the argument that was refused.
    """

    def __init__(
        self, app: WSGIApplication, *, collector: Any, exclude_routes: Iterable[str] = (), sample: float = 1.0
    ) -> None:
        if not callable(app):
            raise ConfigError("app", f"a {type(app).__name__} is no WSGI application")
        self.app = app
        self._reporter = Reporter(collector, exclude_routes, sample, who="ProfilisWSGIMiddleware")

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        reporter = self._reporter
        request = None if reporter.key in environ else begun(reporter, environ, partial(_route, environ))
        if request is None:
            return self.app(environ, start_response)
        return reported(reporter, request, self.app, environ, start_response)


def _route(environ: Environ) -> str | None:
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    template = getattr(rule, "rule", None)
    if not isinstance(template, str):
        return None
    # One that was put below a path, by DispatcherMiddleware for instance.
    return f"{environ.get('SCRIPT_NAME', '')}{template}"

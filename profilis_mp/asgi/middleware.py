"""How does every HTTP request to an ASGI application become exactly one REQ event?  By a middleware around it.

When the event is made:

- With the message that gives the client the last of its answer, before the server gets that message: the last body
  message, or the one that completes the Content-Length, or the first where there is no body (HEAD, 204, 304).
  Background tasks run after that and are not in ``dur_ns``; they still have the request's span.
- When the application ends without that, by returning or by an exception, before the server knows.

What the event says: `profilis_mp.web.reporter`, and here:

    route           Starlette's and FastAPI's, prefixes of routers and mounts included: `profilis_mp.asgi.routes`.
                    Django's with `profilis_mp.django.ProfilisMiddleware` and the same collector
    status          as sent. Where no answer had begun, 499 if the client had gone or the request was cancelled, and
                    500 otherwise
    exception_type  of an exception that left the application before the answer was complete, or that was being handled
                    when the answer began: also of those that Starlette's exception handlers turn into an answer. Not
                    of the router's own 404 and 405

Websockets and the lifespan pass through untouched.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import partial
from typing import Any, TypeAlias

from profilis_mp.asgi.routes import find_route
from profilis_mp.errors import ConfigError
from profilis_mp.web.reporter import Reporter
from profilis_mp.web.request import UNMATCHED, Request

__all__ = ["ProfilisASGIMiddleware"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApplication: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


class ProfilisASGIMiddleware:
    """Profiles an ASGI application.

        >>> import asyncio
        >>> from profilis_mp.core.async_collector import AsyncCollector
        >>> async def application(scope, receive, send):
        ...     await send({"type": "http.response.start", "status": 200, "headers": []})
        ...     await send({"type": "http.response.body", "body": b"hello"})
        >>> events = []
        >>> collector = AsyncCollector(events.extend)
        >>> application = ProfilisASGIMiddleware(application, collector=collector, exclude_routes=["/health"])
        >>> async def send(message):
        ...     pass
        >>> scope = {"type": "http", "method": "GET", "path": "/greeting", "headers": []}
        >>> asyncio.run(application(scope, None, send)), collector.close()
        (None, True)
        >>> [(event["method"], event["path"], event["status"]) for event in events]
        [('GET', '/greeting', 200)]

    With FastAPI and Starlette: ``app.add_middleware(ProfilisASGIMiddleware, collector=collector)``.

    A span is current while a request is handled, in background tasks too: events that an endpoint emits share its
    trace. Where an application with a profile of its own, on the same collector, is inside, a request is still one
    event. Whatever fails here is logged and fails no request.

    Args:
        app: The application.
        collector: What has ``enqueue(event)``, such as `AsyncCollector`, or ``emit(event)``. One that waits makes the
            event loop wait; `AsyncCollector` does not.
        exclude_routes: See `Reporter`.
        sample: Which share of the requests is reported, 0 to 1. Requests left out still have their span.

    Raises:
        ConfigError: Naming the argument that was refused.
    """

    def __init__(
        self, app: ASGIApplication, *, collector: Any, exclude_routes: Iterable[str] = (), sample: float = 1.0
    ) -> None:
        if not callable(app):
            raise ConfigError("app", f"a {type(app).__name__} is no ASGI application")
        self.app = app
        self._reporter = Reporter(collector, exclude_routes, sample, who="ProfilisASGIMiddleware")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reporter = self._reporter
        request = None
        if scope["type"] == "http" and reporter.key not in scope:
            request = self._begin(scope)
        if request is None:
            await self.app(scope, receive, send)
            return
        outside = sys.exc_info()[1]  # what a caller of ours is handling is not this request's

        async def received() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                request.disconnected = True
            return message

        async def sent(message: Message) -> None:
            if not request.finished:
                try:
                    self._note(request, message, outside)
                except Exception as error:
                    reporter.contain("an answer could not be understood", error)
            await send(message)

        with request.span:
            try:
                await self.app(scope, received, sent)
            except BaseException as error:
                reporter.failed(request, error)
                raise
            reporter.finish(request)

    def _begin(self, scope: Scope) -> Request | None:
        try:
            callers = [value for name, value in scope["headers"] if name == b"traceparent"]
            caller = callers[0].decode("latin-1") if len(callers) == 1 else None
            # Into the scope itself, not into a copy: middlewares around us look there for what the router leaves in it.
            find = partial(find_route, scope)
            return self._reporter.begin(scope, scope["path"] or "/", scope["method"], caller, find)
        except Exception as error:
            self._reporter.contain("a request could not be profiled", error)
            return None

    def _note(self, request: Request, message: Message, outside: BaseException | None) -> None:
        """Take down what a message tells the client; finish the request if it is the last of the answer."""
        kind = message["type"]
        if kind == "http.response.start":
            request.answer(message["status"], _decoded(message.get("headers", ())))
            handled = sys.exc_info()[1]
            if handled is not None and handled is not outside and not self._is_routers_answer(request, handled):
                request.exception_type = type(handled).__name__
            complete = request.length == 0
        elif kind == "http.response.pathsend":
            complete = True
        elif kind in ("http.response.body", "http.response.zerocopysend"):
            complete = request.completes(message.get("body", b"")) or not message.get("more_body", False)
        else:
            return
        if complete:
            self._reporter.finish(request)

    def _is_routers_answer(self, request: Request, handled: BaseException) -> bool:
        """Whether it is what Starlette's router answers with where no route fits, or not with that method."""
        if type(handled).__name__ != "HTTPException":
            return False
        return request.status == 405 or (request.status == 404 and self._reporter.locate(request) == UNMATCHED)


def _decoded(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[str, str]]:
    return ((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)

"""How does every call of a WSGI application become one reported request, before the server has all of the answer?

When the event is made:

- A body that is a list or tuple, or that the framework says is complete: before it is handed to the server.
- Any other body: with the chunk that completes its Content-Length, before the server gets that; without one, when its
  iterator ends, before the server is told so; or when the server closes it, as it does when the client has gone.
- An answer without a body (HEAD, 204, 304): before the server gets anything to send with its headers.
- A file that the server sends itself (``wsgi.file_wrapper``): when it is handed over. The server would not recognise it
  under a wrapper.
- An exception that leaves the application, whatever it is: before the server gets it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from profilis_mp.web.reporter import Reporter
from profilis_mp.web.request import Request

__all__ = ["Body", "Environ", "StartResponse", "WSGIApplication", "begun", "reported"]

Environ: TypeAlias = dict[str, Any]
StartResponse: TypeAlias = Callable[..., Callable[[bytes], object]]
WSGIApplication: TypeAlias = Callable[[Environ, StartResponse], Iterable[bytes]]


def begun(reporter: Reporter, environ: Environ, find_route: Callable[[], str | None] | None = None) -> Request | None:
    """Return the request that begins with ``environ``; None for one that is not to be reported."""
    try:
        path = environ.get("PATH_INFO") or "/"
        if not path.isascii():
            path = path.encode("latin-1", "replace").decode("utf-8", "replace")
        method = environ["REQUEST_METHOD"]
        return reporter.begin(environ, path, method, environ.get("HTTP_TRACEPARENT"), find_route)
    except Exception as error:
        reporter.contain("a request could not be profiled", error)
        return None


def reported(
    reporter: Reporter, request: Request, inner: WSGIApplication, environ: Environ, start_response: StartResponse
) -> Iterable[bytes]:
    """Call a WSGI application in its request's span and report the request."""

    def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
        try:
            request.answer(int(status[:3]), headers)
            reporter.locate(request)  # now: Flask clears its traces away before it returns
            if exc_info and exc_info[0]:
                request.exception_type = exc_info[0][0].__name__
        except Exception:  # what the application says makes no sense; the server will tell it
            pass
        write = start_response(status, headers, *exc_info)

        def written(data: bytes) -> object:
            if request.completes(data):
                reporter.finish(request)
            return write(data)

        return written

    with request.span:
        try:
            body = inner(environ, start)
        except BaseException as error:
            request.status = 500  # what the server makes of it, if it can still
            reporter.failed(request, error)
            raise
        streamed = request.streamed
        if streamed is None:
            streamed = not isinstance(body, list | tuple) and not _is_for_the_server(body, environ)
        if streamed or request.status is None:
            return Body(body, request, reporter)
        reporter.finish(request)
        return body


def _is_for_the_server(body: object, environ: Environ) -> bool:
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)


class Body:
    """A streaming response: reports its request when it is complete, fails, or is closed."""

    def __init__(self, body: Iterable[bytes], request: Request, reporter: Reporter) -> None:
        self._body = body
        self._chunks: Iterator[bytes] | None = None
        self._request = request
        self._reporter = reporter

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
                self._reporter.finish(request)
                raise
            except BaseException as error:
                if not request.sent:  # nor are the headers: the server tells the client of an error instead
                    request.status = 500
                self._reporter.failed(request, error)
                raise
            if request.completes(chunk):
                self._reporter.finish(request)
            return chunk

    def close(self) -> None:
        with self._request.span:
            self._reporter.finish(self._request)
            close = getattr(self._body, "close", None)
            if close is not None:
                close()

    def __del__(self) -> None:
        self._reporter.finish(self._request)  # whoever had it did not close it

"""When is a streaming response of Django's over, under WSGI and ASGI?"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from profilis_mp.web.reporter import Reporter
from profilis_mp.web.request import Request
from profilis_mp.web.wsgi import Body

__all__ = ["reported_stream"]


def reported_stream(response: Any, request: Request, reporter: Reporter) -> None:
    """Have a `StreamingHttpResponse` report its request when it is complete, fails, or is closed."""
    content = response.streaming_content
    # Setting it registers the wrapper's close(), which Django calls with the response's.
    if response.is_async:
        response.streaming_content = _AsyncBody(content, request, reporter)
    else:
        response.streaming_content = Body(content, request, reporter)


class _AsyncBody:
    """As `Body`, but iterated over in an event loop. Django closes it in a thread."""

    def __init__(self, body: AsyncIterator[bytes], request: Request, reporter: Reporter) -> None:
        self._body = body
        self._request = request
        self._reporter = reporter

    def __aiter__(self) -> _AsyncBody:
        return self

    async def __anext__(self) -> bytes:
        request = self._request
        with request.span:
            try:
                chunk = await anext(self._body)
            except StopAsyncIteration:
                self._reporter.finish(request)
                raise
            except BaseException as error:
                self._reporter.failed(request, error)
                raise
            if request.completes(chunk):
                self._reporter.finish(request)
            return chunk

    def close(self) -> None:
        self._reporter.finish(self._request)

    __del__ = close  # a server that raises while it sends: Django closes nothing then

"""The Django project that test_web_servers.py has served, all of it in one module, its own settings included."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator

import django
from django.conf import settings

from profilis_mp import AsyncCollector, JSONLExporter

collector = AsyncCollector(JSONLExporter(dir=os.environ["LOGS"], rotate_bytes=64 * 1024))

settings.configure(
    SECRET_KEY="only in tests",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["profilis_mp.django.ProfilisMiddleware", "django.middleware.common.CommonMiddleware"],
    PROFILIS={"collector": "django_app.collector"},
)
django.setup()

from django.core.asgi import get_asgi_application  # noqa: E402  # they want the settings
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

from profilis_mp.core.context import get_trace_id  # noqa: E402
from profilis_mp.decorators.profile import profile_function  # noqa: E402


@profile_function(collector)
def load() -> str:
    return str(get_trace_id())


def page(request: HttpRequest, number: int) -> HttpResponse:
    """Answers with its trace id, by which the client asks the log for this very request."""
    return HttpResponse(load())


def pieces() -> list[str]:
    trace_id = load()
    return [trace_id[start : start + 8] for start in range(0, 32, 8)]


def stream(request: HttpRequest, number: int) -> StreamingHttpResponse:
    async def chunks() -> AsyncIterator[str]:
        for piece in pieces():
            await asyncio.sleep(0)
            yield piece

    return StreamingHttpResponse(chunks() if hasattr(request, "scope") else (piece for piece in pieces()))


def endless(request: HttpRequest, number: int) -> StreamingHttpResponse:
    async def chunks() -> AsyncIterator[str]:
        yield str(get_trace_id())
        while True:
            await asyncio.sleep(0.01)
            yield "x" * 1000

    def sync_chunks() -> Iterator[str]:
        yield str(get_trace_id())
        while True:
            time.sleep(0.01)
            yield "x" * 1000

    return StreamingHttpResponse(chunks() if hasattr(request, "scope") else sync_chunks())


async def wait(request: HttpRequest) -> HttpResponse:
    load()
    await asyncio.sleep(600)
    return HttpResponse("nobody waits so long")


def pid(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(os.getpid()))


urlpatterns = [
    path("pages/<int:number>", page),
    path("streams/<int:number>", stream),
    path("endless/<int:number>", endless),
    path("wait", wait),
    path("pid", pid),
]
wsgi = get_wsgi_application()
asgi = get_asgi_application()

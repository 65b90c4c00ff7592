"""Django under its own middleware, WSGI and ASGI: one event per request, with the route, whatever becomes of it."""

from __future__ import annotations

import asyncio
import gc
import importlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import django
import httpx
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.exceptions import PermissionDenied
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import include, path, re_path
from seen import Event, Seen
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app

from profilis_mp.asgi import ProfilisASGIMiddleware
from profilis_mp.core.context import current_span, get_trace_id
from profilis_mp.core.emitter import Emitter
from profilis_mp.django import ProfilisMiddleware
from profilis_mp.errors import ConfigError
from profilis_mp.wsgi import ProfilisWSGIMiddleware

if not settings.configured:
    settings.configure(SECRET_KEY="only in tests")
django.setup()

# -- the project


def trace(request: HttpRequest, **_: object) -> HttpResponse:
    return HttpResponse(str(get_trace_id()))


async def trace_async(request: HttpRequest) -> HttpResponse:
    first = get_trace_id()
    assert await sync_to_async(get_trace_id)() == first
    return HttpResponse(str(first))


def raising(error: BaseException) -> Callable[..., HttpResponse]:
    def view(request: HttpRequest) -> HttpResponse:
        raise error

    return view


async def fail_async(request: HttpRequest) -> HttpResponse:
    raise KeyError("k")


def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(str(get_trace_id()) for _ in range(2))


def known_stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(iter(("ab", "c")), headers={"Content-Length": "3"})


async def stream_async(request: HttpRequest) -> StreamingHttpResponse:
    async def chunks() -> AsyncIterator[str]:
        for _ in range(2):
            await asyncio.sleep(0)
            yield str(get_trace_id())

    return StreamingHttpResponse(chunks())


def broken_stream(request: HttpRequest) -> StreamingHttpResponse:
    def chunks() -> Iterator[str]:
        yield "a"
        raise KeyError

    return StreamingHttpResponse(chunks())


async def broken_stream_async(request: HttpRequest) -> StreamingHttpResponse:
    async def chunks() -> AsyncIterator[str]:
        yield "a"
        raise KeyError

    return StreamingHttpResponse(chunks())


def file(request: HttpRequest) -> FileResponse:
    return FileResponse(open(__file__, "rb"))  # Django closes it


async def wait(request: HttpRequest) -> HttpResponse:
    await asyncio.Future()
    raise AssertionError


urlpatterns = [
    path("users/<int:pk>/", trace),
    path("async/", trace_async),
    path("shop/", include([path("items/<slug:item>", trace), re_path(r"^old/(?P<year>[0-9]{4})$", trace)])),
    path("health", trace),
    path("fail", raising(KeyError("k"))),
    path("fail-async", fail_async),
    path("missing", raising(Http404("no such thing"))),
    path("forbidden", raising(PermissionDenied())),
    path("exit", raising(SystemExit(1))),
    path("stream", stream),
    path("known-stream", known_stream),
    path("stream-async", stream_async),
    path("broken-stream", broken_stream),
    path("broken-stream-async", broken_stream_async),
    path("file", file),
    path("wait", wait),
]


class FailsOnTeapots:
    """A middleware of the project's, for what happens between ours and the view."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.path == "/teapot":
            raise OSError("teapot")
        return self.get_response(request)


# -- and its servers


@pytest.fixture
def seen() -> Iterator[Seen]:
    collector = Seen()
    with override_settings(
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["*"],
        SECRET_KEY="only in tests",
        MIDDLEWARE=["profilis_mp.django.ProfilisMiddleware", f"{__name__}.FailsOnTeapots"],
        PROFILIS={"collector": collector, "exclude_routes": ["/health"]},
        LOGGING_CONFIG=None,
    ):
        yield collector


def by_wsgi(path: str, wrap: Callable[[Any], Any] = lambda app: app, **options: Any) -> tuple[int, str]:
    answer = Client(wrap(get_wsgi_application())).open(path, buffered=True, **options)
    return answer.status_code, answer.text


def by_asgi(path: str, wrap: Callable[[Any], Any] = lambda app: app, **options: Any) -> tuple[int, str]:
    async def exchange() -> httpx.Response:
        transport = httpx.ASGITransport(app=wrap(get_asgi_application()))
        async with httpx.AsyncClient(transport=transport, base_url="http://shop.test") as client:
            return await client.request(options.pop("method", "GET"), path, **options)

    answer = asyncio.run(exchange())
    return answer.status_code, answer.text


Get = Callable[..., tuple[int, str]]
both = pytest.mark.parametrize("get", [by_wsgi, by_asgi])
# Django's own: of views made for the other side, and of what it leaves open when the server raises.
quiet = pytest.mark.filterwarnings(
    "ignore:StreamingHttpResponse must consume",
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


def summary(event: Event) -> tuple[Any, ...]:
    return event["route"], event["status"], event.get("exception_type")


@both
def test_a_request_is_one_event_with_its_route(seen: Seen, get: Get) -> None:
    assert get("/users/7/") == (200, seen.only["trace_id"])
    assert list(seen.only) == ["ts_ns", "trace_id", "span_id", "kind", "route", "status", "dur_ns", "method"]
    for page in ("/shop/items/pen", "/shop/old/1999", "/wp-login.php", "/users/seven/"):
        get(page)
    get("/users/7/", method="POST")
    get("/health")
    assert [(event["route"], event["status"], event["method"]) for event in seen.events] == [
        ("/users/<int:pk>/", 200, "GET"), ("/shop/items/<slug:item>", 200, "GET"),
        ("/shop/old/(?P<year>[0-9]{4})$", 200, "GET"), ("<unmatched>", 404, "GET"), ("<unmatched>", 404, "GET"),
        ("/users/<int:pk>/", 200, "POST"),
    ]  # fmt: skip
    assert [event["path"] for event in seen.events if event["route"] == "<unmatched>"] == [
        "/wp-login.php", "/users/seven/"
    ]  # fmt: skip
    assert current_span() is None


@both
def test_an_async_view_runs_in_the_requests_span(seen: Seen, get: Get) -> None:
    assert get("/async/") == (200, seen.only["trace_id"])


@both
def test_a_callers_trace_goes_on(seen: Seen, get: Get) -> None:
    trace_id, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    assert get("/users/7/", headers={"traceparent": f"00-{trace_id}-{caller}-01"}) == (200, trace_id)
    assert (seen.only["trace_id"], seen.only["parent_span_id"]) == (trace_id, caller)


@both
@pytest.mark.parametrize(
    ("page", "route", "status", "exception_type"),
    [
        ("/fail", "/fail", 500, "KeyError"),
        ("/fail-async", "/fail-async", 500, "KeyError"),
        ("/missing", "/missing", 404, "Http404"),
        ("/forbidden", "/forbidden", 403, "PermissionDenied"),
        ("/nothing", "<unmatched>", 404, None),
        ("/teapot", "<unmatched>", 500, "OSError"),
    ],
)
def test_an_exception_is_recorded_with_what_django_makes_of_it(
    seen: Seen, get: Get, page: str, route: str, status: int, exception_type: str | None
) -> None:
    assert get(page)[0] == status
    assert summary(seen.only) == (route, status, exception_type)


def test_an_exception_that_leaves_django_is_recorded_and_raised_again(seen: Seen) -> None:
    with pytest.raises(SystemExit):
        by_wsgi("/exit")
    assert summary(seen.only) == ("/exit", 500, "SystemExit")
    seen.events.clear()
    with override_settings(DEBUG_PROPAGATE_EXCEPTIONS=True), pytest.raises(KeyError, match="k"):
        by_asgi("/fail")
    assert summary(seen.only) == ("/fail", 500, "KeyError")


# -- when


def test_an_answer_is_recorded_before_the_server_gets_it(seen: Seen) -> None:
    body, status, _ = run_wsgi_app(get_wsgi_application(), environ("/users/7/"))
    assert (status, len(seen.events)) == ("200 OK", 1)
    assert b"".join(body).decode() == seen.only["trace_id"]


def environ(page: str, **more: Any) -> dict[str, Any]:
    return {**EnvironBuilder(path=page).get_environ(), **more}


def test_a_stream_is_recorded_when_it_ends_before_the_server_knows(seen: Seen) -> None:
    body = get_wsgi_application()(environ("/stream"), lambda *_: None)
    chunks = iter(body)
    traces = [next(chunks), next(chunks)]
    assert seen.events == []
    with pytest.raises(StopIteration):
        next(chunks)
    assert [trace.decode() for trace in traces] == [seen.only["trace_id"]] * 2
    body.close()
    assert len(seen.events) == 1


def test_a_stream_of_known_length_is_recorded_before_its_last_chunk_is_sent(seen: Seen) -> None:
    chunks = iter(get_wsgi_application()(environ("/known-stream"), lambda *_: None))
    assert next(chunks) == b"ab"
    assert seen.events == []
    assert next(chunks) == b"c"
    assert seen.only["status"] == 200


def test_a_stream_that_the_server_closes_is_recorded_then(seen: Seen) -> None:
    body = get_wsgi_application()(environ("/stream"), lambda *_: None)
    next(iter(body))
    body.close()
    body.close()
    assert summary(seen.only) == ("/stream", 200, None)


def test_a_file_that_the_server_sends_itself_is_handed_over_as_it_is(seen: Seen) -> None:
    class ServersWrapper:
        def __init__(self, file: Any, size: int) -> None:
            self.file = file

    body = get_wsgi_application()(environ("/file", **{"wsgi.file_wrapper": ServersWrapper}), lambda *_: None)
    assert type(body) is ServersWrapper
    assert summary(seen.only) == ("/file", 200, None)
    body.file.close()


@quiet
@pytest.mark.parametrize(
    ("get", "page", "exception_type"),
    [
        (by_wsgi, "/file", None), (by_asgi, "/file", None),
        (by_asgi, "/stream", None), (by_asgi, "/stream-async", None),
        (by_wsgi, "/broken-stream", "KeyError"), (by_asgi, "/broken-stream-async", "KeyError"),
    ],
)  # fmt: skip
def test_each_kind_of_stream_is_one_event(seen: Seen, get: Get, page: str, exception_type: str | None) -> None:
    if exception_type is None:
        assert get(page)[0] == 200
    else:
        with pytest.raises(KeyError):
            get(page)
        gc.collect()
    assert summary(seen.only) == (page, 200, exception_type)


def test_an_async_stream_is_recorded_before_the_message_that_ends_it(seen: Seen) -> None:
    events_at_each_send: list[int] = []
    sent = exchange("/stream-async", seen, events_at_each_send)
    assert events_at_each_send == [0, 0, 0, 1]
    assert b"".join(message.get("body", b"") for message in sent).decode() == seen.only["trace_id"] * 2


def test_the_head_of_an_async_stream_is_recorded_before_it_is_sent(seen: Seen) -> None:
    events_at_each_send: list[int] = []
    exchange("/stream-async", seen, events_at_each_send, method="HEAD")
    assert events_at_each_send[0] == 1
    assert summary(seen.only) == ("/stream-async", 200, None)


def test_a_client_that_leaves_before_the_answer_is_a_499(seen: Seen) -> None:
    assert exchange("/wait", seen, [], leaves=True) == []
    assert summary(seen.only) == ("/wait", 499, "CancelledError")


@quiet
@pytest.mark.parametrize("raises", [False, True])
def test_a_client_that_leaves_a_stream_is_one_event(seen: Seen, raises: bool) -> None:
    """A server may also raise when it cannot send; Django closes no response then."""
    if raises:
        with pytest.raises(OSError, match="gone"):
            exchange("/stream-async", seen, [], breaks_after=1)
        gc.collect()
    else:
        exchange("/stream-async", seen, [], hangs_after=1, leaves=True)
    assert summary(seen.only)[:2] == ("/stream-async", 200)


def exchange(
    page: str,
    seen: Seen,
    events_at_each_send: list[int],
    method: str = "GET",
    leaves: bool = False,
    hangs_after: int = 99,
    breaks_after: int = 99,
) -> list[dict[str, Any]]:
    """What an ASGI server is given, message by message."""
    sent: list[dict[str, Any]] = []

    async def serve() -> None:
        gone = asyncio.Event()
        received = [{"type": "http.request", "body": b""}]

        async def receive() -> dict[str, Any]:
            if received:
                return received.pop()
            if leaves and hangs_after == 99:
                await asyncio.sleep(0.01)  # the view is waiting, or will be cancelled before: the same to the client
            else:
                await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if len(sent) > breaks_after:
                raise OSError("gone")
            events_at_each_send.append(len(seen.events))
            sent.append(message)
            if len(sent) > hangs_after:
                gone.set()
                await asyncio.Future()

        scope = {"type": "http", "method": method, "path": page, "headers": [], "query_string": b""}
        await get_asgi_application()(scope, receive, send)

    asyncio.run(serve())
    return sent


# -- within a middleware around Django


@both
def test_with_a_middleware_around_django_too_a_request_is_one_event(seen: Seen, get: Get) -> None:
    around = ProfilisWSGIMiddleware if get is by_wsgi else ProfilisASGIMiddleware

    def wrap(app: Any) -> Any:
        return around(app, collector=seen)

    for page in ("/users/7/", "/fail", "/missing", "/nothing"):
        get(page, wrap)
    assert [summary(event) for event in seen.events] == [
        ("/users/<int:pk>/", 200, None), ("/fail", 500, "KeyError"), ("/missing", 404, "Http404"),
        ("<unmatched>", 404, None),
    ]  # fmt: skip


def test_what_a_view_emits_shares_the_requests_span(seen: Seen) -> None:
    with override_settings(ROOT_URLCONF=(path("", lambda request: Emitter(seen).emit_fn("f", 1) or HttpResponse()),)):
        by_wsgi("/")
    function, request = seen.events
    assert (function["trace_id"], function["span_id"]) == (request["trace_id"], request["span_id"])


# -- settings

COLLECTOR = Seen()


def test_the_collector_may_be_a_dotted_path(seen: Seen) -> None:
    with override_settings(PROFILIS={"collector": f"{__name__}.COLLECTOR", "sample": 1}):
        by_wsgi("/users/7/")
    assert COLLECTOR.only["route"] == "/users/<int:pk>/"


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        (None, "PROFILIS"), ("logs", "PROFILIS"), ({}, "collector"), ({"collector": 7}, "collector"),
        ({"collector": "nowhere.collector"}, "collector"), ({"collector": Seen(), "exclude": []}, "PROFILIS"),
        ({"collector": Seen(), "sample": 2}, "sample"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_by_name(seen: Seen, options: Any, refused: str) -> None:
    with override_settings(PROFILIS=options), pytest.raises(ConfigError) as caught:
        ProfilisMiddleware(lambda request: HttpResponse())
    assert caught.value.argument == refused


def test_without_django_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("profilis_mp.django", "profilis_mp.django.middleware"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "django", None)
    with pytest.raises(ImportError, match=r'pip install "profilis_mp\[django\]"'):
        importlib.import_module("profilis_mp.django")

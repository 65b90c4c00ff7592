"""Starlette and FastAPI under the ASGI middleware: routes as in the source, every kind of answer, one event each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException
from seen import Seen
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from profilis_mp.asgi import ProfilisASGIMiddleware
from profilis_mp.core.context import current_span, get_trace_id
from profilis_mp.core.emitter import Emitter


@pytest.fixture
def seen() -> Seen:
    return Seen()


def get(app: Any, path: str, method: str = "GET", raises: bool = False, **options: Any) -> httpx.Response:
    async def exchange() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=raises)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop.test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(exchange())


def routes_of(seen: Seen) -> list[tuple[str, int]]:
    routes = [(event["route"], event["status"]) for event in seen.events]
    seen.events.clear()
    return routes


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(get_trace_id()))


async def fail(request: Request) -> PlainTextResponse:
    raise KeyError("k")


async def forbid(request: Request) -> PlainTextResponse:
    raise HTTPException(403)


# -- routes


@pytest.fixture
def starlette(seen: Seen, tmp_path: Path) -> Starlette:
    (tmp_path / "a.txt").write_text("content")
    inner = Router([Route("/items/{item:int}", echo, methods=["GET"])])
    return Starlette(
        routes=[
            Route("/users/{user}", echo),
            Route("/fail", fail),
            Route("/forbidden", forbid),
            Mount("/static", StaticFiles(directory=tmp_path)),
            Mount("/shops/{shop}", Router([Mount("/v1", inner)])),
            Mount("/app", Starlette(routes=[Route("/", echo), Route("/pages/{page:path}", echo)])),
            Host("api.shop.test", Router([Route("/status", echo)])),
        ],
        middleware=[Middleware(ProfilisASGIMiddleware, collector=seen, exclude_routes=["/app/pages/{page:path}"])],
    )


def test_starlettes_routes_are_as_in_the_source(starlette: Starlette, seen: Seen) -> None:
    for path in ("/users/7", "/static/a.txt", "/shops/shops/v1/items/7", "/app/", "/nothing/here", "/app/nothing"):
        get(starlette, path)
    get(starlette, "/shops/pens/v1/items/7", "DELETE")
    get(starlette, "/shops/pens/v1/items/seven")
    get(starlette, "/users/7/")
    get(starlette, "http://api.shop.test/status")
    assert routes_of(seen) == [
        ("/users/{user}", 200), ("/static/{path}", 200), ("/shops/{shop}/v1/items/{item:int}", 200), ("/app/", 200),
        ("<unmatched>", 404), ("<unmatched>", 404), ("/shops/{shop}/v1/items/{item:int}", 405), ("<unmatched>", 404),
        ("<unmatched>", 307), ("/status", 200),
    ]  # fmt: skip


def test_a_route_can_be_excluded_by_its_template(starlette: Starlette, seen: Seen) -> None:
    assert get(starlette, "/app/pages/a/b").status_code == 200
    assert seen.events == []


def test_behind_a_proxys_prefix_routes_are_the_same(starlette: Starlette, seen: Seen) -> None:
    async def prefixed(scope: Any, receive: Any, send: Any) -> None:
        await starlette({**scope, "root_path": "/proxy", "path": f"/proxy{scope['path']}"}, receive, send)

    get(prefixed, "/users/7")
    get(prefixed, "/app/")
    assert routes_of(seen) == [("/users/{user}", 200), ("/app/", 200)]


@pytest.fixture
def fastapi(seen: Seen) -> FastAPI:
    app = FastAPI()
    app.add_middleware(ProfilisASGIMiddleware, collector=seen)

    @app.get("/users/{user}")
    async def show(user: int) -> str:
        return str(get_trace_id())

    @app.get("/sync/{name}")
    def show_from_a_thread(name: str) -> str:
        return str(get_trace_id())

    leaf = APIRouter(prefix="/leaf")
    leaf.add_route("/plain", echo)
    leaf.add_api_route("/{item}", lambda item: item, methods=["GET"])
    branch = APIRouter(prefix="/branch/{name}")
    branch.include_router(leaf)
    app.include_router(branch, prefix="/v1")

    sub = FastAPI()
    sub.include_router(leaf, prefix="/inner")
    app.mount("/sub/{tenant}", sub)
    app.mount("/old", Starlette(routes=[Route("/page", echo)]))
    return app


def test_fastapis_routes_are_as_in_the_source(fastapi: FastAPI, seen: Seen) -> None:
    paths = (
        "/users/7", "/users/seven", "/sync/x", "/v1/branch/b/leaf/7", "/v1/branch/b/plain",
        "/sub/sub/inner/leaf/7", "/sub/acme/openapi.json", "/old/page", "/openapi.json", "/nothing", "/sub/acme/x",
    )  # fmt: skip
    for path in paths:
        get(fastapi, path)
    assert routes_of(seen) == [
        ("/users/{user}", 200), ("/users/{user}", 422), ("/sync/{name}", 200),
        ("/v1/branch/{name}/leaf/{item}", 200), ("/v1/branch/{name}/plain", 200),
        ("/sub/{tenant}/inner/leaf/{item}", 200), ("/sub/{tenant}/openapi.json", 200), ("/old/page", 200),
        ("/openapi.json", 200), ("<unmatched>", 404), ("<unmatched>", 404),
    ]  # fmt: skip


def test_async_and_threaded_endpoints_run_in_the_requests_span(fastapi: FastAPI, seen: Seen) -> None:
    for path in ("/users/7", "/sync/x"):
        assert get(fastapi, path).json() == seen.events[-1]["trace_id"]
    assert current_span() is None


# -- exceptions


def test_exceptions_leave_the_application_as_before_and_are_recorded(starlette: Starlette, seen: Seen) -> None:
    with pytest.raises(KeyError, match="k"):
        get(starlette, "/fail", raises=True)
    assert (seen.only["route"], seen.only["status"], seen.only["exception_type"]) == ("/fail", 500, "KeyError")


def test_an_exception_that_becomes_an_answer_is_named_and_the_routers_own_are_not(
    starlette: Starlette, fastapi: FastAPI, seen: Seen
) -> None:
    get(starlette, "/forbidden")
    get(fastapi, "/users/seven")
    get(starlette, "/nothing")
    get(fastapi, "/users/7", "DELETE")
    assert [(event["status"], event.get("exception_type")) for event in seen.events] == [
        (403, "HTTPException"), (422, "RequestValidationError"), (404, None), (405, None)
    ]  # fmt: skip


def test_around_the_whole_application_the_error_page_is_recorded_with_its_exception(seen: Seen) -> None:
    """There Starlette's own outermost middleware is inside: it answers, and raises after that."""
    app = ProfilisASGIMiddleware(Starlette(routes=[Route("/fail/{name}", fail)]), collector=seen)
    assert get(app, "/fail/x").status_code == 500
    event = seen.only
    assert (event["route"], event["status"], event["exception_type"]) == ("/fail/{name}", 500, "KeyError")


def test_a_middleware_with_a_task_of_its_own_hides_nothing(seen: Seen) -> None:
    async def dispatch(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response

    app = Starlette(
        routes=[Route("/users/{user}", echo), Route("/fail", fail)],
        middleware=[
            Middleware(ProfilisASGIMiddleware, collector=seen),
            Middleware(BaseHTTPMiddleware, dispatch=dispatch),
        ],
    )
    assert get(app, "/users/7").text == seen.events[0]["trace_id"]
    get(app, "/fail")
    assert routes_of(seen) == [("/users/{user}", 200), ("/fail", 500)]


def test_a_dependency_that_fails_is_one_event(seen: Seen) -> None:
    async def session() -> AsyncIterator[int]:
        yield 1
        raise OSError("the transaction failed")

    app = FastAPI()
    app.add_middleware(ProfilisASGIMiddleware, collector=seen)

    @app.get("/")
    async def view(session: int = Depends(session)) -> int:
        return session

    get(app, "/")
    assert len(seen.events) == 1


# -- kinds of answers


async def stream(request: Request) -> StreamingResponse:
    async def chunks() -> AsyncIterator[str]:
        for _ in range(2):
            yield str(get_trace_id())

    return StreamingResponse(chunks())


async def stream_from_a_thread(request: Request) -> StreamingResponse:
    def chunks() -> Iterator[str]:
        for _ in range(2):
            yield str(get_trace_id())

    return StreamingResponse(chunks())


async def broken_stream(request: Request) -> StreamingResponse:
    async def chunks() -> AsyncIterator[str]:
        yield "a"
        raise KeyError

    return StreamingResponse(chunks())


async def file(request: Request) -> FileResponse:
    return FileResponse(__file__)


@pytest.fixture
def answers(seen: Seen) -> Starlette:
    endpoints = (stream, stream_from_a_thread, broken_stream, file)
    return Starlette(
        routes=[Route(f"/{endpoint.__name__}", endpoint) for endpoint in endpoints],
        middleware=[Middleware(ProfilisASGIMiddleware, collector=seen)],
    )


@pytest.mark.parametrize("path", ["/stream", "/stream_from_a_thread"])
def test_a_stream_is_one_event_and_runs_in_its_requests_span(answers: Starlette, seen: Seen, path: str) -> None:
    assert get(answers, path).text == seen.only["trace_id"] * 2
    assert (seen.only["route"], seen.only["status"]) == (path, 200)


def test_a_stream_that_fails_is_one_event_with_the_status_as_sent(answers: Starlette, seen: Seen) -> None:
    get(answers, "/broken_stream")
    assert (seen.only["status"], seen.only["exception_type"]) == (200, "KeyError")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_file_is_one_event(answers: Starlette, seen: Seen, method: str) -> None:
    assert get(answers, "/file", method).status_code == 200
    assert (seen.only["route"], seen.only["method"]) == ("/file", method)


def test_background_tasks_share_the_requests_span_and_are_not_in_its_duration(seen: Seen) -> None:
    app = FastAPI()
    app.add_middleware(ProfilisASGIMiddleware, collector=seen)

    async def later() -> None:
        Emitter(seen).emit_fn("later", 1)

    @app.get("/")
    async def view(tasks: BackgroundTasks) -> None:
        tasks.add_task(later)

    get(app, "/")
    request, task = seen.events
    assert (request["kind"], task["kind"]) == ("REQ", "FN")
    assert request["trace_id"] == task["trace_id"]


def test_websockets_and_lifespan_are_left_alone(seen: Seen) -> None:
    lives: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        lives.append("up")
        yield
        lives.append("down")

    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(f"{await socket.receive_text()} {current_span()}")
        await socket.close()

    app = Starlette(
        routes=[WebSocketRoute("/talk", talk)],
        lifespan=lifespan,
        middleware=[Middleware(ProfilisASGIMiddleware, collector=seen)],
    )

    async def converse() -> list[Any]:
        heard: list[Any] = []
        said = asyncio.Queue[Any]()

        async def hear(message: Any) -> None:
            heard.append(message)

        for kind in ("lifespan.startup", "lifespan.shutdown"):
            said.put_nowait({"type": kind})
        await app({"type": "lifespan"}, said.get, hear)
        for message in ({"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hello"}):
            said.put_nowait(message)
        await app({"type": "websocket", "path": "/talk", "headers": []}, said.get, hear)
        return heard

    heard = asyncio.run(converse())
    assert [message["type"] for message in heard] == [
        "lifespan.startup.complete", "lifespan.shutdown.complete",
        "websocket.accept", "websocket.send", "websocket.close",
    ]  # fmt: skip
    assert heard[3]["text"] == "hello None"
    assert (lives, seen.events) == (["up", "down"], [])

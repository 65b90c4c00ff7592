"""Every HTTP request to an ASGI application becomes exactly one REQ event before the server has all of the answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from seen import Event, Seen

from profilis_mp.asgi import ProfilisASGIMiddleware
from profilis_mp.core.context import current_span, get_trace_id
from profilis_mp.core.emitter import Emitter
from profilis_mp.errors import ConfigError

Message = dict[str, Any]
Application = Callable[[Any, Any, Any], Awaitable[None]]

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
LAST: Message = {"type": "http.response.body", "body": b"last"}
GONE: Message = {"type": "http.disconnect"}


@pytest.fixture
def seen() -> Seen:
    return Seen()


class Server:
    """What a server gives an application and gets from it, with the number of events that were there before."""

    def __init__(self, seen: Seen, *received: Message, broken_after: int | None = None) -> None:
        self.seen = seen
        self.received = list(received) or [{"type": "http.request", "body": b""}]
        self.broken_after = broken_after
        self.sent: list[Message] = []
        self.events_at_each_send: list[int] = []
        self.scope: Message = {}

    async def receive(self) -> Message:
        if self.received:
            return self.received.pop(0)
        return await asyncio.Future()

    async def send(self, message: Message) -> None:
        if self.broken_after is not None and len(self.sent) >= self.broken_after:
            raise OSError("the client has gone")
        self.events_at_each_send.append(len(self.seen.events))
        self.sent.append(message)

    def get(self, app: Application, path: str = "/", *headers: tuple[bytes, bytes], method: str = "GET") -> None:
        self.scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
        asyncio.run(self.serve(app))

    async def serve(self, app: Application) -> None:
        await app(self.scope, self.receive, self.send)


def answering(*messages: Message, raises: BaseException | None = None, reads: int = 0) -> Application:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(reads):
            await receive()
        for message in messages:
            await send(message)
        if raises is not None:
            raise raises

    return app


def body(chunk: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": chunk, "more_body": more}


def start(status: int = 200, length: object = None) -> Message:
    headers = [] if length is None else [(b"Content-Length", str(length).encode())]
    return {"type": "http.response.start", "status": status, "headers": headers}


def profiled(app: Application, seen: Seen, **options: Any) -> Application:
    return ProfilisASGIMiddleware(app, collector=seen, **options)


# -- the event, and when


def test_an_answer_is_recorded_before_its_last_message_is_sent(seen: Seen) -> None:
    server = Server(seen)
    server.get(profiled(answering(start(201), body(b"a"), body(b"b", more=False)), seen), "/x")
    assert server.events_at_each_send == [0, 0, 1]
    event = seen.only
    assert list(event) == ["ts_ns", "trace_id", "span_id", "kind", "route", "status", "dur_ns", "method", "path"]
    assert (event["route"], event["path"], event["status"], event["method"]) == ("<unmatched>", "/x", 201, "GET")
    assert 0 < event["dur_ns"] < 60 * 10**9


def test_messages_pass_through_as_they_are(seen: Seen) -> None:
    messages = [start(length=4), body(b"la"), body(b"st"), body(b"", more=False), {"type": "http.response.trailers"}]
    server = Server(seen)
    server.get(profiled(answering(*messages), seen))
    assert len(server.sent) == len(messages)
    assert all(one is other for one, other in zip(server.sent, messages, strict=True))
    assert len(seen.events) == 1


def test_an_answer_of_known_length_is_recorded_before_the_chunk_that_completes_it(seen: Seen) -> None:
    server = Server(seen)
    server.get(profiled(answering(start(length=3), body(b"ab"), body(b"c"), body(b"", more=False)), seen))
    assert server.events_at_each_send == [0, 0, 1, 1]
    assert len(seen.events) == 1


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_an_answer_without_a_body_is_recorded_before_its_headers_are_sent(seen: Seen, method: str, status: int) -> None:
    server = Server(seen)
    server.get(profiled(answering(start(status, length=1000), body(b"x"), LAST), seen), method=method)
    assert server.events_at_each_send == [1, 1, 1]
    assert seen.only["status"] == status


def test_a_file_that_the_server_sends_itself_is_recorded_before_it_is_handed_over(seen: Seen) -> None:
    server = Server(seen)
    server.get(profiled(answering(START, {"type": "http.response.pathsend", "path": "/etc/hosts"}), seen))
    assert server.events_at_each_send == [0, 1]


def test_what_runs_after_the_answer_is_not_in_its_duration_but_in_its_span(seen: Seen) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(LAST)
        Emitter(seen).emit_fn("in the background", 1)
        raise KeyError

    with pytest.raises(KeyError):
        Server(seen).get(profiled(app, seen))
    request, background = seen.events
    assert (request["kind"], request["status"], background["kind"]) == ("REQ", 200, "FN")
    assert "exception_type" not in request
    assert (request["trace_id"], request["span_id"]) == (background["trace_id"], background["span_id"])


# -- how it may end otherwise


@pytest.mark.parametrize(("messages", "status"), [((), 500), ((START,), 200), ((START, body(b"a")), 200)])
@pytest.mark.parametrize("error", [KeyError("k"), SystemExit(1), asyncio.CancelledError()])
def test_an_exception_is_recorded_and_raised_again(
    seen: Seen, messages: tuple[Message, ...], status: int, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught:
        Server(seen).get(profiled(answering(*messages, raises=error), seen))
    if not isinstance(error, asyncio.CancelledError):  # asyncio makes another one of it
        assert caught.value is error
    elif not messages:
        status = 499  # cancelled before there was an answer
    assert (seen.only["status"], seen.only["exception_type"]) == (status, type(error).__name__)


def test_an_application_that_answers_nothing_is_a_500(seen: Seen) -> None:
    Server(seen).get(profiled(answering(), seen))
    assert seen.only["status"] == 500


def test_a_client_that_leaves_before_the_answer_is_a_499(seen: Seen) -> None:
    Server(seen, GONE).get(profiled(answering(reads=1), seen))
    assert seen.only["status"] == 499


def test_a_client_that_leaves_amid_the_answer_has_the_status_as_sent(seen: Seen) -> None:
    Server(seen, GONE).get(profiled(answering(START, body(b"a"), reads=1), seen))
    assert seen.only["status"] == 200


def test_a_server_that_raises_while_it_sends_is_one_event(seen: Seen) -> None:
    with pytest.raises(OSError, match="gone"):
        Server(seen, broken_after=2).get(profiled(answering(START, body(b"a"), body(b"b"), LAST), seen))
    assert (seen.only["status"], seen.only["exception_type"]) == (200, "OSError")


def test_a_task_that_is_cancelled_amid_its_answer_is_one_event(seen: Seen) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await asyncio.Future()

    async def cancelled() -> None:
        server = Server(seen)
        server.scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        task = asyncio.create_task(server.serve(profiled(app, seen)))
        while not server.sent:
            await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert (seen.only["status"], seen.only["exception_type"]) == (200, "CancelledError")


def test_an_exception_that_is_being_handled_when_the_answer_begins_is_named(seen: Seen) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            raise KeyError
        except KeyError:
            await answering(start(500), LAST)(scope, receive, send)

    Server(seen).get(profiled(app, seen))
    assert (seen.only["status"], seen.only["exception_type"]) == (500, "KeyError")


def test_an_exception_that_the_caller_is_handling_is_not_the_requests(seen: Seen) -> None:
    async def fallback(scope: Any, receive: Any, send: Any) -> None:
        try:
            raise KeyError
        except KeyError:
            await profiled(answering(START, LAST), seen)(scope, receive, send)

    Server(seen).get(fallback)
    assert "exception_type" not in seen.only


# -- what it leaves alone


@pytest.mark.parametrize("kind", ["websocket", "lifespan", "something new"])
def test_other_scopes_pass_through_untouched(seen: Seen, kind: str) -> None:
    got: list[Any] = []

    async def app(*arguments: Any) -> None:
        got.extend(arguments)
        assert current_span() is None

    scope, receive, send = {"type": kind}, object(), object()
    asyncio.run(profiled(app, seen)(scope, receive, send))
    assert [one is other for one, other in zip(got, (scope, receive, send), strict=True)] == [True] * 3
    assert (scope, seen.events) == ({"type": kind}, [])


def test_what_fails_in_the_middleware_fails_no_request(
    seen: Seen, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boom(*_: object) -> Any:
        raise RuntimeError("ours")

    server = Server(seen)
    app = profiled(answering({"type": "http.response.start"}, LAST), seen)  # the server's business
    server.get(app)
    assert (len(server.sent), seen.only["status"]) == (2, 500)
    seen.events.clear()
    server.get(profiled(answering({**START, "status": 201, "headers": [("content-length", "7")]}, LAST), seen))
    assert (len(server.sent), seen.only["status"]) == (4, 201)
    monkeypatch.setattr("profilis_mp.asgi.middleware.find_route", boom)
    server.get(app)
    assert [event["route"] for event in seen.events] == ["<unmatched>"] * 2
    monkeypatch.setattr("profilis_mp.web.reporter.Request", boom)
    server.get(app)
    assert (len(server.sent), len(seen.events)) == (8, 2)


def test_a_collector_that_raises_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Seen):
        def enqueue(self, event: Event) -> None:
            raise OSError("full")

    server = Server(Broken())
    with caplog.at_level(logging.WARNING, "profilis_mp"):
        server.get(profiled(answering(START, LAST), server.seen))
    assert len(server.sent) == 2
    assert "ProfilisASGIMiddleware: a request was not reported: " in caplog.text


# -- span, options

TRACE, CALLER = b"4bf92f3577b34da6a3ce929d0e0e4736", b"00f067aa0ba902b7"
HEADER = (b"traceparent", b"00-" + TRACE + b"-" + CALLER + b"-01")


def test_each_of_many_requests_at_once_has_a_span_of_its_own(seen: Seen) -> None:
    traces: list[tuple[str, str | None, str | None]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        before = get_trace_id()
        await asyncio.sleep(0)
        traces.append((scope["path"], before, get_trace_id()))
        await answering(START, LAST)(scope, receive, send)

    async def many() -> None:
        servers = [Server(seen) for _ in range(20)]
        for number, server in enumerate(servers):
            server.scope = {"type": "http", "method": "GET", "path": f"/{number}", "headers": []}
        await asyncio.gather(*(server.serve(profiled(app, seen)) for server in servers))

    asyncio.run(many())
    assert {(path, before) for path, before, _ in traces} == {(path, after) for path, _, after in traces}
    assert {(event["path"], event["trace_id"]) for event in seen.events} == {(path, id_) for path, id_, _ in traces}
    assert len({id_ for _, id_, _ in traces}) == 20


def test_a_callers_trace_goes_on(seen: Seen) -> None:
    Server(seen).get(profiled(answering(START, LAST), seen), "/", HEADER)
    assert (seen.only["trace_id"].encode(), seen.only["parent_span_id"].encode()) == (TRACE, CALLER)


def test_two_callers_are_none(seen: Seen) -> None:
    Server(seen).get(profiled(answering(START, LAST), seen), "/", HEADER, HEADER)
    assert seen.only["trace_id"].encode() != TRACE


def test_two_around_one_application_are_one_event_and_one_decision(seen: Seen) -> None:
    other = Seen()
    app = profiled(profiled(profiled(answering(START, LAST), other), seen), seen, exclude_routes=["/health"])
    Server(seen).get(app, "/x")
    Server(seen).get(app, "/health/db")
    assert [event["path"] for event in seen.events] == ["/x"]
    assert [event["path"] for event in other.events] == ["/x", "/health/db"]


def test_a_sample_reports_its_share(seen: Seen) -> None:
    app = profiled(answering(START, LAST), seen, sample=0.5)
    for _ in range(200):
        Server(seen).get(app)
    assert 50 < len(seen.events) < 150  # 7 standard deviations


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [({"app": None}, "app"), ({"collector": None}, "collector"), ({"sample": -1}, "sample"),
     ({"exclude_routes": ["health"]}, "exclude_routes")],
)  # fmt: skip
def test_a_wrong_argument_is_refused_by_name(seen: Seen, arguments: dict[str, Any], refused: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ProfilisASGIMiddleware(**{"app": answering(), "collector": seen, **arguments})
    assert caught.value.argument == refused

"""Every call of a WSGI application becomes exactly one REQ event before the server has all of the answer."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults

import pytest
from seen import Event, Seen

from profilis_mp.core.context import current_span, get_trace_id
from profilis_mp.errors import ConfigError
from profilis_mp.wsgi import ProfilisWSGIMiddleware

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Headers = list[tuple[str, str]]


@pytest.fixture
def seen() -> Seen:
    return Seen()


class Server:
    """As a WSGI server does: headers with the first bytes, an error page where they are not sent; then close."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.status = ""
        self.sent: list[bytes] = []
        self.events_at_each_send: list[int] = []

    def start_response(self, status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], None]:
        if exc_info and self.sent:
            raise exc_info[1].with_traceback(exc_info[2])
        self.status = status
        return self.send

    def send(self, data: bytes) -> None:
        self.events_at_each_send.append(len(self.seen.events))
        self.sent.append(data)

    def get(self, app: Application, path: str = "/", **environ: Any) -> bytes:
        environ = {"PATH_INFO": path, **environ}
        setup_testing_defaults(environ)
        body = app(environ, self.start_response)
        try:
            for chunk in body:
                self.send(chunk)
            if not self.sent:
                self.send(b"")  # the headers alone
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()
        return b"".join(self.sent)


def answering(*chunks: bytes, status: str = "200 OK", headers: Headers | None = None) -> Application:
    """A generator: starts when it is first asked for a chunk."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response(status, headers or [])
        yield from chunks

    return app


def listing(*chunks: bytes, headers: Headers | None = None) -> Application:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("201 Created", headers or [])
        return list(chunks)

    return app


def profiled(app: Application, seen: Seen, **options: Any) -> Application:
    return ProfilisWSGIMiddleware(app, collector=seen, **options)


# -- the event, and when


def test_a_list_is_recorded_before_its_first_byte_is_sent(seen: Seen) -> None:
    server = Server(seen)
    assert server.get(profiled(listing(b"a", b"b"), seen), "/x") == b"ab"
    assert server.events_at_each_send == [1, 1]
    event = seen.only
    assert list(event) == ["ts_ns", "trace_id", "span_id", "kind", "route", "status", "dur_ns", "method", "path"]
    assert (event["route"], event["path"], event["status"], event["method"]) == ("<unmatched>", "/x", 201, "GET")


def test_a_stream_of_unknown_length_is_recorded_before_the_server_knows_its_end(seen: Seen) -> None:
    server = Server(seen)
    assert server.get(profiled(answering(b"a", b"b"), seen)) == b"ab"
    assert server.events_at_each_send == [0, 0]
    assert seen.only["status"] == 200


def test_a_stream_of_known_length_is_recorded_before_the_chunk_that_completes_it(seen: Seen) -> None:
    server = Server(seen)
    server.get(profiled(answering(b"ab", b"c", headers=[("content-LENGTH", "3")]), seen))
    assert server.events_at_each_send == [0, 1]
    assert len(seen.events) == 1


@pytest.mark.parametrize("length", ["three", "", "-"])
def test_a_length_that_is_none_is_the_servers_business(seen: Seen, length: str) -> None:
    server = Server(seen)
    assert server.get(profiled(answering(b"abc", headers=[("Content-Length", length)]), seen)) == b"abc"
    assert seen.only["status"] == 200


@pytest.mark.parametrize(("method", "status"), [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Same")])
def test_an_answer_without_a_body_is_recorded_before_its_headers_are_sent(seen: Seen, method: str, status: str) -> None:
    server = Server(seen)
    app = answering(b"never sent", b"nor this", status=status, headers=[("Content-Length", "1000")])
    server.get(profiled(app, seen), REQUEST_METHOD=method)
    assert server.events_at_each_send == [1, 1]
    assert seen.only["status"] == int(status[:3])


def test_bytes_by_the_write_callable_count(seen: Seen) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        write = start_response("200 OK", [("Content-Length", "3")])
        write(b"ab")
        write(b"c")
        return []

    server = Server(seen)
    assert server.get(profiled(app, seen)) == b"abc"
    assert server.events_at_each_send == [0, 1]
    assert len(seen.events) == 1


def test_a_file_that_the_server_sends_itself_is_handed_over_as_it_is(seen: Seen) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](io.BytesIO(b"content"))
        return wrapped

    environ: dict[str, Any] = {"wsgi.file_wrapper": FileWrapper}
    setup_testing_defaults(environ)
    body = profiled(app, seen)(environ, lambda *_: None)
    assert type(body) is FileWrapper
    assert seen.only["status"] == 200
    assert Server(seen).get(profiled(app, seen), **{"wsgi.file_wrapper": FileWrapper}) == b"content"


def test_a_client_that_leaves_is_one_event_with_the_status_as_sent(seen: Seen) -> None:
    class Gone(Server):
        def send(self, data: bytes) -> None:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        Gone(seen).get(profiled(answering(b"a", b"b"), seen))
    assert seen.only["status"] == 200
    assert "exception_type" not in seen.only


# -- exceptions


def failing(error: BaseException, after: int = 0, start: bool = True) -> Application:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        if start:
            start_response("200 OK", [])
        for _ in range(after):
            yield b"x"
        raise error

    return app


@pytest.mark.parametrize(
    ("app", "status"),
    [
        (failing(KeyError("k"), start=False), 500),
        (failing(KeyError("k")), 500),  # nothing was sent yet: the server sends its own error
        (failing(KeyError("k"), after=1), 200),
    ],
)
def test_an_exception_is_recorded_and_raised_again(seen: Seen, app: Application, status: int) -> None:
    with pytest.raises(KeyError, match="k"):
        Server(seen).get(profiled(app, seen))
    assert (seen.only["status"], seen.only["exception_type"]) == (status, "KeyError")


@pytest.mark.parametrize("error", [KeyError("k"), SystemExit(1)])
def test_an_exception_of_a_plain_function_is_recorded_before_the_server_gets_it(
    seen: Seen, error: BaseException
) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        raise error

    with pytest.raises(type(error)) as caught:
        profiled(app, seen)({"REQUEST_METHOD": "GET"}, lambda *_: None)
    assert caught.value is error
    assert (seen.only["status"], seen.only["exception_type"]) == (500, type(error).__name__)


def test_an_exception_that_the_application_answers_for_is_named(seen: Seen) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "1000")])
        try:
            raise KeyError("k")
        except KeyError as error:
            start_response("503 Sorry", [], (type(error), error, error.__traceback__))
        return [b"sorry"]

    server = Server(seen)
    assert server.get(profiled(app, seen)) == b"sorry"
    assert server.status == "503 Sorry"
    assert (seen.only["status"], seen.only["exception_type"]) == (503, "KeyError")


def test_a_status_that_is_none_is_the_servers_business(seen: Seen) -> None:
    server = Server(seen)
    assert server.get(profiled(answering(b"a", status="fine"), seen)) == b"a"
    assert server.status == "fine"
    assert len(seen.events) == 1


def test_a_collector_that_raises_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Seen):
        def enqueue(self, event: Event) -> None:
            raise OSError("full")

    broken = Broken()
    with caplog.at_level(logging.WARNING, "profilis_mp"):
        assert Server(broken).get(profiled(answering(b"a"), broken)) == b"a"
        assert Server(broken).get(profiled(listing(b"a"), broken)) == b"a"
    assert [record.name for record in caplog.records] == ["profilis_mp"]
    assert "ProfilisWSGIMiddleware: a request was not reported: " in caplog.text


def test_a_chunk_that_is_no_bytes_is_the_servers_business(seen: Seen) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[Any]:
        start_response("200 OK", [("Content-Length", "1")])
        yield None
        yield b"a"

    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    assert list(profiled(app, seen)(environ, lambda *_: None)) == [None, b"a"]
    assert seen.only["status"] == 200


def test_an_environment_without_a_method_is_the_applications_business(seen: Seen) -> None:
    statuses: list[str] = []
    assert profiled(listing(b"a"), seen)({}, lambda status, headers: statuses.append(status)) == [b"a"]
    assert (statuses, seen.events) == (["201 Created"], [])


# -- span, options


def test_application_and_stream_run_in_the_requests_span(seen: Seen) -> None:
    traces: list[str | None] = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [])
        for _ in range(2):
            traces.append(get_trace_id())
            yield b"a"

    Server(seen).get(profiled(app, seen))
    assert traces == [seen.only["trace_id"]] * 2
    assert current_span() is None


def test_two_around_one_application_are_one_event_and_one_decision(seen: Seen) -> None:
    other = Seen()
    app = profiled(profiled(profiled(answering(b"a"), other), seen), seen, exclude_routes=["/health"])
    Server(seen).get(app, "/x")
    Server(seen).get(app, "/health/db")
    assert [event["path"] for event in seen.events] == ["/x"]
    assert [event["path"] for event in other.events] == ["/x", "/health/db"]


def test_a_trace_is_sampled_by_the_end_of_its_id(seen: Seen) -> None:
    """A tracer whose ids begin with zeros or a time must not decide for all of its traces at once."""
    app = profiled(answering(b"a"), seen, sample=0.5)
    for trace_id in ("0" * 24 + "7fffffff", "0" * 24 + "80000000", "f" * 24 + "00000000", "f" * 32):
        Server(seen).get(app, HTTP_TRACEPARENT=f"00-{trace_id}-00f067aa0ba902b7-01")
    assert [event["trace_id"] for event in seen.events] == ["0" * 24 + "7fffffff", "f" * 24 + "00000000"]


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        ({"app": None}, "app"), ({"collector": None}, "collector"), ({"sample": 2}, "sample"),
        ({"exclude_routes": "/health"}, "exclude_routes"), ({"exclude_routes": 7}, "exclude_routes"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused_by_name(seen: Seen, arguments: dict[str, Any], refused: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ProfilisWSGIMiddleware(**{"app": answering(), "collector": seen, **arguments})
    assert caught.value.argument == refused


# -- frameworks that show their route


@pytest.mark.parametrize("is_profiled", [True, False])
def test_flask_inside_shows_its_route(seen: Seen, is_profiled: bool) -> None:
    flask = pytest.importorskip("flask")
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    from profilis_mp.flask import ProfilisFlask

    inner = flask.Flask("inner")
    inner.add_url_rule("/users/<int:user>", "show", lambda user: str(user))
    if is_profiled:
        ProfilisFlask(inner, collector=seen)
    app = profiled(DispatcherMiddleware(answering(b"main"), {"/shop": inner}), seen)
    assert Server(seen).get(app, "/shop/users/7") == b"7"
    assert Server(seen).get(app, "/shop/other").startswith(b"<!doctype")
    assert Server(seen).get(app, "/") == b"main"
    prefix = "" if is_profiled else "/shop"  # Flask's own view of it
    assert [(event["route"], event["status"]) for event in seen.events] == [
        (f"{prefix}/users/<int:user>", 200), ("<unmatched>", 404), ("<unmatched>", 200)
    ]  # fmt: skip

"""Every request to a Flask application becomes exactly one REQ event, and is otherwise left as it was."""

from __future__ import annotations

import gc
import importlib
import io
import logging
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Blueprint, Flask, Response, abort, redirect, request, send_file, stream_with_context
from flask.sessions import SecureCookieSessionInterface
from flask.signals import request_started
from seen import Event, Seen
from werkzeug.exceptions import HTTPException
from werkzeug.test import EnvironBuilder

from profilis_mp.core.context import current_span, get_trace_id
from profilis_mp.core.emitter import Emitter
from profilis_mp.core.traceparent import traceparent
from profilis_mp.errors import ConfigError
from profilis_mp.flask.adapter import ProfilisFlask


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def app(seen: Seen) -> Flask:
    """Profiled first, then given routes and hooks: all that an application does to itself comes after."""
    app = Flask(__name__)
    app.logger.disabled = True
    ProfilisFlask(app, collector=seen)

    @app.get("/users/<int:user>")
    def show(user: int) -> str:
        return f"user {user}"

    @app.get("/fail")
    def fail() -> str:
        raise KeyError("no such thing")

    return app


def view(app: Flask | Blueprint, path: str, function: Callable[..., Any]) -> None:
    endpoint = "".join(filter(str.isalnum, path)) or "root"
    app.add_url_rule(path, endpoint, function, methods=["GET", "POST"])


def call(app: Flask, path: str, method: str = "GET") -> tuple[Any, list[str]]:
    """What a server would get: the response's body, not iterated yet, and its status."""
    statuses: list[str] = []

    def start_response(status: str, headers: object, exc_info: object = None) -> Callable[[bytes], None]:
        statuses.append(status)
        return lambda data: None

    return app(EnvironBuilder(path=path, method=method).get_environ(), start_response), statuses


# -- the event


def test_a_request_is_one_event_with_the_route_and_not_the_path(app: Flask, seen: Seen) -> None:
    assert app.test_client().get("/users/7").text == "user 7"
    event = seen.only
    assert list(event) == ["ts_ns", "trace_id", "span_id", "kind", "route", "status", "dur_ns", "method"]
    assert (event["kind"], event["route"], event["status"], event["method"]) == ("REQ", "/users/<int:user>", 200, "GET")
    assert 0 < event["dur_ns"] < 60 * 10**9


def test_each_request_has_a_trace_of_its_own(app: Flask, seen: Seen) -> None:
    client = app.test_client()
    for user in range(3):
        client.get(f"/users/{user}")
    assert len({event["trace_id"] for event in seen.events}) == 3


def test_a_blueprints_prefix_belongs_to_the_route(app: Flask, seen: Seen) -> None:
    blueprint = Blueprint("shop", __name__)
    view(blueprint, "/items/<name>", lambda name: name)
    app.register_blueprint(blueprint, url_prefix="/shop")
    app.test_client().get("/shop/items/pen")
    assert seen.only["route"] == "/shop/items/<name>"


def test_an_unmatched_path_is_one_route_with_the_path_beside_it(app: Flask, seen: Seen) -> None:
    assert app.test_client().get("/wp-login.php/é").status_code == 404
    event = seen.only
    assert (event["route"], event["path"], event["status"]) == ("<unmatched>", "/wp-login.php/é", 404)
    assert "exception_type" not in event


def test_a_wrong_method_has_the_route_that_it_missed(app: Flask, seen: Seen) -> None:
    assert app.test_client().delete("/users/7").status_code == 405
    event = seen.only
    assert (event["route"], event["status"], event["method"]) == ("/users/<int:user>", 405, "DELETE")
    assert "exception_type" not in event


def test_the_routers_redirect_is_an_answer(app: Flask, seen: Seen) -> None:
    view(app, "/folder/", lambda: "")
    assert app.test_client().get("/folder").status_code == 308
    assert (seen.only["status"], seen.only["path"]) == (308, "/folder")
    assert "exception_type" not in seen.only


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_automatic_methods_are_requests_too(app: Flask, seen: Seen, method: str) -> None:
    assert app.test_client().open("/users/7", method=method).status_code == 200
    assert (seen.only["route"], seen.only["method"]) == ("/users/<int:user>", method)


def test_a_static_file_is_a_request(seen: Seen, tmp_path: Any) -> None:
    (tmp_path / "a.txt").write_text("content")
    app = Flask(__name__, static_folder=str(tmp_path), static_url_path="/static")
    ProfilisFlask(app, collector=seen)
    with app.test_client().get("/static/a.txt") as response:
        assert response.text == "content"
    assert seen.only["route"] == "/static/<path:filename>"


# -- exceptions


def test_an_unhandled_exception_is_a_500_with_its_type(app: Flask, seen: Seen) -> None:
    assert app.test_client().get("/fail").status_code == 500
    assert (seen.only["route"], seen.only["status"], seen.only["exception_type"]) == ("/fail", 500, "KeyError")


def test_an_exception_that_leaves_the_application_is_recorded_once(app: Flask, seen: Seen) -> None:
    app.testing = True
    with pytest.raises(KeyError, match="no such thing"):
        app.test_client().get("/fail")
    assert (seen.only["route"], seen.only["status"], seen.only["exception_type"]) == ("/fail", 500, "KeyError")


def test_a_handled_exception_has_the_handlers_status(app: Flask, seen: Seen) -> None:
    app.register_error_handler(KeyError, lambda error: ("teapot", 418))
    assert app.test_client().get("/fail").text == "teapot"
    assert (seen.only["status"], seen.only["exception_type"]) == (418, "KeyError")


def test_a_handler_of_500_answers_for_the_exception(app: Flask, seen: Seen) -> None:
    app.register_error_handler(500, lambda error: ("sorry", 503))
    assert app.test_client().get("/fail").status_code == 503
    assert (seen.only["status"], seen.only["exception_type"]) == (503, "KeyError")


def test_a_handler_that_raises_is_the_exception(app: Flask, seen: Seen) -> None:
    def handler(error: Exception) -> str:
        raise OSError

    app.register_error_handler(KeyError, handler)
    assert app.test_client().get("/fail").status_code == 500
    assert (seen.only["status"], seen.only["exception_type"]) == (500, "OSError")


def test_abort_in_a_view_is_recorded_with_its_type(app: Flask, seen: Seen) -> None:
    view(app, "/secret", lambda: abort(403))
    app.test_client().get("/secret")
    assert (seen.only["status"], seen.only["exception_type"]) == (403, "Forbidden")


def test_answers_by_exception_are_answers(app: Flask, seen: Seen) -> None:
    view(app, "/away", lambda: abort(redirect("/")))
    assert app.test_client().get("/away").status_code == 302
    assert "exception_type" not in seen.only


def test_an_answer_from_an_earlier_hook_is_a_request(app: Flask, seen: Seen) -> None:
    app.before_request(lambda: ("closed", 503))
    assert app.test_client().get("/users/7").text == "closed"
    assert (seen.only["route"], seen.only["status"]) == ("/users/<int:user>", 503)


def boom(*_: object) -> Any:
    raise RuntimeError("hook")


@pytest.mark.parametrize("hook", ["before_request", "after_request"])
def test_a_hook_that_raises_is_one_event(app: Flask, seen: Seen, hook: str) -> None:
    getattr(app, hook)(boom)
    assert app.test_client().get("/users/7").status_code == 500
    assert (seen.only["route"], seen.only["status"]) == ("/users/<int:user>", 500)
    assert seen.only["exception_type"] == "RuntimeError"


@pytest.mark.parametrize("path", ["/users/7", "/fail"])
def test_a_teardown_that_raises_is_one_event_with_the_status_that_the_server_sends(
    app: Flask, seen: Seen, path: str
) -> None:
    app.teardown_request(boom)
    with pytest.raises(RuntimeError, match="hook"):
        app.test_client().get(path)
    assert (seen.only["status"], seen.only["exception_type"]) == (500, "RuntimeError")


def test_a_session_that_cannot_be_opened_is_one_event(app: Flask, seen: Seen) -> None:
    app.session_interface = type("Broken", (SecureCookieSessionInterface,), {"open_session": boom})()
    assert app.test_client().get("/users/7").status_code == 500
    assert (seen.only["status"], seen.only["exception_type"]) == (500, "RuntimeError")


def test_a_signals_receiver_that_raises_is_one_event(app: Flask, seen: Seen) -> None:
    with request_started.connected_to(boom, app):
        assert app.test_client().get("/users/7").status_code == 500
    assert (seen.only["route"], seen.only["status"]) == ("/users/<int:user>", 500)


def test_a_worker_that_is_told_to_exit_in_a_view_leaves_its_request(app: Flask, seen: Seen) -> None:
    view(app, "/hang", lambda: sys.exit(1))
    with pytest.raises(SystemExit):
        app.test_client().get("/hang")
    assert (seen.only["route"], seen.only["status"], seen.only["exception_type"]) == ("/hang", 500, "SystemExit")


# -- when


def test_the_event_is_there_before_the_server_gets_the_body(app: Flask, seen: Seen) -> None:
    body, statuses = call(app, "/users/7")
    assert seen.only["status"] == 200
    assert statuses == ["200 OK"]
    assert b"".join(body) == b"user 7"
    body.close()
    assert len(seen.events) == 1


@pytest.mark.parametrize(("path", "status"), [("/nothing", 404), ("/fail", 500)])
def test_an_error_page_is_recorded_before_the_server_gets_it(app: Flask, seen: Seen, path: str, status: int) -> None:
    # Werkzeug wraps the page of an HTTPException up as a stream of unknown length.
    body, _ = call(app, path)
    assert seen.only["status"] == status
    body.close()
    assert len(seen.events) == 1


def test_a_stream_of_known_length_is_recorded_before_its_last_chunk_is_sent(app: Flask, seen: Seen) -> None:
    view(app, "/", lambda: Response((letter for letter in "abc"), headers={"Content-Length": "3"}))
    body, _ = call(app, "/")
    chunks = iter(body)
    assert next(chunks) + next(chunks) == b"ab"
    assert seen.events == []
    assert next(chunks) == b"c"
    assert seen.only["status"] == 200
    assert list(chunks) == []
    body.close()
    assert len(seen.events) == 1


@pytest.fixture
def stream(app: Flask) -> list[str | None]:
    """A streaming route, and the traces that its generator saw."""
    traces: list[str | None] = []

    def chunks() -> Iterator[str]:
        for chunk in ("a", "b", "c"):
            traces.append(get_trace_id())
            yield chunk

    view(app, "/stream", lambda: Response(stream_with_context(chunks())))
    view(app, "/broken", lambda: Response(letter if letter < "c" else boom() for letter in "abc"))
    return traces


def test_a_stream_is_recorded_when_it_ends_before_the_server_knows(
    app: Flask, seen: Seen, stream: list[str | None]
) -> None:
    body, _ = call(app, "/stream")
    chunks = iter(body)
    assert [next(chunks), next(chunks), next(chunks)] == [b"a", b"b", b"c"]
    assert seen.events == []
    with pytest.raises(StopIteration):
        next(chunks)
    event = seen.only
    body.close()
    assert seen.only is event
    assert (event["route"], event["status"]) == ("/stream", 200)


def test_a_streams_generator_runs_in_the_requests_span(app: Flask, seen: Seen, stream: list[str | None]) -> None:
    assert app.test_client().get("/stream").text == "abc"
    assert set(stream) == {seen.only["trace_id"]}
    assert current_span() is None


def test_a_stream_that_a_client_leaves_is_recorded_when_it_is_closed(
    app: Flask, seen: Seen, stream: list[str | None]
) -> None:
    body, _ = call(app, "/stream")
    next(iter(body))
    assert seen.events == []
    body.close()
    body.close()
    assert seen.only["status"] == 200


def test_a_stream_that_fails_is_recorded_with_the_exception(app: Flask, seen: Seen, stream: list[str | None]) -> None:
    body, _ = call(app, "/broken")
    with pytest.raises(RuntimeError):
        b"".join(body)
    body.close()
    assert (seen.only["status"], seen.only["exception_type"]) == (200, "RuntimeError")


def test_a_stream_that_fails_before_its_first_chunk_has_the_status_that_the_server_sends(
    app: Flask, seen: Seen
) -> None:
    view(app, "/", lambda: Response(boom() for _ in "a"))
    body, _ = call(app, "/")
    with pytest.raises(RuntimeError):
        next(iter(body))
    assert (seen.only["status"], seen.only["exception_type"]) == (500, "RuntimeError")


def test_a_stream_that_nobody_closes_is_recorded_when_it_is_forgotten(
    app: Flask, seen: Seen, stream: list[str | None]
) -> None:
    body, _ = call(app, "/stream")
    next(iter(body))
    del body
    gc.collect()
    assert seen.only["status"] == 200


def test_a_stream_of_no_bytes_is_recorded_once(app: Flask, seen: Seen, stream: list[str | None]) -> None:
    assert app.test_client().head("/stream").status_code == 200
    assert seen.only["method"] == "HEAD"


def test_a_file_for_the_server_is_handed_over_as_it_is(app: Flask, seen: Seen) -> None:
    class ServersWrapper:
        def __init__(self, file: Any, size: int = 0) -> None:
            self.file = file

        def __iter__(self) -> Iterator[bytes]:
            raise AssertionError("only the server may read it")

    view(app, "/file", lambda: send_file(io.BytesIO(b"content"), mimetype="text/plain"))
    environ = EnvironBuilder(path="/file").get_environ()
    environ["wsgi.file_wrapper"] = ServersWrapper
    body = app(environ, lambda *_: None)
    assert type(body) is ServersWrapper
    assert seen.only["route"] == "/file"


# -- the span


def test_what_a_view_emits_shares_the_requests_span(app: Flask, seen: Seen) -> None:
    view(app, "/work", lambda: Emitter(seen).emit_fn("work", 1) or "")
    app.test_client().get("/work")
    function, request_ = seen.events
    assert (function["kind"], request_["kind"]) == ("FN", "REQ")
    assert (function["trace_id"], function["span_id"]) == (request_["trace_id"], request_["span_id"])
    assert current_span() is None


def test_an_async_view_shares_the_requests_span(app: Flask, seen: Seen) -> None:
    pytest.importorskip("asgiref")

    @app.get("/async/<name>")
    async def view(name: str) -> str:
        Emitter(seen).emit_fn("work", 1)
        return name

    @app.get("/async-fail")
    async def failing() -> str:
        raise KeyError

    client = app.test_client()
    assert client.get("/async/x").text == "x"
    assert seen.events[0]["trace_id"] == seen.events[1]["trace_id"]
    assert seen.events[1]["route"] == "/async/<name>"
    client.get("/async-fail")
    assert (seen.events[2]["status"], seen.events[2]["exception_type"]) == (500, "KeyError")


def test_a_request_within_a_request_is_its_own(app: Flask, seen: Seen) -> None:
    @app.get("/outer")
    def outer() -> str:
        before = get_trace_id()
        text = app.test_client().get("/users/7").text
        assert get_trace_id() == before
        return text

    assert app.test_client().get("/outer").text == "user 7"
    inner_event, outer_event = seen.events
    assert (inner_event["route"], outer_event["route"]) == ("/users/<int:user>", "/outer")
    assert inner_event["trace_id"] != outer_event["trace_id"]


def test_an_application_answering_through_another_is_one_request_of_their_collector(app: Flask, seen: Seen) -> None:
    other = Flask("other")
    ProfilisFlask(other, collector=seen)
    view(other, "/<path:rest>", lambda rest: rest)
    view(app, "/delegate", lambda: other)
    assert app.test_client().get("/delegate").text == "delegate"
    assert (seen.only["route"], seen.only["status"]) == ("/delegate", 200)


def test_an_application_answering_through_another_has_an_event_in_each_collector(app: Flask, seen: Seen) -> None:
    others = Seen()
    other = Flask("other")
    ProfilisFlask(other, collector=others)
    view(other, "/<path:rest>", lambda rest: rest)
    view(app, "/delegate", lambda: other)
    assert app.test_client().get("/delegate").text == "delegate"
    assert (seen.only["route"], others.only["route"]) == ("/delegate", "/<path:rest>")


# -- application factories


def test_a_factory_profiles_each_application_it_makes(seen: Seen) -> None:
    profilis = ProfilisFlask(collector=seen, exclude_routes=["/health"])

    def create_app(name: str) -> Flask:
        app = Flask(name)
        app.logger.disabled = True
        profilis.init_app(app)
        view(app, f"/{name}/<item>", lambda item: item)
        view(app, "/health", lambda: "")
        view(app, "/fail", boom)
        return app

    one, other = create_app("one"), create_app("other")
    assert one.extensions["profilis_mp"] is other.extensions["profilis_mp"] is profilis
    assert other.test_client().get("/other/7").text == "7"
    assert one.test_client().get("/one/7").text == "7"
    one.test_client().get("/health")
    other.test_client().get("/fail")
    assert [(event["route"], event["status"]) for event in seen.events] == [
        ("/other/<item>", 200), ("/one/<item>", 200), ("/fail", 500)
    ]  # fmt: skip
    assert seen.events[2]["exception_type"] == "RuntimeError"


@pytest.mark.parametrize("wrong", [None, object(), Flask])
def test_init_app_refuses_what_is_no_application(seen: Seen, wrong: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        ProfilisFlask(collector=seen).init_app(wrong)
    assert caught.value.argument == "app"


def test_init_app_refuses_an_application_that_is_profiled_already(app: Flask) -> None:
    with pytest.raises(ConfigError, match="already"):
        ProfilisFlask(collector=Seen()).init_app(app)


# -- traceparent

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_callers_trace_goes_on(app: Flask, seen: Seen) -> None:
    sent_on: list[str | None] = []
    view(app, "/call", lambda: sent_on.append(traceparent()) or "")
    app.test_client().get("/call", headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
    event = seen.only
    assert (event["trace_id"], event["parent_span_id"]) == (TRACE, CALLER)
    assert event["span_id"] != CALLER
    assert sent_on == [f"00-{TRACE}-{event['span_id']}-01"]
    assert list(event)[-1] == "parent_span_id"


@pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{CALLER}-01", f"ff-{TRACE}-{CALLER}-01"])
def test_a_header_that_is_none_begins_a_trace(app: Flask, seen: Seen, header: str) -> None:
    app.test_client().get("/users/7", headers={"traceparent": header})
    assert seen.only["trace_id"] != TRACE
    assert "parent_span_id" not in seen.only


# -- what it leaves alone


def test_the_requests_body_is_the_views(app: Flask, seen: Seen) -> None:
    class Body(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1) -> bytes:
            Body.reads += 1
            return super().read(size)

    view(app, "/ignore", lambda: "")
    view(app, "/echo", lambda: request.stream.read())
    client = app.test_client()
    client.post("/ignore", input_stream=Body(b"x" * 1000), content_length=1000)
    assert Body.reads == 0
    assert client.post("/echo", data=b"y" * 100_000).data == b"y" * 100_000


def test_a_collector_that_raises_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def enqueue(self, event: Event) -> None:
            raise OSError("full")

    app = Flask(__name__)
    ProfilisFlask(app, collector=Broken())
    view(app, "/", lambda: "fine")
    view(app, "/stream", lambda: Response(iter("abc")))
    with caplog.at_level(logging.WARNING, "profilis_mp"):
        client = app.test_client()
        assert client.get("/").text == "fine"
        assert client.get("/stream").text == "abc"
    assert all(record.name == "profilis_mp" for record in caplog.records)


def test_what_fails_in_the_adapter_fails_no_request(app: Flask, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profilis_mp.flask.adapter.template", boom)
    assert app.test_client().get("/users/7").text == "user 7"
    assert seen.only["route"] == "<unmatched>"
    monkeypatch.setattr("profilis_mp.web.reporter.Request", boom)
    assert app.test_client().get("/users/7").text == "user 7"


def test_a_profiled_application_can_be_forgotten() -> None:
    app = Flask(__name__)
    ProfilisFlask(app, collector=Seen())
    view(app, "/", lambda: "")
    app.test_client().get("/")
    reference = weakref.ref(app)
    del app
    gc.collect()
    assert reference() is None


# -- options


@pytest.mark.parametrize(
    ("path", "reported"),
    [
        ("/health", False), ("/health/", False), ("/health/db", False), ("/healthy", True),
        ("/items/7", False), ("/items", True), ("/", False), ("/other", True),
    ],
)  # fmt: skip
def test_excluded_routes_end_at_a_segment(seen: Seen, path: str, reported: bool) -> None:
    app = Flask(__name__)
    ProfilisFlask(app, collector=seen, exclude_routes=["/health/", "/items/<int:item>", "/"])
    view(app, "/items/<int:item>", lambda item: "")
    view(app, "/", lambda: "")
    app.test_client().get(path)
    assert bool(seen.events) == reported


def test_unmatched_requests_can_be_excluded(seen: Seen) -> None:
    app = Flask(__name__)
    ProfilisFlask(app, collector=seen, exclude_routes=("<unmatched>",))
    app.test_client().get("/nothing")
    assert seen.events == []


def test_a_sample_reports_its_share_and_spans_the_rest(seen: Seen) -> None:
    app = Flask(__name__)
    ProfilisFlask(app, collector=seen, sample=0.5)
    spans = []
    view(app, "/", lambda: spans.append(current_span()) or "")
    client = app.test_client()
    for _ in range(200):
        client.get("/")
    assert 50 < len(seen.events) < 150  # 7 standard deviations
    assert None not in spans


@pytest.mark.parametrize(("sample", "reported"), [(0, 0), (1, 20), (1.0, 20)])
def test_a_sample_of_none_or_all_is_exact(seen: Seen, sample: float, reported: int) -> None:
    app = Flask(__name__)
    ProfilisFlask(app, collector=seen, sample=sample)
    client = app.test_client()
    for _ in range(20):
        client.get("/")
    assert len(seen.events) == reported


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        ({"sample": 1.1}, "sample"),
        ({"sample": -0.1}, "sample"),
        ({"sample": float("nan")}, "sample"),
        ({"sample": "1"}, "sample"),
        ({"sample": True}, "sample"),
        ({"exclude_routes": "/health"}, "exclude_routes"),
        ({"exclude_routes": ["health"]}, "exclude_routes"),
        ({"exclude_routes": [1]}, "exclude_routes"),
        ({"collector": object()}, "collector"),
        ({"app": object()}, "app"),
    ],
)
def test_a_wrong_argument_is_refused_by_name_and_the_application_untouched(
    arguments: dict[str, Any], refused: str
) -> None:
    app = Flask(__name__)
    before = dict(vars(app))
    with pytest.raises(ConfigError) as caught:
        ProfilisFlask(**{"app": app, "collector": Seen(), **arguments})
    assert caught.value.argument == refused
    assert vars(app) == before
    assert app.extensions == {}


def test_an_application_is_profiled_once_only(app: Flask) -> None:
    with pytest.raises(ConfigError, match="already"):
        ProfilisFlask(app, collector=Seen())


def test_without_flask_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("profilis_mp.flask.adapter", "profilis_mp.flask.watched", "profilis_mp.flask"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "flask", None)
    with pytest.raises(ImportError, match=r'pip install "profilis_mp\[flask\]"'):
        importlib.import_module("profilis_mp.flask.adapter")


# -- middlewares


class Middleware:
    """Answers /blocked by itself; passes all else on, one chunk more at the end."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        if environ["PATH_INFO"] == "/blocked":
            start_response("403 Forbidden", [])
            return
        yield from self.inner(environ, start_response)
        yield b"!"


def test_a_middleware_put_around_later_changes_nothing(app: Flask, seen: Seen) -> None:
    app.wsgi_app = Middleware(app.wsgi_app)  # type: ignore[method-assign]
    client = app.test_client()
    assert client.get("/users/7", buffered=True).data.startswith(b"user 7")
    assert seen.only["route"] == "/users/<int:user>"
    client.get("/blocked")
    assert len(seen.events) == 1


def test_a_middleware_put_around_before_is_seen(seen: Seen) -> None:
    app = Flask(__name__)
    app.wsgi_app = Middleware(app.wsgi_app)  # type: ignore[method-assign]
    ProfilisFlask(app, collector=seen)
    view(app, "/", lambda: Response("fine", headers={"Content-Length": "5"}))
    client = app.test_client()
    assert client.get("/").text == "fine!"
    assert client.get("/blocked").status_code == 403
    assert [(event["route"], event["status"]) for event in seen.events] == [("/", 200), ("<unmatched>", 403)]


@pytest.fixture
def cut_out(seen: Seen) -> Flask:
    """An application whose wrapper somebody has replaced with what was there before it."""
    app = Flask(__name__)
    app.logger.disabled = True
    before = app.wsgi_app
    ProfilisFlask(app, collector=seen, exclude_routes=["/health"])
    app.wsgi_app = before  # type: ignore[method-assign]
    view(app, "/users/<int:user>", lambda user: Emitter(seen).emit_fn("show", 1) or "user")
    view(app, "/fail", boom)
    view(app, "/exit", lambda: sys.exit(1))
    view(app, "/stream", lambda: Response(letter for letter in "abc"))
    view(app, "/health", lambda: "")
    return app


def test_without_its_wrapper_requests_are_still_reported_once(cut_out: Flask, seen: Seen) -> None:
    client = cut_out.test_client()
    client.get("/users/7")
    client.get("/fail")
    assert client.get("/stream", buffered=True).text == "abc"
    client.get("/nothing")
    client.get("/health")
    assert [(event.get("route"), event.get("status")) for event in seen.events] == [
        (None, None), ("/users/<int:user>", 200), ("/fail", 500), ("/stream", 200), ("<unmatched>", 404)
    ]  # fmt: skip
    assert seen.events[0]["trace_id"] == seen.events[1]["trace_id"]
    assert seen.events[2]["exception_type"] == "RuntimeError"
    assert current_span() is None


@pytest.mark.parametrize(("path", "name"), [("/fail", "RuntimeError"), ("/exit", "SystemExit")])
def test_without_its_wrapper_what_leaves_the_application_is_still_reported_once(
    cut_out: Flask, seen: Seen, path: str, name: str
) -> None:
    cut_out.testing = True
    with pytest.raises((RuntimeError, SystemExit)):
        cut_out.test_client().get(path)
    assert (seen.only["status"], seen.only["exception_type"]) == (500, name)
    assert current_span() is None


def test_without_its_wrapper_a_failure_of_its_own_fails_no_request(
    cut_out: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no receivers today")

    monkeypatch.setattr(request_started, "connect", refuse)
    assert cut_out.test_client().get("/users/7").status_code == 200


def test_handled_http_exceptions_keep_their_handlers(app: Flask, seen: Seen) -> None:
    @app.errorhandler(HTTPException)
    def handler(error: HTTPException) -> tuple[str, int]:
        return f"handled {error.code}", 299

    assert app.test_client().get("/nothing").text == "handled 404"
    assert (seen.only["status"], seen.only["route"]) == (299, "<unmatched>")

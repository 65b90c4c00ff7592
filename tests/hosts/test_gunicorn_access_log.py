"""gunicorn's access log as REQ events: one for each request, with what the format asks for and nothing more."""

from __future__ import annotations

import datetime
import http.client
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn_hosting import events_in, gunicorn

from profilis_mp import ConfigError, LogDirectoryError, read_events
from profilis_mp.gunicorn import AccessLogger

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
WORKER_CLASSES = {
    "sync": "gunicorn_app:app",
    "gthread": "gunicorn_app:app",
    "gevent": "gunicorn_app:app",
    "asgi": "gunicorn_app:asgi_app",
}


def get(port: int, path: str, headers: Mapping[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path, headers=dict(headers))
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_each_request_is_an_access_event(tmp_path: Path, worker_class: str) -> None:
    """From the command line alone, beside the access log that gunicorn writes as text.

    Who completes the account: the workers' exit hooks.
    """
    logs, text = tmp_path / "access", tmp_path / "access.log"
    options = (
        f"--worker-class={worker_class}",
        "--logger-class=profilis_mp.gunicorn.AccessLogger",
        f"--env=PROFILIS_DIR={logs}",
        f"--access-logfile={text}",
    )
    with gunicorn(tmp_path, *options, app=WORKER_CLASSES[worker_class], workers=2) as (port, _):
        headers = {"User-Agent": "tests", "traceparent": TRACE}
        statuses = [get(port, f"/api/users/{number}?page={number}", headers) for number in range(20)]
    assert statuses == [200] * 20
    with read_events(logs, kinds="REQ") as reader:
        events = [event for event in reader if event["route"] != "/pid"]
    assert sorted(event["path"] for event in events) == sorted(f"/api/users/{number}" for number in range(20))
    for event in events:
        assert (event["route"], event["status"], event["method"]) == (event["path"], 200, "GET")
        assert (event["user_agent"], event["remote_addr"]) == ("tests", "127.0.0.1")
        assert event["query"] == f"page={event['path'].rpartition('/')[2]}"
        assert (event["trace_id"], event["parent_span_id"]) == tuple(TRACE.split("-")[1:3])
        assert event["dur_ns"] >= 0
        assert "referer" not in event
    assert text.read_text().count("GET /api/users/") == 20
    assert {Path(path).name.partition("-")[0] for path in map(str, logs.glob("*.jsonl"))} == {"access"}


def test_without_any_setting_events_go_to_logs_and_no_text_anywhere(tmp_path: Path) -> None:
    options = ("--logger-class=profilis_mp.gunicorn.AccessLogger", f"--chdir={tmp_path}", f"--pythonpath={_HERE}")
    with gunicorn(tmp_path, *options, workers=1) as (port, _):
        assert get(port, "/pid", {}) == 200
    paths = [event["path"] for event in events_in(tmp_path / "logs") if "path" in event]
    assert paths.count("/pid") >= 1
    assert "GET /pid" not in (tmp_path / "server.log").read_text()


_HERE = Path(__file__).parent


def logger_with(tmp_path: Path, **settings: Any) -> AccessLogger:
    cfg = Config()
    for name, value in {"raw_env": [f"PROFILIS_DIR={tmp_path}"], **settings}.items():
        cfg.set(name, value)
    return AccessLogger(cfg)


def access(logger: AccessLogger, **environ: Any) -> None:
    resp = SimpleNamespace(status="404 Not Found", sent=12, headers=[("X-Cache", "miss")])
    request = SimpleNamespace(headers=[("X-REQUEST-ID", "r1")])
    environ = {
        "REQUEST_METHOD": "GET",
        "RAW_URI": "/a?b",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "PATH_INFO": "/a",
        "QUERY_STRING": "b",
        "REMOTE_ADDR": "10.0.0.1",
        "HTTP_REFERER": "there",
        **environ,
    }
    logger.access(resp, request, environ, datetime.timedelta(milliseconds=5))


def written(logger: AccessLogger) -> dict[str, Any]:
    logger.exporter.close()
    (event,) = events_in(Path(logger.exporter.dir))
    return {key: value for key, value in event.items() if key not in ("ts_ns", "trace_id", "span_id")}


def test_the_format_says_what_an_event_holds(tmp_path: Path) -> None:
    """Who has taken addresses, names and query strings out of the one log does not find them in the other."""
    logger = logger_with(
        tmp_path, access_log_format="%(m)s %(U)s %(s)s %(b)s %({X-Request-Id}i)s %({x-cache}o)s %({absent}i)s %(p)s"
    )
    access(logger)
    assert written(logger) == {
        "kind": "REQ",
        "route": "/a",
        "status": 404,
        "dur_ns": 5_000_000,
        "method": "GET",
        "path": "/a",
        "response_bytes": 12,
        "request_headers": {"x-request-id": "r1"},
        "response_headers": {"x-cache": "miss"},
        "pid": os.getpid(),
    }


def test_a_format_without_a_path_hides_it(tmp_path: Path) -> None:
    logger = logger_with(tmp_path, access_log_format="%(s)s %(unknown)s %%")
    access(logger)
    assert written(logger) == {"kind": "REQ", "route": "<hidden>", "status": 404, "dur_ns": 5_000_000}


def test_a_request_that_cannot_be_described_is_counted_out_and_raises_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logger_with(tmp_path)
    logger.access(SimpleNamespace(status="what", sent=None, headers=[]), None, {}, None)
    assert "a request was not reported" in caplog.text
    access(logger, HTTP_TRACEPARENT="no trace", REMOTE_ADDR=None)
    assert written(logger)["status"] == 404


def test_other_options_come_from_the_environment_too_and_a_mistake_is_named(tmp_path: Path) -> None:
    logger = logger_with(tmp_path, raw_env=[f"PROFILIS_DIR={tmp_path}", "PROFILIS_ROTATE_BYTES=2KiB"])
    assert logger.exporter.rotate_bytes == 2048
    with pytest.raises(ConfigError) as caught:
        logger_with(tmp_path, raw_env=["PROFILIS_ROTATE_BITES=2KiB"])
    assert caught.value.argument == "PROFILIS_ROTATE_BITES"


def test_a_log_directory_that_cannot_be_used_stops_gunicorn_at_its_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogDirectoryError):
        logger_with(tmp_path / "file")


def test_a_reload_keeps_the_exporter_unless_the_directory_is_another(tmp_path: Path) -> None:
    logger = logger_with(tmp_path / "one")
    exporter = logger.exporter
    logger.setup(logger.cfg)
    assert logger.exporter is exporter
    access(logger)
    logger.cfg.set("raw_env", [f"PROFILIS_DIR={tmp_path / 'two'}"])
    logger.setup(logger.cfg)
    assert logger.exporter.dir == str(tmp_path / "two")
    assert len(events_in(tmp_path / "one")) == 1, "and what the elder had is flushed"


def test_without_gunicorn_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gunicorn.glogging", None)
    for name in [name for name in sys.modules if name.startswith("profilis_mp.gunicorn")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r'pip install "profilis_mp\[gunicorn\]"'):
        __import__("profilis_mp.gunicorn")

"""The hooks of `profilis_mp.gunicorn`: what nobody else would flush for hours is in the log at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn_hosting import ASGI, events_in, gunicorn, unaccounted
from processes import fork, reap, wait_until
from serving import kill, request, workers_of

import profilis_mp.gunicorn as hooks
from profilis_mp import JSONLExporter

CONFIGURATION = """
from profilis_mp.gunicorn import child_exit, on_exit, on_starting, worker_abort, worker_exit

raw_env = ["PROFILIS_DIR={directory}"]
"""
NEVER_S = 1e6


def server(directory: Path | None = None, **cfg: Any) -> SimpleNamespace:
    """What a hook looks at of gunicorn's arbiter."""
    env = {} if directory is None else {"PROFILIS_DIR": str(directory)}
    return SimpleNamespace(cfg=SimpleNamespace(env=env, **{"uid": os.geteuid(), "gid": os.getegid(), **cfg}))


@pytest.mark.parametrize("options", [("--graceful-timeout=2",), (ASGI,)], ids=["sync", "uvicorn"])
def test_with_the_hooks_what_the_dead_left_is_in_the_log_at_once(tmp_path: Path, options: tuple[str, ...]) -> None:
    """A flush interval that never comes, and one worker: only on_starting, child_exit and on_exit can have flushed.

    Who completes the account: these hooks, in the master. At the end the worker has no exit hook: it hangs in C code,
    or is Uvicorn's.
    """
    logs = tmp_path / "logs"
    (tmp_path / "gunicorn.conf.py").write_text(CONFIGURATION.format(directory=logs))
    app = "gunicorn_app:asgi_app" if ASGI in options else "gunicorn_app:app"
    assert reap(fork(lambda: JSONLExporter(logs, flush_interval=NEVER_S).emit({"kind": "FN", "fn": "earlier"}))) == 0
    assert events_in(logs) == []
    environment = {"FLUSH_INTERVAL": str(NEVER_S)}
    configured = ("-c", str(tmp_path / "gunicorn.conf.py"), *options)
    with gunicorn(tmp_path, *configured, app=app, workers=1, environment=environment) as (port, master):
        assert [event["fn"] for event in events_in(logs) if event["kind"] == "FN"] == ["earlier"], "on_starting"
        answered = [str(request(port, "/api/users/1"))]
        assert unaccounted(logs, answered), "nobody flushes by himself"
        (worker,) = workers_of(master.pid)
        kill(worker)
        wait_until(lambda: not unaccounted(logs, answered), what="child_exit")
        wait_until(lambda: request(port, "/pid") is not None, what="another worker")
        answered.append(str(request(port, "/api/users/2")))
        if ASGI not in options:
            assert request(port, "/hang/c/hung", timeout_s=1.0) is None
    assert unaccounted(logs, answered) == [], "on_exit"
    if ASGI not in options:
        assert [event["fn"] for event in events_in(logs) if event["kind"] == "FN"] == ["earlier", "hung"]
    assert "Traceback" not in (tmp_path / "server.log").read_text()


@pytest.mark.parametrize("hook", ["worker_exit", "worker_abort"])
def test_a_worker_flushes_when_gunicorn_ends_it(tmp_path: Path, hook: str) -> None:
    with JSONLExporter(tmp_path, flush_interval=NEVER_S) as exporter:
        exporter.emit({"kind": "FN", "fn": "work"})
        assert events_in(tmp_path) == []
        arguments = (server(), None) if hook == "worker_exit" else (None,)
        getattr(hooks, hook)(*arguments)
        assert [event["fn"] for event in events_in(tmp_path)] == ["work"]


def test_hooks_make_nothing_where_nothing_was_emitted(tmp_path: Path) -> None:
    exporter = JSONLExporter(tmp_path / "logs")
    one = server(tmp_path / "other")
    hooks.on_starting(one)
    hooks.worker_exit(one, None)
    hooks.worker_abort(None)
    hooks.child_exit(one, None)
    hooks.on_exit(one)
    assert list(tmp_path.iterdir()) == []
    exporter.close()


def test_a_hook_that_fails_raises_nothing_into_gunicorn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".profilis-mp").touch()
    hooks.child_exit(server(tmp_path), None)
    assert "is not a directory" in caplog.text
    hooks.on_starting(SimpleNamespace())
    assert "on_starting" in caplog.text


def test_a_signal_handlers_exception_goes_through_a_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A soft time limit is meant for the application, whatever it interrupts."""

    class Limit(Exception):
        pass

    def handler(number: int, frame: object) -> None:
        raise Limit

    before = signal.signal(signal.SIGUSR2, handler)
    with JSONLExporter(tmp_path) as exporter:
        exporter.emit({"kind": "FN"})
        monkeypatch.setattr("profilis_mp.gunicorn.hooks.recover", lambda *a, **k: os.kill(os.getpid(), signal.SIGUSR2))
        try:
            with pytest.raises(Limit):
                hooks.child_exit(server(tmp_path), None)
        finally:
            signal.signal(signal.SIGUSR2, before)

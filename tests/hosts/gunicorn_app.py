"""Real applications, profiled; gunicorn imports them (before the fork with --preload, after it without)."""

from __future__ import annotations

import _strptime  # noqa: F401  # workers with another user's rights may not read where the interpreter is
import encodings.idna  # noqa: F401  # as above
import itertools
import mmap
import os
import threading
import time
from typing import Any

from flask import Flask, abort

from profilis_mp.core.async_collector import AsyncCollector
from profilis_mp.core.context import get_trace_id, use_span
from profilis_mp.core.emitter import Emitter
from profilis_mp.exporters.jsonl import JSONLExporter
from profilis_mp.flask.adapter import ProfilisFlask

exporter = JSONLExporter(
    dir=os.environ["LOGS"],
    rotate_bytes=16 * 1024,
    rotate_secs=3600,
    flush_interval=float(os.environ.get("FLUSH_INTERVAL", "0.5")),
    owner=os.environ.get("OWNER"),
)
collector = AsyncCollector(exporter)
emitter = Emitter(collector)

app = Flask(__name__)
profilis = ProfilisFlask(app, collector=collector)


@app.get("/api/users/<int:number>")
def user(number: int) -> str:
    """Answers with its trace id, by which the client asks the log for this very request."""
    emitter.emit_db("SELECT * FROM users WHERE id = ?", dur_ns=5_000_000, rows=1)
    return str(get_trace_id())


@app.get("/missing/<int:number>")
def missing(number: int) -> str:
    abort(404, description=str(get_trace_id()))


@app.get("/pid")
def pid() -> str:
    return str(os.getpid())


@app.get("/stats")
def stats() -> dict[str, Any]:
    return {**exporter.stats(), "uid": os.geteuid()}


@app.get("/hang/<kind>/<token>")
def hang(kind: str, token: str) -> str:
    """Emits, leaves word that it has, and never answers."""
    emitter.emit_fn(token, dur_ns=1)
    with open(os.environ["ACKNOWLEDGED"], "a") as acknowledged:
        acknowledged.write(f"{token}\n")
    while kind == "python":
        time.sleep(0.01)
    return str(sum(itertools.repeat(0)))  # C code that keeps the interpreter to itself: no signal handler runs


async def asgi_app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The same two pages for an ASGI worker, without any framework."""
    if scope["type"] != "http":
        raise NotImplementedError
    with use_span() as span:
        body = str(os.getpid()).encode()
        if scope["path"].startswith("/api/users/"):
            emitter.emit_db("SELECT * FROM users WHERE id = ?", dur_ns=5_000_000, rows=1)
            emitter.emit_req("/api/users/<int:number>", 200, 1_000_000)
            body = span.trace_id.encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def _tick(path: str) -> None:
    """Emit without end, each tick numbered, and the number of those emitted kept in a file that outlives us."""
    with open(path, "r+b") as file:
        count = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")
    while True:
        emitter.emit_fn("tick", dur_ns=1, number=count[0])
        count[0] += 1
        time.sleep(0.0005)


if "TICKS" in os.environ:
    threading.Thread(target=_tick, args=(os.environ["TICKS"],), daemon=True).start()

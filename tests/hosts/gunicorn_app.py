"""A real Flask application, profiled; gunicorn imports it (before the fork with --preload, after it without)."""

from __future__ import annotations

import os

from flask import Flask, abort

from profilis_mp.core.async_collector import AsyncCollector
from profilis_mp.core.context import get_trace_id
from profilis_mp.core.emitter import Emitter
from profilis_mp.exporters.jsonl import JSONLExporter
from profilis_mp.flask.adapter import ProfilisFlask

exporter = JSONLExporter(dir=os.environ["LOGS"], rotate_bytes=64 * 1024, rotate_secs=3600)
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

"""The `profilis` package's Flask adapter, emitter, decorator and (or not) collector before our exporter.

Nothing happens at import: gunicorn calls ``make``.
"""

from __future__ import annotations

import os
from typing import Any

from flask import Flask
from profilis.core.async_collector import AsyncCollector as TheirCollector
from profilis.core.emitter import Emitter
from profilis.decorators.profile import profile_function
from profilis.flask.adapter import ProfilisFlask

from profilis_mp import AsyncCollector, JSONLExporter


def make(collector: str) -> Flask:
    exporter = JSONLExporter(dir=os.environ["LOGS"], rotate_bytes=64 * 1024)
    events: Any = AsyncCollector(exporter) if collector == "ours" else TheirCollector(exporter)
    emitter = Emitter(events)
    app = Flask(__name__)
    ProfilisFlask(app, collector=events, exclude_routes=["/ready"])

    @profile_function(emitter)
    def load(number: str) -> str:
        emitter.emit_db(f"SELECT {number}", dur_ns=1000, rows=1, db_vendor="sqlite")
        return number

    @app.get("/<number>")
    def show(number: str) -> str:
        return load(number)

    return app

"""The Flask application that `gunicorn_requests` runs: a query and a page, with one event per request, or none.

What writes the event is named by the environment: ``BENCH_LOGGER`` is a class of `peers`, or ``flask`` for this
package's own adapter (spans, trace ids and all), or nothing.
"""

from __future__ import annotations

import atexit
import os
import sqlite3
import time
from functools import cache
from typing import Any

import peers
from flask import Flask, Response, g, render_template, request
from jinja2 import DictLoader

PAGE = """<!doctype html><title>{{ user.name }}</title><h1>{{ user.name }}</h1>
<table>{% for row in orders %}<tr><td>{{ row.id }}<td>{{ row.item }}<td>{{ row.price }}</tr>{% endfor %}</table>"""

app = Flask(__name__)
app.jinja_loader = DictLoader({"user.html": PAGE})
database = sqlite3.connect(":memory:", check_same_thread=False)
database.row_factory = sqlite3.Row
database.executescript("CREATE TABLE users (id, name); CREATE TABLE orders (id, user, item, price);")
database.executemany("INSERT INTO users VALUES (?, ?)", [(number, f"user {number}") for number in range(100)])
rows = [(number, number % 100, f"item {number % 37}", number % 1000) for number in range(2000)]
database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", rows)
database.execute("CREATE INDEX orders_of ON orders (user)")


@app.get("/users/<int:number>")
def user(number: int) -> str:
    one = database.execute("SELECT * FROM users WHERE id = ?", (number,)).fetchone()
    orders = database.execute("SELECT * FROM orders WHERE user = ? ORDER BY price", (number,)).fetchall()
    return render_template("user.html", user=one, orders=orders)


def log_requests(log: Any) -> None:
    """With the hooks of the application's own that everybody would write."""

    @app.before_request
    def begin() -> None:
        g.began = time.perf_counter_ns()

    @app.after_request
    def end(response: Response) -> Response:
        log(
            {
                "ts_ns": time.time_ns(),
                "kind": "REQ",
                "route": request.url_rule.rule if request.url_rule is not None else None,
                "method": request.method,
                "status": response.status_code,
                "dur_ns": time.perf_counter_ns() - g.began,
            }
        )
        return response


logger = os.environ.get("BENCH_LOGGER", "")
if logger == "flask":
    from profilis_mp import AsyncCollector, JSONLExporter
    from profilis_mp.flask.adapter import ProfilisFlask

    ProfilisFlask(app, collector=AsyncCollector(JSONLExporter(os.environ["BENCH_LOGS"])))
elif logger:
    kind: type[peers.Peer] = getattr(peers, logger)
    peer = kind(os.environ["BENCH_LOGS"])  # with --preload in the master, whose worker processes inherit its queue
    made_in = os.getpid()
    atexit.register(lambda: peer.finish() if os.getpid() == made_in else None)

    @cache
    def writer_of(process: int) -> Any:
        log, close = peer.writer()
        atexit.register(close)
        return log

    log_requests(lambda event: writer_of(os.getpid())(event))

"""A real Celery application and the web application in front of it, both profiled; worker and gunicorn import it.

Each task writes down, in a file of its own beside the log, that it has begun: its id and the span that it runs in. That
is what the log is compared with.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from celery import Celery, chain, chord, group, signals
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from flask import Flask, request

from profilis_mp.celery.adapter import ProfilisCelery
from profilis_mp.core.async_collector import AsyncCollector
from profilis_mp.core.context import current_span
from profilis_mp.core.emitter import Emitter
from profilis_mp.exporters.jsonl import JSONLExporter
from profilis_mp.flask.adapter import ProfilisFlask

PLACE = Path(os.environ["PLACE"])
BROKER = os.environ["BROKER"]

exporter = JSONLExporter(dir=PLACE / "logs", rotate_bytes=64 * 1024)
collector = AsyncCollector(exporter)
emitter = Emitter(collector)

app = Celery("celery_app", broker=BROKER, backend=os.environ["BACKEND"])
app.conf.update(
    worker_pool_restarts=True,
    worker_prefetch_multiplier=1,
    task_create_missing_queues=True,
    broker_connection_retry_on_startup=True,
    result_extended=False,
)
if BROKER == "filesystem://":
    folders = {name: str(PLACE / name) for name in ("queue", "control", "processed")}
    for folder in folders.values():
        os.makedirs(folder, exist_ok=True)
    app.conf.broker_transport_options = {
        "data_folder_in": folders["queue"],
        "data_folder_out": folders["queue"],
        "control_folder": folders["control"],
        "processed_folder": folders["processed"],
        "polling_interval": 0.05,
    }
else:
    # What a dead worker had not acknowledged is delivered again after that many seconds, by whoever looks.
    visibility_timeout = int(os.environ.get("VISIBILITY_TIMEOUT", "3600"))
    app.conf.broker_transport_options = {
        "visibility_timeout": visibility_timeout,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
profilis = ProfilisCelery(app, collector=collector, exclude_tasks=["celery", "celery_app.quiet"])

web = Flask("celery_app")
ProfilisFlask(web, collector=collector, exclude_routes=["/states", "/control"])


def begin(task: Any) -> str:
    """Write down that this execution has begun; the line is there whatever happens to the process."""
    span = current_span()
    assert span is not None
    emitter.emit_db("SELECT 1", dur_ns=1_000, rows=1)
    if task.request.called_directly:  # like a function: no execution of its own
        return span.span_id
    file = os.open(PLACE / "begun", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{task.request.id} {span.span_id} {task.name.rpartition('.')[2]} {os.getpid()}\n".encode())
    os.close(file)
    return span.span_id


def is_first(task: Any) -> bool:
    """Whether this is the first execution of this task. The message does not always tell: Celery's main process gives
    a task to another child, undelivered, when it had not heard yet that the dead one had begun."""
    return (PLACE / "begun").read_text().count(task.request.id) == 1


@app.task(bind=True)
def ok(self: Any, *args: Any) -> str:
    return begin(self)


@app.task(bind=True)
def slow(self: Any, seconds: float) -> str:
    span_id = begin(self)
    time.sleep(seconds)
    return span_id


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def late(self: Any, seconds: float) -> str:
    span_id = begin(self)
    if is_first(self):
        time.sleep(seconds)
    return span_id


@app.task(bind=True)
def fail(self: Any) -> None:
    begin(self)
    raise KeyError("no such thing")


@app.task(bind=True)
def flaky(self: Any) -> str:
    span_id = begin(self)
    if self.request.retries == 0:
        raise self.retry(exc=ConnectionError("once"), countdown=0.2)
    return span_id


@app.task(bind=True, autoretry_for=(ConnectionError,), retry_kwargs={"max_retries": 1, "countdown": 0.2})
def hopeless(self: Any) -> None:
    begin(self)
    raise ConnectionError("each time")


@app.task(bind=True)
def refuse(self: Any) -> None:
    begin(self)
    raise Reject("not mine", requeue=False)


@app.task(bind=True)
def skip(self: Any) -> None:
    begin(self)
    raise Ignore


@app.task(bind=True)
def leave(self: Any) -> None:
    begin(self)
    sys.exit(3)


@app.task(bind=True, soft_time_limit=1)
def soft(self: Any) -> None:
    begin(self)
    time.sleep(60)


@app.task(bind=True, soft_time_limit=1)
def caught(self: Any) -> str:
    span_id = begin(self)
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded:
        pass
    return span_id


@app.task(bind=True, time_limit=1)
def hard(self: Any) -> None:
    begin(self)
    time.sleep(60)


@app.task(bind=True)
def suicide(self: Any) -> None:
    begin(self)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def phoenix(self: Any) -> str:
    span_id = begin(self)
    if is_first(self):
        os.kill(os.getpid(), signal.SIGKILL)
    return span_id


@app.task(bind=True)
def quiet(self: Any) -> str:
    return str(ok.delay().id)


@app.task(bind=True)
def family(self: Any) -> list[str]:
    """Sends one, runs one at once, calls one like a function."""
    begin(self)
    ok.apply()
    return [str(ok.delay().id), str(ok.run())]


@web.get("/send/<name>/<int:count>")
def send(name: str, count: int) -> dict[str, Any]:
    """Send that many tasks; answers with their ids, and with the span that sent them."""
    options = {key: float(value) for key, value in request.args.items() if key in ("countdown", "expires")}
    arguments = [float(value) for value in request.args.getlist("argument")]
    ids = [app.tasks[f"celery_app.{name}"].apply_async(arguments, **options).id for _ in range(count)]
    span = current_span()
    assert span is not None
    return {"ids": ids, "trace_id": span.trace_id, "span_id": span.span_id}


@web.get("/canvas")
def canvas() -> dict[str, Any]:
    span = current_span()
    assert span is not None
    links = chain(ok.si(), ok.si(), ok.si()).apply_async()
    members = group(ok.si(), ok.si()).apply_async()
    body = chord([ok.si(), ok.si()], ok.s()).apply_async()
    return {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "chain": [links.parent.parent.id, links.parent.id, links.id],
        "group": [member.id for member in members],
        "chord": [body.id, *(member.id for member in body.parent)],
    }


@web.post("/states")
def states() -> list[str]:
    return [app.AsyncResult(task_id).state for task_id in request.get_json()]


@web.get("/active")
def active() -> list[str]:
    """The tasks of which the worker's main process knows that a child runs them."""
    workers = app.control.inspect(timeout=5, limit=1).active() or {}
    return [task["id"] for tasks in workers.values() for task in tasks]


@web.get("/control/<command>")
def control(command: str) -> str:
    if command == "pool_restart":
        app.control.pool_restart()
    else:
        app.control.revoke(request.args["id"], terminate=command == "terminate", signal="SIGTERM")
    return ""


@signals.worker_ready.connect
def emit_all_the_time(**_: Any) -> None:
    """In the worker's main process a thread emits, while pool children are forked beside it."""
    if not os.environ.get("TICKS"):
        return
    stopped = threading.Event()
    (PLACE / "ticks").write_bytes(bytes(8))
    with (PLACE / "ticks").open("r+b") as file:
        acknowledged = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")

    def tick() -> None:
        for number in range(1 << 30):
            if stopped.wait(0.0005):
                break
            collector.enqueue({"kind": "TICK", "worker": 0, "seq": number})
            acknowledged[0] = number + 1

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    signals.worker_shutdown.connect(lambda **_: (stopped.set(), thread.join()), weak=False)

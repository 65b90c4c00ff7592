"""A WSGI application that has emitted before uWSGI forks its workers, and that says which of its events are safe.

The environment: LOGS is the log directory; SAFE a file to which each event's name is appended once ``emit`` has
returned; OPTIONS more arguments of the exporter, as JSON; NO_THREADS has uWSGI look like one before 2.0.27 that was not
given --enable-threads; BEATS starts a thread that emits all the time.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import uwsgi

if os.environ.get("NO_THREADS"):
    uwsgi.has_threads = 0  # before anything of ours asks

# What docs/uwsgi.md shows, between two hooks of the application's own.
from profilis_mp import AsyncCollector, JSONLExporter
from profilis_mp.uwsgi import register

exporter = JSONLExporter(dir=os.environ["LOGS"], rotate_bytes=64 * 1024, **json.loads(os.environ.get("OPTIONS", "{}")))
collector = AsyncCollector(exporter)

safe = os.open(os.environ["SAFE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def emit(name: str, **more: Any) -> None:
    collector.enqueue({"kind": "FN", "fn": name, "ts_ns": time.time_ns(), "pid": os.getpid(), **more})
    os.write(safe, f"{name}\n".encode())


def emit_of_process(name: str) -> None:
    emit(f"{name}-{os.getpid()}-{time.time_ns()}")


uwsgi.atexit = lambda: emit_of_process("uwsgi.atexit")
register(collector)
atexit.register(emit_of_process, "atexit")  # runs after uwsgi.atexit
if uwsgi.masterpid():
    from uwsgidecorators import postfork

    postfork(lambda: emit_of_process("postfork"))


def work(name: str) -> str:
    emit(name)
    return name


def fill(name: str) -> str:
    """Some 100 KiB: more than a segment."""
    for number in range(100):
        emit(f"{name}-{number}", padding=os.urandom(500).hex())
    return name


def hang(name: str) -> str:
    """Emits, and is busy for longer than any server waits."""
    emit(name)
    time.sleep(1000)
    return name


def fork(name: str) -> str:
    """Forks while the worker's other threads emit, and so does the child, which ends without any exit hook."""
    pid = os.fork()
    if not pid:
        try:
            emit(f"{name}-child")
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    emit(name)
    return name


def state(_: str) -> str:
    return json.dumps({"pid": os.getpid(), "worker": uwsgi.worker_id(), **exporter.stats()})


PAGES: dict[str, Callable[[str], str]] = {
    "pid": lambda _: str(os.getpid()),
    "work": work,
    "fill": fill,
    "hang": hang,
    "fork": fork,
    "state": state,
}


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    page, _, name = environ["PATH_INFO"].lstrip("/").partition("/")
    body = PAGES[page](name).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def beat() -> None:
    for number in itertools.count():
        emit(f"beat-{number}")
        time.sleep(0.0005)


for _ in range(5):
    emit_of_process("import")
if os.environ.get("BEATS"):
    threading.Thread(target=beat, daemon=True).start()

"""A gunicorn, clients that ask it without a pause, and the account of what it answered."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import orjson
from serving import Clients, free_port, request, serving

from profilis_mp.account import lines_of, segments_of

__all__ = ["ASGI", "Clients", "events_in", "gunicorn", "unaccounted"]

ASGI = "--worker-class=uvicorn_worker.UvicornWorker"
ROTATE_BYTES = 16 * 1024
ROUTE = "/api/users/<int:number>"


@contextmanager
def gunicorn(
    directory: Path,
    *options: str,
    app: str = "gunicorn_app:app",
    workers: int = 4,
    environment: Mapping[str, str] | None = None,
    stop: Callable[[int], object] | None = None,
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A gunicorn that logs into ``directory/logs``; yields its port and its master."""
    port = free_port()
    # The script and not `python -m gunicorn`: that cannot execute itself again (USR2).
    command = [
        str(Path(sys.executable).with_name("gunicorn")),
        app,
        f"--bind=127.0.0.1:{port}",
        f"--workers={workers}",
        *options,
    ]
    variables = {
        "LOGS": str(directory / "logs"),
        "ACKNOWLEDGED": str(directory / "acknowledged"),
        **(environment or {}),
    }
    how = {} if stop is None else {"stop": stop}
    with serving([*command, "--no-control-socket"], port, directory, environment=variables, **how) as master:
        yield port, master


def clients_of(port: int, count: int = 4) -> Clients[str]:
    """Clients that keep the trace id of each request that was answered."""
    return Clients(lambda number: request(port, f"/api/users/{number}"), count)


def events_in(directory: Path) -> list[dict[str, object]]:
    """Every event of a log directory; a torn one fails."""
    return [orjson.loads(line) for path in segments_of(str(directory)) for _, line in lines_of(path)]


def unaccounted(directory: Path, answered: list[str]) -> list[str]:
    """What the log does not hold exactly once, in words; nothing when the account balances."""
    requests: collections.Counter[object] = collections.Counter()
    queries: collections.Counter[object] = collections.Counter()
    for event in events_in(directory):
        if event.get("route") == ROUTE:
            assert event["status"] == 200
            requests[event["trace_id"]] += 1
        elif event["kind"] == "DB":
            queries[event["trace_id"]] += 1
    assert all(os.path.getsize(path) <= ROTATE_BYTES for path in segments_of(str(directory)))
    found = []
    for kind, counted in (("request", requests), ("query", queries)):
        found += [f"{kind} {one}: {counted[one]} times" for one in answered if counted[one] != 1]
        found += [f"{kind} {one}: {count} times" for one, count in counted.items() if count != 1]
    return found

"""FastAPI and Django under real servers: workers killed, servers killed, clients gone, and each request logged once."""

from __future__ import annotations

import asyncio
import collections
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import websockets
from processes import wait_until
from serving import Clients, free_port, kill, request, serving, tree_of

from profilis_mp import read_events, recover

GUNICORN = [str(Path(sys.executable).with_name("gunicorn")), "--no-control-socket", "--workers=2"]
SERVERS = {
    "fastapi-uvicorn": [sys.executable, "-m", "uvicorn", "fastapi_app:app", "--workers=2", "--no-access-log"],
    "django-asgi": [*GUNICORN, "--worker-class=uvicorn_worker.UvicornWorker", "django_app:asgi"],
    "django-wsgi": [*GUNICORN, "--worker-class=gthread", "--threads=2", "django_app:wsgi"],
}
NUMBER = {"fastapi-uvicorn": "{number}", "django-asgi": "<int:number>", "django-wsgi": "<int:number>"}
KILLS = 3

Event = dict[str, Any]
every_server = pytest.mark.parametrize("name", SERVERS)


@contextmanager
def served(name: str, directory: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = free_port()
    where = [f"--port={port}"] if "uvicorn" in SERVERS[name] else [f"--bind=127.0.0.1:{port}"]
    environment = {"LOGS": str(directory / "logs")}
    with serving([*SERVERS[name], *where], port, directory, environment=environment) as server:
        yield port, server


def answer(port: int, path: str) -> str | None:
    """The body of a complete answer, with a length or in chunks that come to their end; else None."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
        assert response.headers["Content-Length"] or response.headers["Transfer-Encoding"] == "chunked"
        return body if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def clients_of(port: int) -> Clients[str]:
    """Clients that ask for pages and streams, and keep the trace id of each that came whole."""
    return Clients(lambda number: answer(port, f"/{'streams' if number % 3 else 'pages'}/{number}"))


def logged(directory: Path, **options: Any) -> list[Event]:
    with read_events(str(directory / "logs"), **options) as events:
        found = list(events)
    assert events.report.torn == 0, events.report
    return found


def check_account(directory: Path, name: str, answered: list[str], context: str) -> None:
    """Each answer is one REQ and one FN event, linked; and no other trace has two of a kind."""
    counts: dict[str, collections.Counter[str]] = {"REQ": collections.Counter(), "FN": collections.Counter()}
    spans: dict[str, str] = {}
    for event in logged(directory):
        if event.get("route") == "/pid":
            continue
        counts[event["kind"]][event["trace_id"]] += 1
        if event["kind"] == "REQ":
            assert event["route"] in {f"/pages/{NUMBER[name]}", f"/streams/{NUMBER[name]}"}, event
            spans[event["trace_id"]] = event["span_id"]
        elif event["trace_id"] in spans:
            assert event["parent_span_id"] == spans[event["trace_id"]]
    for kind, counted in counts.items():
        assert [one for one in answered if counted[one] != 1] == [], f"{kind}: {context}"
        assert {one: count for one, count in counted.items() if count != 1} == {}, f"{kind}: {context}"


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="finds the workers through Linux's /proc")
@every_server
def test_every_answered_request_is_in_the_log_exactly_once(tmp_path: Path, name: str) -> None:
    """Workers killed under load; all of the server killed and started again; and stopped gracefully, under load too."""
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    kills = 0
    with served(name, tmp_path) as (port, server):
        with clients_of(port) as clients:
            while kills < KILLS:
                clients.wait_for_more(dice.randrange(1, 30))
                pid = request(port, "/pid")
                kills += pid is not None and kill(int(pid))
            clients.wait_for_more(30)
            whole = tree_of(server.pid)
            for one in whole:  # the master first: it starts no other worker then
                kill(one)
        wait_until(lambda: server.poll() is not None)
    answered = clients.answered
    with served(name, tmp_path) as (port, server):
        # What they left is finished by the next start, without anybody's asking for it.
        known: set[str] = set()

        def complete() -> bool:
            known.update(event["trace_id"] for event in logged(tmp_path) if event["kind"] == "REQ")
            return known.issuperset(answered)

        wait_until(complete, 30, f"all answered are logged, seed {seed}")
        with clients_of(port) as clients:
            clients.wait_for_more(50)
            server.terminate()
            assert server.wait(30) in (0, -signal.SIGTERM)
    answered += clients.answered
    context = f"seed {seed}, {len(answered)} answered, {kills} kills"
    if name == "django-asgi":
        # uvicorn ends by the signal that stopped it, so that no exit hook runs: the next start completes the account,
        # or this. FastAPI's application flushes at its lifespan's end instead.
        assert not recover(tmp_path / "logs").failures
    check_account(tmp_path, name, answered, context)
    assert not recover(tmp_path / "logs").failures
    check_account(tmp_path, name, answered, context)


@every_server
def test_clients_that_leave_are_one_event_each(tmp_path: Path, name: str) -> None:
    """Amid an answer, and before one: there Django cancels the view, others let it go on to its end."""
    with served(name, tmp_path) as (port, _):
        left = [(f"/endless/{NUMBER[name]}", 200, leave(port, f"/endless/{number}")) for number in range(3)]
        if name == "django-asgi":
            with socket.create_connection(("127.0.0.1", port), 20) as connection:
                connection.sendall(b"GET /wait HTTP/1.1\r\nHost: here\r\n\r\n")
                wait_until(lambda: events_of(tmp_path, "FN"), 60, "the view is at work")
            left.append(("/wait", 499, events_of(tmp_path, "FN")[0]["trace_id"]))
        wait_until(lambda: len(departures(tmp_path)) >= len(left), 60, "all of them are known to have gone")
    assert not recover(tmp_path / "logs").failures
    assert departures(tmp_path) == sorted(left)


def events_of(directory: Path, kind: str) -> list[Event]:
    return [event for event in logged(directory, unflushed=True) if event["kind"] == kind]


def departures(directory: Path) -> list[tuple[str, int, str]]:
    requests = [event for event in events_of(directory, "REQ") if event["route"] != "/pid"]
    return sorted((event["route"], event["status"], event["trace_id"]) for event in requests)


def leave(port: int, path: str) -> str:
    """Ask, and hang up after the first chunk, which is the trace id."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path)
    response = connection.getresponse()
    trace_id = response.read(32).decode()
    response.close()
    connection.close()
    return trace_id


def test_websockets_are_left_alone(tmp_path: Path) -> None:
    async def talk(port: int) -> object:
        async with websockets.connect(f"ws://127.0.0.1:{port}/talk") as socket:
            await socket.send("hello")
            return await socket.recv()

    with served("fastapi-uvicorn", tmp_path) as (port, _):
        assert asyncio.run(talk(port)) == "hello None"
        answer(port, "/pages/1")
    assert {event.get("route") for event in logged(tmp_path)} == {None, "/pid", "/pages/{number}"}

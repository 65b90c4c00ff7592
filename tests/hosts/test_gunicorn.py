"""The main job: a preforked gunicorn under load, its workers killed, and every answered request in the log."""

from __future__ import annotations

import collections
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
from processes import wait_until

from profilis_mp import recover
from profilis_mp.account import segments_of

WORKERS = 4
CLIENTS = 6
SECONDS = 6.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def gunicorn(directory: Path, *options: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A gunicorn with four workers; yields its port and its master."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "gunicorn_app:app", f"--bind=127.0.0.1:{port}", f"--workers={WORKERS}"]
    environment = {**os.environ, "LOGS": str(directory / "logs"), "PYTHONPATH": str(Path(__file__).parent)}
    output = (directory / "gunicorn.log").open("wb")
    master = subprocess.Popen([*command, *options], env=environment, stdout=output, stderr=output)
    try:
        wait_until(lambda: request(port, "/pid") is not None, what=f"gunicorn answers, see {output.name}")
        yield port, master
    finally:
        if master.poll() is None:
            master.terminate()
        try:
            master.wait(30)
        except subprocess.TimeoutExpired:
            master.kill()
            master.wait()
        output.close()


def request(port: int, path: str) -> str | None:
    """The body of a complete answer; None when the worker died over it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        return body.decode() if int(answer.headers["Content-Length"]) == len(body) else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def workers_of(master: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split()]


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="finds the workers through Linux's /proc")
@pytest.mark.parametrize("options", [(), ("--preload",), ("--worker-class=gthread", "--threads=4")])
def test_every_answered_request_is_in_the_log_exactly_once(tmp_path: Path, options: tuple[str, ...]) -> None:
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    answered: list[str] = []
    stop = threading.Event()

    def client(number: int) -> None:
        while not stop.is_set():
            number += CLIENTS
            trace_id = request(port, f"/api/users/{number}")
            if trace_id is not None:
                answered.append(trace_id)

    kills = 0
    with gunicorn(tmp_path, *options) as (port, master):
        clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for thread in clients:
            thread.start()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            time.sleep(dice.uniform(0.1, 0.5))
            workers = workers_of(master.pid)
            if len(workers) == WORKERS:
                os.kill(dice.choice(workers), signal.SIGKILL)
                kills += 1
        stop.set()
        for thread in clients:
            thread.join()
        # And at the end all of them, with what they have in their spools.
        for worker in workers_of(master.pid):
            os.kill(worker, signal.SIGKILL)
    directory = tmp_path / "logs"
    report = recover(directory)
    assert not report.failures, report
    requests: collections.Counter[str] = collections.Counter()
    queries: collections.Counter[str] = collections.Counter()
    for path in segments_of(str(directory)):
        assert os.path.getsize(path) <= 64 * 1024
        for line in Path(path).read_bytes().splitlines():
            event = orjson.loads(line)
            if event.get("route") == "/api/users/<int:number>":
                assert event["status"] == 200
                requests[event["trace_id"]] += 1
            elif event["kind"] == "DB":
                queries[event["trace_id"]] += 1
    context = f"seed {seed}, {len(answered)} answered, {kills} kills"
    assert kills >= 3, context
    assert len(answered) > 200, context
    assert len(segments_of(str(directory))) > 1, context
    for counted in (requests, queries):
        assert [trace_id for trace_id in answered if counted[trace_id] != 1] == [], context
        assert set(counted.values()) == {1}, context

"""A gunicorn whose workers are killed while clients ask it; used where its application only has to log."""

from __future__ import annotations

import http.client
import os
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import wait_until
from serving import Clients, free_port, serving

__all__ = ["clients_of", "end", "gunicorn", "kill_workers"]


@contextmanager
def gunicorn(directory: Path, target: str, *options: str, **environment: str) -> Iterator[tuple[int, int]]:
    """A gunicorn; yields its port and its master's pid. Whatever is left of it at the end is killed.

    Args:
        directory: Where its output goes.
        target: The application; modules beside the calling test are found.
        options: Of the command line.
        environment: Added to the test's.
    """
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", target, f"--bind=127.0.0.1:{port}", *options]
    tests = Path(__file__).parent
    path = os.pathsep.join(str(one) for one in (tests, tests / "hosts", tests / "frameworks"))
    variables = {"PYTHONPATH": path, **environment}

    def stop(pid: int) -> None:
        end(pid, signal.SIGKILL)

    with serving(command, port, directory, environment=variables, ready="/ready", stop=stop) as master:
        yield port, master.pid


def end(master: int, signum: int) -> None:
    """Send a signal to a whole gunicorn, and wait until all of its processes are gone."""
    try:
        os.killpg(master, signum)
    except ProcessLookupError:
        return

    def gone() -> bool:
        try:
            os.waitpid(master, os.WNOHANG)
        except ChildProcessError:
            pass
        try:
            os.killpg(master, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(gone, 40.0, what=f"process group {master} ends")


def ask(port: int, path: str) -> str | None:
    """The body of a complete answer; None when there was none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        whole = answer.status == 200 and int(answer.headers["Content-Length"]) == len(body)
        return body.decode() if whole else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def clients_of(port: int) -> Clients[int]:
    """Clients that ask for ``/<number>``, and keep the numbers that were answered."""
    return Clients(lambda number: number if ask(port, f"/{number}") is not None else None)


def kill_workers(master: int, clients: Clients[int], kills: int, dice: random.Random) -> None:
    """Kill one worker after the other, each after some more requests have been answered."""
    for _ in range(kills):
        clients.wait_for_more(dice.randrange(20, 60))
        workers = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        if workers:
            try:
                os.kill(int(dice.choice(workers)), signal.SIGKILL)
            except ProcessLookupError:  # it has died before
                pass

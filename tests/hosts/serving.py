"""Real servers for tests: started on a port of their own, asked for pages, and never left behind."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Self, TypeVar

from processes import wait_until

__all__ = ["Clients", "children_of", "free_port", "is_alive", "kill", "request", "serving", "tree_of", "workers_of"]

HERE = str(Path(__file__).parent)

Answer = TypeVar("Answer")


def free_port() -> int:
    """A port that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def request(port: int, path: str, timeout_s: float = 20.0) -> str | None:
    """The body of a complete answer, whatever its status; None when there was none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        return body.decode() if int(answer.headers["Content-Length"]) == len(body) else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


@contextmanager
def serving(
    command: Sequence[str],
    port: int,
    directory: Path,
    *,
    environment: Mapping[str, str] | None = None,
    ready: str = "/pid",
    stop: Callable[[int], object] = lambda pid: os.kill(pid, signal.SIGTERM),
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server for the length of a block; yields its first process once it answers.

    Args:
        command: What to start. ``tests/hosts`` is on its Python path.
        port: Where it listens.
        directory: Its output is appended to ``server.log`` there, which a failure names.
        environment: Added to the test's own.
        ready: The page that is asked for until there is an answer.
        stop: Asks a living server to end when the block ends; what has not ended 30 s later is killed.
        cwd: Its working directory.
    """
    variables = {**os.environ, "PYTHONPATH": HERE, **(environment or {})}
    with (directory / "server.log").open("ab") as output:
        server = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd, process_group=0
        )
    try:

        def answers() -> bool:
            assert server.poll() is None, f"the server ended, see {directory}/server.log"
            return request(port, ready, 5.0) is not None

        wait_until(answers, 60.0, what=f"an answer of the server, see {directory}/server.log")
        yield server
    finally:
        if server.poll() is None:
            stop(server.pid)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Its process group is whatever it started and did not move elsewhere: nobody else's.
            try:
                os.killpg(server.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            server.wait()


class Clients(Generic[Answer]):
    """Threads that ask a server, again and again, until the block ends.

    Args:
        ask: Takes a number, each of which comes once; returns what shall be kept of the answer, None if there was none.
        count: How many threads.

    Attributes:
        answered: What was kept.
    """

    def __init__(self, ask: Callable[[int], Answer | None], count: int = 4) -> None:
        self.answered: list[Answer] = []
        self._ask = ask
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(count)]

    def _work(self, number: int) -> None:
        while not self._stop.is_set():
            answer = self._ask(number)
            if answer is None:
                self._stop.wait(0.01)  # nobody listens just now
            else:
                self.answered.append(answer)
            number += len(self._threads)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, count: int, what: str = "") -> None:
        """Wait until so many requests more than now have been answered."""
        enough = len(self.answered) + count
        wait_until(lambda: len(self.answered) >= enough, 60.0, what=what or f"{count} more answers")


def children_of(pid: int) -> list[int]:
    """The process's children; none when there is no such process."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def workers_of(master: int) -> list[int]:
    """A prefork master's workers, the dead ones it has not noticed yet included."""
    return children_of(master)


def tree_of(pid: int) -> list[int]:
    """The process and all below it."""
    return [pid, *(below for child in children_of(pid) for below in tree_of(child))]


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal; False where the process had died, and its parent has cleared it away since it was listed."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True

"""A real uWSGI, in the ways it is run and the ways it ends its workers: what was emitted is in the log exactly once."""

from __future__ import annotations

import collections
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from processes import wait_until
from serving import free_port, is_alive, kill, request, serving, workers_of

from profilis_mp import monitor_log_directory, read_events, recover
from profilis_mp.account import lines_of, segments_of

pytest.importorskip("pyuwsgi")
pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="finds the workers through Linux's /proc")

GRACEFUL = ("--hook-master-start", "unix_signal:15 gracefully_kill_them_all")
_numbers = itertools.count()


class Site:
    """A running uWSGI.

    Attributes:
        port: Where it listens.
        server: Its master.
    """

    def __init__(
        self, directory: Path, port: int, server: subprocess.Popen[bytes], stats_port: int, logged: int
    ) -> None:
        self.directory = directory
        self.port = port
        self.server = server
        self._stats_port = stats_port
        self._logged = logged

    def ask(self, page: str, timeout_s: float = 20.0) -> str | None:
        """The answer to a request, which tells the event's name by default; None when there was none."""
        return request(self.port, f"/{page}/{page}-{next(_numbers)}", timeout_s)

    def states(self) -> dict[int, dict[str, Any]]:
        """What some workers say of themselves, by pid."""
        found: dict[int, dict[str, Any]] = {}
        for _ in range(10):
            answer = self.ask("state")
            if answer is not None:
                state: dict[str, Any] = json.loads(answer)
                found[state["pid"]] = state
        return found

    def workers(self) -> list[int]:
        return workers_of(self.server.pid)

    def output(self) -> str:
        """What it has said since its start."""
        return (self.directory / "server.log").read_bytes()[self._logged :].decode(errors="replace")

    def is_settled(self) -> bool:
        """Whether no worker is ending, being replaced, or on its way to accept.

        A graceful stop passes over those, and Python's own handler has a SIGINT that comes to them.
        """
        output = self.output()
        ended, killed = output.count("killed successfully"), output.count("DAMN ! worker")
        if (output.count("Seeya!"), output.count("Respawned")) != (ended, ended + killed):
            return False
        if output.count("WSGI app 0") not in {1, 2 + ended + killed}:  # in the master, or in each worker
            return False
        try:
            with socket.create_connection(("127.0.0.1", self._stats_port)) as connection:
                told = json.loads(b"".join(iter(lambda: connection.recv(1 << 16), b"")))
        except ConnectionRefusedError:
            return False
        return all(worker["accepting"] for worker in told["workers"])

    def end(self, number: int) -> None:
        """End the master with a signal."""
        self.server.send_signal(number)
        self.server.wait(30)


@contextmanager
def uwsgi(directory: Path, *options: str, master: bool = True, **environment: str) -> Iterator[Site]:
    """A uWSGI with a master and two workers, or one process. At the end of the block it is stopped, brutally."""
    port, stats_port = free_port(), free_port()
    # No pause of two seconds before a second worker is forked within one.
    with_master = ("--master", "--processes=2", f"--stats=127.0.0.1:{stats_port}", "--forkbomb-delay=0")
    command = [
        str(Path(sys.executable).with_name("pyuwsgi")),
        f"--binary-path={sys.executable}",  # what it executes again at a reload; it would take the one without packages
        "--module=uwsgi_app",
        "--need-app",
        *(with_master if master else ()),
        f"--http-socket=127.0.0.1:{port}",
        *options,
    ]
    log = directory / "server.log"
    logged = log.stat().st_size if log.exists() else 0
    variables = {"LOGS": str(directory / "logs"), "SAFE": str(directory / "safe"), **environment}
    with serving(
        command, port, directory, environment=variables, stop=lambda pid: os.kill(pid, signal.SIGINT)
    ) as server:
        yield Site(directory, port, server, stats_port, logged)


@contextmanager
def clients(site: Site, *pages: str) -> Iterator[list[str]]:
    """Three of them, for the length of a block; yields the events of the answered requests."""
    answered: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        for page in itertools.cycle(pages):
            if stop.is_set():
                return
            answer = site.ask(page)
            if answer is not None:
                answered.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def safe(directory: Path) -> list[str]:
    """The events of which ``emit`` has returned."""
    return (directory / "safe").read_text().splitlines()


def wait_until_logged(directory: Path, what: str) -> None:
    """Until all events that are safe now are in segments, by whoever runs there; nobody helps from here."""
    expected = set(safe(directory))

    def logged() -> bool:
        with read_events(str(directory / "logs")) as events:
            return expected <= {event["fn"] for event in events}

    wait_until(logged, what=what)


def check_account(directory: Path, answered: Iterable[str] = ()) -> None:
    """What is safe, what was answered among it, is on disk exactly once; nothing is torn or there twice."""
    logged: collections.Counter[str] = collections.Counter()
    for path in segments_of(str(directory / "logs")):
        if path.endswith(".jsonl"):
            assert os.path.getsize(path) <= 64 * 1024, path
        for where, line in lines_of(path):
            assert line.endswith(b"\n"), where
            logged[orjson.loads(line)["fn"]] += 1
    expected = safe(directory)
    assert set(answered) <= set(expected)
    assert [name for name in expected if logged[name] != 1] == []
    assert [name for name, times in logged.items() if times != 1] == []


# What every one of them goes through: the application has emitted in the master, unless it is loaded in the workers.
CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "default": (),
    "enable-threads": ("--enable-threads",),
    "lazy-apps": ("--lazy-apps",),
    "fork hooks": ("--enable-threads", "--py-call-uwsgi-fork-hooks"),
    "threads": ("--threads=4",),
    "no threads": (),
}


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_what_was_emitted_is_in_the_log_exactly_once_whatever_ends_a_worker(tmp_path: Path, configuration: str) -> None:
    environment = {"NO_THREADS": "1"} if configuration == "no threads" else {}
    options = (*CONFIGURATIONS[configuration], *GRACEFUL)
    load = [*["work"] * 9, "fork"]
    with uwsgi(tmp_path, *options, "--harakiri=2", **environment) as site:
        with clients(site, *load) as answered:
            wait_until(lambda: len(answered) > 20 and site.is_settled())
            assert kill(site.workers()[0])
            wait_until_logged(tmp_path, "who completes it after a SIGKILL: the other worker")
            wait_until(lambda: "DAMN ! worker" in site.output() and site.is_settled())
            before = set(site.workers())
            os.kill(site.server.pid, signal.SIGHUP)
            wait_until(lambda: len(site.workers()) == 2 and not before & set(site.workers()))
            wait_until_logged(tmp_path, "who completes it after a reload: the new workers")
            assert "gracefully (RE)spawned uWSGI master process" in site.output()
        # Nobody else asks: where threads share a worker, each request that ends takes back the timeout of all others.
        wait_until(lambda: site.ask("hang", 5.0) is None and "HARAKIRI" in site.output())
        wait_until_logged(tmp_path, "who completes it after a timeout: the other worker, or the one that follows")
        with clients(site, *load) as more:
            wait_until(lambda: len(more) > 20)
            site.end(signal.SIGKILL)  # its workers go on; they end with the block
    with uwsgi(tmp_path, *options, "--max-requests=200", "--min-worker-lifetime=1", **environment) as site:
        wait_until_logged(tmp_path, "who completes it when all were killed: the next start")
        with clients(site, "work") as later:
            wait_until(lambda: site.output().count("Respawned") >= 2)
        wait_until(site.is_settled)
        workers = site.workers()
        site.end(signal.SIGTERM)
    # The application's own hooks ran as well, and what they emitted is no exception.
    for hook in ["uwsgi.atexit"] + ["postfork"] * (configuration != "lazy-apps"):
        for worker in workers:
            assert sum(name.startswith(f"{hook}-{worker}-") for name in safe(tmp_path)) == 1, (hook, worker)
    # After a worker's last request, and after a graceful stop: nobody needs to.
    check_account(tmp_path, answered + more + later)
    assert recover(tmp_path / "logs").flushed_bytes == 0


def test_a_brutal_stop_leaves_what_busy_workers_emitted_for_recover(tmp_path: Path) -> None:
    """uWSGI runs no exit hook in a worker that is busy, and at this interval nobody has flushed anything yet."""
    with uwsgi(tmp_path, OPTIONS=json.dumps({"flush_interval": 1e6})) as site:
        wait_until(site.is_settled)
        answered = [site.ask("work") for _ in range(5)]
        busy = threading.Thread(target=site.ask, args=("hang",))
        busy.start()
        wait_until(lambda: any(name.startswith("hang") for name in safe(tmp_path)))
        site.end(signal.SIGINT)
        busy.join()
    assert recover(tmp_path / "logs").flushed_bytes > 0
    check_account(tmp_path, [name for name in answered if name is not None])


def test_workers_are_forked_while_a_thread_of_the_master_emits(tmp_path: Path) -> None:
    """With Python's fork hooks. Without them such a thread is not for uWSGI: one worker in ten gets no GIL for ever."""
    with uwsgi(tmp_path, "--enable-threads", "--py-call-uwsgi-fork-hooks", BEATS="1") as site:
        with clients(site, "work") as answered:
            for _ in range(6):
                before = site.workers()
                beats, asked = len(safe(tmp_path)), len(answered)
                for worker in before:
                    assert kill(worker)
                wait_until(lambda: len(site.workers()) == 2 and not set(before) & set(site.workers()))  # noqa: B023
                wait_until(lambda: len(safe(tmp_path)) > beats + 20 and len(answered) > asked + 5)  # noqa: B023
        assert sum(name.startswith("beat") for name in safe(tmp_path)) > 100
        site.end(signal.SIGKILL)
    # All are dead, and nobody starts again.
    assert not recover(tmp_path / "logs").failures
    check_account(tmp_path, answered)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start workers that are somebody else")
@pytest.mark.parametrize("given", ["owner", "directory"])
def test_unprivileged_workers_use_what_their_root_master_made(shared_directory: Path, given: str) -> None:
    """With --master-as-root: the application is loaded, and has emitted, as root. (Otherwise nothing of it ever is.)"""
    user, group = 65534, 65533
    logs = shared_directory / "logs"
    options: dict[str, object] = {"flush_interval": 0.05}
    if given == "owner":
        options["owner"] = [user, group]
    else:
        logs.mkdir()
        os.chown(logs, user, group)
    with uwsgi(
        shared_directory, "--master-as-root", f"--uid={user}", f"--gid={group}", OPTIONS=json.dumps(options)
    ) as site:
        with clients(site, "work") as answered:
            wait_until(lambda: len(answered) > 20 and site.is_settled())
            assert all(site.ask("fill") for _ in range(4)), "the workers open segments of their own"
            assert {os.stat(f"/proc/{worker}").st_uid for worker in site.workers()} == {user}
            assert kill(site.workers()[0])
            asked = len(answered)
            wait_until(lambda: len(answered) > asked + 20 and site.is_settled())
            wait_until_logged(shared_directory, "who completes it after a SIGKILL: the other worker, no root at all")
        for state in site.states().values():
            assert (state["spool"], state["dropped"], state["flush_failures"]) == ("file", {}, {})
        site.end(signal.SIGKILL)
    assert not recover(logs).failures
    check_account(shared_directory, answered)
    assert {(path.stat().st_uid, path.stat().st_gid) for path in (logs, *logs.rglob("*"))} == {(user, group)}


def wait_for_daemon(site: Site) -> int:
    found: list[int] = []

    def runs() -> bool:
        found[:] = [pid for pid in site.workers() if "\0janitor\0" in Path(f"/proc/{pid}/cmdline").read_text()]
        return bool(found)

    wait_until(runs, what="the attached janitor")
    return found[0]


def leader_of(directory: Path) -> int | None:
    found: Any = monitor_log_directory(directory / "logs")
    (stream,) = found["streams"].values()
    return stream["leader"] and stream["leader"]["pid"]


def segments(directory: Path) -> list[str]:
    return [os.path.basename(path) for path in segments_of(str(directory / "logs"))]


def seconds_to_bury(site: Site) -> int:
    return max(map(int, re.findall(r"worker \d+ buried after (\d+) seconds", site.output())))


# Found with this: the master, which had emitted first, led without a thread, and nothing was ever compressed.
def test_a_worker_compresses_and_expires_though_its_master_emitted_first(tmp_path: Path) -> None:
    with uwsgi(tmp_path) as site:
        for _ in range(10):
            assert site.ask("fill")
        wait_until(site.is_settled)
        site.end(signal.SIGINT)
        without_janitor = seconds_to_bury(site)
    recover(tmp_path / "logs")
    assert len(segments(tmp_path)) > 10
    check_account(tmp_path)
    rules = {"compress_old_files": True, "compress_delay_secs": 0}
    with uwsgi(tmp_path, OPTIONS=json.dumps(rules)) as site:
        # Nobody asks: the workers take part from their fork on.
        wait_until(lambda: leader_of(tmp_path) in site.workers())
        wait_until(lambda: all(name.endswith(".gz") for name in segments(tmp_path)[:-1]))
        for _ in range(10):
            assert site.ask("fill")
        wait_until(site.is_settled)
        site.end(signal.SIGINT)
        # A thread that is waited for makes this ten seconds more.
        assert seconds_to_bury(site) <= without_janitor + 5
    recover(tmp_path / "logs")
    check_account(tmp_path)
    with uwsgi(tmp_path, OPTIONS=json.dumps({**rules, "max_files": 3})) as site:
        wait_until(lambda: len(segments(tmp_path)) == 3)
        assert leader_of(tmp_path) in site.workers()


def test_where_no_thread_can_run_the_attached_janitor_does_it_all(tmp_path: Path) -> None:
    """Flushes for workers that are idle or dead, compresses, and goes with its master."""
    janitor = f"exec {Path(sys.executable).with_name('profilis-mp')} janitor {tmp_path / 'logs'}"
    rules = {"compress_old_files": True, "compress_delay_secs": 0, "janitor": "external"}
    environment = {"NO_THREADS": "1", "OPTIONS": json.dumps(rules)}
    with uwsgi(tmp_path, f"--attach-daemon={janitor}", **environment) as site:
        daemon = wait_for_daemon(site)
        try:
            wait_until_logged(tmp_path, "who completes what the master emitted: the janitor")
            answered = [site.ask("work") for _ in range(5)] + [site.ask("fill")]
            wait_until_logged(tmp_path, "who completes it while all workers are idle: the janitor")
            assert leader_of(tmp_path) == daemon
            busy = threading.Thread(target=site.ask, args=("hang",))
            busy.start()
            wait_until(lambda: any(name.startswith("hang") for name in safe(tmp_path)))
            for worker in set(site.workers()) - {daemon}:
                assert kill(worker)
            busy.join()
            wait_until_logged(tmp_path, "who completes it after a SIGKILL: the janitor")
            wait_until(lambda: all(name.endswith(".gz") for name in segments(tmp_path)[:-1]))
            wait_until(lambda: site.output().count("DAMN ! worker") == 2 and site.is_settled())
            site.end(signal.SIGINT)
            wait_until(lambda: not is_alive(daemon))
        finally:
            if is_alive(daemon):
                kill(daemon)
    check_account(tmp_path, [name for name in answered if name is not None and name.startswith("work")])


def test_without_a_master_the_one_process_gets_its_thread_once_it_is_a_worker(tmp_path: Path) -> None:
    """It loads the application when no thread may run yet, and no fork tells it of anything."""
    with uwsgi(tmp_path, master=False) as site:
        wait_until_logged(tmp_path, "who completes it: the helper of the process itself, though nobody asks for a page")
        (state,) = site.states().values()
        assert (state["pid"], state["leading"]) == (site.server.pid, True)
        site.end(signal.SIGINT)
    check_account(tmp_path)

"""The main job: a preforked gunicorn under load, whatever is done to it, and every answered request in the log."""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from gunicorn_hosting import ASGI, clients_of, events_in, gunicorn, unaccounted
from processes import wait_until
from serving import children_of, is_alive, kill, request, tree_of, workers_of

from profilis_mp import recover
from profilis_mp.account import segments_of

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="finds the workers through Linux's /proc")

SECONDS = 2.0
WORKERS = 4


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--preload",),
        ("--worker-class=gthread", "--threads=4"),
        ("--worker-class=gthread", "--threads=4", "--preload"),
        ("--worker-class=gevent",),
        ("--worker-class=gevent", "--preload"),
        (ASGI,),
        (ASGI, "--preload"),
    ],
    ids=" ".join,
)
def test_every_answered_request_is_in_the_log_exactly_once(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Without any configuration: workers are killed, recycled and reloaded, and at the end all are killed at once.

    Who completes the account: the other workers, while it runs; `recover` for the last ones.
    """
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    directory = tmp_path / "logs"
    app = "gunicorn_app:asgi_app" if ASGI in options else "gunicorn_app:app"
    kills = 0
    with gunicorn(tmp_path, "--max-requests=60", "--max-requests-jitter=60", *options, app=app) as (port, master):
        with clients_of(port) as clients:
            end = time.monotonic() + SECONDS
            reloads = [end - 2 * SECONDS / 3, end - SECONDS / 3]
            while time.monotonic() < end or kills < 3 or len(clients.answered) < 100:
                time.sleep(dice.uniform(0.1, 0.4))
                if reloads and time.monotonic() >= reloads[0]:
                    del reloads[0]
                    kill(master.pid, signal.SIGHUP)
                workers = workers_of(master.pid)
                if len(workers) >= WORKERS:
                    kills += kill(dice.choice(workers))
            clients.wait_for_more(20, "answers after all that")
        answered = clients.answered
        # And at the end all of them, with what they have in their spools. The master first: a worker that it has just
        # forked would not hear of the end (gunicorn forks with its own signal handlers in place).
        workers = workers_of(master.pid)
        for pid in (master.pid, *workers):
            kill(pid)
        wait_until(lambda: not any(map(is_alive, workers)), what="all are dead")
    report = recover(directory)
    assert not report.failures, report
    context = f"seed {seed}, {len(answered)} answered, {kills} kills"
    assert unaccounted(directory, answered) == [], context
    assert len(segments_of(str(directory))) > 1, context


@pytest.mark.parametrize(
    ("options", "number"), [((), signal.SIGTERM), ((), signal.SIGQUIT), ((ASGI,), signal.SIGTERM)], ids=str
)
def test_after_a_stop_nothing_is_left_to_do(tmp_path: Path, options: tuple[str, ...], number: signal.Signals) -> None:
    """Who completes the account: each worker's own exit hook. No process could do it later, and nobody recovers.

    But for Uvicorn's worker class, which ends itself with the signal it was sent, without any exit hook: `recover`, the
    next start, or the hook `on_exit` (test_gunicorn_hooks).
    """
    app = "gunicorn_app:asgi_app" if options else "gunicorn_app:app"
    # A flush interval that never comes: only the end of a worker can have flushed.
    environment, stop = {"FLUSH_INTERVAL": "1e6"}, partial(kill, number=number)
    with gunicorn(tmp_path, *options, app=app, workers=2, environment=environment, stop=stop) as (port, _):
        answered = [str(request(port, f"/api/users/{number}")) for number in range(20)]
        assert "None" not in answered
    if options:
        assert recover(tmp_path / "logs").dead_spools > 0, "no exit hook has run, as the page says"
    assert unaccounted(tmp_path / "logs", answered) == []
    assert not [path for path in (tmp_path / "logs").rglob("spool/*") if path.stat().st_size]


def test_a_hanging_worker_that_the_timeout_killed_has_its_events_in_the_log(tmp_path: Path) -> None:
    """A hang in Python ends with exit hooks, one in C with SIGKILL.

    Who completes the account: for the one its own exit hook, for the other the workers that are left.
    """
    options = ("--timeout=3", "--graceful-timeout=3", "--preload")
    with gunicorn(tmp_path, *options, workers=3) as (port, master):
        wait_until(lambda: len(workers_of(master.pid)) == 3, what="all three are there")
        first = set(workers_of(master.pid))
        for kind in ("python", "c"):
            assert request(port, f"/hang/{kind}/hung-in-{kind}", timeout_s=1.0) is None
        tokens = set((tmp_path / "acknowledged").read_text().split())
        assert tokens == {"hung-in-python", "hung-in-c"}
        wait_until(lambda: len(first & set(workers_of(master.pid))) <= 1, 60, what="the timeout has ended both")
        with clients_of(port, 1) as clients:
            clients.wait_for_more(5, "answers of those that are left")

        def found() -> list[object]:
            return [event["fn"] for event in events_in(tmp_path / "logs") if event["kind"] == "FN"]

        wait_until(lambda: set(found()) == tokens, what="the events of the dead, flushed by the living")
        assert sorted(map(str, found())) == sorted(tokens)
    log = (tmp_path / "server.log").read_text()
    assert log.count("WORKER TIMEOUT") >= 2
    assert "was sent SIGKILL" in log
    assert unaccounted(tmp_path / "logs", clients.answered) == []


@pytest.mark.parametrize("options", [("--preload",), ("--worker-class=gthread", "--threads=2")], ids=" ".join)
def test_a_new_master_takes_over_and_nothing_is_lost(tmp_path: Path, options: tuple[str, ...]) -> None:
    """USR2: a new master is executed from the old one, both serve for a while, then the old one is told to go.

    Who completes the account: the old workers' exit hooks.
    """

    def stop_all(pid: int) -> None:
        for process in tree_of(pid):
            kill(process, signal.SIGTERM)

    with gunicorn(tmp_path, *options, workers=2, stop=stop_all) as (port, master):
        with clients_of(port) as clients:
            clients.wait_for_more(20, "answers of the old master's workers")
            kill(master.pid, signal.SIGUSR2)
            wait_until(lambda: len(workers_of(master.pid)) == 3, what="the new master, a child of the old one")
            wait_until(lambda: _new_master(master.pid) != 0, what="the new master's workers")
            new = _new_master(master.pid)
            clients.wait_for_more(20, "answers of both")
            kill(master.pid, signal.SIGTERM)
            assert master.wait(60) == 0
            clients.wait_for_more(20, "answers of the new master's workers")
        kill(new, signal.SIGTERM)
        wait_until(lambda: not is_alive(new), what="the new master ends")
    assert unaccounted(tmp_path / "logs", clients.answered) == []


def _new_master(old: int) -> int:
    """The old master's child that has two children of its own; 0 while there is none."""
    return next((child for child in children_of(old) if len(children_of(child)) == 2), 0)


def test_the_next_start_completes_what_a_killed_server_left(tmp_path: Path) -> None:
    """SIGKILL of the master; its workers end by themselves a moment later. Then again, of all of them at once.

    Who completes the account: the exit hooks of the workers that end by themselves; for those killed the first event
    after the next start. Nobody calls `recover`.
    """
    logs = tmp_path / "logs"
    answered: list[str] = []
    for everybody in (False, True):
        with gunicorn(tmp_path, "--timeout=4", workers=2) as (port, master):
            with clients_of(port) as clients:
                clients.wait_for_more(30, "answers")
                workers = workers_of(master.pid)
                for pid in (master.pid, *workers) if everybody else (master.pid,):
                    kill(pid)
            wait_until(lambda workers=workers: not any(map(is_alive, workers)), 60, what="its workers end as well")
        answered += clients.answered
    with gunicorn(tmp_path, workers=1) as (port, _):
        wait_until(lambda: request(port, "/pid") is not None, what="an answer")
        wait_until(lambda: not unaccounted(logs, answered), what="the account is completed by the next start")
    assert unaccounted(logs, answered) == []


def test_workers_are_forked_while_a_thread_of_the_master_emits(tmp_path: Path) -> None:
    """--preload, and a thread started by the application: master and workers go on, each with its own.

    Who completes the account: `recover`, for the master is killed as well.
    """
    ticks = tmp_path / "ticks"
    ticks.write_bytes(bytes(8))
    with gunicorn(tmp_path, "--preload", environment={"TICKS": str(ticks)}) as (port, master):
        with clients_of(port) as clients:
            for _ in range(6):
                clients.wait_for_more(10, "answers")
                for worker in workers_of(master.pid)[:2]:
                    kill(worker)
        for pid in reversed(tree_of(master.pid)):
            kill(pid)
        master.wait()
    report = recover(tmp_path / "logs")
    assert not report.failures, report
    assert unaccounted(tmp_path / "logs", clients.answered) == []
    with ticks.open("r+b") as file:
        (count,) = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q").tolist()
    numbers = [event["number"] for event in events_in(tmp_path / "logs") if event.get("fn") == "tick"]
    assert numbers[:count] == list(range(count)), "the master's own, once each and in order"
    assert count > 50
    assert len(numbers) - count in (0, 1)

"""Real workers behind a real broker: every execution of a task is in the log exactly once, whatever ended it."""

from __future__ import annotations

import collections
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from processes import wait_until

from profilis_mp import recover
from profilis_mp.account import lines_of, segments_of

Event = dict[str, Any]

REDIS = shutil.which("redis-server")
READY = {"SUCCESS", "FAILURE", "REVOKED"}

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="finds children through Linux's /proc")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Place:
    """A directory with a broker, a web application that sends tasks, and as many workers as one starts, one by one."""

    def __init__(self, directory: Path, broker: str, backend: str) -> None:
        self.directory = directory
        self.logs = directory / "logs"
        self.environment = {
            **os.environ,
            "PLACE": str(directory),
            "BROKER": broker,
            "BACKEND": backend,
            "PYTHONPATH": str(Path(__file__).parent),
            "C_FORCE_ROOT": "1",
        }
        self.port = free_port()

    def start(self, name: str, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", *command],
                env={**self.environment, **environment},
                stdout=output,
                stderr=output,
                cwd=self.directory,
            )

    @contextmanager
    def worker(self, *options: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """A worker that is ready; killed at the end, its children with it, unless it has ended."""
        command = ("celery", "-A", "celery_app", "worker", "--loglevel=INFO", "--without-gossip", "--without-mingle")
        log = self.directory / "worker.log"
        before = log.read_text().count(" ready.") if log.exists() else 0
        process = self.start("worker", *command, *options, **environment)
        try:
            wait_until(lambda: log.read_text().count(" ready.") > before, what=f"the worker is ready, see {log}")
            yield process
        finally:
            children = children_of(process.pid)
            stop(process, signal.SIGKILL)
            for child in children:  # they ask the kernel to be killed with it
                wait_until(lambda child=child: not os.path.exists(f"/proc/{child}"), what=f"child {child} is gone")

    def ask(self, path: str, body: Any = None) -> Any:
        """One request to the web application; a 200 and JSON, or it fails."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("GET" if body is None else "POST", path, body and orjson.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, (path, answer.status, content)
            return orjson.loads(content) if content else None
        finally:
            connection.close()

    def send(self, name: str, count: int = 1, query: str = "") -> list[str]:
        ids: list[str] = self.ask(f"/send/{name}/{count}?{query}")["ids"]
        return ids

    def states(self, ids: list[str]) -> list[str]:
        states: list[str] = self.ask("/states", ids) if ids else []
        return states

    def wait_for(self, ids: list[str]) -> None:
        """Wait until all of these have a result."""
        wait_until(
            lambda: set(self.states(ids)) <= READY, 60, f"{len(ids)} tasks are done, see {self.directory}/worker.log"
        )

    def begun(self) -> dict[str, tuple[str, str]]:
        """By span: task id and name of each execution whose body has begun."""
        file = self.directory / "begun"
        lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        assert len({line[1] for line in lines}) == len(lines)
        return {span_id: (task_id, name) for task_id, span_id, name, _ in lines}

    def has_begun(self, ids: list[str], times: int = 1) -> bool:
        counts = collections.Counter(task_id for task_id, _ in self.begun().values())
        return all(counts[task_id] >= times for task_id in ids)

    def have_events(self, ids: list[str], times: int = 1) -> bool:
        """Whether all of these have their event in a segment, one per execution."""
        counts = collections.Counter(event["task_id"] for event in self.tasks())
        return all(counts[task_id] >= times for task_id in ids)

    def segments(self) -> list[Event]:
        """Every line of every segment, none of them torn."""
        events = []
        for path in segments_of(str(self.logs)):
            assert os.path.getsize(path) <= 64 * 1024
            for where, line in lines_of(path):
                assert line.endswith(b"\n"), where
                events.append(orjson.loads(line))
        return events

    def tasks(self) -> list[Event]:
        return [event for event in self.segments() if "task_id" in event]


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def stop(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
    """Send a signal to a process of ours, unless it has ended, and wait for its end."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        return process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


@contextmanager
def serving(directory: Path, *, redis: bool) -> Iterator[Place]:
    """A place with its broker and its web application running."""
    servers: list[subprocess.Popen[bytes]] = []
    broker, backend = "filesystem://", f"file://{directory}/results"
    os.makedirs(f"{directory}/results")
    if redis:
        port = free_port()
        arguments = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""]
        with (directory / "redis.log").open("wb") as output:
            servers.append(subprocess.Popen([str(REDIS), *arguments], stdout=output, stderr=output))
        broker, backend = f"redis://127.0.0.1:{port}/0", f"redis://127.0.0.1:{port}/1"
    place = Place(directory, broker, backend)
    try:
        if redis:
            wait_until(lambda: accepts(port), what="redis answers")
        bind = f"--bind=127.0.0.1:{place.port}"
        servers.append(place.start("web", "gunicorn", "celery_app:web", bind, "--threads=2", "--no-control-socket"))
        wait_until(lambda: accepts(place.port), what=f"the web application answers, see {directory}/web.log")
        yield place
    finally:
        for server in reversed(servers):
            stop(server)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """With Redis where it is installed, else with the file system as the broker."""
    with serving(tmp_path, redis=REDIS is not None) as place:
        yield place


def check(
    place: Place, ids: list[str], *, unreported: int = 0, left_behind: bool = True, context: object = ""
) -> list[Event]:
    """Every execution that began is one event, and every result that can be seen has its own; nothing is torn.

    Args:
        place: Its worker has ended. The web application lives, with a spool of its own, which is flushed here.
        ids: Of tasks that were sent.
        unreported: How many executions may have no event, because nobody was left to write it.
        left_behind: Whether the worker's processes may have left something to recover.
        context: Shown with a failure.
    """
    report = recover(place.logs)
    assert not report.failures, (context, report)
    assert left_behind or report.dead_spools == 0, (context, report)
    events = place.tasks()
    spans = collections.Counter(event["span_id"] for event in events)
    assert set(spans.values()) <= {1}, context
    begun = place.begun()
    missing = {span_id: about for span_id, about in begun.items() if span_id not in spans}
    assert len(missing) <= unreported, (context, missing)
    by_id = collections.defaultdict(list)
    for event in events:
        by_id[event["task_id"]].append(event)
        if event["span_id"] in begun:
            assert begun[event["span_id"]] == (event["task_id"], event["fn"].rpartition(".")[2]), context
        else:  # discarded, or killed before its first line
            assert event["state"] == "REVOKED" or event["exception_type"] == "WorkerLostError", (context, event)
    lost = {task_id for task_id, _ in missing.values()}
    for task_id, state in zip(ids, place.states(ids), strict=True):
        states = [event["state"] for event in by_id[task_id]]
        if state == "SUCCESS":
            assert states.count("SUCCESS") == 1, (context, task_id, states)
        elif state in READY and task_id not in lost and place.has_begun([task_id]):
            assert states, (context, task_id, state)
    return events


def ended(events: list[Event], name: str) -> list[tuple[str, bool, str | None, int]]:
    """How the executions of one task ended, in order."""
    return [
        (event["state"], event["error"], event.get("exception_type"), event["retries"])
        for event in sorted(events, key=lambda event: event["ts_ns"])
        if event["fn"] == f"celery_app.{name}"
    ]


def test_every_execution_in_a_prefork_pool_is_one_event_whatever_ends_it(place: Place) -> None:
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    redis = REDIS is not None
    kills = 0
    with place.worker("--concurrency=4", "--max-tasks-per-child=20", TICKS="1") as worker:
        # Each ends in its own way.
        counts = {"ok": 20, "fail": 3, "soft": 1, "caught": 1}
        ids = [task_id for name, count in counts.items() for task_id in place.send(name, count)]
        # Celery notes a retry after it has sent it, and may so overwrite its result: their begin and event say more.
        retried = place.send("flaky", 3) + place.send("hopeless", 2)
        excluded = place.send("quiet", 2)
        # These have no result, in some versions of Celery, but an event.
        unanswered = place.send("skip", 2) + place.send("refuse", 2) + place.send("leave", 2)
        expired = place.send("ok", 2, "expires=0.001")
        place.wait_for([*ids, *excluded, *expired])
        wait_until(lambda: place.have_events([*retried, *unanswered], 1), 60, "all have an event")
        wait_until(lambda: place.have_events(retried, 2), 60, "the retries have one, too")
        last: list[str] = []
        if redis:  # a pool that is restarted
            before = children_of(worker.pid)
            place.ask("/control/pool_restart")

            def renewed() -> bool:
                last.extend(place.send("ok", 8))  # a child looks whether it shall end after each task
                return not set(before) & set(children_of(worker.pid))

            wait_until(renewed, 60, "the pool is a new one")
            place.wait_for(last)
        # Tasks that their child does not survive. No result is waited for, only the event.
        dead = place.send("hard", 2) + place.send("suicide", 3)
        if redis:
            dead += place.send("slow", 1, "argument=60")
            wait_until(lambda: place.has_begun(dead), 60, "all have begun")
            place.ask(f"/control/terminate?id={dead[-1]}")
            phoenix = place.send("phoenix", 1)
            wait_until(lambda: place.have_events(phoenix, 2), 60, "it was killed, and done by another child")
            dead += phoenix
        wait_until(lambda: place.have_events(dead), 60, "all have an event")
        if redis:
            # A pool under load whose children are killed.
            busy = place.send("ok", 200)
            while kills < 4:
                time.sleep(dice.uniform(0.02, 0.1))
                children = children_of(worker.pid)
                if len(children) == 4:
                    os.kill(dice.choice(children), signal.SIGKILL)
                    kills += 1
            place.wait_for(busy)
            # And one that is stopped over its last tasks, which it finishes.
            last += busy + place.send("slow", 4, "argument=0.3")
            wait_until(lambda: place.has_begun(last[-4:]), 60, "the last have begun")
            assert stop(worker) == 0
            assert set(place.states(last[-4:])) == {"SUCCESS"}
        else:  # the file system's pool may be stuck: its children share a lock, and were killed
            stop(worker, signal.SIGKILL)
    events = check(place, [*ids, *expired, *last], unreported=kills, context=f"seed {seed}, {kills} kills")
    special = [event for event in events if event["task_id"] in {*ids, *retried, *unanswered, *expired, *dead}]
    assert ended(special, "fail") == [("FAILURE", True, "KeyError", 0)] * 3
    assert sorted(ended(special, "flaky"), key=lambda one: one[3]) == [
        *[("RETRY", True, "ConnectionError", 0)] * 3,
        *[("SUCCESS", False, None, 1)] * 3,
    ]
    assert sorted(ended(special, "hopeless"), key=lambda one: one[3]) == [
        *[("RETRY", True, "ConnectionError", 0)] * 2,
        *[("FAILURE", True, "ConnectionError", 1)] * 2,
    ]
    assert ended(special, "refuse") == [("REJECTED", True, "Reject", 0)] * 2
    assert ended(special, "skip") == [("IGNORED", False, None, 0)] * 2
    assert ended(special, "leave") == [("FAILURE", True, "SystemExit", 0)] * 2
    # Some more than once: Celery gives a task to another child when it had not heard yet that the dead one had begun.
    assert len(ended(special, "suicide")) >= 3
    assert set(ended(special, "suicide")) == {("FAILURE", True, "WorkerLostError", 0)}
    if redis:
        # Celery puts a late one of a lost child back, and no signal tells: a second execution.
        assert ended(special, "phoenix") == [("FAILURE", True, "WorkerLostError", 0), ("SUCCESS", False, None, 0)]
        assert ended(special, "slow") == [("REVOKED", False, "Terminated", 0)]
    assert ended(special, "soft") == [("FAILURE", True, "SoftTimeLimitExceeded", 0)]
    assert ended(special, "caught") == [("SUCCESS", False, None, 0)]
    assert ended(special, "hard") == [("FAILURE", True, "TimeLimitExceeded", 0)] * 2
    assert ended(events, "quiet") == []  # excluded
    assert [event["state"] for event in special if event.get("expired")] == ["REVOKED"] * 2
    assert all(event["dur_ns"] >= 10**9 for event in special if event["fn"] in ("celery_app.hard", "celery_app.soft"))
    assert all(event["queue_ns"] >= 0 for event in special)
    # What a thread of the main process emitted while children were forked beside it.
    ticks = [event["seq"] for event in place.segments() if event["kind"] == "TICK"]
    acknowledged = int.from_bytes((place.directory / "ticks").read_bytes(), sys.byteorder)
    assert acknowledged > 100
    assert ticks == list(range(len(ticks)))
    assert acknowledged <= len(ticks) <= acknowledged + 1


@pytest.mark.parametrize("ending", ["cold shutdown", "main process killed"])
def test_a_worker_that_ends_over_its_tasks_leaves_each_event_once_and_the_next_start_completes_it(
    place: Place, ending: str
) -> None:
    killed = ending == "main process killed"
    with place.worker("--concurrency=3") as worker:
        done = place.send("ok", 40) + place.send("fail", 5)
        place.wait_for(done)
        late = place.send("late", 2, "argument=60")
        (slow,) = place.send("slow", 1, "argument=60")
        wait_until(lambda: place.has_begun([*late, slow]), 60, "all have begun")
        # Celery cancels those of which its main process knows that they have, and waits for the others.
        wait_until(lambda: {*late, slow} <= set(place.ask("/active")), 60, "the main process knows")
        stop(worker, signal.SIGKILL if killed else signal.SIGQUIT)
    first = {task_id: span_id for span_id, (task_id, _) in place.begun().items()}
    redelivers = REDIS is not None or not killed  # the file system does not know that its consumer was killed
    with place.worker("--concurrency=3", VISIBILITY_TIMEOUT="1") as worker:
        # What Celery acknowledges only when it is done is delivered once more: a second execution.
        again = place.send("ok", 1) + (late if redelivers else [])
        place.wait_for(again)
        # The next start completes what the worker that ended left in its spools; nobody has called recover.
        answered = {first[task_id] for task_id in done}
        wait_until(lambda: answered <= {event["span_id"] for event in place.tasks()}, what="all is in the segments")
        assert stop(worker) == 0
    events = check(place, [*done, *again], unreported=3 if killed else 0)
    cut_short = {first[task_id] for task_id in [*late, slow]}
    ends = {event["span_id"]: event for event in events if event["span_id"] in cut_short}
    if killed:  # and with it its children: nobody was left to speak for what they ran
        assert not ends
    else:
        assert sorted(event["fn"] for event in ends.values()) == [
            f"celery_app.{name}" for name in ("late", "late", "slow")
        ]
        assert {event["exception_type"] for event in ends.values()} <= {"WorkerLostError", "Terminated"}
    second = [event for event in events if event["task_id"] in late and event["span_id"] not in cut_short]
    assert [event["state"] for event in second] == ["SUCCESS"] * (2 * redelivers)
    assert all(event.get("redelivered") for event in second) or REDIS is None  # which does not tell either


@pytest.mark.parametrize("pool", ["solo", "threads", "gevent"])
def test_a_pool_without_processes_has_each_event_once_also_when_it_is_killed(place: Place, pool: str) -> None:
    options = (f"--pool={pool}", "--concurrency=4")
    counts = {"ok": 40, "fail": 3, "family": 2}
    with place.worker(*options, TICKS="1") as worker:
        ids = [task_id for name, count in counts.items() for task_id in place.send(name, count)]
        unanswered = place.send("skip", 2) + place.send("refuse", 2)
        retried = place.send("flaky", 3) + place.send("hopeless", 1)
        place.wait_for(ids)
        wait_until(
            lambda: place.have_events(unanswered) and place.have_events(retried, 2), what="all have their events"
        )
        # Those that tasks have sent, too: nothing is under way.
        wait_until(lambda: len(place.tasks()) == 40 + 3 + 2 + 2 + 2 * 2 + 2 + 2 * 4, what="all have their events")
        stop(worker, signal.SIGKILL)
    check(place, ids)  # recover completes the account
    with place.worker(*options) as worker:
        more = place.send("ok", 20)
        place.wait_for(more)
        assert stop(worker) == 0
    # The pool lives in the worker's process, which runs its exit hooks.
    events = check(place, [*ids, *more], left_behind=False)
    assert ended(events, "refuse") == [("REJECTED", True, "Reject", 0)] * 2
    assert ended(events, "skip") == [("IGNORED", False, None, 0)] * 2
    assert len(ended(events, "ok")) == 40 + 2 * 2 + 20


def test_a_trace_goes_from_a_request_through_its_tasks_and_theirs(place: Place) -> None:
    with place.worker("--concurrency=2") as worker:
        canvas = place.ask("/canvas")
        sent = place.ask("/send/family/1")
        retried = place.ask("/send/flaky/1")
        place.wait_for([*canvas["chain"], *canvas["group"], *canvas["chord"], *sent["ids"]])
        wait_until(lambda: len(place.tasks()) == 3 + 2 + 3 + 1 + 2 + 2, what="all have their events")
        assert stop(worker) == 0
    # Celery has called worker_process_shutdown in each child.
    tasks = check(place, [*canvas["chain"], *sent["ids"]], left_behind=False)
    everything = place.segments()
    by_id = {event["task_id"]: event for event in tasks}
    requests = {event["span_id"]: event for event in everything if event["kind"] == "REQ"}

    def parents(*ids: str) -> list[str]:
        return [by_id[task_id]["parent_span_id"] for task_id in ids]

    def spans(*ids: str) -> list[str]:
        return [by_id[task_id]["span_id"] for task_id in ids]

    # Every trace began with a request, and each event within a task is its.
    for answer in (canvas, sent, retried):
        assert requests[answer["span_id"]]["trace_id"] == answer["trace_id"]
    assert {event["trace_id"] for event in tasks} == {answer["trace_id"] for answer in (canvas, sent, retried)}
    inside = {(event["trace_id"], event["span_id"]) for event in everything if event["kind"] == "DB"}
    assert inside == {(event["trace_id"], event["span_id"]) for event in tasks}
    # A chain's link is sent by the one before it; a group by the request; a chord's body by the last of its header.
    one, two, three = canvas["chain"]
    assert parents(one, two, three) == [canvas["span_id"], *spans(one, two)]
    assert parents(*canvas["group"]) == [canvas["span_id"]] * 2
    body, *header = canvas["chord"]
    assert parents(*header) == [canvas["span_id"]] * 2
    if REDIS is not None:  # else by a task of Celery's own, which is excluded
        assert parents(body)[0] in spans(*header)
    # A task that a task sends, and one that it runs at once; one called like a function is no execution.
    (family,) = sent["ids"]
    assert parents(family) == [sent["span_id"]]
    children = [event for event in tasks if event.get("parent_span_id") == by_id[family]["span_id"]]
    assert [event["fn"] for event in children] == ["celery_app.ok"] * 2
    # A retry is sent by the attempt before it.
    attempts = sorted(
        (event for event in tasks if event["fn"] == "celery_app.flaky"), key=lambda event: event["retries"]
    )
    assert [event["parent_span_id"] for event in attempts] == [retried["span_id"], attempts[0]["span_id"]]


def test_with_the_file_system_as_the_broker_killed_tasks_have_their_event_too(tmp_path: Path) -> None:
    """Another pool than with Redis: threads of the main process look after the children."""
    with serving(tmp_path, redis=False) as place:
        # All is sent before: this transport hands out messages that are still being written, and the worker dies of it.
        ids = place.send("ok", 30) + place.send("fail", 3)
        dead = place.send("suicide", 1) + place.send("hard", 1)
        with place.worker("--concurrency=2", "--max-tasks-per-child=10", TICKS="1") as worker:
            # Celery says so 10 s after a death; the log when the child is replaced, or with the next heartbeat.
            wait_until(lambda: place.have_events(dead), 60, "both have an event")
            place.wait_for(ids)
            # Not asked to stop: this pool's children share a lock, and one that is killed may have held it.
            stop(worker, signal.SIGKILL)
        events = check(place, ids)
    assert set(ended(events, "suicide")) == {("FAILURE", True, "WorkerLostError", 0)}
    assert ended(events, "hard") == [("FAILURE", True, "TimeLimitExceeded", 0)]

"""Forked, spawned and executed processes: nobody writes, flushes, unlocks or closes what is another process's."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from checks import check_log
from processes import Acknowledgements, alone, fork, reap, running, wait_until

from profilis_mp import JSONLExporter, recover
from profilis_mp.account import segments_of, take_account
from profilis_mp.sharedlog.lock import KeptLock
from profilis_mp.sharedlog.session import Session
from profilis_mp.sharedlog.stream import StreamPaths

STREAM = "profilis-{timestamp}.jsonl"
PR_SET_PDEATHSIG = 1
NEVER_S = 1e6  # a flush_interval at which no helper ever does anything
LOCK_TIMEOUT_S = 3.0

Forking = Callable[[Callable[[], object]], int]


def fork_without_hooks(work: Callable[[], object]) -> int:
    """As ``fork``, but as uWSGI does it by default: Python does not know, so none of its at-fork hooks run.

    What CPython itself does not survive is left out: a thread that waits for the interpreter at the moment of such a
    fork leaves the lock of the interpreter in a state in which the child hangs, now or later.
    """
    wait_until(others_are_asleep, what="threads that never sleep")
    sys.stdout.flush()
    library = ctypes.PyDLL(None)
    pid: int = library.fork()
    if pid:
        return pid
    try:
        library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # not left behind, whatever happens
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def others_are_asleep() -> bool:
    """Did no other thread wake up while this one left the interpreter to them?"""

    def switches() -> dict[str, list[str]]:
        found = {}
        for thread in os.listdir("/proc/self/task"):
            if int(thread) != threading.get_native_id():
                status = Path("/proc/self/task", thread, "status").read_text().splitlines()
                found[thread] = [line for line in status if "ctxt_switches" in line]
        return found

    time.sleep(0.001)
    before = switches()
    time.sleep(0.005)
    return switches() == before


def both(test: Callable[..., None]) -> Callable[..., None]:
    """Run the test with both ways to fork."""
    return pytest.mark.parametrize("forking", [fork, fork_without_hooks], ids=["hooks", "no hooks"])(alone(test))


def exporter_for(directory: object, **options: Any) -> JSONLExporter:
    arguments = {
        "buffer_size": 4096,
        "rotate_bytes": 64 * 1024,
        "flush_interval": 0.05,
        "lock_timeout": LOCK_TIMEOUT_S,
    }
    return JSONLExporter(str(directory), **{**arguments, **options})


def emit(exporter: JSONLExporter, acknowledged: Acknowledgements, worker: int, events: int = 1) -> None:
    for _ in range(events):
        number = acknowledged[worker]
        exporter.emit({"worker": worker, "seq": number, "fill": "x" * (number % 100)})
        acknowledged[worker] = number + 1


def paths_in(directory: object) -> StreamPaths:
    return StreamPaths(str(directory), STREAM)


def spools_in(directory: object) -> dict[str, bytes]:
    spools = paths_in(directory).spools
    return {name: Path(spools, name).read_bytes() for name in os.listdir(spools)}


def session_of(exporter: JSONLExporter) -> Session:
    return exporter._writer._session


def workers_in(directory: object) -> list[int]:
    """Who wrote the events in the log, in its order."""
    return [
        orjson.loads(line)["worker"]
        for path in segments_of(str(directory))
        for line in Path(path).read_bytes().splitlines()
    ]


def script(text: str, *arguments: object) -> str:
    """Run a program to its end, which must be a clean one; returns its output."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(text), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


# Whose spool is it?


@both
def test_forked_child_never_writes_into_its_parents_spool(tmp_path: Path, forking: Forking) -> None:
    acknowledged = Acknowledgements(2)
    exporter = exporter_for(tmp_path, buffer_size=64 * 1024, flush_interval=NEVER_S)
    emit(exporter, acknowledged, 0, 100)
    before = spools_in(tmp_path)

    def child() -> None:
        assert exporter.stats()["events"] == 0
        emit(exporter, acknowledged, 1, 50)
        stats = exporter.stats()
        assert (stats["events"], stats["aside"], stats["spool"]) == (50, 0, "file")
        assert exporter.flush()

    assert reap(forking(child)) == 0
    after = spools_in(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert workers_in(tmp_path) == [1] * 50  # nor did it flush what is its parent's
    emit(exporter, acknowledged, 0, 100)
    assert exporter.stats()["events"] == 200
    assert exporter.close()
    recover(tmp_path)
    check_log(tmp_path, {0: 200, 1: 50})
    assert not spools_in(tmp_path)


@both
def test_child_of_a_child_of_a_child_has_a_spool_of_its_own(tmp_path: Path, forking: Forking) -> None:
    acknowledged = Acknowledgements(4)
    exporter = exporter_for(tmp_path, flush_interval=NEVER_S)

    def generation(worker: int) -> Callable[[], None]:
        def work() -> None:
            emit(exporter, acknowledged, worker, 30)
            if worker < 3:
                assert reap(forking(generation(worker + 1))) == 0
            emit(exporter, acknowledged, worker, 30)
            assert exporter.stats()["events"] == 60

        return work

    generation(0)()
    assert exporter.close()
    assert recover(tmp_path).dead_spools == 3
    check_log(tmp_path, acknowledged.by_worker())
    assert acknowledged.by_worker() == dict.fromkeys(range(4), 60)


@both
@pytest.mark.parametrize("ending", ["_exit", "kill"])
def test_child_that_ends_right_after_the_fork_takes_nothing_of_its_parents_along(
    tmp_path: Path, forking: Forking, ending: str
) -> None:
    acknowledged = Acknowledgements(1)
    exporter = exporter_for(tmp_path, flush_interval=NEVER_S)
    emit(exporter, acknowledged, 0, 20)

    def child() -> None:
        if ending == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(10):
        assert reap(forking(child)) == (-signal.SIGKILL if ending == "kill" else 0)
        assert recover(tmp_path).dead_spools == 0  # the parent's spool is still locked
        emit(exporter, acknowledged, 0, 2)
    assert exporter.close()
    check_log(tmp_path, {0: 40})


def test_exit_hooks_that_a_child_inherited_leave_its_parents_things_alone(tmp_path: Path) -> None:
    output = script(
        """
        import os, sys
        from profilis_mp import JSONLExporter

        exporter = JSONLExporter(sys.argv[1], flush_interval=1e6)
        spools = sys.argv[2]

        def look():
            return [(name, open(f"{spools}/{name}", "rb").read()) for name in sorted(os.listdir(spools))]

        for number in range(10):
            exporter.emit({"worker": 0, "seq": number})
        before = look()
        for worker in (0, 1):
            pid = os.fork()
            if not pid:
                if worker:
                    exporter.emit({"worker": 1, "seq": 0})
                sys.exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            # Had the second child not run its own hook, its spool would still be here.
            assert look() == before, worker
        print(exporter.stats()["unflushed_bytes"] > 0)
        exporter.emit({"worker": 0, "seq": 10})
        """,
        tmp_path,
        paths_in(tmp_path).spools,
    )
    assert output == "True\n"
    # The child's own hook flushed its event, then the parent's hook the parent's, without any recovery.
    assert workers_in(tmp_path) == [1] + [0] * 11
    check_log(tmp_path, {0: 11, 1: 1})
    assert not spools_in(tmp_path)


# The exporter's hooks were once registered only by writers of bytes; what saved its events was a destructor, which
# does not run for what a module, a thread or an exception still refers to.
def test_exit_hook_flushes_what_the_exporter_has_not(tmp_path: Path) -> None:
    script(
        """
        import os, sys, threading
        from profilis_mp import JSONLExporter

        exporter = JSONLExporter(sys.argv[1], flush_interval=1e6)
        exporter.emit({"worker": 0, "seq": 0})
        threading.Thread(target=lambda kept: threading.Event().wait(), args=(exporter,), daemon=True).start()
        """,
        tmp_path,
    )
    check_log(tmp_path, {0: 1})
    assert not spools_in(tmp_path)


# Forks while threads emit and flush.


@contextmanager
def busy_threads(exporter: JSONLExporter, acknowledged: Acknowledgements, workers: int) -> Iterator[None]:
    done = threading.Event()
    raised: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            while not done.is_set():
                emit(exporter, acknowledged, worker, 10)
                if worker % 2:
                    exporter.flush()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in range(workers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "a thread of the parent hangs"
    assert not raised, raised


def test_forks_while_threads_emit_and_flush_neither_hang_nor_lose_anything(tmp_path: Path) -> None:
    threads, children = 4, 120
    acknowledged = Acknowledgements(threads + children)
    exporter = exporter_for(tmp_path, lock_timeout=30.0)

    def child(worker: int) -> Callable[[], None]:
        def work() -> None:
            emit(exporter, acknowledged, worker, 20)
            assert exporter.stats()["events"] == 20
            if worker % 3 == 0:
                assert exporter.flush()

        return work

    with busy_threads(exporter, acknowledged, threads):
        waiting: list[int] = []
        for worker in range(threads, threads + children):
            waiting.append(fork(child(worker)))
            if len(waiting) > 3:
                assert reap(waiting.pop(0), 40) == 0
        assert [reap(pid, 40) for pid in waiting] == [0] * len(waiting)
    assert exporter.close()
    assert not recover(tmp_path).failures
    check_log(tmp_path, acknowledged.by_worker(), rotate_bytes=64 * 1024)
    assert acknowledged.total() > children * 20 + threads * 100
    assert not spools_in(tmp_path)


class Gate:
    """Holds up the first thread that comes, until it is opened; others pass."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self._open = threading.Event()
        self._process = os.getpid()

    def open(self) -> None:
        self._open.set()

    def pass_through(self) -> None:
        if os.getpid() == self._process and not self.arrived.is_set():
            self.arrived.set()
            assert self._open.wait(60)


# A thread that stays behind in the middle of something: nobody in the child will ever end it, or give back what it has.
@both
@pytest.mark.parametrize("where", ["in a rotation", "in an append"])
def test_child_is_not_held_up_by_what_a_thread_was_doing_at_the_fork(
    tmp_path: Path, forking: Forking, where: str
) -> None:
    children = 8
    acknowledged = Acknowledgements(children + 1)
    gates: list[Gate] = []

    def clock() -> int:
        if where == "in a rotation" and gates:
            gates[-1].pass_through()
        return time.time_ns()

    class Slow:
        def __repr__(self) -> str:
            gates[-1].pass_through()
            return "slow"

    exporter = exporter_for(tmp_path, flush_interval=NEVER_S, lock_timeout=0.2, clock=clock)
    emit(exporter, acknowledged, children, 10)

    def busy() -> None:
        if where == "in a rotation":
            exporter.rotate()  # asks the clock when it holds the session's mutex and the directory lock
        else:
            number = acknowledged[children]
            exporter.emit({"worker": children, "seq": number, "slow": Slow()})
            acknowledged[children] = number + 1

    def child(worker: int) -> Callable[[], None]:
        def work() -> None:
            started = time.monotonic()
            emit(exporter, acknowledged, worker, 20)
            assert exporter.stats()["aside"] == 0
            assert time.monotonic() - started < LOCK_TIMEOUT_S

        return work

    for worker in range(children):
        gates.append(Gate())
        thread = threading.Thread(target=busy, daemon=True)
        thread.start()
        assert gates[-1].arrived.wait(30)
        code = reap(forking(child(worker)), 20)
        gates[-1].open()
        thread.join(30)
        assert code == 0
        emit(exporter, acknowledged, children, 10)
    assert exporter.close()
    assert not recover(tmp_path).failures
    check_log(tmp_path, acknowledged.by_worker())


# The application's own at-fork hooks run before and after ours.
def test_applications_fork_hooks_may_emit(tmp_path: Path) -> None:
    output = script(
        """
        import os, sys, time

        numbers = {}

        def emit(worker):
            numbers[worker] = numbers.get(worker, -1) + 1
            exporter.emit({"worker": worker, "seq": numbers[worker]})

        os.register_at_fork(before=lambda: emit(0), after_in_parent=lambda: emit(1), after_in_child=lambda: emit(2))
        from profilis_mp import JSONLExporter
        import profilis_mp.sharedlog.writer
        os.register_at_fork(before=lambda: emit(3), after_in_parent=lambda: emit(4), after_in_child=lambda: emit(5))

        exporter = JSONLExporter(sys.argv[1], lock_timeout=3.0)
        exporter.emit({"worker": 6, "seq": 0})
        started = time.monotonic()
        pid = os.fork()
        if not pid:
            exporter.close()
            os._exit(0 if exporter.stats()["spool"] is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        print(time.monotonic() - started < 3.0)
        exporter.close()
        """,
        tmp_path,
    )
    check_log(tmp_path, dict.fromkeys(range(7), 1))
    assert output == "True\n", "a hook that emits waited for the append of its own thread"


# What does a child still have of its parent's?


def open_files_in(directory: object) -> list[str]:
    """What this process has open or mapped in the directory."""
    names = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            pass
    names += [line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line]
    return [name for name in names if name.startswith(f"{directory}/")]


@both
def test_child_keeps_nothing_open_or_mapped_that_is_its_parents(tmp_path: Path, forking: Forking) -> None:
    acknowledged = Acknowledgements(2)
    exporter = exporter_for(tmp_path, flush_interval=NEVER_S)
    emit(exporter, acknowledged, 0, 50)
    assert exporter.flush()  # lock, control and segment are open now
    emit(exporter, acknowledged, 0, 50)
    (spool,) = spools_in(tmp_path)
    ours = len(open_files_in(tmp_path))

    def child() -> None:
        emit(exporter, acknowledged, 1)
        kept = [name for name in open_files_in(tmp_path) if spool in name]
        assert not kept, kept
        emit(exporter, acknowledged, 1, 49)
        assert exporter.flush()
        emit(exporter, acknowledged, 1, 50)
        # The child has done what its parent did: more files than the parent's would be the parent's.
        assert len(open_files_in(tmp_path)) <= ours, open_files_in(tmp_path)
        assert exporter.close()
        assert not open_files_in(tmp_path), open_files_in(tmp_path)

    assert reap(forking(child)) == 0
    assert exporter.close()
    assert not open_files_in(tmp_path)
    check_log(tmp_path, {0: 100, 1: 100})


@both
def test_parent_killed_while_it_holds_the_lock_does_not_leave_it_to_its_child(tmp_path: Path, forking: Forking) -> None:
    acknowledged = Acknowledgements(3)

    def parent() -> None:
        exporter = exporter_for(tmp_path, flush_interval=NEVER_S)
        emit(exporter, acknowledged, 0, 50)
        assert exporter.flush()
        emit(exporter, acknowledged, 0, 10)
        session_of(exporter)._outbox._stream.acquire(1.0)

        def child() -> None:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)  # this one outlives its parent
            emit(exporter, acknowledged, 1)
            while True:
                time.sleep(1)

        acknowledged[2] = forking(child)
        while True:
            time.sleep(1)

    with running(parent) as (pid,):
        wait_until(lambda: acknowledged[1])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        try:
            lock = KeptLock(paths_in(tmp_path).lock, 0o600)
            assert lock.try_acquire(), "the child has the dead parent's lock"
            lock.close()
            # Nor does it keep the spool of the dead alive, or its place as the leader.
            assert recover(tmp_path).dead_spools == 1
            leader = KeptLock(paths_in(tmp_path).janitor_lock, 0o600)
            assert leader.try_acquire()
            leader.close()
        finally:
            os.kill(acknowledged[2], signal.SIGKILL)
    wait_until(lambda: recover(tmp_path).live_spools == 0)
    check_log(tmp_path, {0: 60, 1: 1})


def test_child_goes_on_when_its_parent_is_killed_and_finishes_what_that_left(tmp_path: Path) -> None:
    acknowledged = Acknowledgements(3)

    def parent() -> None:
        exporter = exporter_for(tmp_path, buffer_size=64 * 1024, flush_interval=0.5)

        def child() -> None:
            while True:
                emit(exporter, acknowledged, 1)
                time.sleep(0.001)

        emit(exporter, acknowledged, 0)
        acknowledged[2] = fork(child)
        while True:
            emit(exporter, acknowledged, 0)

    with running(parent) as (pid,):
        try:
            wait_until(lambda: acknowledged[1] > 10 and acknowledged[0] > 1_000)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            seen = acknowledged[1]
            wait_until(lambda: take_account(str(tmp_path), {0: acknowledged[0]}).lost == 0)
            wait_until(lambda: acknowledged[1] > seen + 10)
        finally:
            os.kill(acknowledged[2], signal.SIGKILL)
    wait_until(lambda: recover(tmp_path).live_spools == 0)
    check_log(tmp_path, {0: acknowledged[0], 1: acknowledged[1]}, rotate_bytes=64 * 1024)


def test_nothing_leaks_over_exec(tmp_path: Path) -> None:
    acknowledged = Acknowledgements(1)
    listing = tmp_path / "listing"

    def work() -> None:
        exporter = exporter_for(tmp_path / "logs", flush_interval=NEVER_S)
        emit(exporter, acknowledged, 0, 50)
        assert exporter.flush()
        emit(exporter, acknowledged, 0, 10)
        look = (
            "import os, sys; fds = os.listdir('/proc/self/fd');"
            "names = [os.readlink('/proc/self/fd/' + fd) for fd in fds if os.path.exists('/proc/self/fd/' + fd)];"
            "names.append(open('/proc/self/maps').read()); open(sys.argv[1], 'w').write('\\n'.join(names))"
        )
        os.execv(sys.executable, [sys.executable, "-c", look, str(listing)])

    assert reap(fork(work)) == 0
    assert str(tmp_path / "logs") not in listing.read_text()
    assert recover(tmp_path / "logs").dead_spools == 1
    check_log(tmp_path / "logs", {0: 60})


# multiprocessing.


def emit_as(exporter: JSONLExporter, worker: int, events: int) -> tuple[int, int]:
    """A task of another process; returns how many threads, and files in the log directory, it has by then."""
    for number in range(events):
        exporter.emit({"worker": worker, "seq": number})
    gc.collect()  # the exporters of earlier tasks
    return threading.active_count(), len(open_files_in(exporter.dir))


def emit_for_ever(exporter: JSONLExporter, directory: str, worker: int) -> None:
    number = 0
    with open(f"{directory}/{worker}", "wb", buffering=0) as file:
        while True:
            exporter.emit({"worker": worker, "seq": number})
            number += 1
            file.write(b".")


methods = pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])


@methods
def test_exporter_given_to_multiprocessing_writes_from_there(tmp_path: Path, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    exporter = exporter_for(tmp_path)
    exporter.emit({"worker": 0, "seq": 0})
    children = [context.Process(target=emit_as, args=(exporter, worker, 200)) for worker in (1, 2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert exporter.close()
    # No recovery: a finalizer of multiprocessing's closes the exporter where no exit hook runs.
    check_log(tmp_path, {0: 1, 1: 200, 2: 200})
    assert not spools_in(tmp_path)


@methods
@pytest.mark.parametrize("kind", ["Pool", "ProcessPoolExecutor"])
def test_tasks_of_a_pool_may_bring_the_exporter_along(tmp_path: Path, method: str, kind: str) -> None:
    context: Any = multiprocessing.get_context(method)
    exporter = exporter_for(tmp_path)
    exporter.emit({"worker": 0, "seq": 0})
    tasks = [(exporter, worker, 10) for worker in range(1, 41)]
    if kind == "Pool":
        with context.Pool(2) as pool:
            seen = pool.starmap(emit_as, tasks, chunksize=1)
            pool.close()
            pool.join()
    else:
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            seen = list(executor.map(emit_as, *zip(*tasks, strict=True)))
    assert exporter.close()
    recover(tmp_path)
    check_log(tmp_path, {0: 1, **dict.fromkeys(range(1, 41), 10)})
    # Every task unpickled an exporter of its own; those of earlier tasks have left neither thread nor descriptor. (In
    # a forked child there may be one more, which the fork has brought. One has up to a dozen files open or mapped.)
    threads, files = (max(column) for column in zip(*seen[20:], strict=True))
    assert threads <= seen[0][0] + 1, seen
    assert files <= 30, seen


@methods
def test_daemon_process_that_is_terminated_loses_nothing(tmp_path: Path, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    exporter = exporter_for(tmp_path / "logs")
    children = [
        context.Process(target=emit_for_ever, args=(exporter, str(tmp_path), worker), daemon=True) for worker in (0, 1)
    ]
    for child in children:
        child.start()

    def count(worker: int) -> int:
        file = tmp_path / f"{worker}"
        return file.stat().st_size if file.exists() else 0

    try:
        wait_until(lambda: min(count(0), count(1)) > 200)
    finally:
        for child in children:
            child.terminate()
            child.join(30)
    assert [child.exitcode for child in children] == [-signal.SIGTERM] * 2
    report = recover(tmp_path / "logs")
    assert not report.failures
    check_log(tmp_path / "logs", {0: count(0), 1: count(1)}, rotate_bytes=64 * 1024, context=report)


# The helper's thread is away for a fork. Is it back after each, however busy it was when it was told to go? (Told by a
# threading.Event, it was not: the handler's fork waited for a lock that the fork it had interrupted held.)
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads through Linux's /proc")
def test_helper_is_back_after_each_of_many_forks_also_nested_ones_and_one_that_fails(tmp_path: Path) -> None:
    output = script(
        """
        import os, resource, signal, sys, time

        alone = []
        os.register_at_fork(before=lambda: alone.append(len(os.listdir("/proc/self/task")) == 1))
        from profilis_mp import JSONLExporter

        exporter = JSONLExporter(sys.argv[1], flush_interval=0.002)

        def threads():
            return len(os.listdir("/proc/self/task"))

        def fork():
            pid = os.fork()
            if not pid:
                os._exit(0)
            os.waitpid(pid, 0)

        for number in range(60):
            exporter.emit({"worker": 0, "seq": number})
            if number % 20 == 10:  # a signal handler forks in the middle of a fork's own hooks
                signal.signal(signal.SIGALRM, lambda *_: fork())
                signal.setitimer(signal.ITIMER_REAL, 0.0003)
            fork()
            assert threads() == 2, number
        signal.setitimer(signal.ITIMER_REAL, 0)
        if os.geteuid():  # root may start as many processes as it likes
            limit = resource.getrlimit(resource.RLIMIT_NPROC)
            resource.setrlimit(resource.RLIMIT_NPROC, (0, limit[1]))
            try:
                os.fork()
            except BlockingIOError:
                pass
            resource.setrlimit(resource.RLIMIT_NPROC, limit)
            assert threads() == 2
        exporter.emit({"worker": 0, "seq": 60})
        deadline = time.monotonic() + 30
        while exporter.stats()["unflushed_bytes"]:
            assert time.monotonic() < deadline, "nobody flushes"
            time.sleep(0.001)
        print(sum(alone) > 30)
        """,
        tmp_path,
    )
    assert output == "True\n"
    check_log(tmp_path, {0: 61})
    assert not spools_in(tmp_path)


# A thread that is sent away for each fork, and waits anew each time, would never get to its work.
def test_a_process_that_forks_all_the_time_is_not_late_with_its_events(tmp_path: Path) -> None:
    output = script(
        """
        import os, sys, time
        from profilis_mp import JSONLExporter

        exporter = JSONLExporter(sys.argv[1], flush_interval=0.2)
        exporter.emit({"worker": 0, "seq": 0})
        deadline = time.monotonic() + 60
        forks = 0
        while exporter.stats()["unflushed_bytes"]:
            assert time.monotonic() < deadline, f"{forks} forks, and nobody has flushed"
            pid = os.fork()
            if not pid:
                os._exit(0)
            os.waitpid(pid, 0)
            forks += 1
        print(forks > 1)
        """,
        tmp_path,
    )
    assert output == "True\n"
    check_log(tmp_path, {0: 1})


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads through Linux's /proc")
def test_a_helper_that_was_not_called_back_after_a_fork_is_so_later_or_ends_in_order(tmp_path: Path) -> None:
    """An exception of a signal handler can cut the fork hook short: Python prints it and goes on."""
    output = script(
        """
        import os, sys
        from profilis_mp import JSONLExporter
        from profilis_mp.sharedlog.session import Session

        sys.unraisablehook = lambda what: None

        def cut_short(session):
            raise KeyboardInterrupt

        def threads():
            return len(os.listdir("/proc/self/task"))

        exporter = JSONLExporter(sys.argv[1], buffer_size=1000, flush_interval=3600)
        exporter.emit({"worker": 0, "seq": 0})
        whole, number = Session.call_helper_back, 1
        for _ in range(2):
            Session.call_helper_back = cut_short
            pid = os.fork()
            if not pid:
                os._exit(0)
            os.waitpid(pid, 0)
            Session.call_helper_back = whole
            if number == 1:
                assert threads() == 1
                for number in range(1, 101):
                    exporter.emit({"worker": 0, "seq": number})
                assert threads() == 2
        assert threads() == 1
        print(exporter.close())
        """,
        tmp_path,
    )
    assert output == "True\n"
    check_log(tmp_path, {0: 101})
    assert not spools_in(tmp_path)


# With filelock imported, Python 3.12 and later raised RuntimeError from os.fork in one thread while another one forked.
def test_several_threads_may_fork_at_once(tmp_path: Path) -> None:
    output = script(
        """
        import os, sys, threading, time
        os.register_at_fork(before=lambda: time.sleep(0.001))  # the last hook to run: others come in between
        from profilis_mp import JSONLExporter

        exporter = JSONLExporter(sys.argv[1], flush_interval=0.01)
        exporter.emit({"worker": 9, "seq": 0})
        failed = []

        def work(worker):
            for number in range(50):
                try:
                    pid = os.fork()
                except BaseException as error:
                    failed.append(error)
                    continue
                if not pid:
                    os._exit(0)
                os.waitpid(pid, 0)
                exporter.emit({"worker": worker, "seq": number})

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(failed, exporter.close())
        """,
        tmp_path,
    )
    assert output == "[] True\n"
    check_log(tmp_path, {**dict.fromkeys(range(4), 50), 9: 1})


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads through Linux's /proc")
def test_a_helper_whose_call_back_is_cut_short_anywhere_comes_back_with_the_next_event(tmp_path: Path) -> None:
    """Cut short between the two halves of it, the thread was gone, counted as there, and led for ever."""
    output = script(
        """
        import os, sys, time
        from profilis_mp import JSONLExporter

        sys.unraisablehook = lambda what: None
        exporter = JSONLExporter(sys.argv[1], flush_interval=3600)
        exporter.emit({"worker": 0, "seq": 0})
        number, step, moments = 0, 0, 0
        while moments == step:
            step, moments = step + 1, 0

            def look(frame, event, argument):
                global moments
                if event in ("call", "c_return") and "profilis_mp" in frame.f_code.co_filename:
                    if "call_helper" in names(frame):
                        moments += 1
                        if moments == step:
                            sys.setprofile(None)
                            raise KeyboardInterrupt

            def names(frame):
                return "" if frame is None else frame.f_code.co_name + " " + names(frame.f_back)

            sys.setprofile(look)
            pid = os.fork()
            sys.setprofile(None)
            if not pid:
                os._exit(0)
            os.waitpid(pid, 0)
            number += 1
            exporter.emit({"worker": 0, "seq": number})
            deadline = time.monotonic() + 10  # one thread too many ends at once
            while len(os.listdir("/proc/self/task")) != 2:
                assert time.monotonic() < deadline, step
        print(step > 10, exporter.close())
        """,
        tmp_path,
    )
    assert output == "True True\n"


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads through Linux's /proc")
def test_who_gets_no_thread_after_a_fork_leads_no_longer(tmp_path: Path) -> None:
    output = script(
        """
        import _thread, os, sys, time
        from profilis_mp import JSONLExporter

        def until(condition):
            deadline = time.monotonic() + 30
            while not condition() and time.monotonic() < deadline:
                time.sleep(0.01)
            return condition()

        def no_more(work, arguments):
            raise RuntimeError("can't start new thread")

        exporter = JSONLExporter(sys.argv[1], flush_interval=0.1)
        exporter.emit({"worker": 0, "seq": 0})
        assert until(lambda: exporter.stats()["leading"])
        start, _thread.start_new_thread = _thread.start_new_thread, no_more
        pid = os.fork()
        if not pid:
            _thread.start_new_thread = start
            another = JSONLExporter(sys.argv[1], flush_interval=0.1)
            another.emit({"worker": 1, "seq": 0})
            os._exit(not until(lambda: another.stats()["leading"]))
        print(exporter.stats()["leading"], os.waitpid(pid, 0)[1])
        _thread.start_new_thread = start
        exporter.emit({"worker": 0, "seq": 1})
        print(len(os.listdir("/proc/self/task")), exporter.close())
        """,
        tmp_path,
    )
    assert output == "False 0\n2 True\n"


# uWSGI with --py-call-osafterfork forks from C code, where no Python function is on the stack. The first session that
# was closed there raised in the hook, the others were not, and what should have helped in the child did not.
def test_a_fork_from_c_code_closes_all_that_was_inherited(tmp_path: Path) -> None:
    output = script(
        """
        import _thread, os, sys
        from profilis_mp import JSONLExporter
        from profilis_mp.sharedlog import forks

        exporters = [JSONLExporter(f"{sys.argv[1]}/{number}", janitor=False) for number in range(3)]
        for exporter in exporters:
            exporter.emit({"worker": 0, "seq": 0})
        reading, writing = os.pipe()

        def look():
            numbers = os.listdir("/proc/self/fd")
            files = [os.readlink(f"/proc/self/fd/{n}") for n in numbers if os.path.lexists(f"/proc/self/fd/{n}")]
            kept = sum(file.startswith(sys.argv[1]) for file in files)
            os.write(writing, f"{kept} {len(forks._inherited)}".encode())
            os._exit(0)

        os.register_at_fork(after_in_child=look)
        _thread.start_new_thread(os.fork, ())
        print(os.read(reading, 100).decode())
        """,
        tmp_path,
    )
    assert output == "0 3\n"

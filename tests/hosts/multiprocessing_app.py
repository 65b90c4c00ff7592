"""Programs that start processes in every way Python has. Each is a function, run by its name:

    LOGS=… COUNTS=… python -c "import multiprocessing_app; multiprocessing_app.main()" pool_closed fork

The exporter is made at import, as applications do: a forked child inherits it, a spawned one makes its own. What was
acknowledged is counted in a file that outlives every process.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fork_witness import threads_at_forks
from processes import reap, wait_until

from profilis_mp import JSONLExporter
from profilis_mp.account import take_account

WORKERS = 64
EVENTS = 150


class Counts:
    """As `processes.Acknowledgements`, in a file, so that a program that was executed finds it too."""

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.posix_fallocate(fd, 0, 8 * WORKERS)
        self._words = memoryview(mmap.mmap(fd, 8 * WORKERS)).cast("Q")
        os.close(fd)

    def __setitem__(self, worker: int, count: int) -> None:
        self._words[worker] = count

    def __getitem__(self, worker: int) -> int:
        return self._words[worker]

    def by_worker(self) -> dict[int, int]:
        return {worker: count for worker, count in enumerate(self._words) if count}


if "LOGS" in os.environ:  # a test that imports this module wants its names only
    exporter = JSONLExporter(
        dir=os.environ["LOGS"], rotate_bytes=64 * 1024, flush_interval=float(os.environ.get("FLUSH_INTERVAL", "0.05"))
    )
    counts = Counts(os.environ["COUNTS"])


def emit(worker: int, events: int = EVENTS) -> int:
    """One task; every worker number is used by one process at a time."""
    for _ in range(events):
        number = counts[worker]
        exporter.emit({"worker": worker, "seq": number, "fill": "x" * (number % 100)})
        counts[worker] = number + 1
    return os.getpid()


def emit_for_ever(worker: int) -> None:
    while True:
        emit(worker, 10)
        time.sleep(0.001)


def busy(*workers: int) -> bool:
    """Are all of them at work?"""
    return all(counts[worker] > EVENTS for worker in workers)


def complete() -> bool:
    """Is everything in segments that was acknowledged before this look?"""
    return take_account(exporter.dir, counts.by_worker()).lost == 0


# multiprocessing.Process


def processes(context: Any) -> None:
    emit(0)
    children = [context.Process(target=emit, args=(worker,)) for worker in (1, 2)]
    for child in children:
        child.start()
    emit(0)
    join(children)


def grandchildren(context: Any) -> None:
    emit(0)
    child = context.Process(target=parent_of_another, args=(context.get_start_method(), 1, 3))
    child.start()
    join([child])


def parent_of_another(method: str, worker: int, last: int) -> None:
    emit(worker)
    if worker < last:
        arguments = (method, worker + 1, last)
        child = multiprocessing.get_context(method).Process(target=parent_of_another, args=arguments)
        child.start()
        join([child])
    emit(worker)


def daemons_left_behind(context: Any) -> None:
    """The parent ends while its daemons are at work: multiprocessing terminates them."""
    emit(0)
    for worker in (1, 2):
        context.Process(target=emit_for_ever, args=(worker,), daemon=True).start()
    wait_until(lambda: busy(1, 2))


def child_killed(context: Any) -> None:
    """The parent lives on, and its helper finishes what the child left."""
    emit(0)
    child = context.Process(target=emit_for_ever, args=(1,))
    child.start()
    wait_until(lambda: busy(1))
    os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    wait_until(complete, what="the parent's helper finishes what the child left")


def parent_killed(context: Any) -> None:
    """The test kills this process; the children live on."""
    children = [context.Process(target=emit_for_ever, args=(worker,)) for worker in (1, 2)]
    for child in children:
        child.start()
    emit(0)
    print(*(child.pid for child in children), flush=True)
    emit_for_ever(0)


# Pools


def pool_closed(context: Any) -> None:
    """Workers are replaced after three tasks, and the last ones end in order."""
    emit(0)
    with context.Pool(2, maxtasksperchild=3) as pool:
        pids = pool.map(emit, range(1, 15), chunksize=1)
        pool.close()
        pool.join()
    assert len(set(pids)) >= 4, pids


def pool_terminated(context: Any) -> None:
    emit(0)
    pool = context.Pool(2)
    pool.map_async(emit_for_ever, (1, 2), chunksize=1)
    wait_until(lambda: busy(1, 2))
    pool.terminate()
    pool.join()


abandoned: list[Any] = []


def pool_abandoned(context: Any) -> None:
    """Neither closed nor joined; multiprocessing terminates it at exit, or the interpreter takes it along."""
    pool = context.Pool(2)
    abandoned.append(pool)
    pool.map(emit, range(1, 9), chunksize=1)


def executor(context: Any) -> None:
    emit(0)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        list(pool.map(emit, range(1, 15)))


def loky(context: Any) -> None:
    from joblib import Parallel, delayed

    emit(0)
    Parallel(n_jobs=2, backend="loky")(delayed(emit)(worker) for worker in range(1, 15))
    wait_until(complete, what="the parent's helper flushes what idle workers have")


def threads(context: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(emit, range(1, 15)))


def threads_at_the_fork(context: Any) -> None:
    """Processes are started while threads of the parent emit."""
    with busy_threads(1, 2, 3):
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            list(pool.map(emit, range(4, 20)))
        children = [context.Process(target=emit, args=(worker,)) for worker in range(20, 28)]
        for child in children:
            child.start()
        join(children)


@contextmanager
def busy_threads(*workers: int) -> Iterator[None]:
    done = threading.Event()

    def work(worker: int) -> None:
        while not done.is_set():
            emit(worker, 10)
            time.sleep(0.0005)

    running = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    for thread in running:
        thread.start()
    try:
        wait_until(lambda: busy(*workers))
        yield
    finally:
        done.set()
        for thread in running:
            thread.join()


# Without multiprocessing


def fork_and_exit(context: Any) -> None:
    """The child ends as a program does, with its exit hooks."""
    emit(0)
    pid = os.fork()
    if not pid:
        emit(1)
        sys.exit(0)
    emit(0)
    assert reap(pid) == 0


def fork_and_vanish(context: Any) -> None:
    """The child runs no exit hook; the parent's helper finishes for it."""
    emit(0)
    pid = os.fork()
    if not pid:
        emit(1)
        os._exit(0)
    assert reap(pid) == 0
    wait_until(complete, what="the parent's helper finishes what the child left")


def program(context: Any) -> None:
    """Parent and executed child share the directory."""
    emit(0)
    subprocess.run([*COMMAND, "one_more", "spawn"], check=True, env={**os.environ, "WORKER": "1"})
    emit(0)


def one_more(context: Any) -> None:
    emit(int(os.environ["WORKER"]))


def next_start(context: Any) -> None:
    """A program that comes later finishes what is left, while it runs."""
    emit(int(os.environ["WORKER"]), 1)
    wait_until(complete, what="the next program's helper finishes what the last one left")


def unused(context: Any) -> None:
    """An exporter that nothing was emitted to has neither a thread nor a file."""
    assert len(os.listdir("/proc/self/task")) == 1
    assert not Path(exporter.dir).exists()
    pid = os.fork()
    if not pid:
        emit(1)
        sys.exit(0)
    assert reap(pid) == 0
    assert len(os.listdir("/proc/self/task")) == 1


def alone_at_the_fork(context: Any) -> None:
    """The helper is away for the fork, and back after it."""
    emit(0)
    assert len(os.listdir("/proc/self/task")) == 2
    for _ in range(5):
        pid = os.fork()
        if not pid:
            emit(1)
            os._exit(0)
        assert reap(pid) == 0
        assert len(os.listdir("/proc/self/task")) == 2
    children = [context.Process(target=emit, args=(worker,)) for worker in (2, 3)]
    for child in children:
        child.start()
    join(children)
    assert len(threads_at_forks) == 7
    assert threads_at_forks.count(1) > 3, threads_at_forks  # of a machine that is too busy for it, nobody waits
    wait_until(complete, what="the helper is back and finishes what the children left")


def join(children: list[Any]) -> None:
    for child in children:
        child.join(60)
        assert child.exitcode == 0, child


COMMAND = [sys.executable, "-c", "import multiprocessing_app; multiprocessing_app.main()"]


def main() -> None:
    scenario: Callable[[Any], None] = globals()[sys.argv[1]]
    scenario(multiprocessing.get_context(sys.argv[2]))

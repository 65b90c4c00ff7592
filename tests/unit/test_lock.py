"""The lock on a kept descriptor, and the mark that tells a forked child that it is one."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Signal, alone, fork, reap, running, wait_until

from profilis_mp.errors import LockTimeout
from profilis_mp.forkmark import _PidMark, fork_mark
from profilis_mp.sharedlog.lock import KeptLock


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "lock")


def holding(path: str, taken: Signal) -> Callable[[], None]:
    def work() -> None:
        lock = KeptLock(path, 0o600)
        assert lock.try_acquire()
        taken.send()
        signal.pause()

    return work


# The lock.


def test_lock_file_is_private_empty_and_closed_on_exec(path: str) -> None:
    old = os.umask(0)
    try:
        lock = KeptLock(path, 0o600)
    finally:
        os.umask(old)
    status = os.stat(path)
    assert (stat.S_IMODE(status.st_mode), status.st_size) == (0o600, 0)
    assert not os.get_inheritable(lock.fd)
    lock.close()


def test_lock_excludes_another_process_until_it_is_released(path: str) -> None:
    lock = KeptLock(path, 0o600)
    lock.acquire(0.0)

    def contend() -> None:
        theirs = KeptLock(path, 0o600)
        assert not theirs.try_acquire()
        with pytest.raises(LockTimeout):
            theirs.acquire(0.0)

    def take() -> None:
        KeptLock(path, 0o600).acquire(0.0)

    assert reap(fork(contend)) == 0
    lock.release()
    assert reap(fork(take)) == 0
    lock.acquire(0.0)
    assert reap(fork(contend)) == 0
    lock.close()
    assert reap(fork(take)) == 0


def test_two_descriptors_of_one_process_exclude_each_other(path: str) -> None:
    first, second = KeptLock(path, 0o600), KeptLock(path, 0o600)
    assert first.try_acquire()
    assert not second.try_acquire()
    second.close()
    third = KeptLock(path, 0o600)
    assert not third.try_acquire(), "closing a descriptor of the file does not give the lock away, as lockf would"
    first.close()
    assert third.try_acquire()
    third.close()


# On every Python, whether or not it is filelock that makes the system call. (It is imported in other processes: what
# it does to forks, see the module.)
def test_lock_contends_with_a_file_lock_on_the_same_path(path: str) -> None:
    taken = Signal()

    def other() -> None:
        from filelock import FileLock

        with FileLock(path):
            taken.send()
            signal.pause()

    lock = KeptLock(path, 0o600)
    with running(other) as (pid,):
        taken.wait()
        assert not lock.try_acquire()
        with pytest.raises(LockTimeout):
            lock.acquire(0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        lock.acquire(0.0)

    def contend() -> None:
        from filelock import FileLock, Timeout

        with pytest.raises(Timeout):
            FileLock(path).acquire(timeout=0)

    assert reap(fork(contend)) == 0
    lock.release()
    assert reap(fork(contend)) != 0, "now it gets it"
    assert lock.is_in_place(), "a file lock leaves the file where it is"
    lock.close()


def test_killed_holder_leaves_the_lock_to_the_next(path: str) -> None:
    taken = Signal()
    with running(holding(path, taken)) as (pid,):
        taken.wait()
        lock = KeptLock(path, 0o600)
        assert not lock.try_acquire()
        os.kill(pid, signal.SIGKILL)
        lock.acquire(30.0)
        lock.close()


def test_stopped_holder_keeps_the_lock(path: str) -> None:
    taken = Signal()
    with running(holding(path, taken)) as (pid,):
        taken.wait()
        os.kill(pid, signal.SIGSTOP)
        lock = KeptLock(path, 0o600)
        with pytest.raises(LockTimeout):
            lock.acquire(0.02)
        lock.close()


@pytest.mark.parametrize("timeout_s", [0, 0.0, 0.001, 0.05, -1.0])
def test_timeout_says_how_long_was_waited_and_for_what(path: str, timeout_s: float) -> None:
    holder, lock = KeptLock(path, 0o600), KeptLock(path, 0o600)
    holder.acquire(0)
    started = time.monotonic()
    with pytest.raises(LockTimeout) as caught:
        lock.acquire(timeout_s)
    assert caught.value.path == path
    assert max(0.0, timeout_s) <= caught.value.waited_s <= time.monotonic() - started
    holder.release()
    lock.acquire(timeout_s)
    holder.close()
    lock.close()


def test_waiter_gets_the_lock_once_it_is_released(path: str) -> None:
    holder, lock = KeptLock(path, 0o600), KeptLock(path, 0o600)
    holder.acquire(0.0)
    waiting = threading.Event()
    got = []

    def wait() -> None:
        waiting.set()
        lock.acquire(60.0)
        got.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    assert not got
    holder.release()
    thread.join(60.0)
    assert got == [True]
    holder.close()
    lock.close()


def test_waiting_process_can_be_interrupted_by_a_signal(path: str) -> None:
    """Ctrl-C and a soft time limit end the wait at once, an hour before the lock's own timeout."""
    taken, waiting = Signal(), Signal()

    class Interrupt(Exception):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Interrupt

    def wait() -> None:
        signal.signal(signal.SIGUSR1, interrupt)
        lock = KeptLock(path, 0o600)

        def send_and_wait() -> None:
            waiting.send()
            lock.acquire(3600.0)

        with pytest.raises(Interrupt):
            send_and_wait()

    with running(holding(path, taken)):
        taken.wait()
        pid = fork(wait)
        waiting.wait()
        os.kill(pid, signal.SIGUSR1)
        assert reap(pid) == 0


def test_lock_on_a_removed_or_replaced_file_is_not_in_place(path: str) -> None:
    lock = KeptLock(path, 0o600)
    assert lock.is_in_place()
    os.rename(path, f"{path}.moved")
    assert not lock.is_in_place()
    other = KeptLock(path, 0o600)
    assert not lock.is_in_place()
    assert other.is_in_place()
    assert lock.try_acquire()
    assert other.try_acquire(), "which is why it matters: the two exclude nobody"
    os.rename(f"{path}.moved", path)
    assert lock.is_in_place()
    assert not other.is_in_place()
    os.unlink(path)
    assert not lock.is_in_place()
    os.symlink(f"{path}.moved", path)
    assert not lock.is_in_place()
    lock.close()
    other.close()


def test_symlink_in_the_place_of_the_lock_is_not_followed(tmp_path: Path, path: str) -> None:
    for target in (tmp_path / "real", tmp_path / "nowhere"):
        (tmp_path / "real").touch()
        os.symlink(target, path)
        with pytest.raises(OSError, match="symbolic links") as caught:
            KeptLock(path, 0o600)
        assert caught.value.errno == errno.ELOOP
        os.unlink(path)
    assert not (tmp_path / "nowhere").exists()


def test_close_in_a_forked_child_does_not_release_the_parents_lock(path: str) -> None:
    lock = KeptLock(path, 0o600)
    lock.acquire(0.0)
    assert reap(fork(lock.close)) == 0
    other = KeptLock(path, 0o600)
    assert not other.try_acquire()
    lock.release()
    assert other.try_acquire()
    lock.close()
    other.close()


def test_child_that_outlives_its_parent_keeps_the_lock_only_until_it_closes(path: str) -> None:
    """Why a child closes what it inherits as soon as it can."""
    inherited, close, closed, end = Signal(), Signal(), Signal(), Signal()

    def parent() -> None:
        lock = KeptLock(path, 0o600)
        lock.acquire(0.0)
        if os.fork() == 0:
            signal.alarm(60)  # nobody's child soon: it must end by itself
            inherited.send()
            close.wait()
            lock.close()
            closed.send()
            end.wait()
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    assert reap(fork(parent)) == -signal.SIGKILL
    inherited.wait()
    lock = KeptLock(path, 0o600)
    assert not lock.try_acquire()
    close.send()
    closed.wait()
    assert lock.try_acquire()
    end.send()
    lock.close()


# The fork mark.


def in_child_through(fork_call: Callable[[], int], work: Callable[[], bool]) -> bool:
    pid = fork_call()
    if pid == 0:
        code = 2
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return reap(pid) == 0


def fork_past_python() -> int:
    """The system's own fork, as a host written in C calls it: none of Python's hooks run."""
    libc = ctypes.PyDLL(None)  # keeps the interpreter's lock over the call, or the child would wait for it
    pid: int = libc.fork()
    return pid


FORKS = [os.fork, fork_past_python]


@alone
def test_forking_past_python_runs_no_hooks() -> None:
    """Without this the tests below would prove nothing."""
    ran = []
    os.register_at_fork(after_in_child=lambda: ran.append(1))
    assert in_child_through(os.fork, lambda: ran == [1])
    assert in_child_through(fork_past_python, lambda: ran == [])


def test_mark_is_set_in_the_process_that_made_it() -> None:
    mark = fork_mark()
    assert mark
    assert mark
    assert not isinstance(mark, _PidMark), "this kernel has MADV_WIPEONFORK"


@pytest.mark.parametrize("fork_call", FORKS)
@alone
def test_mark_is_clear_in_a_child_and_stays_set_in_the_parent(fork_call: Callable[[], int]) -> None:
    mark = fork_mark()
    assert in_child_through(fork_call, lambda: not mark)
    assert mark


@pytest.mark.parametrize("first", FORKS)
@pytest.mark.parametrize("second", FORKS)
@alone
def test_marks_of_parent_and_child_are_clear_in_a_grandchild(
    first: Callable[[], int], second: Callable[[], int]
) -> None:
    mark = fork_mark()

    def child() -> bool:
        own = fork_mark()
        return not mark and own and in_child_through(second, lambda: not mark and not own)

    assert in_child_through(first, child)
    assert mark


def test_child_of_an_unmarked_child_is_still_unmarked() -> None:
    mark = fork_mark()

    def child() -> bool:
        return in_child_through(os.fork, lambda: in_child_through(os.fork, lambda: not mark))

    assert in_child_through(os.fork, child)


@alone
def test_mark_by_process_id_tells_the_same_where_the_kernel_cannot() -> None:
    mark = _PidMark()
    assert mark
    assert in_child_through(os.fork, lambda: not mark)
    assert in_child_through(fork_past_python, lambda: not mark)


def test_mark_is_clear_when_another_thread_forks() -> None:
    mark = fork_mark()
    clear: list[bool] = []
    thread = threading.Thread(target=lambda: clear.append(in_child_through(os.fork, lambda: not mark)))
    thread.start()
    wait_until(lambda: clear)
    thread.join()
    assert clear == [True]

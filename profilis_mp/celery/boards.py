"""What was the task that killed its process, and has its event been written?

A pool's child that is killed (a hard time limit, the OOM killer, ``kill -9``) can say nothing any more, and it is the
task that one wants to read about. So each child has a **board**: one page of memory shared with the worker's main
process, made before the fork. On it stands which task runs and in which span, until its event is about to be written.
When a child is dead, the main process looks at its board, and writes the event that is still missing.

One task, one event: the child wipes its board *before* it hands its event over. So an event is never written twice; a
child killed in the two or three microseconds in between leaves none, and its task has had no answer either.

The main process looks when it hears that a task has failed, when a child is replaced, with each heartbeat, and when it
ends itself. How the task ended it has from Celery's own signals; the event does not depend on them.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import orjson

from profilis_mp.forkmark import fork_mark

__all__ = ["Board", "Boards", "Fate"]

Fate: TypeAlias = tuple[str, str | None]
"""The state that a task ended in, and the type of what ended it."""

_LOST: Fate = ("FAILURE", "WorkerLostError")

_PID, _UNREPORTED, _LENGTH = range(3)  # u64 words
_TEXT = 64  # where the text begins
_NEVER_CAME_UP_S = 60.0  # Celery itself waits 4 s for a child to come up


class Board:
    """One child's page. Written by the child only."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)  # shared and anonymous: it lives as long as one of the two does
        self._words = memoryview(self._page).cast("Q")
        self.made = time.monotonic()
        self.fate: tuple[str, Fate] | None = None  # the main process's: of the task in this span

    @property
    def pid(self) -> int:
        """The child's process id, 0 until it came up."""
        return self._words[_PID]

    def sign(self, pid: int) -> None:
        """In the child: this page is mine."""
        self._words[_PID] = pid

    def show(self, about: dict[str, Any]) -> None:
        """In the child: this task runs now. One that does not fit on the page is not shown."""
        text = orjson.dumps(about)
        if len(text) <= mmap.PAGESIZE - _TEXT:
            self._page[_TEXT : _TEXT + len(text)] = text
            self._words[_LENGTH] = len(text)
            self._words[_UNREPORTED] = 1  # last: whoever sees it may read the text

    def wipe(self) -> None:
        """In the child: its event is being written."""
        self._words[_UNREPORTED] = 0

    def unreported(self) -> dict[str, Any] | None:
        """What runs, or did when the child died, and has no event yet."""
        if not self._words[_UNREPORTED]:
            return None
        try:
            about = orjson.loads(self._page[_TEXT : _TEXT + self._words[_LENGTH]])
        except ValueError:  # a living child has just begun another task
            return None
        return about if self._words[_UNREPORTED] and isinstance(about, dict) else None


class Boards:
    """The boards of a worker's children, in its main process.

    Args:
        report: Writes the event of a task that a dead child has left: what was on its board, and its fate.
    """

    def __init__(self, report: Callable[[dict[str, Any], Fate], None]) -> None:
        self._report = report
        self._boards: list[Board] = []
        self._latest: Board | None = None
        self._settling = threading.Lock()  # held for one look; never asked for in a child
        self._is_main = fork_mark()

    def before_fork(self) -> None:
        """Make the board of the child to come."""
        if self._is_main:
            self._latest = None  # should the next line fail
            self._latest = Board()
            self._boards.append(self._latest)

    def mine(self) -> Board | None:
        """In a child that has just been forked: its board. None in the main process, or where nothing was inherited."""
        board = self._latest
        if self._is_main or board is None or board.pid:  # signed: two threads forked at once
            return None
        self._latest = None
        self._boards.clear()
        board.sign(os.getpid())
        return board

    def note(self, task_id: str, fate: Fate) -> None:
        """Celery says how this task ended; its child may still be alive."""
        if not self._is_main:
            return
        for board in list(self._boards):
            about = board.unreported()
            if about is not None and about["task_id"] == task_id:
                board.fate = about["span_id"], fate

    def settle(self, *, wait_s: float = 0.0) -> None:
        """Write what the dead have left unreported, once.

        Args:
            wait_s: How long to wait for another thread that is about it. 0 leaves it to that and to later looks.
        """
        if not self._is_main or not self._boards:
            return
        if not (self._settling.acquire(timeout=wait_s) if wait_s else self._settling.acquire(blocking=False)):
            return
        try:
            for board in list(self._boards):
                if not board.pid:
                    if time.monotonic() - board.made > _NEVER_CAME_UP_S:
                        self._boards.remove(board)
                elif _is_dead(board.pid):
                    self._boards.remove(board)
                    about = board.unreported()
                    if about is not None:
                        known = board.fate is not None and board.fate[0] == about["span_id"]
                        self._report(about, board.fate[1] if known and board.fate is not None else _LOST)
        finally:
            self._settling.release()


def _is_dead(child: int) -> bool:
    """Whether a child of this process has ended; it stays for its parent to reap."""
    try:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # reaped already
        return True

"""Killing a process after its Nth step: every line that it runs inside the shared log, or another package, is one.

A trace function counts lines; no production code knows of it. Every store of the commit protocol, every system call of
a flush, a rotation, a spool's birth or a recovery is a line of its own, so the sweep ends between any two of them.
(``names`` and ``settings`` only compute; their lines are not counted.)
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from processes import fork, reap

import profilis_mp

__all__ = ["changing_steps", "killed_after"]

_ROOT = os.path.dirname(profilis_mp.__file__)
_COMPUTING = ("names.py", "settings.py")


def _each_step(work: Callable[[], None], before: Callable[[int], None], package: str = "sharedlog") -> None:
    """Run ``work`` and call ``before(n)`` before its step n."""
    step = 0
    inside = f"{_ROOT}/{package}"

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal step
        path = frame.f_code.co_filename
        if not path.startswith(inside) or path.endswith(_COMPUTING):
            return None
        if event == "line":
            before(step)
            step += 1
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)


def killed_after(steps: int, work: Callable[[], None], package: str = "sharedlog") -> Callable[[], None]:
    """``work``, with SIGKILL after ``steps`` steps."""

    def kill(step: int) -> None:
        if step == steps:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: _each_step(work, kill, package)


def changing_steps(
    work: Callable[[], None],
    directory: str,
    scratch: Path,
    package: str = "sharedlog",
    look_at: Callable[[str], object] | None = None,
) -> list[int]:
    """After which steps of ``work`` is something new on disk?  Other kills leave what the one before did.

    What is on disk, ``look_at`` tells, `_state_of` if it is None.
    """
    found = scratch / "changing-steps"

    def look() -> None:
        steps: list[int] = []
        last: object = None

        def compare(step: int) -> None:
            nonlocal last
            state = (look_at or _state_of)(directory)
            if state != last:
                steps.append(step)
                last = state

        _each_step(work, compare, package)
        found.write_text(" ".join(map(str, steps)))

    assert reap(fork(look)) == 0
    return [int(step) for step in found.read_text().split()]


def _state_of(directory: str) -> tuple[object, ...]:
    """What is on disk, without what differs from run to run (spool ids, pids, times): equal states recover alike."""
    found: list[tuple[str, object]] = []
    ids: dict[bytes, bytes] = {}
    for root, _, files in sorted(os.walk(directory)):
        for name in sorted(files):
            path = os.path.join(root, name)
            with open(path, "rb") as file:
                content: object = file.read()
            assert isinstance(content, bytes)
            if os.path.basename(root) == "spool":
                stem, dot, rest = name.partition(".")
                ids[int(stem, 16).to_bytes(8, sys.byteorder)] = b"spool %d" % len(ids)
                # Words 2 and 3 are the owner's pid and the creation time.
                name, content = f"spool {len(ids)}{dot}{rest}", (content[:16], content[32:])
            found.append((os.path.relpath(os.path.join(root, name), directory), content))
    return tuple(
        (name, content if not name.endswith("control") or not isinstance(content, bytes) else _masked(content, ids))
        for name, content in found
    )


def _masked(control: bytes, ids: dict[bytes, bytes]) -> bytes:
    intent = control[16:24]
    return control[:16] + ids.get(intent, b"none" if not any(intent) else b"lost") + control[24:]

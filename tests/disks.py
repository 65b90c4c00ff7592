"""A file system of its own, small and quickly full, for tests of what happens then."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["SmallDisk", "small_disk"]


class SmallDisk:
    """A file system of its own that is quickly full."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self._ballast = path / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Leave so many bytes free, in whole pages."""
        with open(self._ballast, "ab") as ballast:
            for _ in range(50):
                status = os.statvfs(self.path)
                room = status.f_bavail * status.f_frsize - leave
                if room <= 0:
                    return
                try:
                    os.posix_fallocate(ballast.fileno(), os.fstat(ballast.fileno()).st_size, room)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                else:
                    return
        raise AssertionError("others take the space away faster than it can be taken here")

    def is_full(self) -> bool:
        """Whether it was filled, or is just being filled."""
        return self._ballast.exists()

    def empty(self) -> None:
        self._ballast.unlink()

    def remount(self, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.path)], check=True, capture_output=True, timeout=30)


@contextmanager
def small_disk(path: Path, size: str = "512k") -> Iterator[SmallDisk]:
    """Mount one at ``path`` for the length of a block; skips the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        # Lazily: a failed test may have left something open in it.
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=30)

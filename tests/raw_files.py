"""Files as somebody else would change them: through the file system, in place."""

from __future__ import annotations

import os
import struct
from pathlib import Path

__all__ = ["open_descriptors", "overwrite", "set_word", "word"]


def word(path: Path, offset: int) -> int:
    """The 64-bit word at an offset."""
    value: int = struct.unpack_from("=Q", path.read_bytes(), offset)[0]
    return value


def overwrite(path: Path, offset: int, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        assert os.pwrite(fd, content, offset) == len(content)
    finally:
        os.close(fd)


def set_word(path: Path, offset: int, value: int) -> None:
    overwrite(path, offset, struct.pack("=Q", value))


def open_descriptors(directory: str | Path) -> int:
    """How many descriptors this process has open below a directory, on files that are removed as well.

    Not all of them: what an earlier test has left running in this process may open and close others meanwhile.
    """
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{fd}").startswith(f"{os.path.realpath(directory)}/")
        except FileNotFoundError:
            pass  # that of the listing itself
    return found

"""How do bytes get into the active segment?  Appended, in order, and never taken back.

Nothing here truncates or renames: a byte once visible at an offset never changes, so ``tail -F`` and log shippers
never see a file shrink. Caller holds the directory lock throughout.
"""

from __future__ import annotations

import os

from profilis_mp.sharedlog.names import COMPRESSED_SUFFIXES
from profilis_mp.sharedlog.ownership import Settle, create_settled
from profilis_mp.sharedlog.words import open_regular

__all__ = ["OpenSegment", "name_is_taken", "sync_directory"]


class OpenSegment:
    """A descriptor on one segment.

    Attributes:
        path: The file.
        name: Its name within the log directory.
        fd: The descriptor.
    """

    def __init__(self, directory: str, name: str, fd: int) -> None:
        self.path = f"{directory}/{name}"
        self.name = name
        self.fd = fd
        status = os.fstat(fd)
        self._identity = (status.st_dev, status.st_ino)

    @classmethod
    def create(cls, directory: str, name: str, mode: int, settle: Settle, scratch: str) -> OpenSegment:
        """Create the segment, with its owner and mode, whatever the umask: a log shipper in the group counts on it.

        Args:
            directory: The log directory.
            name: The segment's.
            mode: Its permissions.
            settle: Gives it owner and mode.
            scratch: Where a file without its name yet may be: the state directory.

        Raises:
            FileExistsError: Somebody took the name meanwhile.
            OSError: As ``os.open``. Nothing was created.
        """
        fd = create_settled(f"{directory}/{name}", os.O_RDWR | os.O_APPEND, mode, settle, scratch)
        return cls(directory, name, fd)

    @classmethod
    def open(cls, directory: str, name: str) -> OpenSegment:
        """Open an existing segment.

        Raises:
            OSError: It is gone, a symbolic link, or not ours to write.
        """
        return cls(directory, name, open_regular(f"{directory}/{name}", os.O_RDWR | os.O_APPEND))

    def size_in_place(self) -> int | None:
        """The file's length, or None when its name no longer leads to it (deleted, moved, replaced)."""
        try:
            status = os.lstat(self.path)
        except OSError:
            return None
        return status.st_size if (status.st_dev, status.st_ino) == self._identity else None

    def is_removed(self) -> bool:
        """Whether the file has no name any more: its space is taken only as long as it is open somewhere."""
        return os.fstat(self.fd).st_nlink == 0

    def holds(self, expected: memoryview, offset: int) -> bool:
        """Whether the bytes from ``offset`` on are ``expected``."""
        return os.pread(self.fd, len(expected), offset) == expected

    def append(self, batch: memoryview) -> None:
        """Append all of ``batch``.

        Raises:
            OSError: ENOSPC, EDQUOT, EIO … A first part of it may be in the file.
        """
        while batch:
            batch = batch[os.write(self.fd, batch) :]

    def sync(self) -> None:
        """Bring the bytes to the device."""
        os.fdatasync(self.fd)

    def close(self) -> None:
        os.close(self.fd)


def name_is_taken(directory: str, name: str) -> bool:
    """Whether a file of that name exists in any form: plain, compressed, or being compressed."""
    for suffix in COMPRESSED_SUFFIXES:
        if name.endswith(suffix) and os.path.lexists(f"{directory}/{name.removesuffix(suffix)}"):
            return True  # another stream's, which will be compressed to this very name
    forms = ("", *COMPRESSED_SUFFIXES, *(f"{suffix}.tmp" for suffix in COMPRESSED_SUFFIXES))
    return any(os.path.lexists(f"{directory}/{name}{form}") for form in forms)


def sync_directory(path: str) -> None:
    """Bring a directory's names to the device."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""Where does a stream keep what?"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from errno import ELOOP, ENOTDIR
from typing import TypeVar

from profilis_mp.errors import LogDirectoryError
from profilis_mp.sharedlog.ownership import Access

__all__ = ["STATE_DIRECTORY", "StreamPaths"]

STATE_DIRECTORY = ".profilis-mp"
_ATTEMPTS = 8
_T = TypeVar("_T")


class StreamPaths:
    """Where a stream keeps what.

    Attributes:
        log: The log directory.
        state: The stream's state directory.
        lock, control, janitor_lock: Its files.
        spools: The directory of its spools.
    """

    def __init__(self, log: str, stream: str) -> None:
        self.log = log
        self.state = f"{log}/{STATE_DIRECTORY}/{stream}"
        self.lock = f"{self.state}/lock"
        self.control = f"{self.state}/control"
        self.janitor_lock = f"{self.state}/janitor.lock"
        self.spools = f"{self.state}/spool"

    def create(self, access: Access, make: Callable[[], _T], troubles: list[str]) -> _T:
        """Create what is missing, and make something in it; returns what was made.

        Begins anew when a directory goes meanwhile: somebody removes it, or another of root's processes, which starts
        at the same moment, renames its own over this one that is still empty. A spool in memory would not do then: its
        events die with its process.

        Args:
            access: Whose they shall be, and who else may use them.
            make: Makes it.
            troubles: Where to note what could not be done about an owner or mode, as text.

        Raises:
            LogDirectoryError: A part of the state directory is a symbolic link or no directory.
            OSError: No permission, no space.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                self._create_directories(access, troubles)
                return make()
            except FileNotFoundError:
                pass
        self._create_directories(access, troubles)
        return make()

    def _create_directories(self, access: Access, troubles: list[str]) -> None:
        troubles += access.make_directories(self.log)
        for path in (f"{self.log}/{STATE_DIRECTORY}", self.state, self.spools):
            trouble = access.make_directory(path, access.state_mode)
            if trouble:
                troubles.append(trouble)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                raise LogDirectoryError(path, ELOOP, "is a symbolic link, which is never followed here")
            if not stat.S_ISDIR(mode):
                raise LogDirectoryError(path, ENOTDIR, "is not a directory")

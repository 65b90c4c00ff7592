"""Where does a stream keep what?"""

from __future__ import annotations

import os
import stat
from errno import ELOOP, ENOTDIR

from profilis_mp.errors import LogDirectoryError
from profilis_mp.sharedlog.ownership import Access

__all__ = ["STATE_DIRECTORY", "StreamPaths"]

STATE_DIRECTORY = ".profilis-mp"


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

    def create(self, access: Access) -> list[str]:
        """Create what is missing; returns what could not be done about its owner or mode, as text.

        Raises:
            LogDirectoryError: A part of the state directory is a symbolic link or no directory.
            OSError: No permission, no space.
        """
        troubles: list[str | None] = [*access.make_directories(self.log)]
        for path in (f"{self.log}/{STATE_DIRECTORY}", self.state, self.spools):
            troubles.append(access.make_directory(path, access.state_mode))
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                raise LogDirectoryError(path, ELOOP, "is a symbolic link, which is never followed here")
            if not stat.S_ISDIR(mode):
                raise LogDirectoryError(path, ENOTDIR, "is not a directory")
        return [trouble for trouble in troubles if trouble]

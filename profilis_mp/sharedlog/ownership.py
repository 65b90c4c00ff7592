"""Whose is a file that is made here, and who else may use it?

Workers must be able to use what their root master made before it gave its privileges up. So:

* ``owner=`` says whose everything is. Only root can give files away: what another user's process makes is its own.
* Without ``owner=``, what root makes belongs to whom the directory belongs that it is made in (a segment: to the owner
  of its stream's state directory, which remembers what ``owner=`` once said). A user's directory holds no file then
  that this user could not use, and the command line, run by root, leaves nothing behind that stops the writers.
* Modes are exact, whatever the umask. The files of the state directory are for those who may write segments, and for
  nobody else: even a lock that others may only read, they could hold.

Only what belongs to root is given away, by descriptor, and no file that has a second name: in a user's directory, root
could otherwise be made to give away a file from somewhere else.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from errno import EMLINK, ENOTSUP, EPERM

from profilis_mp.sharedlog.users import LEAVE, show_group, show_user
from profilis_mp.sharedlog.words import open_regular

__all__ = ["Access", "Settle", "create_settled", "remove_leftovers"]

Settle = Callable[[int, bool], None]
"""Gives a file, by its descriptor, owner and mode; told whether it was just made. See ``Access.settle``."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use what is made.

    Attributes:
        file_mode: Permissions of segments.
        dir_mode: Permissions of directories; None leaves the log directory to the umask.
        owner: User and group id; a group of -1 is left as it is. None: see the module.
    """

    file_mode: int = 0o640
    dir_mode: int | None = None
    owner: tuple[int, int] | None = None

    @classmethod
    def as_in(cls, state: str) -> Access:
        """What the state directory of a stream tells of its writers, for whoever has no settings of his own."""
        try:
            mode = stat.S_IMODE(os.lstat(state).st_mode)
        except OSError:
            return cls()
        return cls(0o640 | (0o020 if mode & 0o020 else 0) | (0o006 if mode & 0o002 else 0), mode | 0o700)

    @property
    def private_mode(self) -> int:
        """Permissions of the files in the state directory."""
        return 0o600 | (0o060 if self.file_mode & 0o020 else 0) | (0o006 if self.file_mode & 0o002 else 0)

    @property
    def state_mode(self) -> int:
        """Permissions of the state directory: others who may write no files have no business in it."""
        mode = self.dir_mode if self.dir_mode is not None else 0o750 | self.file_mode & 0o020
        return mode if mode & 0o002 else mode & ~0o007

    def settle(self, fd: int, mode: int | None, model: str, *, made: bool = True) -> str | None:
        """Give a file or directory the owner and the mode it shall have. Raises nothing.

        Args:
            fd: Its descriptor.
            mode: Its permissions; None leaves them to the umask.
            model: The directory whose owner counts where ``owner=`` says nothing.
            made: Whether this process has just made it. Otherwise its mode is left alone, and its owner too unless
                this is root, who was perhaps killed between making it and giving it away.

        Returns:
            What could not be done, as text; None when all is well.
        """
        trouble = None
        try:
            status = os.fstat(fd)
            wanted = self._owner_of(status, model, made=made)
            if wanted != (status.st_uid, status.st_gid):
                trouble = self._give(fd, wanted, status)
            if made and mode is not None and stat.S_IMODE(status.st_mode) != mode:
                os.fchmod(fd, mode)
        except OSError as error:
            trouble = f"a file beside {model} does not have the mode that it should have: {error}"
        return trouble

    def make_directory(self, path: str, mode: int | None) -> str | None:
        """Make a directory, or, as root, give away one that root made; returns what could not be done, as text.

        Raises:
            OSError: It cannot be made. One that is there is fine, and so is anything else of that name.
        """
        model = os.path.dirname(path)
        if os.geteuid() == 0:
            if os.path.lexists(path):
                return self._settle_directory(path, mode, model, made=False)
            # Settled before it has its name: root, killed in between, would leave what its workers cannot use.
            unfinished = f"{model}/.{os.path.basename(path)}.{os.urandom(4).hex()}.new"
            os.mkdir(unfinished, 0o777 if mode is None else mode & 0o777)
            trouble = self._settle_directory(unfinished, mode, model, made=True)
            try:
                os.rename(unfinished, path)
            except OSError:
                os.rmdir(unfinished)
                if not os.path.lexists(path):
                    raise
            return trouble  # if somebody was quicker, that one is as good
        try:
            os.mkdir(path, 0o777 if mode is None else mode & 0o777)
        except FileExistsError:
            return None
        if mode is not None:
            os.chmod(path, mode)  # before it is opened: a umask may forbid just that
        return self._settle_directory(path, mode, model, made=True) if self.owner is not None else None

    def make_directories(self, path: str) -> list[str]:
        """Make what is missing of a directory's path; an empty one of root's is given to ``owner``.

        A log directory that holds anything is left as it is: it could be /var/log.

        Raises:
            OSError: It cannot be made.
        """
        missing, troubles = [], []
        nearest = path
        while not os.path.isdir(nearest) and nearest != os.path.dirname(nearest):
            missing.append(nearest)
            nearest = os.path.dirname(nearest)
        if not missing and self.owner is not None and os.geteuid() == 0 and not os.listdir(path):
            missing.append(path)
        for one in reversed(missing):
            troubles.append(self.make_directory(one, self.dir_mode))
        os.makedirs(path, exist_ok=True)  # whatever else has that name is refused here
        return [trouble for trouble in troubles if trouble]

    def _settle_directory(self, path: str, mode: int | None, model: str, *, made: bool) -> str | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None  # a link, no directory, gone again: whoever uses it will say so
        try:
            return self.settle(fd, mode, model, made=made)
        finally:
            os.close(fd)

    def _owner_of(self, status: os.stat_result, model: str, *, made: bool) -> tuple[int, int]:
        as_it_is = (status.st_uid, status.st_gid)
        if os.geteuid() != 0:
            uid, gid = self.owner if self.owner is not None and made else as_it_is
        elif status.st_uid != 0 or (status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)):
            return as_it_is
        elif self.owner is not None:
            uid, gid = self.owner
        else:
            beside = os.lstat(model)
            uid, gid = beside.st_uid, beside.st_gid
        return uid, status.st_gid if gid == LEAVE else gid

    def _give(self, fd: int, owner: tuple[int, int], status: os.stat_result) -> str | None:
        try:
            os.fchown(fd, *owner)
            return None
        except OSError as error:
            reason = error
        try:
            os.fchown(fd, -1, owner[1])  # the group alone: a member may
        except OSError:
            pass
        if self.owner is None:
            return None  # nobody asked for it
        mine, theirs = (status.st_uid, os.fstat(fd).st_gid), owner
        return (
            f"what this process makes belongs to {show_user(mine[0])}, {show_group(mine[1])}, and not to "
            f"{show_user(theirs[0])}, {show_group(theirs[1])}, as owner= says: {reason} (only root can give files away)"
        )


def create_settled(path: str, flags: int, mode: int, settle: Settle | None, scratch: str) -> int:
    """Create a file that has its owner and mode as soon as others see its name; returns the descriptor.

    Root, killed between making a file and giving it away, would leave one that its workers cannot use.

    Args:
        path: The file.
        flags: How to open it, such as ``os.O_RDWR``.
        mode: Its permissions.
        settle: Gives it owner and mode.
        scratch: A directory on the same file system, for a file without its name yet.

    Raises:
        FileExistsError: Somebody was quicker.
        OSError: As ``os.open``.
    """
    if settle is None or os.geteuid() != 0:
        return _created(path, flags, mode, settle)
    unfinished = f"{scratch}/{os.urandom(4).hex()}.new"
    fd = _created(unfinished, flags, mode, settle)
    try:
        # A link and not a rename: that would take the place of what somebody else has put there meanwhile.
        os.link(unfinished, path, follow_symlinks=False)
        return open_regular(path, flags)  # again, for a descriptor is known by the name it was opened with
    except OSError as error:
        if error.errno not in {EPERM, ENOTSUP, EMLINK}:
            raise
        return _created(path, flags, mode, settle)  # a file system without links
    finally:
        os.close(fd)
        try:
            os.unlink(unfinished)
        except FileNotFoundError:
            pass  # somebody took it for a leftover


def remove_leftovers(scratch: str) -> None:
    """Remove the second names that root left in ``scratch``, killed in `create_settled`. Raises nothing.

    Such a name would keep the space of a segment taken long after that has expired. A file that has no other name yet
    may be somebody's who is just creating it; it is empty.
    """
    try:
        for name in os.listdir(scratch):
            path = f"{scratch}/{name}"
            if name.endswith(".new") and stat.S_ISREG((status := os.lstat(path)).st_mode) and status.st_nlink > 1:
                os.unlink(path)
    except OSError:
        pass  # gone meanwhile, or not ours to remove: the next one tries again


def _created(path: str, flags: int, mode: int, settle: Settle | None) -> int:
    fd = open_regular(path, flags | os.O_CREAT | os.O_EXCL, mode)
    if settle is not None:
        settle(fd, True)
    return fd

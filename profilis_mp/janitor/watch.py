"""When has something happened in the log directory?

watchdog's observer says so, within a second: inotify where it can be had, else by polling, said once, and inotify is
tried again later. Whoever is told also looks by itself now and then, since events get lost: so nothing here raises.

An observer has threads and descriptors, and a fork gives the child the latter without the former: the child closes
them (:meth:`Watch.abandon`). watchdog makes its inotify descriptor without close-on-exec; that is set here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from profilis_mp import diagnostics
from profilis_mp.janitor import held

__all__ = ["Watch"]

_POLL_S = 1.0
_RETRY_S = 600.0
_EVENTS_THREADS_S = 1.0


class Watch:
    """Watches one directory, not what lies below it. For one thread.

    Args:
        directory: The directory.
        wanted: Whether a file of that name is of interest.
        wake: Called, from some other thread, when such a file came or went.

    Attributes:
        kind: "inotify", "polling", or None while it is not watched.
    """

    def __init__(self, directory: str, wanted: Callable[[str], bool], wake: Callable[[], None]) -> None:
        self.kind: str | None = None
        self._directory = directory
        self._wanted = wanted
        self._wake = wake
        self._observer: Any = None
        self._descriptors: list[int] = []
        self._identity: tuple[int, int] | None = None
        self._retry_at = 0.0

    def ensure(self) -> None:
        """Have an observer that lives and watches the directory of that name, not one that was moved away."""
        identity = self._identity_of_directory()
        alive = self._observer is not None and self._observer.is_alive()
        retry = self.kind == "polling" and time.monotonic() >= self._retry_at
        if alive and identity == self._identity and not retry:
            return
        self.close()
        if identity is None:
            return
        self._identity = identity
        from watchdog.observers import Observer
        from watchdog.observers.polling import PollingObserver

        try:
            self._start(Observer, _EVENTS_THREADS_S)
            self.kind = "inotify"
        except Exception as error:  # OSError when inotify is exhausted; and watchdog's own
            self._give_up()
            self._retry_at = time.monotonic() + _RETRY_S
            diagnostics.warn("watch", f"{self._directory} is polled, because it cannot be watched for now: {error}")
            try:
                self._start(PollingObserver, _POLL_S)
                self.kind = "polling"
            except Exception as failure:
                self._give_up()
                diagnostics.warn("poll", f"{self._directory} is looked at once a minute: {failure}")

    def close(self) -> None:
        """End the observer's threads, which close its descriptors; waits for nothing."""
        observer, self._observer = self._observer, None
        self.kind = None
        self._descriptors = []
        if observer is not None:
            try:
                observer.stop()
            except Exception as error:
                diagnostics.debug("the observer of %s: %r", self._directory, error)

    def abandon(self) -> None:
        """In a forked child: close what was inherited; the threads are the parent's."""
        for fd in self._descriptors:
            try:
                os.close(fd)
            except OSError:
                pass
        self._descriptors = []
        self._observer = None
        self.kind = None

    def _start(self, kind: Callable[..., Any], timeout_s: float) -> None:
        from watchdog.events import FileCreatedEvent, FileDeletedEvent, FileMovedEvent, FileSystemEventHandler

        wanted, wake = self._wanted, self._wake

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: Any) -> None:
                for path in (event.src_path, event.dest_path):
                    if path and wanted(os.path.basename(os.fsdecode(path))):
                        wake()

        with held.between_forks():
            self._observer = observer = kind(timeout=timeout_s)
            self._descriptors = _descriptors_of(observer)
        for fd in self._descriptors:
            os.set_inheritable(fd, False)
        # Only these: every flush would be an event otherwise.
        kinds = [FileCreatedEvent, FileDeletedEvent, FileMovedEvent]
        # watchdog does not follow a symbolic link: it would watch the link itself, to which nothing ever happens.
        observer.schedule(Handler(), os.path.realpath(self._directory), recursive=False, event_filter=kinds)
        observer.start()

    def _give_up(self) -> None:
        """After a start that failed halfway: end what there is, and close what no thread will."""
        observer, descriptors = self._observer, self._descriptors
        reads = getattr(getattr(observer, "_inotify_fd", None), "is_alive", lambda: False)()
        self.close()
        if not reads:
            self._descriptors = descriptors
            self.abandon()

    def _identity_of_directory(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._directory)
        except OSError:
            return None
        return status.st_dev, status.st_ino


def _descriptors_of(observer: Any) -> list[int]:
    """What an InotifyObserver has open. watchdog has no name for it that is public."""
    inotify = getattr(observer, "_inotify_fd", None)
    numbers = [getattr(inotify, name, None) for name in ("_inotify_fd", "_kill_r", "_kill_w")]
    return [number for number in numbers if isinstance(number, int)]

"""Who else writes lines from many processes, set up as its own documentation says?

All get the same events, built by the caller in the same loop, and where they rotate, they do so at the same size. A
peer that takes text gets ``orjson.dumps(event).decode()``, the cheapest text there is.

Each is made in the parent, before its workers are forked: queues have to be. ``writer()`` is called in a worker and
returns what takes an event, and what to call at the end; ``finish()`` is called in the parent when all have ended.
`played` runs all of that in a process of its own, that can be killed when a peer hangs.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import logging.handlers
import os
import pickle
import select
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import orjson

from profilis_mp import AsyncCollector, JSONLExporter

__all__ = [
    "OURS",
    "PEERS",
    "Appended",
    "Buffered",
    "Collector",
    "ConcurrentLogHandler",
    "Exporter",
    "Nothing",
    "Peer",
    "available",
    "lines_in",
    "numbers_in",
    "played",
]

Writer = tuple[Callable[[dict[str, Any]], object], Callable[[], object]]
_KEPT = 10_000  # rotated files: none may go, all lines are counted


class Peer:
    """One way to write events.

    Attributes:
        name: As tables have it.
        share: How many of the events a fast writer gets; the slow ones need not take all day.
        bound: Whether it is no peer but a limit: no lock, no rotation, a file per process or torn files.
    """

    name = ""
    share = 1.0
    bound = False

    def __init__(self, directory: str, rotate_bytes: int = 10 * 1024 * 1024) -> None:
        self.directory = directory
        self.rotate_bytes = rotate_bytes
        self.path = f"{directory}/events.jsonl"

    def writer(self) -> Writer:
        raise NotImplementedError

    def run(self, ready: Callable[[], None], events: int) -> None:
        """In a worker: open everything, and then write that many events as fast as may be."""
        log, close = self.writer()
        log({})  # opens what is opened with the first event
        now = time.time_ns
        ready()
        for number in range(events):
            log(
                {
                    "ts_ns": now(),
                    "trace_id": "trace-abc123",
                    "span_id": "span-def456",
                    "kind": "REQ",
                    "route": "/api/users",
                    "status": 200,
                    "dur_ns": 15_000_000 + number,
                }
            )
        close()

    def finish(self) -> None:
        """Wait until everything that the workers handed over is on disk."""


class Nothing(Peer):
    """Throws the event away: what the caller's own loop, clock or hooks cost."""

    name = "nothing"
    bound = True

    def writer(self) -> Writer:
        return lambda event: None, int


class Buffered(Peer):
    """The 64 KiB bound: orjson.dumps, and one os.write per 64 KiB to a file of the process's own."""

    name = "orjson + write per 64 KiB"
    bound = True

    def writer(self) -> Writer:
        fd = os.open(f"{self.path}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        buffer, dumps, option, write = bytearray(), orjson.dumps, orjson.OPT_APPEND_NEWLINE, os.write

        def log(event: dict[str, Any]) -> None:
            nonlocal buffer
            buffer += dumps(event, None, option)
            if len(buffer) >= 65536:
                write(fd, buffer)
                buffer.clear()

        return log, lambda: write(fd, buffer)

    def run(self, ready: Callable[[], None], events: int) -> None:
        # All in one loop, without a function to call: there is nothing below this.
        fd = os.open(f"{self.path}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        dumps, option, now = orjson.dumps, orjson.OPT_APPEND_NEWLINE, time.time_ns
        buffer = bytearray(dumps({}, None, option))
        ready()
        for number in range(events):
            buffer += dumps(
                {
                    "ts_ns": now(),
                    "trace_id": "trace-abc123",
                    "span_id": "span-def456",
                    "kind": "REQ",
                    "route": "/api/users",
                    "status": 200,
                    "dur_ns": 15_000_000 + number,
                },
                None,
                option,
            )
            if len(buffer) >= 65536:
                os.write(fd, buffer)
                buffer.clear()
        os.write(fd, buffer)
        os.close(fd)


class Appended(Peer):
    """The other bound: one os.write per event to one O_APPEND file."""

    name = "orjson + O_APPEND write"
    share = 0.09
    bound = True

    def writer(self) -> Writer:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        dumps, option, write = orjson.dumps, orjson.OPT_APPEND_NEWLINE, os.write
        return lambda event: write(fd, dumps(event, None, option)), int


class Exporter(Peer):
    """This package: JSONLExporter.emit."""

    name = "profilis_mp emit"

    def writer(self) -> Writer:
        exporter = JSONLExporter(self.directory, rotate_bytes=self.rotate_bytes)
        return exporter.emit, exporter.close


class Collector(Peer):
    """This package: AsyncCollector.enqueue."""

    name = "profilis_mp enqueue"

    def writer(self) -> Writer:
        collector = AsyncCollector(JSONLExporter(self.directory, rotate_bytes=self.rotate_bytes))
        return collector.enqueue, collector.close


def _logging_to(handler: logging.Handler) -> Callable[[dict[str, Any]], object]:
    logger = logging.Logger("events", logging.INFO)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    dumps = orjson.dumps
    return lambda event: logger.info(dumps(event).decode())


class ConcurrentLogHandler(Peer):
    """concurrent-log-handler, made in each process as its README asks for."""

    name = "concurrent-log-handler"
    share = 0.006
    gzip = False

    def writer(self) -> Writer:
        from concurrent_log_handler import ConcurrentRotatingFileHandler

        handler = ConcurrentRotatingFileHandler(
            self.path, "a", maxBytes=self.rotate_bytes, backupCount=_KEPT, use_gzip=self.gzip
        )
        return _logging_to(handler), handler.close


class ConcurrentLogHandlerGzip(ConcurrentLogHandler):
    """The same with use_gzip=True."""

    name = "concurrent-log-handler, gzip"
    gzip = True


class Loguru(Peer):
    """loguru with enqueue=True, added before the fork and inherited; workers call complete() at their end."""

    name = "loguru, enqueue=True"
    share = 0.003

    def __init__(self, directory: str, rotate_bytes: int = 10 * 1024 * 1024) -> None:
        super().__init__(directory, rotate_bytes)
        from loguru import logger

        logger.remove()
        logger.add(self.path, format="{message}", rotation=rotate_bytes, enqueue=True)

    def writer(self) -> Writer:
        from loguru import logger

        dumps = orjson.dumps
        return lambda event: logger.info(dumps(event).decode()), logger.complete

    def finish(self) -> None:
        from loguru import logger

        logger.remove()  # waits for its thread


class StdlibQueue(Peer):
    """logging.handlers.QueueHandler into a multiprocessing.Queue, a QueueListener in the parent."""

    name = "stdlib queue + listener"
    share = 0.006

    def __init__(self, directory: str, rotate_bytes: int = 10 * 1024 * 1024) -> None:
        super().__init__(directory, rotate_bytes)
        import multiprocessing

        self._queue: Any = multiprocessing.get_context("fork").Queue(-1)
        handler = logging.handlers.RotatingFileHandler(self.path, maxBytes=rotate_bytes, backupCount=_KEPT)
        handler.setFormatter(logging.Formatter("%(message)s"))
        self._listener = logging.handlers.QueueListener(self._queue, handler)
        self._listener.start()

    def writer(self) -> Writer:
        def close() -> None:
            self._queue.close()
            self._queue.join_thread()

        return _logging_to(logging.handlers.QueueHandler(self._queue)), close

    def finish(self) -> None:
        self._listener.stop()


class StdlibRotating(Peer):
    """logging.handlers.RotatingFileHandler in every process, which its documentation warns of and many do."""

    name = "stdlib RotatingFileHandler"
    share = 0.018

    def writer(self) -> Writer:
        handler = logging.handlers.RotatingFileHandler(self.path, maxBytes=self.rotate_bytes, backupCount=50)
        return _logging_to(handler), handler.close


class Profilis(Peer):
    """profilis: its AsyncCollector on its JSONLExporter, with their defaults, one directory for all processes."""

    name = "profilis collector"
    share = 0.06

    def writer(self) -> Writer:
        from profilis.core.async_collector import AsyncCollector as TheirCollector
        from profilis.exporters.jsonl import JSONLExporter as TheirExporter

        exporter = TheirExporter(self.directory, rotate_bytes=self.rotate_bytes)
        collector: Any = TheirCollector(exporter)

        def close() -> None:
            collector.close()
            exporter.close()

        return collector.enqueue, close


Played = TypeVar("Played")


def played(host: Callable[[], Played], timeout_s: float = 120.0) -> Played:
    """What ``host`` returns, run in a process group of its own: whatever a peer leaves running ends with it.

    Raises:
        RuntimeError: It failed, or took longer than that.
    """
    receiving, sending = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.setpgid(0, 0)
            os.close(receiving)
            with os.fdopen(sending, "wb") as pipe:
                pickle.dump(host(), pipe)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        there, _, _ = select.select([pipe], [], [], timeout_s)
        try:
            answer: Played = pickle.load(pipe) if there else None
        except EOFError:
            there = []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if not there:
        raise RuntimeError(f"failed, or took more than {timeout_s:.0f} s")
    return answer


OURS: tuple[type[Peer], ...] = (Exporter, Collector)
PEERS: tuple[type[Peer], ...] = (
    ConcurrentLogHandler, ConcurrentLogHandlerGzip, Loguru, StdlibQueue, StdlibRotating, Profilis,
)  # fmt: skip
_NEEDS = {ConcurrentLogHandler: "concurrent_log_handler", ConcurrentLogHandlerGzip: "concurrent_log_handler"}
_NEEDS |= {Loguru: "loguru", Profilis: "profilis"}


def available(peer: type[Peer]) -> bool:
    """Whether it is installed."""
    import importlib.util

    return peer not in _NEEDS or importlib.util.find_spec(_NEEDS[peer]) is not None


def lines_in(directory: str) -> Iterator[bytes]:
    """Every line of every file that is about events, plain or compressed."""
    for path in sorted(Path(directory).iterdir()):
        if not path.is_file() or path.name.startswith(".") or path.suffix == ".lock":
            continue
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            yield from file


def numbers_in(directory: str) -> tuple[Counter[tuple[int, int]], int]:
    """How often each event is there, by its worker and its number, and how many lines are torn."""
    found: Counter[tuple[int, int]] = Counter()
    torn = 0
    for line in lines_in(directory):
        try:
            one = orjson.loads(line)
            found[one["worker"], one["seq"]] += 1
        except (orjson.JSONDecodeError, KeyError, TypeError):
            torn += 1
    return found, torn


warnings.filterwarnings("ignore", category=DeprecationWarning)  # forks of processes with threads

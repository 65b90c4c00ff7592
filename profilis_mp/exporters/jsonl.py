"""How do events get from a program into the shared log?  One line of JSON each.

``emit`` costs a dict encode plus a memory copy and is crash-safe when it returns, so collectors call it inline.
A subclass that overrides ``emit``, ``export`` or ``_write_line`` may do work that waits; collectors give it a queue.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Self

import orjson

from profilis_mp.core.encoding import FLAGS, SUSPECT, EventEncoder
from profilis_mp.janitor.upkeep import Upkeep
from profilis_mp.sharedlog.fastpath import Door, Encoding
from profilis_mp.sharedlog.settings import Fsync, OnFull
from profilis_mp.sharedlog.users import Owner
from profilis_mp.sharedlog.writer import Segment, SharedWriter, WriterStats

__all__ = ["ExporterStats", "JSONLExporter"]


class ExporterStats(WriterStats):
    """As :class:`~profilis_mp.sharedlog.writer.WriterStats`, and about events.

    Keys:
        altered: Events of which something could not be written as it was; each says what under ``_altered``.
    """

    altered: int


class JSONLExporter:
    """Writes events as JSON lines into a log directory that any number of processes share.

        >>> import tempfile
        >>> exporter = JSONLExporter(dir=tempfile.mkdtemp(), rotate_bytes=1024*1024)
        >>> exporter.emit({"kind": "FN", "fn": "work", "dur_ns": 1200})
        >>> exporter.flush()
        True
        >>> from pathlib import Path
        >>> Path(exporter.current_path).read_text()
        '{"kind":"FN","fn":"work","dur_ns":1200}\\n'
        >>> exporter.close()
        True

    An exporter may be shared by threads, used on in forked children, and pickled for spawned ones (it travels as its
    configuration). It never raises into the application because of the disk, the lock or an odd event.

    Args:
        dir: The log directory; created with the first event.
        compress_old_files, compression, compression_level, compress_delay_secs, max_files, max_age_secs,
            max_total_bytes: What becomes of sealed segments; as for :class:`~profilis_mp.Upkeep`.
        rotate_bytes, rotate_secs, filename_template, app_name, local_time, buffer_size, flush_interval, spool_bytes,
            lock_timeout, on_full, fsync, file_mode, dir_mode, owner, janitor, clock: As for
            :class:`~profilis_mp.SharedWriter`.

    Attributes:
        dir: The log directory, absolute.
        rotate_bytes: As given.
        rotate_secs: As given.
        emit: Append one event. An attribute and not only a method: where nothing is overridden it is the session's own
            append, so that no call lies between.
        never_waits: Whether ``emit`` costs no more than an encode and a copy, so that a collector may call it inline.

    Raises:
        ConfigError: Naming the argument that was refused.
        LogDirectoryError: The directory cannot be created or written, or is on a network file system.
    """

    emit: Callable[[Any], None]

    def __init__(
        self,
        dir: str | os.PathLike[str] = "./logs",
        *,
        rotate_bytes: int = 10 * 1024 * 1024,
        rotate_secs: float = 3600,
        filename_template: str = "profilis-{timestamp}.jsonl",
        app_name: str = "profilis",
        local_time: bool = False,
        compress_old_files: bool = False,
        compression: Literal["gzip", "zstd"] = "gzip",
        compression_level: int | None = None,
        compress_delay_secs: float = 120.0,
        max_files: int | None = None,
        max_age_secs: float | None = None,
        max_total_bytes: int | None = None,
        buffer_size: int = 64 * 1024,
        flush_interval: float = 0.5,
        spool_bytes: int | None = None,
        lock_timeout: float = 1.0,
        on_full: OnFull = "drop",
        fsync: Fsync = "never",
        file_mode: int = 0o640,
        dir_mode: int | None = None,
        owner: Owner = None,
        janitor: bool | Literal["external"] = True,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        writer_arguments: dict[str, Any] = {
            "rotate_bytes": rotate_bytes,
            "rotate_secs": rotate_secs,
            "filename_template": filename_template,
            "app_name": app_name,
            "local_time": local_time,
            "buffer_size": buffer_size,
            "flush_interval": flush_interval,
            "spool_bytes": spool_bytes,
            "lock_timeout": lock_timeout,
            "on_full": on_full,
            "fsync": fsync,
            "file_mode": file_mode,
            "dir_mode": dir_mode,
            "owner": owner,
            "janitor": janitor,
            "clock": clock,
        }
        upkeep: dict[str, Any] = {
            "compress_old_files": compress_old_files,
            "compression": compression,
            "compression_level": compression_level,
            "compress_delay_secs": compress_delay_secs,
            "max_files": max_files,
            "max_age_secs": max_age_secs,
            "max_total_bytes": max_total_bytes,
        }
        self._arguments: dict[str, Any] = {"dir": dir, **writer_arguments, **upkeep}
        self._own_attributes: frozenset[str] = frozenset()
        self._encoder = EventEncoder()
        self._writer = SharedWriter(dir, upkeep=Upkeep(**upkeep), **writer_arguments)
        self._current_file = CurrentFile(self._writer)
        self.dir = self._arguments["dir"] = self._writer.dir
        self.rotate_bytes = rotate_bytes
        self.rotate_secs = rotate_secs
        kind = type(self)
        self._writes_lines = kind._write_line is not JSONLExporter._write_line
        self._emits = kind.emit is not JSONLExporter.emit
        self.never_waits = not (self._writes_lines or self._emits or kind.export is not JSONLExporter.export)
        self._writer.encode_with(Encoding(orjson.dumps, FLAGS, SUSPECT, self._encoder.mend))
        self._append = self._writer.door(self.append_line).append
        if self.never_waits:
            self.emit = self._append
        self._own_attributes = frozenset(vars(self))

    def emit(self, event: Any) -> None:  # type: ignore[no-redef]  # the attribute above shadows it when it can
        """Append one event; it is crash-safe when this returns. Never raises an Exception.

        Args:
            event: A dict; any other object is written too. What cannot be written as it is, is altered
                visibly (``_altered`` in the record) and counted.
        """
        if self._writes_lines:
            self._write_line(self._encoder.encode(event).decode())
        else:
            self._append(event)

    def door(self, otherwise: Callable[[bytes], None]) -> Door | None:
        """Return another way in, as cheap as ``emit``, that counts for itself; for a collector.

        Args:
            otherwise: Gets each line that cannot go the fast way; it is expected to hand it to `append_line`.

        Returns:
            None where ``emit`` is not the exporter's own, which a door would pass by.
        """
        return self._writer.door(otherwise) if self.never_waits and self.emit is self._append else None

    def append_line(self, line: bytes) -> None:
        """Append one encoded line with all the care that a door leaves out."""
        self._writer.append_record(line)

    def export(self, events: Iterable[Any]) -> None:
        """Append several events, in order."""
        for event in events:
            self.emit(event)

    def __call__(self, events: Iterable[Any]) -> None:
        """The same: the exporter is a sink for any collector that calls one with a batch."""
        self.export(events)

    def _write_line(self, line: str) -> None:
        """Append one line as it is; a missing newline is added. Override it to write something else instead."""
        record = line.encode("utf-8", "backslashreplace")
        self._writer.write(record if record.endswith(b"\n") else record + b"\n")

    def prepare(self, owner: Owner = None) -> None:
        """Make the directories now; as :meth:`profilis_mp.SharedWriter.prepare`."""
        self._writer.prepare(owner)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Bring everything this process has emitted into its segment; returns whether it is all there.

        Args:
            timeout_s: Longest wait for the directory lock, seconds; None is ``lock_timeout``.
        """
        return self._writer.flush(timeout_s)

    def rotate(self, *, timeout_s: float = 5.0) -> Segment | None:
        """Flush, then seal the active segment; as :meth:`profilis_mp.SharedWriter.rotate`."""
        return self._writer.rotate(timeout_s=timeout_s)

    def close(self, timeout_s: float | None = None) -> bool:
        """Flush and close; as :meth:`profilis_mp.SharedWriter.close`. Runs at exit by itself."""
        return self._writer.close(timeout_s)

    @classmethod
    def from_env(cls, *, environ: Mapping[str, str] | None = None, prefix: str = "PROFILIS_", **overrides: Any) -> Self:
        """Make an exporter as the environment says: ``PROFILIS_DIR``, ``PROFILIS_ROTATE_BYTES=10MB`` …

        Args:
            environ, prefix: The variables (None: ``os.environ``), and what the names of those meant begin with.
            overrides: Arguments of the constructor that count for more than the environment.

        Raises:
            ConfigError: Naming the variable: one with the prefix that stands for no option, or whose value was refused.
        """
        from profilis_mp.exporters.environment import built_from  # its imports are not for those who need none of it

        return built_from(cls, os.environ if environ is None else environ, prefix, overrides)

    def __enter__(self) -> JSONLExporter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def stats(self) -> ExporterStats:
        """What happened in this process since it started, or was forked; see :class:`ExporterStats`."""
        return {**self._writer.stats(), "altered": self._encoder.altered}

    @property
    def current_path(self) -> str | None:
        """The active segment's path; None while there is none."""
        return self._writer.current_path

    def _get_current_file_path(self) -> str:
        """The active segment's path, or the one that the next segment would get now."""
        return self._writer.current_path or self._writer.next_path()

    def __getstate__(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name not in self._own_attributes}
        own.pop("emit", None)
        return {"arguments": self._arguments, "own": own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        JSONLExporter.__init__(self, **state["arguments"])
        vars(self).update(state["own"])


class CurrentFile:
    """What a subclass of the exporter writes its own bytes to: the active segment, whichever that is by then."""

    def __init__(self, writer: SharedWriter) -> None:
        self._writer = writer

    @property
    def name(self) -> str | None:
        """The active segment's path; None while there is none."""
        return self._writer.current_path

    def write(self, data: bytes) -> int:
        """Append ``data`` whole, never split over two segments; returns its length."""
        self._writer.write(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Bring what was written into its segment."""
        self._writer.flush()

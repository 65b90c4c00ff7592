"""How do log records get into the shared log?

A record is where it belongs when the log call returns: nothing that happens to its process afterwards can cost it.

There is no lock here. `logging` guards ``emit`` with one lock per handler; where a server forks without Python's hooks
(uWSGI) while a thread logs, every log call of the child would wait for it for ever. The exporter needs none.
"""

from __future__ import annotations

import logging
import os
import sys
from itertools import count
from typing import Any, Literal

from profilis_mp.core.context import current_span
from profilis_mp.core.scalars import scalar
from profilis_mp.core.tally import steps
from profilis_mp.errors import ConfigError
from profilis_mp.exporters.jsonl import ExporterStats, JSONLExporter
from profilis_mp.interrupts import was_thrown_in
from profilis_mp.logging.arguments import exporter_arguments
from profilis_mp.logging.fields import text_of
from profilis_mp.logging.records import event_of

__all__ = ["HandlerStats", "JSONLHandler", "SpanFilter"]

_OWN_LOGGER = "profilis_mp"
_DEFAULT_FORMATTER = logging.Formatter()


class HandlerStats(ExporterStats):
    """As :class:`~profilis_mp.exporters.jsonl.ExporterStats`, and about records.

    Keys:
        failed: Records that are not in the log because the stack was used up.
    """

    failed: int


class JSONLHandler(logging.Handler):
    """Writes log records into a log directory that any number of processes share.

        >>> import logging, tempfile
        >>> handler = JSONLHandler(f"{tempfile.mkdtemp()}/shop.log", maxBytes=10_000_000, backupCount=5)
        >>> logger = logging.getLogger("shop")
        >>> logger.addHandler(handler)
        >>> logger.warning("low on %s", "tea", extra={"left": 3})
        >>> handler.flush()
        >>> from pathlib import Path
        >>> import json
        >>> event = json.loads(Path(handler.exporter.current_path).read_text())
        >>> event["level"], event["logger"], event["message"], event["left"]
        ('WARNING', 'shop', 'low on tea', 3)
        >>> logger.removeHandler(handler)
        >>> handler.close()

    Takes the arguments of `RotatingFileHandler` and of `ConcurrentRotatingFileHandler`; what each means here, and which
    are refused, is in `profilis_mp.logging.arguments`. Values may be text, as in a YAML file: ``"10MB"``, ``"0640"``.

    The library's own warnings (logger ``profilis_mp``) do not go into the log that they may be about: other handlers
    show them, and where there is none, standard error.

    Args:
        filename, mode, maxBytes, backupCount, encoding, delay, errors: As for `RotatingFileHandler`.
        format: "json": one LOG event per record, see `profilis_mp.logging.fields`. "text": what the handler's
            `Formatter` makes of it; a record of several lines is written in one piece, and nothing comes between them.
        exporter: Write into this one, together with whatever else does, instead of an own one. It is not closed here.
        options: Any option of `JSONLExporter`, such as ``dir``, ``rotate_secs``, ``fsync``, ``compress_old_files``.

    Attributes:
        exporter: The `JSONLExporter` that is written to.

    Raises:
        ConfigError: Naming the argument that was refused.
        LogDirectoryError: The directory cannot be created or written, or is on a network file system.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str] | None = None,
        mode: str = "a",
        maxBytes: int | str | None = None,  # noqa: N803  # as the standard library has it
        backupCount: int | str | None = None,  # noqa: N803
        encoding: str | None = None,
        delay: bool | str | None = False,
        errors: str | None = None,
        *,
        format: Literal["json", "text"] = "json",
        exporter: JSONLExporter | None = None,
        **options: Any,
    ) -> None:
        if format not in ("json", "text"):
            raise ConfigError("format", f"{format!r} is none of json, text")
        given = {"filename": filename, "maxBytes": maxBytes, "backupCount": backupCount}
        given = {name: value for name, value in given.items() if value is not None} | options
        owns, text = exporter is None, format == "text"
        if exporter is None:
            more = {"mode": mode, "encoding": encoding, "delay": delay, "errors": errors}
            exporter = _exporter(given | more, text=text)
        elif not isinstance(exporter, JSONLExporter):
            raise ConfigError("exporter", f"a {type(exporter).__name__} is no JSONLExporter")
        elif given:
            raise ConfigError(next(iter(given)), "is the exporter's business, and exporter= is given")
        # Only now: `logging` closes at exit what got so far, and a handler that was refused has nothing to close.
        super().__init__()
        self._text = text
        self._owns = owns
        self._failed = count()
        self.exporter = exporter

    def handle(self, record: logging.LogRecord) -> Any:
        """Write a record unless a filter stops it; as `logging.Handler.handle`, without a lock."""
        passed: Any = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; it is crash-safe when this returns. Never raises an Exception of its own."""
        try:
            if record.name.startswith(_OWN_LOGGER) and record.name[len(_OWN_LOGGER) :][:1] in ("", "."):
                _show_elsewhere(record)
            elif self._text:
                self.exporter._write_line(self._formatted(record))
            else:
                self.exporter.emit(event_of(record, self.formatter or _DEFAULT_FORMATTER, self._complain))
        except RecursionError:
            next(self._failed)  # no stack is left to say it with, and the application is about to notice by itself
        except Exception as error:
            if was_thrown_in(error):
                raise
            self._complain(record)

    def flush(self) -> None:
        """Bring what this process has logged into its segment. Nothing depends on it: a leader does that, too."""
        self.exporter.flush()

    def close(self) -> None:
        """Flush, and close the handler's own exporter. A record that comes later is still written."""
        try:
            if self._owns:
                self.exporter.close()
            else:
                self.exporter.flush()
        finally:
            super().close()

    def doRollover(self) -> None:  # noqa: N802  # as the standard library has it
        """Seal the active segment now, for all processes; as :meth:`profilis_mp.SharedWriter.rotate`."""
        self.exporter.rotate()

    def stats(self) -> HandlerStats:
        """What happened in this process; see :class:`HandlerStats`."""
        return {**self.exporter.stats(), "failed": steps(self._failed)}

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("namer", "rotator"):  # otherwise forgotten, as attributes that nobody reads are
            raise ConfigError(name, "cannot be kept: nothing is renamed here; filename_template= names the segments")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.exporter.dir} ({logging.getLevelName(self.level)})>"

    def _formatted(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        except Exception as error:
            if was_thrown_in(error):
                raise
            self._complain(record)
            return f"{record.levelname}:{record.name}:{text_of(record.msg)} {scalar(record.args)[0]}"

    def _complain(self, record: logging.LogRecord) -> None:
        """Tell of a record that could not be formatted, as `logging.raiseExceptions` says."""
        try:
            self.handleError(record)
        except ValueError:  # standard error is closed
            pass


class SpanFilter(logging.Filter):
    """Notes the current span's ids in each record, for a handler that sees it in another thread or process.

    ``JSONLHandler`` itself needs none. A `QueueHandler` before it does: ``queue_handler.addFilter(SpanFilter())``. With
    it a `Formatter` can show ``%(trace_id)s``, if it has ``defaults={"trace_id": "-"}`` for records outside of a span.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add ``trace_id`` and ``span_id``, where there is a span and they are not there yet; let all pass."""
        span = current_span()
        if span is not None and not hasattr(record, "trace_id"):
            record.trace_id = span.trace_id
            record.span_id = span.span_id
        return True


def _exporter(given: dict[str, Any], *, text: bool) -> JSONLExporter:
    arguments, called = exporter_arguments(JSONLExporter, given, text=text)
    try:
        return JSONLExporter(**arguments)
    except ConfigError as error:
        raise ConfigError(called.get(error.argument, error.argument), error.reason) from None


def _show_elsewhere(record: logging.LogRecord) -> None:
    """Show a warning of the library's own where no handler but those that write into logs like this one would."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    queue_handler = getattr(sys.modules.get("logging.handlers"), "QueueHandler", JSONLHandler)
    while logger is not None:
        for handler in logger.handlers:
            if not isinstance(handler, (JSONLHandler, logging.NullHandler, queue_handler)):
                return
        logger = logger.parent if logger.propagate else None
    if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
        logging.lastResort.handle(record)

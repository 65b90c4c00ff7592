"""What does one DB event say, and when is it made?

As soon as the database has answered, before the application has the result: a statement whose ``execute`` returned is
in the log even when its process is killed right after. So nothing is known yet of rows that are still to be fetched.

Keys, besides ``ts_ns``, ``trace_id`` and ``span_id`` (`profilis_mp.core.events`):

    query           the statement as `profilis_mp.dbapi.redaction` shows it; parameters are never recorded
    dur_ns          from handing the statement to the driver until that returned; fetching is not in it
    rows            how many rows were changed, or where the driver has the whole result already, returned; -1 where the
                    driver does not know: SQLite's SELECT, server-side cursors, statements that failed
    db_vendor       ``sqlite``, ``postgresql`` …
    executemany     only where one statement had several sets of parameters: how many
    exception_type  only where it failed: the class name of the driver's exception
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from profilis_mp.core.emitter import Emitter
from profilis_mp.core.scalars import scalar, type_name
from profilis_mp.dbapi.redaction import Redactor
from profilis_mp.diagnostics import warn
from profilis_mp.errors import ConfigError
from profilis_mp.interrupts import was_thrown_in

__all__ = ["Recorder", "contain"]

# Their drivers have the whole result when execute returns, so that 0 means none. Others say 0 and mean "none yet".
_HAVE_THE_RESULT = frozenset({"postgresql", "mysql", "mariadb", "cockroachdb", "redshift", "greenplum", "yugabytedb"})
_MOST_ROWS = 1 << 62  # MySQL's unbuffered cursors say 2**64 - 1 for "unknown"


class Recorder:
    """Makes the events of one engine's or connection's statements. Raises nothing of its own into the application.

    Args:
        emitter: An `Emitter`; also what has ``enqueue(event)`` or ``emit(event)``, a collector or an exporter.
        db_vendor: What stands in the events, and how statements are read.
        redact, max_len: As for `Redactor`.

    Raises:
        ConfigError: Naming the argument that was refused.
        ImportError: sqlglot is missing, with ``redact``.
    """

    def __init__(self, emitter: Any, db_vendor: str | None, *, redact: bool, max_len: int) -> None:
        if not callable(getattr(emitter, "emit_db", None)):
            try:
                emitter = Emitter(emitter)
            except ConfigError as error:
                raise ConfigError("emitter", error.reason) from None
        self._emit_db = emitter.emit_db
        self._vendor = db_vendor
        self._show = Redactor(db_vendor, redact=redact, max_len=max_len)

    def record(
        self,
        statement: Any,
        began_ns: int,
        cursor: Any,
        *,
        many: int | Callable[[], int] | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Make the event of one statement.

        Args:
            statement: What the driver was given: text, bytes, or an object of the driver's own.
            began_ns: ``perf_counter_ns`` before it was.
            cursor: Where the driver tells about the result; None if there is none.
            many: How many sets of parameters, or what tells; None is one, or not known.
            error: What the driver raised.
        """
        dur_ns = perf_counter_ns() - began_ns
        try:
            text = self._show(statement if type(statement) is str else _text(statement, cursor))
            if error is None and many is None:
                self._emit_db(text, dur_ns, self._rows(cursor), db_vendor=self._vendor)
                return
            extra: dict[str, Any] = {} if many is None else {"executemany": many() if callable(many) else many}
            if error is not None:
                extra["exception_type"] = type_name(error)
            rows = self._rows(cursor) if error is None else -1
            self._emit_db(text, dur_ns, rows, db_vendor=self._vendor, **extra)
        except Exception as failure:
            contain("a statement was not reported", failure)

    def _rows(self, cursor: Any) -> int:
        try:
            rows = cursor.rowcount
            if not isinstance(rows, int) or not 0 <= rows < _MOST_ROWS:
                return -1
            if rows == 0 and self._vendor not in _HAVE_THE_RESULT and cursor.description is not None:
                return -1
            return rows
        except Exception as error:
            if was_thrown_in(error):
                raise
            return -1  # a driver without rowcount, a cursor that is closed already


def _text(statement: Any, cursor: Any) -> str:
    if isinstance(statement, str):
        return str.__str__(statement)
    if isinstance(statement, bytes):
        return statement.decode("utf-8", "replace")
    as_string = getattr(statement, "as_string", None)  # psycopg's and psycopg2's sql.Composable
    if callable(as_string):
        return str(as_string(cursor))
    return f"<{type_name(statement)}>"


def contain(what: str, error: Exception) -> None:
    """Log what failed here; what a signal handler threw in is raised again, it is the application's."""
    if was_thrown_in(error):
        raise error
    warn(f"sql: {what}", f"profiling of SQL: {what}: {scalar(error)[0]}")

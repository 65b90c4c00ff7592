"""What of a statement may be written into a log?

Its shape: words, names, operators and parameters' places. Every literal becomes ``?``, comments go (they hold secrets
too), white space is one space. A statement that cannot be read with certainty is replaced as a whole.

    >>> redact = Redactor("sqlite")
    >>> redact("SELECT name FROM users WHERE email = 'ann@example.org' AND age > 42  -- for Bob")
    'SELECT name FROM users WHERE email = ? AND age > ?'
    >>> redact("SELECT 'never ends")
    '<unparsable SELECT>'

Which characters are a literal is `profilis_mp.dbapi.lexing`'s business.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from profilis_mp.errors import ConfigError
from profilis_mp.interrupts import was_thrown_in

__all__ = ["MAX_LEN", "Redactor", "redact_statement"]

MAX_LEN = 2_000
"""Characters of a statement that are written, unless told otherwise."""

_LONGEST = 20_000  # characters that are tokenized, at some 0.7 us each; beyond it a statement is not looked at
_MOST = 1_000  # statements remembered
_ROOM = 4_000_000  # characters remembered
_RUNS = re.compile(rb"(\x00+)|(\x01+)|(\x02+)")
_FIRST_WORD = re.compile(r"\s*([A-Za-z]+)\b")
# Only these are shown of a statement that is not understood; any other first word could be part of anything.
_VERBS = frozenset(
    {
        *(
            "ALTER",
            "ANALYZE",
            "ATTACH",
            "BEGIN",
            "CALL",
            "COMMIT",
            "COPY",
            "CREATE",
            "DECLARE",
            "DELETE",
            "DETACH",
            "DO",
        ),
        *(
            "DROP",
            "EXEC",
            "EXECUTE",
            "EXPLAIN",
            "FETCH",
            "GRANT",
            "INSERT",
            "LOAD",
            "LOCK",
            "MERGE",
            "NOTIFY",
            "PRAGMA",
        ),
        *("REPLACE", "REVOKE", "ROLLBACK", "SELECT", "SET", "SHOW", "TRUNCATE", "UPDATE", "UPSERT", "USE", "VACUUM"),
        *("VALUES", "WITH"),
    }
)


class Redactor:
    """Statement in, text for the log out; remembers, so that a statement seen before costs a look-up in a dict.

    Safe from any thread and across forks: two threads may do the same work twice, and nothing is locked.

    Args:
        db_vendor: SQLAlchemy's name of the dialect (``sqlite``, ``postgresql``, ``mysql``, ``mariadb``, ``oracle``,
            ``mssql`` …). None, or one that is not known here: the statement must make sense to all of these, and what
            is a literal to any of them is one.
        redact: False leaves literals and comments as they are, and needs no sqlglot.
        max_len: Longer text is cut and ends in ``…``; 0 never cuts.

    Raises:
        ConfigError: Naming the argument that was refused.
        ImportError: sqlglot is missing.
    """

    def __init__(self, db_vendor: str | None = None, *, redact: bool = True, max_len: int = MAX_LEN) -> None:
        if db_vendor is not None and not isinstance(db_vendor, str):
            raise ConfigError("db_vendor", f"{db_vendor!r} is no name")
        if not isinstance(redact, bool):
            raise ConfigError("redact", f"{redact!r} is neither True nor False")
        if isinstance(max_len, bool) or not isinstance(max_len, int) or max_len < 0:
            raise ConfigError("max_len", f"{max_len!r} is not a number of characters")
        self._max_len = max_len
        self._known: dict[str, str] = {}
        self._room = _ROOM
        self._show = _plain
        if redact:
            from profilis_mp.dbapi.lexing import spans  # now, and not at the first statement

            spans("SELECT 1", db_vendor)
            self._show = partial(_redacted, dialect=db_vendor)

    def __call__(self, statement: str) -> str:
        """Return what is written for a statement."""
        try:
            return self._known[statement]
        except KeyError:
            pass
        text = self._show(statement)
        if 0 < self._max_len < len(text):
            text = text[: self._max_len - 1] + "…"
        if len(statement) <= _LONGEST:
            # Started anew rather than pruned: nothing that another thread or a signal handler could get in between of.
            if len(self._known) >= _MOST or self._room < 0:
                self._known, self._room = {}, _ROOM
            self._room -= len(statement) + len(text)
            self._known[statement] = text
        return text


def redact_statement(sql: str, *, max_len: int = MAX_LEN, db_vendor: str | None = None) -> str:
    """Return what would be written for one statement; as `Redactor`, without memory.

    >>> redact_statement("INSERT INTO users (name, age) VALUES ('Alice', 42)")
    'INSERT INTO users (name, age) VALUES (?, ?)'
    """
    return Redactor(db_vendor, max_len=max_len)(sql)


def _plain(statement: str) -> str:
    return statement


def _redacted(statement: str, *, dialect: str | None) -> str:
    from profilis_mp.dbapi.lexing import spans

    if len(statement) > _LONGEST:
        return _replaced("long", statement, f", {len(statement)} characters")
    try:
        marks = spans(statement, dialect)
    except Exception as error:  # NotUnderstoodError, and whatever a tokenizer to come may stumble over
        if was_thrown_in(error):
            raise
        return _replaced("unparsable", statement)

    def piece(run: re.Match[Any]) -> str:
        return statement[run.start() : run.end()] if run[1] else " " if run[2] else "?"

    return " ".join("".join(map(piece, _RUNS.finditer(marks))).split())


def _replaced(why: str, statement: str, more: str = "") -> str:
    found = _FIRST_WORD.match(statement)
    verb = found[1].upper() if found else ""
    return f"<{why} {verb}{more}>" if verb in _VERBS else f"<{why} statement{more}>"

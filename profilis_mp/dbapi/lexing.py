"""Which characters of a statement are a literal, and how sure is that?

sqlglot's tokenizers answer, one for each way in which a server may read its SQL. How it does depends on settings that a
client does not see (``NO_BACKSLASH_ESCAPES``, ``ANSI_QUOTES``, ``standard_conforming_strings``), so a dialect has
several **readings**, and what is a literal in any of them is one. Where the database is unknown, all readings of all
dialects are asked, and all must succeed.

    >>> spans("SELECT 'it''s', 7 -- secret", "sqlite")
    bytearray(b'\\x00\\x00\\x00\\x00\\x00\\x00\\x01\\x02\\x02\\x02\\x02\\x02\\x02\\x02\\x00\\x01\\x02\\x01\\x01\\x01\\x01\\x01\\x01\\x01\\x01\\x01\\x01')
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from profilis_mp.interrupts import was_thrown_in

try:
    from sqlglot.errors import TokenError
    from sqlglot.tokenizer_core import Token, TokenType
except ImportError as error:
    raise ImportError('Redacting SQL needs sqlglot: pip install "profilis_mp[dbapi]" or "[sqlalchemy]"') from error

__all__ = ["GAP", "KEPT", "LITERAL", "NotUnderstoodError", "spans"]

KEPT, GAP, LITERAL = 0, 1, 2
"""What a character belongs to; of two readings' answers the higher one counts. A gap is space and comments."""

_LITERALS = frozenset(kind for kind in TokenType if kind.name.endswith("STRING") or kind is TokenType.NUMBER)
_NUMBERS = frozenset({TokenType.NUMBER, TokenType.HEX_STRING, TokenType.BIT_STRING})
_MAY_TOUCH_A_STRING = frozenset({"DATE", "TIME", "TIMESTAMP", "INTERVAL"})
_NAMES_FOLLOW = frozenset({"FROM", "JOIN", "INTO", "UPDATE", "TABLE", "AS"})


class NotUnderstoodError(Exception):
    """A statement that cannot be read with certainty; nothing of it may be shown."""


class _Dialect(NamedTuple):
    """How one kind of database reads SQL.

    Attributes:
        readings: Tokenizers. The first is the server's default and must succeed; others are asked where the
            statement has a backslash, and ignored where they fail: such a server would refuse the statement.
        quoted_may_be_string: Whether a word in double quotes may be a string: by SQLite's leniency where there is no
            such column, in SQL Server with ``QUOTED_IDENTIFIER OFF``.
        numbered: Characters that make a parameter of digits right after them.
    """

    readings: tuple[Any, ...]
    quoted_may_be_string: bool
    numbered: str


def spans(statement: str, dialect: str | None) -> bytearray:
    """Return for each character what it belongs to: `KEPT`, `GAP` or `LITERAL`.

    Args:
        statement: Any text.
        dialect: ``sqlite``, ``postgresql``, ``mysql``, ``oracle`` or ``mssql``; anything else is an unknown one.

    Raises:
        NotUnderstoodError: It does not tokenize, or there is a sign that it is read out of step.
    """
    if "\r" in statement.replace("\r\n", ""):
        raise NotUnderstoodError("a bare carriage return: servers differ in whether it ends a comment")
    known = _dialect(dialect)
    if known is None:
        everyone = [(one, reading) for name in _NAMES for one in [_named(name)] for reading in one.readings]
        return _highest([_read(statement, one, reading) for one, reading in everyone])
    answers = [_read(statement, known, known.readings[0])]
    if "\\" in statement:
        for reading in known.readings[1:]:
            try:
                answers.append(_read(statement, known, reading, strict=False))
            except NotUnderstoodError:
                continue
    return _highest(answers)


def _highest(answers: Sequence[bytearray]) -> bytearray:
    return answers[0] if len(answers) == 1 else bytearray(map(max, *answers))


def _read(statement: str, dialect: _Dialect, tokenizer: Any, *, strict: bool = True) -> bytearray:
    """Mark a statement as one reading has it; ``strict``: refuse it at a sign that this is not how it was meant."""
    try:
        tokens: list[Token] = tokenizer().tokenize(statement)
    except TokenError as error:
        cause = error.__cause__  # sqlglot wraps whatever is raised meanwhile, a signal handler's exception too
        if cause is not None and was_thrown_in(cause):
            raise cause from None
        raise NotUnderstoodError("does not tokenize") from error
    marks = bytearray([GAP]) * len(statement)
    before: Token | None = None
    for position, token in enumerate(tokens):
        start, end = token.start, token.end + 1
        text = statement[start:end]
        if token.token_type is TokenType.BACKSLASH:
            raise NotUnderstoodError("a backslash outside of a string: read out of step")
        mark = KEPT
        if token.token_type is TokenType.HINT:
            mark = GAP  # a comment
        elif token.token_type is TokenType.IDENTIFIER and not text[0].isdigit():
            if text[0] == '"' and dialect.quoted_may_be_string and not _is_a_name(statement, tokens, position):
                mark = LITERAL
        elif _is_literal(token, text):
            if not (text.isdigit() and len(text) <= 5 and start and statement[start - 1] in dialect.numbered):
                mark = LITERAL
        elif before is not None and text.upper() == "BY" and before.text.upper() == "IDENTIFIED":
            marks[start:end] = bytes(end - start)
            marks[end + 1 :] = bytes([LITERAL]) * (len(statement) - end - 1)
            return marks  # Oracle takes a password without quotes
        if before is not None and before.end + 1 == start:
            if strict and _out_of_step(before, token, statement):
                raise NotUnderstoodError("a string touches a word: read out of step")
            if before.token_type in _NUMBERS and _is_word(token, text):
                mark = LITERAL  # 12abc, 1_000
        marks[start:end] = bytes([mark]) * (end - start)
        before = token
    return marks


def _is_literal(token: Token, text: str) -> bool:
    """Not by the type alone: a kind of literal that a later sqlglot may know is one by its looks."""
    return token.token_type in _LITERALS or text[0].isdigit() or "'" in text or (text[0] == "$" and text[1:2].isdigit())


def _is_word(token: Token, text: str) -> bool:
    return token.token_type is TokenType.IDENTIFIER or text[0].isalnum() or text[0] == "_"


def _out_of_step(before: Token, token: Token, statement: str) -> bool:
    """A word right before or after a string is the sign of a prefix or an escape that the reading does not know."""
    first, second = statement[before.start : before.end + 1], statement[token.start : token.end + 1]
    if _is_string(token, second):
        return (
            ((_is_word(before, first) and before.token_type not in _LITERALS) or first[-1] == "$")
            and before.token_type is not TokenType.INTRODUCER
            and first.upper() not in _MAY_TOUCH_A_STRING
        )
    return _is_string(before, first) and _is_word(token, second) and token.token_type not in _LITERALS


def _is_string(token: Token, text: str) -> bool:
    return token.token_type in _LITERALS and text[-1] in "'\"$"


def _is_a_name(statement: str, tokens: list[Token], position: int) -> bool:
    """Whether something in double quotes stands where only a name can stand."""
    token = tokens[position]
    if statement[token.start - 1 : token.start] == "." or statement[token.end + 1 : token.end + 2] == ".":
        return True
    return position > 0 and tokens[position - 1].text.upper() in _NAMES_FOLLOW


_NAMES = ("sqlite", "postgresql", "mysql", "oracle", "mssql")
_ALIASES = {
    "mariadb": "mysql",
    "redshift": "postgresql",
    "cockroachdb": "postgresql",
    "greenplum": "postgresql",
    "yugabytedb": "postgresql",
}


def _dialect(vendor: str | None) -> _Dialect | None:
    name = _ALIASES.get(vendor or "", vendor or "")
    return _named(name) if name in _NAMES else None


@cache
def _named(name: str) -> _Dialect:
    """Load sqlglot's dialect of that name: some milliseconds, only for the databases in use."""
    # COMMANDS: what follows EXPLAIN, SHOW or FETCH is to be read like everything else.
    if name == "sqlite":
        from sqlglot.dialects.sqlite import SQLite

        return _Dialect((_reading(SQLite),), True, "?:$@")
    if name == "postgresql":
        from sqlglot.dialects.postgres import Postgres

        return _Dialect((_reading(Postgres), _reading(Postgres, STRING_ESCAPES=["'", "\\"])), False, "$")
    if name == "mysql":
        from sqlglot.dialects.mysql import MySQL

        plain = _reading(MySQL, STRING_ESCAPES=["'", '"'])
        ansi = _reading(MySQL, QUOTES=["'"], STRING_ESCAPES=["'", "\\"], IDENTIFIERS=["`", '"'])
        return _Dialect((_reading(MySQL), plain, ansi), True, "")
    if name == "oracle":
        from sqlglot.dialects.oracle import Oracle

        return _Dialect((_reading(Oracle),), False, ":")
    from sqlglot.dialects.tsql import TSQL

    return _Dialect((_reading(TSQL),), True, "")


def _reading(dialect: Any, **changed: Any) -> Any:
    tokenizer = type(f"{dialect.__name__}Reading", (dialect.tokenizer_class,), {"COMMANDS": set(), **changed})

    def make() -> Any:  # a new one each time: it keeps its place in itself, and a signal handler may come in between
        return tokenizer(dialect=dialect)

    return make

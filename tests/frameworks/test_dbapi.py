"""Every statement of a wrapped PEP 249 connection, here real sqlite3's, is one DB event; the rest is the driver's own.

psycopg's are in test_sqlalchemy_postgres.py, beside the server that they need.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from seen import Seen

from profilis_mp.core.context import use_span
from profilis_mp.core.emitter import Emitter
from profilis_mp.dbapi import wrap_connect, wrap_connection
from profilis_mp.dbapi.wrapped import ProfiledConnection, ProfiledCursor
from profilis_mp.errors import ConfigError


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def connection(seen: Seen) -> Iterator[Any]:
    connection = wrap_connect(sqlite3.connect, Emitter(seen))(":memory:")
    connection.execute("CREATE TABLE t (a UNIQUE, b)")
    seen.take()
    yield connection
    connection.close()


def test_a_statement_is_one_event_without_its_literals_and_parameters(connection: Any, seen: Seen) -> None:
    with use_span(trace_id="trace") as span:
        cursor = connection.cursor()
        cursor.execute("SELECT a FROM t WHERE a = 'secret' OR a = ? -- secret", ("secret",))
        assert cursor.fetchall() == []
    (event,) = seen.events
    assert list(event) == ["ts_ns", "trace_id", "span_id", "kind", "query", "dur_ns", "rows", "db_vendor"]
    assert (event["query"], event["rows"], event["db_vendor"]) == ("SELECT a FROM t WHERE a = ? OR a = ?", -1, "sqlite")
    assert (event["trace_id"], event["span_id"]) == ("trace", span.span_id)
    assert 0 < event["dur_ns"] < 60 * 10**9
    assert "secret" not in repr(event)


def test_every_way_to_execute_is_recorded_once_and_answers_as_ever(connection: Any, seen: Seen) -> None:
    cursor = connection.cursor()
    assert cursor.execute("INSERT INTO t VALUES (1, 2)") is cursor
    assert cursor.lastrowid == cursor.rowcount == 1
    assert connection.execute("SELECT * FROM t").fetchall() == [(1, 2)]
    cursor.executemany("INSERT INTO t VALUES (?, ?)", [(2, 2), (3, 3)])
    connection.executemany("INSERT INTO t VALUES (?, ?)", iter([(4, 4), (5, 5), (6, 6)]))
    connection.executescript("DELETE FROM t WHERE a > 5; UPDATE t SET b = 'secret'")
    cursor.executescript("SELECT 1")
    assert [row for row in cursor.execute("SELECT a FROM t")] == [(1,), (2,), (3,), (4,), (5,)]  # noqa: C416  # its __iter__
    assert next(cursor.execute("SELECT max(a) FROM t")) == (5,)
    assert [(event["query"], event["rows"], event.get("executemany")) for event in seen.events] == [
        ("INSERT INTO t VALUES (?, ?)", 1, None),
        ("SELECT * FROM t", -1, None),
        ("INSERT INTO t VALUES (?, ?)", 2, 2),
        ("INSERT INTO t VALUES (?, ?)", 3, 3),
        ("DELETE FROM t WHERE a > ?; UPDATE t SET b = ?", -1, None),
        ("SELECT ?", -1, None),
        ("SELECT a FROM t", -1, None),
        ("SELECT max(a) FROM t", -1, None),
    ]


def test_a_failed_statement_is_recorded_and_raised_as_ever(connection: Any, seen: Seen) -> None:
    connection.execute("INSERT INTO t VALUES ('secret', 1)")
    seen.take()
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        connection.execute("INSERT INTO t VALUES ('secret', 1)")
    with pytest.raises(sqlite3.OperationalError):
        connection.cursor().execute("SELECT 'secret")
    with pytest.raises(sqlite3.IntegrityError):
        connection.executemany("INSERT INTO t VALUES (?, 1)", (("secret",) for _ in range(3)))
    assert [(event["query"], event["exception_type"], event["rows"]) for event in seen.events] == [
        ("INSERT INTO t VALUES (?, ?)", "IntegrityError", -1),
        ("<unparsable SELECT>", "OperationalError", -1),
        ("INSERT INTO t VALUES (?, ?)", "IntegrityError", -1),
    ]
    assert "secret" not in repr(seen.events)


def test_the_wrapper_passes_for_the_drivers_own(connection: Any, seen: Seen) -> None:
    assert isinstance(connection, sqlite3.Connection)
    assert isinstance(connection.cursor(), sqlite3.Cursor)
    assert type(connection.__wrapped__) is sqlite3.Connection
    assert connection == connection.__wrapped__
    assert connection.cursor().connection is connection
    assert "create_function" in dir(connection)
    assert "sqlite3.Connection" in repr(connection)
    assert not hasattr(connection.cursor(), "callproc")  # sqlite3 has none
    assert copy.copy(connection) == connection  # not a recursion without end
    connection.row_factory = sqlite3.Row
    assert connection.execute("SELECT 7 AS seven").fetchone()["seven"] == 7


def test_a_block_commits_or_rolls_back_and_is_left_with_the_wrapper(connection: Any, seen: Seen) -> None:
    with connection as within:
        assert within is connection
        within.execute("INSERT INTO t VALUES (1, 1)")
    with pytest.raises(sqlite3.IntegrityError), connection:  # and what went before is undone
        connection.executemany("INSERT INTO t VALUES (?, 2)", [(2,), (1,)])
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (1,)
    assert len(seen.events) == 3


def test_what_needs_the_drivers_own_object_gets_it_by_name(connection: Any, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "other.db")
    connection.backup(other)
    with pytest.raises(TypeError):  # C code looks at the object itself
        other.backup(connection)
    other.backup(connection.__wrapped__)
    other.close()


def test_a_procedure_is_recorded_as_a_call(seen: Seen) -> None:
    """No driver here has both procedures and no server: a class that derives from sqlite3's, as its factories allow."""

    class Cursor(sqlite3.Cursor):
        def callproc(self, name: str, args: tuple[Any, ...] = ()) -> tuple[Any, ...]:
            self.execute("SELECT ?", args)
            return args

    connection = wrap_connection(sqlite3.connect(":memory:"), seen)
    with pytest.raises(AttributeError):
        connection.cursor().callproc("pay")
    assert connection.cursor(Cursor).callproc("pay", ("secret",)) == ("secret",)
    (event,) = seen.events
    assert event["query"] == "CALL pay"
    connection.close()


def test_a_class_of_ones_own_and_a_threads_connection_are_recorded_too(seen: Seen, tmp_path: Path) -> None:
    class Mine(sqlite3.Connection):
        pass

    connect = wrap_connect(lambda: sqlite3.connect(tmp_path / "shop.db", factory=Mine), seen)

    def work(number: int) -> None:
        connection = connect()
        for each in range(50):
            with use_span(trace_id=f"{number}-{each}"):
                connection.execute(f"SELECT {each}").fetchall()
        connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {event["db_vendor"] for event in seen.events} == {"sqlite"}
    assert sorted(event["trace_id"] for event in seen.events) == sorted(f"{n}-{e}" for n in range(8) for e in range(50))


def test_a_failure_of_ours_is_logged_and_fails_no_statement(
    connection: Any, seen: Seen, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:

    class Lying(list[tuple[int, int]]):
        def __len__(self) -> int:
            raise ValueError("ours")

    def fail(_: object) -> None:
        raise ValueError("ours")

    with caplog.at_level(logging.WARNING, "profilis_mp"):
        connection.executemany("INSERT INTO t VALUES (?, ?)", Lying([(1, 1)]))
        monkeypatch.setattr(seen, "enqueue", fail)
        assert connection.execute("SELECT * FROM t").fetchall() == [(1, 1)]
        with pytest.raises(sqlite3.OperationalError):
            connection.execute("SELECT nothing")
    assert "a statement was not reported: ValueError('ours')" in caplog.text
    assert seen.events == []


def test_an_unknown_database_is_read_strictly_and_named_by_its_driver(seen: Seen) -> None:
    plain = sqlite3.connect(":memory:")
    connection = wrap_connection(plain, seen, db_vendor="nosuchdb")
    connection.execute("SELECT 'a\\', 'secret'").fetchall()
    connection.execute("SELECT 'secret'").fetchall()
    assert [(event["query"], event["db_vendor"]) for event in seen.take()] == [
        ("<unparsable SELECT>", "nosuchdb"),
        ("SELECT ?", "nosuchdb"),
    ]
    connection = wrap_connection(plain, seen, redact=False, max_len=12)
    connection.execute("SELECT 'plain'")
    assert seen.events[0]["query"] == "SELECT 'pla…"
    plain.close()


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"connection": "host=localhost"}, "connection"),
        ({"emitter": print}, "emitter"),
        ({"db_vendor": 7}, "db_vendor"),
        ({"redact": 1}, "redact"),
        ({"max_len": -1}, "max_len"),
    ],
)
def test_a_bad_argument_is_refused_by_name(seen: Seen, arguments: dict[str, Any], argument: str) -> None:
    plain = sqlite3.connect(":memory:")
    with pytest.raises(ConfigError) as refused:
        wrap_connection(**{"connection": plain, "emitter": seen, **arguments})
    assert refused.value.argument == argument
    if argument != "connection":
        with pytest.raises(ConfigError) as refused:
            wrap_connect(**{"connect": sqlite3.connect, "emitter": seen, **arguments})
        assert refused.value.argument == argument
    plain.close()


def test_what_cannot_be_recorded_is_refused_or_left_as_it_is(seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="connect: a str cannot be called"):
        wrap_connect("sqlite3.connect", seen)  # type: ignore[arg-type]  # that is the test
    connection = wrap_connection(sqlite3.connect(":memory:"), seen)
    assert type(connection) is ProfiledConnection
    assert type(connection.cursor()) is ProfiledCursor
    with pytest.raises(ConfigError, match="reported twice"):
        wrap_connection(connection, seen)
    connection.close()

    async def asynchronous() -> None:
        # What connects is left alone: a wrapper could not be awaited.
        with caplog.at_level(logging.WARNING, "profilis_mp"):
            connecting = wrap_connect(aiosqlite.connect, seen)(":memory:")
        async with connecting as connection:
            with pytest.raises(ConfigError, match="asynchronous"):
                wrap_connection(connection, seen)
            await connection.execute("SELECT 1")

    asyncio.run(asynchronous())
    assert "a connection could not be profiled" in caplog.text
    assert seen.events == []


def test_sqlglot_is_asked_for_by_name_and_only_where_literals_are_redacted() -> None:
    code = (
        "import sys, sqlite3; sys.modules['sqlglot'] = None\n"
        "from profilis_mp.dbapi import wrap_connection\n"
        "events = []; collector = type('C', (), {'emit': staticmethod(events.append)})()\n"
        "wrap_connection(sqlite3.connect(':memory:'), collector, redact=False).execute('SELECT 1')\n"
        "print(events[0]['query'], 'sqlalchemy' in sys.modules)\n"
        "wrap_connection(sqlite3.connect(':memory:'), collector)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "SELECT 1 False\n"
    assert 'pip install "profilis_mp[dbapi]"' in done.stderr.splitlines()[-1]

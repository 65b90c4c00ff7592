"""The same on a real PostgreSQL: a driver that has the rows, server-side cursors, sequences, both APIs."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
import sqlalchemy as sa
from postgres import postgres
from psycopg import sql
from seen import Seen
from sqlalchemy import exc
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import create_async_engine

from profilis_mp.core.context import use_span
from profilis_mp.dbapi import wrap_connect, wrap_connection
from profilis_mp.errors import ConfigError
from profilis_mp.sqlalchemy import instrument_async_engine, instrument_engine

metadata = sa.MetaData()
numbers = sa.Sequence("numbers", metadata=metadata)
things = sa.Table(
    "Things",
    metadata,
    sa.Column("id", sa.Integer, numbers, primary_key=True),
    sa.Column("name", sa.String, unique=True),
    sa.Column("data", JSONB, server_default=sa.text("'{}'")),
)


def synchronous(url: str, seen: Seen) -> None:
    engine = sa.create_engine(url, insertmanyvalues_page_size=2)
    instrument_engine(engine, seen)
    with engine.begin() as connection:
        metadata.create_all(connection)
        seen.take()
        # The driver has a result's rows when execute returns.
        connection.execute(sa.insert(things), [{"name": str(number)} for number in range(5)])
        assert connection.execute(sa.select(things.c.id)).all() == [(number + 1,) for number in range(5)]
        connection.execute(sa.select(things.c.id).where(things.c.name == "none"))
        connection.execute(sa.update(things).values(name=things.c.name + "!"))
        assert [(event["rows"], event.get("executemany")) for event in seen.events] == [
            (5, 5),
            (5, None),
            (0, None),
            (5, None),
        ]
        assert {event["db_vendor"] for event in seen.events} == {"postgresql"}
        assert seen.take()[1]["query"] == 'SELECT "Things".id FROM "Things"'
        # A sequence that is asked by itself is a statement by itself.
        assert connection.scalar(numbers) is not None
        assert [event["query"].split("(")[0] for event in seen.take()] == ["select nextval"]
        # One for each batch, with the text of a row's.
        connection.execute(sa.insert(things).returning(things.c.id), [{"name": f"b{n}"} for n in range(5)])
        events = seen.take()
        assert [(event["executemany"], event["rows"]) for event in events] == [(2, 2), (2, 2), (1, 1)]
        assert len({event["query"] for event in events}) == 1
        # A server-side cursor is one event however many rows are fetched, and how many there will be nobody knows.
        result = connection.execute(sa.select(things), execution_options={"yield_per": 2})
        assert len(list(result)) == 10
        (event,) = seen.take()
        assert event["rows"] == -1
        connection.execute(sa.text("SELECT $$secret$$, E'it\\'s secret', data->'secret' FROM \"Things\" /* secret */"))
        assert [event["query"] for event in seen.take()] == ['SELECT ?, ?, data->? FROM "Things"']
    with engine.begin() as connection, pytest.raises(exc.IntegrityError):
        connection.execute(sa.insert(things).values(name="b0"))
    (event,) = seen.take()
    assert (event["exception_type"], event["rows"]) == ("UniqueViolation", -1)
    # The server ends the connection while a statement runs.
    with pytest.raises(exc.OperationalError), engine.connect() as connection:
        connection.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
    (event,) = seen.take()
    assert event["exception_type"] == "AdminShutdown"
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
    assert len(seen.take()) == 1
    engine.dispose()


async def asynchronous(url: str, seen: Seen) -> None:
    engine = create_async_engine(url)
    instrument_async_engine(engine, seen)

    async def task(number: int) -> None:
        with use_span(trace_id=str(number)):
            async with engine.connect() as connection:
                assert len((await connection.execute(sa.select(things).limit(3))).all()) == 3
                stream = await connection.stream(sa.select(things.c.id))
                assert len([each async for each in stream]) == 10

    await asyncio.gather(*(task(number) for number in range(4)))
    events = seen.take()
    assert sorted((event["trace_id"], event["rows"]) for event in events) == sorted(
        (str(number), rows) for number in range(4) for rows in (3, -1)
    )
    async with engine.connect() as connection:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.execute(sa.text("SELECT pg_sleep(60)")), 0.1)
    assert [event.get("exception_type") for event in seen.take()] == ["CancelledError"]
    await engine.dispose()


def driver(socket: str, seen: Seen) -> None:
    """psycopg without SQLAlchemy."""
    with wrap_connect(psycopg.connect, seen)(f"host={socket} user=postgres") as connection:
        assert isinstance(connection, psycopg.Connection)
        with connection.cursor() as cursor:
            assert isinstance(cursor, psycopg.Cursor)
            assert cursor.connection is connection
            cursor.execute('SELECT id FROM "Things" WHERE name <> %s', ("secret",))
            assert len(list(cursor)) == 10
            cursor.executemany("INSERT INTO \"Things\" VALUES (%s, 'secret' || %s)", ((1000 + n, n) for n in range(3)))
            cursor.execute(sql.SQL("SELECT {} FROM {} LIMIT 1").format(sql.Literal("secret"), sql.Identifier("Things")))
            cursor.execute(b"SELECT 'secret'")
        with connection.cursor(name="on_the_server") as cursor:
            assert cursor.execute('SELECT id FROM "Things"').fetchone() == (1,)
        assert connection.execute("SELECT 7").fetchone() == (7,)
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT 'secret' FROM nowhere")
    assert [(event["query"], event["rows"]) for event in seen.events] == [
        ('SELECT id FROM "Things" WHERE name <> %s', 10),
        ('INSERT INTO "Things" VALUES (%s, ? || %s)', 3),
        ('SELECT ? FROM "Things" LIMIT ?', 1),
        ("SELECT ?", 1),
        ('SELECT id FROM "Things"', -1),
        ("SELECT ?", 1),
        ("SELECT ? FROM nowhere", -1),
    ]
    assert (seen.events[1]["executemany"], seen.events[-1]["exception_type"]) == (3, "UndefinedTable")
    assert {event["db_vendor"] for event in seen.take()} == {"postgresql"}

    async def refused() -> None:
        async with await psycopg.AsyncConnection.connect(f"host={socket} user=postgres") as connection:
            with pytest.raises(ConfigError, match="asynchronous"):
                wrap_connection(connection, seen)

    asyncio.run(refused())


def test_statements_on_postgresql_are_recorded_by_either_engine_and_by_the_wrapped_driver() -> None:
    """One server for all three: starting it takes longer than the rest."""
    with postgres() as socket:
        place, seen = f"://postgres@/postgres?host={socket}", Seen()
        synchronous(f"postgresql+psycopg{place}", seen)
        asyncio.run(asynchronous(f"postgresql+psycopg{place}", seen))
        asyncio.run(asynchronous(f"postgresql+asyncpg{place}", seen))
        driver(socket, seen)
        assert "secret" not in repr(seen.events)

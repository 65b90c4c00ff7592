"""Every statement of a SQLAlchemy engine, on real SQLite, becomes exactly one DB event, and is otherwise left alone."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import profilis.sqlalchemy.instrumentation as upstream
import pytest
import sqlalchemy as sa
from seen import Seen
from sqlalchemy import event, exc, orm
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import QueuePool

from profilis_mp import sqlalchemy as public
from profilis_mp.core.context import use_span
from profilis_mp.core.emitter import Emitter
from profilis_mp.errors import ConfigError
from profilis_mp.sqlalchemy import instrumentation
from profilis_mp.sqlalchemy.instrumentation import instrument_async_engine, instrument_engine, uninstrument


class Base(orm.DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(unique=True)
    made: orm.Mapped[str] = orm.mapped_column(server_default=sa.text("'now'"))
    orders: orm.Mapped[list[Order]] = orm.relationship(back_populates="user")


class Order(Base):
    __tablename__ = "orders"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    user_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("users.id"))
    user: orm.Mapped[User] = orm.relationship(back_populates="orders")


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def engine(seen: Seen, tmp_path: Path) -> Iterator[sa.Engine]:
    """An engine with tables, instrumented after they were made."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db", insertmanyvalues_page_size=3)
    Base.metadata.create_all(engine)
    instrument_engine(engine, Emitter(seen))
    yield engine
    engine.dispose()


# -- the event


def test_a_statement_is_one_event_without_its_literals_and_parameters(engine: sa.Engine, seen: Seen) -> None:
    with engine.connect() as connection, use_span(trace_id="trace") as span:
        statement = sa.text("SELECT id FROM users WHERE name = 'secret'\n  OR name = :name -- secret")
        assert connection.execute(statement, {"name": "secret"}).all() == []
    (event,) = seen.events
    assert list(event) == ["ts_ns", "trace_id", "span_id", "kind", "query", "dur_ns", "rows", "db_vendor"]
    assert event["query"] == "SELECT id FROM users WHERE name = ? OR name = ?"
    assert (event["kind"], event["db_vendor"]) == ("DB", "sqlite")
    assert (event["trace_id"], event["span_id"]) == ("trace", span.span_id)
    assert 0 < event["dur_ns"] < 60 * 10**9
    assert "secret" not in repr(event)


def test_rows_is_what_the_driver_knows_when_the_statement_is_done(engine: sa.Engine, seen: Seen) -> None:
    with engine.begin() as connection:
        for number in range(3):
            connection.execute(sa.insert(User).values(name=f"user {number}"))
        assert [event["rows"] for event in seen.take()] == [1, 1, 1]
        connection.execute(sa.update(User).values(made="then"))
        connection.execute(sa.delete(User).where(User.id > 1))
        connection.execute(sa.delete(User).where(User.id > 1))
        assert [event["rows"] for event in seen.take()] == [3, 2, 0]
        # SQLite has not looked yet, and 0 would say that there are none.
        result = connection.execute(sa.select(User.name))
        assert [event["rows"] for event in seen.take()] == [-1]
        assert result.all() == [("user 0",)]
        result = connection.execute(sa.insert(User).values(name="more").returning(User.id))
        assert [event["rows"] for event in seen.take()] == [-1]
        assert result.scalar() is not None
        connection.execute(sa.text("CREATE TABLE more (id INTEGER)"))
        assert [event["rows"] for event in seen.take()] == [-1]


def test_many_sets_of_parameters_are_one_event_that_says_how_many(engine: sa.Engine, seen: Seen) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(User), [{"name": f"user {number}"} for number in range(5)])
        (event,) = seen.events
        assert (event["executemany"], event["rows"]) == (5, 5)
        assert event["query"] == "INSERT INTO users (name) VALUES (?)"


def test_batches_of_an_insert_have_one_text_and_their_number_of_rows(engine: sa.Engine, seen: Seen) -> None:
    from sqlalchemy.dialects.sqlite import insert

    names = [{"name": f"user {number}"} for number in range(7)]
    with engine.begin() as connection:
        assert len(connection.execute(sa.insert(User).returning(User.id), names).all()) == 7
        assert [event["executemany"] for event in seen.events] == [3, 3, 1]
        assert {event["query"] for event in seen.take()} == {"INSERT INTO users (name) VALUES (?) RETURNING id"}
        # Parameters outside of VALUES are there once for each batch.
        upsert = insert(User).on_conflict_do_update(index_elements=["name"], set_={"made": "again"}).returning(User.id)
        assert len(connection.execute(upsert, names).all()) == 7
        assert [event["executemany"] for event in seen.events] == [3, 3, 1]


def test_a_failed_statement_is_recorded_and_raised_as_ever(engine: sa.Engine, seen: Seen) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(User).values(name="secret"))
        seen.take()
        with pytest.raises(exc.IntegrityError) as raised:
            connection.execute(sa.insert(User).values(name="secret"))
        (event,) = seen.take()
        assert event["exception_type"] == type(raised.value.orig).__name__ == "IntegrityError"
        assert (event["rows"], event["query"]) == (-1, "INSERT INTO users (name) VALUES (?)")
        assert "secret" not in repr(event)
    with engine.begin() as connection, pytest.raises(exc.IntegrityError):
        connection.execute(sa.insert(User), [{"name": "a"}, {"name": "b"}, {"name": "a"}])
    (event,) = seen.take()
    assert (event["executemany"], event["exception_type"]) == (3, "IntegrityError")
    with engine.begin() as connection, pytest.raises(exc.IntegrityError):
        connection.execute(sa.insert(User).returning(User.id), [{"name": str(n // 2)} for n in range(4)])
    (event,) = seen.take()
    assert (event["executemany"], event["query"]) == (3, "INSERT INTO users (name) VALUES (?) RETURNING id")
    with engine.begin() as connection, pytest.raises(exc.OperationalError):
        connection.execute(sa.text("SELECT 'secret"))
    (event,) = seen.take()
    assert event["query"] == "<unparsable SELECT>"
    # Never sent: no statement.
    with engine.begin() as connection, pytest.raises(exc.StatementError):
        connection.execute(sa.text("SELECT :missing"))
    assert seen.events == []


def test_a_failure_while_rows_are_fetched_is_no_second_event(engine: sa.Engine, seen: Seen) -> None:
    with engine.connect() as connection:
        connection.connection.driver_connection.create_function("fail", 1, lambda _: 1 // 0)  # type: ignore[union-attr]
        result = connection.execution_options(yield_per=1).execute(
            sa.text(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 9) "
                "SELECT CASE WHEN i > 5 THEN fail(i) ELSE i END FROM n"
            )
        )
        with pytest.raises(exc.OperationalError):
            result.all()
    assert len(seen.events) == 1
    assert "exception_type" not in seen.events[0]


def test_what_other_listeners_make_of_a_statement_is_what_is_recorded(engine: sa.Engine, seen: Seen) -> None:
    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def commented(_c: Any, _k: Any, statement: str, parameters: Any, _x: Any, _m: bool) -> tuple[str, Any]:
        return f"{statement} WHERE 1 /*traceparent='00-secret-01'*/", parameters

    @event.listens_for(engine, "handle_error")
    def rude(_: Any) -> None:
        raise LookupError("another")

    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 2"))
        with pytest.raises(LookupError):
            connection.execute(sa.text("SELECT nothing FROM nowhere"))
    assert [event["query"] for event in seen.events] == ["SELECT ? WHERE ?", "SELECT nothing FROM nowhere WHERE ?"]
    assert seen.events[1]["exception_type"] == "OperationalError"


# -- the account


def test_there_are_as_many_events_as_sqlite_ran_statements(engine: sa.Engine, seen: Seen) -> None:
    """SQLite's own trace counts; BEGIN and COMMIT are not the application's statements."""
    ran: list[str] = []

    @sa.event.listens_for(engine, "connect")
    def trace(connection: Any, _: Any) -> None:
        connection.set_trace_callback(lambda statement: ran.append(statement.split(None, 1)[0].upper()))

    engine.dispose()
    with orm.Session(engine) as session:
        session.add_all(User(name=f"user {number}", orders=[Order(), Order()]) for number in range(5))
        session.commit()
        for user in session.scalars(sa.select(User)):  # each with a statement for its orders, while this one is open
            assert len(user.orders) == 2
        for user in session.scalars(
            sa.select(User).options(orm.selectinload(User.orders)).execution_options(yield_per=2)
        ):
            user.name += "!"
        assert session.scalars(sa.select(User.made).distinct()).all() == ["now"]
        session.rollback()
        session.get(User, 1)
        session.execute(sa.delete(Order))
        session.commit()
    statements = [verb for verb in ran if verb not in {"BEGIN", "COMMIT", "ROLLBACK", "PRAGMA"}]
    assert len(statements) > 20
    # The driver runs an executemany as one statement for each set; a batch with RETURNING is one statement for all.
    recorded: list[str] = []
    for each in seen.events:
        times = 1 if "RETURNING" in each["query"] else each.get("executemany", 1)
        recorded += [each["query"].split()[0]] * times
    assert recorded == statements


def test_connecting_pinging_and_disposing_are_no_statements(seen: Seen, tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db", pool_pre_ping=True, poolclass=QueuePool)
    instrument_engine(engine, Emitter(seen))
    for _ in range(2):
        for _ in range(2):
            with engine.connect() as connection, connection.begin():
                connection.execute(sa.text("SELECT 1"))
        engine.dispose()
    assert [event["query"] for event in seen.events] == ["SELECT ?"] * 4


def test_an_engine_made_by_execution_options_is_recorded_once(engine: sa.Engine, seen: Seen) -> None:
    uninstrument(engine)
    before = engine.execution_options(isolation_level="AUTOCOMMIT")
    instrument_engine(engine, Emitter(seen))
    after = engine.execution_options(logging_token="reports")
    own, its_own = engine.execution_options(logging_token="own"), Seen()
    instrument_engine(own, Emitter(its_own))
    for one in (engine, before, after, after.execution_options(stream_results=True), own):
        with one.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
            with pytest.raises(exc.OperationalError):
                connection.execute(sa.text("SELECT nothing"))
    assert len(seen.events) == 8
    assert [event.get("exception_type") for event in seen.events] == [None, "OperationalError"] * 4
    assert [event.get("exception_type") for event in its_own.events] == [None, "OperationalError"]


def test_of_two_engines_each_has_its_own_events_also_when_one_works_within_the_other(
    engine: sa.Engine, seen: Seen
) -> None:
    audit, audited = sa.create_engine("sqlite://"), Seen()
    instrument_engine(audit, audited)

    @event.listens_for(engine, "before_cursor_execute")
    def write_down(*_: Any) -> None:
        with audit.connect() as connection:
            connection.execute(sa.text("SELECT 'audit'"))

    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1 FROM users"))
    assert [event["query"] for event in seen.events] == ["SELECT ? FROM users"]
    assert [event["query"] for event in audited.events] == ["SELECT ?"]
    audit.dispose()


def test_threads_lose_and_double_nothing(engine: sa.Engine, seen: Seen) -> None:
    def work(number: int) -> None:
        for each in range(50):
            with use_span(trace_id=f"{number}-{each}"), engine.connect() as connection:
                connection.execute(sa.text(f"SELECT {each}")).all()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(event["trace_id"] for event in seen.events) == sorted(f"{n}-{e}" for n in range(8) for e in range(50))


# -- our own failures


@pytest.mark.parametrize("broken", ["enqueue", "_show"])
def test_a_failure_of_ours_is_logged_and_fails_no_statement(
    broken: str, engine: sa.Engine, seen: Seen, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:

    def fail(*_: object, **__: object) -> None:
        raise ValueError("ours")

    if broken == "enqueue":
        monkeypatch.setattr(seen, "enqueue", fail)
    else:
        monkeypatch.setattr(instrumentation._hooks[engine]._recorder, "_show", fail)
    with caplog.at_level(logging.WARNING, "profilis_mp"), engine.connect() as connection:
        assert connection.execute(sa.text("SELECT 7")).scalar() == 7
        with pytest.raises(exc.OperationalError):
            connection.execute(sa.text("SELECT nothing"))
    assert "a statement was not reported: ValueError('ours')" in caplog.text
    assert seen.events == []


def test_what_a_signal_handler_throws_in_reaches_the_application(engine: sa.Engine, seen: Seen) -> None:
    import signal

    class OutOfTimeError(Exception):
        pass

    def out_of_time(*_: object) -> None:
        raise OutOfTimeError

    def enqueue(_: object) -> None:
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, out_of_time)
    seen.enqueue = enqueue  # type: ignore[method-assign]  # this one object's
    try:
        with engine.connect() as connection, pytest.raises(OutOfTimeError):
            connection.execute(sa.text("SELECT 7"))
    finally:
        signal.signal(signal.SIGUSR1, before)


# -- beginning and ending


def test_instrumenting_and_ending_it_reach_open_connections_and_leave_nothing_behind(seen: Seen) -> None:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        instrument_engine(engine, Emitter(seen), redact=False, max_len=12)
        connection.execute(sa.text("SELECT 'plain'"))
        assert [event["query"] for event in seen.take()] == ["SELECT 'pla…"]
        with pytest.raises(ConfigError, match="engine: is instrumented already"):
            instrument_engine(engine, Emitter(seen))
        assert uninstrument(engine)
        assert not uninstrument(engine)
        connection.execute(sa.text("SELECT 1"))
        assert seen.events == []
        instrument_engine(engine, seen)  # a collector will do
        connection.execute(sa.text("SELECT 1"))
        assert len(seen.events) == 1
    engine.dispose()
    gone = weakref.ref(engine)
    del engine, connection
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"engine": "sqlite://"}, "engine"),
        ({"engine": create_async_engine("sqlite+aiosqlite://")}, "engine"),
        ({"emitter": print}, "emitter"),
        ({"emitter": None}, "emitter"),
        ({"redact": 1}, "redact"),
        ({"max_len": -1}, "max_len"),
    ],
)
def test_a_bad_argument_is_refused_by_name(seen: Seen, arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(ConfigError) as refused:
        instrument_engine(**{"engine": sa.create_engine("sqlite://"), "emitter": seen, **arguments})
    assert refused.value.argument == argument
    with pytest.raises(ConfigError, match="async_engine"):
        instrument_async_engine(sa.create_engine("sqlite://"), seen)  # type: ignore[arg-type]  # that is the test


@pytest.mark.parametrize("missing", ["sqlalchemy", "sqlglot"])
def test_a_missing_package_is_named_with_what_installs_it(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from profilis_mp.sqlalchemy.instrumentation import instrument_engine\n"
        "from sqlalchemy import create_engine\n"
        "instrument_engine(create_engine('sqlite://'), [].append and type('C', (), {'emit': print})())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'pip install "profilis_mp[' in done.stderr.splitlines()[-1]


def test_moving_over_from_profilis_is_changing_one_word() -> None:
    assert set(upstream.__all__) <= set(instrumentation.__all__)
    for name in ("instrument_engine", "instrument_async_engine"):
        theirs, ours = inspect.signature(getattr(upstream, name)), inspect.signature(getattr(public, name))
        assert [(p.name, p.kind) for p in theirs.parameters.values()] == [
            (p.name, p.kind) for p in ours.parameters.values()
        ]
    assert instrumentation.redact_statement("SELECT 'x'", max_len=200) == upstream.redact_statement("SELECT 'x'")


# -- asynchronous engines


def test_an_async_engine_is_recorded_in_its_tasks_spans(seen: Seen, tmp_path: Path) -> None:
    async def work() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db")
        instrument_async_engine(engine, Emitter(seen))
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        seen.take()

        async def task(number: int) -> None:
            with use_span(trace_id=f"task {number}"):
                async with AsyncSession(engine) as session:
                    session.add(User(name=f"user {number}"))
                    await session.commit()

        await asyncio.gather(*(task(number) for number in range(5)))
        events = seen.take()
        assert sorted(event["trace_id"] for event in events) == [f"task {number}" for number in range(5)]
        assert {event["db_vendor"] for event in events} == {"sqlite"}
        async with engine.connect() as connection:
            stream = await connection.stream(sa.select(User.name))
            assert len([name async for name in stream]) == 5
            with pytest.raises(exc.OperationalError):
                await connection.execute(sa.text("SELECT nothing"))
        first, second = seen.take()
        assert (first["rows"], second["exception_type"]) == (-1, "OperationalError")
        slow = sa.text(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000000) SELECT max(i) FROM n"
        )
        async with engine.connect() as connection:
            running = asyncio.ensure_future(connection.execute(slow))
            while not connection.sync_connection.in_transaction():  # type: ignore[union-attr]  # it is open
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        assert [event.get("exception_type") for event in seen.take()] == ["CancelledError"]
        assert uninstrument(engine)
        await engine.dispose()

    asyncio.run(work())

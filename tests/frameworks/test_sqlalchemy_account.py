"""Statements executed = DB events on disk, exactly once: under kill -9, and with an engine made before a fork."""

from __future__ import annotations

import collections
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import orjson
import psycopg
import sqlalchemy as sa
from postgres import postgres
from processes import Acknowledgements, fork, reap, running, wait_until

from profilis_mp import AsyncCollector, Emitter, JSONLExporter, recover
from profilis_mp.account import lines_of, segments_of
from profilis_mp.core.context import use_span
from profilis_mp.dbapi import wrap_connect
from profilis_mp.sqlalchemy import instrument_engine

WORKERS = 3
ROUNDS = 4
SECONDS = 0.6


def inserted(events: list[dict[str, object]]) -> dict[int, list[int]]:
    """Which of its INSERTs each worker's log holds; a statement's trace id says whose it was and which."""
    found: dict[int, list[int]] = collections.defaultdict(list)
    for event in events:
        if str(event["query"]).startswith("INSERT"):
            worker, number = map(int, str(event["trace_id"]).split("-"))
            found[worker].append(number)
    return found


def events_in(directory: Path) -> list[dict[str, object]]:
    report = recover(directory)
    assert not report.failures, report
    return [orjson.loads(line) for path in segments_of(str(directory)) for _, line in lines_of(path)]


def kill_storm(
    directory: Path, execute_in: Callable[[int], Callable[[int, int], None]], rows: Callable[[], dict[int, int]]
) -> None:
    """Workers insert and are killed, again and again; then the log, what returned, and the tables are compared.

    Args:
        directory: The log directory.
        execute_in: Called in a worker with its number; returns what executes one INSERT.
        rows: How many rows each worker's statements have left in the database.
    """
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    returned = Acknowledgements(WORKERS * ROUNDS)

    def worker(number: int) -> Callable[[], None]:
        def work() -> None:
            execute = execute_in(number)
            each = 0
            while True:
                with use_span(trace_id=f"{number}-{each}"):
                    execute(number, each)
                each += 1
                returned[number] = each

        return work

    def busy(number: int) -> bool:
        return returned[number] > 20

    for one_round in range(ROUNDS):
        first = one_round * WORKERS
        numbers = range(first, first + WORKERS)
        with running(*map(worker, numbers)):
            for number in numbers:
                wait_until(partial(busy, number), what=f"worker {number} has inserted")
            time.sleep(dice.uniform(0, SECONDS))
    found, stored = inserted(events_in(directory)), rows()
    context = f"seed {seed}, {returned.by_worker()}"
    for number in range(WORKERS * ROUNDS):
        numbers = found[number]
        # Each once, in order, none left out; one more than returned, where the kill came between the two.
        assert numbers == list(range(len(numbers))), context
        assert returned[number] <= len(numbers) <= returned[number] + 1, context
        # And the database has one more than the log, where the kill came before the driver returned.
        assert len(numbers) <= stored[number] <= len(numbers) + 1, context


def test_each_statement_that_returned_is_in_the_log_once_when_its_process_is_killed(tmp_path: Path) -> None:
    """Their engines were made, instrumented and used before the fork. The database is SQLite, one file each."""
    exporter = JSONLExporter(dir=tmp_path / "logs", rotate_bytes=64 * 1024)
    collector = AsyncCollector(exporter)

    engines = []
    for number in range(WORKERS * ROUNDS):
        engine = sa.create_engine(f"sqlite:///{tmp_path}/{number}.db", isolation_level="AUTOCOMMIT")
        instrument_engine(engine, Emitter(collector))
        with engine.connect() as connection:
            connection.exec_driver_sql("CREATE TABLE t (w, n)")
        engine.dispose()  # SQLite's connections must not be there at a fork
        engines.append(engine)

    def execute_in(number: int) -> Callable[[int, int], None]:
        connection = engines[number].connect()
        connection.exec_driver_sql("PRAGMA synchronous = OFF")
        insert = sa.text("INSERT INTO t VALUES (:w, :n)")
        return lambda worker, each: connection.execute(insert, {"w": worker, "n": each}) and None

    def rows() -> dict[int, int]:
        counts = {}
        for number in range(WORKERS * ROUNDS):
            with sqlite3.connect(tmp_path / f"{number}.db") as database:
                counts[number] = database.execute("SELECT count(*) FROM t").fetchone()[0]
            database.close()
        return counts

    kill_storm(tmp_path / "logs", execute_in, rows)


def test_on_postgresql_too_with_an_engine_made_before_the_fork_and_with_a_wrapped_driver(tmp_path: Path) -> None:
    """As gunicorn --preload does it: the parent has used the engine, its children drop the pool they inherit."""
    with postgres() as socket:
        exporter = JSONLExporter(dir=tmp_path / "logs", rotate_bytes=64 * 1024)
        collector = AsyncCollector(exporter)
        emitter = Emitter(collector)
        engine = sa.create_engine(
            f"postgresql+psycopg://postgres@/postgres?host={socket}", isolation_level="AUTOCOMMIT"
        )
        instrument_engine(engine, emitter)
        with engine.connect() as connection:
            connection.exec_driver_sql("CREATE TABLE t (w integer, n integer)")
        connect = wrap_connect(psycopg.connect, emitter)

        def execute_in(number: int) -> Callable[[int, int], None]:
            if number % 2:
                raw = connect(f"host={socket} user=postgres", autocommit=True)
                return lambda worker, each: raw.execute("INSERT INTO t VALUES (%s, %s)", (worker, each)) and None
            engine.dispose(close=False)
            connection = engine.connect()
            insert = sa.text("INSERT INTO t VALUES (:w, :n)")
            return lambda worker, each: connection.execute(insert, {"w": worker, "n": each}) and None

        def rows() -> dict[int, int]:
            with psycopg.connect(f"host={socket} user=postgres", autocommit=True) as database:
                # A server process may still be at the last statement of a client that was killed. (Within a
                # transaction, pg_stat_activity stays what it was at the first look.)
                wait_until(
                    lambda: (
                        database.execute(
                            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
                        ).fetchone()
                        in {(1,), (2,)}
                    )
                )
                return dict(database.execute("SELECT w, count(*) FROM t GROUP BY w").fetchall())

        kill_storm(tmp_path / "logs", execute_in, rows)
        engine.dispose()
        assert collector.close()
    (created,) = [event for event in events_in(tmp_path / "logs") if str(event["query"]).startswith("CREATE")]
    assert created["query"] == "CREATE TABLE t (w integer, n integer)"
    assert created["db_vendor"] == "postgresql"


def test_a_fork_while_the_parents_threads_execute_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """The child inherits the instrumented engine in whatever state it is in at that moment.

    Not with SQLite: a thread that is inside of that library at the fork leaves its mutexes locked in the child.
    """
    exporter = JSONLExporter(dir=tmp_path / "logs")
    collector = AsyncCollector(exporter)
    stop, done = threading.Event(), collections.Counter[int]()

    def statement(connection: sa.Connection, worker: int, number: int) -> None:
        with use_span(trace_id=f"{worker}-{number}"):
            connection.exec_driver_sql(f"SELECT {number}, 'x' AS worker_{worker}_{number % 40}")

    def in_parent(worker: int) -> None:
        with engine.connect() as connection:
            while not stop.is_set():
                statement(connection, worker, done[worker])
                done[worker] += 1

    def in_child(worker: int) -> Callable[[], None]:
        def work() -> None:
            engine.dispose(close=False)
            with engine.connect() as connection:
                for number in range(30):
                    statement(connection, worker, number)
                if worker % 2:
                    os.kill(os.getpid(), signal.SIGKILL)

        return work

    with postgres() as socket:
        engine = sa.create_engine(f"postgresql+psycopg://postgres@/postgres?host={socket}")
        instrument_engine(engine, Emitter(collector))
        engine.connect().close()  # what SQLAlchemy does once, at the first, it does under a lock
        threads = [threading.Thread(target=in_parent, args=(worker,)) for worker in range(3)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(done) == len(threads) and min(done.values()) > 10, what="all threads execute")
            codes = [reap(pid) for pid in [fork(in_child(worker)) for worker in range(100, 108)]]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        engine.dispose()
    assert codes == [0, -signal.SIGKILL] * 4
    expected = {f"{worker}-{number}": 1 for worker in range(3) for number in range(done[worker])}
    expected |= {f"{worker}-{number}": 1 for worker in range(100, 108) for number in range(30)}
    assert collector.close()
    found = collections.Counter(str(event["trace_id"]) for event in events_in(tmp_path / "logs"))
    assert found == expected

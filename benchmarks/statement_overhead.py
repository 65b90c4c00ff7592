"""What does a recorded statement cost its application?

Workload: a SELECT of one row by primary key from SQLite in memory, the cheapest statement there is, so that what is
added shows; each statement's text seen before. Through SQLAlchemy Core and through sqlite3 itself; plain, recorded by
us into a JSONLExporter, and, with SQLAlchemy, by the profilis package into its own collector and exporter, in turn.
Processor time of the whole process, threads that write included: other programs on the machine do not count.
Then how long a text takes that has not been seen before. Leaves out: a database that is further away, which takes
longer and makes the share smaller.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import time
from collections.abc import Callable
from typing import Any

from common import Report, scratch, spread

from profilis_mp import AsyncCollector, Emitter, JSONLExporter

STATEMENTS = 3_000
ROUNDS = 15


def core(directory: str) -> dict[str, Callable[[], object]]:
    """One statement through SQLAlchemy Core, by what records it."""
    import sqlalchemy as sa

    def prepared(instrument: Callable[[Any], object]) -> Callable[[], object]:
        engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
        connection = engine.connect()
        connection.exec_driver_sql("CREATE TABLE users (id INTEGER PRIMARY KEY, name, email, created_at)")
        connection.exec_driver_sql("INSERT INTO users VALUES (1, 'ann', 'ann@example.org', 'today')")
        columns = [sa.column(name) for name in ("id", "name", "email", "created_at")]
        users = sa.table("users", *columns)
        select = sa.select(*columns).select_from(users).where(columns[0] == 1)
        instrument(engine)
        return lambda: connection.execute(select).first()

    def ours(engine: Any) -> None:
        from profilis_mp.sqlalchemy.instrumentation import instrument_engine

        instrument_engine(engine, Emitter(AsyncCollector(JSONLExporter(dir=os.path.join(directory, "ours")))))

    def theirs(engine: Any) -> None:
        from profilis.core.async_collector import AsyncCollector as TheirCollector
        from profilis.core.emitter import Emitter as TheirEmitter
        from profilis.exporters.jsonl import JSONLExporter as TheirExporter
        from profilis.sqlalchemy.instrumentation import instrument_engine

        exporter = TheirExporter(dir=os.path.join(directory, "theirs"))
        instrument_engine(engine, TheirEmitter(TheirCollector(exporter)))

    return {"plain": prepared(lambda _: None), "profilis_mp": prepared(ours), "profilis": prepared(theirs)}


def driver(directory: str) -> dict[str, Callable[[], object]]:
    """One statement through sqlite3, by what records it."""
    from profilis_mp.dbapi import wrap_connection

    def prepared(wrap: Callable[[Any], Any]) -> Callable[[], object]:
        connection = wrap(sqlite3.connect(":memory:"))
        connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name, email, created_at)")
        connection.execute("INSERT INTO users VALUES (1, 'ann', 'ann@example.org', 'today')")
        statement = "SELECT id, name, email, created_at FROM users WHERE id = ?"
        return lambda: connection.execute(statement, (1,)).fetchone()

    emitter = Emitter(AsyncCollector(JSONLExporter(dir=os.path.join(directory, "driver"))))
    return {
        "plain": prepared(lambda plain: plain),
        "profilis_mp": prepared(lambda plain: wrap_connection(plain, emitter)),
    }


def in_turn(statements: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Microseconds a statement, one figure a round."""
    taken: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(ROUNDS):
        for name, statement in statements.items():
            started = time.process_time()
            for _ in range(STATEMENTS):
                statement()
            taken[name].append((time.process_time() - started) / STATEMENTS * 1e6)
    return taken


def unseen() -> list[float]:
    """Microseconds to redact a text of 202 characters that was not seen before."""
    from profilis_mp.dbapi.redaction import Redactor

    text = (
        "SELECT users.id, users.name, users.email, users.created_at FROM users JOIN orders ON orders.user_id = users.id"
        " WHERE users.id = %(id_1)s AND orders.state IN (%(s_1)s, %(s_2)s) ORDER BY users.id LIMIT "
    )
    redact = Redactor("postgresql")
    taken = []
    for number in range(1_000):
        started = time.process_time()
        redact(f"{text}{number}")
        taken.append((time.process_time() - started) * 1e6)
    return taken


def main() -> None:
    report = Report(__file__, "What does a recorded statement cost its application?")
    report.say(f"# {STATEMENTS} statements a round, {ROUNDS} rounds in turn, median (min-max)")
    report.say("# microseconds of processor time a statement")
    with scratch() as directory:
        for title, make in (("SQLAlchemy Core", core), ("sqlite3", driver)):
            try:
                taken = in_turn(make(directory))
            except ImportError as error:
                report.say(f"{title:<16} {error.name} is not installed")
                continue
            for name, times in taken.items():
                added = [time - plain for time, plain in zip(times, taken["plain"], strict=True)]
                more = "" if name == "plain" else f"   added {spread(added, '.1f')}"
                report.say(f"{title:<16} {name:<12} {spread(times, '.1f')}{more}")
        report.say(f"a text not seen before        {statistics.median(unseen()):.0f}")
        report.save()
        os._exit(0)  # profilis' collector would go on writing into the directory that is removed


if __name__ == "__main__":
    main()

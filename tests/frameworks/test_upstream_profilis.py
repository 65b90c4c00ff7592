"""The real `profilis` package writes through our exporter unchanged: its collector, emitter, adapters, decorators."""

from __future__ import annotations

import asyncio
import collections
import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI
from flask import Flask
from log_servers import clients_of, end, gunicorn, kill_workers
from processes import fork, reap
from profilis.core.async_collector import AsyncCollector as TheirCollector
from profilis.core.emitter import Emitter
from profilis.decorators.profile import profile_function
from profilis.exporters.console import ConsoleExporter as TheirConsole
from profilis.fastapi.adapter import instrument_fastapi
from profilis.flask.adapter import ProfilisFlask
from profilis.runtime import use_span
from profilis.sqlalchemy.instrumentation import instrument_engine
from sqlalchemy import create_engine, text

from profilis_mp import AsyncCollector, JSONLExporter, recover
from profilis_mp.account import segments_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:profilis", "ignore::DeprecationWarning:asyncio")


def events(directory: Path) -> list[dict[str, Any]]:
    paths = segments_of(str(directory))
    return [orjson.loads(line) for path in paths for line in Path(path).read_bytes().splitlines()]


@pytest.mark.parametrize("kind", [TheirCollector, AsyncCollector])
def test_every_adapter_and_decorator_writes_what_it_always_wrote(tmp_path: Path, kind: Any) -> None:
    exporter = JSONLExporter(dir=tmp_path)
    collector = kind(exporter)
    emitter = Emitter(collector)

    @profile_function(emitter)
    def work(number: int) -> int:
        return 1 // number

    @profile_function(emitter)
    async def wait() -> None:
        await asyncio.sleep(0)

    flask = Flask("upstream")
    ProfilisFlask(flask, collector=collector)
    fastapi = FastAPI()
    instrument_fastapi(fastapi, emitter)
    engine = create_engine("sqlite://")
    instrument_engine(engine, emitter)

    @flask.get("/users/<int:user>")
    def user(user: int) -> str:
        with engine.connect() as connection:
            return str(connection.execute(text("SELECT 'secret', 7")).scalar())

    @fastapi.get("/items/{item}")
    async def show(item: int) -> int:
        await wait()
        return item

    with use_span(trace_id="trace-1", span_id="span-1"):
        work(1)
        with pytest.raises(ZeroDivisionError):
            work(0)
    assert flask.test_client().get("/users/7").text == "secret"

    async def ask() -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=fastapi), base_url="http://test") as client:
            return (await client.get("/items/5")).json()

    assert asyncio.run(ask()) == 5
    engine.dispose()
    collector.close()
    found = events(tmp_path)
    kinds = collections.Counter(event["kind"] for event in found)
    assert kinds["FN"] == kinds["FN_META"] + 1 == 4  # work twice, wait, and the Flask adapter's own
    assert (kinds["REQ"], kinds["REQ_META"], kinds["DB"], kinds["HTTP"]) == (1, 1, 1, 1)
    first = next(event for event in found if event["kind"] == "FN")
    assert list(first) == ["ts_ns", "trace_id", "span_id", "kind", "fn", "dur_ns", "error"]
    assert (first["fn"].split(".")[-1], first["trace_id"], first["error"]) == ("work", "trace-1", False)
    (query,) = [event for event in found if event["kind"] == "DB"]
    assert (query["query"], query["db_vendor"]) == ("SELECT ?, ?", "sqlite")
    assert [event["route"] for event in found if event["kind"] == "REQ"] == ["/users/<int:user>"]
    assert [event["path"] for event in found if event["kind"] == "HTTP"] == ["/items/5"]
    assert "_altered" not in {key for event in found for key in event}


def test_their_collector_hands_over_everything_and_closes_the_exporter(tmp_path: Path) -> None:
    exporter = JSONLExporter(dir=tmp_path, rotate_bytes=20_000)
    collector: Any = TheirCollector(exporter, queue_size=100_000)

    def work(worker: int) -> None:
        for number in range(2000):
            collector.enqueue({"worker": worker, "seq": number})

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    collector.close(timeout=30)
    assert (collector.enqueued, collector.processed, collector.dropped_oldest, collector.flush_errors) == (
        8000,
        8000,
        0,
        0,
    )
    counts = collections.Counter((event["worker"], event["seq"]) for event in events(tmp_path))
    assert counts == {(worker, number): 1 for worker in range(4) for number in range(2000)}
    assert len(segments_of(str(tmp_path))) > 5
    # Closed, flushed, and its spool removed: nothing is left for others to do.
    report = recover(tmp_path)
    assert (report.live_spools, report.dead_spools, report.flushed_bytes) == (0, 0, 0)


def test_their_console_and_our_exporter_may_share_our_collector(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collector = AsyncCollector([TheirConsole(), JSONLExporter(dir=tmp_path)])
    Emitter(collector).emit_fn("load", dur_ns=5)  # type: ignore[arg-type]  # it asks for enqueue, no more
    assert collector.flush()
    collector.close()
    assert len(events(tmp_path)) == 1
    assert "load" in capsys.readouterr().out


def test_in_a_forked_child_their_collector_holds_on_to_events_and_ours_does_not(tmp_path: Path) -> None:
    """Its thread is the parent's: what the child enqueues waits for a ``close`` that a kill never lets come."""
    for name, kind in (("theirs", TheirCollector), ("ours", AsyncCollector)):
        exporter = JSONLExporter(dir=tmp_path / name)
        collector: Any = kind(exporter)
        collector.enqueue({"who": "parent"})

        def child(collector: Any = collector) -> None:
            for number in range(100):
                collector.enqueue({"who": "child", "number": number})
            os.kill(os.getpid(), signal.SIGKILL)

        assert reap(fork(child)) == -signal.SIGKILL
        collector.close()
        recover(tmp_path / name)
    counts = {
        name: collections.Counter(event["who"] for event in events(tmp_path / name)) for name in ("theirs", "ours")
    }
    assert counts == {"theirs": {"parent": 1}, "ours": {"parent": 1, "child": 100}}


@pytest.mark.parametrize(
    ("collector", "options", "ending"),
    [
        ("ours", ("--preload",), signal.SIGKILL),
        ("theirs", (), signal.SIGTERM),
    ],
)
def test_answered_requests_are_in_the_log_once(
    tmp_path: Path, collector: str, options: tuple[str, ...], ending: signal.Signals
) -> None:
    """With our collector whatever happens; with theirs while no worker is killed and the application not preloaded."""
    seed = random.randrange(1 << 32)
    logs = tmp_path / "logs"
    target = f"upstream_app:make('{collector}')"
    with gunicorn(tmp_path, target, "--workers=3", *options, LOGS=str(logs)) as (port, master):
        with clients_of(port) as clients:
            if ending == signal.SIGKILL:
                kill_workers(master, clients, 4, random.Random(seed))
            else:
                clients.wait_for_more(200)
        end(master, ending)
    assert not recover(logs).failures
    found = events(logs)
    queries = collections.Counter(event["query"] for event in found if event["kind"] == "DB")
    context = f"seed {seed}, {len(clients.answered)} answered"
    assert [number for number in clients.answered if queries[f"SELECT {number}"] != 1] == [], context
    assert max(queries.values()) == 1, context
    routes = collections.Counter(event["route"] for event in found if event["kind"] == "REQ")
    assert routes["/<number>"] >= len(clients.answered), context


def test_the_pages_code_writes_what_it_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "profilis.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for number, code in enumerate(blocks):
        directory = tmp_path / str(number)
        directory.mkdir()
        subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=directory, timeout=100, check=True)
        assert [event["kind"] for event in events(directory / "logs")] == ["FN", "FN_META"]

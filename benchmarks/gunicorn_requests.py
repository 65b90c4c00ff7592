"""How many requests per second does a real gunicorn answer, with and without an event per request?

Workload: gunicorn, 2 sync workers, a Flask application that asks SQLite twice and renders a page of 20 rows
(`gunicorn_app`); wrk with 4 connections. All servers are up all the time, and are asked in turn, round by round.
"ProfilisFlask" is this package's adapter, which opens a span and gives each request its trace id; "enqueue" and the
peers log one event from the same two hooks (before_request and after_request). Flask takes its time to call those,
whoever logs there: "hooks, event thrown away" says how much. So there are two comparisons: with the application as it
is, and with its hooks but nobody who writes. This package's two are asked twice in each round, between two turns of
what they are compared with, of which the mean counts. Peers with a queue run with --preload, so that the master has it.

On two cores wrk takes its share of them, the same for everybody. "CPU per request" is what the workers used, as the
kernel counts it: it hardly depends on what else the machine does. Events are counted against those requests.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from common import ROUNDS, Report, scratch, spread
from peers import (
    Appended,
    Collector,
    ConcurrentLogHandler,
    Loguru,
    Nothing,
    Profilis,
    StdlibQueue,
    StdlibRotating,
    available,
    lines_in,
)

from profilis_mp import recover

SECONDS = 1
BARE, HOOKS = "no event", "hooks, event thrown away"
FLASK, ENQUEUE = "profilis_mp, ProfilisFlask", "profilis_mp enqueue, in hooks"
SERVERS = {
    BARE: ("", None),
    HOOKS: ("Nothing", Nothing),
    FLASK: ("flask", None),
    ENQUEUE: ("Collector", Collector),
    "orjson + O_APPEND write": ("Appended", Appended),
    "concurrent-log-handler": ("ConcurrentLogHandler", ConcurrentLogHandler),
    "loguru, enqueue=True": ("Loguru", Loguru),
    "stdlib queue + listener": ("StdlibQueue", StdlibQueue),
    "stdlib RotatingFileHandler": ("StdlibRotating", StdlibRotating),
    "profilis collector": ("Profilis", Profilis),
}


@contextlib.contextmanager
def server(logger: str, directory: str) -> Iterator[tuple[int, int]]:
    """gunicorn with that logger; gives its port and its master's pid."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.makedirs(directory, exist_ok=True)
    command = [sys.executable, "-m", "gunicorn", "-w", "2", "-b", f"127.0.0.1:{port}", "gunicorn_app:app"]
    if logger in ("Loguru", "StdlibQueue"):
        command.append("--preload")
    environment = {**os.environ, "BENCH_LOGGER": logger, "BENCH_LOGS": directory}
    with open(f"{directory}.out", "wb") as output:
        process = subprocess.Popen(
            command, cwd=Path(__file__).parent, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/users/1", timeout=10).read()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError(Path(f"{directory}.out").read_text()) from None
                time.sleep(0.05)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def cpu_us(port_and_master: tuple[int, int]) -> float:
    """Processor time that the workers have used so far, microseconds."""
    master = port_and_master[1]
    used = 0.0
    for worker in Path(f"/proc/{master}/task/{master}/children").read_text().split():
        for thread in Path(f"/proc/{worker}/task").iterdir():
            used += int((thread / "schedstat").read_text().split()[0]) / 1000
    return used


def load(port: int, seconds: int) -> tuple[float, float, int]:
    """wrk's requests per second, p99 in milliseconds, and requests."""
    command = ["wrk", "-t1", "-c4", f"-d{seconds}s", "--latency", f"http://127.0.0.1:{port}/users/42"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", text)
    requests = re.search(r"(\d+) requests in", text)
    assert rate is not None, text
    assert p99 is not None, text
    assert requests is not None, text
    assert "Non-2xx" not in text, text
    unit = {"us": 1e-3, "ms": 1.0, "s": 1e3}[p99[2]]
    return float(rate[1]), float(p99[1]) * unit, int(requests[1])


def main() -> None:
    report = Report(
        __file__,
        "How many requests per second does gunicorn answer, with and without an event per request?",
        f"2 sync workers, wrk with 4 connections, {SECONDS} s a turn, {ROUNDS} rounds, median (min-max)",
    )
    if shutil.which("wrk") is None:
        report.say("wrk is not installed (apt-get install wrk): nothing was measured")
        report.save()
        return
    there = {name: one for name, one in SERVERS.items() if one[1] is None or available(one[1])}
    rates: dict[str, list[float]] = {name: [] for name in there}
    ratios: dict[tuple[str, str], list[float]] = {(name, base): [] for name in there for base in (BARE, HOOKS)}
    p99s: dict[str, list[float]] = {name: [] for name in there}
    costs: dict[str, list[float]] = {name: [] for name in there}
    asked: dict[str, int] = dict.fromkeys(there, 1)  # the one that waited for the server
    with scratch() as directory, contextlib.ExitStack() as stack:
        logs = {name: f"{directory}/{number}" for number, name in enumerate(there)}
        ports = {name: stack.enter_context(server(logger, logs[name])) for name, (logger, _) in there.items()}

        def turn(name: str) -> float:
            used = cpu_us(ports[name])
            rate, p99, requests = load(ports[name][0], SECONDS)
            costs[name].append((cpu_us(ports[name]) - used) / requests)
            rates[name].append(rate)
            p99s[name].append(p99)
            asked[name] += requests
            return rate

        def compare(name: str, base: str, times: int) -> None:
            # One of the base before and after each: the machine's mood changes more slowly than that.
            before = turn(base)
            for _ in range(times):
                rate = turn(name)
                after = turn(base)
                ratios[name, base].append(2 * rate / (before + after))
                before = after

        for name in there:
            asked[name] += load(ports[name][0], 1)[2]
        for _ in range(ROUNDS):
            compare(FLASK, BARE, 2)
            compare(HOOKS, BARE, 1)
            compare(ENQUEUE, HOOKS, 2)
            hooks = rates[HOOKS][-1]
            for name in there:
                if name not in (BARE, HOOKS, FLASK, ENQUEUE):
                    ratios[name, HOOKS].append(turn(name) / hooks)
        stack.close()
        rows = []
        for name in SERVERS:
            if name not in there:
                rows.append([name, *["not installed"] * 6])
                continue
            if name in (FLASK, ENQUEUE):
                recover(logs[name])
            events = sum(b'"REQ"' in line for line in lines_in(logs[name]))
            # wrk leaves at most its open connections unanswered at the end of each turn.
            share = f"{100 * min(events / asked[name], 1):.1f} %" if name not in (BARE, HOOKS) else ""
            against = [spread(ratios[name, base], ".3f") if ratios[name, base] else "" for base in (BARE, HOOKS)]
            cost = spread(costs[name], ".0f")
            rows.append([name, spread(rates[name], ".0f"), *against, cost, spread(p99s[name], ".1f"), share])
            report.figures[name] = {
                "cpu_us": statistics.median(costs[name]),
                "per_s": statistics.median(rates[name]),
                **{f"against {base}": statistics.median(r) for base in (BARE, HOOKS) if (r := ratios[name, base])},
                "events": events,
                "requests": asked[name],
            }
    head = ["requests/s", f"against {BARE}", "against hooks alone", "CPU per request, us", "p99, ms", "events on disk"]
    report.table(["", *head], rows)
    report.save()


if __name__ == "__main__":
    main()

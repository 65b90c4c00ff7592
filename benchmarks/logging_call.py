"""What does a log call cost the thread that makes it, through which handler?

One process, one thread, one logger, no other handler. Three calls: a message with one argument; the same with two
fields in ``extra``; and one with an exception and its traceback. Files would rotate at 10 MB, which no round reaches.
Processor time per call, all threads of the process counted (so also our helper's), because the machine is shared;
handlers take turns, the median of the rounds stands with its spread. After each round the records on disk are counted.

Left out: contention and rotation. One process is the others' best case: their lock or their queue is free.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from common import Report, scratch, spread
from loguru import logger as loguru_logger

from profilis_mp import JSONLExporter
from profilis_mp.logging import JSONLHandler
from profilis_mp.loguru import JSONLSink
from profilis_mp.structlog import JSONLLoggerFactory

try:
    from concurrent_log_handler import ConcurrentRotatingFileHandler
except ImportError:
    ConcurrentRotatingFileHandler = None

ROUNDS = 5
CALLS = 5_000
NOTHING = "NullHandler (logging itself)"
FORMAT = "%(asctime)s %(process)d %(name)s %(levelname)s %(message)s"
LIMITS: dict[str, Any] = {"maxBytes": 10_000_000, "backupCount": 5}


def message(logger: Any, number: int) -> None:
    logger.info("request %d is done", number)


def fields(logger: Any, number: int) -> None:
    logger.info("request %d is done", number, extra={"user": number, "route": "/users/<id>"})


def exception(logger: Any, number: int) -> None:
    try:
        raise ValueError(number)
    except ValueError:
        logger.exception("request %d failed", number)


def handlers(directory: str) -> dict[str, Callable[[], logging.Handler]]:
    path = f"{directory}/app.log"
    found: dict[str, Callable[[], logging.Handler]] = {
        NOTHING: logging.NullHandler,
        "FileHandler": lambda: logging.FileHandler(path),
        "RotatingFileHandler": lambda: logging.handlers.RotatingFileHandler(path, **LIMITS),
    }
    if ConcurrentRotatingFileHandler is not None:
        found["ConcurrentRotatingFileHandler"] = lambda: ConcurrentRotatingFileHandler(path, **LIMITS)
    found["JSONLHandler"] = lambda: JSONLHandler(path, **LIMITS)
    found['JSONLHandler, format="text"'] = lambda: JSONLHandler(path, format="text", **LIMITS)
    return found


def measure(call: Callable[[Any, int], None], name: str) -> float:
    with scratch() as directory:
        handler = handlers(directory)[name]()
        handler.setFormatter(logging.Formatter(FORMAT))
        logger = logging.Logger("bench")
        logger.addHandler(handler)
        used = timed(lambda number: call(logger, number))
        handler.close()
        if name != NOTHING:
            check(directory, name)
    return used


def timed(call: Callable[[int], None]) -> float:
    """Microseconds of processor time per call."""
    started = time.process_time()
    for number in range(CALLS):
        call(number)
    return (time.process_time() - started) / CALLS * 1e6


def check(directory: str, name: str) -> None:
    """Each record is there: losses would stand beside speed."""
    records = sum(path.read_text().count("request ") for path in Path(directory).glob("app*.log*"))
    if records != CALLS:
        raise SystemExit(f"{name} wrote {records} of {CALLS}")


def libraries() -> dict[str, list[float]]:
    """structlog and loguru: to a file of their own, and to the shared log."""
    found: dict[str, list[float]] = {}
    steps: list[Any] = [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso")]
    steps.append(structlog.processors.JSONRenderer())

    def round_of(name: str, call: Callable[..., Any]) -> None:
        found.setdefault(name, []).append(timed(lambda number: call("done", user=number)))

    for _ in range(ROUNDS):
        with scratch() as directory, open(f"{directory}/structlog.jsonl", "w", buffering=1) as file:
            factory = structlog.WriteLoggerFactory(file)
            round_of("structlog, JSON to a file", structlog.wrap_logger(factory(), processors=steps).info)
            loguru_logger.remove()
            loguru_logger.add(f"{directory}/loguru.log", serialize=True)
            round_of("loguru, JSON to a file", loguru_logger.info)
            loguru_logger.remove()
            with JSONLExporter(directory) as exporter:
                logger = structlog.wrap_logger(JSONLLoggerFactory(exporter)(), processors=[])
                round_of("structlog, JSONLLoggerFactory", logger.info)
                loguru_logger.add(JSONLSink(exporter), format="{message}")
                round_of("loguru, JSONLSink", loguru_logger.info)
                loguru_logger.remove()
    return found


def main() -> None:
    report = Report(__file__, "What does a log call cost the thread that makes it, through which handler?")
    report.say(
        f"# {ROUNDS} rounds of {CALLS} calls; processor time per call, µs, median (min-max), and times FileHandler"
    )
    report.say(f"# formatter of all but JSON: {FORMAT}")
    with scratch() as directory:
        names = list(handlers(directory))
    if ConcurrentRotatingFileHandler is None:
        report.say("# concurrent-log-handler: not installed")
    for call in (message, fields, exception):
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(ROUNDS):
            for name in names:
                times[name].append(measure(call, name))
        base = statistics.median(times["FileHandler"])
        for name in names:
            ratio = statistics.median(times[name]) / base
            report.say(f"{call.__name__:<10} {name:<32} {spread(times[name], '.1f'):<22} {ratio:.2f}")
    for name, used in libraries().items():
        report.say(f"{'message':<10} {name:<32} {spread(used, '.1f')}")
    report.save()


if __name__ == "__main__":
    os.environ.pop("PROFILIS_DEBUG", None)
    main()

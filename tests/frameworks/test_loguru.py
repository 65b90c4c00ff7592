"""loguru's messages in the shared log."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from loguru import logger

from profilis_mp import ConfigError, JSONLExporter
from profilis_mp.account import segments_of
from profilis_mp.core.context import use_span
from profilis_mp.logging import JSONLHandler
from profilis_mp.loguru import JSONLSink


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[JSONLExporter]:
    logger.remove()
    with JSONLExporter(tmp_path / "logs") as exporter:
        yield exporter
        logger.remove()


def events(exporter: JSONLExporter) -> list[dict[str, Any]]:
    return [orjson.loads(line) for path in segments_of(exporter.dir) for line in Path(path).read_bytes().splitlines()]


def test_bound_values_context_and_exceptions_become_fields(exporter: JSONLExporter) -> None:
    number = logger.add(JSONLSink(exporter))
    with logger.contextualize(request="r-1"), use_span() as span:
        logger.bind(user=7, level="gold").warning("{} left", 3)
    secret = "p4ss" + "w0rd"
    try:
        raise ValueError("bad", len(secret))
    except ValueError:
        logger.exception("failed")
    logger.opt(lazy=True).debug("{}", lambda: "late")
    logger.remove(number)  # which flushes
    low, failed, late = events(exporter)
    assert list(low) == [
        *("ts_ns", "trace_id", "span_id", "kind", "level", "logger", "message", "pid", "thread"),
        *("file", "line", "function", "request", "user", "level~2"),
    ]
    assert (low["level"], low["logger"], low["message"]) == ("WARNING", __name__, "3 left")
    assert (low["trace_id"], low["user"], low["level~2"], low["request"]) == (span.trace_id, 7, "gold", "r-1")
    assert (low["pid"], low["thread"], low["file"]) == (os.getpid(), "MainThread", __file__)
    assert low["function"] == "test_bound_values_context_and_exceptions_become_fields"
    assert (failed["exception_type"], failed["exception_message"]) == ("ValueError", "('bad', 8)")
    assert failed["traceback"].endswith("ValueError: ('bad', 8)")
    # loguru's own tracebacks show the values of variables, passwords included; this one does not.
    assert secret not in failed["traceback"]
    assert late["message"] == "late"


def test_the_standard_librarys_handler_is_a_sink_as_well(exporter: JSONLExporter) -> None:
    logger.add(JSONLHandler(exporter=exporter), format="{message}")
    logger.bind(user=7).info("paid")
    logger.remove()
    (event,) = events(exporter)
    assert (event["level"], event["message"], event["extra"]) == ("INFO", "paid", {"user": 7})


def test_nothing_is_raised_into_the_application(
    caplog: pytest.LogCaptureFixture, exporter: JSONLExporter, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def emit(self, event: object) -> None:
            raise RuntimeError("broken collector of loguru")

    logger.add(JSONLSink(Broken()), catch=False)
    logger.info("x")
    logger.remove()
    assert "broken collector of loguru" in caplog.text
    with pytest.raises(ConfigError, match="collector"):
        JSONLSink(print)

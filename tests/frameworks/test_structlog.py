"""structlog's events in the shared log: natively, beside a console, and through the standard library."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog

from profilis_mp import AsyncCollector, ConfigError, JSONLExporter
from profilis_mp.account import segments_of
from profilis_mp.core.context import use_span
from profilis_mp.logging import JSONLHandler
from profilis_mp.structlog import JSONLLoggerFactory, JSONLProcessor


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[JSONLExporter]:
    with JSONLExporter(tmp_path / "logs") as exporter:
        yield exporter
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def events(exporter: JSONLExporter) -> list[dict[str, Any]]:
    exporter.flush()
    return [orjson.loads(line) for path in segments_of(exporter.dir) for line in Path(path).read_bytes().splitlines()]


def test_bound_values_context_and_exceptions_become_fields(exporter: JSONLExporter) -> None:
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars], logger_factory=JSONLLoggerFactory(exporter)
    )
    log = structlog.get_logger("shop").bind(user=7)
    with structlog.contextvars.bound_contextvars(request="r-1"), use_span() as span:
        before = time.time_ns()
        log.warning("low", left=3, level="gold")
    try:
        raise ValueError("bad")
    except ValueError as error:
        log.exception("failed")
        log.error("given", exc_info=error)
    log.info("all is well", exc_info=True)
    asyncio.run(log.ainfo("asked for"))
    low, failed, given, well, asked = events(exporter)
    assert list(low)[:8] == ["ts_ns", "trace_id", "span_id", "kind", "level", "logger", "message", "pid"]
    assert set(list(low)[8:]) == {"user", "request", "left", "level~2"}
    assert before <= low["ts_ns"] <= time.time_ns()
    assert (low["kind"], low["level"], low["logger"], low["message"]) == ("LOG", "WARNING", "shop", "low")
    assert (low["trace_id"], low["user"], low["request"], low["left"]) == (span.trace_id, 7, "r-1", 3)
    for event in (failed, given):
        assert (event["level"], event["exception_type"], event["exception_message"]) == ("ERROR", "ValueError", "bad")
        assert event["traceback"].endswith("ValueError: bad")
    assert (well["level"], "exception_type" in well, "exc_info" in well) == ("INFO", False, False)
    assert asked["message"] == "asked for"


def test_what_structlogs_usual_processors_add_has_its_place(exporter: JSONLExporter) -> None:
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
        ],
        logger_factory=JSONLLoggerFactory(exporter),
    )
    try:
        raise ValueError("bad")
    except ValueError:
        structlog.get_logger().critical("failed", exc_info=True, stack_info=True)
    (event,) = events(exporter)
    assert (event["level"], event["message"], "logger" in event) == ("CRITICAL", "failed", False)
    assert "ValueError: bad" in event["traceback"]
    assert "test_structlog" in event["stack"]
    assert "timestamp" in event
    assert not {"event", "exception", "level~2", "stack~2"} & set(event)


def test_a_rendered_line_is_the_message(exporter: JSONLExporter) -> None:
    structlog.configure(
        processors=[structlog.processors.KeyValueRenderer()], logger_factory=JSONLLoggerFactory(exporter)
    )
    structlog.get_logger().info("x", left=3)
    assert events(exporter)[0]["message"] == "left=3 event='x'"


def test_every_method_of_structlogs_loggers_is_there(exporter: JSONLExporter) -> None:
    structlog.configure(processors=[], logger_factory=JSONLLoggerFactory(exporter), wrapper_class=structlog.BoundLogger)
    log = structlog.get_logger()
    names = ["debug", "info", "msg", "warning", "warn", "error", "err", "exception", "failure", "critical", "fatal"]
    for name in names:
        getattr(log, name)(name)
    found = events(exporter)
    assert [event["message"] for event in found] == names
    assert {event["level"] for event in found} == {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}


def test_a_processor_writes_and_the_console_goes_on(
    exporter: JSONLExporter, capsys: pytest.CaptureFixture[str]
) -> None:
    collector = AsyncCollector(exporter)
    structlog.configure(
        processors=[JSONLProcessor(collector), structlog.dev.ConsoleRenderer(colors=False)],
        logger_factory=structlog.PrintLoggerFactory(),
    )
    structlog.get_logger().info("paid", order=7)
    assert capsys.readouterr().out.split() == ["paid", "order=7"]
    (event,) = events(exporter)
    assert (event["message"], event["order"], event["level"]) == ("paid", 7, "INFO")
    collector.close()


def test_structlog_over_the_standard_library_needs_the_handler_only(exporter: JSONLExporter) -> None:
    handler = JSONLHandler(exporter=exporter)
    logger = logging.getLogger("structlog-over-stdlib")
    logger.addHandler(handler)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.stdlib.render_to_log_kwargs],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    try:
        raise ValueError("bad")
    except ValueError:
        structlog.get_logger("structlog-over-stdlib").bind(user=7).exception("failed", left=3)
    finally:
        logger.removeHandler(handler)
    (event,) = events(exporter)
    assert (event["logger"], event["message"], event["user"], event["left"]) == (logger.name, "failed", 7, 3)
    assert event["exception_type"] == "ValueError"


def test_nothing_is_raised_into_the_application(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def emit(self, event: object) -> None:
            raise RuntimeError("broken collector")

    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    structlog.configure(processors=[], logger_factory=JSONLLoggerFactory(Broken()))
    structlog.get_logger(Hostile()).info(Hostile(), level=Hostile())
    structlog.reset_defaults()
    assert "broken collector" in caplog.text
    with pytest.raises(ConfigError, match="collector"):
        JSONLLoggerFactory(print)


@pytest.mark.parametrize("name", ["structlog", "loguru"])
def test_without_the_package_the_error_says_what_to_install(name: str) -> None:
    code = f"import sys; sys.modules[{name!r}] = None; import profilis_mp.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f'pip install "profilis_mp[{name}]"' in done.stderr.splitlines()[-1]

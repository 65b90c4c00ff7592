"""The logging handler in one process: what a record becomes, and what must never reach the application."""

from __future__ import annotations

import asyncio
import io
import logging
import logging.config
import logging.handlers
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from profilis_mp import JSONLExporter, recover
from profilis_mp.account import segments_of
from profilis_mp.core.context import use_span
from profilis_mp.logging import JSONLHandler, SpanFilter

MakeLogger = Callable[..., logging.Logger]


@pytest.fixture
def make_logger(tmp_path: Path) -> Iterator[MakeLogger]:
    """Makes a logger, outside of the usual tree, with a handler of the given options."""
    loggers: list[logging.Logger] = []

    def make(name: str = "shop", **options: Any) -> logging.Logger:
        logger = logging.Logger(name)
        logger.addHandler(JSONLHandler(tmp_path / "logs" / "app.log", **options))
        loggers.append(logger)
        return logger

    yield make
    for logger in loggers:
        for handler in logger.handlers:
            handler.close()


def written(directory: Path) -> list[str]:
    return [line for path in segments_of(str(directory / "logs")) for line in Path(path).read_text().splitlines()]


def events(logger: logging.Logger, directory: Path) -> list[dict[str, Any]]:
    for handler in logger.handlers:
        handler.flush()
    return [orjson.loads(line) for line in written(directory)]


def test_a_record_becomes_an_event_with_its_keys_in_order(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger()
    with use_span() as span:
        logger.error("paid %d of %s", 3, "four", extra={"order": 7, "tags": {"a"}, "when": Path("/x")}, stack_info=True)
    (event,) = events(logger, tmp_path)
    assert list(event) == [
        *("ts_ns", "trace_id", "span_id", "kind", "level", "logger", "message", "pid", "thread"),
        *("file", "line", "function", "stack", "order", "tags", "when", "_altered"),
    ]
    assert (event["trace_id"], event["span_id"]) == (span.trace_id, span.span_id)
    assert (event["kind"], event["level"], event["logger"]) == ("LOG", "ERROR", "shop")
    assert (event["message"], event["pid"], event["thread"]) == ("paid 3 of four", os.getpid(), "MainThread")
    assert (event["file"], event["function"]) == (__file__, "test_a_record_becomes_an_event_with_its_keys_in_order")
    assert event["stack"].startswith("Stack (most recent call last)")
    assert (event["order"], event["tags"], event["_altered"]["tags"]) == (7, ["a"], "set")


def test_the_time_is_the_records_own(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger()
    record = logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": "late", "created": 1_700_000_000.25})
    logger.handlers[0].handle(record)
    assert events(logger, tmp_path)[0]["ts_ns"] == 1_700_000_000_250_000_000


def test_an_exception_becomes_fields(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger()
    try:
        raise ValueError("bad\nnews")
    except ValueError:
        logger.exception("it failed")
    logger.error("no exception is there", exc_info=True)
    logger.error("one that was not raised", exc_info=KeyError("k"))
    failed, without, unraised = events(logger, tmp_path)
    assert (failed["exception_type"], failed["exception_message"]) == ("ValueError", "bad\nnews")
    assert failed["traceback"].startswith("Traceback (most recent call last):\n")
    assert failed["traceback"].endswith("ValueError: bad\nnews")
    assert "exception_type" not in without
    assert (unraised["exception_type"], unraised["exception_message"]) == ("KeyError", "'k'")


def test_records_made_elsewhere_may_lack_whatever_they_like(make_logger: MakeLogger, tmp_path: Path) -> None:
    """From a socket or a queue, with `logging.logProcesses` off, or from a library that makes its own."""
    handler = make_logger().handlers[0]
    handler.handle(
        logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": "a", "process": None, "exc_text": "b"})
    )
    handler.handle(logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": "c", "exc_info": ValueError("d")}))
    handler.flush()
    first, second = (orjson.loads(line) for line in written(tmp_path))
    assert {"pid", "function"}.isdisjoint(first)
    assert (first["traceback"], "exception_type" in first) == ("b", False)
    assert (second["exception_type"], second["exception_message"]) == ("ValueError", "d")


def test_an_exception_that_cannot_be_written_is_written_as_far_as_it_goes(
    make_logger: MakeLogger, tmp_path: Path
) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    class Formatter(logging.Formatter):
        def formatException(self, ei: Any) -> str:  # noqa: N802
            raise RuntimeError("no traceback")

    logger = make_logger()
    logger.handlers[0].setFormatter(Formatter())
    try:
        raise Mute
    except Mute:
        logger.exception("it failed")
    (event,) = events(logger, tmp_path)
    assert (event["message"], event["exception_type"]) == ("it failed", "Mute")
    assert "raise Mute" in event["traceback"]


def test_extras_never_change_what_a_key_means(make_logger: MakeLogger, tmp_path: Path) -> None:
    """Only the trace is the application's to say: a tracer of its own may know better."""
    logger = make_logger()
    logger.info("x", extra={"level": 5, "level~2": 6, "kind": "REQ", "task": "t", "trace_id": "t-1", 7: "seven"})
    (event,) = events(logger, tmp_path)
    assert (event["level"], event["level~3"], event["level~2"]) == ("INFO", 5, 6)
    assert (event["kind"], event["kind~2"], event["task~2"], event["trace_id"]) == ("LOG", "REQ", "t", "t-1")
    assert event["7"] == "seven"


def test_a_message_that_its_arguments_do_not_fit_is_written_with_them_and_complained_about(
    make_logger: MakeLogger, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hostile:
        def __str__(self) -> str:
            raise OSError("no")

    logger = make_logger()
    logger.info("%d apples", "many")
    logger.info("%s %s", 1, extra={"order": 7})
    logger.info("%s", Hostile())
    logger.info(Hostile())
    complaints = capsys.readouterr().err
    assert complaints.count("--- Logging error ---") == 4
    assert "%d apples" in complaints
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.info("%d apples", "few")
    assert capsys.readouterr().err == ""
    found = events(logger, tmp_path)
    assert [event["message"] for event in found[:3]] == ["%d apples", "%s %s", "%s"]
    assert found[0]["args"] == ["many"]
    assert found[0]["message_error"].startswith("TypeError: %d format")
    assert (found[1]["args"], found[1]["order"]) == ([1], 7)
    assert "Hostile" in found[3]["message"]
    assert found[4]["args"] == ["few"]


def test_arguments_are_formatted_once_and_at_once(make_logger: MakeLogger, tmp_path: Path) -> None:
    class Counted:
        times = 0

        def __str__(self) -> str:
            self.times += 1
            return f"formatted {self.times} times"

    logger = make_logger()
    counted, cart = Counted(), ["tea"]
    logger.info("%s", counted, extra={"cart": cart})
    logger.setLevel("INFO")
    logger.debug("%s", counted)
    cart.append("later")
    (event,) = events(logger, tmp_path)
    assert (event["message"], event["cart"]) == ("formatted 1 times", ["tea"])


def test_a_closed_standard_error_stops_nobody(
    make_logger: MakeLogger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = make_logger()
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    logger.info("%d", "x")
    monkeypatch.setattr(sys, "stderr", None)
    logger.info("%d", "y")
    assert [event["args"] for event in events(logger, tmp_path)] == [["x"], ["y"]]


def test_an_exporter_of_the_applications_that_raises_stops_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(JSONLExporter):
        def emit(self, event: Any) -> None:
            raise RuntimeError("broken exporter")

    logger = logging.Logger("shop")
    with Broken(tmp_path) as exporter:
        logger.addHandler(JSONLHandler(exporter=exporter))
        logger.info("x")
    assert "broken exporter" in capsys.readouterr().err


def test_a_signal_handlers_exception_is_the_applications(make_logger: MakeLogger, tmp_path: Path) -> None:
    """A soft time limit that strikes while a message is being formatted must not end as a logging error."""

    class SoftTimeLimit(Exception):
        pass

    def strike(*_: object) -> None:
        raise SoftTimeLimit

    class Slow:
        def __str__(self) -> str:
            os.kill(os.getpid(), signal.SIGUSR1)
            return "slow"

    logger = make_logger()
    before = signal.signal(signal.SIGUSR1, strike)
    try:
        with pytest.raises(SoftTimeLimit):
            logger.info("%s", Slow())
    finally:
        signal.signal(signal.SIGUSR1, before)
    logger.info("on")
    assert [event["message"] for event in events(logger, tmp_path)] == ["on"]


def test_a_signal_handler_may_log_while_its_thread_logs(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger()

    class Slow:
        def __str__(self) -> str:
            os.kill(os.getpid(), signal.SIGUSR1)
            return "outer"

    before = signal.signal(signal.SIGUSR1, lambda *_: logger.warning("inner"))
    try:
        for _ in range(20):
            logger.info("%s", Slow())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sorted(event["message"] for event in events(logger, tmp_path)) == ["inner"] * 20 + ["outer"] * 20


def test_an_exhausted_stack_loses_a_record_at_most_and_counts_it(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger()
    handler = logger.handlers[0]
    assert isinstance(handler, JSONLHandler)
    tried = 0
    logger.info("the first record makes the spool")

    def deeper() -> None:
        nonlocal tried
        record = logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": "deep"})
        try:
            deeper()
        except RecursionError:
            pass
        if tried < 60:
            tried += 1
            handler.emit(record)

    deeper()
    logger.info("on")
    found = [event.get("message") for event in events(logger, tmp_path)]
    stats = handler.stats()
    assert found[-1] == "on"
    assert found.count("deep") + stats["failed"] + stats["dropped"].get("recursion_limit", 0) == tried == 60


def test_text_is_what_the_formatter_makes_of_it(
    make_logger: MakeLogger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = make_logger(format="text")
    logger.handlers[0].setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.info("one\nrecord\nof three lines")
    logger.info("the next, \udc80, %s", "é")
    try:
        raise ValueError("bad")
    except ValueError:
        logger.exception("failed")
    logger.info("%d", "x")
    assert "Logging error" in capsys.readouterr().err
    logger.handlers[0].flush()
    lines = written(tmp_path)
    assert lines[:4] == ["INFO one", "record", "of three lines", "INFO the next, \\udc80, é"]
    assert lines[4:6] == ["ERROR failed", "Traceback (most recent call last):"]
    assert lines[-2:] == ["ValueError: bad", "INFO:shop:%d ('x',)"]


def test_a_record_of_several_lines_is_never_split_over_two_segments(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger(format="text", maxBytes=300)
    for number in range(100):
        logger.info("\n".join([f"{number} first", f"{number} second", f"{number} third"]))
        logger.info("%d alone", number)
    logger.handlers[0].flush()
    paths = segments_of(str(tmp_path / "logs"))
    assert len(paths) > 10
    assert written(tmp_path) == [
        f"{number} {part}" for number in range(100) for part in ("first", "second", "third", "alone")
    ]
    for path in paths:
        assert Path(path).stat().st_size <= 300
        lines = Path(path).read_text().splitlines()
        assert lines[0].split()[1] in ("first", "alone")
        assert lines[-1].split()[1] in ("third", "alone")


def test_a_handler_may_share_an_exporter_and_leaves_it_open(tmp_path: Path) -> None:
    with JSONLExporter(tmp_path / "logs") as exporter:
        handler = JSONLHandler(exporter=exporter)
        handler.handle(logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": "log"}))
        handler.close()
        exporter.emit({"kind": "REQ"})
        exporter.flush()
        assert [orjson.loads(line)["kind"] for line in written(tmp_path)] == ["LOG", "REQ"]


def test_a_record_after_close_is_still_written(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger()
    logger.info("before")
    logger.handlers[0].close()
    logger.info("after")
    logger.handlers[0].close()
    assert [orjson.loads(line)["message"] for line in written(tmp_path)] == ["before", "after"]


def test_a_queue_in_front_keeps_the_callers_thread_and_with_a_filter_its_span(
    make_logger: MakeLogger, tmp_path: Path
) -> None:
    target = make_logger().handlers[0]
    records: queue.SimpleQueue[Any] = queue.SimpleQueue()
    front = logging.handlers.QueueHandler(records)
    front.addFilter(SpanFilter())
    listener = logging.handlers.QueueListener(records, target)
    logger = logging.Logger("shop")
    logger.addHandler(front)
    listener.start()
    try:
        with use_span() as span:
            logger.info("%s", "one", extra={"order": 7})
        try:
            raise ValueError("bad")
        except ValueError:
            logger.exception("two")
    finally:
        listener.stop()
    target.flush()
    first, second = (orjson.loads(line) for line in written(tmp_path))
    assert (first["message"], first["thread"], first["order"]) == ("one", "MainThread", 7)
    assert (first["trace_id"], first["span_id"]) == (span.trace_id, span.span_id)
    # QueueHandler itself writes the traceback into the message, before anybody else sees the record.
    assert second["message"].startswith("two\nTraceback")
    assert "trace_id" not in second


def test_the_asyncio_task_is_named(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger()

    async def work() -> None:
        logger.info("inside")

    async def main() -> None:
        await asyncio.create_task(work(), name="worker-7")

    asyncio.run(main())
    logger.info("outside")
    inside, outside = events(logger, tmp_path)
    assert inside["task"] == "worker-7"
    assert "task" not in outside


def test_do_rollover_seals_the_active_segment(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger()
    handler = logger.handlers[0]
    assert isinstance(handler, JSONLHandler)
    logger.info("one")
    handler.doRollover()
    logger.info("two")
    handler.flush()
    assert [Path(path).read_text().count("\n") for path in segments_of(str(tmp_path / "logs"))] == [1, 1]
    assert repr(handler) == f"<JSONLHandler {tmp_path}/logs (NOTSET)>"


def run(code: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program with ``handler`` on its root logger."""
    head = (
        "import logging, os, sys, threading, time\n"
        "from profilis_mp.logging import JSONLHandler\n"
        "handler = JSONLHandler(sys.argv[1] + '/logs/app.log')\n"
        "logging.basicConfig(handlers=[handler], level='DEBUG')\n"
    )
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", head + code, str(directory)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, **environment},
    )


def test_records_of_other_exit_hooks_and_after_shutdown_are_written(tmp_path: Path) -> None:
    """`logging` registers its own exit hook first, so it runs last; the exporter's, made by a record, before that."""
    done = run(
        "import atexit\n"
        "atexit.register(lambda: logging.info('registered before the first record'))\n"
        "logging.info('first')\n"
        "atexit.register(lambda: logging.info('registered after it'))\n"
        "class Late:\n"
        "    def __del__(self): logging.info('at the very end')\n"
        "late = Late()\n",
        tmp_path,
    )
    assert done.stderr == ""
    assert [orjson.loads(line)["message"] for line in written(tmp_path)] == [
        "first",
        "registered after it",
        "registered before the first record",
        "at the very end",
    ]


def test_the_librarys_own_warnings_go_where_somebody_sees_them_and_not_into_the_log(tmp_path: Path) -> None:
    """With the debug log on, each flush would be a record, which has to be flushed, and so on for ever."""
    code = (
        "from profilis_mp.diagnostics import warn\n"
        "logging.info('mine')\n"
        "logging.getLogger('profilis_mp_of_mine').info('too')\n"
        "warn('key', 'the disk is full')\n"
        "handler.flush()\n"
    )
    done = run(code, tmp_path, PROFILIS_DEBUG="1")
    assert done.stderr.count("the disk is full") == 1
    other = "logging.getLogger().addHandler(logging.StreamHandler(sys.stdout))\n"
    done = run(other + code, tmp_path)
    assert (done.stdout.count("the disk is full"), done.stderr) == (1, "")
    found = [orjson.loads(line)["message"] for line in written(tmp_path)]
    assert found == ["mine", "too"] * 2


def test_a_log_of_everything_does_not_feed_itself(tmp_path: Path) -> None:
    """watchdog and filelock have debug logs of their own, about what this very log does to its directory."""
    code = (
        "handler.doRollover()\n"  # so that there is a janitor's watch, and it has seen a segment come
        "logging.info('mine')\n"
        "handler.flush()\n"
        "import glob\n"
        "size = lambda: sum(os.path.getsize(path) for path in glob.glob(sys.argv[1] + '/logs/*.log'))\n"
        "deadline, before, quiet = time.monotonic() + 20, -1, 0\n"
        "while quiet < 20 and time.monotonic() < deadline:\n"
        "    time.sleep(0.1)\n"
        "    quiet = quiet + 1 if size() == before else 0\n"
        "    before = size()\n"
        "print(quiet, len([path for path in glob.glob(sys.argv[1] + '/logs/*.log')]))\n"
    )
    assert run(code, tmp_path).stdout.split()[0] == "20"


FORK_WHILE_LOGGED = """
import ctypes
class Slow:
    def __str__(self):
        started.set(); release.wait(30); return 'slow'
started, release = threading.Event(), threading.Event()
thread = threading.Thread(target=logging.info, args=('%s', Slow()), daemon=True)
thread.start()
started.wait(30)
pid = FORK()
if pid == 0:
    logging.getLogger().info('child')
    os._exit(0)
_, status = os.waitpid(pid, 0)
release.set()
thread.join()
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize("fork", ["os.fork", "ctypes.CDLL(None).fork"])
def test_a_fork_while_a_thread_logs_stops_no_child(tmp_path: Path, fork: str) -> None:
    """The second fork runs none of Python's hooks, as in uWSGI: there the locks of other handlers are never freed."""
    code = "import signal; signal.alarm(40)\n" + FORK_WHILE_LOGGED.replace("FORK", fork)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import logging, os, sys, threading\nfrom profilis_mp.logging import JSONLHandler\n"
            "logging.basicConfig(handlers=[JSONLHandler(sys.argv[1] + '/logs/app.log')], level='DEBUG')\n"
            "logging.info('first')\n" + code,
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "0\n", done.stderr
    # The child ended without any hook: what it left, the next to come writes.
    recover(tmp_path / "logs")
    assert sorted(orjson.loads(line)["message"] for line in written(tmp_path)) == ["child", "first", "slow"]


def test_threads_log_side_by_side(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger(maxBytes=20_000)

    def work(worker: int) -> None:
        for number in range(500):
            logger.info("x", extra={"worker": worker, "seq": number})

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = events(logger, tmp_path)
    for worker in range(4):
        assert [event["seq"] for event in found if event["worker"] == worker] == list(range(500))

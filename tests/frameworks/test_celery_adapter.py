"""Every execution of a task becomes exactly one FN event, and the task is otherwise left as it was; in one process."""

from __future__ import annotations

import builtins
import gc
import importlib
import logging
import mmap
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import orjson
import pytest
from celery import Celery, Task, signals, uuid
from celery.app.trace import build_tracer
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from processes import fork, reap, wait_until
from seen import Event, Seen

from profilis_mp import read_events
from profilis_mp.celery import patience
from profilis_mp.celery.adapter import ProfilisCelery
from profilis_mp.celery.boards import Board, Boards
from profilis_mp.core.context import current_span, new_trace_id, use_span
from profilis_mp.core.emitter import Emitter
from profilis_mp.core.traceparent import traceparent
from profilis_mp.errors import ConfigError
from profilis_mp.web.reporter import Reporter


@pytest.fixture
def seen() -> Seen:
    return Seen()


def application() -> Celery:
    app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(broker_connection_retry_on_startup=False)
    return app


@pytest.fixture
def app(seen: Seen) -> Celery:
    """Profiled first, then given tasks."""
    app = application()
    ProfilisCelery(app, collector=seen)
    return app


def made(app: Celery, **options: Any) -> Any:
    """A task of this application alone."""
    return app.task(shared=False, **options)


def done() -> str:
    return "done"


def where() -> object:
    return current_span()


def execute(task: Any, *args: Any, headers: dict[str, Any] | None = None, **request: Any) -> Any:
    """As a worker's pool does: by the tracer, with the headers of a message in the request."""
    task.app.finalize()
    tracer = build_tracer(task.name, task, app=task.app)
    about = {"id": uuid(), "task": task.name, "is_eager": False, "delivery_info": {}, **(headers or {}), **request}
    return tracer(about["id"], args, {}, about)


# -- the event


def test_an_execution_is_one_event_with_the_tasks_name(app: Celery, seen: Seen) -> None:
    @made(app, name="shop.add")
    def add(x: int, y: int) -> int:
        return x + y

    assert execute(add, 2, 3, id="7").retval == 5
    event = seen.only
    assert list(event) == [
        *("ts_ns", "trace_id", "span_id", "kind", "fn", "dur_ns", "error"),
        *("task_id", "state", "retries"),
    ]
    assert (event["kind"], event["fn"], event["task_id"], event["state"]) == ("FN", "shop.add", "7", "SUCCESS")
    assert 0 < event["dur_ns"] < 60 * 10**9
    assert event["error"] is False


@pytest.mark.parametrize(
    ("error", "state", "failed", "exception_type"),
    [
        (KeyError("x"), "FAILURE", True, "KeyError"),
        (SoftTimeLimitExceeded(1), "FAILURE", True, "SoftTimeLimitExceeded"),
        (Ignore(), "IGNORED", False, None),
        (Reject("no", requeue=False), "REJECTED", True, "Reject"),
        (Reject("later", requeue=True), "REJECTED", False, "Reject"),
    ],
)
def test_how_an_execution_ended_is_its_state(
    app: Celery, seen: Seen, error: Exception, state: str, failed: bool, exception_type: str | None
) -> None:
    @made(app)
    def end() -> None:
        raise error

    execute(end)
    assert (seen.only["state"], seen.only["error"], seen.only.get("exception_type")) == (state, failed, exception_type)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_task_that_ends_its_process_is_a_failure_and_does_so(app: Celery, seen: Seen, error: BaseException) -> None:
    @made(app)
    def end() -> None:
        raise error

    with pytest.raises(type(error)):
        execute(end)
    assert (seen.only["state"], seen.only["exception_type"]) == ("FAILURE", type(error).__name__)
    assert current_span() is None


def test_the_event_is_made_before_anybody_can_see_the_result(app: Celery, seen: Seen) -> None:
    counts = []

    class Told(Task):  # type: ignore[misc]  # untyped
        def on_success(self, *_: Any) -> None:
            counts.append(("success", len(seen.events)))

    @made(app, base=Told)
    def work() -> None:
        counts.append(("work", len(seen.events)))

    store, work.backend.store_result = (
        work.backend.store_result,
        lambda *args, **kwargs: (counts.append(("result", len(seen.events))), store(*args, **kwargs)),
    )
    execute(work)
    assert counts == [("work", 0), ("result", 1), ("success", 1)]


def test_a_retry_is_an_event_of_its_own_and_tells_what_it_was_because_of(app: Celery, seen: Seen) -> None:
    @made(app, bind=True)
    def flaky(self: Any, cause: str | None) -> str:
        if self.request.retries < 2:
            raise self.retry(exc=None if cause is None else ConnectionError(cause), countdown=0)
        return "done"

    assert flaky.apply(("once",)).get() == "done"
    assert [(event["state"], event["retries"], event["error"]) for event in seen.events] == [
        ("RETRY", 0, True),
        ("RETRY", 1, True),
        ("SUCCESS", 2, False),
    ]
    assert [event.get("exception_type") for event in seen.events] == ["ConnectionError", "ConnectionError", None]
    seen.events.clear()
    flaky.apply((None,))
    assert [(event["state"], event["error"], event.get("exception_type")) for event in seen.events[:2]] == [
        ("RETRY", False, None)
    ] * 2


def test_a_task_that_returns_an_exception_has_succeeded(app: Celery, seen: Seen) -> None:
    @made(app)
    def odd() -> Exception:
        return KeyError("a value")

    odd.apply()
    assert (seen.only["state"], seen.only["error"]) == ("SUCCESS", False)


def test_a_failing_before_start_is_a_failure(app: Celery, seen: Seen) -> None:
    class Failing(Task):  # type: ignore[misc]  # untyped
        def before_start(self, *_: Any) -> None:
            raise LookupError("before")

    @made(app, base=Failing)
    def never() -> None:
        raise AssertionError("not reached")

    execute(never)
    assert (seen.only["state"], seen.only["exception_type"]) == ("FAILURE", "LookupError")


def test_a_result_that_cannot_be_stored_is_told_of(app: Celery, seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    @made(app)
    def unspeakable() -> object:
        return object()

    execute(unspeakable)
    assert seen.only["state"] == "SUCCESS"  # it was, until Celery wanted to store it
    assert any("says FAILURE" in record.message for record in caplog.records)


# -- every way to make a task


def test_tasks_are_profiled_however_they_are_made(seen: Seen) -> None:
    app = application()

    @made(app, name="before")
    def before() -> None: ...

    app.finalize()
    ProfilisCelery(app, collector=seen)

    class Called(Task):  # type: ignore[misc]  # untyped
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            assert not seen.events
            return self.run(*args, **kwargs)

    class OfAClass(Called):
        name = "of a class"

        def run(self) -> None: ...

    of_a_class = app.register_task(OfAClass())

    @made(app, base=Called, name="with a call")
    def with_a_call() -> None: ...

    @made(app, name="after")  # after the application was finalized: Celery's signals alone
    def after() -> None: ...

    for task in (before, with_a_call, of_a_class, after):
        execute(app.tasks[task.name])
        assert (seen.only["fn"], seen.only["state"]) == (task.name, "SUCCESS")
        seen.events.clear()


def test_a_class_of_which_another_is_made_reports_once(app: Celery, seen: Seen) -> None:
    class Base(Task):  # type: ignore[misc]  # untyped
        name = "base"

        def __call__(self, *args: Any) -> Any:
            return super().__call__(*args)

        def run(self) -> str:
            return "done"

    class Derived(Base):
        name = "derived"

        def __call__(self, *args: Any) -> Any:
            return super().__call__(*args)

    tasks = [app.register_task(Base()), app.register_task(Derived())]
    app.finalize()
    for task in tasks:
        assert execute(task).retval == "done"
    assert [event["fn"] for event in seen.events] == ["base", "derived"]


def test_a_task_called_like_a_function_is_none(app: Celery, seen: Seen) -> None:
    @made(app)
    def double(x: int) -> int:
        return 2 * x

    @made(app)
    def quadruple(x: int) -> int:
        return int(double(double(x)))

    app.finalize()
    assert double(2) == 4
    assert double.run(2) == 4
    assert seen.events == []
    assert execute(quadruple, 2).retval == 8
    assert seen.only["fn"].endswith("quadruple")


def test_a_task_keeps_what_it_is(app: Celery) -> None:
    import inspect

    @made(app)
    def documented(x: int, *, y: str = "") -> None:
        """What it does."""

    app.finalize()
    assert documented.__doc__ == "What it does."
    assert list(inspect.signature(documented.run).parameters) == ["x", "y"]
    with pytest.raises(TypeError):
        documented.apply(throw=True)


# -- eager tasks, and the span


def test_an_eager_task_is_part_of_the_span_that_calls_it(app: Celery, seen: Seen) -> None:
    app.conf.task_always_eager = True

    @made(app)
    def inner() -> None:
        Emitter(seen).emit_db("SELECT 1", 1_000, 1)

    @made(app)
    def outer() -> None:
        inner.delay()

    with use_span() as request:
        outer.delay()
        assert current_span() == request
    query, inner_event, outer_event = seen.events
    assert {event["trace_id"] for event in seen.events} == {request.trace_id}
    assert outer_event["parent_span_id"] == request.span_id
    assert inner_event["parent_span_id"] == outer_event["span_id"]
    assert query["span_id"] == inner_event["span_id"]
    assert current_span() is None


def test_an_eager_task_that_propagates_is_a_failure_once(app: Celery, seen: Seen) -> None:
    app.conf.update(task_always_eager=True, task_eager_propagates=True)

    @made(app)
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        fail.delay()
    assert (seen.only["state"], seen.only["exception_type"]) == ("FAILURE", "KeyError")


def test_threads_have_a_span_each(app: Celery, seen: Seen) -> None:
    together = threading.Barrier(4)

    @made(app)
    def meet() -> None:
        together.wait(30)
        Emitter(seen).emit_fn("inside", 1)

    threads = [threading.Thread(target=meet.apply) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = [event["span_id"] for event in seen.events]
    assert len(seen.events) == 8
    assert len(set(spans)) == 4


# -- the message


def published(app: Celery, **options: Any) -> dict[str, Any]:
    """The headers of a message as it leaves; it goes into this process's memory, where nobody takes it."""
    caught: dict[str, Any] = {}

    def catch(headers: dict[str, Any], **_: Any) -> None:
        caught.update(headers)

    signals.before_task_publish.connect(catch, weak=False, dispatch_uid="test")
    try:
        app.send_task("shop.add", (1, 2), **options)
    finally:
        signals.before_task_publish.disconnect(catch, dispatch_uid="test")
    return caught


def test_a_message_carries_the_span_that_sends_it_and_the_execution_continues_it(app: Celery, seen: Seen) -> None:
    @made(app, name="shop.add")
    def add(x: int, y: int) -> int:
        return x + y

    with use_span() as span:
        headers = published(app)
        assert headers["traceparent"] == traceparent()
    execute(add, 1, 2, headers=headers, delivery_info={"redelivered": True})
    event = seen.only
    assert (event["trace_id"], event["parent_span_id"]) == (span.trace_id, span.span_id)
    assert event["queue_ns"] > 0
    assert event["redelivered"] is True
    assert "traceparent" not in published(app)  # outside of any span


@pytest.mark.parametrize("header", ["nonsense", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", 7, None])
def test_a_bad_header_begins_a_trace(app: Celery, seen: Seen, header: Any) -> None:
    @made(app)
    def work() -> None: ...

    execute(work, headers={"traceparent": header, "profilis_sent_ns": "yesterday", "eta": "tomorrow"})
    assert len(seen.only["trace_id"]) == 32
    assert "parent_span_id" not in seen.only
    assert "queue_ns" not in seen.only


def test_the_queue_time_of_a_task_with_an_eta_begins_then(app: Celery, seen: Seen) -> None:
    @made(app)
    def work() -> None: ...

    execute(work, headers={"profilis_sent_ns": 0, "eta": "2199-01-01T00:00:00+00:00"})
    execute(work, headers={"profilis_sent_ns": 0, "eta": "1970-01-02T00:00:00+00:00"})
    first, second = seen.events
    assert first["queue_ns"] == 0
    assert 10**18 < second["queue_ns"] < first["ts_ns"]


def test_a_header_of_the_applications_own_is_left_alone_but_for_a_copied_one(app: Celery) -> None:
    own = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with use_span():
        assert published(app, headers={"traceparent": own})["traceparent"] == own
    assert published(app, headers={"traceparent": own})["traceparent"] == own
    found = []

    @made(app)
    def work() -> None:
        found.append(published(app, headers={"traceparent": own})["traceparent"])
        found.append(traceparent())

    execute(work, headers={"traceparent": own})  # as Celery copies it when a task is retried
    assert found[0] == found[1] != own


# -- what is left out


def test_excluded_tasks_have_no_event_but_a_span(seen: Seen) -> None:
    app = application()
    ProfilisCelery(app, collector=seen, exclude_tasks=["reports", "celery"])

    def inside() -> None:
        assert current_span() is not None

    for name in ("reports", "reports.daily", "reports_old", "my.reports", "celery.own"):
        execute(made(app, name=name)(inside))
    assert [event["fn"] for event in seen.events] == ["reports_old", "my.reports"]


def test_a_sample_is_one_of_traces(seen: Seen) -> None:
    app = application()
    ProfilisCelery(app, collector=seen, sample=0.5)
    work = made(app, name="work")(done)
    for last in "078f":
        execute(work, headers={"traceparent": f"00-{'0' * 23}1{last}{'0' * 7}-{'1' * 16}-01"})
    assert [event["trace_id"][-8] for event in seen.events] == ["0", "7"]
    with use_span(trace_id="chosen by the application"):
        for _ in range(10):
            work.apply()
    assert len(seen.events) in (2, 12)


def test_a_sample_is_of_the_same_traces_as_the_web_adapters(seen: Seen) -> None:
    """A trace is reported whole or not at all: the request, and the tasks that it sent."""
    reporter = Reporter(seen, sample=0.5, who="somebody's web application")
    adapter = ProfilisCelery(application(), collector=seen, sample=0.5)
    for number in range(100):
        trace_id = new_trace_id()
        request: Any = reporter.begin({}, "/", "GET", f"00-{trace_id}-{'1' * 16}-01")
        reporter.finish(request)
        assert adapter.reports("work", trace_id) == bool(seen.events), f"trace {number}: {trace_id}"
        seen.events.clear()


# -- arguments


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("app", object()),
        ("app", Celery),
        ("collector", print),
        ("exclude_tasks", "reports"),
        ("exclude_tasks", [""]),
        ("exclude_tasks", [7]),
        ("sample", 1.5),
        ("sample", "all"),
        ("sample", True),
        ("sample", float("nan")),
    ],
)
def test_a_bad_argument_is_refused_by_name_and_nothing_is_touched(seen: Seen, argument: str, value: Any) -> None:
    app = application()
    arguments = {"app": app, "collector": seen, argument: value}
    with pytest.raises(ConfigError) as refused:
        ProfilisCelery(arguments.pop("app"), **arguments)
    assert refused.value.argument == argument
    ProfilisCelery(app, collector=seen)  # still free


def test_an_application_is_profiled_once(app: Celery, seen: Seen) -> None:
    with pytest.raises(ConfigError, match="app: is being profiled already"):
        ProfilisCelery(app, collector=seen)


def test_applications_do_not_see_each_others_tasks_and_can_be_forgotten(app: Celery, seen: Seen) -> None:
    others = Seen()
    other = application()
    ProfilisCelery(other, collector=others)
    plain = application()
    for one in (app, other, plain):
        execute(made(one, name="work")(done))
    assert len(seen.events) == len(others.events) == 1
    reference = weakref.ref(vars(other)["profilis_mp"])
    del other, one
    gc.collect()
    assert reference() is None


def test_a_missing_celery_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "celery":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "profilis_mp.celery.adapter")
    with pytest.raises(ImportError, match=r'pip install "profilis_mp\[celery\]"'):
        importlib.import_module("profilis_mp.celery.adapter")


def test_sending_needs_nothing_of_a_worker(tmp_path: Any) -> None:
    """A web process imports the application: no file, no thread, no shared page."""
    script = (
        "import celery, threading, os\n"
        "from profilis_mp import AsyncCollector, JSONLExporter\n"
        "from profilis_mp.celery.adapter import ProfilisCelery\n"
        "from profilis_mp.celery import receivers\n"
        "app = celery.Celery('shop')\n"
        f"ProfilisCelery(app, collector=AsyncCollector(JSONLExporter(dir={str(tmp_path / 'logs')!r})))\n"
        "assert threading.active_count() == 1 and receivers._boards is None\n"
        f"assert not os.path.exists({str(tmp_path / 'logs')!r})\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# -- failures of our own


def test_a_failing_collector_fails_no_task(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        def enqueue(self, event: Event) -> None:
            raise OSError("no")

    app = application()
    ProfilisCelery(app, collector=Failing())
    work = made(app, name="work")(done)
    assert execute(work).retval == "done"
    assert [record.levelname for record in caplog.records if record.name == "profilis_mp"] == ["WARNING"]


def test_a_failure_in_a_receiver_fails_no_task(
    app: Celery, seen: Seen, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a bug of ours")

    work = made(app, name="work")(where)
    monkeypatch.setattr("profilis_mp.celery.execution.about_task", fail)
    assert execute(work).retval is None  # and its span was left again
    monkeypatch.setattr("profilis_mp.celery.receivers.traceparent", fail)
    published(app)
    assert all(record.levelno < logging.ERROR for record in caplog.records)
    assert seen.events == []


# -- exactly once, whatever is thrown in


@pytest.fixture
def soft_limit() -> Iterator[None]:
    """Celery's handler of a soft time limit, as a pool's child has it."""

    def exceeded(number: int, frame: FrameType | None) -> None:
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGUSR1, exceeded)
    patience._patient = 0
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGQUIT)}
    patience.become_patient()
    yield
    signal.signal(signal.SIGUSR1, before)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    patience._patient = 0


@pytest.mark.usefixtures("soft_limit")
def test_a_soft_time_limit_at_any_instant_leaves_one_event(app: Celery, seen: Seen) -> None:
    """Thrown in before each line of ours and of the collector, between the task's begin and Celery's end of it."""
    work = made(app, name="work")(done)
    app.finalize()
    ours = [
        sys.modules[f"profilis_mp.{name}"].__file__ for name in ("celery.execution", "celery.adapter", "core.emitter")
    ]
    ours += [patience.__file__, __file__]
    lines = 0
    for at in range(1, 1000):
        seen.events.clear()
        count = 0

        def trace(frame: FrameType, event: str, _: Any, at: int = at) -> Callable[..., Any] | None:
            nonlocal count
            if frame.f_code.co_filename not in ours or frame.f_code.co_name in ("exceeded", "trace", "events"):
                return None
            # Celery's own dispatcher of signals would swallow what is thrown into its receivers: only the body's.
            if event == "line" and within(frame, "watched"):
                count += 1
                if count == at:
                    signal.raise_signal(signal.SIGUSR1)
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            execute(work)
        finally:
            sys.settrace(before)
        assert len(seen.events) == 1, (at, seen.events)
        assert seen.only["state"] in ("SUCCESS", "FAILURE")
        assert current_span() is None
        if count < at:
            lines = at
            break
    assert lines > 15


def within(frame: FrameType | None, name: str) -> bool:
    while frame is not None:
        if frame.f_code.co_name == name:
            return True
        frame = frame.f_back
    return False


# -- boards


def reported(boards: list[tuple[dict[str, Any], Any]]) -> list[tuple[str, Any]]:
    return [(about["task_id"], fate) for about, fate in boards]


def show(board: Board | None, task_id: str, **more: Any) -> None:
    assert board is not None
    board.show({"fn": "work", "task_id": task_id, "span_id": f"span of {task_id}", "began_ns": 0, **more})


def test_what_a_dead_child_has_left_unreported_is_reported_once() -> None:
    told: list[Any] = []
    boards = Boards(lambda about, fate: told.append((about, fate)))

    def child(*tasks: str, wipe: bool = False, more: str = "") -> int:
        def work() -> None:
            board = boards.mine()
            assert boards.mine() is None
            for task in tasks:
                show(board, task, more=more)
                if wipe and board is not None:
                    board.wipe()
            os.kill(os.getpid(), signal.SIGKILL)

        boards.before_fork()
        return fork(work)

    killed = [
        child("one", "two"),
        child("done", wipe=True),
        child(),
        child("too long", more="x" * mmap.PAGESIZE),
    ]
    assert boards.mine() is None  # the main process has none
    for pid in killed:
        wait_until(lambda pid=pid: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT), what="it is dead")
    boards.settle()
    boards.settle(wait_s=1.0)
    assert reported(told) == [("two", ("FAILURE", "WorkerLostError"))]
    for pid in killed:
        assert reap(pid) == -signal.SIGKILL


def test_the_living_are_left_alone_and_fates_are_of_one_execution() -> None:
    told: list[Any] = []
    boards = Boards(lambda about, fate: told.append((about, fate)))
    ready, go = os.pipe(), os.pipe()

    def work() -> None:
        board = boards.mine()
        show(board, "one")
        os.write(ready[1], b"1")
        os.read(go[0], 1)
        show(board, "one", span_id="of its second execution")
        os.write(ready[1], b"2")
        os.read(go[0], 1)

    boards.before_fork()
    pid = fork(work)
    os.read(ready[0], 1)
    boards.note("another", ("FAILURE", "TimeLimitExceeded"))
    boards.note("one", ("FAILURE", "TimeLimitExceeded"))
    boards.settle()
    assert told == []
    os.write(go[1], b"1")
    os.read(ready[0], 1)
    boards.settle()
    assert told == []
    os.write(go[1], b"2")
    assert reap(pid) == 0
    boards.settle()
    assert reported(told) == [("one", ("FAILURE", "WorkerLostError"))]
    for number in (*ready, *go):
        os.close(number)


# -- the page


def test_the_pages_code_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "celery.md").read_text()
    names: dict[str, Any] = {"__name__": "shop"}
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        exec(block, names)
    assert names["charge"].apply((7,)).get() == "charged 7"
    vars(names["app"])["profilis_mp"].collector.close()
    with read_events("./logs") as events:
        (event,) = events
    assert (event["fn"], event["state"]) == ("shop.charge", "SUCCESS")
    (example,) = re.findall(r"^```json\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert set(event) <= set(orjson.loads(example.replace("…", "")))

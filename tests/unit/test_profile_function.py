"""Each call of a profiled function is one FN event, and the function is otherwise what it was."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import logging
import pickle
import sys
import threading
import types
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from typing import Any

import pytest
from seen import Event, Seen

from profilis_mp import Emitter
from profilis_mp.core.context import current_span, get_span_id, get_trace_id, use_span
from profilis_mp.decorators.profile import profile_function
from profilis_mp.errors import ConfigError

SEEN = Seen()


@profile_function(SEEN)
def at_module_level(number: int) -> int:
    return 2 * number


@pytest.fixture
def seen() -> Seen:
    SEEN.events.clear()
    return SEEN


profiled = profile_function(SEEN)

# -- the event


def test_a_call_is_one_event_with_the_functions_name(seen: Seen) -> None:
    assert at_module_level(21) == 42
    event = seen.only
    assert list(event) == ["ts_ns", "trace_id", "span_id", "kind", "fn", "dur_ns", "error"]
    assert (event["kind"], event["fn"], event["error"]) == ("FN", "at_module_level", False)
    assert 0 <= event["dur_ns"] < 60 * 10**9


def test_an_emitter_does_as_well_as_a_collector(seen: Seen) -> None:
    assert profile_function(Emitter(seen))(lambda: 7)() == 7
    assert seen.only["fn"].endswith("<lambda>")


def test_calls_within_calls_are_linked_by_their_spans(seen: Seen) -> None:
    @profiled
    def outer() -> str | None:
        at_module_level(1)
        at_module_level(2)
        return get_span_id()

    span_id = outer()
    first, second, whole = seen.events
    assert whole["span_id"] == first["parent_span_id"] == second["parent_span_id"] == span_id
    assert list(first)[-1] == "parent_span_id"
    assert "parent_span_id" not in whole
    assert len({event["trace_id"] for event in seen.events}) == 1
    assert len({event["span_id"] for event in seen.events}) == 3
    assert current_span() is None


def test_a_call_within_a_request_is_part_of_it(seen: Seen) -> None:
    with use_span("trace-abc123", "span-def456"):
        at_module_level(1)
    assert (seen.only["trace_id"], seen.only["parent_span_id"]) == ("trace-abc123", "span-def456")


def test_what_a_function_emits_shares_its_span(seen: Seen) -> None:
    profiled(lambda: Emitter(seen).emit_db("SELECT 1", 1, 1))()
    query, call = seen.events
    assert (query["trace_id"], query["span_id"]) == (call["trace_id"], call["span_id"])


def test_threads_have_spans_of_their_own(seen: Seen) -> None:
    barrier = threading.Barrier(4)
    outer = profiled(lambda: (barrier.wait(), at_module_level(1)))
    threads = [threading.Thread(target=outer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    inner = [event for event in seen.events if event["fn"] == "at_module_level"]
    whole = [event for event in seen.events if event["fn"] != "at_module_level"]
    assert len({event["trace_id"] for event in whole}) == 4
    assert {event["parent_span_id"] for event in inner} == {event["span_id"] for event in whole}


# -- exceptions


@pytest.mark.parametrize("error", [KeyError("k"), SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_an_exception_is_recorded_and_raised_again_as_it_is(seen: Seen, error: BaseException) -> None:
    @profiled
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        fail()
    assert caught.value is error
    assert error.__context__ is None
    if isinstance(error, GeneratorExit):  # whatever it means here, it is nobody's failure
        assert seen.only["error"] is False
    else:
        assert (seen.only["error"], seen.only["exception_type"]) == (True, type(error).__name__)


def test_an_exception_that_is_handled_inside_is_none(seen: Seen) -> None:
    @profiled
    def careful() -> None:
        with pytest.raises(KeyError):
            raise KeyError

    careful()
    assert seen.only["error"] is False


def test_a_collector_that_raises_fails_no_call(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def enqueue(self, event: Event) -> None:
            raise OSError("full")

    with caplog.at_level(logging.WARNING, "profilis_mp"):
        assert profile_function(Broken())(lambda: 7)() == 7
    assert "profile_function: a call of " in caplog.text


# -- asynchronous functions


def test_an_async_function_is_one_event_when_it_is_done(seen: Seen) -> None:
    @profiled
    async def work(number: int) -> int:
        await asyncio.sleep(0.01)
        assert seen.events == []
        return 2 * number

    assert asyncio.run(work(21)) == 42
    assert seen.only["dur_ns"] > 5_000_000  # waiting included


def test_tasks_at_once_are_parts_of_what_started_them_and_not_of_each_other(seen: Seen) -> None:
    @profiled
    async def part() -> None:
        await asyncio.sleep(0)

    @profiled
    async def whole() -> None:
        await asyncio.gather(*(part() for _ in range(10)))

    asyncio.run(whole())
    *parts, last = seen.events
    assert {event["parent_span_id"] for event in parts} == {last["span_id"]}
    assert len({event["span_id"] for event in parts}) == 10


def test_a_failed_and_a_cancelled_task_are_errors_and_a_closed_coroutine_is_none(seen: Seen) -> None:
    @profiled
    async def fail() -> None:
        raise KeyError

    @profiled
    async def wait() -> None:
        await asyncio.Future()

    async def both() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        results = await asyncio.gather(fail(), task, return_exceptions=True)
        assert [type(result) for result in results] == [KeyError, asyncio.CancelledError]

    asyncio.run(both())
    assert sorted(event["exception_type"] for event in seen.events) == ["CancelledError", "KeyError"]
    seen.events.clear()

    @types.coroutine
    def once() -> Generator[None, None, None]:
        yield

    @profiled
    async def abandoned() -> None:
        await once()

    coroutine = abandoned()
    coroutine.send(None)
    coroutine.close()
    assert seen.only["error"] is False


# -- generators


@profiled
def echoes(first: str) -> Generator[str, str, str]:
    """Answers with what it is sent; ValueError is answered, KeyError leaves it."""
    answer = first
    while answer != "stop":
        try:
            answer = yield answer
        except ValueError as error:
            answer = f"caught {error}"
    return "done"


def test_a_generator_is_one_event_when_it_returns(seen: Seen) -> None:
    def all_of() -> Generator[str, str, str]:
        return (yield from echoes("a"))

    generator = all_of()
    assert next(generator) == "a"
    assert generator.send("b") == "b"
    assert generator.throw(ValueError("v")) == "caught v"
    assert seen.events == []
    with pytest.raises(StopIteration) as caught:
        generator.send("stop")
    assert caught.value.value == "done"
    assert (seen.only["fn"], seen.only["error"]) == ("echoes", False)


def test_an_exception_thrown_into_a_generator_leaves_it_as_it_is(seen: Seen) -> None:
    generator = echoes("a")
    next(generator)
    error = KeyError("k")
    with pytest.raises(KeyError) as caught:
        generator.throw(error)
    assert caught.value is error
    assert (seen.only["error"], seen.only["exception_type"]) == (True, "KeyError")
    with pytest.raises(StopIteration):
        next(generator)
    assert len(seen.events) == 1


def test_a_generator_that_is_closed_or_forgotten_is_one_event_and_no_error(seen: Seen) -> None:
    generator = echoes("a")
    next(generator)
    generator.close()
    generator.close()
    assert seen.only["error"] is False
    seen.events.clear()
    generator = echoes("a")
    next(generator)
    del generator
    gc.collect()
    assert seen.only["error"] is False
    seen.events.clear()
    echoes("a").close()  # never started
    assert seen.events == []


@pytest.mark.parametrize("decorate", [lambda function: function, profiled])
def test_a_generator_decides_what_closing_it_does(seen: Seen, decorate: Callable[[Any], Any]) -> None:
    cleaned: list[str] = []

    @decorate
    def stubborn() -> Iterator[int]:
        try:
            yield 1
        except GeneratorExit:
            yield 2

    @decorate
    def tidy() -> Generator[int, None, str]:
        try:
            yield 1
        finally:
            cleaned.append("up")
        return "unreached"

    @decorate
    def failing() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise OSError("while closing")

    @decorate
    def stopping() -> Iterator[int]:
        yield 1
        raise StopIteration("not a way to return")

    generator = stubborn()
    next(generator)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        generator.close()
    generator = tidy()
    next(generator)
    generator.close()
    assert cleaned == ["up"]
    generator = failing()
    next(generator)
    with pytest.raises(OSError, match="while closing"):
        generator.close()
    generator = stopping()
    next(generator)
    with pytest.raises(RuntimeError, match="StopIteration"):
        next(generator)


def test_a_generators_span_is_current_in_its_code_and_not_in_that_of_who_takes_its_items(seen: Seen) -> None:
    @profiled
    def spans() -> Iterator[str | None]:
        for _ in range(3):
            at_module_level(1)
            yield get_span_id()

    with use_span("trace-abc123", "span-def456"):
        inside = []
        for span_id in spans():
            inside.append(span_id)
            assert get_span_id() == "span-def456"
    *steps, whole = seen.events
    assert set(inside) == {whole["span_id"]} == {event["parent_span_id"] for event in steps}
    assert (whole["trace_id"], whole["parent_span_id"]) == ("trace-abc123", "span-def456")


def test_a_generators_duration_is_that_of_its_own_code(seen: Seen) -> None:
    pause = threading.Event()

    @profiled
    def quick() -> Iterator[int]:
        yield from range(3)

    for _ in quick():
        pause.wait(0.05)
    assert seen.only["dur_ns"] < 100_000_000  # of 150 ms


def test_a_generator_keeps_no_item_alive(seen: Seen) -> None:
    class Item:
        pass

    @profiled
    def items() -> Iterator[Item]:
        while True:
            yield Item()

    generator = items()
    reference = weakref.ref(next(generator))
    assert reference() is None
    generator.close()


def test_many_generators_interleaved_keep_their_spans(seen: Seen) -> None:
    @profiled
    def spans() -> Iterator[str | None]:
        while True:
            yield get_span_id()

    generators = [spans() for _ in range(5)]
    rounds = [[next(generator) for generator in generators] for _ in range(4)]
    assert all(one == rounds[0] for one in rounds)
    assert len(set(rounds[0])) == 5
    for generator in reversed(generators):
        generator.close()  # type: ignore[attr-defined]  # an Iterator to its users
    assert {event["span_id"] for event in seen.events} == set(rounds[0])


# -- asynchronous generators


@profiled
async def async_echoes(first: str) -> AsyncGenerator[str, str]:
    answer = first
    while answer != "stop":
        await asyncio.sleep(0)
        try:
            answer = yield answer
        except ValueError as error:
            answer = f"caught {error}"


def test_an_async_generator_is_one_event_when_it_ends(seen: Seen) -> None:
    async def talk() -> None:
        generator = async_echoes("a")
        assert await anext(generator) == "a"
        assert await generator.asend("b") == "b"
        assert await generator.athrow(ValueError("v")) == "caught v"
        assert get_trace_id() is None
        assert seen.events == []
        with pytest.raises(StopAsyncIteration):
            await generator.asend("stop")

    asyncio.run(talk())
    assert (seen.only["fn"], seen.only["error"]) == ("async_echoes", False)


def test_an_async_generator_that_fails_or_is_closed_is_one_event(seen: Seen) -> None:
    async def talk() -> None:
        generator = async_echoes("a")
        await anext(generator)
        error = KeyError("k")
        with pytest.raises(KeyError) as caught:
            await generator.athrow(error)
        assert caught.value is error
        assert (seen.only["error"], seen.only["exception_type"]) == (True, "KeyError")
        seen.events.clear()
        generator = async_echoes("a")
        await anext(generator)
        await generator.aclose()
        await generator.aclose()
        assert seen.only["error"] is False
        seen.events.clear()
        async for _ in async_echoes("a"):
            break  # the loop closes what is left of it
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(talk())
    assert seen.only["error"] is False


# -- what it leaves as it was


def annotated(a: int, /, b: str = "b", *rest: int, c: float, **more: Any) -> str:
    """Says what it does."""
    return f"{a}{b}{rest}{c}{more}"


def test_a_function_looks_as_before(seen: Seen) -> None:
    wrapped = profiled(annotated)
    assert inspect.signature(wrapped) == inspect.signature(annotated)
    assert inspect.get_annotations(wrapped) == inspect.get_annotations(annotated)
    assert (wrapped.__name__, wrapped.__qualname__, wrapped.__doc__) == ("annotated", "annotated", annotated.__doc__)
    assert wrapped.__module__ == __name__
    assert wrapped(1, "x", 2, c=3.0, d=4) == annotated(1, "x", 2, c=3.0, d=4)
    assert pickle.loads(pickle.dumps(at_module_level)) is at_module_level
    with pytest.raises(TypeError, match="missing"):
        wrapped()  # type: ignore[call-arg]


async def coroutine() -> None: ...
async def async_generator() -> AsyncGenerator[int, None]:
    yield 1


def generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("function", [annotated, coroutine, generator, async_generator])
def test_a_function_stays_of_its_kind(function: Any) -> None:
    for kind in (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        assert kind(profiled(function)) == kind(function)
        assert kind(profiled(functools.partial(function))) == kind(function)
    assert asyncio.iscoroutinefunction(profiled(function)) == asyncio.iscoroutinefunction(function)


def test_a_generator_based_coroutine_can_still_be_awaited(seen: Seen) -> None:
    @profiled
    @types.coroutine
    def once() -> Generator[None, None, int]:
        yield
        return 7

    async def main() -> int:
        number: int = await once()
        return number

    assert asyncio.run(main()) == 7
    assert seen.only["error"] is False


def test_methods_of_all_kinds(seen: Seen) -> None:
    class Shop:
        @profiled
        def method(self) -> str:
            return type(self).__name__

        @profiled
        @classmethod
        def above(cls) -> str:
            return cls.__name__

        @classmethod
        @profiled
        def below(cls) -> str:
            return cls.__name__

        @profiled
        @staticmethod
        def static() -> str:
            return "static"

        @property
        @profiled
        def size(self) -> int:
            return 3

    class Branch(Shop):
        pass

    branch = Branch()
    assert (branch.method(), branch.above(), Branch.below(), branch.static(), branch.size) == (
        "Branch", "Branch", "Branch", "static", 3
    )  # fmt: skip
    names = [event["fn"].rpartition("<locals>.")[2] for event in seen.events]
    assert names == ["Shop.method", "Shop.above", "Shop.below", "Shop.static", "Shop.size"]


def test_objects_that_can_be_called(seen: Seen) -> None:
    class Greeter:
        async def __call__(self, name: str) -> str:
            return f"hello {name}"

    wrapped: Any = profiled(Greeter())
    assert asyncio.run(wrapped("you")) == "hello you"
    assert profiled(functools.partial(max, 3))(7) == 7
    assert profiled(len)("four") == 4
    assert [event["fn"].rpartition(".")[2] for event in seen.events] == ["Greeter", "partial", "len"]


def test_recursion_goes_as_deep_as_python_lets_it(seen: Seen) -> None:
    @profiled
    def depth(number: int) -> int:
        return 0 if number == 0 else 1 + depth(number - 1)

    assert depth(100) == 100
    assert len(seen.events) == 101
    with pytest.raises(RecursionError):
        depth(sys.getrecursionlimit())
    assert current_span() is None


@pytest.mark.parametrize("emitter", [None, 7, print])
def test_an_emitter_that_is_none_is_refused_by_name(emitter: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        profile_function(emitter)
    assert caught.value.argument == "emitter"


@pytest.mark.parametrize("function", [None, 7, Seen, "name"])
def test_what_is_no_function_is_refused(function: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        profiled(function)
    assert caught.value.argument == "function"

"""How does every call of a function become one FN event?  By a decorator that leaves the function what it is.

The event, besides an FN event's own keys (`profilis_mp.core.events`):

    fn              the function's qualified name
    dur_ns          of a function: from its call to its return; of an ``async def``, waiting included; of a generator:
                    the time spent in its own code (and what that waits for), not in the code that takes its items
    error           whether an exception left it
    exception_type  only where error is true: the exception's class name
    parent_span_id  only where there was a span around it: that span. Each call has a span of its own, in the trace that
                    is current or else a new one

A generator has one event, when it ends: it returns, raises, is closed or is forgotten. One that was never started
has none. Being closed is no error, for a coroutine neither.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import AsyncGenerator, Callable, Generator
from time import perf_counter_ns
from typing import Any, TypeAlias, TypeVar

from profilis_mp.core.contained import contain
from profilis_mp.core.context import Span, current_span, in_span, new_span_id, new_trace_id, use_span
from profilis_mp.core.emitter import Emitter
from profilis_mp.core.events import fn_event
from profilis_mp.errors import ConfigError

__all__ = ["profile_function"]

_Decorated = TypeVar("_Decorated")
_Report: TypeAlias = Callable[..., None]  # of a span, nanoseconds, and what was raised


def profile_function(emitter: Any) -> Callable[[_Decorated], _Decorated]:
    """Return a decorator that reports each call of a function.

        >>> from profilis_mp import AsyncCollector, Emitter
        >>> events = []
        >>> collector = AsyncCollector(events.extend)
        >>> @profile_function(Emitter(collector))
        ... def double(number):
        ...     return 2 * number
        >>> double(21), collector.close()
        (42, True)
        >>> [(event["fn"], event["error"]) for event in events]
        [('double', False)]

    It goes on functions, methods, ``async def``, generators and asynchronous generators, and on class and static
    methods, above or below their own decorator. What is decorated stays of its kind: ``inspect.signature``,
    ``iscoroutinefunction``, ``isgeneratorfunction`` and so on answer as before; ``send``, ``throw`` and ``close`` reach
    the generator; exceptions leave as they are. Whatever fails in reporting is logged and fails no call.

    Args:
        emitter: An `Emitter`, or what one is made with: a collector, or an exporter.

    Raises:
        ConfigError: ``emitter`` is neither, or what is decorated is a class or cannot be called.
    """
    if not isinstance(emitter, Emitter):
        try:
            emitter = Emitter(emitter)
        except ConfigError as error:
            raise ConfigError("emitter", error.reason) from error

    def decorate(function: Any) -> Any:
        if isinstance(function, classmethod | staticmethod):
            return type(function)(decorate(function.__func__))
        if isinstance(function, type) or not callable(function):
            raise ConfigError("function", f"{function!r} is no function")
        return _decorated(function, emitter)

    return decorate


def _decorated(function: Callable[..., Any], emitter: Emitter) -> Callable[..., Any]:
    report = functools.partial(_report, emitter, getattr(function, "__qualname__", None) or type(function).__qualname__)
    call = getattr(function, "__call__", None)  # noqa: B004  # an object is of the kind that its __call__ is

    def is_of(kind: Callable[[Any], bool]) -> bool:
        return kind(function) or kind(call)

    if is_of(inspect.isasyncgenfunction):
        wrapper = _async_generator(function, report)
    elif is_of(inspect.iscoroutinefunction):
        wrapper = _coroutine(function, report)
    elif is_of(inspect.isgeneratorfunction):
        wrapper = _generator(function, report)
        code = getattr(function, "__code__", None)
        if code is not None and code.co_flags & inspect.CO_ITERABLE_COROUTINE:
            wrapper = types.coroutine(wrapper)
    else:
        wrapper = _function(function, report)
    return functools.wraps(function)(wrapper)


def _function(function: Callable[..., Any], report: _Report) -> Callable[..., Any]:
    def profiled(*args: Any, **kwargs: Any) -> Any:
        with use_span() as span:
            began = perf_counter_ns()
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                report(span, perf_counter_ns() - began, error)
                raise
            report(span, perf_counter_ns() - began)
            return result

    return profiled


def _coroutine(function: Callable[..., Any], report: _Report) -> Callable[..., Any]:
    async def profiled(*args: Any, **kwargs: Any) -> Any:
        with use_span() as span:
            began = perf_counter_ns()
            try:
                result = await function(*args, **kwargs)
            except BaseException as error:
                report(span, perf_counter_ns() - began, error)
                raise
            report(span, perf_counter_ns() - began)
            return result

    return profiled


def _generator(function: Callable[..., Any], report: _Report) -> Callable[..., Any]:
    def profiled(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        generator = function(*args, **kwargs)
        steps = _Steps()
        resume, value = generator.send, None
        held: list[Any] = []  # emptied by each yield: an item lives no longer than without us
        while True:
            try:
                with steps:
                    held.append(resume(value))
            except StopIteration as stop:
                report(steps.span, steps.spent_ns)
                return stop.value
            except BaseException as error:
                report(steps.span, steps.spent_ns, error)
                raise
            try:
                value = yield held.pop()
                resume = generator.send
            except BaseException as error:  # thrown in, GeneratorExit by close() too: the generator decides
                resume, value = generator.throw, error

    return profiled


def _async_generator(function: Callable[..., Any], report: _Report) -> Callable[..., Any]:
    async def profiled(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        generator = function(*args, **kwargs)
        steps = _Steps()
        resume, value = generator.asend, None
        held: list[Any] = []
        while True:
            try:
                with steps:
                    held.append(await resume(value))
            except StopAsyncIteration:
                report(steps.span, steps.spent_ns)
                return
            except BaseException as error:
                report(steps.span, steps.spent_ns, error)
                raise
            try:
                value = yield held.pop()
                resume = generator.asend
            except BaseException as error:
                resume, value = generator.athrow, error

    return profiled


class _Steps:
    """A generator's span, current during each of its steps and not between them, where others' code runs."""

    __slots__ = ("_began", "_use", "span", "spent_ns")

    def __init__(self) -> None:
        before = current_span()
        trace_id = before.trace_id if before else new_trace_id()
        self.span = Span(trace_id, new_span_id(), before.span_id if before else None)
        self.spent_ns = 0
        self._use = in_span(self.span)

    def __enter__(self) -> None:
        self._use.__enter__()
        self._began = perf_counter_ns()

    def __exit__(self, *exc: object) -> None:
        self.spent_ns += perf_counter_ns() - self._began
        self._use.__exit__()


def _report(emitter: Emitter, name: str, span: Span, dur_ns: int, error: BaseException | None = None) -> None:
    try:
        failed = error is not None and not isinstance(error, GeneratorExit)
        # Of the call, whatever span its code has left behind as the current one.
        event = fn_event(name, dur_ns, failed, trace_id=span.trace_id, span_id=span.span_id)
        if failed:
            event["exception_type"] = type(error).__name__
        if span.parent_span_id is not None:
            event["parent_span_id"] = span.parent_span_id
        emitter.emit(event)
    except Exception as problem:
        contain("profile_function", f"a call of {name} was not reported", problem)

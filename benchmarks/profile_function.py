"""What does `profile_function` add to a call?

A function, a coroutine and a generator that do nothing, bare and profiled, into a `JSONLExporter`; and an `emit_fn`
alone, inside a span, as the least that such an event can cost. CPU time of the calling thread (the machine may be
shared), the best of several repeats. It leaves out what waits: flushing is done by the exporter's own thread.
"""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable, Iterator
from typing import Any

from common import Report, scratch

from profilis_mp import AsyncCollector, Emitter, JSONLExporter
from profilis_mp.core.context import use_span
from profilis_mp.decorators.profile import profile_function

REPEATS = 25
CALLS = 20_000
ITEMS = 1_000


def function() -> None: ...


async def coroutine() -> None: ...


def generator() -> Iterator[int]:
    yield from range(ITEMS)


def driven(function: Callable[[], Any]) -> Callable[[], None]:
    """Run a coroutine to its end, without an event loop's own cost."""

    def run() -> None:
        try:
            function().send(None)
        except StopIteration:
            pass

    return run


def cost_ns(work: Callable[[], object], calls: int = CALLS) -> float:
    """The best of several repeats, per call."""
    return min(timeit.repeat(work, number=calls, repeat=REPEATS, timer=time.thread_time)) / calls * 1e9


def main() -> None:
    report = Report(__file__, "What does profile_function add to a call?")
    report.say(f"# CPU time per call, the best of {REPEATS} repeats of {CALLS:,} calls")
    with scratch() as directory, AsyncCollector(JSONLExporter(directory, max_files=2)) as collector:
        emitter = Emitter(collector)
        profiled = profile_function(emitter)
        with use_span():
            report.say(f"{'emit_fn alone':<24} {cost_ns(lambda: emitter.emit_fn('function', 1)) / 1e3:.2f} us")
        for name, bare, wrapped in (
            ("function", function, profiled(function)),
            ("async def", driven(coroutine), driven(profiled(coroutine))),
        ):
            report.say(f"{name:<24} {(cost_ns(wrapped) - cost_ns(bare)) / 1e3:.2f} us")
        calls = CALLS // ITEMS
        all_of = profiled(generator)
        added = cost_ns(lambda: list(all_of()), calls) - cost_ns(lambda: list(generator()), calls)
        report.say(f"{'generator, per item':<24} {added / ITEMS / 1e3:.2f} us")
    report.save()


if __name__ == "__main__":
    main()

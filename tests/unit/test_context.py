"""Spans nest, are each thread's and task's own, and have identifiers that no fork repeats."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import itertools
import os
import re
import sys
import threading
from collections.abc import Callable

import pytest

from profilis_mp.core.context import (
    current_span,
    get_parent_span_id,
    get_span_id,
    get_trace_id,
    new_ids,
    new_span_id,
    new_trace_id,
    use_span,
)


def test_there_is_no_span_to_begin_with() -> None:
    assert (current_span(), get_trace_id(), get_span_id(), get_parent_span_id()) == (None, None, None, None)


def test_ids_are_w3c_sized_hexadecimal() -> None:
    assert re.fullmatch("[0-9a-f]{32}", new_trace_id())
    assert re.fullmatch("[0-9a-f]{16}", new_span_id())
    assert len({new_span_id() for _ in range(1000)}) == 1000


def test_a_span_is_current_inside_and_the_former_one_after() -> None:
    with use_span(trace_id="t", span_id="s") as span:
        assert (get_trace_id(), get_span_id(), get_parent_span_id()) == ("t", "s", None)
        assert current_span() == span
        with use_span() as inner:
            assert (get_trace_id(), get_span_id(), get_parent_span_id()) == ("t", inner.span_id, "s")
        with use_span(trace_id="other"):
            assert (get_trace_id(), get_parent_span_id()) == ("other", None)
        assert current_span() == span
    assert current_span() is None


def test_the_former_span_is_restored_after_an_exception() -> None:
    with pytest.raises(KeyError), use_span():
        raise KeyError
    assert current_span() is None


def test_a_span_may_be_entered_again() -> None:
    span = use_span("t", "s")
    with span, span:
        assert (get_span_id(), get_parent_span_id()) == ("s", None)
    assert current_span() is None
    with span:
        assert get_span_id() == "s"
    assert current_span() is None


def test_each_thread_and_task_has_its_own() -> None:
    seen: list[str | None] = []
    with use_span(trace_id="t"):
        thread = threading.Thread(target=lambda: seen.append(get_trace_id()))
        thread.start()
        thread.join()
    # A thread of Python 3.14 free-threaded inherits the context; no earlier one does.
    assert seen == [None]

    async def work(name: str) -> str | None:
        with use_span(trace_id=name):
            await asyncio.sleep(0)
            return get_trace_id()

    async def main() -> list[str | None]:
        return await asyncio.gather(work("a"), work("b"))

    assert asyncio.run(main()) == ["a", "b"]


def test_a_generator_closed_in_another_context_leaves_that_one_alone() -> None:
    def generator():  # type: ignore[no-untyped-def]
        with use_span(trace_id="generator"):
            yield

    running = generator()  # type: ignore[no-untyped-call]
    contextvars.copy_context().run(next, running)
    with use_span(trace_id="t"):
        running.close()
        assert get_trace_id() == "t"


def test_no_id_is_drawn_twice_by_threads() -> None:
    drawn: list[list[tuple[str, str]]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=lambda mine=mine: mine.extend(new_ids() for _ in range(5000))) for mine in drawn]
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch_s)
    traces, spans = zip(*itertools.chain(*drawn), strict=True)
    assert len(set(traces)) == len(set(spans)) == 20_000


def ids_of_descendants(fork: Callable[[], int], generations: int) -> list[str]:
    """What a child draws, and its child, and so on, each after its fork and before its own."""
    receiving, sending = os.pipe()
    if fork() == 0:
        own = f"{new_trace_id()} {new_span_id()}"
        others = ids_of_descendants(fork, generations - 1) if generations > 1 else []
        os.write(sending, " ".join([own, *others]).encode())
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving) as pipe:
        ids = pipe.read().split()
    os.wait()
    return ids


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("fork", [os.fork, ctypes.PyDLL(None).fork], ids=["os.fork", "without hooks"])
def test_forked_children_have_ids_of_their_own(fork: Callable[[], int]) -> None:
    own = [new_trace_id(), new_span_id()]  # and so there are some drawn ahead
    ids = [one for _ in range(4) for one in ids_of_descendants(fork, 2)]
    ids += [*own, new_trace_id(), new_span_id()]
    assert len(ids) == len(set(ids)) == 4 * 2 * 2 + 4

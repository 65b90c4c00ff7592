"""Every state the commit protocol can be left in, and what happens when two of its stores change places."""

from dataclasses import dataclass
from typing import Any

import pytest
from protocol import (
    ACKED,
    EXPECTED_END,
    FLUSH_TO,
    INTENT,
    SEGMENTS,
    START,
    A,
    B,
    Memory,
    Model,
    Plan,
    Protocol,
    committed,
    flush_stores,
    in_order,
    size,
    store,
)

pytestmark = pytest.mark.sweep


@pytest.mark.parametrize("records", [(3, 1), (2, 2)], ids=str)
def test_killing_everybody_at_any_state_and_recovering_keeps_every_acknowledged_record_once(
    records: tuple[int, int],
) -> None:
    states, found = Model(records=records).explore()
    assert not found, found
    assert states > 150_000


OUT_OF_ORDER = {
    "tail before data": Protocol(emit="tail data"),
    "intent before flush_to": Protocol(flush="expected_end intent flush_to append committed head done"),
    "intent before expected_end": Protocol(flush="flush_to intent expected_end append committed head done"),
    "append before intent": Protocol(flush="flush_to expected_end append intent committed head done"),
    "committed before append": Protocol(flush="flush_to expected_end intent committed append head done"),
    "step 6 before step 5": Protocol(flush="flush_to expected_end intent append head done committed"),
    "intent cleared before head": Protocol(flush="flush_to expected_end intent append committed done head"),
    "head = 0 before tail = 0": Protocol(reset="head tail"),
    "selector before the spare slot": Protocol(rotate="selector spare"),
    "rotate without finishing": Protocol(finish_before="flush reset"),
    "flush without finishing": Protocol(finish_before="rotate reset"),
    "reset without finishing": Protocol(finish_before="rotate flush"),
}


@pytest.mark.parametrize("protocol", OUT_OF_ORDER.values(), ids=OUT_OF_ORDER)
def test_a_protocol_out_of_order_breaks_the_promise(protocol: Protocol) -> None:
    _, found = Model(protocol).explore()
    assert found


def test_flush_to_and_expected_end_may_change_places_because_nobody_reads_them_before_intent() -> None:
    _, found = Model(Protocol(flush="expected_end flush_to intent append committed head done")).explore()
    assert not found, found


def test_head_may_be_stored_before_committed_while_intent_is_set_because_finishing_stores_both_again() -> None:
    # Harmless to recovery only: with it, a drained spool no longer proves that its records are in a segment.
    _, found = Model(Protocol(flush="flush_to expected_end intent append head committed done")).explore()
    assert not found, found


def test_removing_the_active_segment_costs_only_what_was_committed_to_it() -> None:
    states, found = Model(records=(2, 1), removals=1).explore()
    assert not found, found
    assert states > 150_000


def test_finishing_into_the_next_segment_when_one_was_removed_breaks_the_promise() -> None:
    """A death after the rotation leaves an ``expected_end`` that belongs to the segment before."""

    @dataclass(frozen=True)
    class FinishesInTheNextSegment(Protocol):
        def plan_finish(self, m: Memory) -> Plan:
            s, n = m[INTENT], m[m[INTENT] + EXPECTED_END] - committed(m)
            if n == 0 or size(m) >= committed(m):
                return super().plan_finish(m)
            rotation = self.plan_rotate(m)
            for step in rotation:
                m = store(m, step)
            stores = flush_stores(m, s, m[s + FLUSH_TO] - n, m[s + FLUSH_TO], n)
            return rotation + in_order("expected_end append committed head done", stores)

    _, found = Model(FinishesInTheNextSegment(), records=(2, 1), removals=1).explore()
    assert found


def test_a_counterexample_reads_as_what_happened() -> None:
    _, found = Model(Protocol(reset="head tail")).explore()
    lines = [line.split(maxsplit=1) for line in found.splitlines()]
    assert lines[:4] == [["A", "emit:"], ["A", "A.data = A1<"], ["A", "A.data = A1>"], ["A", "A.tail = 2"]]
    assert found.endswith(
        "A lock, reset:\nA     A.head = 0\nall are killed, one recovers: emitted ['A1'], found ['', 'A1<A1>A1<A1>']"
    )


@pytest.mark.parametrize(
    ("acked", "segments", "complaint"),
    [
        (2, ["A1< A1>", "A2< A2> B1< B1>"], ""),
        (2, ["A1< A1> B1< B1>"], "emitted"),  # lost
        (1, ["A1< A1> A1< A1>", "B1< B1>"], "emitted"),  # twice
        (2, ["A2< A2> A1< A1>", "B1< B1>"], "emitted"),  # out of order
        (0, ["A1< A1> B1< B1>"], "emitted"),  # never acknowledged
        (1, ["A1<", "A1> B1< B1>"], "torn:"),
        (1, ["A1< B1< A1> B1>"], "torn:"),
        (2, ["A1< A1> A2< A2> B1< B1>"], "too long:"),
    ],
)
def test_the_checker_notices_a_planted_fault(acked: int, segments: list[str], complaint: str) -> None:
    words: list[Any] = list(START)
    words[A + ACKED], words[B + ACKED] = acked, 1
    words[SEGMENTS] = tuple(tuple(text.split()) for text in segments)
    assert Model().complaint(tuple(words)).partition(" [")[0] == complaint

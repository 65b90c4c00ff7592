"""Can ``kill -9``, at any instant, lose, repeat or tear a record? The commit protocol, small enough to try them all.

Assumptions
    * An 8-byte store is seen whole or not at all; stores are seen in program order (x86 as it is, elsewhere a fence).
    * A copy into a spool or a write to a segment may stop after any byte. A record here is two cells, ``A1<`` and
      ``A1>``, moved one at a time: one without the other is torn.
    * A death frees the lock and leaves control file, spools and segments as they are. A dead owner stays dead; a dead
      helper is replaced. A write may also fail (disk full): its process lets go of the lock and lives on.
    * A death without the lock needs no step of its own: it looks like a process that never gets the CPU again.
    * One turn with the lock does one thing. Doing several is getting the next turn before anybody else does.
    * Inside an owner, emit and reset exclude each other (the mutex).

Steps
    Once the lock is held every value to be stored is known, so all that a process does is a *plan*: a list of stores,
    with a death possible before each. ``Protocol`` gives their order, and the tests put it out of order.

Checked, from every reachable state: kill everybody, let one process recover alone (``Model.recover``); then
    * every acknowledged record is in the segments exactly once, whole, in its owner's order, and nothing else is;
    * no segment is longer than ``LIMIT``, and none but the newest was ever appended to.
    No cell once visible changes: plans can only append. A recoverer that dies is a helper that dies.
"""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CELLS = 2  # in a record
SPOOL = 2 * CELLS  # a third record needs a reset, and lands on the bytes of the first
LIMIT = 2 * CELLS  # of a segment

# Memory is one tuple of words. A spool's id is its address; ``selector`` is the offset of the active slot, 0 or 2.
LOCK, SELECTOR, INTENT, GENERATION, COMMITTED, _, _, SEGMENTS, REMOVED, A = range(10)
TAIL, HEAD, FLUSH_TO, EXPECTED_END, ACKED, DATA = range(6)
B = A + DATA + SPOOL
OWNERS = {A: "A", B: "B"}
NAMES = ["lock", "selector", "intent", "generation[0]", "committed[0]", "generation[1]", "committed[1]"]
NAMES += ["segments", "removed"]
NAMES += [f"{s}.{w}" for s in "AB" for w in ["tail", "head", "flush_to", "expected_end", "acked"] + ["data"] * SPOOL]

Memory = tuple[Any, ...]
Step = tuple[int, Any]  # address, value; at SEGMENTS the value is an address: append that cell to the active segment
Plan = tuple[Step, ...]  # what a process has yet to do
State = tuple[Memory, tuple[Plan | None, ...]]  # the plans of owner A, owner B and the helper; None: dead

EMPTY_SPOOL = (0, 0, 0, 0, 0) + ("??",) * SPOOL
START: Memory = (None, 0, 0, 1, 0, 0, 0, ((), ()), (), *EMPTY_SPOOL, *EMPTY_SPOOL)


def store(m: Memory, step: Step) -> Memory:
    """The memory after one step. A record is acknowledged by the store that raises its spool's tail."""
    address, value = step
    after = list(m)
    if address == SEGMENTS:
        generation, segments = m[GENERATION + m[SELECTOR]], list(m[SEGMENTS])
        segments += [()] * (generation + 1 - len(segments))
        segments[generation] += (m[value],)
        value = tuple(segments)
    elif address in (A + TAIL, B + TAIL) and value > m[address]:
        after[address - TAIL + ACKED] += 1
    after[address] = value
    return tuple(after)


def committed(m: Memory) -> int:
    return int(m[COMMITTED + m[SELECTOR]])


def size(m: Memory) -> int:
    """Cells in the active segment; a segment that nobody wrote yet has none."""
    return sum(len(cells) for cells in m[SEGMENTS][m[GENERATION + m[SELECTOR]] :][:1])


@dataclass(frozen=True)
class Protocol:
    """The order of the stores in each plan, and the plans for which an interrupted flush must be finished first."""

    emit: str = "data tail"
    rotate: str = "spare selector"
    flush: str = "flush_to expected_end intent append committed head done"
    reset: str = "tail head"
    finish_before: str = "rotate flush reset"

    def plan_emit(self, m: Memory, s: int) -> Plan:
        cells = [f"{OWNERS[s]}{m[s + ACKED] + 1}{half}" for half in "<>"]
        data = [(s + DATA + i, cell) for i, cell in enumerate(cells, m[s + TAIL])]
        return in_order(self.emit, {"data": data, "tail": [(s + TAIL, m[s + TAIL] + CELLS)]})

    def plan_rotate(self, m: Memory) -> Plan:
        active, spare = m[SELECTOR], 2 - m[SELECTOR]
        fill = [(GENERATION + spare, m[GENERATION + active] + 1), (COMMITTED + spare, 0)]
        return in_order(self.rotate, {"spare": fill, "selector": [(SELECTOR, spare)]})

    def plan_flush(self, m: Memory, s: int, n: int) -> Plan:
        flush_to = m[s + HEAD] + n
        return in_order(self.flush, flush_stores(m, s, m[s + HEAD], flush_to, committed(m) + n))

    def plan_finish(self, m: Memory) -> Plan:
        """The rest of the flush that ``intent`` names. Only memory says how far it came."""
        s = m[INTENT]
        flush_to, end = m[s + FLUSH_TO], m[s + EXPECTED_END]
        start = flush_to - (end - committed(m))
        rest = "append committed head done"
        if committed(m) == end:
            rest = "head done"
        elif size(m) >= committed(m):
            start += size(m) - committed(m)
        else:  # the segment was removed; the spool still has the whole batch: forget this flush, the next one takes it
            rest = "done"
        stores = flush_stores(m, s, start, flush_to, end)
        return in_order(self.flush, {word: stores[word] for word in rest.split()})

    def turns(self, m: Memory, spools: tuple[int, ...]) -> Iterator[tuple[str, Plan]]:
        """All that a process may do with the lock, a recoverer's choice first. With one spool it is the owner."""
        waits = self.finish_before if m[INTENT] else ""
        if m[INTENT]:
            yield "finish", self.plan_finish(m)
        for s in spools:
            for n in range(m[s + TAIL] - m[s + HEAD], 0, -CELLS):
                if "flush" not in waits and size(m) >= committed(m) <= LIMIT - n:
                    yield "flush", self.plan_flush(m, s, n)
            if len(spools) == 1 and m[s + TAIL] == m[s + HEAD] > 0 and "reset" not in waits:
                yield "reset", in_order(self.reset, {"tail": [(s + TAIL, 0)], "head": [(s + HEAD, 0)]})
        if "rotate" not in waits and committed(m):  # at any size: the segment may have reached its age
            yield "rotate", self.plan_rotate(m)


def flush_stores(m: Memory, s: int, start: int, flush_to: int, end: int) -> dict[str, list[Step]]:
    return {
        "flush_to": [(s + FLUSH_TO, flush_to)],
        "expected_end": [(s + EXPECTED_END, end)],
        "intent": [(INTENT, s)],
        "append": [(SEGMENTS, s + DATA + i) for i in range(start, flush_to)],
        "committed": [(COMMITTED + m[SELECTOR], end)],
        "head": [(s + HEAD, flush_to)],
        "done": [(INTENT, 0)],
    }


def in_order(order: str, stores: dict[str, list[Step]]) -> Plan:
    return tuple(step for word in order.split() for step in stores.get(word, ()))


@dataclass(frozen=True)
class Model:
    """Two owners and a helper; ``explore`` counts their states and tells the shortest way to a broken promise."""

    protocol: Protocol = Protocol()
    records: tuple[int, int] = (3, 1)  # that A and B emit
    removals: int = 0  # how often an outsider may empty the active segment while the lock is free

    def successors(self, state: State) -> Iterator[tuple[str, Step | str, State]]:
        """All that can happen next: who, what, and the state after it."""
        m, plans = state
        for who, plan in enumerate(plans):
            name, own = "ABH"[who], (A, B)[who : who + 1]
            before, behind = plans[:who], plans[who + 1 :]
            if plan:
                yield name, plan[0], (store(m, plan[0]), (*before, plan[1:], *behind))
                if m[LOCK] == name:
                    free = store(m, (LOCK, None))
                    yield name, "is killed", (free, (*before, None if own else (), *behind))
                    if plan[0][0] == SEGMENTS:
                        yield name, "cannot write", (free, (*before, (), *behind))
            elif plan is not None:
                for s in own:
                    if m[s + ACKED] < self.records[who] and m[s + TAIL] + CELLS <= SPOOL:
                        yield name, "emit:", (m, (*before, self.protocol.plan_emit(m, s), *behind))
                if m[LOCK] is None:
                    locked = store(m, (LOCK, name))
                    for what, turn in self.protocol.turns(m, own or (A, B)):
                        yield name, f"lock, {what}:", (locked, (*before, (*turn, (LOCK, None)), *behind))
        if len(m[REMOVED]) < self.removals and m[LOCK] is None and size(m):
            *sealed, active = m[SEGMENTS]
            words = {SEGMENTS: (*sealed, ()), REMOVED: (*m[REMOVED], active[: committed(m)])}
            yield "outsider", "removes the active segment", (tuple(words.get(i, w) for i, w in enumerate(m)), plans)

    def recover(self, m: Memory) -> Memory:
        """The memory after one process, all others being dead, took the few turns that should do."""
        m = store(m, (LOCK, None))
        for _ in range(20):
            if m[INTENT] or any(m[s + TAIL] > m[s + HEAD] for s in OWNERS):
                _, plan = next(self.protocol.turns(m, (A, B)), ("", ()))
                for step in plan:
                    m = store(m, step)
        return m

    def complaint(self, m: Memory) -> str:
        """What is wrong with the log recovered from this memory; empty if nothing is."""
        after = self.recover(m)
        segments = ["".join(map(str, cells)) for cells in after[SEGMENTS]]
        if not all(re.fullmatch(r"(?:([AB]\d)<\1>)*", text) for text in segments):
            return f"torn: {segments}"
        if any(len(cells) > LIMIT for cells in after[SEGMENTS]):
            return f"too long: {segments}"
        removed = [cell for cells in after[REMOVED] for cell in cells]
        for s, owner in OWNERS.items():
            emitted = [f"{owner}{k + 1}" for k in range(after[s + ACKED])]
            if re.findall(owner + r"\d(?=<)", "".join(segments)) != [r for r in emitted if r + "<" not in removed]:
                return f"emitted {emitted}, found {segments}"
        return ""

    def explore(self) -> tuple[int, str]:
        start: State = (START, ((), (), ()))
        came_from: dict[State, State | None] = {start: None}
        complaints: dict[Memory, str] = {}
        todo = deque([start])
        while todo:
            state = todo.popleft()
            m = state[0]
            if m not in complaints:
                complaints[m] = self.complaint(m)
            if complaints[m]:
                return len(came_from), f"{self._trace(came_from, state)}\nall are killed, one recovers: {complaints[m]}"
            for who, _, after in self.successors(state):
                if after[0][SEGMENTS][: len(m[SEGMENTS]) - 1] != m[SEGMENTS][:-1]:
                    return len(came_from), f"{self._trace(came_from, state)}\n{who} changes a sealed segment"
                if after not in came_from:
                    came_from[after] = state
                    todo.append(after)
        return len(came_from), ""

    def _trace(self, came_from: dict[State, State | None], state: State) -> str:
        lines: list[str] = []
        while before := came_from[state]:
            who, what = next((who, what) for who, what, after in self.successors(before) if after == state)
            if not isinstance(what, str):
                address, value = what
                shown = OWNERS.get(value, value) if address == INTENT else value
                what = f"    {NAMES[address]} " + (f"+= {before[0][value]}" if address == SEGMENTS else f"= {shown}")
            lines.append(f"{who} {what}")
            state = before
        return "\n".join(reversed(lines))
